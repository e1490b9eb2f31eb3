"""Ranks a request's documents by the folder's cascade, which scores few of them.

The orders and rules are those of `runtime.cascade`. What they ask for next is scored by the
server's engine, among the pairs of all other requests.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.encode import Pair, Tokens
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.serve.shapes import Ask, BadRequest

if TYPE_CHECKING:
    from xopt.runtime.cascade.cascade import Cascade, CascadeScorer

__all__ = ["CascadeRun", "ServedCascade", "is_asked"]

log = logging.getLogger(__name__)

LEAVE_OUT = "leave X-Cascade out"
NOT_SMALLER = "all were scored: top_n is not smaller than the number of documents"


def is_asked(header: str | None) -> bool:
    """Read the header X-Cascade. Raises BadRequest where it is neither true nor false."""
    value = (header or "false").strip().lower()
    if value not in {"true", "false"}:
        raise BadRequest(f"X-Cascade is {header!r}; send true or false", status=400)
    return value == "true"


@dataclass(frozen=True)
class ServedCascade:
    """The cascade of a server.

    cascade: what the folder has; None where it has none that can be read.
    ranker: what ranks by it; None where this server does not.
    refusal: why it does not, for clients.
    """

    cascade: Cascade | None = None
    ranker: CascadeScorer | None = None
    refusal: str = ""

    @staticmethod
    def of(folder: ModelFolder, scorer: PlannedScorer) -> ServedCascade:
        """Open a folder's cascade for the scorer of the variant that is served.

        A server whose cascade cannot be opened starts without it, with a warning.
        """
        if not folder.manifest.cascade:
            refusal = f"the model has no cascade; {LEAVE_OUT}, or make one with `xopt cascade`"
            return ServedCascade(refusal=refusal)
        cascade = None
        try:
            from xopt.runtime.cascade.cascade import Cascade

            cascade = Cascade.of(folder)
            refusal = _refusal(cascade, scorer.variant)
            if not refusal:
                return ServedCascade(cascade, _ranker(folder, cascade, scorer))
        except (BadInput, ModuleNotFoundError) as error:  # an image may lack scipy
            log.warning("the cascade is not served: %s", error)
            refusal = f"the cascade cannot be opened, and the server's log says why; {LEAVE_OUT}"
        return ServedCascade(cascade, refusal=refusal)

    def why_all(self, ask: Ask) -> str:
        """Return why all documents of an ask are scored, or "" where the cascade ranks them.

        Raises BadRequest where this server does not rank by a cascade.
        """
        if self.cascade is None or self.ranker is None:
            raise BadRequest(self.refusal)
        if ask.top_n is None or ask.top_n >= len(ask.pairs):
            return NOT_SMALLER
        beyond = self.cascade.beyond(ask.top_n) or self.cascade.too_deep(len(ask.pairs))
        return f"all were scored: {beyond}" if beyond else ""

    def run(self, ask: Ask) -> CascadeRun:
        """Begin to rank an ask's documents. Raises BadRequest where they lack scores."""
        assert self.ranker is not None  # `why_all` has been asked
        certificate = self.ranker.cascade.certificate
        scores = None
        if self.ranker.cascade.order.with_score:
            scores = first_scores(ask.documents, str(certificate.column))
        return CascadeRun(self.ranker, ask.pairs, scores, ask.top_n or 0)

    def expected(self, pairs: Sequence[Pair]) -> Sequence[Pair]:
        """Return about as many pairs as it scores of these."""
        share = self.cascade.certificate.share if self.cascade else 1.0
        return pairs[: math.ceil(share * len(pairs))]

    def described(self) -> dict[str, Any] | None:
        """Return what its certificate promises, and why it is not served, if so."""
        if self.cascade is None:
            return None
        certificate = self.cascade.certificate
        names = ("measure", "top", "max_loss", "confidence", "queries", "depth", "share", "column")
        promise = {name: getattr(certificate, name) for name in names}
        return {"variant": self.cascade.variant, **promise, "refused": self.refusal or None}


class CascadeRun:
    """One request's documents on their way through a cascade.

    partial: which of them are scored, and how.
    cut: the places of those that were scored and cut.
    token_count: how many tokens those scored have.
    """

    def __init__(
        self,
        ranker: CascadeScorer,
        pairs: Sequence[Pair],
        scores: NDArray[np.float32] | None,
        top_n: int,
    ) -> None:
        from xopt.runtime.cascade.evidence import Lists

        texts = [text for _, text in pairs]
        lists = Lists([pairs[0][0]], [texts], None if scores is None else [scores])
        ranker.check(lists)
        self.partial, self._tokens = ranker.begin(lists)[0]
        self.cut: list[int] = []
        self.token_count = 0
        self._scorer = ranker.scorer
        self._pairs = pairs
        self._top_n = top_n
        self._block = np.empty(0, np.intp)

    @property
    def count(self) -> int:
        """How many documents are scored."""
        return len(self._pairs) - len(self.partial.remaining)

    def next_block(self, scores: NDArray[np.float32] | None = None) -> Tokens | None:
        """Take the scores of the last block, and return the next one; None at the end."""
        if scores is not None:
            self.partial.add_scores(self._block, scores)
        self._block = self.partial.next_candidates()
        if not len(self._block):  # whatever is returned has a score
            finite = int(np.isfinite(self.partial.scores).sum())
            self._block = self.partial.remaining[: max(0, self._top_n - finite)]
        if not len(self._block):
            return None
        tokens = self._block_tokens()
        self.token_count += int(tokens.lengths.sum())
        return tokens

    def _block_tokens(self) -> Tokens:
        if self._tokens is not None:
            self.cut += np.intersect1d(self._block, self._tokens.cut).tolist()
            return self._tokens.taken(self._block)
        tokens = self._scorer.encode([self._pairs[row] for row in self._block.tolist()])
        self.cut += self._block[tokens.cut].tolist()
        return tokens


def first_scores(documents: Sequence[Any], column: str) -> NDArray[np.float32]:
    """Return the first stage's score of each document, which is a field of it."""
    scores = []
    for number, document in enumerate(documents):
        score = document.get(column) if isinstance(document, dict) else None
        if not isinstance(score, (int, float)) or isinstance(score, bool):
            raise BadRequest(
                f"document {number} has no number {column!r}, by which the cascade goes; "
                f"send objects with 'text' and {column!r}, or {LEAVE_OUT}"
            )
        scores.append(score)
    return np.array(scores, np.float64).astype(np.float32)


def _refusal(cascade: Cascade, variant: str) -> str:
    """Return why a server of a variant does not rank by a cascade, or ""."""
    if cascade.variant != variant:
        return (
            f"the cascade is certified with {cascade.variant}, and {variant} is served; "
            f"{LEAVE_OUT}, or serve with --variant {cascade.variant}"
        )
    if cascade.order.kind == "model":
        return (
            "the cascade goes by a cheaper model, which no server runs; "
            f"{LEAVE_OUT}, or make it again with `xopt cascade --first learned`"
        )
    return ""


def _ranker(folder: ModelFolder, cascade: Cascade, scorer: PlannedScorer) -> CascadeScorer:
    from xopt.runtime.cascade.cascade import CascadeScorer, open_lexicon
    from xopt.runtime.cascade.evidence import EvidenceSource

    source = EvidenceSource(scorer, cascade.order.kind, open_lexicon(folder, cascade.order))
    return CascadeScorer(folder, scorer, source, cascade, threads=1)
