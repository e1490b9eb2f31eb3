"""The rules of the house: imports go one way, few modules know a library, lines read once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = ("errors", "owners", "locks", "files", "formats", "folder", "machine", "progress")
ROOMS = [  # each may import from itself and from those before it
    *(f"xopt.runtime.{name}" for name in GROUND),
    "xopt.runtime.scoring",
    "xopt.runtime.data",
    "xopt.runtime.cascade",
    "xopt.runtime.frames",
    "xopt.runtime.jobs",
    "xopt.runtime.bench",
    "xopt.runtime.serve",
    "xopt.integrations",
    "xopt.optimize.graph",
    "xopt.optimize.int8",
    "xopt.optimize.judge",
    "xopt.optimize.model",
    "xopt.optimize.report",
    "xopt.optimize",
    "xopt.cli",
]
# These do not know each other.
STRANGERS = [f"xopt.optimize.{room}" for room in ("graph", "judge", "model", "report")]
# Beside the ground.
SERVED_BY = ("xopt.runtime.scoring", "xopt.runtime.data", "xopt.runtime.cascade")
OWNERS = {  # in runtime, the modules that import a library
    "daft": {"rerank.py", "cascade.py", "instances.py", "in_daft.py", "workers.py"},
    "openvino": {"openvino.py"},
    "ctranslate2": {"ctranslate2.py"},
    # the reference sets threads through its options
    "onnxruntime": {"onnx.py", "ceilings.py", "reference.py"},
    "sentence_transformers": {"network.py", "reference.py", "varlen.py"},
    "transformers": {"network.py"},
    "tokenizers": {"encode.py"},
    "starlette": {
        "app.py",
        "body.py",
        "errors.py",
        "ray.py",
        "record.py",
        "server.py",
        "service.py",
        "status.py",
    },
    "uvicorn": {"server.py"},
    "opentelemetry": {"tracing.py"},
    "aiohttp": {"load.py"},
    "bm25s": {"bm25.py"},
    "regex": {"bm25.py"},
}
TOPS = ("face", "runtime", "optimize", "cli")
FILES = [path for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))]
FOLDERS = sorted({path.parent for path in FILES})


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def room_of(module: str) -> str | None:
    """The room that a module lies in: the longest name of one that it begins with."""
    return max(
        (room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len, default=None
    )


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("xopt", *parts)).replace("xopt.face", "xopt").removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(name_of(path))
    if room is None:  # what offers users what they import, of all rooms
        assert name_of(path) in ("xopt", "xopt.runtime", "xopt.__main__")
        return
    for name in imported(path):
        other = room_of(name)
        if other is not None and other != room:
            assert ROOMS.index(other) < ROOMS.index(room), f"{name_of(path)} imports {name}"
            assert not {room, other} <= set(STRANGERS), f"{name_of(path)} imports {name}"


def test_serving_needs_no_frames_and_no_jobs() -> None:
    for path in sorted((ROOT / "runtime" / "serve").glob("*.py")):
        rooms = {room_of(name) for name in imported(path)} - {None, "xopt.runtime.serve"}
        above = {room for room in rooms if room not in ROOMS[: len(GROUND)]}
        assert above <= set(SERVED_BY), name_of(path)


@pytest.mark.parametrize("library", OWNERS)
def test_few_modules_import_a_large_library(library: str) -> None:
    runtime = [path for path in FILES if name_of(path).startswith("xopt.runtime")]
    assert {
        p.name for p in runtime if any(n.split(".")[0] == library for n in imported(p))
    } == OWNERS[library]


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_comprehension_stands_in_another(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, COMPREHENSIONS):
            within = [each for each in ast.walk(node) if isinstance(each, COMPREHENSIONS)]
            assert within == [node], f"line {node.lineno}"


def test_every_folder_is_installed() -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [name for folder in FOLDERS if f'"{(name := name_of(folder))}"' not in listed] == []


def test_the_tree_stays_small() -> None:
    tracked = [p for p in (ROOT / "models" / "demo").iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in tracked) < 6 << 20
