"""OpenVINO: one compiled model with one copy of the weights, called from several threads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import openvino
from openvino import opset13 as opset
from openvino.frontend.onnx import ConversionExtension

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import KeptFile, ModelFolder, Plan, Variant
from xopt.runtime.machine import has_bf16
from xopt.runtime.scoring.backends.backend import (
    UNPADDED,
    Arrays,
    Logits,
    PaddedArrays,
    check_no_fork,
    within_memory,
)
from xopt.runtime.scoring.backends.kinds import Times, kind_of

__all__ = ["OpenVinoBackend"]

ELSE = 1  # an If's branch for padded pairs
# Permutations of [pairs, tokens, heads, channels]
HEADS_FIRST = [0, 2, 1, 3]
KEYS_TURNED = [0, 2, 3, 1]
# Operators in the branches of an If that are never taken here, and their outputs. OpenVINO does not
# read them in all the forms that onnxruntime does.
UNREAD = {"RotaryEmbedding": 1, "GroupQueryAttention": 3, "MultiHeadAttention": 1}
# Of what is not INT8; with INT8 products bfloat16 between them where the processor multiplies it.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16" if has_bf16() else "f32"}


class OpenVinoBackend(PaddedArrays):
    """Runs an ONNX graph on padded arrays; several threads may call it at once."""

    # Its kernels take as long for 117 tokens as for 128, and 10 ms more for a new shape.
    step = 16

    def __init__(
        self, folder: ModelFolder, variant: Variant, plan: Plan, device: str = "cpu"
    ) -> None:
        super().__init__(folder)
        self.file = folder.checked(variant.file)
        self.kept = KeptFile(self.file)
        self.device = device.upper()
        self.precision = PRECISIONS[variant.precision]
        self.threads = plan.threads
        self._open(plan.callers)
        self.inputs = {node.any_name for node in self.model.inputs}

    def wide(self, threads: int) -> OpenVinoBackend:
        other = copy.copy(self)
        other.threads = threads
        other._open(1)
        return other

    def _open(self, callers: int) -> None:
        check_no_fork("OpenVINO")
        self.model = self._compiled(callers)
        # All requests are made now. Making one while another runs can wait for ever, with
        # Python's lock held.
        self.idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(callers):
            self.idle.put(self.model.create_infer_request())

    def _compiled(self, streams: int, profiled: bool = False) -> Any:
        properties = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * self.threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERF_COUNT": profiled,
        }
        try:
            core = openvino.Core()
            for operator, outputs in UNREAD.items():
                core.add_extension(_stand_in(operator, outputs))
            model = _prepared(core.read_model(self.kept.path))
            return core.compile_model(model, self.device, properties)
        except RuntimeError as error:
            reason = str(error).strip().rpartition("\n")[2].strip()
            raise BadInput(
                f"{self.file}: OpenVINO cannot open it ({reason}); use a variant onnx-* instead"
            ) from error

    @within_memory()
    def forward(self, batch: Arrays) -> Logits:
        check_no_fork("OpenVINO")
        request = self.idle.get()
        try:
            request.infer(batch, share_inputs=True)
            logits: Logits = request.get_output_tensor(0).data.copy()
        finally:
            self.idle.put(request)
        return logits

    def profiled(self, batches: Sequence[Arrays]) -> Times:
        model = self._compiled(1, profiled=True)
        request = model.create_infer_request()
        fused_layers = {
            node.friendly_name: str(node.get_rt_info()["originalLayersNames"].value)
            for node in model.get_runtime_model().get_ordered_ops()
        }
        times = Times(float)
        for batch in batches:
            for _ in range(2):  # the first compiles
                request.infer(batch)
            for node in request.get_profiling_info():
                operator = node.node_type
                if operator == "Subgraph":  # several layers, compiled as one piece
                    operator = fused_layers.get(node.node_name, "")
                # OpenVINO calls products with weights FullyConnected
                kind = kind_of(operator, weights=node.node_type != "MatMul")
                times[kind] += node.real_time.total_seconds()
        return times


def _stand_in(operator: str, outputs: int) -> ConversionExtension:
    """Let OpenVINO read an operator that it then drops."""

    def converted(node: Any) -> list[Any]:
        return [opset.abs(node.get_input(number)).output(0) for number in range(outputs)]

    return ConversionExtension(operator, "com.microsoft", converted)


def _prepared(model: Any) -> Any:
    """Rewrite a model to the form that OpenVINO runs fastest; the order of steps matters."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "If" and node.friendly_name.startswith(UNPADDED):
            _take_padded(node)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            _turn_keys(node)
    return openvino.Model(model.get_results(), model.get_parameters(), model.friendly_name)


def _take_padded(node: Any) -> None:
    """Replace the choice between two attentions by the one for padded pairs.

    The graph has this If for onnxruntime; see `xopt.optimize.graph.attention`.
    OpenVINO 2026.4 gains nothing by it. On models with few biases its If gives wrong logits,
    NaN too, the first time that it meets a shape.
    """
    body = node.get_function(ELSE)
    parameters = body.get_parameters()
    results = body.get_results()
    for described in node.get_input_descriptions(ELSE):
        parameter = parameters[described.body_parameter_index]
        parameter.output(0).replace(node.input_value(described.input_index))
    for described in node.get_output_descriptions(ELSE):
        result = results[described.body_value_index].input_value(0)
        node.output(described.output_index).replace(result)


def _turn_keys(product: Any) -> None:
    """Let an attention's first product turn the keys: OpenVINO's Transpose copies."""
    keys = product.input_value(1).get_node()
    attributes = product.get_attributes()
    if keys.get_type_name() != "Transpose" or attributes["transpose_b"]:
        return
    order = keys.input_value(1).get_node()
    if order.get_type_name() == "Constant" and list(order.data) == KEYS_TURNED:
        heads = opset.transpose(keys.input_value(0), opset.constant(HEADS_FIRST))
        queries = product.input_value(0)
        scores = opset.matmul(queries, heads, attributes["transpose_a"], transpose_b=True)
        scores.friendly_name = product.friendly_name
        product.output(0).replace(scores.output(0))
