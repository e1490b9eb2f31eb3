from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.graphs import EXACT, GRAPHS, as_bert, exported, logits, session_of
from helpers.tiny import MAX_LENGTH

from xopt.optimize.graph.absorb import absorb_keys
from xopt.optimize.graph.attention import fuse_attention
from xopt.optimize.graph.heads import find_attentions
from xopt.optimize.graph.one_row import keep_one_row
from xopt.optimize.graph.structure import GraphIndex
from xopt.optimize.quantize import token_matmuls


@pytest.mark.parametrize(("architecture", "exporter"), GRAPHS)
def test_the_last_layer_makes_no_keys_and_values_and_no_score_changes(
    architecture: str, exporter: str
) -> None:
    plain, _ = keep_one_row(exported(architecture, exporter))
    absorbed, count = absorb_keys(plain)
    assert count == as_bert(architecture)
    if not count:
        assert absorbed is plain
        return
    assert len(token_matmuls(plain)) - len(token_matmuls(absorbed)) == 2
    assert fuse_attention(plain, MAX_LENGTH)[1] - fuse_attention(absorbed, MAX_LENGTH)[1] == 1
    onnx.checker.check_model(absorbed)
    random = np.random.default_rng(0)
    before, after = session_of(plain), session_of(absorbed)
    for length in (2, 7, MAX_LENGTH):
        ids = random.integers(5, 40, (3, length))
        mask = (np.arange(length) < random.integers(1, length + 1, (3, 1))).astype(np.int64)
        assert np.abs(logits(after, ids, mask) - logits(before, ids, mask)).max() < EXACT


def keys_and_values(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that add biases to the last layer's keys and values."""
    producers = GraphIndex(model).producers
    return [producers[name] for name in find_attentions(model)[-1].inputs[1:]]


def test_biases_count_as_they_did_and_need_not_be_there() -> None:
    plain, _ = keep_one_row(exported("bert", "torch"))
    without = onnx.ModelProto()
    without.CopyFrom(plain)
    random = np.random.default_rng(0)
    for node in keys_and_values(plain):
        values = random.normal(size=32).astype(np.float32)
        plain.graph.initializer.append(onnx.numpy_helper.from_array(values, f"{node.name}/bias"))
        node.input[1 if "MatMul" in node.input[0] else 0] = f"{node.name}/bias"
    for node in keys_and_values(without):
        product = next(name for name in node.input if "MatMul" in name)
        for reader in without.graph.node:
            reader.input[:] = [product if name == node.output[0] else name for name in reader.input]
        without.graph.node.remove(node)
    ids = random.integers(5, 40, (2, 9))
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5], np.int64)
    scores = []
    for model in (plain, without):
        absorbed, count = absorb_keys(model)
        assert count == 1
        scores.append(logits(session_of(model), ids, mask))
        assert np.abs(logits(session_of(absorbed), ids, mask) - scores[-1]).max() < EXACT
    assert np.abs(scores[0] - scores[1]).max() > 100 * EXACT  # they do count


def test_keys_that_another_reads_stay() -> None:
    plain, _ = keep_one_row(exported("bert", "torch"))
    key, _ = keys_and_values(plain)
    plain.graph.output.append(
        onnx.helper.make_tensor_value_info("again", onnx.TensorProto.FLOAT, None)
    )
    plain.graph.node.append(onnx.helper.make_node("Identity", [key.output[0]], ["again"]))
    assert absorb_keys(plain)[1] == 0
