"""The library rerankers, which loads its models itself."""

from __future__ import annotations

from typing import Any

import torch
from rerankers.models.ranker import BaseRanker
from rerankers.results import RankedResults, Result
from rerankers.utils import prep_docs

from xopt.runtime.scoring.cross_encoder import CrossEncoder

__all__ = ["CrossEncoderRanker"]

LOGITS = torch.nn.Identity()


class CrossEncoderRanker(BaseRanker):  # type: ignore[misc] # of no known type
    """Ranks by a CrossEncoder. Scores are logits, as those of rerankers' TransformerRanker."""

    def __init__(self, model: CrossEncoder) -> None:
        self.model = model

    def rank(
        self,
        query: str,
        docs: Any,
        doc_ids: list[str] | list[int] | None = None,
        metadata: list[dict[str, Any]] | None = None,
        batch_size: int | None = None,  # noqa: ARG002 # the plan packs pairs
    ) -> RankedResults:
        """Rank texts or rerankers' documents, best first."""
        documents = prep_docs(docs, doc_ids, metadata)
        texts = [document.text for document in documents]
        results: list[Result] = []
        for row in self.model.rank(query, texts, activation_fn=LOGITS):
            document = documents[row["corpus_id"]]
            results.append(Result(document, row["score"], rank=len(results) + 1))
        return RankedResults(results, query, has_scores=True)

    def score(self, query: str, doc: str) -> float:
        """Return the logit of a query and a document."""
        score: float = self.model.rank(query, [doc], activation_fn=LOGITS)[0]["score"]
        return score
