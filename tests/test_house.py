"""The rules of the house: which way imports go, and which module imports what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["runtime", "optimize", "cli"]  # each may import those before it
OWNERS = {  # in runtime, one module a library
    "daft": {"rerank.py"},
    "openvino": {"openvino.py"},
    "onnxruntime": {"onnx.py", "ceilings.py", "reference.py"},  # the reference sets threads through its options
    "sentence_transformers": {"reference.py"},
    "transformers": {"torch.py"},
    "tokenizers": {"encode.py"},
    "bm25s": {"bm25.py"},
    "ir_measures": {"agreement.py"},
}


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    above = LAYERS[LAYERS.index(layer_of(path)) + 1 :]
    for name in imported(path):
        assert not any(name.startswith(f"xopt.{layer}") for layer in above), f"{path.name} imports {name}"


@pytest.mark.parametrize("library", OWNERS)
def test_one_module_a_library(library: str) -> None:
    users = {p.name for p in FILES if layer_of(p) == "runtime" and any(n.split(".")[0] == library for n in imported(p))}
    assert users == OWNERS[library]


def test_files_stay_short() -> None:
    assert {p.name: n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300} == {}


def test_the_tree_stays_small() -> None:
    tracked = [p for p in (ROOT / "models" / "demo").iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in tracked) < 6 << 20
