"""The figures of the documentation are those of the runs in docs/results/."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "generate" / "tables.py"
TABLE = re.compile(r"<!-- table: .*?<!-- end -->", re.DOTALL)
CODE = re.compile(r"```.*?```", re.DOTALL)
# A number with what it measures; "six minutes" and "1,000 pairs" say what to expect or to give.
FIGURE = re.compile(r"\d[\d.,]*\s?(x|times|%|ms|s|GB|MiB|pairs/s|pairs per second)(?!\w)")


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--check", "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_table_is_that_of_its_run():
    checked = check(ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md", "docs/speed.svg"])
def test_a_changed_figure_is_found(page, tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    changed = tmp_path / page
    text = changed.read_text(encoding="utf-8")
    figure = re.search(r"(\d+\.\d) x", text)
    assert figure
    changed.write_text(text.replace(figure[0], "99.9 x", 1), encoding="utf-8")
    checked = check(tmp_path)
    assert checked.returncode == 1
    assert f"{page}: differs" in checked.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_no_figure_stands_outside_of_the_tables(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = CODE.sub("", TABLE.sub("", text))
    assert not FIGURE.findall(prose)
