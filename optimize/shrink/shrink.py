"""Shrink: a model folder with fewer layers, distilled from the scores of a larger one."""

from __future__ import annotations

import contextlib
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
from xopt.optimize.shrink.layers import (
    Kept,
    find_layers,
    keep_layers,
    layers_of,
    search_layers,
    sets_tried,
)
from xopt.optimize.shrink.lists import (
    TrainingList,
    draw_lists,
    in_turn,
    own_lists,
    rankable,
)
from xopt.optimize.validate import EXACT_VARIANT
from xopt.runtime.data.agreement import agreement_by_query
from xopt.runtime.data.candidates import Candidates, query_hash
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import WEIGHTS, ModelFolder
from xopt.runtime.machine import cores, has_bf16
from xopt.runtime.progress import progress
from xopt.runtime.scoring.backends.network import Network, load_encoder, load_own
from xopt.runtime.scoring.device import check_device
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.scoring.variants import REFERENCE

__all__ = ["Shrunk", "shrink"]

log = logging.getLogger(__name__)

SEARCH_QUERIES = 12  # that sets of layers are compared on
SEARCH_DEPTH = 25  # documents of each of them
JUDGED_DEPTH = 100  # documents of each query that the result is judged by
MEASURES = ("tau", "top10", "dcg10_loss")
MAX_TOKENS = 192  # of a pair to learn from; longer ones are cut, for the teacher too
DRAWN_PER_LIST = 4  # lists of drawn queries for each of the data's own
FEWEST_DRAWN = 2000
MOST_DRAWN = 20_000
LOGIT_TOLERANCE = 1e-3
BATCH_PAIRS = 32


@dataclass(frozen=True)
class Shrunk:
    """A smaller model, and how it ranks queries that it has not learned from.

    layers: how many the larger model has. kept: those that stayed, counted from 0.
    untrained: their mean tau-b before the training. lists, drawn: how many lists of the
    data's own queries, and of drawn ones. measures: tau, top10 and dcg10_loss against the
    larger model, and with qrels ndcg10, which is full_ndcg10 for the larger model.
    """

    folder: str
    source: str
    layers: int
    kept: Kept
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
    """Make the model folder `out` of some layers of a model, trained for some minutes.

    - `layers`: how many layers stay, those that agree best with the whole model.
    - `candidates`: what it learns from, the queries and sentences of the documents. Documents
      without queries will do.
    - `minutes`: how long it trains. Scoring before and after takes minutes more.
    - `force`: replace the model folder `out`.

    A part of the queries is held out. It chooses the layers and judges the result.

    Raises BadInput before any training where these layers cannot be left out.
    """
    check_device(device)
    check_place(out, force)
    torch.set_num_threads(threads or cores())
    teacher = load_own(folder)
    count = len(layers_of(teacher))
    _check(folder, out, layers, count)
    with progress("shrink", total=5, unit="steps") as step:
        step.begin("reading queries and documents")
        held_out, learning = _split(candidates)
        step.begin("choosing layers")
        kept, untrained = _choose_layers(folder, layers, count, held_out, device)
        step.begin("training")
        rng = np.random.default_rng(0)
        lists, drawn = _training_lists(learning, held_out, rng)
        student = _with_layers(folder, kept)
        turns = in_turn(lists, drawn, rng)
        encoder = _short_encoder(folder)
        mixed = device == "cuda" or has_bf16()
        distilled = distil(
            teacher, student, kept, turns, encoder, seconds=60 * minutes, device=device, mixed=mixed
        )
        step.begin("exporting")
        made = _write_origin(_export(folder, out, kept, student, force), folder, kept, learning)
        step.begin("judging")
        measures = _measures(folder, made, held_out, threads, device)
    return Shrunk(
        folder=str(made.path),
        source=str(folder.path),
        layers=count,
        kept=kept,
        untrained=untrained,
        distilled=distilled,
        lists=len(lists),
        drawn=len(drawn),
        queries=len(held_out.groups()),
        measures=measures,
    )


def _check(folder: ModelFolder, out: Path, layers: int, count: int) -> None:
    given = folder.path
    if out.resolve() == given.resolve():
        raise BadInput(f"{out}: is the model that is to be shrunk; choose another `out=`")
    if not folder.manifest.ranks:
        raise BadInput(
            f"{given}: has {folder.manifest.labels} labels, and none that ranks; "
            "export it again with `rank_label=`"
        )
    if not 0 < layers < count:
        raise BadInput(
            f"`layers={layers}`: {given} has {count}; keep at least one of them, and not all"
        )


def _split(candidates: Candidates) -> tuple[Candidates, Candidates]:
    """Split candidates into those to judge by and those to learn from."""
    held_out, learning = rankable(candidates).split()
    if not held_out.rows:
        raise BadInput(
            f"{candidates.name}: a single query; give more, some to learn from and some to judge by"
        )
    return held_out.cut(JUDGED_DEPTH), learning


def _choose_layers(
    folder: ModelFolder,
    layers: int,
    count: int,
    candidates: Candidates,
    device: str,
) -> tuple[Kept, float]:
    """Return the layers that agree best with all of them, and their mean tau-b."""
    pairs = candidates.pairs[:4]
    # Without the second layer, all but the first one change their place.
    _check_reloads(folder, (0, *range(2, layers + 1)), pairs)
    # A first layer of a kind of its own has to stay.
    last = tuple(range(count - layers, count))
    fixed = 0 if _reloads(folder, last, pairs) else 1
    kept, agreement = _search(folder, layers, candidates, device, fixed)
    log.info(
        "shrink: layers %s of %d, tau-b %.3f before training",
        [layer + 1 for layer in kept],
        count,
        agreement,
    )
    _check_reloads(folder, kept, pairs)
    return kept, agreement


def _check_reloads(folder: ModelFolder, kept: Kept, pairs: Sequence[Pair]) -> None:
    if not _reloads(folder, kept, pairs):
        raise BadInput(
            f"{folder.path}: its layers are of different kinds by their place, "
            "and cannot be left out one by one; choose another model"
        )


def _reloads(folder: ModelFolder, kept: Kept, pairs: Sequence[Pair]) -> bool:
    """Whether these layers alone score the same when they are saved and loaded."""
    encoder = Encoder(folder)
    smaller = _with_layers(folder, kept)
    with _saved(smaller) as saved:
        reloaded = load_encoder(saved, trusted=folder.trusted)
        found = _logits(Network(reloaded).eval(), encoder, pairs, "cpu")
    # Only now: a Network may change the CrossEncoder that it is made of.
    expected = _logits(Network(smaller).eval(), encoder, pairs, "cpu")
    return bool(np.abs(found - expected).max() <= LOGIT_TOLERANCE)


def _search(
    folder: ModelFolder,
    layers: int,
    candidates: Candidates,
    device: str,
    fixed: int,
) -> tuple[Kept, float]:
    few = candidates.between(0, SEARCH_QUERIES).cut(SEARCH_DEPTH)
    network = Network(load_own(folder)).to(device).eval()
    encoder = Encoder(folder)
    module, name = find_layers(network.encoder)
    whole = getattr(module, name)

    def scores(kept: Kept) -> NDArray[np.float32]:
        setattr(module, name, torch.nn.ModuleList([whole[i] for i in kept]))
        return folder.manifest.ranking(_logits(network, encoder, few.pairs, device))

    start = time.monotonic()
    reference = scores(tuple(range(len(whole))))
    minutes = (time.monotonic() - start) / 60
    sets = sets_tried(len(whole), layers, fixed)
    log.info(
        "shrink: trying %d sets of layers on %d pairs, %d minutes at most; "
        "%d to score %d pairs with both at the end",
        sets,
        len(few.rows),
        math.ceil(sets * minutes),
        math.ceil(2 * minutes * len(candidates.rows) / len(few.rows)),
        len(candidates.rows),
    )
    with progress("trying sets of layers", sets, "sets", work=sets) as step:

        def agreement(kept: Kept) -> float:
            by_query = agreement_by_query(few, reference, scores(kept))
            step.advance()
            return float(np.nanmean(by_query["tau"]))

        return search_layers(len(whole), layers, agreement, fixed)


def _training_lists(
    learning: Candidates,
    held_out: Candidates,
    rng: np.random.Generator,
) -> tuple[list[TrainingList], list[TrainingList]]:
    """Return lists of the data's own queries, and of drawn ones."""
    lists = own_lists(learning, rng)
    wanted = min(MOST_DRAWN, max(FEWEST_DRAWN, DRAWN_PER_LIST * len(lists)))
    held_out_queries = {row.query for row in held_out.rows}
    drawn = draw_lists(learning, wanted, rng, held_out_queries)
    log.info("shrink: %d lists of the data's queries, %d of drawn ones", len(lists), len(drawn))
    return lists, drawn


def _logits(
    network: Network,
    encoder: Encoder,
    pairs: Sequence[Pair],
    device: str,
) -> NDArray[np.float32]:
    """Score pairs: float32[n], or float32[n, labels] of several labels."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(pairs), BATCH_PAIRS):
            part = pairs[first : first + BATCH_PAIRS]
            inputs, _ = batch([(query, [text]) for query, text in part], encoder, device)
            parts.append(network(**inputs).float().cpu().numpy())
    logits = np.concatenate(parts)
    return logits[:, 0] if logits.shape[1] == 1 else logits


def _short_encoder(folder: ModelFolder) -> Encoder:
    length = min(MAX_TOKENS, folder.manifest.max_length)
    return Encoder(replace(folder, manifest=replace(folder.manifest, max_length=length)))


def _with_layers(folder: ModelFolder, kept: Kept) -> Any:
    encoder = load_own(folder)
    keep_layers(encoder, kept)
    return encoder


@contextlib.contextmanager
def _saved(encoder: Any) -> Iterator[Path]:
    """Save a CrossEncoder in a temporary folder."""
    with TemporaryDirectory(prefix="xopt-shrink-") as scratch:
        encoder.save_pretrained(scratch, create_model_card=False)
        yield Path(scratch)


def _export(
    folder: ModelFolder,
    out: Path,
    kept: Kept,
    student: Any,
    force: bool,
) -> ModelFolder:
    """Export the student, by the settings of the larger model."""
    smaller = _with_layers(folder, kept)
    own = smaller.state_dict()
    # The student's head may have been cut down to the tokens that are compared.
    weights = {
        name: value.cpu()
        for name, value in student.state_dict().items()
        if name in own and own[name].shape == value.shape
    }
    smaller.load_state_dict(weights, strict=False)
    manifest = folder.manifest
    label = "-".join(map(str, manifest.rank_label))
    if not label and manifest.labels > 1:
        label = "none"
    with _saved(smaller) as saved:
        return export(
            str(saved),
            out,
            force=force,
            trust_remote_code=folder.trusted,
            torch_only=EXACT_VARIANT not in manifest.variants,
            rank_label=label or None,
        )


def _write_origin(
    made: ModelFolder,
    folder: ModelFolder,
    kept: Kept,
    learning: Candidates,
) -> ModelFolder:
    source = {
        "model": str(folder.path),
        "sha256": folder.manifest.files.get(WEIGHTS, ""),
        "layers": str([layer + 1 for layer in kept]),
    }
    hashes = {query_hash(row.query) for row in learning.rows}
    hashes.update(folder.manifest.trained_with)
    return made.write(
        lambda manifest: replace(manifest, source=source, trained_with=sorted(hashes))
    )


def _measures(
    larger: ModelFolder,
    smaller: ModelFolder,
    candidates: Candidates,
    threads: int | None,
    device: str,
) -> dict[str, Interval]:
    variant = REFERENCE
    if device == "cpu" and EXACT_VARIANT in smaller.manifest.variants:
        variant = EXACT_VARIANT

    def scores(folder: ModelFolder) -> NDArray[np.float32]:
        scorer = open_scorer(folder, variant, threads=threads, device=device)
        return folder.manifest.ranking(scorer.score(candidates.pairs))

    expected = scores(larger)
    found = scores(smaller)
    agreement = agreement_by_query(candidates, expected, found)
    measures = {name: interval(agreement[name]) for name in MEASURES}
    if candidates.qrels:
        quality = quality_by_query(candidates, found)
        full_quality = quality_by_query(candidates, expected)
        measures["ndcg10"] = interval(quality["ndcg10"])
        measures["full_ndcg10"] = interval(full_quality["ndcg10"])
    return measures
