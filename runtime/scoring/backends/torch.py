"""PyTorch through the planner, on a CPU and on a GPU: the CrossEncoder's modules, padded or
packed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import Manifest, ModelFolder, Plan, Variant
from xopt.runtime.scoring.backends.backend import Clock, CpuClock, OutOfMemory, check_no_fork
from xopt.runtime.scoring.backends.kinds import Times, kind_of
from xopt.runtime.scoring.backends.network import Network, load_own
from xopt.runtime.scoring.backends.packed import Packed, pack
from xopt.runtime.scoring.backends.varlen import VarlenNetwork
from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.plan import Forward

__all__ = ["DTYPES", "TorchBackend", "has_flash"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class CudaClock:
    """Times on the GPU's own clock, to be read once it has done all."""

    @staticmethod
    def mark() -> torch.cuda.Event:
        """Now, in the order of the GPU's work."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch has no types for it
        event.record()
        return event

    @staticmethod
    def seconds(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """The time between two marks."""
        return float(start.elapsed_time(end)) / 1000


class TorchBackend:
    """Runs the transformers model on packed pairs; safe to call from several threads at once."""

    step = 0

    def __init__(
        self, folder: ModelFolder, variant: Variant, plan: Plan, device: str = "cpu"
    ) -> None:
        check_no_fork("torch", begins=False)
        self.threads, self.device = plan.threads, device
        self.clock: Clock = CudaClock() if device == "cuda" else CpuClock()
        self.streams = device == "cuda"
        packed, dtype = variant.backend == "torch-varlen", DTYPES[variant.precision]
        if packed and device == "cuda":
            if variant.precision == "fp32":
                raise BadInput(
                    f"{variant.name}: flash attention has no FP32; use torch-varlen-fp16 or torch-fp32"
                )
            if not has_flash():
                raise BadInput(
                    f"{variant.name}: needs torch 2.10 and an NVIDIA GPU since Ampere; use torch-fp16"
                )
        # A packed network brings its own attention, and casts the body alone.
        how: dict[str, Any] = {"attn_implementation": "eager"} if packed else {}
        encoder = load_own(folder, torch.float32 if packed else dtype, **how)
        self.network: functools.partial[torch.Tensor] | VarlenNetwork
        if packed:
            self.network = VarlenNetwork(
                encoder, dtype, device, typed="token_type_ids" in folder.manifest.inputs
            )
        else:
            self.network = functools.partial(_padded, Network(encoder).to(device), folder.manifest)

    def load(self, tokens: Tokens, forward: Forward) -> Packed:
        """The pairs of a forward on the device."""
        with _within_memory():
            return pack(tokens, forward, self.device)

    def forward(self, packed: Packed) -> torch.Tensor:
        """Logits, float32[pairs, labels], on the device; a GPU may still be at work on them."""
        if self.device == "cpu":
            if self.threads > 1:
                check_no_fork("torch")
            # OpenMP keeps it by thread, and callers come from any thread
            torch.set_num_threads(self.threads)
        with _within_memory(), torch.inference_mode():
            return self.network(packed)

    def finish(self, outputs: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Logits of all forwards on the host: the one wait for the GPU."""
        logits: NDArray[np.float32] = torch.cat(list(outputs)).cpu().numpy()
        return logits

    def profiled(self, batches: Sequence[Packed]) -> Times:
        """Where the time of batches goes on a CPU; see `Backend`."""
        for batch in batches:
            self.forward(batch)
        with _Timed() as timed:
            for batch in batches:
                self.forward(batch)
        times: Times = timed.times
        return times


class _Timed(TorchDispatchMode):
    """Times each operator of a CPU by its kind; torch's own profiler writes to standard output."""

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
        made = operator(*args, **(kwargs or {}))
        self.times[kind_of(operator.name())] += time.perf_counter() - start
        return made


def has_flash() -> bool:
    """Whether torch has flash attention over packed pairs (since 2.10) and the GPU, if any, runs
    it (since Ampere).
    """
    there = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    return there and (not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0))


@contextlib.contextmanager
def _within_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory from error


def _padded(network: Network, manifest: Manifest, packed: Packed) -> torch.Tensor:
    """Logits of packed pairs by the modules as sentence-transformers runs them, padded on the
    device.
    """
    shape, rows, columns = (packed.pairs, packed.width), packed.rows, packed.positions.long()
    if manifest.padding_side == "left":
        columns = columns + (packed.width - (packed.bounds[1:] - packed.bounds[:-1]).long())[rows]

    def padded(values: torch.Tensor, fill: int) -> torch.Tensor:
        made = torch.full(shape, fill, dtype=torch.int64, device=values.device)
        made[rows, columns] = values.long()
        return made

    arrays = [padded(packed.ids, manifest.pad_id), padded(torch.ones_like(packed.ids), 0)]
    if "token_type_ids" in manifest.inputs:
        arrays.append(padded(packed.type_ids, 0))
    logits: torch.Tensor = network(*arrays).float()
    return logits
