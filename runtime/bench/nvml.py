"""A GPU's utilisation, memory and power, through NVML."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "GpuSample"]


@dataclass(frozen=True)
class GpuSample:
    """Utilisation (0 to 1), bytes of memory held, and power in watts."""

    utilisation: float
    memory_bytes: int
    power_w: float

    @staticmethod
    def over(samples: Sequence[GpuSample]) -> GpuSample | None:
        """Return the means of samples, and the peak of memory; None of no samples."""
        if not samples:
            return None
        return GpuSample(
            statistics.fmean(sample.utilisation for sample in samples),
            max(sample.memory_bytes for sample in samples),
            statistics.fmean(sample.power_w for sample in samples),
        )


class Gpu:
    """The machine's first GPU."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(0)

    @staticmethod
    def first() -> Gpu | None:
        """Return the first GPU, or None where NVML (nvidia-ml-py) is missing or sees none."""
        try:
            import pynvml

            pynvml.nvmlInit()
            gpu = Gpu(pynvml)
            gpu.sample()  # a part of a GPU cannot tell all of it
            return gpu
        except Exception:  # a missing package, driver or device has an error of its own each
            return None

    def sample(self) -> GpuSample:
        return GpuSample(
            self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100,
            int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used),
            self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000,
        )
