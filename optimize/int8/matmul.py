"""Matrix products in INT8, so that a pair's score depends on nothing but the pair.

Per token, a product of tokens with a constant weight matrix becomes

    q = QuantizeLinear(x / smoothing, row scale)
    y = MatMulIntegerToFloat(q, W x smoothing, column scale) x row scale

in operators that onnxruntime has. q is uint8, with a scale for each row that is taken at run time.
Weights are int8, with a scale for each column.

A LayerNormalization has scaled the rows of its result already. That result takes one scale from
calibration, which saves the passes for row scales and lets the bias join the product.

Static, everything takes one scale from calibration. QuantizeLinear, DequantizeLinear and MatMul
then write the product, which OpenVINO joins into one.

Smoothing moves what single channels have in excess into the weights. Source: SmoothQuant, Xiao et
al. 2022, arXiv:2211.10438, equation 4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from xopt.optimize.graph.structure import GraphIndex, GraphWriter, import_microsoft, rebuilt
from xopt.optimize.int8.calibrate import Activations
from xopt.optimize.int8.rounding import round_weights
from xopt.runtime.progress import progress

__all__ = ["Int8Settings", "RoundedWeights", "quantize_matmuls"]

LEVELS = 255  # of uint8
TINY = 1e-8  # a row of zeros gets this scale

Matrix = NDArray[np.float64]
Int8Weights = tuple[NDArray[np.int8], NDArray[np.float32]]  # integers and column scales
# By weight, smoothing factors and bits. Rounding takes longer than all else.
RoundedWeights = dict[tuple[str, bytes, int], Int8Weights]


@dataclass(frozen=True)
class Int8Settings:
    """How products become INT8.

    `bits`: the weights' (7 where 8 would saturate).
    `smoothing`: the exponent of the activations in the smoothing factors, 0 for none.
    `smoothing_is_free`: the runtime joins the division with what makes the tensor.
    `static`: all scales come from calibration.
    """

    bits: int
    smoothing: float
    smoothing_is_free: bool
    static: bool


@dataclass(frozen=True)
class _Quantised:
    """A tensor in INT8. `smoothing`: the factors that it was divided by.

    Where rows have their own scales, `rows` is [rows, channels] and `row_scales` is [rows, 1].
    Then `scale` is 1, and `leading` holds the dimensions that the rows came from.
    """

    rows: str
    scale: str
    zero_point: str
    smoothing: Matrix
    row_scales: str = ""
    leading: str = ""


def quantize_matmuls(
    model: ModelProto,
    products: Collection[str],
    seen: dict[str, Activations],
    settings: Int8Settings,
    rounded: RoundedWeights,
) -> ModelProto:
    """Turn the named MatMuls, x [pairs, tokens, inputs] by a constant matrix, into INT8.

    `seen`: what each x held in calibration. `rounded`: the weights rounded so far, to which new
    ones are added.
    """
    matmuls = [node for node in model.graph.node if node.name in products]
    write = _Int8Writer(GraphIndex(model), matmuls, seen, settings, rounded)
    work = sum(map(write.work, matmuls))
    with progress("rounding weights", len(matmuls), "products", work=work) as step:
        for node in model.graph.node:
            if node.name in products:
                write.product(node)
                step.advance(1, write.work(node))
            elif node.name not in write.joined_adds:
                write.nodes.append(node)
    made = rebuilt(model, write.nodes, constants=write.constants, value_info=write.shapes)
    return made if settings.static else import_microsoft(made)


class _Int8Writer(GraphWriter):
    """Writes INT8 products; those that read the same tensor share its INT8 form."""

    def __init__(
        self,
        index: GraphIndex,
        matmuls: Iterable[NodeProto],
        seen: dict[str, Activations],
        settings: Int8Settings,
        rounded: RoundedWeights,
    ) -> None:
        super().__init__()
        self.index = index
        self.seen = seen
        self.settings = settings
        self.rounded = rounded
        self.quantised: dict[str, _Quantised] = {}
        self.joined_adds: set[str] = set()
        self.shapes: list[ValueInfoProto] = []
        self.matrices: dict[str, list[Matrix]] = defaultdict(list)  # by what they multiply
        for node in matmuls:
            x, weight = node.input
            self.matrices[x].append(self._matrix(weight))

    def _matrix(self, weight: str) -> Matrix:
        return self.index.constant(weight).astype(np.float64)

    def work(self, node: NodeProto) -> float:
        """Return how long it takes to round a product's weights, in any unit."""
        inputs, outputs = self.index.initializers[node.input[1]].dims
        return float(inputs**2 * (inputs + outputs))

    def product(self, node: NodeProto) -> None:
        """Write the INT8 product in place of a MatMul, and of the Add of a bias where it can."""
        x = self._quantise(node.input[0])
        weights = self._round(node, x.smoothing)
        (output,) = node.output
        if self.settings.static:
            self._multiply_dequantised(x, weights, output)
        elif x.row_scales:
            self._multiply_rows(x, weights, output)
        else:
            add, bias = _added_bias(self.index, output)
            if add is not None:
                self.joined_adds.add(add.name)
                (output,) = add.output
            self._multiply(x, weights, output, bias)
        # onnxruntime joins a bias and a GELU into one pass only where it knows how many channels
        # they have.
        shape = [None, None, len(weights[1])]
        self.shapes.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))

    def _round(self, node: NodeProto, factors: Matrix) -> Int8Weights:
        x, weight = node.input
        key = (weight, factors.tobytes(), self.settings.bits)
        if key not in self.rounded:
            gram = self.seen[x].gram / np.outer(factors, factors)
            smoothed = self._matrix(weight) * factors[:, None]
            self.rounded[key] = round_weights(smoothed, gram, self.settings.bits)
        return self.rounded[key]

    def _quantise(self, x: str) -> _Quantised:
        if x not in self.quantised:
            factors = self._smoothing_factors(x)
            producer = self.index.producers.get(x)
            normalised = producer is not None and producer.op_type == "LayerNormalization"
            if self.settings.static or normalised:
                self.quantised[x] = self._quantise_calibrated(x, factors)
            else:
                self.quantised[x] = self._quantise_rows(x, factors)
        return self.quantised[x]

    def _smoothing_factors(self, x: str) -> Matrix:
        """Factors, of geometric mean 1, by which x is divided and the weights' rows multiplied.

        The division is a pass over x. So it is made where x is narrower than what is computed from
        it, or as wide where it is free. Neurons of a feed-forward block get ones: factors for so
        many do not carry over to other texts.
        """
        peaks = self.seen[x].peak
        weights = self.matrices[x]
        outputs = sum(weight.shape[1] for weight in weights)
        narrower = len(peaks) < outputs + self.settings.smoothing_is_free
        exponent = self.settings.smoothing
        if exponent == 0 or not narrower:
            return np.ones(len(peaks))
        peaks = np.maximum(peaks, 1e-3)
        largest_weights = np.max([np.abs(weight).max(1) for weight in weights], axis=0)
        factors = peaks**exponent / np.maximum(largest_weights, 1e-3) ** (1 - exponent)
        return np.asarray(factors / np.exp(np.log(factors).mean()))

    def _smooth(self, x: str, factors: Matrix) -> str:
        if (factors == 1).all():
            return x
        inverse = self.constant(f"{x}/int8/smoothing", (1 / factors).astype(np.float32))
        return self.node("Mul", [x, inverse], f"{x}/int8/smooth")

    def _zero_point(self, low: float, high: float) -> tuple[int, str]:
        """The level for 0, never the first or last, where values span `low` to `high`."""
        zero = int(np.clip(round(LEVELS * -low / max(high - low, TINY)), 1, LEVELS - 1))
        return zero, self.constant(f"int8/zero_{zero}", np.uint8(zero))

    def _quantise_calibrated(self, x: str, factors: Matrix) -> _Quantised:
        low = min(float((self.seen[x].lowest / factors).min()), 0.0)
        high = max(float((self.seen[x].highest / factors).max()), 0.0)
        zero, zero_point = self._zero_point(low, high)
        step = max(-low / zero, high / (LEVELS - zero), TINY)
        scale = self.constant(f"{x}/int8/scale", np.float32(step))
        smooth = self._smooth(x, factors)
        rows = self.node("QuantizeLinear", [smooth, scale, zero_point], f"{x}/int8/quantised")
        return _Quantised(rows, scale, zero_point, factors)

    def _quantise_rows(self, x: str, factors: Matrix) -> _Quantised:
        """Write x in INT8: calibration fixes the zero point, each row has its scale."""
        prefix = f"{x}/int8"
        zero, zero_point = self._zero_point(min(self.seen[x].low, 0.0), max(self.seen[x].high, 0.0))
        first = self.constant("int8/0", np.array([0], np.int64))
        last = self.constant("int8/-1", np.array([-1], np.int64))
        shape = self.node("Shape", [x], f"{prefix}/shape")
        leading = self.node("Slice", [shape, first, last], f"{prefix}/leading")
        flat = self.constant(f"{prefix}/flat", np.array([-1, len(factors)], np.int64))
        rows = self.node("Reshape", [self._smooth(x, factors), flat], f"{prefix}/rows")
        steps = [
            self._row_steps("ReduceMax", rows, LEVELS - zero, f"{prefix}/high"),
            self._row_steps("ReduceMin", rows, -zero, f"{prefix}/low"),
            self.constant("int8/tiny", np.float32(TINY)),
        ]
        scales = self.node("Max", steps, f"{prefix}/scales")
        flat_scales = self.node("Reshape", [scales, last], f"{prefix}/row_scales")
        count = self.node("Shape", [flat_scales], f"{prefix}/count")
        zeros = self.node("Expand", [zero_point, count], f"{prefix}/zeros")
        quantised = self.node(
            "QuantizeLinear", [rows, flat_scales, zeros], f"{prefix}/quantised", axis=0
        )
        one = self.constant("int8/one", np.float32(1))
        return _Quantised(quantised, one, zero_point, factors, scales, leading)

    def _row_steps(self, operator: str, rows: str, levels: int, output: str) -> str:
        """Write the step with which a row's extreme is `levels` from zero."""
        last = self.constant("int8/-1", np.array([-1], np.int64))
        extreme = self.node(operator, [rows, last], output, keepdims=1)
        share = self.constant(f"int8/step_{levels}", np.float32(1 / levels))
        return self.node("Mul", [extreme, share], f"{output}_step")

    def _multiply(self, x: _Quantised, weights: Int8Weights, output: str, bias: str = "") -> str:
        integers, scales = weights
        inputs = [
            x.rows,
            self.constant(f"{output}/int8/weight", integers),
            x.scale,
            self.constant(f"{output}/int8/column_scales", scales),
            x.zero_point,
            self.constant("int8/weight_zero", np.int8(0)),
        ]
        if bias:
            inputs.append(bias)
        return self.node("MatMulIntegerToFloat", inputs, output, domain="com.microsoft")

    def _multiply_rows(self, x: _Quantised, weights: Int8Weights, output: str) -> None:
        prefix = f"{output}/int8"
        channels = len(weights[1])
        product = self._multiply(x, weights, f"{prefix}/product")
        scaled = self.node("Mul", [product, x.row_scales], f"{prefix}/scaled")
        outputs = self.constant(f"int8/outputs_{channels}", np.array([channels], np.int64))
        shape = self.node("Concat", [x.leading, outputs], f"{prefix}/shape", axis=0)
        self.node("Reshape", [scaled, shape], output)

    def _multiply_dequantised(self, x: _Quantised, weights: Int8Weights, output: str) -> None:
        """Write the product in the form that OpenVINO recognises."""
        integers, scales = weights
        prefix = f"{output}/int8"
        weight = self.constant(f"{prefix}/weight", integers)
        column_scales = self.constant(f"{prefix}/column_scales", scales)
        zeros = self.constant(f"int8/zeros_{len(scales)}", np.zeros(len(scales), np.int8))
        left = self.node("DequantizeLinear", [x.rows, x.scale, x.zero_point], f"{prefix}/x")
        right = self.node("DequantizeLinear", [weight, column_scales, zeros], f"{prefix}/w", axis=1)
        self.node("MatMul", [left, right], output)


def _added_bias(index: GraphIndex, product: str) -> tuple[NodeProto | None, str]:
    """The Add of a constant row to a product, where nothing else reads it, and that row."""
    consumers = index.consumers[product]
    if len(consumers) != 1 or consumers[0].op_type != "Add":
        return None, ""
    for name in consumers[0].input:
        tensor = index.initializers.get(name)
        if tensor is not None and len(tensor.dims) == 1:
            return consumers[0], name
    return None, ""
