from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(sys.prefix).name
OTHER = ROOT / {".venv": ".venv5", ".venv5": ".venv"}.get(HERE, "none") / "bin" / "python"


def run(python: Path, what: str, folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [python, "-m", "helpers.stacks", what, folder],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(
    not OTHER.is_file(), reason="the other set of versions is not installed: `make test5`"
)
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_of_one_set_of_versions_opens_with_the_other(tmp_path: Path, there: bool) -> None:
    python = Path(sys.executable)
    run(OTHER if there else python, "make", tmp_path)
    run(python if there else OTHER, "open", tmp_path)
