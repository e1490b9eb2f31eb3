"""Tokenising pairs as the reference does, without transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder

__all__ = ["Encoder", "Encoding", "Pair", "Tokens", "check_pairs", "clean", "render", "windows"]

Pair = tuple[str, str]

# pairs tokenised at once: few at first, so that a device beside it starts early
FIRST_WINDOW, LAST_WINDOW = 256, 2048
# What makes an encoder's tokens, beside its tokenizer.
MAKING = ("prompt", "template", "suffix", "split_special_tokens", "trailing_pad", "typed")
# Of a text that is longer, so much is tokenised, in the hope that it fills the model: it does
# unless tokens are of some hundred characters. A text of 300 MB would take 15 GB.
MOST_CHARACTERS = 1 << 20
# and no more text: the tokenizer holds some hundred bytes for each token, cut ones too
WINDOW_CHARACTERS = 1 << 21


@dataclass(frozen=True)
class Tokens:
    """Tokenised pairs: int64 ids and type ids, one array a pair; how many pairs were cut to the
    model's length.
    """

    ids: list[NDArray[np.int64]]
    type_ids: list[NDArray[np.int64]]
    lengths: NDArray[np.int64]
    truncated: int

    def taken(self, rows: NDArray[np.intp]) -> Tokens:
        """Some of the pairs, none of which counts as cut."""
        return Tokens(
            [self.ids[i] for i in rows], [self.type_ids[i] for i in rows], self.lengths[rows], 0
        )

    @staticmethod
    def joined(parts: Sequence[Tokens]) -> Tokens:
        """Pairs of several parts, in turn."""
        return Tokens(
            [ids for part in parts for ids in part.ids],
            [type_ids for part in parts for type_ids in part.type_ids],
            np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)]),
            sum(part.truncated for part in parts),
        )


class Encoder:
    """A model folder's tokenizer, set up once: truncation is never changed afterwards, so threads
    may share it.
    """

    def __init__(self, folder: ModelFolder) -> None:
        manifest = folder.manifest
        self.tokenizer = Tokenizer.from_file(str(folder.checked("tokenizer.json")))
        self.tokenizer.no_padding()
        self.split_special_tokens = manifest.split_special_tokens
        self.tokenizer.encode_special_tokens = self.split_special_tokens
        self.tokenizer.enable_truncation(
            manifest.max_length, strategy=manifest.truncation, direction=manifest.truncation_side
        )
        self.truncation, self.cut_right = manifest.truncation, manifest.truncation_side == "right"
        self.prompt, self.pad_id, self.max_length = (
            manifest.prompt,
            manifest.pad_id,
            manifest.max_length,
        )
        self.template, self.suffix = manifest.template, np.array(manifest.suffix, np.int64)
        self.special = (
            0 if self.template else self.tokenizer.num_special_tokens_to_add(is_pair=True)
        )
        self.trailing_pad, self.left = manifest.trailing_pad, manifest.padding_side == "left"
        # else the reference gives the model none, and it takes zeros
        self.typed = "token_type_ids" in manifest.inputs

    def encode(self, pairs: Sequence[Pair]) -> Tokens:
        """Tokenise (query, document) pairs, in windows: what is cut off is not held for all of
        them at once.
        """
        return Tokens.joined(
            [self.tokens(self.encodings(pairs[window])) for window in windows(pairs)]
        )

    def encodings(self, pairs: Sequence[Pair]) -> list[Encoding]:
        """The tokenizer's own part of `encode`, which runs on its own threads and leaves Python
        free.
        """
        try:
            try:
                return self._encoded([(self.prompt + query, text) for query, text in pairs])
            except TypeError:  # it takes no half of a surrogate pair
                return self._encoded(
                    [(clean(self.prompt + query), clean(text)) for query, text in pairs]
                )
        except Exception as error:  # tokenizers has no exceptions of its own
            raise BadInput(f"the tokenizer cannot encode these texts ({error})") from error

    def _encoded(self, pairs: Sequence[Pair]) -> list[Encoding]:
        shortened = [
            (self._shortened(query, "only_second"), self._shortened(text, "only_first"))
            for query, text in pairs
        ]
        made = self._all_encoded(shortened)
        for i, (pair, short) in enumerate(zip(pairs, shortened, strict=True)):
            sides = [side for side in (0, 1) if len(short[side]) < len(pair[side])]
            if sides:
                placed = self._placed(short)
                if not all(self._filled(placed, side, len(short[side])) for side in sides):
                    made[i] = self._all_encoded([pair])[0]
        return made

    def _filled(self, encoding: Encoding, side: int, characters: int) -> bool:
        """Whether more of a text that was shortened would change nothing.

        It has more than half of the tokens, so that none of the other text was cut, it was cut
        itself, and what is kept lies in the half that is far from where it was shortened.
        """
        sides = [
            0 if self.template and side is not None else side for side in encoding.sequence_ids
        ]
        side = 0 if self.template else side
        kept = [span for span, of in zip(encoding.offsets, sides, strict=True) if of == side]
        if not encoding.overflowing or 2 * len(kept) <= len(sides) - sides.count(None) + 1:
            return False
        return bool(
            kept[-1][1] <= characters // 2 if self.cut_right else kept[0][0] >= characters // 2
        )

    def _all_encoded(self, pairs: Sequence[Pair]) -> list[Encoding]:
        """Encodings without the places of their tokens."""
        inputs = [render(self.template, pair) for pair in pairs] if self.template else pairs
        made: list[Encoding] = self.tokenizer.encode_batch_fast(
            inputs, add_special_tokens=not self.template
        )
        return made

    def _placed(self, pair: Pair) -> Encoding:
        """The encoding of a pair with the places of its tokens in the texts."""
        parts = (render(self.template, pair), None) if self.template else pair
        made: Encoding = self.tokenizer.encode(*parts, add_special_tokens=not self.template)
        return made

    def _shortened(self, text: str, unless: str) -> str:
        """Of a very long text the side that is kept, cut at a blank; all, if truncation is to cut
        the other text.
        """
        if len(text) <= MOST_CHARACTERS or self.truncation == unless:
            return text
        if self.cut_right:
            blank = text.rfind(" ", 0, MOST_CHARACTERS)
            return text[: blank if blank > 0 else MOST_CHARACTERS]
        blank = text.find(" ", len(text) - MOST_CHARACTERS)
        return text[blank if blank >= 0 else -MOST_CHARACTERS :]

    def tokens(self, encodings: Sequence[Encoding]) -> Tokens:
        """The other part, which is Python's: arrays of what the tokenizer made."""
        ids = [self._ended(np.array(e.ids, np.int64)) for e in encodings]
        return Tokens(
            ids,
            [
                np.array(e.type_ids[: len(row)] or [0], np.int64) * self.typed
                for e, row in zip(encodings, ids, strict=True)
            ],
            np.array([len(row) for row in ids], np.int64),
            sum(bool(e.overflowing) for e in encodings),
        )

    def parts(
        self, pairs: Sequence[Pair], ids: Sequence[NDArray[np.int64]]
    ) -> tuple[NDArray[np.int64], list[Any]]:
        """Of pairs with one query, and their ids: the ids of the query, and of each document as
        far as it was kept.
        """
        none = np.empty(0, np.int64)
        if self.template:
            texts = [pairs[0][0], *(text for _, text in pairs)]
            texts = [clean(self._shortened(text, "only_first")) for text in texts]
            alone = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            query, *documents = [np.array(each.ids, np.int64) for each in alone]
            return query, documents
        # and has a document
        longest = min(range(len(ids)), key=lambda i: (not pairs[i][1].strip(), -len(ids[i])))
        sides = np.array(self._sides(pairs[longest]))
        query = ids[longest][: len(sides)][sides[: len(ids[longest])] == 0]
        if not (sides == 1).any():
            return query, [none] * len(ids)
        start, after = int(np.argmax(sides == 1)), int(np.argmax(sides[::-1] == 1))
        documents = []
        for pair, row in zip(pairs, ids, strict=True):
            if np.array_equal(row[:start], ids[longest][:start]):
                documents.append(row[start : len(row) - after])
            else:  # the query was cut too, elsewhere
                documents.append(row[np.array(self._sides(pair))[: len(row)] == 1])
        return query, documents

    def _sides(self, pair: Pair) -> list[int]:
        """For each token of a pair 0 where it is the query's, 1 where it is the document's, and
        else -1.
        """
        return [-1 if side is None else side for side in self.encodings([pair])[0].sequence_ids]

    def same_tokens(self, other: Encoder) -> bool:
        """Whether the other one makes the same tokens of every pair."""
        same = all(np.array_equal(vars(self)[name], vars(other)[name]) for name in MAKING)
        # its truncation included
        return same and bool(self.tokenizer.to_str() == other.tokenizer.to_str())

    def _ended(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids whose last one is the one that a score is read from, where that is the last."""
        if len(self.suffix) and len(ids) >= self.max_length:
            ids[-len(self.suffix) :] = self.suffix[-len(ids) :]
        if self.trailing_pad is not None:
            others = np.flatnonzero(ids != self.trailing_pad)
            ids = ids[: others[-1] + 1 if len(others) else 1]
        # a forward has to have a token
        return ids if len(ids) else np.array([self.pad_id], np.int64)


def render(template: Sequence[str], pair: Pair) -> str:
    """A pair as one text. Between the literal parts of a template stands which text comes there,
    stripped or not.
    """
    texts = {
        "query": pair[0],
        "document": pair[1],
        "query.strip": pair[0].strip(),
        "document.strip": pair[1].strip(),
    }
    return "".join(texts[part] if number % 2 else part for number, part in enumerate(template))


def windows(pairs: Sequence[Pair]) -> Iterator[slice]:
    """Slices of pairs, each twice as long as the one before it up to `LAST_WINDOW`, and of few
    characters.
    """
    start, size = 0, FIRST_WINDOW
    while start < len(pairs):
        stop, characters = start, 0
        while stop < min(start + size, len(pairs)) and (
            stop == start or characters < WINDOW_CHARACTERS
        ):
            characters += len(pairs[stop][0]) + len(pairs[stop][1])
            stop += 1
        yield slice(start, stop)
        start, size = stop, min(2 * size, LAST_WINDOW)


def clean(text: str) -> str:
    """The same text with U+FFFD for each surrogate that has lost its other half, which no
    encoding can hold.

    Text cut within an emoji has them, and text out of a PDF.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raises BadInput where one of `pairs` is not two texts."""
    for row, pair in enumerate(pairs):
        if (
            not isinstance(pair, (tuple, list))
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            raise BadInput(
                f"pair {row}: expected a query and a document, two texts, got {pair!r:.80}"
            )
