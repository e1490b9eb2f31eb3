"""Graphs of tiny models before any rewrite, and what they give."""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import transformers

from helpers.tiers import SLOW
from helpers.tiny import ARCHITECTURES, make_tiny
from xopt.optimize.exporters import EXPORTERS, export_graph
from xopt.runtime.machine import has_module
from xopt.runtime.scoring.backends.network import Network, load_encoder

EXACT = 1e-5
THERE = [
    exporter
    for exporter in EXPORTERS
    if exporter == "torch" or has_module("optimum.exporters.onnx")
]
QUICK = {
    ("bert", "torch"),
    ("bert", "optimum"),
    ("distilbert", "torch"),
    ("deberta-v2", "torch"),
    ("modernbert", "torch"),
}
GRAPHS = [  # every architecture by every exporter, for `parametrize`
    pytest.param(*graph, marks=[] if graph in QUICK else SLOW)
    for graph in itertools.product(ARCHITECTURES, THERE)
]


def graph_of(folder: Path, exporter: str = "torch") -> onnx.ModelProto:
    """The graph as an exporter makes it, before any rewrite."""
    encoder = load_encoder(folder, attn_implementation="eager")
    names = encoder.tokenizer.model_input_names
    inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in names]
    return export_graph(Network(encoder), inputs, exporter)[0]


def as_bert(architecture: str) -> bool:
    """Whether its attention has BERT's shape; others add biases or windows, or rotate."""
    alike = {"bert", "electra", "roberta", "xlm-roberta", "camembert"}
    return architecture in alike or (
        architecture == "distilbert" and not transformers.__version__.startswith("4.")
    )


def exported(architecture: str, exporter: str) -> onnx.ModelProto:
    """The graph of a tiny model, to change; all tests of rewrites share the export, which takes
    longer than they do.
    """
    return onnx.load_from_string(_exported(architecture, exporter))


@functools.cache
def _exported(architecture: str, exporter: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        model = make_tiny(Path(scratch) / architecture, architecture, max_position_embeddings=514)
        return bytes(graph_of(model, exporter).SerializeToString())


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def optimised(model: onnx.ModelProto, folder: Path) -> tuple[ort.InferenceSession, list[str]]:
    """Open a session, and return it with the operators that onnxruntime makes of the graph."""
    file = folder / "optimised.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(file)
    options.log_severity_level = 3  # that the file fits this machine alone
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session, [node.op_type for node in onnx.load(file).graph.node]


def logits(session: ort.InferenceSession, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    out: np.ndarray = session.run(
        ["logits"], {n.name: values[n.name] for n in session.get_inputs()}
    )[0]
    return out
