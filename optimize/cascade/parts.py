"""Prepares queries to choose and certify by: their scores and their evidence."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.cascade.fit import Query
from xopt.optimize.cascade.lexicon import make_lexicon
from xopt.runtime.cascade.evidence import EvidenceSource, Lists, open_evidence_source
from xopt.runtime.cascade.fingerprint import model_fingerprint
from xopt.runtime.data.candidates import Candidates, query_hash
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import machine_name
from xopt.runtime.progress import progress
from xopt.runtime.scoring.encode import Encoder
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.scoring.variants import BACKENDS, overflows

__all__ = [
    "ORDERS",
    "ScoredCandidates",
    "candidate_lists",
    "variant_to_certify",
    "make_evidence_source",
    "preparing_queries",
    "queries_with_evidence",
    "score_candidates",
    "without_repeated_queries",
]

Logits = NDArray[np.floating]

log = logging.getLogger(__name__)

ORDERS = ("given", "learned")
QUERIES_AT_ONCE = 64  # whose tokens are in memory together
FASTEST = {
    "cpu": ("onnx-int8", "onnx-fp32", "torch-fp32"),
    "cuda": ("torch-varlen-fp16", "torch-fp16", "torch-fp32"),
}


@dataclass(frozen=True)
class ScoredCandidates:
    """Candidates with the logits of the reference and of a variant."""

    candidates: Candidates
    reference: Logits
    scores: Logits
    seconds: float


def score_candidates(
    scorer: PlannedScorer,
    folder: ModelFolder,
    candidates: Candidates,
    reference: Logits,
) -> ScoredCandidates:
    """Score candidates with a variant."""
    start = time.monotonic()
    scores = folder.manifest.ranking(scorer.score(candidates.pairs))
    return ScoredCandidates(candidates, reference, scores, time.monotonic() - start)


def candidate_lists(candidates: Candidates) -> Lists:
    """Return candidates as a cascade takes them."""
    groups = list(candidates.groups().values())
    queries = [candidates.rows[rows.start].query for rows in groups]
    texts = [text for _, text in candidates.pairs]
    documents = [texts[rows] for rows in groups]
    if candidates.first_scores is None:
        return Lists(queries, documents)
    scores = np.array(candidates.first_scores, np.float32)
    return Lists(queries, documents, [scores[rows] for rows in groups])


def make_evidence_source(
    first: str,
    folder: ModelFolder,
    scorer: PlannedScorer,
    candidates: Candidates,
    threads: int,
    device: str,
) -> tuple[EvidenceSource, dict[str, str]]:
    """Open the evidence of "given", "learned" or a cheaper model's folder.

    The lexicon is weighted by the candidates. Returns the cheaper model's fields of `Order` too.
    """
    if first == "given":
        return EvidenceSource(scorer, first), {}
    lexicon = make_lexicon(folder, _document_ids(scorer.encoder, candidates))
    if first == "learned":
        return EvidenceSource(scorer, first, lexicon), {}
    cheaper = ModelFolder.open(first, folder.trusted)
    variant = variant_to_certify(cheaper, device)
    source = open_evidence_source(scorer, "model", lexicon, (cheaper, variant), threads, device)
    return source, {
        "model": str(cheaper.path.resolve()),
        "variant": variant,
        "sha256": model_fingerprint(cheaper, variant, cascade=False),
    }


def without_repeated_queries(candidates: Candidates) -> Candidates:
    """Leave out queries with an earlier one's text, which are no further draws."""
    groups = candidates.groups()
    first_ids: dict[str, str] = {}
    for query_id, rows in groups.items():
        first_ids.setdefault(query_hash(candidates.rows[rows.start].query), query_id)
    if len(first_ids) == len(groups):
        return candidates
    log.warning(
        "cascade: %d of %d queries repeat the text of another, and are left out",
        len(groups) - len(first_ids),
        len(groups),
    )
    kept = set(first_ids.values())
    kept_rows = tuple(row for row in candidates.rows if row.query_id in kept)
    return replace(candidates, rows=kept_rows)


def _document_ids(encoder: Encoder, candidates: Candidates) -> list[NDArray[np.int64]]:
    """Return the token ids of each distinct document."""
    pairs = candidates.pairs
    found: dict[str, NDArray[np.int64]] = {}
    for rows in candidates.groups().values():
        _, documents = encoder.parts(pairs[rows], encoder.encode(pairs[rows]).ids)
        for (_, text), ids in zip(pairs[rows], documents, strict=True):
            found.setdefault(text, ids)
    return list(found.values())


def variant_to_certify(folder: ModelFolder, device: str) -> str:
    """Return the recommended variant, else the one that is likely the fastest."""
    recommended = folder.manifest.recommended(machine_name(device))
    if recommended:
        return recommended
    variants = folder.manifest.variants
    made = [name for name in FASTEST[device] if name in variants]
    able = [name for name in made if not overflows(variants[name])]
    if device == "cuda":
        able = [name for name in able if BACKENDS[variants[name].backend].gpu_ready()]
    return able[0]


def preparing_queries(folder: ModelFolder, variant: str) -> set[str]:
    """Return hashes of queries that calibrated, chose or trained a variant."""
    manifest = folder.manifest
    hashes = set(manifest.trained_with)
    hashes.update(folder.variant(variant).recipe.get("calibrated_with", ()))
    for found in manifest.measured.values():
        if found["recommended"] == variant:
            hashes.update(found.get("chosen_by", ()))
    return hashes


def queries_with_evidence(
    source: EvidenceSource, scored: ScoredCandidates
) -> tuple[list[Query], float]:
    """Return each query with its evidence, and the seconds that took."""
    start = time.monotonic()
    groups = list(scored.candidates.groups().values())
    evidence = []
    title = f"what the order {source.kind} goes by"
    with progress(title, len(groups), "queries", work=len(groups)) as step:
        for first in range(0, len(groups), QUERIES_AT_ONCE):
            some = scored.candidates.between(first, first + QUERIES_AT_ONCE)
            collected = source.collect(candidate_lists(some))
            evidence += [each for each, _ in collected]
            step.advance(len(collected))
    queries = []
    for each, rows in zip(evidence, groups, strict=True):
        queries.append(Query(each, scored.reference[rows], scored.scores[rows]))
    return queries, time.monotonic() - start
