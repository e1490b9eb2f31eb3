"""What `import xopt` gives."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import xopt

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"


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
@pytest.mark.parametrize("page", ["python.md", "daft.md", "rerank-files.md"])
def test_the_python_of_a_guide_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    candidates = xopt.read_candidates("demo", queries=12, depth=4)
    folder = xopt.export("demo", tmp_path / "models" / "demo-xopt")
    xopt.quantize(folder, xopt.recipe_for(xopt.detect_target()), candidates)
    fields = ["query_id", "query", "doc_id", "text"]
    table = {field: [getattr(row, field) for row in candidates.rows] for field in fields}
    pq.write_table(pa.table(table), tmp_path / "candidates.parquet")
    text = (GUIDES / page).read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, page, "exec"), names)
