"""The ONNX graph of a network, by torch's exporter or by optimum's.

torch's (`torch.onnx.export(dynamo=True)`) takes every kind of CrossEncoder, on transformers 4 and
5. optimum's takes a transformer with its classification head, and transformers before 4.58.
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
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.machine import has_module
from xopt.runtime.scoring.backends.network import Network

__all__ = ["EXPORTERS", "OPSET", "export_graph"]

log = logging.getLogger(__name__)

OPSET = 18
EXPORTERS = ("torch", "optimum")
NOISY = (
    "torch.onnx",
    "torch.export",
    "torch.fx",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SCOPES = "pkg.torch.onnx.name_scopes"  # torch's note of the modules that a node comes from
# what stands around a model: the network, and sentence-transformers
OUTER = re.compile(r"^encoder\.(0\.model\.)?")


def export_graph(
    network: Network, inputs: Sequence[str], exporter: str | None
) -> tuple[onnx.ModelProto, str]:
    """The graph of `network` over int64[batch, width] `inputs`, and which of `EXPORTERS` made it.

    Unless named, that is torch's; and optimum's where torch's fails and optimum is installed.
    Raises BadInput where the architecture cannot be exported.
    """
    if exporter == "optimum":
        return _by_optimum(network), exporter
    try:
        return _by_torch(network, inputs), "torch"
    except Exception as error:  # each architecture fails in its own way
        reason = _cause(error)
        # Tracing keeps one branch of positions that turn by the length of their batch, and is
        # right on that side only.
        able = (
            network.classifies
            and not network.turns_by_length
            and has_module("optimum.exporters.onnx")
        )
        if exporter or not able:
            raise _unable(network, "torch", reason) from error
        log.warning("export: torch cannot export %s (%s); optimum does it", network.kind, reason)
    return _by_optimum(network), "optimum"


def _unable(network: Network, exporter: str, reason: str) -> BadInput:
    return BadInput(
        f"{network.kind}: {exporter} cannot export this architecture ({reason}); --torch-only leaves ONNX out"
    )


def _cause(error: BaseException) -> str:
    """What went wrong at the bottom of an exporter's error, in a line without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return COLOURS.sub("", first_line(error))


def _by_torch(network: Network, inputs: Sequence[str]) -> onnx.ModelProto:
    # A dimension of 1 would be taken for a constant, one tensor given twice for one input.
    tokens = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in inputs)
    with _quiet():
        program = torch.onnx.export(
            network,
            tokens,
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
    return _named(program.model_proto)


def _by_optimum(network: Network) -> onnx.ModelProto:
    try:
        from optimum.exporters.onnx import onnx_export_from_model
    except ImportError as error:
        raise BadInput(
            "--exporter optimum needs optimum: pip install 'xopt-rerank[optimum]'"
        ) from error
    if not network.classifies:
        raise BadInput(
            f"{network.kind}: optimum exports classification heads only; use --exporter torch"
        )
    with TemporaryDirectory(prefix="xopt-optimum-") as scratch, _quiet():
        try:
            onnx_export_from_model(
                network.encoder.model,
                Path(scratch),
                opset=OPSET,
                task="text-classification",
                do_validation=False,
            )
        except Exception as error:  # each architecture fails in its own way
            raise _unable(network, "optimum", _cause(error)) from error
        return read_graph(Path(scratch) / "model.onnx")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep an exporter's advice to its own authors off the terminal; the parity check judges the
    result.
    """
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes, tensors and weights named by the modules that they come from, as tracing names them.

    Messages and recipes name them. torch's notes of source lines go.
    """
    graph, kept = model.graph, {value.name for value in (*model.graph.input, *model.graph.output)}
    weights = {tensor.name: OUTER.sub("", tensor.name) for tensor in graph.initializer}
    renamed = weights if len(set(weights.values())) == len(weights) else {}
    names: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((note.value for note in node.metadata_props if note.key == SCOPES), "['']")
        module = next((path for path in reversed(ast.literal_eval(scopes)[:-1]) if path), "")
        path = re.sub(r"\.(?!\d)", "/", OUTER.sub("", module))
        name = "/".join(["", *([path] if path else []), node.op_type])
        node.name = f"{name}_{names[name]}" if names[name] else name
        names[name] += 1
        renamed |= {
            output: f"{node.name}_output_{i}"
            for i, output in enumerate(node.output)
            if output not in kept
        }
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    graph.ClearField("value_info")
    return model
