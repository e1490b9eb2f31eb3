from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.graphs import EXACT, GRAPHS, exported, graph_of, logits, session_of
from helpers.tiny import make_logit_score, make_modular, make_tiny

from xopt.optimize.graph.one_row import keep_one_row


def make_decoder(folder: Path) -> Path:
    return make_tiny(folder, "llama")


def make_last_token(folder: Path) -> Path:
    return make_modular(folder, "qwen3", "lasttoken")


@pytest.mark.parametrize(("architecture", "exporter"), GRAPHS)
def test_the_last_layer_sees_one_row_and_no_score_changes(architecture: str, exporter: str) -> None:
    model = exported(architecture, exporter)
    narrow, products = keep_one_row(model)
    onnx.checker.check_model(narrow)
    # Query, attention's two, its output, and the feed-forward block's two. ModernBERT makes
    # query, key and value in one product, and DeBERTa its scores by position in bands, whose shape
    # hides their rows.
    assert products >= {"deberta-v2": 5, "modernbert": 5}.get(architecture, 6)
    before, after = session_of(model), session_of(narrow)
    rng = np.random.default_rng(0)
    for width in (2, 3, 7, 16, 33, 128, 512):
        ids = rng.integers(5, 40, (4, width))
        mask = (np.arange(width) < rng.integers(2, width + 1, (4, 1))).astype(np.int64)
        assert np.abs(logits(before, ids, mask) - logits(after, ids, mask)).max() < EXACT


@pytest.mark.parametrize("make", [make_decoder, make_logit_score, make_last_token])
def test_the_last_layer_of_a_decoder_sees_the_last_token_and_no_score_changes(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    model = graph_of(make(tmp_path / "model"))
    narrow, products = keep_one_row(model)
    onnx.checker.check_model(narrow)
    assert products == 7  # query, attention's two, its output, and the feed-forward block's three
    before, after = session_of(model), session_of(narrow)
    rng = np.random.default_rng(0)
    for width in (1, 2, 7, 33):
        ids = rng.integers(5, 40, (4, width))
        # padded on the left
        mask = (np.arange(width) >= width - rng.integers(1, width + 1, (4, 1))).astype(np.int64)
        assert np.abs(logits(before, ids, mask) - logits(after, ids, mask)).max() < EXACT


def test_a_head_that_reads_all_rows_keeps_them(tmp_path: Path) -> None:
    model = graph_of(make_tiny(tmp_path, "modernbert", classifier_pooling="mean"))
    same, products = keep_one_row(model)
    assert products == 0
    assert same is model
