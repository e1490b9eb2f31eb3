"""Shrink: a model folder with fewer layers, distilled from the scores of the one that it was made
of.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xopt.optimize.export import check_place, export
from xopt.optimize.judge.statistics import Interval, interval
from xopt.optimize.shrink.distil import Distilled, batch, distil
from xopt.optimize.shrink.layers import keep_layers, layers_of, search_layers, sets_tried
from xopt.optimize.shrink.lists import List, draw_lists, own_lists, ranked
from xopt.optimize.validate import EXACT_VARIANT
from xopt.runtime.data.agreement import agreement_by_query
from xopt.runtime.data.candidates import Candidates, query_hash
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import WEIGHTS, ModelFolder
from xopt.runtime.machine import cores, has_bf16
from xopt.runtime.scoring.backends.network import Network, load_encoder, load_own
from xopt.runtime.scoring.device import check_device
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.scoring.variants import REFERENCE

__all__ = ["Shrunk", "shrink"]

log = logging.getLogger(__name__)

SEARCHED = 12, 25  # queries, and documents of each, that sets of layers are compared on
JUDGED = 100  # documents of each query that show what was reached
MEASURES = ("tau", "top10", "dcg10_loss")
TOKENS = 192  # of a pair to learn from: longer ones are cut, for the teacher too
DRAWN = 4  # times as many drawn queries as there are lists of the data's own
FEWEST_DRAWN, MOST_DRAWN = 2000, 20_000
SAME = 1e-3  # of logits
TOGETHER = 32  # pairs of a forward while layers are searched


@dataclass(frozen=True)
class Shrunk:
    """A smaller model, and how well it ranks as the larger one does on queries that it has not
    learned from.

    kept: the layers that it has, counted from 0. measures: tau, top10 and dcg10_loss against the
    larger model; and ndcg10, with that of the larger one as full_ndcg10, where there are
    judgements. untrained: tau of these layers before the training, on the queries that chose
    them.
    """

    folder: str
    source: str
    layers: int
    kept: tuple[int, ...]
    untrained: float
    distilled: Distilled
    lists: int
    drawn: int
    queries: int
    measures: dict[str, Interval]


def shrink(
    folder: ModelFolder,
    out: Path,
    layers: int,
    candidates: Candidates,
    *,
    minutes: float = 30,
    device: str = "cpu",
    threads: int | None = None,
    force: bool = False,
) -> Shrunk:
    """Make the model folder `out` of some `layers` of a model, distilled for so many `minutes`.

    Which layers is found by their agreement before the training. It learns from the data's
    queries and documents, and from queries that are drawn from the documents; a part of the
    queries, `Candidates.split`, chooses the layers and shows what was reached, and is not learned
    from. See `xopt.optimize.shrink.lists.ranked` for documents without queries, or with one each.
    Raises BadInput where there are no such layers to leave out, before anything is trained.
    """
    check_device(device)
    check_place(out, force)
    torch.set_num_threads(threads or cores())
    given, own = str(folder.path), folder.manifest
    if out.resolve() == folder.path.resolve():
        raise BadInput(f"{out}: is the model that is to be shrunk; choose another folder with -o")
    if not own.ranks:
        raise BadInput(f"{given}: has {own.labels} labels, and none that ranks; see --rank-label")
    teacher = load_own(folder)
    holder, name = layers_of(teacher, given)
    whole = len(getattr(holder, name))
    if not 0 < layers < whole:
        raise BadInput(
            f"--layers {layers}: {given} has {whole}; keep at least one of them, and not all"
        )
    held_out, learning = ranked(candidates).split()
    if not held_out.rows:
        raise BadInput(
            f"{candidates.name}: a single query; give more, some to learn from and some to judge by"
        )
    held_out, some = held_out.cut(JUDGED), held_out.pairs[:4]
    if not _reloads(folder, (0, *range(2, layers + 1)), some):  # all but the first move up by one
        raise _of_kinds(given)
    fixed = 0 if _reloads(folder, tuple(range(whole - layers, whole)), some) else 1
    kept, untrained = _search(folder, layers, held_out, device, fixed)
    log.info(
        "shrink: layers %s of %d, tau-b %.3f before training",
        [i + 1 for i in kept],
        whole,
        untrained,
    )
    if not _reloads(folder, kept, some):
        raise _of_kinds(given)
    rng = np.random.default_rng(0)
    lists = own_lists(learning, rng)
    queries = {row.query for row in held_out.rows}
    drawn = draw_lists(
        learning, min(MOST_DRAWN, max(FEWEST_DRAWN, DRAWN * len(lists))), rng, queries
    )
    log.info(
        "shrink: %d lists of the data's queries, %d of drawn ones, %g minutes",
        len(lists),
        len(drawn),
        minutes,
    )
    student = load_own(folder)
    keep_layers(student, kept, given)
    encoder = Encoder(
        replace(folder, manifest=replace(own, max_length=min(TOKENS, own.max_length)))
    )
    mixed = device == "cuda" or has_bf16()
    done = distil(
        teacher, student, kept, _forever(lists, drawn, rng), encoder, 60 * minutes, device, mixed
    )
    made = _write(folder, out, kept, student, force)
    source = {
        "model": given,
        "sha256": own.files.get(WEIGHTS, ""),
        "layers": str([i + 1 for i in kept]),
    }
    seen = sorted({query_hash(row.query) for row in learning.rows} | set(own.trained_with))
    made = made.write(lambda manifest: replace(manifest, source=source, trained_with=seen))
    measures = _measures(folder, made, held_out, threads, device)
    counts = len(lists), len(drawn), len(held_out.groups())
    return Shrunk(str(made.path), given, whole, kept, untrained, done, *counts, measures)


def _search(
    folder: ModelFolder, layers: int, candidates: Candidates, device: str, fixed: int
) -> tuple[tuple[int, ...], float]:
    """Which layers agree best with all of them, and their tau-b; the first `fixed` stay."""
    few = candidates.between(0, SEARCHED[0]).cut(SEARCHED[1])
    network = Network(load_own(folder)).to(device).eval()
    holder, name = layers_of(network.encoder, str(folder.path))
    whole, encoder = getattr(holder, name), Encoder(folder)

    def scores(kept: tuple[int, ...]) -> NDArray[np.float32]:
        setattr(holder, name, torch.nn.ModuleList([whole[i] for i in kept]))
        return folder.manifest.ranking(_score(network, encoder, few.pairs, device))

    start, sets = time.monotonic(), sets_tried(len(whole), layers, fixed)
    reference = scores(tuple(range(len(whole))))
    minutes = (time.monotonic() - start) / 60
    log.info(
        "shrink: trying %d sets of layers on %d pairs, %d minutes at most; %d to score %d pairs with both at the end",
        sets,
        len(few.rows),
        math.ceil(sets * minutes),
        math.ceil(2 * minutes * len(candidates.rows) / len(few.rows)),
        len(candidates.rows),
    )

    def agreement(kept: tuple[int, ...]) -> float:
        return float(np.nanmean(agreement_by_query(few, reference, scores(kept))["tau"]))

    return search_layers(len(whole), layers, agreement, fixed)


def _score(
    network: Network, encoder: Encoder, pairs: Sequence[Pair], device: str
) -> NDArray[np.float32]:
    """Logits as scorers have them."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(pairs), TOGETHER):
            inputs, _ = batch(
                [(query, [text]) for query, text in pairs[first : first + TOGETHER]],
                encoder,
                device,
            )
            parts.append(network(**inputs).float().cpu().numpy())
    logits = np.concatenate(parts)
    return logits[:, 0] if logits.shape[1] == 1 else logits


def _forever(own: list[List], drawn: list[List], rng: np.random.Generator) -> Iterator[List]:
    """Lists without end, in turn of the data's own and of those drawn, each kind in a new order
    when it ends.
    """
    kinds = [kind for kind in (own, drawn) if kind]
    turns: list[Iterator[int]] = [iter(()) for _ in kinds]
    for number in itertools.cycle(range(len(kinds))):
        place = next(turns[number], None)
        if place is None:
            turns[number] = iter(rng.permutation(len(kinds[number])).tolist())
            place = next(turns[number])
        yield kinds[number][place]


@contextlib.contextmanager
def _saved(
    folder: ModelFolder, kept: tuple[int, ...], weights: dict[str, Any] | None
) -> Iterator[Path]:
    """A temporary folder with a CrossEncoder that has these layers, and these weights where they
    are given.
    """
    encoder = load_own(folder)
    keep_layers(encoder, kept, str(folder.path))
    if weights is not None:
        own = encoder.state_dict()
        fitting = {
            name: value
            for name, value in weights.items()
            if name in own and own[name].shape == value.shape
        }
        encoder.load_state_dict(fitting, strict=False)
    with TemporaryDirectory(prefix="xopt-shrink-") as scratch:
        encoder.save_pretrained(scratch, create_model_card=False)
        yield Path(scratch)


def _reloads(folder: ModelFolder, kept: tuple[int, ...], pairs: Sequence[Pair]) -> bool:
    """Whether a network without the other layers is the same one when it is saved and loaded."""
    encoder = load_own(folder)
    keep_layers(encoder, kept, str(folder.path))
    own = Encoder(folder)
    expected = _score(Network(encoder).eval(), own, pairs, "cpu")
    with _saved(folder, kept, None) as saved:
        found = _score(
            Network(load_encoder(saved, trusted=folder.trusted)).eval(), own, pairs, "cpu"
        )
    return bool(np.abs(found - expected).max() <= SAME)


def _of_kinds(given: str) -> BadInput:
    return BadInput(
        f"{given}: its layers are of different kinds by their place, and cannot be left out one by one"
    )


def _write(
    folder: ModelFolder, out: Path, kept: tuple[int, ...], student: Any, force: bool
) -> ModelFolder:
    own = folder.manifest
    label = "-".join(map(str, own.rank_label)) or ("none" if own.labels > 1 else None)
    with _saved(
        folder, kept, {name: value.cpu() for name, value in student.state_dict().items()}
    ) as saved:
        return export(
            str(saved),
            out,
            force=force,
            trust_remote_code=folder.trusted,
            torch_only=EXACT_VARIANT not in own.variants,
            rank_label=label,
        )


def _measures(
    larger: ModelFolder,
    smaller: ModelFolder,
    candidates: Candidates,
    threads: int | None,
    device: str,
) -> dict[str, Interval]:
    exact = (
        EXACT_VARIANT
        if EXACT_VARIANT in smaller.manifest.variants and device == "cpu"
        else REFERENCE
    )
    expected, found = (
        each.manifest.ranking(
            open_scorer(each, exact, threads=threads, device=device).score(candidates.pairs)
        )
        for each in (larger, smaller)
    )
    by_query = agreement_by_query(candidates, expected, found)
    measures = {name: interval(by_query[name]) for name in MEASURES}
    for name, scores in (("ndcg10", found), ("full_ndcg10", expected)):
        quality = quality_by_query(candidates, scores)
        if quality:
            measures[name] = interval(quality["ndcg10"])
    return measures
