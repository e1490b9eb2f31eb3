from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from helpers.tiny import make_modular, make_tiny
from huggingface_hub import ModelCard

from xopt.optimize.card import OURS, write_card
from xopt.optimize.export import export
from xopt.optimize.model.parity import parity_pairs
from xopt.optimize.quantize import quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.variants import variants_on

PAIRS = parity_pairs(60)
TAU = {"mean": 0.968, "low": 0.955, "high": 0.974}
FOUND = {
    "recommended": "onnx-int8-portable",
    "data": "demo",
    "queries": 32,
    "pairs": 800,
    "bench_pairs": 160,
    "threads": 2,
    "versions": {"torch": "2.13.0", "onnxruntime": "1.32.0"},
    "variants": {
        "onnx-fp32": {
            "verdict": "pass",
            "ratio": 4.7,
            "measures": {"tau": {"mean": 1.0, "low": 1.0, "high": 1.0}},
        },
        "onnx-int8-portable": {
            "verdict": "pass",
            "ratio": 8.25,
            "measures": {"tau": {"mean": 0.968, "low": 0.955, "high": 0.974}},
        },
        "gone": {"verdict": "fail", "ratio": 12.0, "measures": {}},
    },
}


def measured(folder: ModelFolder, found: dict[str, Any] = FOUND) -> ModelFolder:
    return folder.write(lambda manifest: replace(manifest, measured={"AMD EPYC x 2": found}))


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory, calibration: Candidates) -> ModelFolder:
    """A tiny model whose graphs are for any runtime."""
    root = tmp_path_factory.mktemp("portable")
    made = export(str(make_tiny(root / "bert")), root / "bert-xopt", portable=True)
    return measured(quantize(made, recipe_for("", "portable"), calibration))


def test_a_card_says_what_a_hub_reads_and_what_was_measured(portable: ModelFolder) -> None:
    file = write_card(portable, "you/bert-ONNX", base_model="them/bert")
    card = ModelCard(file.read_text(encoding="utf-8"))
    data: dict[str, Any] = card.data.to_dict()
    assert data == {
        "base_model": "them/bert",
        "base_model_relation": "quantized",
        "library_name": "sentence-transformers",
        "pipeline_tag": "text-ranking",
        "tags": [
            "sentence-transformers",
            "cross-encoder",
            "reranker",
            "onnx",
            "transformers.js",
            "openvino",
            "xopt",
        ],
    }
    rows = [line for line in card.text.splitlines() if line.startswith("| onnx")]
    assert rows == [
        "| onnx-int8-portable | `onnx/model_quantized.onnx` | 8.2 x "
        "| 0.968 [0.955, 0.974] |  |  | pass, recommended |",
        "| onnx-fp32 | `onnx/model.onnx` | 4.7 x | 1.000 |  |  | pass |",
    ]
    for part in (
        "AMD EPYC x 2, 2 threads",
        "32 queries",
        "torch 2.13.0, onnxruntime 1.32.0.",
        'dtype: "q8"',
        "fastembed",
    ):
        assert part in card.text
    assert 'CrossEncoder("you/bert-ONNX", backend="onnx"' in card.text
    assert card.text.count("ONNX's own, for any runtime") == 2
    assert str(portable.path) not in card.text


def test_a_card_is_written_again_and_no_one_elses_is_replaced(tiny_copy: ModelFolder) -> None:
    with pytest.raises(BadInput, match="nothing was measured; run `xopt optimize"):
        write_card(tiny_copy, "you/bert")
    folder, file = measured(tiny_copy), tiny_copy.path / "README.md"
    write_card(folder, "you/bert")
    text = write_card(folder, "you/other").read_text(encoding="utf-8")
    assert "you/other" in text
    # it was made of a folder, and nobody said which
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert "onnxruntime's own too (" in text
    file.write_text(text.replace(OURS, "Mine"), encoding="utf-8")
    with pytest.raises(BadInput, match="was not written by xopt; `force=True` replaces it"):
        write_card(folder, "you/bert")
    assert "Mine" in file.read_text(encoding="utf-8")
    assert OURS in write_card(folder, "you/bert", force=True).read_text(encoding="utf-8")


def test_a_card_of_modules_names_no_tool_that_cannot_load_them(tmp_path: Path) -> None:
    made = measured(
        export(str(make_modular(tmp_path / "model", "qwen3", "lasttoken")), tmp_path / "out")
    )
    text = write_card(made, "you/model").read_text(encoding="utf-8")
    assert 'backend="onnx"' not in text
    assert "fastembed" not in text
    assert "padded on the left" in text
    assert "transformers.js" not in ModelCard(text).data.to_dict()["tags"]


def test_the_card_of_several_labels_is_of_classification_where_none_ranks(tmp_path: Path) -> None:
    of_labels = {"labels": {"mean": 0.99, "low": 0.985, "high": 0.995}}
    judged = {
        "torch-fp32": {"verdict": "pass", "ratio": 1.5, "measures": {"tau": TAU, **of_labels}}
    }
    for label, task, shown in (
        ("none", "text-classification", "0.990 [0.985, 0.995] | pass"),
        ("1-0", "text-ranking", "0.968 [0.955, 0.974] |  |  | pass"),
    ):
        made = export(
            str(make_tiny(tmp_path / f"model{label}", labels=3)),
            tmp_path / label,
            rank_label=label,
            torch_only=True,
        )
        card = ModelCard(
            write_card(measured(made, {**FOUND, "variants": judged}), "a/b").read_text()
        )
        assert card.data.to_dict()["pipeline_tag"] == task
        assert f"| torch-fp32 | `model.safetensors` | 1.5 x | {shown} |" in card.text


def test_portable_graphs_have_no_runtimes_own_operators_and_score_alike(
    portable: ModelFolder,
) -> None:
    reference = open_scorer(portable, "torch-fp32").score(PAIRS)
    for name, alike in (("onnx-fp32", 1 - 1e-6), ("onnx-int8-portable", 0.95)):
        graph = onnx.load(portable.path / portable.variant(name).file)
        onnx.checker.check_model(graph, full_check=True)
        assert {node.domain for node in graph.graph.node} == {""}
        assert [opset.domain for opset in graph.opset_import] == [""]
        assert np.corrcoef(open_scorer(portable, name).score(PAIRS), reference)[0, 1] > alike
    assert "onnx-int8-portable" in variants_on(portable, "cpu")
    recipe = portable.variant("onnx-int8-portable").recipe
    assert (recipe["target"], recipe["weight_bits"]) == ("any", 7)  # which no processor saturates


def test_the_command_writes_it(portable: ModelFolder, xopt: Callable[..., Result]) -> None:
    result = xopt("card", portable.path, "--repo", "you/cards", "--json", "-")
    assert result.exit_code == 0, result.output
    assert '"card":' in result.stdout
    assert "you/cards" in (portable.path / "README.md").read_text(encoding="utf-8")
    assert (
        xopt(
            "quantize", portable.path, "--int8", "--scheme", "portable", "--target", "avx2"
        ).exit_code
        == 2
    )
