"""ONNX Runtime: one session with one copy of the weights, called from several threads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.folder import ModelFolder, Plan, Variant
from xopt.runtime.scoring.backends.backend import OutOfMemory, PaddedArrays
from xopt.runtime.scoring.backends.kinds import Times, kind_of

__all__ = ["OnnxBackend", "has_cuda"]

# Its kernel is slower than the Add and LayerNormalization that it replaces: without it INT8 ran
# 11 % faster on a CPU with AVX512 (onnxruntime 1.32), FP32 the same.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def has_cuda() -> bool:
    """Whether this onnxruntime was built for NVIDIA GPUs: the package onnxruntime-gpu."""
    return PROVIDERS["cuda"] in ort.get_available_providers()


class OnnxBackend(PaddedArrays):
    """Runs an ONNX graph on padded arrays; safe to call from several threads at once."""

    def __init__(
        self, folder: ModelFolder, variant: Variant, plan: Plan, device: str = "cpu"
    ) -> None:
        file = folder.checked(variant.file)
        provider = PROVIDERS[device]
        if device == "cuda" and not has_cuda():
            raise BadInput(
                f"device {device!r}: this onnxruntime has no {provider}; `pip uninstall onnxruntime onnxruntime-gpu`, "
                "then `pip install onnxruntime-gpu`, or use --device cpu"
            )
        self.file, self.threads, self.provider = file, plan.threads, provider
        self.session = self._session(self._options())
        if self.session.get_providers()[0] != provider:
            raise BadInput(
                f"device {device!r}: {provider} did not load, so onnxruntime fell back to the CPU; see its log"
            )
        # Attention without a mask is one operator: nothing is to be padded. See
        # xopt.optimize.graph.attention.
        self.step = 1 if device == "cpu" else 0
        self.pad_id, self.left = folder.manifest.pad_id, folder.manifest.padding_side == "left"
        self.inputs = {node.name for node in self.session.get_inputs()}

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # a pattern a shape would grow with every new shape
        options.log_severity_level = 3
        return options

    def _session(self, options: ort.SessionOptions) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                str(self.file), options, providers=[self.provider], disabled_optimizers=SLOW_FUSIONS
            )
        except Exception as error:  # onnxruntime's own exception types are not public
            raise BadInput(
                f"{self.file}: onnxruntime cannot open it ({first_line(error)})"
            ) from error

    def forward(self, batch: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Logits, float32[pairs, labels], of int64[pairs, width] arrays."""
        try:
            logits: NDArray[np.float32] = self.session.run(
                ["logits"], {k: v for k, v in batch.items() if k in self.inputs}
            )[0]
        except Exception as error:  # onnxruntime's own exception types are not public
            if "Failed to allocate memory" in str(error):
                raise OutOfMemory from error
            raise
        return logits

    def profiled(self, batches: Sequence[dict[str, NDArray[np.int64]]]) -> Times:
        """Where the time of batches goes; see `Backend`."""
        options, times = self._options(), Times(float)
        options.enable_profiling = True
        with TemporaryDirectory(prefix="xopt-profile-") as scratch:
            options.profile_file_prefix = f"{scratch}/run"
            session = self._session(options)
            for batch in (*batches, *batches):  # the first round allocates
                session.run(["logits"], {k: v for k, v in batch.items() if k in self.inputs})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        start = [event["ts"] for event in events if event["name"] == "model_run"][len(batches)]
        for event in events:
            operator = event["args"].get("op_name")
            if event["name"].endswith("_kernel_time") and event["ts"] >= start and operator != "If":
                # Weights have two dimensions, and none where the session has packed them.
                shapes = [
                    shape for each in event["args"]["input_type_shape"] for shape in each.values()
                ]
                times[kind_of(operator, sum(len(shape) > 2 for shape in shapes) < 2)] += (
                    event["dur"] / 1e6
                )
        return times
