"""What a process and all its children use, watched from another process."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from xopt.runtime.bench.nvml import Gpu, GpuSample

__all__ = ["Moment", "TreeMonitor", "Usage"]

INTERVAL_S = 0.2
TREE_EVERY = 5  # samples: children are looked for once a second
PEAK_SAMPLES = 3  # the peak is over 0.6 s: the operating system counts CPU time in hundredths
PROC = Path("/proc")
TICKS, PAGE_BYTES = (
    os.sysconf(n) if hasattr(os, "sysconf") else 1 for n in ("SC_CLK_TCK", "SC_PAGE_SIZE")
)


@dataclass(frozen=True)
class Moment:
    """A point of the timeline: seconds since the window began, cores busy since the point before,
    bytes resident.
    """

    at_s: float
    cores: float
    root_cores: float
    resident_bytes: int


@dataclass(frozen=True)
class Usage:
    """What a process tree used in a window of time; CPU in cores (1.0 is one core busy).

    mean_cores is exact: CPU seconds by the operating system's accounting over wall seconds.
    root_* is the tree's root alone, per_core each core of the machine, whoever used it. Peak
    memory sums over processes, so pages that they share count once for each. Faults and disk
    bytes are the tree's, network bytes the machine's. gpu is None where there is none.
    """

    mean_cores: float
    peak_cores: float
    root_mean_cores: float
    peak_bytes: int
    per_core: tuple[float, ...]
    threads: int
    minor_faults: int
    major_faults: int
    read_bytes: int
    written_bytes: int
    received_bytes: int
    sent_bytes: int
    monitor_cores: float
    timeline: tuple[Moment, ...]
    gpu: GpuSample | None


COUNTERS = (
    "cpu",
    "root_cpu",
    "minor",
    "major",
    "read",
    "written",
    "received",
    "sent",
    "own_cpu",
)


@dataclass
class _Sample:
    """Totals so far, by counter, and what holds at the moment."""

    at_s: float
    totals: dict[str, float]
    per_core: list[float]
    resident_bytes: int = 0
    threads: int = 0
    gpu: GpuSample | None = None


class TreeMonitor:
    """Samples a process and its descendants, five times a second.

    A child that came and went between two samples is counted: the operating system adds what it
    used to its parent's account (not on macOS).
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._highest: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)
        self._samples: list[_Sample] = []
        self._pids = [pid]
        self._gpu = Gpu.first()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def usage(self, start_s: float, end_s: float) -> Usage:
        """Usage between two times on `time.monotonic`; peak memory and threads are those of the
        whole watch.
        """
        at = np.array([sample.at_s for sample in self._samples])
        spent = {name: self._spent(name, at, start_s, end_s) for name in COUNTERS}
        window = end_s - start_s
        timeline = self._timeline(start_s, end_s)
        mean = spent["cpu"] / window
        return Usage(
            mean_cores=mean,
            peak_cores=max([mean, *_peaks(timeline)]),
            root_mean_cores=spent["root_cpu"] / window,
            peak_bytes=max(sample.resident_bytes for sample in self._samples),
            per_core=self._per_core(at, start_s, end_s),
            threads=max(sample.threads for sample in self._samples),
            minor_faults=round(spent["minor"]),
            major_faults=round(spent["major"]),
            read_bytes=round(spent["read"]),
            written_bytes=round(spent["written"]),
            received_bytes=round(spent["received"]),
            sent_bytes=round(spent["sent"]),
            monitor_cores=spent["own_cpu"] / window,
            timeline=timeline,
            gpu=GpuSample.over(
                [s.gpu for s in self._samples if s.gpu and start_s <= s.at_s <= end_s]
            ),
        )

    def _spent(self, name: str, at: NDArray[np.float64], start_s: float, end_s: float) -> float:
        totals = [sample.totals[name] for sample in self._samples]
        return float(np.diff(np.interp([start_s, end_s], at, totals))[0])

    def _per_core(self, at: NDArray[np.float64], start_s: float, end_s: float) -> tuple[float, ...]:
        busy = np.array([sample.per_core for sample in self._samples]).T
        return tuple(
            float(np.diff(np.interp([start_s, end_s], at, core))[0]) / (end_s - start_s)
            for core in busy
        )

    def _timeline(self, start_s: float, end_s: float) -> tuple[Moment, ...]:
        inside = [sample for sample in self._samples if start_s <= sample.at_s <= end_s]
        return tuple(
            Moment(
                b.at_s - start_s,
                (b.totals["cpu"] - a.totals["cpu"]) / (b.at_s - a.at_s),
                (b.totals["root_cpu"] - a.totals["root_cpu"]) / (b.at_s - a.at_s),
                b.resident_bytes,
            )
            for a, b in itertools.pairwise(inside)
        )

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(INTERVAL_S if self._samples else 0)
            self._sample()

    def _sample(self) -> None:
        begin = time.thread_time()
        totals = dict.fromkeys(COUNTERS, 0.0)
        sample = _Sample(
            time.monotonic(), totals, [t.user + t.system for t in psutil.cpu_times(percpu=True)]
        )
        if len(self._samples) % TREE_EVERY == 0:
            self._pids = list(_tree(self._root.pid))
        for pid in self._pids:
            with suppress(psutil.Error, OSError):  # it has ended since
                self._add(pid, sample)
        network = psutil.net_io_counters()
        if network is not None:
            totals["received"], totals["sent"] = (
                float(network.bytes_recv),
                float(network.bytes_sent),
            )
        sample.gpu = self._gpu.sample() if self._gpu else None
        totals["own_cpu"] = self._highest["own_cpu"] + time.thread_time() - begin
        # What a process that nobody waited for had used is gone with it; a total never falls for
        # that.
        self._highest = {name: max(total, self._highest[name]) for name, total in totals.items()}
        sample.totals = self._highest
        self._samples.append(sample)

    def _add(self, pid: int, sample: _Sample) -> None:
        found = _account(pid)
        sample.resident_bytes += int(found.pop("resident"))
        sample.threads += int(found.pop("threads"))
        own, reaped = found.pop("own"), found.pop("reaped")
        sample.totals["cpu"] += own + reaped
        sample.totals["root_cpu"] += own if pid == self._root.pid else 0.0
        for name, value in found.items():
            sample.totals[name] += value


def _peaks(timeline: tuple[Moment, ...]) -> list[float]:
    """Mean cores over every stretch of `PEAK_SAMPLES`."""
    cores = [moment.cores for moment in timeline]
    return [
        float(np.mean(cores[i : i + PEAK_SAMPLES])) for i in range(len(cores) - PEAK_SAMPLES + 1)
    ]


def _tree(pid: int) -> Iterator[int]:
    """A process and its descendants, on Linux by each thread's list of children: a scan of all
    processes costs more.
    """
    yield pid
    tasks = PROC / str(pid) / "task"
    with suppress(psutil.Error, OSError):  # a process that has ended has no children
        if not (tasks / str(pid) / "children").is_file():
            yield from (child.pid for child in psutil.Process(pid).children(recursive=True))
            return
        for task in list(tasks.iterdir()):
            with suppress(OSError):  # the thread has ended
                for child in (task / "children").read_text().split():
                    yield from _tree(int(child))


def _account(pid: int) -> dict[str, float]:
    """What a process has used: CPU seconds of its own and of the children that it waited for,
    memory, threads.

    On Linux, where one file holds all of it, page faults and disk bytes too.
    """
    home = PROC / str(pid)
    if not home.is_dir():
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            resident, threads = process.memory_info().rss, process.num_threads()
        return {
            "own": times.user + times.system,
            "reaped": 0.0,
            "resident": resident,
            "threads": threads,
        }
    # The fields behind the command's name, see proc(5).
    fields = [float(field) for field in (home / "stat").read_text().rpartition(") ")[2].split()[1:]]
    used = {
        "minor": fields[6] + fields[7],
        "major": fields[8] + fields[9],
        "own": (fields[10] + fields[11]) / TICKS,
        "reaped": (fields[12] + fields[13]) / TICKS,
        "threads": fields[16],
        "resident": fields[20] * PAGE_BYTES,
    }
    with suppress(OSError):  # containers may forbid it: then disk use is unknown, and shown as none
        io = dict(line.split(": ") for line in (home / "io").read_text().splitlines())
        used |= {"read": float(io["read_bytes"]), "written": float(io["write_bytes"])}
    return used
