from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import transformers
from tiny import ARCHITECTURES, make_logit_score, make_modular, make_tiny

from xopt.optimize.exporters import EXPORTERS, export_graph
from xopt.optimize.graph.one_row import keep_one_row
from xopt.optimize.graph.structure import read_structure
from xopt.runtime.machine import has_module
from xopt.runtime.scoring.backends.network import Network, load_encoder

EXACT = 1e-5


THERE = [exporter for exporter in EXPORTERS if exporter == "torch" or has_module("optimum.exporters.onnx")]


def graph_of(folder: Path, exporter: str = "torch") -> onnx.ModelProto:
    """The graph as an exporter makes it, before any rewrite."""
    encoder = load_encoder(folder, attn_implementation="eager")
    names = encoder.tokenizer.model_input_names
    inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in names]
    return export_graph(Network(encoder), inputs, exporter)[0]


def as_bert(architecture: str) -> bool:
    """Whether its attention has BERT's shape; the others add biases, windows or rotations."""
    alike = {"bert", "electra", "roberta", "xlm-roberta", "camembert"}
    return architecture in alike or (architecture == "distilbert" and not transformers.__version__.startswith("4."))


def exported(architecture: str, exporter: str) -> onnx.ModelProto:
    """The graph of a tiny model, to change; all tests of rewrites share the export, which takes longer than they do."""
    return onnx.load_from_string(_exported(architecture, exporter))


@functools.cache
def _exported(architecture: str, exporter: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        model = make_tiny(Path(scratch) / architecture, architecture, max_position_embeddings=514)
        return bytes(graph_of(model, exporter).SerializeToString())


def make_decoder(folder: Path) -> Path:
    return make_tiny(folder, "llama")


def make_last_token(folder: Path) -> Path:
    return make_modular(folder, "qwen3", "lasttoken")


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def logits(session: ort.InferenceSession, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    out: np.ndarray = session.run(["logits"], {n.name: values[n.name] for n in session.get_inputs()})[0]
    return out


@pytest.mark.parametrize("exporter", THERE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_sees_one_row_and_no_score_changes(architecture: str, exporter: str) -> None:
    model = exported(architecture, exporter)
    narrow, products = keep_one_row(model)
    onnx.checker.check_model(narrow)
    # Query, attention's two, its output, and the feed-forward block's two. ModernBERT makes query, key and value in one
    # product, and DeBERTa's scores are put together from three in a shape that hides their rows.
    assert products >= {"deberta-v2": 4, "modernbert": 5}.get(architecture, 6)
    before, after = session_of(model), session_of(narrow)
    rng = np.random.default_rng(0)
    for width in (2, 3, 7, 16, 33, 128, 512):
        ids = rng.integers(5, 40, (4, width))
        mask = (np.arange(width) < rng.integers(2, width + 1, (4, 1))).astype(np.int64)
        assert np.abs(logits(before, ids, mask) - logits(after, ids, mask)).max() < EXACT


@pytest.mark.parametrize("make", [make_decoder, make_logit_score, make_last_token])
def test_the_last_layer_of_a_decoder_sees_the_last_token_and_no_score_changes(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    model = graph_of(make(tmp_path / "model"))
    narrow, products = keep_one_row(model)
    onnx.checker.check_model(narrow)
    assert products == 7  # query, attention's two, its output, and the feed-forward block's three
    before, after = session_of(model), session_of(narrow)
    rng = np.random.default_rng(0)
    for width in (1, 2, 7, 33):
        ids = rng.integers(5, 40, (4, width))
        mask = (np.arange(width) >= width - rng.integers(1, width + 1, (4, 1))).astype(np.int64)  # padded on the left
        assert np.abs(logits(before, ids, mask) - logits(after, ids, mask)).max() < EXACT


def test_a_head_that_reads_all_rows_keeps_them(tmp_path: Path) -> None:
    model = graph_of(make_tiny(tmp_path, "modernbert", classifier_pooling="mean"))
    same, products = keep_one_row(model)
    assert products == 0
    assert same is model


def test_weights_may_stay_in_a_file_of_their_own(tmp_path: Path) -> None:
    model, file = graph_of(make_tiny(tmp_path / "bert", "bert")), tmp_path / "model.onnx"
    whole, products = keep_one_row(model)
    onnx.save(model, file, save_as_external_data=True, size_threshold=0, convert_attribute=True)
    narrow, same = keep_one_row(read_structure(file))
    assert same == products > 0
    assert list(narrow.graph.node) == list(whole.graph.node)
    onnx.save(narrow, file)
    ids = np.full((2, 8), 5, np.int64)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert np.array_equal(logits(session, ids, np.ones_like(ids)), logits(session_of(whole), ids, np.ones_like(ids)))
