"""OpenVINO: one compiled model with one copy of the weights, called from several threads."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as opset

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan, Variant
from xopt.runtime.machine import has_bf16
from xopt.runtime.scoring.backends.backend import UNPADDED, PaddedArrays, check_no_fork
from xopt.runtime.scoring.backends.kinds import Times, kind_of

__all__ = ["OpenVinoBackend"]

ELSE = 1  # the branch of an If for padded pairs
HEADS, KEYS = [0, 2, 1, 3], [0, 2, 3, 1]  # heads before tokens; and channels before them
# Of what is not INT8; with INT8 products bfloat16 between them where the processor multiplies it.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16" if has_bf16() else "f32"}


class OpenVinoBackend(PaddedArrays):
    """Runs an ONNX graph on padded arrays; safe to call from several threads at once."""

    # Its kernels take as long for 117 tokens as for 128, and a shape that they have not met costs
    # them 10 ms.
    step = 16

    def __init__(
        self, folder: ModelFolder, variant: Variant, plan: Plan, device: str = "cpu"
    ) -> None:
        check_no_fork("OpenVINO")
        file = folder.checked(variant.file)
        self.file, self.device, self.precision = file, device.upper(), PRECISIONS[variant.precision]
        self.threads = plan.threads
        self.model = self._compiled(plan.callers)
        self.pad_id, self.left = folder.manifest.pad_id, folder.manifest.padding_side == "left"
        self.inputs = {node.any_name for node in self.model.inputs}
        # All requests are made here: made while another runs, one can wait for it for ever,
        # holding Python's lock.
        self.idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(plan.callers):
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
            return core.compile_model(
                _prepared(core.read_model(self.file)), self.device, properties
            )
        except RuntimeError as error:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
            raise BadInput(f"{self.file}: OpenVINO cannot open it ({' '.join(reason)})") from error

    def forward(self, batch: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Logits, float32[pairs, labels], of int64[pairs, width] arrays."""
        check_no_fork("OpenVINO")
        request = self.idle.get()
        try:
            request.infer({k: v for k, v in batch.items() if k in self.inputs}, share_inputs=True)
            logits: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
        finally:
            self.idle.put(request)
        return logits

    def profiled(self, batches: Sequence[dict[str, NDArray[np.int64]]]) -> Times:
        """Where the time of batches goes; see `Backend`."""
        model, times = self._compiled(1, profiled=True), Times(float)
        request = model.create_infer_request()
        joined = {
            node.friendly_name: str(node.get_rt_info()["originalLayersNames"].value)
            for node in model.get_runtime_model().get_ordered_ops()
        }
        for batch in batches:
            for _ in range(2):  # the first compiles
                request.infer({k: v for k, v in batch.items() if k in self.inputs})
            for each in request.get_profiling_info():
                # What is compiled as one piece is known by what it was made of.
                operator = (
                    joined.get(each.node_name, "")
                    if each.node_type == "Subgraph"
                    else each.node_type
                )
                times[kind_of(operator, each.node_type != "MatMul")] += (
                    each.real_time.total_seconds()
                )
        return times


def _prepared(model: Any) -> Any:
    """The same function in the form that OpenVINO runs fastest."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "If" and node.friendly_name.startswith(UNPADDED):
            _take_padded(node)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            _turn_keys(node)
    return openvino.Model(model.get_results(), model.get_parameters(), model.friendly_name)


def _take_padded(node: Any) -> None:
    """Put an attention as it is for padded pairs in place of a choice between two.

    The graph has an If there for onnxruntime; see `xopt.optimize.graph.attention`. OpenVINO
    2026.4 has no such operator to choose, and on models with few biases its If gives wrong
    logits, NaN too, the first time that it meets a shape.
    """
    body = node.get_function(ELSE)
    parameters, results = body.get_parameters(), body.get_results()
    for described in node.get_input_descriptions(ELSE):
        parameters[described.body_parameter_index].output(0).replace(
            node.input_value(described.input_index)
        )
    for described in node.get_output_descriptions(ELSE):
        made = results[described.body_value_index].input_value(0)
        node.output(described.output_index).replace(made)


def _turn_keys(product: Any) -> None:
    """Let an attention's first product turn the keys: OpenVINO copies them where a Transpose does
    it.
    """
    turned = product.input_value(1).get_node()
    if turned.get_type_name() != "Transpose" or product.get_attributes()["transpose_b"]:
        return
    order = turned.input_value(1).get_node()
    if order.get_type_name() == "Constant" and list(order.data) == KEYS:
        heads = opset.transpose(turned.input_value(0), opset.constant(HEADS))
        scores = opset.matmul(
            product.input_value(0), heads, product.get_attributes()["transpose_a"], True
        )
        scores.friendly_name = product.friendly_name
        product.output(0).replace(scores.output(0))
