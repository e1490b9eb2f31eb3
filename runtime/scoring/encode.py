"""Tokenising pairs as the reference does, without transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder

__all__ = ["Encoder", "Encoding", "Pair", "Tokens", "check_pairs"]

Pair = tuple[str, str]


@dataclass(frozen=True)
class Tokens:
    """Tokenised pairs: int64 ids and type ids, one array a pair; how many pairs were cut to the model's length."""

    ids: list[NDArray[np.int64]]
    type_ids: list[NDArray[np.int64]]
    lengths: NDArray[np.int64]
    truncated: int


class Encoder:
    """A model folder's tokenizer, set up once: truncation is never changed afterwards, so threads may share it."""

    def __init__(self, folder: ModelFolder) -> None:
        manifest = folder.manifest
        self.tokenizer = Tokenizer.from_file(str(folder.checked("tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(
            manifest.max_length, strategy="longest_first", direction=manifest.truncation_side
        )
        self.prompt, self.pad_id, self.max_length = manifest.prompt, manifest.pad_id, manifest.max_length

    def encode(self, pairs: Sequence[Pair]) -> Tokens:
        """Tokenise (query, document) pairs."""
        return self.tokens(self.encodings(pairs))

    def encodings(self, pairs: Sequence[Pair]) -> list[Encoding]:
        """The tokenizer's own part of `encode`, which runs on its own threads and leaves Python free."""
        made: list[Encoding] = self.tokenizer.encode_batch_fast([(self.prompt + query, text) for query, text in pairs])
        return made

    @staticmethod
    def tokens(encodings: Sequence[Encoding]) -> Tokens:
        """The other part, which is Python's: arrays of what the tokenizer made."""
        ids = [np.array(e.ids, np.int64) for e in encodings]
        return Tokens(
            ids,
            [np.array(e.type_ids, np.int64) for e in encodings],
            np.array([len(row) for row in ids], np.int64),
            sum(bool(e.overflowing) for e in encodings),
        )


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raises BadInput where one of `pairs` is not two texts."""
    for row, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadInput(f"pair {row}: expected a query and a document, two texts, got {pair!r:.80}")
