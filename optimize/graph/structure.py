"""ONNX graphs of any size: reading, looking up, rebuilding, running and writing them.

A protobuf message holds 2 GB. A larger graph keeps its weights in a second file, `model.onnx_data`
beside `model.onnx`, which is the name that other exporters use.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    external_data_helper,
    helper,
    numpy_helper,
)

from xopt.runtime.errors import BadInput
from xopt.runtime.files import new_file
from xopt.runtime.folder import data_file

__all__ = [
    "SMALL",
    "GraphIndex",
    "GraphWriter",
    "branch_reads",
    "copied",
    "errors_only",
    "import_microsoft",
    "needed_for",
    "open_session",
    "read_graph",
    "rebuilt",
    "with_graph",
    "write_graph",
]

SMALL = 64  # entries of a constant that may say how an operator works: a shape, an index, an axis
LIMIT_BYTES = 1_900_000_000  # of weights in a graph's own file
ALIGNED_BYTES = 4096  # a weight starts at a multiple: it can be mapped into memory
PROVIDERS = ["CPUExecutionProvider"]


class GraphIndex:
    """The node that makes a tensor, the nodes that read it, and the constants, by name.

    Methods raise LookupError for what is not there.
    """

    def __init__(self, model: ModelProto) -> None:
        self.producers: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            for name in node.output:
                self.producers[name] = node
            for name in _reads(node):
                self.consumers[name].append(node)

    def producer(self, name: str, operator: str) -> NodeProto:
        node = self.producers[name]
        if node.op_type != operator:
            raise LookupError(name)
        return node

    def only_consumer(self, node: NodeProto, operator: str) -> NodeProto:
        """The node of type `operator` that alone reads a node's output."""
        consumers = self.consumers[node.output[0]]
        if len(consumers) != 1 or consumers[0].op_type != operator:
            raise LookupError(node.output[0])
        return consumers[0]

    def constant(self, name: str) -> NDArray[Any]:
        node = self.producers.get(name)
        if node is None:
            return numpy_helper.to_array(self.initializers[name])
        if node.op_type == "Identity":  # a second name
            return self.constant(node.input[0])
        if node.op_type != "Constant":
            raise LookupError(name)
        value = helper.get_attribute_value(node.attribute[0])
        if isinstance(value, TensorProto):
            return numpy_helper.to_array(value)
        return np.asarray(value)

    def is_constant(self, name: str) -> bool:
        try:
            self.constant(name)
        except LookupError:
            return False
        return True


@dataclass
class GraphWriter:
    """Nodes and constants as they are written. Methods return the name of what they wrote."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value, order="C")
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output


def _reads(node: NodeProto) -> set[str]:
    return {*node.input, *branch_reads(node)}


def branch_reads(node: NodeProto) -> set[str]:
    """Names that the branches of an If or the body of a Loop read, their own included."""
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names.update(output.name for output in attribute.g.output)
            names.update(*map(_reads, attribute.g.node))
    return names


def needed_for(nodes: Iterable[NodeProto], tensors: Iterable[str]) -> list[NodeProto]:
    """Select those nodes, in the graph's order, that `tensors` are computed from."""
    needed = set(tensors)
    kept = []
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _reads(node)
    return kept[::-1]


def copied(node: NodeProto, inputs: Iterable[str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = inputs
    return copy


def rebuilt(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    *,
    constants: Mapping[str, NDArray[Any]] | None = None,
    value_info: Iterable[ValueInfoProto] = (),
    outputs: Sequence[str] = (),
) -> ModelProto:
    """Build a model of other nodes, with `constants` beside the initializers that they read.

    `outputs`, float tensors, take the place of the model's outputs.
    """
    graph = model.graph
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    results = made or graph.output
    read = {result.name for result in results}.union(*map(_reads, nodes))
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    tensors += [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    return with_graph(
        model,
        helper.make_graph(
            nodes, graph.name, graph.input, results, tensors, value_info=list(value_info)
        ),
    )


def with_graph(model: ModelProto, graph: GraphProto) -> ModelProto:
    return helper.make_model(
        graph,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=model.functions,
    )


@contextlib.contextmanager
def errors_only(logger_name: str = "") -> Iterator[None]:
    """Silence a logger, the root unless named, below errors."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def import_microsoft(model: ModelProto) -> ModelProto:
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def read_graph(file: Path) -> ModelProto:
    """Read a graph and the weights in its data file.

    onnx itself refuses data files that are links, which a hub's cache has. Here their sha256 is
    checked. Raises BadInput where the data file is in another folder.
    """
    model = onnx.load(file, load_external_data=False)
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    tensors = [a.t for a in attributes if a.type == AttributeProto.TENSOR]
    for tensor in [*tensors, *model.graph.initializer]:
        if external_data_helper.uses_external_data(tensor):
            info = external_data_helper.ExternalDataInfo(tensor)
            if Path(info.location).name != info.location:
                raise BadInput(
                    f"{file}: has weights in {info.location!r}, which is not beside it; export it "
                    "again"
                )
            with (file.parent / info.location).open("rb") as stream:
                stream.seek(info.offset or 0)
                tensor.raw_data = stream.read(info.length or -1)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    return model


def open_session(model: ModelProto) -> ort.InferenceSession:
    """Open a session on the CPU. Weights over the limit leave `model`."""
    if _weight_bytes(model) <= LIMIT_BYTES:
        return ort.InferenceSession(model.SerializeToString(), providers=PROVIDERS)
    with TemporaryDirectory(prefix="xopt-graph-") as scratch:
        file = Path(scratch) / "model.onnx"
        write_graph(model, file)
        return ort.InferenceSession(str(file), providers=PROVIDERS)


def write_graph(model: ModelProto, file: Path) -> None:
    """Write `file`, whole or not at all. Weights over the limit leave `model` for a data file."""
    data = data_file(file)
    is_large = _weight_bytes(model) > LIMIT_BYTES
    if is_large:
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
    if not is_large:
        data.unlink(missing_ok=True)


def _weight_bytes(model: ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)
