"""Matrix products in INT8, so that a pair's score depends on nothing but the pair.

Per token, a product of tokens with a constant weight matrix becomes, in operators that
onnxruntime has:

    q = QuantizeLinear(x / smoothing, row scale)             uint8, one scale a row, taken at run
    time y = MatMulIntegerToFloat(q, W x smoothing, column scale)  int8 weights, one scale a
    column y x row scale

What a LayerNormalization made has had each row scaled already. It takes one scale from calibration,
which saves the passes that find a row's scale and give it back, and lets the bias join the product.

Static, everything takes one scale from calibration, and the product is written as QuantizeLinear,
DequantizeLinear and MatMul, which OpenVINO joins into one INT8 product.

Products that read the same tensor share its quantised form. Smoothing (SmoothQuant, Xiao et al.
2022, arXiv:2211.10438, equation 4) moves what single channels have in excess into the weights.
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

from xopt.optimize.graph.structure import import_microsoft, readers, rebuilt
from xopt.optimize.int8.calibrate import Activations
from xopt.optimize.int8.rounding import round_weights

__all__ = ["Rounded", "quantize_matmuls"]

# By weight, smoothing factors and bits: integers and column scales. Rounding takes longer than
# all else.
Rounded = dict[tuple[str, bytes, int], tuple[NDArray[np.int8], NDArray[np.float32]]]

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

    def node(
        self, operator: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any
    ) -> str:
        self.nodes.append(
            helper.make_node(operator, inputs, [output], output, domain=domain, **attributes)
        )
        return output


@dataclass(frozen=True)
class _Quantised:
    """A tensor in INT8, as the products that read it need it.

    `scale` is a constant. Where rows have their own scales it is 1, `row_scales` is [rows, 1],
    `rows` is [rows, channels] and `lead` holds the dimensions that the rows came from.
    """

    rows: str
    scale: str
    zero: str
    smoothing: NDArray[np.float64]
    row_scales: str = ""
    lead: str = ""


def quantize_matmuls(
    model: onnx.ModelProto,
    products: Sequence[str],
    seen: dict[str, Activations],
    *,
    bits: int,
    smoothing: float,
    free: bool,
    static: bool,
    rounded: Rounded,
) -> onnx.ModelProto:
    """The model with the named MatMuls, x [pairs, width, inputs] by a constant matrix, in INT8.

    `seen` describes what each x held in calibration, `bits` is the weights' (7 where 8 would
    saturate), `smoothing` the exponent of the activations in the smoothing factors, 0 for none,
    and `free` says that the runtime joins the division with what makes x; `static` takes all
    scales from calibration. `rounded` keeps what rounding made, for the next recipe of the same
    model.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    normalised = {
        node.output[0] for node in model.graph.node if node.op_type == "LayerNormalization"
    }
    biases = _biases(model)
    matrices: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for node in model.graph.node:
        if node.name in products:
            matrices[node.input[0]].append(
                numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
            )
    write, quantised, done, joined = _Writer(), {}, set(), set()
    for node in model.graph.node:
        if node.name in joined:
            continue
        if node.name not in products:
            write.nodes.append(node)
            continue
        x, weight = node.input
        if x not in quantised:
            quantise = _quantise_calibrated if static or x in normalised else _quantise_rows
            quantised[x] = quantise(
                write, x, seen[x], _smoothing(seen[x], matrices[x], smoothing, free)
            )
        factors, matrix = quantised[x].smoothing, matrices[x].pop(0)
        key = (weight, factors.tobytes(), bits)
        if key not in rounded:
            rounded[key] = round_weights(
                matrix * factors[:, None], seen[x].gram / np.outer(factors, factors), bits
            )
        integers, scales = rounded[key]
        add, bias = (
            (None, "")
            if static or quantised[x].row_scales
            else biases.get(node.output[0], (None, ""))
        )
        output = (add or node).output[0]
        if static:
            _multiply_dequantised(write, quantised[x], integers, scales, output)
        elif quantised[x].row_scales:
            _multiply_rows(write, quantised[x], integers, scales, output)
        else:
            _multiply(write, quantised[x], integers, scales, output, bias)
        joined |= {add.name} if add else set()
        # Onnxruntime joins a bias and a GELU into one pass only where it knows how many channels
        # they have.
        write.shapes.append(
            helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [None, None, len(scales)])
        )
        done.add(weight)
    made = _assemble(model, write, done)
    return made if static else import_microsoft(made)


def _biases(model: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, str]]:
    """By tensor: the Add of a constant row to it, where nothing else reads it, and that row."""
    rows = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1}
    found = {}
    for name, nodes in readers(model).items():
        others = [other for other in nodes[0].input if other != name]
        if len(nodes) == 1 and nodes[0].op_type == "Add" and others and others[0] in rows:
            found[name] = (nodes[0], others[0])
    return found


def _smoothing(
    seen: Activations, weights: Sequence[NDArray[np.float64]], exponent: float, free: bool
) -> NDArray[np.float64]:
    """Factors, geometric mean 1, that x is divided by and the weights' rows are multiplied by;
    ones for none.

    The division is a pass over x, so it is made where x is narrower than what is computed from
    it; where it is `free`, where x is no wider. Factors for feed-forward blocks' neurons do not
    carry over to other texts.
    """
    channels = len(seen.peak)
    if exponent == 0 or channels >= sum(weight.shape[1] for weight in weights) + free:
        return np.ones(channels)
    peak = np.maximum(seen.peak, 1e-3)
    largest = np.maximum(np.max([np.abs(weight).max(1) for weight in weights], axis=0), 1e-3)
    factors = peak**exponent / largest ** (1 - exponent)
    return np.asarray(factors / np.exp(np.log(factors).mean()))


def _smooth(write: _Writer, x: str, factors: NDArray[np.float64]) -> str:
    if (factors == 1).all():
        return x
    constant = write.constant(f"{x}/int8/smoothing", (1 / factors).astype(np.float32))
    return write.node("Mul", [x, constant], f"{x}/int8/smooth")


def _zero_point(write: _Writer, low: float, high: float) -> tuple[int, str]:
    """The level, never the first or the last, that stands for 0 where values reach from `low` to
    `high`.
    """
    zero = int(np.clip(round(LEVELS * -low / max(high - low, TINY)), 1, LEVELS - 1))
    return zero, write.constant(f"int8/zero_{zero}", np.uint8(zero))


def _quantise_calibrated(
    write: _Writer, x: str, seen: Activations, factors: NDArray[np.float64]
) -> _Quantised:
    """Quantise a LayerNormalization's result: its rows have been scaled already, so one
    calibrated scale serves all.
    """
    low = min(float((seen.lowest / factors).min()), 0.0)
    high = max(float((seen.highest / factors).max()), 0.0)
    zero, zero_point = _zero_point(write, low, high)
    reach = max(-low / zero, high / (LEVELS - zero), TINY)
    scale = write.constant(f"{x}/int8/scale", np.float32(reach))
    rows = write.node(
        "QuantizeLinear", [_smooth(write, x, factors), scale, zero_point], f"{x}/int8/quantised"
    )
    return _Quantised(rows, scale, zero_point, factors)


def _quantise_rows(
    write: _Writer, x: str, seen: Activations, factors: NDArray[np.float64]
) -> _Quantised:
    """Quantise the rows of x: the zero point is fixed by calibration, the scale covers each row
    at run time.
    """
    p = f"{x}/int8"
    zero, zero_point = _zero_point(write, min(seen.low, 0.0), max(seen.high, 0.0))
    first = write.constant("int8/0", np.array([0], np.int64))
    last = write.constant("int8/-1", np.array([-1], np.int64))
    lead = write.node("Slice", [write.node("Shape", [x], f"{p}/shape"), first, last], f"{p}/lead")
    flat = write.constant(f"{p}/flat", np.array([-1, len(factors)], np.int64))
    rows = write.node("Reshape", [_smooth(write, x, factors), flat], f"{p}/rows")
    reach = []
    for end, operator, steps in (("high", "ReduceMax", LEVELS - zero), ("low", "ReduceMin", -zero)):
        extreme = write.node(operator, [rows, last], f"{p}/{end}", keepdims=1)
        step = write.constant(f"int8/{end}_{steps}", np.float32(1 / steps))
        reach.append(write.node("Mul", [extreme, step], f"{p}/{end}_scale"))
    scales = write.node(
        "Max", [*reach, write.constant("int8/tiny", np.float32(TINY))], f"{p}/scales"
    )
    flat_scales = write.node("Reshape", [scales, last], f"{p}/row_scales")
    zeros = write.node(
        "Expand", [zero_point, write.node("Shape", [flat_scales], f"{p}/count")], f"{p}/zeros"
    )
    quantised = write.node("QuantizeLinear", [rows, flat_scales, zeros], f"{p}/quantised", axis=0)
    return _Quantised(
        quantised, write.constant("int8/one", np.float32(1)), zero_point, factors, scales, lead
    )


def _multiply(
    write: _Writer,
    x: _Quantised,
    integers: NDArray[np.int8],
    scales: NDArray[np.float32],
    output: str,
    bias: str = "",
) -> str:
    """Write the INT8 product of x, plus `bias` where there is one, as the tensor `output`."""
    inputs = [
        x.rows,
        write.constant(f"{output}/int8/weight", integers),
        x.scale,
        write.constant(f"{output}/int8/column_scales", scales),
        x.zero,
        write.constant("int8/weight_zero", np.int8(0)),
    ]
    return write.node(
        "MatMulIntegerToFloat", inputs + [bias] * bool(bias), output, domain="com.microsoft"
    )


def _multiply_rows(
    write: _Writer,
    x: _Quantised,
    integers: NDArray[np.int8],
    scales: NDArray[np.float32],
    output: str,
) -> None:
    """Write the INT8 product of x, whose rows have their own scales, as the tensor `output`."""
    p = f"{output}/int8"
    scaled = write.node(
        "Mul", [_multiply(write, x, integers, scales, f"{p}/product"), x.row_scales], f"{p}/scaled"
    )
    outputs = write.constant(f"int8/outputs_{len(scales)}", np.array([len(scales)], np.int64))
    write.node(
        "Reshape", [scaled, write.node("Concat", [x.lead, outputs], f"{p}/shape", axis=0)], output
    )


def _multiply_dequantised(
    write: _Writer,
    x: _Quantised,
    integers: NDArray[np.int8],
    scales: NDArray[np.float32],
    output: str,
) -> None:
    """Write the INT8 product of x in the form that OpenVINO recognises, as the tensor `output`."""
    weight, column_scales = (
        write.constant(f"{output}/int8/weight", integers),
        write.constant(f"{output}/int8/column_scales", scales),
    )
    zeros = write.constant(f"int8/zeros_{len(scales)}", np.zeros(len(scales), np.int8))
    left = write.node("DequantizeLinear", [x.rows, x.scale, x.zero], f"{output}/int8/x")
    right = write.node(
        "DequantizeLinear", [weight, column_scales, zeros], f"{output}/int8/w", axis=1
    )
    write.node("MatMul", [left, right], output)


def _assemble(model: onnx.ModelProto, write: _Writer, done: set[str]) -> onnx.ModelProto:
    still_read = {name for node in write.nodes for name in node.input}
    kept = [t for t in model.graph.initializer if t.name not in done or t.name in still_read]
    constants = [numpy_helper.from_array(value, name) for name, value in write.constants.items()]
    return rebuilt(model, write.nodes, kept + constants, write.shapes)
