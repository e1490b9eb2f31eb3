"""What a process and all its children use, watched from another process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import psutil

__all__ = ["TreeMonitor", "Usage"]

INTERVAL_S = 0.1
PEAK_SAMPLES = 5  # the peak is over half a second: the operating system counts CPU time in hundredths


@dataclass(frozen=True)
class Usage:
    """CPU of a process tree in cores (1.0 is one core busy), of its root alone, and the tree's peak memory."""

    mean_cores: float
    peak_cores: float
    root_mean_cores: float
    peak_bytes: int


@dataclass(frozen=True)
class _Sample:
    at_s: float
    tree_cpu_s: float
    root_cpu_s: float
    resident_bytes: int


class TreeMonitor:
    """Samples the CPU seconds and the resident memory of a process and its descendants, the dead included.

    A child's CPU seconds stay counted after it has gone, up to its last sample. Resident memory is
    the sum over processes, so pages that they share count once for each.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._samples: list[_Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def usage(self, start_s: float, end_s: float) -> Usage:
        """Usage between two times on `time.monotonic`; peak memory is that of the whole watch."""
        at = np.array([s.at_s for s in self._samples])
        tree = np.array([s.tree_cpu_s for s in self._samples])
        root = np.array([s.root_cpu_s for s in self._samples])
        window = end_s - start_s
        inside = np.flatnonzero((at >= start_s) & (at <= end_s))
        step = min(PEAK_SAMPLES, max(1, len(inside) - 1))
        first, last = inside[:-step], inside[step:]
        mean = float(np.diff(np.interp([start_s, end_s], at, tree))[0] / window)
        peaks = (tree[last] - tree[first]) / (at[last] - at[first])
        return Usage(
            mean,
            max(mean, float(peaks.max())) if len(peaks) else mean,
            float(np.diff(np.interp([start_s, end_s], at, root))[0] / window),
            max(s.resident_bytes for s in self._samples),
        )

    def _watch(self) -> None:
        while True:
            self._sample()
            if self._stop.wait(INTERVAL_S):
                self._sample()
                return

    def _sample(self) -> None:
        resident = 0
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    self._cpu_s[process.pid, process.create_time()] = times.user + times.system
                    resident += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        root_cpu_s = self._cpu_s.get((self._root.pid, self._root.create_time()), 0.0)
        self._samples.append(_Sample(time.monotonic(), sum(self._cpu_s.values()), root_cpu_s, resident))
