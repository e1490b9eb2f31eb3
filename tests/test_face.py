"""What `import xopt` gives."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xopt

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pipeline.md"


@pytest.mark.parametrize("name", xopt.__all__)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(xopt, name)
    assert name in dir(xopt)
    if name != "__version__":
        assert inspect.getdoc(found)


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'xopt' has no attribute 'optimise'"):
        xopt.optimise  # type: ignore[attr-defined]  # noqa: B018 # the access is the test


def test_editors_are_told_of_every_name() -> None:
    source = (ROOT / "face" / "__init__.py").read_text(encoding="utf-8")
    for_editors = source.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    for name in xopt.__all__:
        assert re.search(rf"\b{name}\b", for_editors), name
    assert {*xopt.MODULES, "__version__"} == set(xopt.__all__)


def test_importing_it_costs_nothing() -> None:
    code = "import sys, xopt; print(sorted({'torch', 'numpy', 'daft', 'click'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_python_m_xopt_is_the_command() -> None:
    said = subprocess.check_output([sys.executable, "-m", "xopt", "--version"], text=True)
    assert said.strip() == f"xopt, version {xopt.__version__}"


@pytest.mark.slow
def test_the_page_of_the_pipeline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "demo-xopt" / "xopt.json").is_file()
