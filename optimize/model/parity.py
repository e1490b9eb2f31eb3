"""Parity: compare the tokens and logits of an export with the reference.

The reference, an `encoder`, is the given model as sentence-transformers runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xopt.optimize.model.facts import default_prompt
from xopt.runtime.errors import BadInput, GateFailed, first_line
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer
from xopt.runtime.scoring.variants import BACKENDS

__all__ = [
    "MAX_DIFFERENCE",
    "TEXT",
    "allowed_difference",
    "check_parity",
    "check_tokens",
    "expected_logits",
    "pairs_for",
    "parity_pairs",
    "short_pairs",
]

MAX_DIFFERENCE = 1e-4  # of FP32 logits
PARITY_PLAN = Plan(callers=1, threads=cores(), tokens=1024)
# The longest pairs whose logits are compared, in tokens. Where rotary positions change
# at a length of at most LAST_CHANGE, those are BEHIND_CHANGE longer than that.
LONGEST_COMPARED = 1024
LAST_CHANGE = 4096
BEHIND_CHANGE = 256
OTHER_PROMPT = "Search for: data, models and (Python) code!"
TEXT = (
    "the of ranking a query and document search engine with score 12 models, 'quoted' text "
    "(in brackets) for reading über naïve 東京 Zürich e-mail 3.14 Python function returns None "
    "data index shard"
)


def expected_logits(encoder: Any, model: str, pairs: list[Pair]) -> NDArray[np.float32]:
    """Return the reference's logits, float32[pairs] or float32[pairs, labels].

    Raises BadInput where it cannot score, and GateFailed where a logit is not finite.
    """
    try:
        scores = encoder.predict(
            pairs, batch_size=8, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
    except Exception as error:  # each architecture fails in its own way
        raise BadInput(
            f"{model}: sentence-transformers cannot score with it ({first_line(error)})"
        ) from error
    expected = np.asarray(scores, np.float32)
    for pair, logits in zip(pairs, expected, strict=True):
        if not np.isfinite(logits).all():
            raise GateFailed(
                f"{model}: sentence-transformers' score of {_shown(pair)} is not finite; "
                "the weights are damaged"
            )
    return expected


def _shown(pair: Pair) -> str:
    return f"({pair[0]!r:.60}, {pair[1]!r:.60})"


def allowed_difference(
    encoder: Any, model: str, pairs: list[Pair], expected: NDArray[np.float32]
) -> float:
    """Return how far FP32 logits may be from `expected`, at least `MAX_DIFFERENCE`.

    `expected` is off from logits in FP64 by rounding. Four times that is allowed, since
    it depends on the processor and the order of sums. It is large for models that
    normalise nothing between layers, such as MobileBERT.
    """
    try:
        exact = expected_logits(encoder.double(), model, pairs)
    except (BadInput, GateFailed):  # some models cast to FP32
        exact = expected
    encoder.float()  # the same weights again
    return max(MAX_DIFFERENCE, 4 * float(np.abs(exact - expected).max()))


def tokens_of(encoder: Any, pairs: Sequence[Pair], prompt: str) -> list[list[int]]:
    """Return the reference's ids of each pair."""
    made = []
    for start in range(0, len(pairs), 8):
        features = encoder.preprocess(list(pairs[start : start + 8]), prompt=prompt or None)
        for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True):
            made.append(ids[mask.bool()].tolist())
    return made


def short_pairs(encoder: Any, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs whose logits are compared.

    Attention over many thousand tokens may need more memory than there is, so that of
    longer pairs only the tokens are compared.
    """
    longest = max(LONGEST_COMPARED, _rope_change(encoder.config.to_dict()) + BEHIND_CHANGE)
    if encoder.max_seq_length <= longest:
        return list(pairs)
    lengths = map(len, tokens_of(encoder, pairs, default_prompt(encoder)))
    return [pair for pair, length in zip(pairs, lengths, strict=True) if length <= longest]


def _rope_change(config: dict[str, Any]) -> int:
    """Return the length at which rotary positions change, up to `LAST_CHANGE`, or 0."""
    parts = (config, config.get("rope_scaling") or {}, config.get("rope_parameters") or {})
    length = max(int(part.get("original_max_position_embeddings") or 0) for part in parts)
    return length if length <= LAST_CHANGE else 0


def check_tokens(folder: ModelFolder, encoder: Any, pairs: Sequence[Pair]) -> None:
    """Raise GateFailed where a scorer makes other tokens than the reference.

    A chat template is tried with another prompt and with none, too.
    """
    own = Encoder(folder)
    encoders = {default_prompt(encoder): own}
    if folder.manifest.prompted:
        encoders[OTHER_PROMPT] = own.with_prompt(OTHER_PROMPT)
    if folder.manifest.unprompted:
        encoders[""] = own.with_prompt("")
    for prompt, each in encoders.items():
        all_ids = each.encode(pairs).ids
        all_expected = tokens_of(encoder, pairs, prompt)
        for pair, ids, expected in zip(pairs, all_ids, all_expected, strict=True):
            left_out = [own.trailing_pad] * (len(expected) - len(ids))
            if ids.tolist() + left_out != expected:
                raise GateFailed(
                    f"{folder.manifest.source['model']}: the tokens of a scorer and of "
                    f"sentence-transformers differ on the pair {_shown(pair)}"
                )


def check_parity(
    folder: ModelFolder, encoder: Any, pairs: list[Pair], expected: NDArray[np.float32]
) -> None:
    """Raise GateFailed where FP32 logits are off by more than `allowed_difference`.

    `expected` is what `encoder` gives for `pairs`.
    """
    model = folder.manifest.source["model"]
    allowed = MAX_DIFFERENCE
    for name, scorer in _fp32_scorers(folder):
        differences = _differences(scorer, f"{model}: {name}", pairs, expected)
        largest = differences.max()
        if largest > allowed:
            allowed = allowed_difference(encoder, model, pairs, expected)
        if largest > allowed:
            where = "" if scorer.backend.step else ", in a batch that is padded"
            if encoder.tokenizer.padding_side == "left" and folder.manifest.padding_side == "right":
                where += "; its tokenizer pads on the left, and its scores change with padding"
            raise GateFailed(
                f"{model}: {name} and sentence-transformers differ by {largest:.2g}, over "
                f"{allowed:.2g}, on the pair {_shown(pairs[differences.argmax()])}{where}"
            )


def _fp32_scorers(folder: ModelFolder) -> Iterator[tuple[str, PlannedScorer]]:
    """Yield the name and scorer of each FP32 variant, once more to score with padding.

    Backends that take only some graphs are left to the gates.
    """
    for variant in folder.manifest.variants.values():
        if variant.precision == "fp32" and not BACKENDS[variant.backend].tried:
            scorer = open_scorer(folder, variant.name, plan=PARITY_PLAN)
            yield variant.name, scorer
            if scorer.backend.step:
                scorer.backend.step = 0  # other tools pad, whatever is fastest here
                yield variant.name, scorer


def _differences(
    scorer: PlannedScorer, name: str, pairs: list[Pair], expected: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return by how much the logits of each pair are off, float32[pairs]."""
    try:
        logits = scorer.logits(pairs)
    except Exception as error:  # as where a size became a constant in the graph
        raise GateFailed(
            f"{name} does not run; the export is damaged ({first_line(error)})"
        ) from error
    if not np.isfinite(logits).all():
        raise GateFailed(f"{name} gives scores that are not finite; the export is damaged")
    differences = np.abs(logits - expected).reshape(len(pairs), -1)
    return np.asarray(differences.max(axis=1))


def pairs_for(tokenizer: Any, max_length: int, truncation: str = "longest_first") -> list[Pair]:
    """Return the pairs to compare: of all lengths, and difficult ones.

    Pairs that `truncation` cannot cut are left out. So is the empty pair where it has no
    tokens, since sentence-transformers gives it no score of its own.
    """
    pairs = [*parity_pairs(max_length), *hard_pairs(tokenizer, max_length)]
    if not tokenizer.chat_template and not tokenizer("", "")["input_ids"]:
        pairs.remove(("", ""))
    uncut = {"only_second": 0, "only_first": 1}.get(truncation)
    if uncut is None:
        return pairs
    most = max_length * 3 // 4
    return [pair for pair in pairs if len(tokenizer.tokenize(pair[uncut])) < most]


def hard_pairs(tokenizer: Any, max_length: int) -> list[Pair]:
    """Return pairs with special tokens, odd characters, long and empty texts."""
    special = " a ".join(dict.fromkeys(tokenizer.all_special_tokens))
    words = TEXT.split()
    half = " ".join(islice(cycle(words), max_length // 2))
    long = " ".join(islice(cycle(words), 2 * max_length))
    return [
        (half, long),
        (long, half),
        ("data", special),
        (special, "index shard"),
        (long, "index shard"),
        ("data", long),
        (long, long),
        ("", ""),
        ("", "a document"),
        ("Ünïcödé \U0001f600 東京", "e\u0301 \x00 \u200b \ufffd ﬁ ½ A\tB\nC"),
    ]


def parity_pairs(max_length: int) -> list[Pair]:
    """Return fixed pairs, from one word to more than `max_length` tokens."""
    text = TEXT.split()
    words = [text[(7 * i * i + 3 * i) % len(text)] for i in range(max_length + 16)]
    lengths = {1, 2, 3, *np.geomspace(4, max_length + 16, 24).astype(int).tolist()}
    pairs = []
    for length in sorted(lengths):
        query = words[-1 - length % 9 :]
        document = words[length % 5 : length]
        pairs.append((" ".join(query), " ".join(document)))
    return pairs
