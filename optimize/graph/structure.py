"""ONNX graphs of any size, read, rebuilt, run and written.

A protobuf message holds 2 GB. What is larger has its weights in a second file, named as other
exporters name it: `model.onnx` and `model.onnx_data`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime as ort
from onnx import external_data_helper, helper

from xopt.runtime.errors import BadInput
from xopt.runtime.files import new_file
from xopt.runtime.folder import data_file

__all__ = [
    "SMALL",
    "all_reads",
    "import_microsoft",
    "makers",
    "needed_for",
    "open_session",
    "outer_reads",
    "read_graph",
    "read_structure",
    "readers",
    "rebuilt",
    "write_graph",
]

SMALL = 64  # entries of a constant that may say how an operator works: a shape, an index, an axis
LIMIT_BYTES = 1_900_000_000  # of weights in a graph's own file
ALIGNED_BYTES = 4096  # a weight starts at a multiple: it can be mapped into memory


def read_structure(file: Path) -> onnx.ModelProto:
    """A graph whose weights may stay in their own file; constants that say how operators work are
    read.
    """
    model = onnx.load(file, load_external_data=False)
    values = [
        a.t
        for node in model.graph.node
        for a in node.attribute
        if a.type == onnx.AttributeProto.TENSOR
    ]
    _read_data(file, (*values, *(t for t in model.graph.initializer if math.prod(t.dims) <= SMALL)))
    return model


def read_graph(file: Path) -> onnx.ModelProto:
    """A graph with its weights, wherever they stand.

    onnx itself refuses data files that are links, as a hub's cache has them; this one's sha256 is
    checked.
    """
    model = onnx.load(file, load_external_data=False)
    values = [
        a.t
        for node in model.graph.node
        for a in node.attribute
        if a.type == onnx.AttributeProto.TENSOR
    ]
    _read_data(file, (*values, *model.graph.initializer))
    return model


def _read_data(file: Path, tensors: Iterable[onnx.TensorProto]) -> None:
    """Bring the values of tensors into the graph that stand in a data file beside it."""
    for tensor in tensors:
        if external_data_helper.uses_external_data(tensor):
            info = external_data_helper.ExternalDataInfo(tensor)
            if Path(info.location).name != info.location:
                raise BadInput(
                    f"{file}: has weights in {info.location!r}, which is not beside it; export it again"
                )
            with (file.parent / info.location).open("rb") as stream:
                stream.seek(info.offset or 0)
                tensor.raw_data = stream.read(info.length or -1)
            tensor.ClearField("data_location")
            del tensor.external_data[:]


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """By tensor, the node that makes it."""
    return {output: node for node in model.graph.node for output in node.output}


def readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """By tensor, the nodes that read it, in their branches too."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in {*node.input, *outer_reads(node)}:
            found[name].append(node)
    return found


def outer_reads(node: onnx.NodeProto) -> set[str]:
    """Names that the branches of an If or the body of a Loop read, some of them from the graph
    around.
    """
    bodies = [
        attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH
    ]
    inner = [n for body in bodies for n in body.node]
    results = [output.name for body in bodies for output in body.output]
    return {
        *results,
        *(name for n in inner for name in n.input),
        *(name for n in inner for name in outer_reads(n)),
    }


def needed_for(nodes: Iterable[onnx.NodeProto], tensors: Iterable[str]) -> list[onnx.NodeProto]:
    """Of nodes in the graph's order those that `tensors` are made with."""
    needed, kept = set(tensors), []
    for node in reversed(list(nodes)):
        if needed & set(node.output):
            kept.append(node)
            needed |= {*node.input, *outer_reads(node)}
    return kept[::-1]


def all_reads(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The names of all tensors that nodes read, in their branches too."""
    return {name for node in nodes for name in (*node.input, *outer_reads(node))}


def rebuilt(
    model: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    initializers: Iterable[onnx.TensorProto],
    value_info: Iterable[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A model with the inputs and outputs of `model` and other insides."""
    graph = model.graph
    made = helper.make_graph(
        list(nodes),
        graph.name,
        graph.input,
        graph.output,
        list(initializers),
        value_info=list(value_info),
    )
    return helper.make_model(
        made,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=model.functions,
    )


def import_microsoft(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which may now use onnxruntime's own operators."""
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session on the CPU for a graph in memory, whose weights may leave it."""
    if _weight_bytes(model) <= LIMIT_BYTES:
        return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with TemporaryDirectory(prefix="xopt-graph-") as scratch:
        write_graph(model, Path(scratch) / "model.onnx")
        return ort.InferenceSession(
            str(Path(scratch) / "model.onnx"), providers=["CPUExecutionProvider"]
        )


def write_graph(model: onnx.ModelProto, file: Path) -> None:
    """Write `file`, whole or not at all, and its data file where the weights need one, which then
    leave `model`.
    """
    data = data_file(file)
    if _weight_bytes(model) <= LIMIT_BYTES:
        with new_file(file) as temporary:
            onnx.save(model, temporary)
        data.unlink(missing_ok=True)
        return
    with new_file(data) as temporary, temporary.open("wb") as stream:
        for tensor in model.graph.initializer:
            if math.prod(tensor.dims) > SMALL and tensor.HasField("raw_data"):
                stream.seek(-stream.tell() % ALIGNED_BYTES, 1)
                external_data_helper.set_external_data(
                    tensor, data.name, stream.tell(), len(tensor.raw_data)
                )
                stream.write(tensor.raw_data)
                tensor.ClearField("raw_data")
    with new_file(file) as temporary:
        onnx.save(model, temporary)


def _weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)
