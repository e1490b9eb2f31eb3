from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.graphs import THERE, graph_of, logits, optimised, session_of
from helpers.tiny import make_tiny

from xopt.optimize.graph.gelu import reorder_gelu

IDS = np.random.default_rng(0).integers(5, 40, (3, 16))


@pytest.mark.parametrize("exporter", THERE)
def test_every_gelu_is_one_that_onnxruntime_knows_and_no_score_changes(
    tmp_path: Path, exporter: str
) -> None:
    # two in the layers, one in the head
    graph = graph_of(make_tiny(tmp_path / "model", "electra"), exporter)
    before = logits(session_of(graph), IDS, np.ones_like(IDS))
    reordered, count = reorder_gelu(graph)
    onnx.checker.check_model(reordered)
    assert count == (3 if exporter == "torch" else 0)  # tracing writes them so
    session, kinds = optimised(reordered, tmp_path)
    assert np.abs(logits(session, IDS, np.ones_like(IDS)) - before).max() < 1e-5
    assert "Erf" not in kinds
    assert kinds.count("BiasGelu") + kinds.count("Gelu") == 3


def test_other_activations_stay(tmp_path: Path) -> None:
    graph = graph_of(make_tiny(tmp_path / "model", "bert", hidden_act="gelu_new"))
    assert reorder_gelu(graph)[1] == 0
