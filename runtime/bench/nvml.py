"""A GPU's utilisation, memory and power, through NVML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "GpuSample"]


@dataclass(frozen=True)
class GpuSample:
    """Utilisation (0 to 1) and power in watts, means over a window; the peak of the memory held,
    in bytes.
    """

    utilisation: float
    memory_bytes: int
    power_w: float

    @staticmethod
    def over(samples: Sequence[GpuSample]) -> GpuSample | None:
        """The samples of a window as one; None where there are none."""
        if not samples:
            return None
        return GpuSample(
            sum(s.utilisation for s in samples) / len(samples),
            max(s.memory_bytes for s in samples),
            sum(s.power_w for s in samples) / len(samples),
        )


class Gpu:
    """The machine's first GPU."""

    def __init__(self, nvml: Any) -> None:
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByIndex(0)

    @staticmethod
    def first() -> Gpu | None:
        """The first GPU, or None where NVML is not installed (nvidia-ml-py) or sees none."""
        try:
            import pynvml

            pynvml.nvmlInit()
            gpu = Gpu(pynvml)
            gpu.sample()  # a part of a GPU cannot tell all of it
            return gpu
        # the package, the driver or the device is missing, each with its own error
        except Exception:
            return None

    def sample(self) -> GpuSample:
        """What it does now."""
        n = self._nvml
        return GpuSample(
            n.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100,
            int(n.nvmlDeviceGetMemoryInfo(self._handle).used),
            n.nvmlDeviceGetPowerUsage(self._handle) / 1000,
        )
