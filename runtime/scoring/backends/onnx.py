"""ONNX Runtime: one session with one copy of the weights, called from several threads."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime as ort

from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.folder import KeptFile, ModelFolder, Plan, Variant
from xopt.runtime.scoring.backends.backend import Arrays, Logits, PaddedArrays, within_memory
from xopt.runtime.scoring.backends.kinds import Times, kind_of
from xopt.runtime.scoring.plan import is_long

__all__ = ["OnnxBackend", "has_cuda"]

# Its kernel is slower than the Add and LayerNormalization that it replaces: without it INT8 ran
# 11 % faster on a CPU with AVX512 (onnxruntime 1.32), FP32 the same.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def has_cuda() -> bool:
    """Return whether this is onnxruntime-gpu, built for NVIDIA GPUs."""
    return PROVIDERS["cuda"] in ort.get_available_providers()


class OnnxBackend(PaddedArrays):
    """Runs an ONNX graph on padded arrays; several threads may call it at once."""

    def __init__(
        self, folder: ModelFolder, variant: Variant, plan: Plan, device: str = "cpu"
    ) -> None:
        super().__init__(folder)
        self.file = folder.checked(variant.file)
        self.kept = KeptFile(self.file)
        self.threads = plan.threads
        self.provider = PROVIDERS[device]
        if device == "cuda" and not has_cuda():
            raise BadInput(
                f"device {device!r}: this onnxruntime has no {self.provider}; "
                "`pip uninstall onnxruntime onnxruntime-gpu`, "
                'then `pip install onnxruntime-gpu`, or use `device="cpu"`'
            )
        self.session = self._session(self._options())
        if self.session.get_providers()[0] != self.provider:
            raise BadInput(
                f"device {device!r}: {self.provider} did not load, "
                "so onnxruntime fell back to the CPU; see its log"
            )
        # On a CPU nothing is padded: attention without a mask is one fast operator there.
        # See xopt.optimize.graph.attention.
        self.step = 1 if device == "cpu" else 0
        self.inputs = {node.name for node in self.session.get_inputs()}

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # patterns are kept by shape, and would fill memory
        options.log_severity_level = 3
        # Between forwards its threads sleep: waiting in a loop, they would hold up other programs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _session(self, options: ort.SessionOptions) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                str(self.kept.path),
                options,
                providers=[self.provider],
                disabled_optimizers=SLOW_FUSIONS,
            )
        except BadInput:
            raise
        except Exception as error:  # onnxruntime's own exception types are not public
            reason = first_line(error)
            raise BadInput(
                f"{self.file}: onnxruntime cannot open it ({reason}); make it again, "
                "or install the onnxruntime that it was made with"
            ) from error

    def wide(self, threads: int) -> OnnxBackend:
        other = copy.copy(self)
        other.threads = threads
        other.session = other._session(other._options())
        return other

    @within_memory()
    def forward(self, batch: Arrays) -> Logits:
        options = None
        if self.provider == PROVIDERS["cpu"] and is_long(*batch["input_ids"].shape):
            # Else the session keeps what the forward took.
            options = ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        logits: Logits = self.session.run(["logits"], batch, options)[0]
        return logits

    def profiled(self, batches: Sequence[Arrays]) -> Times:
        options = self._options()
        options.enable_profiling = True
        with TemporaryDirectory(prefix="xopt-profile-") as scratch:
            options.profile_file_prefix = f"{scratch}/run"
            session = self._session(options)
            for batch in (*batches, *batches):  # the first round allocates, and is not counted
                session.run(["logits"], batch)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        run_starts = [event["ts"] for event in events if event["name"] == "model_run"]
        second_round = run_starts[len(batches)]
        times = Times(float)
        for event in events:
            operator = event["args"].get("op_name")
            is_kernel = event["name"].endswith("_kernel_time") and operator != "If"
            if is_kernel and event["ts"] >= second_round:
                times[kind_of(operator, _has_weights(event))] += event["dur"] / 1e6
        return times


def _has_weights(event: Any) -> bool:
    """Return whether a product's kernel multiplies by weights, and not two activations.

    Weights have two dimensions, and no shape where the session has packed them.
    """
    shapes = [shape for each in event["args"]["input_type_shape"] for shape in each.values()]
    return sum(len(shape) > 2 for shape in shapes) < 2
