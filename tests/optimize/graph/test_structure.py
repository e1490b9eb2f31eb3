from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from xopt.optimize.graph import structure as module
from xopt.optimize.graph.structure import write_graph
from xopt.optimize.half import halve
from xopt.optimize.quantize import quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ONNX_FILE, ModelFolder, data_file


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs hold so little that any model's weights need a file of their own."""
    monkeypatch.setattr(module, "LIMIT_BYTES", 1000)


@pytest.mark.parametrize("scheme", ["per-token", "stock"])
def test_a_model_over_the_limit_is_quantised_as_any_other(
    tiny_copy: ModelFolder, docs: Candidates, small_limit: None, scheme: str
) -> None:
    recipe = recipe_for("avx2", scheme)
    name = recipe.variant.name
    with pytest.MonkeyPatch.context() as unlimited:
        unlimited.setattr(module, "LIMIT_BYTES", 1 << 30)
        expected = open_scorer(quantize(tiny_copy, recipe, docs).path, name).score(docs.pairs)
    write_graph(onnx.load(tiny_copy.path / ONNX_FILE), tiny_copy.path / ONNX_FILE)
    source = tiny_copy.with_variant(tiny_copy.variant("onnx-fp32"))
    made = quantize(source, recipe, docs)
    data = data_file(made.path / recipe.file)
    assert (made.path / recipe.file).stat().st_size < data.stat().st_size < made.size_bytes(name)
    assert np.array_equal(open_scorer(made.path, name).score(docs.pairs), expected)
    damaged = bytearray(data.read_bytes())
    damaged[-1] ^= 1
    data.write_bytes(damaged)
    with pytest.raises(BadInput, match=f"{data.name}: sha256 differs"):
        open_scorer(made.path, name)


def test_half_of_a_model_over_the_limit_is_a_graph_again(
    tiny_copy: ModelFolder, docs: Candidates
) -> None:
    file = tiny_copy.path / ONNX_FILE
    with pytest.MonkeyPatch.context() as limited:
        limited.setattr(module, "LIMIT_BYTES", 1000)
        write_graph(onnx.load(file), file)
        made = halve(tiny_copy.with_variant(tiny_copy.variant("onnx-fp32")))
    assert data_file(made.path / made.variant("onnx-fp16").file).is_file()
    expected, scores = (
        open_scorer(made.path, v).score(docs.pairs) for v in ("onnx-fp32", "onnx-fp16")
    )
    assert np.abs(scores - expected).max() < 0.05
    write_graph(onnx.load(file), file)  # small enough now: no weights stay behind
    assert not data_file(file).exists()


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_weights_behind_a_link_are_read(
    tiny_copy: ModelFolder,
    docs: Candidates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    link: Callable[..., None],
) -> None:
    file = tiny_copy.path / ONNX_FILE
    monkeypatch.setattr(module, "LIMIT_BYTES", 1000)
    write_graph(onnx.load(file), file)
    made = tiny_copy.with_variant(tiny_copy.variant("onnx-fp32"))
    blob = data_file(file).rename(tmp_path / "blob")  # as a hub's cache has it
    link(data_file(file), blob)
    monkeypatch.undo()
    quantised = quantize(made, recipe_for("avx2", "stock"))
    assert np.isfinite(open_scorer(quantised.path, "onnx-int8-stock").score(docs.pairs[:4])).all()
    assert halve(made).variant("onnx-fp16").file
