"""Candidates with all their scores, and with the evidence that an order goes by."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.cascade.fit import Query
from xopt.optimize.cascade.lexicon import make_lexicon
from xopt.runtime.cascade.fingerprint import model_fingerprint
from xopt.runtime.cascade.stage import Lists, Stage, open_stage
from xopt.runtime.data.candidates import Candidates, query_hash
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import machine_name
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.scoring.variants import BACKENDS, overflows

__all__ = [
    "ORDERS",
    "Scored",
    "default_variant",
    "distinct",
    "lists_of",
    "open_first",
    "queries_of",
    "told",
]

log = logging.getLogger(__name__)

ORDERS = ("given", "learned")
QUERIES_AT_ONCE = 64  # whose tokens are held for their evidence
FASTEST = {
    "cpu": ("onnx-int8", "onnx-fp32", "torch-fp32"),
    "cuda": ("torch-varlen-fp16", "torch-fp16", "torch-fp32"),
}


@dataclass(frozen=True)
class Scored:
    """Candidates with the reference's logits and the variant's, and how long the variant took."""

    candidates: Candidates
    reference: NDArray[np.floating]
    scores: NDArray[np.floating]
    seconds: float

    @staticmethod
    def by(
        scorer: PlannedScorer,
        folder: ModelFolder,
        part: Candidates,
        reference: NDArray[np.floating],
    ) -> Scored:
        """Score a part with the variant."""
        start = time.monotonic()
        scores = folder.manifest.ranking(scorer.score(part.pairs))
        return Scored(part, reference, scores, time.monotonic() - start)


def lists_of(candidates: Candidates) -> Lists:
    """Candidates as cascades take them."""
    groups = [candidates.rows[rows] for rows in candidates.groups().values()]
    scores = [np.array([row.first_score for row in rows], np.float32) for rows in groups]
    return Lists(
        [rows[0].query for rows in groups],
        [[row.text for row in rows] for rows in groups],
        scores if candidates.first_scores else None,
    )


def open_first(
    first: str,
    folder: ModelFolder,
    scorer: PlannedScorer,
    candidates: Candidates,
    threads: int,
    device: str,
) -> tuple[Stage, dict[str, Any]]:
    """What an order goes by: "given", "learned", its lexicon from these candidates, or a cheaper
    model's folder.

    With it which model that is, for `Order`.
    """
    if first == "given":
        return Stage(scorer, first), {}
    lexicon = make_lexicon(folder, _documents(scorer, lists_of(candidates)))
    if first == "learned":
        return Stage(scorer, first, lexicon), {}
    cheaper = ModelFolder.open(first, folder.trusted)
    variant = default_variant(cheaper, device)
    stage = open_stage(scorer, "model", lexicon, (cheaper, variant), threads, device)
    sha256 = model_fingerprint(cheaper, variant, cascade=False)
    return stage, {"model": str(cheaper.path.resolve()), "variant": variant, "sha256": sha256}


def distinct(candidates: Candidates) -> Candidates:
    """One list of each query: those of one text under other ids are no further queries, however
    many they are.
    """
    groups = candidates.groups()
    first = {
        query_hash(candidates.rows[rows.start].query): query_id
        for query_id, rows in reversed(groups.items())
    }
    if len(first) == len(groups):
        return candidates
    log.warning(
        "cascade: %d of %d queries repeat the text of another, and are left out",
        len(groups) - len(first),
        len(groups),
    )
    kept = set(first.values())
    return replace(candidates, rows=tuple(row for row in candidates.rows if row.query_id in kept))


def _documents(scorer: PlannedScorer, lists: Lists) -> list[NDArray[np.int64]]:
    """The ids of each document, once."""
    found: dict[str, NDArray[np.int64]] = {}
    for query, texts in zip(lists.queries, lists.documents, strict=True):
        new = list(dict.fromkeys(text for text in texts if text not in found))
        if new:
            pairs = [(query, text) for text in new]
            found.update(
                zip(
                    new,
                    scorer.encoder.parts(pairs, scorer.encoder.encode(pairs).ids)[1],
                    strict=True,
                )
            )
    return list(found.values())


def default_variant(folder: ModelFolder, device: str) -> str:
    """The variant that `xopt optimize` recommended on this machine, else what is likely the
    fastest there is.
    """
    there = folder.manifest.variants
    recommended = folder.manifest.recommended(machine_name(device))
    able = [name for name in FASTEST[device] if name in there and not overflows(there[name])]
    if device == "cuda":
        able = [name for name in able if BACKENDS[there[name].backend].gpu_ready()]
    return recommended or able[0]


def told(folder: ModelFolder, variant: str, cheaper: tuple[ModelFolder, str] | None) -> set[str]:
    """Hashes of the queries that made what is to be judged: they calibrated or chose a variant,
    or trained a model.
    """
    models = [(folder, variant), *([cheaper] if cheaper else [])]
    parts: list[Iterable[str]] = []
    for of, name in models:
        parts += [of.variant(name).recipe.get("calibrated_with", ()), of.manifest.trained_with]
        parts += [
            found.get("chosen_by", ())
            for found in of.manifest.measured.values()
            if found["recommended"] == name
        ]
    return {hash_ for part in parts for hash_ in part}


def queries_of(stage: Stage, scored: Scored) -> tuple[list[Query], float]:
    """Each query with its evidence, and the seconds that those took."""
    start, groups = time.monotonic(), list(scored.candidates.groups().values())
    evidence = []
    for first in range(0, len(groups), QUERIES_AT_ONCE):
        some = lists_of(scored.candidates.between(first, first + QUERIES_AT_ONCE))
        evidence += [each for each, _ in stage.evidence(some)]
    queries = [
        Query(each, scored.reference[rows], scored.scores[rows])
        for each, rows in zip(evidence, groups, strict=True)
    ]
    return queries, time.monotonic() - start
