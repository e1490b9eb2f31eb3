"""PyTorch on a CPU and on a GPU: the CrossEncoder's modules, over padded or packed pairs."""

from __future__ import annotations

import copy
import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import Manifest, ModelFolder, Plan, Variant
from xopt.runtime.scoring.backends.backend import Logits, check_no_fork, within_memory
from xopt.runtime.scoring.backends.kinds import Times, kind_of
from xopt.runtime.scoring.backends.network import Network, load_own
from xopt.runtime.scoring.backends.packed import Packed, pack
from xopt.runtime.scoring.backends.varlen import VarlenNetwork
from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.plan import Forward

__all__ = ["DTYPES", "TorchBackend", "has_flash"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchBackend:
    """Runs the transformers model; several threads may call it at once."""

    step = 0

    def __init__(
        self, folder: ModelFolder, variant: Variant, plan: Plan, device: str = "cpu"
    ) -> None:
        check_no_fork("torch", begins=False)
        self.threads = plan.threads
        self.device = device
        self.streams = device == "cuda"
        self.network: Callable[[Packed], Tensor]
        dtype = DTYPES[variant.precision]
        if variant.backend == "torch-varlen":
            if device == "cuda":
                _check_flash(variant)
            # The network brings its own attention, and casts the body alone.
            encoder = load_own(folder, attn_implementation="eager")
            typed = "token_type_ids" in folder.manifest.inputs
            self.network = VarlenNetwork(encoder, dtype, device, typed=typed)
        else:
            network = Network(load_own(folder, dtype)).to(device)
            self.network = functools.partial(_padded, network, folder.manifest)

    def wide(self, threads: int) -> TorchBackend:
        other = copy.copy(self)  # of the same weights
        other.threads = threads
        return other

    @within_memory()
    def load(self, tokens: Tokens, forward: Forward) -> Packed:
        return pack(tokens, forward, self.device)

    @within_memory()
    def forward(self, packed: Packed) -> Tensor:
        if self.device == "cpu":
            if self.threads > 1:
                check_no_fork("torch")
            # OpenMP keeps the number by thread, and callers come from any thread.
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self.network(packed)

    def finish(self, outputs: Sequence[Tensor]) -> Logits:
        logits: Logits = torch.cat(list(outputs)).cpu().numpy()
        return logits

    def mark(self) -> Any:
        if self.device == "cpu":
            return time.monotonic()
        # torch has no types for it
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch's
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        if self.device == "cpu":
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000

    def profiled(self, batches: Sequence[Packed]) -> Times:
        for batch in batches:  # warms up
            self.forward(batch)
        with _Timed() as timed:
            for batch in batches:
                self.forward(batch)
        times: Times = timed.times
        return times


class _Timed(TorchDispatchMode):
    """Times each operator on a CPU; torch's own profiler writes to standard output."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no types for it
        self.times = Times(float)

    def __torch_dispatch__(
        self,
        operator: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        start = time.perf_counter()
        result = operator(*args, **(kwargs or {}))
        self.times[kind_of(operator.name())] += time.perf_counter() - start
        return result


def has_flash() -> bool:
    """Return whether torch, and the GPU if there is one, have flash attention."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)


def _check_flash(variant: Variant) -> None:
    if variant.precision == "fp32":
        raise BadInput(
            f"{variant.name}: flash attention has no FP32; use torch-varlen-fp16 or torch-fp32"
        )
    if not has_flash():
        raise BadInput(
            f"{variant.name}: needs torch 2.10 and an NVIDIA GPU since Ampere; use torch-fp16"
        )


def _padded(network: Network, manifest: Manifest, packed: Packed) -> Tensor:
    """Run the modules as sentence-transformers does, padded on the device."""
    rows = packed.rows
    columns = packed.positions.long()
    if manifest.padding_side == "left":
        columns = columns + (packed.width - packed.counts)[rows]

    def padded(values: Tensor, fill: int) -> Tensor:
        shape = (packed.pairs, packed.width)
        array = torch.full(shape, fill, dtype=torch.int64, device=values.device)
        array[rows, columns] = values.long()
        return array

    arrays = [padded(packed.ids, manifest.pad_id), padded(torch.ones_like(packed.ids), 0)]
    if "token_type_ids" in manifest.inputs:
        arrays.append(padded(packed.type_ids, 0))
    logits: Tensor = network(*arrays).float()
    return logits
