from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import MAX_LENGTH, make_tiny
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from xopt.optimize.model.parity import parity_pairs
from xopt.runtime.scoring.backends.network import load_encoder
from xopt.runtime.scoring.backends.packed import pack
from xopt.runtime.scoring.backends.varlen import VARLEN_TYPES, VarlenNetwork
from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.plan import Forward

TINY_ROUNDING = 1e-5  # moves the FP32 logits of a tiny model by less
MODERN: list[dict[str, Any]] = [
    {"classifier_pooling": "mean"},
    {"global_attn_every_n_layers": 1},
    # the last layer sees all, with windows before it
    {"global_attn_every_n_layers": 3, "num_hidden_layers": 4},
]


def made(folder: Path, architecture: str, **config: Any) -> tuple[Any, Tokens, np.ndarray]:
    """A tiny model, its tokens of pairs of all lengths, and transformers' own logits of them,
    padded.
    """
    make_tiny(folder, architecture, **config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = load_encoder(folder, attn_implementation="eager")
    queries, texts = (list(side) for side in zip(*parity_pairs(MAX_LENGTH), strict=True))
    arrays = tokenizer(
        queries, texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = encoder.model(**arrays).logits.numpy()
    lengths = arrays["attention_mask"].sum(1).numpy()
    types = arrays.get("token_type_ids", torch.zeros_like(arrays["input_ids"])).numpy()
    ids = [row[:n] for row, n in zip(arrays["input_ids"].numpy(), lengths, strict=True)]
    return (
        encoder,
        Tokens(ids, [row[:n] for row, n in zip(types, lengths, strict=True)], lengths),
        expected,
    )


def logits(network: VarlenNetwork, tokens: Tokens, rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(pack(tokens, Forward(rows, MAX_LENGTH), "cpu")).numpy()


@pytest.mark.parametrize(
    ("architecture", "config"),
    [*((name, {}) for name in VARLEN_TYPES), *(("modernbert", c) for c in MODERN)],
)
@pytest.mark.parametrize("labels", [1, 3])
def test_packed_forwards_give_what_transformers_gives(
    tmp_path: Path, architecture: str, config: dict[str, Any], labels: int
) -> None:
    model, tokens, expected = made(tmp_path, architecture, labels=labels, **config)
    network = VarlenNetwork(model, torch.float32, "cpu", typed=architecture in {"bert", "electra"})
    rows = np.random.default_rng(0).permutation(len(tokens.ids))
    packed = logits(network, tokens, rows)
    assert packed.dtype == np.float32
    assert packed.shape == (len(rows), labels)
    # scores that do not spread would agree whatever is done to them
    assert expected.std(0).min() > 0.1
    assert np.abs(packed - expected[rows]).max() < TINY_ROUNDING
    assert np.abs(logits(network, tokens, rows[:1]) - packed[:1]).max() < TINY_ROUNDING


def test_half_precision_is_close_and_keeps_the_head_in_fp32(tmp_path: Path) -> None:
    model, tokens, expected = made(tmp_path, "bert")
    rows = np.arange(len(tokens.ids))
    network = VarlenNetwork(model, torch.float16, "cpu", typed=True)
    difference = np.abs(logits(network, tokens, rows) - expected).max()
    assert TINY_ROUNDING < difference < 0.02
    assert model.model.classifier.weight.dtype == torch.float32


def test_token_types_are_read_where_the_model_was_given_them(tmp_path: Path) -> None:
    model, tokens, _ = made(tmp_path, "bert")
    rows = np.arange(len(tokens.ids))
    typed, untyped = (
        logits(VarlenNetwork(model, torch.float32, "cpu", typed=t), tokens, rows)
        for t in (True, False)
    )
    assert np.abs(typed - untyped).max() > 0.01


def test_a_padding_token_within_a_text_is_placed_as_transformers_places_it(tmp_path: Path) -> None:
    model, tokens, _ = made(tmp_path, "roberta")
    ids = tokens.ids[9].copy()
    ids[5] = model.model.config.pad_token_id
    with torch.inference_mode():
        array = torch.from_numpy(ids)[None]
        expected = model.model(
            input_ids=array, attention_mask=torch.ones_like(array)
        ).logits.numpy()
    changed = Tokens(
        [tokens.ids[8], ids], [tokens.type_ids[8], tokens.type_ids[9]], tokens.lengths[8:10]
    )
    network = VarlenNetwork(model, torch.float32, "cpu", typed=False)
    assert np.abs(logits(network, changed, np.array([0, 1]))[1] - expected).max() < TINY_ROUNDING


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.randoms())
def test_packing_keeps_every_token_in_its_place(lengths: list[int], random: Any) -> None:
    ids = [np.arange(n) + 1000 * row for row, n in enumerate(lengths)]
    tokens = Tokens(ids, [row % 2 for row in ids], np.array(lengths))
    rows = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    packed = pack(tokens, Forward(rows, 40), "cpu")
    assert packed.ids.tolist() == [token for row in rows for token in ids[row].tolist()]
    assert packed.type_ids.tolist() == (packed.ids % 2).tolist()
    assert packed.positions.tolist() == (packed.ids % 1000).tolist()
    assert [int(rows[row]) for row in packed.rows] == (packed.ids // 1000).tolist()
    assert packed.ids[packed.starts].tolist() == [1000 * row for row in rows]
    assert (packed.pairs, packed.longest) == (len(rows), max(lengths[row] for row in rows))
