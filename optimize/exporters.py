"""Exporters: make the ONNX graph of a network with torch or optimum.

torch takes every kind of CrossEncoder, on transformers 4 and 5. optimum takes transformers with a
classification head, on transformers before 4.58.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch

from xopt.optimize.graph.structure import read_graph
from xopt.optimize.model.bands import use_bands
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.machine import has_module
from xopt.runtime.scoring.backends.network import Network

__all__ = ["EXPORTERS", "OPSET", "export_graph"]

log = logging.getLogger(__name__)

OPSET = 18
EXPORTERS = ("torch", "optimum")
ANSI_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MODULES_NOTE = "pkg.torch.onnx.name_scopes"  # torch's key for the modules of a node
# What `Network` and sentence-transformers add to the names of a model's modules.
WRAPPERS = re.compile(r"^encoder\.(0\.model\.)?")


def export_graph(
    network: Network, inputs: Sequence[str], exporter: str | None
) -> tuple[onnx.ModelProto, str]:
    """Return the graph of `network` over `inputs`, int64[batch, width], and its exporter.

    That is torch unless given, and optimum where torch fails. Raises BadInput where the
    architecture cannot be exported. DeBERTa's attentions change: see `use_bands`.
    """
    banded = use_bands(network.encoder.model)
    log.info("export: %d attentions make their scores by position in bands", banded)
    if exporter == "optimum":
        return _export_with_optimum(network), "optimum"
    try:
        return _export_with_torch(network, inputs), "torch"
    except Exception as error:  # each architecture fails in its own way
        reason = _root_cause(error)
        # Of rotary positions that depend on the length, optimum's trace keeps one branch.
        optimum_can = (
            network.classifies
            and not network.rotates_by_length
            and has_module("optimum.exporters.onnx")
        )
        if exporter == "torch" or not optimum_can:
            raise _not_exportable(network, "torch", reason) from error
        log.warning("export: torch cannot export %s (%s); optimum does it", network.kind, reason)
    return _export_with_optimum(network), "optimum"


def _not_exportable(network: Network, exporter: str, reason: str) -> BadInput:
    return BadInput(
        f"{network.kind}: {exporter} cannot export this architecture ({reason}); "
        "`torch_only=True` leaves ONNX out"
    )


def _root_cause(error: BaseException) -> str:
    """Return what went wrong first, in a line without terminal colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return ANSI_COLOURS.sub("", first_line(error))


def _export_with_torch(network: Network, inputs: Sequence[str]) -> onnx.ModelProto:
    # A dimension of 1 would become a constant, one tensor given twice one input.
    examples = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in inputs)
    with _silenced():
        program = torch.onnx.export(
            network,
            examples,
            dynamo=True,
            dynamic_shapes=({0: "batch", 1: "width"},) * len(inputs),
            opset_version=OPSET,
            external_data=False,
            input_names=list(inputs),
            output_names=["logits"],
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing")
    model = program.model_proto
    _name_by_module(model.graph)
    return model


def _export_with_optimum(network: Network) -> onnx.ModelProto:
    try:
        from optimum.exporters.onnx import onnx_export_from_model
    except ImportError as error:
        raise BadInput(
            "`exporter=\"optimum\"` needs optimum: pip install 'xopt-rerank[optimum]'"
        ) from error
    if not network.classifies:
        raise BadInput(
            f'{network.kind}: optimum exports classification heads only; use `exporter="torch"`'
        )
    with TemporaryDirectory(prefix="xopt-optimum-") as scratch, _silenced():
        try:
            onnx_export_from_model(
                network.encoder.model,
                Path(scratch),
                opset=OPSET,
                task="text-classification",
                do_validation=False,
            )
        except Exception as error:  # each architecture fails in its own way
            raise _not_exportable(network, "optimum", _root_cause(error)) from error
        return read_graph(Path(scratch) / "model.onnx")


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Hide what exporters log and print."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _name_by_module(graph: onnx.GraphProto) -> None:
    """Name nodes, tensors and weights by their modules, for messages and recipes."""
    new_names = {weight.name: WRAPPERS.sub("", weight.name) for weight in graph.initializer}
    outputs = {output.name for output in graph.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        module = _module_of(node)
        name = f"/{module}/{node.op_type}" if module else f"/{node.op_type}"
        node.name = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1
        for number, output in enumerate(node.output):
            if output not in outputs:
                new_names[output] = f"{node.name}_output_{number}"
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        node.output[:] = [new_names.get(name, name) for name in node.output]
    for weight in graph.initializer:
        weight.name = new_names[weight.name]
    graph.ClearField("value_info")


def _module_of(node: onnx.NodeProto) -> str:
    """Return the path of a node's module, such as `bert/encoder/layer.0`."""
    for note in node.metadata_props:
        if note.key == MODULES_NOTE:
            modules = ast.literal_eval(note.value)[:-1]  # the last one is the node itself
            inner = [module for module in modules if module]
            if inner:
                return re.sub(r"\.(?!\d)", "/", WRAPPERS.sub("", inner[-1]))
    return ""
