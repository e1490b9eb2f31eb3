"""An exact rewrite: where one token of a pair is the query, keys and values are never made.

Of the last layer one row is read, so attention there has one query a pair. Its keys and values
are made of all tokens, x, for this query alone. Products can be taken in another order:
q (x Wk)^T = (q Wk^T) x^T, and p (x Wv) = (p x) Wv. Then the products by weights see a row a pair
instead of a row a token. A key's bias adds the same to all tokens, which softmax cancels. The
shares p add up to one, so that a value's bias is added whole.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from xopt.optimize.graph.heads import Attention, find_attentions
from xopt.optimize.graph.structure import GraphIndex, GraphWriter, copied, needed_for, rebuilt

__all__ = ["absorb_keys"]


@dataclass(frozen=True)
class _Projection:
    """A tensor that is x W + bias: `weight` is [channels, heads x head size]."""

    x: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def absorb_keys(model: ModelProto) -> tuple[ModelProto, int]:
    """Leave out the keys and values of attentions with one query, and count these.

    Outputs are equal but for the order of floating-point sums.
    """
    index = GraphIndex(model)
    absorbed: dict[str, tuple[Attention, _Projection, _Projection]] = {}
    replaced: set[str] = set()
    for attention in find_attentions(model):
        core = attention.core
        if core.query_rows != 1:
            continue
        _, key, value = attention.inputs
        with contextlib.suppress(LookupError):
            projections = _projection(index, key), _projection(index, value)
            absorbed[core.output] = (attention, *projections)
            replaced.update(node.output[0] for node in attention.nodes)
    if not absorbed:
        return model, 0
    write = GraphWriter()
    for node in model.graph.node:
        name = node.output[0]
        if name in absorbed:
            _write_absorbed(write, *absorbed[name])
        elif name not in replaced:
            write.nodes.append(node)
    nodes = needed_for(write.nodes, [output.name for output in model.graph.output])
    return rebuilt(model, nodes, constants=write.constants), len(absorbed)


def _projection(index: GraphIndex, name: str) -> _Projection:
    """Read a tensor that nothing else reads as a projection. Raises LookupError if it is none.

    x has to be a LayerNormalization's result. MobileBERT, which normalises nothing between its
    layers, would lose a digit.
    """
    bias = np.zeros(1, np.float32)
    if index.producers[name].op_type == "Add":
        name, bias_name = _read_once(index, name, "Add").input
        if index.is_constant(name):
            name, bias_name = bias_name, name
        bias = _constant(index, bias_name, rank=1)
    x, weight_name = _read_once(index, name, "MatMul").input
    weight = _constant(index, weight_name, rank=2)
    index.producer(x, "LayerNormalization")
    return _Projection(x, weight, np.broadcast_to(bias, weight.shape[1:]))


def _read_once(index: GraphIndex, name: str, operator: str) -> NodeProto:
    if len(index.consumers[name]) != 1:
        raise LookupError(name)
    return index.producer(name, operator)


def _constant(index: GraphIndex, name: str, rank: int) -> NDArray[np.float32]:
    value = index.constant(name)
    if value.ndim != rank:
        raise LookupError(name)
    return value


def _write_absorbed(
    write: GraphWriter, attention: Attention, key: _Projection, value: _Projection
) -> None:
    core = attention.core
    prefix = f"{core.output}/absorbed"
    query_axis = write.constant(f"{prefix}/row", np.array([2], np.int64))
    per_head = (-1, core.heads, core.head_size)

    write.nodes += attention.split_query
    key_weight = key.weight * key.weight.dtype.type(core.scale)
    by_key = write.constant(f"{prefix}/by_key", key_weight.reshape(per_head).transpose(1, 2, 0))
    query = attention.split_query[-1].output[0]
    # [pairs, heads, 1, channels]
    query_by_key = write.node("MatMul", [query, by_key], f"{prefix}/query")
    query_rows = write.node("Squeeze", [query_by_key, query_axis], f"{prefix}/query_rows")
    x_transposed = write.node("Transpose", [key.x], f"{prefix}/x_transposed", perm=[0, 2, 1])
    scores = write.node("MatMul", [query_rows, x_transposed], f"{prefix}/scores")
    scores_row = write.node("Unsqueeze", [scores, query_axis], f"{prefix}/scores_row")

    add_mask = core.add_mask
    inputs = [scores_row if name == core.scores else name for name in add_mask.input]
    write.nodes += [copied(add_mask, inputs), core.softmax]

    by_value = write.constant(
        f"{prefix}/by_value", value.weight.reshape(per_head).transpose(1, 0, 2)
    )
    bias = write.constant(f"{prefix}/bias", value.bias.reshape(per_head).transpose(1, 0, 2))
    shares = write.node("Squeeze", [core.softmax.output[0], query_axis], f"{prefix}/shares")
    mean = write.node("MatMul", [shares, value.x], f"{prefix}/mean")
    mean_row = write.node("Unsqueeze", [mean, query_axis], f"{prefix}/mean_row")
    heads = write.node("MatMul", [mean_row, by_value], f"{prefix}/heads")
    write.node("Add", [heads, bias], core.join_heads[0].input[0])
    write.nodes += core.join_heads
