"""Parity: the logits of what was exported, held against those of the model as it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xopt.optimize.model.facts import default_prompt
from xopt.runtime.errors import BadInput, GateFailed, first_line
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import open_scorer
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

MAX_DIFFERENCE = 1e-4  # between the logits of variants in FP32, where rounding is not more
LONG = 1024  # tokens of the longest pairs whose logits are compared
# tokens compared behind a length where positions turn in another way, and the longest such
BEHIND, REACH = 256, 4096
PARITY_PLAN = Plan(callers=1, threads=cores(), tokens=1024)
TEXT = (
    "the of ranking a query and document search engine with score 12 models, 'quoted' text (in brackets) for reading "
    "über naïve 東京 Zürich e-mail 3.14 Python function returns None data index shard"
)


def expected_logits(encoder: Any, given: str, pairs: list[Pair]) -> NDArray[np.float32]:
    """Logits of the model as it was given, by sentence-transformers, padded in batches."""
    try:
        scores = encoder.predict(
            pairs, batch_size=8, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
    except Exception as error:  # each architecture fails in its own way
        raise BadInput(
            f"{given}: sentence-transformers cannot score with it ({first_line(error)})"
        ) from error
    expected = np.asarray(scores, np.float32)
    if not np.isfinite(expected).all():
        query, text = pairs[int(np.argmin(np.isfinite(expected.reshape(len(pairs), -1)).all(1)))]
        raise GateFailed(
            f"{given}: its own score of ({query!r:.60}, {text!r:.60}) is not finite in sentence-transformers; the "
            "weights are damaged"
        )
    return expected


def allowed_difference(
    encoder: Any, given: str, pairs: list[Pair], expected: NDArray[np.float32]
) -> float:
    """How far logits in FP32 may be from `expected`: `MAX_DIFFERENCE`, or what rounding makes
    where that is more.

    What rounding makes is what sentence-transformers' own logits are off, which the model in FP64
    shows, and how far it goes depends on the processor and the order of sums; four times that is
    allowed. Models that normalise nothing between their layers, as MobileBERT, are off most.
    """
    try:
        exact = expected_logits(encoder.double(), given, pairs)
    except (BadInput, GateFailed):  # some cast to FP32 within
        exact = expected
    encoder.float()  # the same weights again: FP64 holds each FP32
    return max(MAX_DIFFERENCE, 4 * float(np.abs(exact - expected).max()))


def tokens_of(encoder: Any, pairs: Sequence[Pair]) -> list[list[int]]:
    """The ids that sentence-transformers makes of pairs."""
    made = []
    for start in range(0, len(pairs), 8):
        features = encoder.preprocess(
            list(pairs[start : start + 8]), prompt=default_prompt(encoder) or None
        )
        rows = zip(features["input_ids"], features["attention_mask"], strict=True)
        made += [ids[mask.bool()].tolist() for ids, mask in rows]
    return made


def short_pairs(encoder: Any, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose logits are compared; of the longest ones of a long model the tokens alone
    are.

    Attention over many thousand tokens needs more memory than there may be.
    """
    most = max(LONG, _turning(encoder.config.to_dict()) + BEHIND)
    if encoder.max_seq_length <= most:
        return list(pairs)
    return [
        pair for pair, ids in zip(pairs, tokens_of(encoder, pairs), strict=True) if len(ids) <= most
    ]


def _turning(config: dict[str, Any]) -> int:
    """The length from which on positions turn in another way, by config.json; 0 for none, or none
    within reach.
    """
    parts = (config, config.get("rope_scaling") or {}, config.get("rope_parameters") or {})
    length = max(int(part.get("original_max_position_embeddings") or 0) for part in parts)
    return length if length <= REACH else 0


def check_tokens(folder: ModelFolder, encoder: Any, pairs: Sequence[Pair]) -> None:
    """Hold the tokens that scorers make against those that sentence-transformers makes."""
    mine = Encoder(folder)
    for pair, ids, expected in zip(
        pairs, mine.encode(pairs).ids, tokens_of(encoder, pairs), strict=True
    ):
        if ids.tolist() != expected[: len(ids)] or any(
            token != mine.trailing_pad for token in expected[len(ids) :]
        ):
            raise GateFailed(
                f"{folder.manifest.source['model']}: the tokens of a scorer and of sentence-transformers differ on "
                f"the pair ({pair[0]!r:.60}, {pair[1]!r:.60})"
            )


def check_parity(
    folder: ModelFolder,
    encoder: Any,
    pairs: list[Pair],
    expected: NDArray[np.float32],
    hint: str = "",
) -> None:
    """Hold each FP32 variant against the logits of the model as it was given, with padding and
    where it can without.

    `encoder` is that model, and `expected` its logits. Those of backends that take only some
    graphs are left to the gates. `hint` ends what is raised.
    """
    given, allowed = folder.manifest.source["model"], MAX_DIFFERENCE
    exact = [
        variant for variant in folder.manifest.variants.values() if variant.precision == "fp32"
    ]
    for name in (variant.name for variant in exact if not BACKENDS[variant.backend].tried):
        scorer = open_scorer(folder, name, plan=PARITY_PLAN)
        for step in (scorer.backend.step, 0) if scorer.backend.step else (0,):
            scorer.backend.step = step  # other tools pad, whatever is fastest here
            try:
                scores = scorer.logits(pairs)
            # of the runtime: a graph with a size in it that is not always so
            except Exception as error:
                raise GateFailed(
                    f"{given}: {name} does not run; the export is damaged ({first_line(error)})"
                ) from error
            difference = np.abs(scores - expected).reshape(len(pairs), -1).max(1)
            if not np.isfinite(scores).all():
                raise GateFailed(
                    f"{given}: {name} gives scores that are not finite; the export is damaged"
                )
            worst = int(difference.argmax())
            if difference[worst] <= allowed:
                continue
            allowed = allowed_difference(encoder, given, pairs, expected)
            if difference[worst] > allowed:
                query, text = pairs[worst]
                raise GateFailed(
                    f"{given}: {name} and sentence-transformers differ by {difference[worst]:.2g}, over "
                    f"{allowed:.2g}, on the pair ({query!r:.60}, {text!r:.60})"
                    f"{'' if step else ', in a batch that is padded'}{hint}"
                )


def pairs_for(tokenizer: Any, max_length: int, truncation: str = "longest_first") -> list[Pair]:
    """The pairs to hold logits against each other on.

    Where `truncation` cuts one text only, pairs whose other text is too long are left out: no
    tokenizer takes them. So is what has no tokens, by tokenizers that add none:
    sentence-transformers gives it no score of its own.
    """
    pairs = [*parity_pairs(max_length), *hard_pairs(tokenizer, max_length)]
    if not tokenizer.chat_template and not tokenizer("", "")["input_ids"]:
        pairs.remove(("", ""))
    whole = {"only_second": 0, "only_first": 1}.get(truncation)
    return (
        pairs
        if whole is None
        else [p for p in pairs if len(tokenizer.tokenize(p[whole])) < max_length * 3 // 4]
    )


def hard_pairs(tokenizer: Any, max_length: int) -> list[Pair]:
    """Pairs that show what a tokenizer was told: special tokens in texts, either text too long,
    both, none, odd.
    """
    special = " a ".join(dict.fromkeys(tokenizer.all_special_tokens))
    words = TEXT.split()
    long, half = (
        " ".join(words[i % len(words)] for i in range(n)) for n in (2 * max_length, max_length // 2)
    )
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
    """Deterministic pairs from one word to beyond `max_length` tokens, for comparing logits."""
    text = TEXT.split()
    words = [text[(7 * i * i + 3 * i) % len(text)] for i in range(max_length + 16)]
    lengths = sorted({1, 2, 3, *(int(length) for length in np.geomspace(4, max_length + 16, 24))})
    return [(" ".join(words[-1 - n % 9 :]), " ".join(words[n % 5 : n])) for n in lengths]
