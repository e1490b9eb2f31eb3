from __future__ import annotations

import os
import subprocess
import sys
import time

from xopt.runtime.bench.monitor import TreeMonitor

BUSY = "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


def test_the_cpu_of_children_is_seen_and_told_from_the_parents() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT])
    with TreeMonitor(process.pid) as monitor:
        start = time.monotonic()
        process.wait()
        end = time.monotonic()
    usage = monitor.usage(start, end)
    used = os.times()
    assert used.children_user > 0
    assert usage.mean_cores > 3 * usage.root_mean_cores
    assert usage.mean_cores > 0.2  # a busy child, on however loaded a machine
    assert usage.peak_cores >= usage.mean_cores
    assert usage.peak_bytes > 10_000_000


def test_an_idle_process_uses_no_cpu() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"])
    time.sleep(0.3)
    with TreeMonitor(process.pid) as monitor:
        start = time.monotonic()
        time.sleep(0.8)
        end = time.monotonic()
    process.kill()
    process.wait()
    assert monitor.usage(start, end).mean_cores < 0.1


def test_children_that_live_shorter_than_a_sample_are_in_the_account() -> None:
    spin = "import time\nend = time.process_time() + 0.05\nwhile time.process_time() < end: pass"
    one = f"subprocess.run([sys.executable, '-c', {spin!r}])"
    many = f"import subprocess, sys\nfor _ in range(12): {one}"
    process = subprocess.Popen([sys.executable, "-c", many])
    with TreeMonitor(process.pid) as monitor:
        start = time.monotonic()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays to be looked at
        time.sleep(0.3)
        end = time.monotonic()
    _, _, spent = os.wait4(process.pid, 0)  # the operating system's word, as /usr/bin/time gives it
    process.returncode = 0
    usage = monitor.usage(start, end)
    assert abs(usage.mean_cores - (spent.ru_utime + spent.ru_stime) / (end - start)) < 0.03
    assert usage.root_mean_cores < 0.5 * usage.mean_cores
    assert len(usage.per_core) == os.cpu_count()
    assert usage.minor_faults > 1000
    assert usage.timeline[-1].at_s <= end - start
