"""What a process and all its children use, watched from another process."""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from xopt.runtime.bench.nvml import Gpu, GpuSample

__all__ = ["Moment", "TreeMonitor", "Usage"]

INTERVAL_S = 0.2
TREE_EVERY = 5  # samples: children are looked for once a second
PEAK_SAMPLES = 3  # the peak is over 0.6 s: the operating system counts CPU time in hundredths
PROC = Path("/proc")
COUNTERS = ("cpu", "root_cpu", "minor", "major", "read", "written", "received", "sent", "own_cpu")


@dataclass(frozen=True)
class Moment:
    """A point of the timeline: seconds since its start, and cores busy since the point before."""

    at_s: float
    cores: float
    root_cores: float
    resident_bytes: int


@dataclass(frozen=True)
class Usage:
    """What a process tree used in a window of time; CPU in cores (1.0 is one core busy).

    mean_cores: exact, CPU seconds by the operating system's accounts over wall seconds.
    root_mean_cores: of the tree's root alone. per_core: each core of the machine, whoever used it.
    peak_bytes: the sum over processes, where pages that they share count for each.
    Network bytes are the machine's. gpu is None where there is none.
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


@dataclass(frozen=True)
class _Sample:
    """Totals up to a time, by counter and by core, and what holds at that time."""

    at_s: float
    totals: dict[str, float]
    per_core: list[float]
    resident_bytes: int
    threads: int
    gpu: GpuSample | None


class TreeMonitor:
    """Samples a process and its descendants, five times a second.

    On Linux children that lived between two samples count too, in their parents' accounts.
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
        """Return the usage between two times on `time.monotonic`.

        Peak memory and threads are those of the whole watch.
        """
        times = np.array([sample.at_s for sample in self._samples])

        def spent(totals: list[float]) -> float:
            start, end = np.interp([start_s, end_s], times, totals)
            return float(end - start)

        used = {}
        for name in COUNTERS:
            used[name] = spent([sample.totals[name] for sample in self._samples])
        window_s = end_s - start_s
        inside = [sample for sample in self._samples if start_s <= sample.at_s <= end_s]
        timeline = _timeline(inside, start_s)
        mean_cores = used["cpu"] / window_s
        cores = zip(*(sample.per_core for sample in self._samples), strict=True)
        return Usage(
            mean_cores=mean_cores,
            peak_cores=max([mean_cores, *_peaks(timeline)]),
            root_mean_cores=used["root_cpu"] / window_s,
            peak_bytes=max(sample.resident_bytes for sample in self._samples),
            per_core=tuple(spent(list(core)) / window_s for core in cores),
            threads=max(sample.threads for sample in self._samples),
            minor_faults=round(used["minor"]),
            major_faults=round(used["major"]),
            read_bytes=round(used["read"]),
            written_bytes=round(used["written"]),
            received_bytes=round(used["received"]),
            sent_bytes=round(used["sent"]),
            monitor_cores=used["own_cpu"] / window_s,
            timeline=timeline,
            gpu=GpuSample.over([sample.gpu for sample in inside if sample.gpu]),
        )

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(INTERVAL_S if self._samples else 0)
            self._sample()

    def _sample(self) -> None:
        begin = time.thread_time()
        at_s = time.monotonic()
        per_core = [times.user + times.system for times in psutil.cpu_times(percpu=True)]
        if len(self._samples) % TREE_EVERY == 0:
            self._pids = _tree(self._root.pid)
        totals = dict.fromkeys([*COUNTERS, "resident", "threads"], 0.0)
        for pid in self._pids:
            with suppress(psutil.Error, OSError):  # it has ended since
                account = _account(pid)
                own = account.pop("own")
                totals["cpu"] += own
                if pid == self._root.pid:
                    totals["root_cpu"] = own
                for name, value in account.items():
                    totals[name] += value
        network = psutil.net_io_counters()
        if network is not None:
            totals["received"] = float(network.bytes_recv)
            totals["sent"] = float(network.bytes_sent)
        gpu = self._gpu.sample() if self._gpu else None
        totals["own_cpu"] = self._highest["own_cpu"] + time.thread_time() - begin
        # Where nobody waited for a process that ended, the account of what it used is gone: a
        # total stays where it was.
        self._highest = {name: max(totals[name], self._highest[name]) for name in COUNTERS}
        resident_bytes = int(totals["resident"])
        threads = int(totals["threads"])
        self._samples.append(_Sample(at_s, self._highest, per_core, resident_bytes, threads, gpu))


def _timeline(samples: list[_Sample], start_s: float) -> tuple[Moment, ...]:
    moments = []
    for before, after in itertools.pairwise(samples):
        passed_s = after.at_s - before.at_s
        cores = (after.totals["cpu"] - before.totals["cpu"]) / passed_s
        root_cores = (after.totals["root_cpu"] - before.totals["root_cpu"]) / passed_s
        moments.append(Moment(after.at_s - start_s, cores, root_cores, after.resident_bytes))
    return tuple(moments)


def _peaks(timeline: tuple[Moment, ...]) -> list[float]:
    cores = [moment.cores for moment in timeline]
    starts = range(len(cores) - PEAK_SAMPLES + 1)
    return [statistics.fmean(cores[start : start + PEAK_SAMPLES]) for start in starts]


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants.

    On Linux it reads each thread's list of children: psutil's scan of all processes costs more.
    """
    pids = [pid]
    if not (PROC / str(pid) / "task" / str(pid) / "children").is_file():
        with suppress(psutil.Error):  # it has ended
            pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
        return pids
    for parent in pids:  # the list grows by each one's children
        with suppress(OSError):  # the process has ended
            for thread in list((PROC / str(parent) / "task").iterdir()):
                with suppress(OSError):  # the thread has ended
                    pids += [int(child) for child in (thread / "children").read_text().split()]
    return pids


def _account(pid: int) -> dict[str, float]:
    """Return what a process has used.

    "own" and "cpu" are CPU seconds of its own, and of children that it waited for; "resident" is
    in bytes. Elsewhere than on Linux faults and disk bytes are missing.
    """
    home = PROC / str(pid)
    if not home.is_dir():
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return {
                "own": times.user + times.system,
                "resident": process.memory_info().rss,
                "threads": process.num_threads(),
            }
    # The fields of proc(5) from the fourth on: a name, which may hold anything, is before them.
    text = (home / "stat").read_text().rpartition(") ")[2]
    fields = [float(value) for value in text.split()[1:]]
    ticks = os.sysconf("SC_CLK_TCK")
    account = {
        "minor": fields[6] + fields[7],
        "major": fields[8] + fields[9],
        "own": (fields[10] + fields[11]) / ticks,
        "cpu": (fields[12] + fields[13]) / ticks,
        "threads": fields[16],
        "resident": fields[20] * os.sysconf("SC_PAGE_SIZE"),
    }
    with suppress(OSError):  # containers may forbid it: then disk use counts as none
        lines = (home / "io").read_text().splitlines()
        disk = dict(line.split(": ") for line in lines)
        account["read"] = float(disk["read_bytes"])
        account["written"] = float(disk["write_bytes"])
    return account
