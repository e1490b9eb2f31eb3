"""Tokenises pairs as the reference does, without transformers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores

__all__ = [
    "FILLERS",
    "Encoder",
    "Encoding",
    "Pair",
    "Tokens",
    "check_pairs",
    "clean",
    "common_suffix",
    "render",
    "windows",
]

Pair = tuple[str, str]
Ids = NDArray[np.int64]

# Pairs tokenised at once: few at first, so that a device starts early.
FIRST_WINDOW = 256
LAST_WINDOW = 2048
# And no more text: the tokenizer takes some hundred bytes a token, also of those cut.
WINDOW_CHARACTERS = 1 << 21
# So much of a longer text is tokenised at first: a text of 300 MB would take 15 GB.
# It fills the model, unless tokens have some hundred characters.
MOST_CHARACTERS = 1 << 20
# Texts of different tokens: with both in it, a template shows what all its texts end in.
FILLERS = ("0", "1 2 3 4")


@dataclass(frozen=True)
class Tokens:
    """Tokenised pairs, one array a pair, and the rows of those that were cut."""

    ids: list[Ids]
    type_ids: list[Ids]
    lengths: Ids
    cut: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def truncated(self) -> int:
        """How many pairs were cut."""
        return len(self.cut)

    def taken(self, rows: NDArray[np.intp]) -> Tokens:
        """Return some of the pairs; none counts as cut."""
        ids = [self.ids[row] for row in rows]
        type_ids = [self.type_ids[row] for row in rows]
        return Tokens(ids, type_ids, self.lengths[rows])

    @staticmethod
    def joined(parts: Sequence[Tokens]) -> Tokens:
        """Return the pairs of all parts, one after the other."""
        starts = np.cumsum([0, *(len(part.ids) for part in parts)])
        cut = [part.cut + start for part, start in zip(parts, starts, strict=False)]
        none = np.zeros(0, np.int64)
        return Tokens(
            [ids for part in parts for ids in part.ids],
            [type_ids for part in parts for type_ids in part.type_ids],
            np.concatenate([none, *(part.lengths for part in parts)]),
            np.concatenate([none, *cut]),
        )


class Encoder:
    """A model folder's tokenizer. Threads may share it: nothing changes it.

    It runs on so many `threads`, by default on all cores.
    """

    def __init__(self, folder: ModelFolder, threads: int | None = None) -> None:
        # None leaves it to the library.
        self.threads = threads if threads is not None and threads < cores() else None
        manifest = folder.manifest
        self.prompt = manifest.prompt
        self.template = manifest.template
        self.prompted = manifest.prompted
        self.unprompted = manifest.unprompted
        self.suffix = np.array(manifest.suffix, np.int64)
        self.restores_suffix = manifest.restores_suffix
        self.pad_id = manifest.pad_id
        self.trailing_pad = manifest.trailing_pad
        self.left = manifest.padding_side == "left"
        self.max_length = manifest.max_length
        self.truncation = manifest.truncation
        self.keeps_start = manifest.truncation_side == "right"
        # Without them among its inputs the reference's model takes zeros.
        self.typed = "token_type_ids" in manifest.inputs
        self.tokenizer = Tokenizer.from_file(str(folder.checked("tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = manifest.split_special_tokens
        self.tokenizer.enable_truncation(
            self.max_length, strategy=self.truncation, direction=manifest.truncation_side
        )
        self.special = 0
        if not self.template:
            self.special = self.tokenizer.num_special_tokens_to_add(is_pair=True)

    def with_prompt(self, prompt: str) -> Encoder:
        """Return an encoder with another prompt, which may be empty.

        Raises BadInput where the chat template holds one that cannot be replaced.
        """
        encoder = copy.copy(self)
        encoder.prompt = clean(prompt)
        if not self.template:
            return encoder
        encoder.template = self.prompted if prompt else self.unprompted
        if encoder.template:
            encoder.suffix = encoder._suffix() if self.restores_suffix else self.suffix
            return encoder
        if prompt and prompt == self.prompt:
            return self
        raise BadInput(
            f"prompt={prompt!r}: its prompt is part of the chat template; "
            "export the model again, and if that is not enough with this one as its default"
        )

    def _suffix(self) -> Ids:
        """Return the ids that every text ends in, as sentence-transformers finds them."""
        short, long = [self._whole(self._text((filler, filler))) for filler in FILLERS]
        return np.array(common_suffix(short, long), np.int64)

    def _whole(self, text: str) -> list[int]:
        """Return the ids of a text, with those that were cut behind them."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        cut = encoding.overflowing if self.keeps_start else []
        return [*encoding.ids, *(token for part in cut for token in part.ids)]

    def encode(self, pairs: Sequence[Pair]) -> Tokens:
        """Tokenise pairs, in windows so that few cut tokens are held at once.

        Raises BadInput where the tokenizer does not take them.
        """
        parts = [self.tokens(self.encodings(pairs[window])) for window in windows(pairs)]
        return Tokens.joined(parts)

    def encodings(self, pairs: Sequence[Pair]) -> list[Encoding]:
        """Run the tokenizer, which leaves Python free."""
        before = "" if self.template else self.prompt
        try:
            return self._encoded([(clean(before + query), clean(text)) for query, text in pairs])
        except Exception as error:  # tokenizers has no exceptions of its own
            raise BadInput(
                f"the tokenizer cannot encode these texts ({error}); "
                "shorten a query that leaves no room for its document"
            ) from error

    def tokens(self, encodings: Sequence[Encoding]) -> Tokens:
        """Make arrays of encodings: the part of `encode` that is Python's."""
        ids = [self._ended(np.array(encoding.ids, np.int64)) for encoding in encodings]
        type_ids = []
        for encoding, row in zip(encodings, ids, strict=True):
            types = encoding.type_ids[: len(row)] or [0]
            type_ids.append(np.array(types, np.int64) * self.typed)
        lengths = np.array([len(row) for row in ids], np.int64)
        cut = np.flatnonzero([bool(encoding.overflowing) for encoding in encodings])
        return Tokens(ids, type_ids, lengths, cut)

    def _ended(self, ids: Ids) -> Ids:
        """Let ids end in the token that the reference reads a score from."""
        if len(self.suffix) and len(ids) >= self.max_length:
            ids[-len(self.suffix) :] = self.suffix[-len(ids) :]
        if self.trailing_pad is not None:
            others = np.flatnonzero(ids != self.trailing_pad)
            ids = ids[: others[-1] + 1 if len(others) else 1]
        # A forward needs a token.
        return ids if len(ids) else np.array([self.pad_id], np.int64)

    def _encoded(self, pairs: Sequence[Pair]) -> list[Encoding]:
        """Encode pairs; of very long texts only a part, where that is enough."""
        shortened = [
            (self._shortened(query, "only_second"), self._shortened(text, "only_first"))
            for query, text in pairs
        ]
        encodings = self._tokenized(shortened)
        for row, (pair, short) in enumerate(zip(pairs, shortened, strict=True)):
            if short != pair and not self._is_enough(pair, short):
                encodings[row] = self._tokenized([pair])[0]
        return encodings

    def _shortened(self, text: str, spares: str) -> str:
        """Return the side of a very long text that truncation keeps, cut at a blank.

        The truncation `spares` cuts the other text only.
        """
        if len(text) <= MOST_CHARACTERS or self.truncation == spares:
            return text
        if self.keeps_start:
            blank = text.rfind(" ", 0, MOST_CHARACTERS)
            return text[: blank if blank > 0 else MOST_CHARACTERS]
        blank = text.find(" ", len(text) - MOST_CHARACTERS)
        return text[blank if blank >= 0 else -MOST_CHARACTERS :]

    def _tokenized(self, pairs: Sequence[Pair]) -> list[Encoding]:
        inputs = [self._text(pair) for pair in pairs] if self.template else pairs
        return self._run(inputs, add_special_tokens=not self.template)

    def _run(self, inputs: Sequence[str | Pair], add_special_tokens: bool) -> list[Encoding]:
        """Run the tokenizer on no more threads than it may have."""

        def encoded(some: Sequence[str | Pair]) -> list[Encoding]:
            encodings: list[Encoding] = self.tokenizer.encode_batch_fast(
                some, add_special_tokens=add_special_tokens
            )
            return encodings

        if self.threads is None:
            return encoded(inputs)
        # The library spreads a batch over all cores, but for a batch of one.
        with ThreadPoolExecutor(self.threads) as threads:
            return list(threads.map(lambda each: encoded([each])[0], inputs))

    def _text(self, pair: Pair) -> str:
        return render(self.template, pair, self.prompt)

    def _is_enough(self, pair: Pair, short: Pair) -> bool:
        """Return whether the whole pair would give the same tokens."""
        parts = (self._text(short), None) if self.template else short
        # In contrast to the fast one this encoding has offsets.
        encoding = self.tokenizer.encode(*parts, add_special_tokens=not self.template)
        for side, (whole, part) in enumerate(zip(pair, short, strict=True)):
            if part != whole and not self._fills(encoding, side, len(part)):
                return False
        return True

    def _fills(self, encoding: Encoding, side: int, characters: int) -> bool:
        """Return whether more of a shortened text would change no token.

        The tokenizer has to have cut it. What it kept has to lie in the half of the text that
        is far from where it was shortened. With more than half of the tokens, it was the only
        one to be cut.
        """
        if not encoding.overflowing:
            return False
        sides = encoding.sequence_ids
        if self.template:  # both texts are one
            sides = [None if each is None else side for each in sides]
        places = [place for place, each in enumerate(sides) if each == side]
        if 2 * len(places) <= len(sides) - sides.count(None) + 1:
            return False
        if self.keeps_start:
            _, end = encoding.offsets[places[-1]]
            return bool(end <= characters // 2)
        start, _ = encoding.offsets[places[0]]
        return bool(start >= characters // 2)

    def parts(self, pairs: Sequence[Pair], ids: Sequence[Ids]) -> tuple[Ids, list[Any]]:
        """Split the ids of pairs with one query: the query's, and each document's.

        Texts that were cut have the ids that were kept. With a template each is tokenised alone.
        """
        if self.template:
            texts = [pairs[0][0], *(text for _, text in pairs)]
            texts = [clean(self._shortened(text, "only_first")) for text in texts]
            encodings = self._run(texts, add_special_tokens=False)
            query, *documents = [np.array(encoding.ids, np.int64) for encoding in encodings]
            return query, documents
        # The longest pair with a document shows where documents begin and end.
        rows = [row for row, (_, text) in enumerate(pairs) if text.strip()]
        longest = max(rows or range(len(ids)), key=lambda row: len(ids[row]))
        sides = self._sides(pairs[longest])
        query = ids[longest][: len(sides)][sides[: len(ids[longest])] == 0]
        if not (sides == 1).any():
            return query, [np.empty(0, np.int64)] * len(ids)
        start = int(np.argmax(sides == 1))
        after = int(np.argmax(sides[::-1] == 1))
        documents = []
        for pair, row in zip(pairs, ids, strict=True):
            if np.array_equal(row[:start], ids[longest][:start]):
                documents.append(row[start : len(row) - after])
            else:  # its query was cut too, elsewhere
                documents.append(row[self._sides(pair)[: len(row)] == 1])
        return query, documents

    def _sides(self, pair: Pair) -> NDArray[np.intp]:
        """Return for each token of a pair 0 (query), 1 (document) or -1 (neither)."""
        sides = self.encodings([pair])[0].sequence_ids
        return np.array([-1 if side is None else side for side in sides])

    def same_tokens(self, other: Encoder) -> bool:
        """Return whether the other one makes the same tokens of every pair."""
        return self._settings() == other._settings()

    def _settings(self) -> tuple[Any, ...]:
        return (
            self.tokenizer.to_str(),  # with its truncation
            self.tokenizer.encode_special_tokens,
            self.prompt,
            self.template,
            self.suffix.tolist(),
            self.trailing_pad,
            self.typed,
        )


def render(template: Sequence[str], pair: Pair, prompt: str = "") -> str:
    """Render a pair and a prompt as one text.

    Between its literal parts a template names the texts, such as "query.strip".
    """
    texts = {}
    for name, text in zip(("query", "document", "prompt"), (*pair, prompt), strict=True):
        texts[name] = text
        texts[f"{name}.strip"] = text.strip()
    parts = list(template)
    parts[1::2] = [texts[name] for name in parts[1::2]]
    return "".join(parts)


def common_suffix(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Return the ids that both end in; none where one is the end of the other."""
    ends = zip(reversed(first), reversed(second), strict=False)
    suffix = [token for token, _ in itertools.takewhile(lambda end: end[0] == end[1], ends)]
    return suffix[::-1] if len(suffix) < min(len(first), len(second)) else []


def windows(pairs: Sequence[Pair]) -> Iterator[slice]:
    """Yield slices of pairs, each up to twice as long as the one before it."""
    start = 0
    size = FIRST_WINDOW
    while start < len(pairs):
        stop = start
        characters = 0
        end = min(start + size, len(pairs))
        while stop < end and (stop == start or characters < WINDOW_CHARACTERS):
            characters += len(pairs[stop][0]) + len(pairs[stop][1])
            stop += 1
        yield slice(start, stop)
        start = stop
        size = min(2 * size, LAST_WINDOW)


def clean(text: str) -> str:
    """Replace lone surrogates, which no encoding can hold, by U+FFFD.

    Texts cut within an emoji have them, and texts out of a PDF.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raise BadInput where one of `pairs` is not two texts."""
    for row, pair in enumerate(pairs):
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise BadInput(
                f"pair {row}: expected a query and a document, two texts, got {pair!r:.80}"
            )
