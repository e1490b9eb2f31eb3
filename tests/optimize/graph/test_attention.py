from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.graphs import EXACT, GRAPHS, as_bert, exported, logits, session_of
from helpers.tiny import MAX_LENGTH

from xopt.optimize.graph.attention import fuse_attention, unfused
from xopt.optimize.graph.one_row import keep_one_row


@pytest.mark.parametrize(("architecture", "exporter"), GRAPHS)
def test_attention_is_one_operator_and_no_score_changes(architecture: str, exporter: str) -> None:
    plain, _ = keep_one_row(exported(architecture, exporter))
    fused, count = fuse_attention(plain)
    onnx.checker.check_model(fused)
    assert count == (2 if as_bert(architecture) else 0)
    before, after = (
        sorted(str(node) for node in model.graph.node) for model in (plain, unfused(fused))
    )
    assert before == after
    random = np.random.default_rng(0)
    expected, got = session_of(plain), session_of(fused)
    for length in (2, 7, MAX_LENGTH):
        ids = random.integers(5, 40, (3, length))
        mask = np.ones_like(ids)
        assert np.abs(logits(got, ids, mask) - logits(expected, ids, mask)).max() < EXACT
        mask[1, length // 2 :] = 0  # a padded pair takes the nodes that were there
        assert np.array_equal(logits(got, ids, mask), logits(expected, ids, mask))


def test_a_mask_that_hides_more_than_padding_stays() -> None:
    plain, _ = keep_one_row(exported("bert", "torch"))
    softmax = next(node for node in plain.graph.node if node.op_type == "Softmax")
    mask = next(node for node in plain.graph.node if node.output[0] == softmax.input[0]).input[1]
    made = next(node for node in plain.graph.node if node.output[0] == mask)
    made.output[0] = f"{mask}_before"
    one = onnx.helper.make_node("Constant", [], ["one"], value_float=1.0)
    shifted = onnx.helper.make_node("Add", [made.output[0], "one"], [mask])
    at = list(plain.graph.node).index(made) + 1
    plain.graph.node.insert(at, one)
    plain.graph.node.insert(at + 1, shifted)
    assert fuse_attention(plain)[1] == 0
