"""Per-token INT8: every token's row has its own scale, so that a pair's score depends on nothing but the pair.

A product of tokens with a constant weight matrix becomes, in operators that onnxruntime has:

    q = QuantizeLinear(x / smoothing, row scale)             uint8, one scale a row, taken at run time
    y = MatMulIntegerToFloat(q, W x smoothing, column scale)  int8 weights, one scale a column
    y x row scale

Products that read the same tensor share its quantised form. Smoothing (SmoothQuant, Xiao et al. 2022,
arXiv:2211.10438, equation 4) moves what single channels have in excess into the weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from xopt.optimize.calibrate import Activations
from xopt.optimize.rounding import round_weights

__all__ = ["quantize_tokens"]

LEVELS = 255  # of uint8
TINY = 1e-8  # a row of zeros gets this scale


@dataclass
class _Writer:
    """Nodes and constants as they are written."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    shapes: list[onnx.ValueInfoProto] = field(default_factory=list)

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], output, domain=domain, **attributes))
        return output


@dataclass(frozen=True)
class _Quantised:
    """A tensor in INT8: its rows, their scales, its zero point, and the dimensions before the last."""

    rows: str
    scales: str
    zero: str
    lead: str
    smoothing: NDArray[np.float64]


def quantize_tokens(
    model: onnx.ModelProto, products: Sequence[str], seen: dict[str, Activations], bits: int, smoothing: float
) -> onnx.ModelProto:
    """The model with the named MatMuls, x [pairs, width, inputs] by a constant matrix, in per-token INT8.

    `seen` describes what each x held in calibration, `bits` is the weights' (7 where 8 would saturate),
    `smoothing` the exponent of the activations in the smoothing factors, 0 for none.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for node in model.graph.node:
        if node.name in products:
            readers[node.input[0]].append(numpy_helper.to_array(weights[node.input[1]]).astype(np.float64))
    write, quantised, done = _Writer(), {}, set()
    for node in model.graph.node:
        if node.name not in products:
            write.nodes.append(node)
            continue
        x, weight = node.input
        if x not in quantised:
            factors = _smoothing(seen[x], readers[x], smoothing)
            quantised[x] = _quantise_rows(write, x, seen[x], factors)
        _multiply(write, node, quantised[x], readers[x].pop(0), seen[x], bits)
        done.add(weight)
    return _assemble(model, write, done)


def _smoothing(seen: Activations, weights: Sequence[NDArray[np.float64]], exponent: float) -> NDArray[np.float64]:
    """Factors, geometric mean 1, that x is divided by and the weights' rows are multiplied by; ones for none.

    The division is a pass over x, so it is made where x is narrower than what is computed from it.
    """
    channels = len(seen.peak)
    if exponent == 0 or channels >= sum(weight.shape[1] for weight in weights):
        return np.ones(channels)
    peak = np.maximum(seen.peak, 1e-3)
    largest = np.maximum(np.max([np.abs(weight).max(1) for weight in weights], axis=0), 1e-3)
    factors = peak**exponent / largest ** (1 - exponent)
    return np.asarray(factors / np.exp(np.log(factors).mean()))


def _quantise_rows(write: _Writer, x: str, seen: Activations, factors: NDArray[np.float64]) -> _Quantised:
    """Quantise the rows of x: the zero point is fixed by calibration, the scale covers each row at run time."""
    p = f"{x}/int8"
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    zero = int(np.clip(round(LEVELS * -low / max(high - low, TINY)), 1, LEVELS - 1))
    first = write.constant("int8/0", np.array([0], np.int64))
    last = write.constant("int8/-1", np.array([-1], np.int64))
    lead = write.node("Slice", [write.node("Shape", [x], f"{p}/shape"), first, last], f"{p}/lead")
    flat = write.constant(f"{p}/flat", np.array([-1, len(factors)], np.int64))
    rows = write.node("Reshape", [x, flat], f"{p}/rows")
    if (factors != 1).any():
        rows = write.node(
            "Mul", [rows, write.constant(f"{p}/smoothing", (1 / factors).astype(np.float32))], f"{p}/smooth"
        )
    reach = []
    for end, operator, steps in (("high", "ReduceMax", LEVELS - zero), ("low", "ReduceMin", -zero)):
        extreme = write.node(operator, [rows, last], f"{p}/{end}", keepdims=1)
        step = write.constant(f"int8/{end}_{steps}", np.float32(1 / steps))
        reach.append(write.node("Mul", [extreme, step], f"{p}/{end}_scale"))
    scales = write.node("Max", [*reach, write.constant("int8/tiny", np.float32(TINY))], f"{p}/scales")
    flat_scales = write.node("Reshape", [scales, last], f"{p}/row_scales")
    zero_point = write.constant(f"int8/zero_{zero}", np.uint8(zero))
    zeros = write.node("Expand", [zero_point, write.node("Shape", [flat_scales], f"{p}/count")], f"{p}/zeros")
    quantised = write.node("QuantizeLinear", [rows, flat_scales, zeros], f"{p}/quantised", axis=0)
    return _Quantised(quantised, scales, zero_point, lead, factors)


def _multiply(
    write: _Writer, node: onnx.NodeProto, x: _Quantised, weight: NDArray[np.float64], seen: Activations, bits: int
) -> None:
    """Write the product `node` in INT8, its result of the same name and shape."""
    p = f"{node.output[0]}/int8"
    gram = seen.gram / np.outer(x.smoothing, x.smoothing)
    integers, scales = round_weights(weight * x.smoothing[:, None], gram, bits)
    inputs = [
        x.rows,
        write.constant(f"{p}/weight", integers),
        write.constant("int8/one", np.float32(1)),
        write.constant(f"{p}/column_scales", scales),
        x.zero,
        write.constant("int8/weight_zero", np.int8(0)),
    ]
    product = write.node("MatMulIntegerToFloat", inputs, f"{p}/product", domain="com.microsoft")
    scaled = write.node("Mul", [product, x.scales], f"{p}/scaled")
    outputs = write.constant(f"int8/outputs_{len(scales)}", np.array([len(scales)], np.int64))
    shape = write.node("Concat", [x.lead, outputs], f"{p}/shape", axis=0)
    write.node("Reshape", [scaled, shape], node.output[0])
    # Onnxruntime joins a bias and a GELU into one pass only where it knows how many channels they have.
    write.shapes.append(
        helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [None, None, len(scales)])
    )


def _assemble(model: onnx.ModelProto, write: _Writer, done: set[str]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    made.graph.node.extend(write.nodes)
    made.graph.value_info.extend(write.shapes)
    still_read = {name for node in write.nodes for name in node.input}
    made.graph.initializer.extend(t for t in model.graph.initializer if t.name not in done or t.name in still_read)
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in write.constants.items())
    if all(opset.domain != "com.microsoft" for opset in made.opset_import):
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made
