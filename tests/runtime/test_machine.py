from __future__ import annotations

from pathlib import Path

import pytest

from xopt.runtime import machine
from xopt.runtime.machine import LEAST_FLAGS, UNLIMITED, _quota, _quotas, cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("50000 100000", 0),
        ("max 100000\n", UNLIMITED),
        *(
            (text, UNLIMITED)
            for text in ("", "\n", "200000\n", "-1\n", "abc def\n", "100000 0\n", "-1 100000\n")
        ),
    ],
)
def test_what_is_no_quota_is_no_limit(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert _quota(tmp_path / "cpu.max") == cores
    assert _quota(tmp_path / "none") == UNLIMITED


def test_the_quotas_of_all_groups_around_a_process_count(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    (tmp_path / "jobs" / "mine").mkdir(parents=True)
    (tmp_path / "jobs" / "cpu.max").write_text("300000 100000")
    (tmp_path / "jobs" / "mine" / "cpu.max").write_text("max 100000")
    own.write_text("0::/jobs/mine\n")
    assert min(_quotas(tmp_path, own)) == 3
    (tmp_path / "cpu" / "box").mkdir(parents=True)
    (tmp_path / "cpu" / "box" / "cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu" / "box" / "cpu.cfs_period_us").write_text("100000\n")
    own.write_text("12:memory:/box\n4:cpu,cpuacct:/box\n0::/\n")
    assert min(_quotas(tmp_path, own)) == 2
    assert min(_quotas(tmp_path, tmp_path / "none")) == UNLIMITED


@pytest.mark.parametrize(
    ("flags", "overflows"),
    [
        ({"sse2", "avx2"}, True),
        ({"sse2", "avx2", "avx512_vnni"}, False),
        ({"sse2", "sse4_1"}, True),
        (LEAST_FLAGS["amd64"], True),  # Windows tells nothing
        (LEAST_FLAGS["arm64"], False),
    ],
)
def test_x86_is_taken_to_overflow_unless_it_shows_that_it_does_not(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], overflows: bool
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
    assert machine.saturates() == overflows


def test_there_is_at_least_one_core() -> None:
    assert cores() >= 1
