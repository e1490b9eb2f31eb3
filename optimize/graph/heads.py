"""Finding attention in a graph: of any kind, and of BERT's shape."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from xopt.optimize.graph.shapes import Dim, tensor_shapes
from xopt.optimize.graph.structure import GraphIndex

__all__ = [
    "HEADS_AND_CHANNELS_FIRST",
    "HEADS_FIRST",
    "Attention",
    "AttentionIndex",
    "Core",
    "find_attentions",
    "find_cores",
    "permutation",
]

# Orders of a Transpose that brings the heads before the tokens, and the keys' channels too.
HEADS_FIRST = [0, 2, 1, 3]
HEADS_AND_CHANNELS_FIRST = [0, 2, 3, 1]

Reshaped = tuple[NodeProto, NodeProto]  # a Reshape and a Transpose, in either order


@dataclass(frozen=True)
class Core:
    """The nodes of one attention from the product of query and key to the joined heads.

    `query` and `value`: [pairs, heads, tokens, channels]. `key`: [pairs, heads, channels, tokens].
    `query_rows`: the query's tokens, where their number is known.
    `scores`: [pairs, heads, query rows, tokens], to which `add_mask` adds `mask`.
    `bias`: what was added to them before, of the same shape; empty where nothing was.
    """

    query: str
    key: str
    value: str
    query_rows: Dim
    heads: int
    head_size: int
    scale: float
    scores: str
    bias: str
    mask: str
    add_mask: NodeProto
    softmax: NodeProto
    join_heads: Reshaped
    nodes: tuple[NodeProto, ...]

    @property
    def output(self) -> str:
        """The heads' results, [pairs, query rows, channels]."""
        return str(self.join_heads[-1].output[0])


@dataclass(frozen=True)
class Attention:
    """An attention of BERT's shape: without biases of its own or rotated queries.

    `inputs`: query, key and value, each [pairs, tokens, channels].
    `nodes`: all nodes from these to the output, in the graph's order.
    """

    core: Core
    inputs: tuple[str, str, str]
    split_query: Reshaped
    nodes: tuple[NodeProto, ...]


def find_attentions(model: ModelProto) -> list[Attention]:
    """Find all attentions of BERT's shape."""
    index = AttentionIndex(model)
    found = []
    for core in find_cores(index):
        # A node is missing, or another than BERT's.
        with contextlib.suppress(LookupError):
            found.append(_split_as_bert(index, core))
    return found


def find_cores(index: AttentionIndex) -> list[Core]:
    """Find the cores of all attentions whose masks are added."""
    found = []
    for node in list(index.producers.values()):
        if node.op_type == "Softmax":
            # A node, a constant or a shape is missing, or another than attention's.
            with contextlib.suppress(LookupError, ValueError):
                found.append(_core_around(index, node))
    return found


class AttentionIndex(GraphIndex):
    """What finding attention asks of a graph. Methods raise LookupError for what is not there."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__(model)
        self.position = {node.output[0]: i for i, node in enumerate(model.graph.node)}
        self.shapes: dict[str, list[Dim]] = tensor_shapes(model)

    def split_heads(self, name: str, order: list[int]) -> Reshaped:
        """The Reshape of [pairs, tokens, channels] into heads, and the Transpose behind it."""
        transpose = self.producer(name, "Transpose")
        _check_order(transpose, order)
        return self.producer(transpose.input[0], "Reshape"), transpose

    def scaled_product(self, add: NodeProto) -> tuple[NodeProto, NodeProto, str]:
        """Return the product of query and key, the node that scales it, and what `add` adds.

        Where nothing scales the product, it stands twice.
        """
        for scores, added in itertools.permutations(add.input):
            scaled = self.producers.get(scores)
            if scaled is None:
                continue
            product = scaled
            if scaled.op_type in ("Div", "Mul"):
                product = self.producers.get(scaled.input[0], scaled)
            if product.op_type == "MatMul":
                return product, scaled, added
        raise LookupError(add.output[0])

    def biased(self, add_mask: NodeProto) -> tuple[NodeProto, str]:
        """Return the node that adds a bias to scores, and the mask that is added then."""
        for scores, mask in itertools.permutations(add_mask.input):
            # The other input is the mask, which no Add of a product makes.
            with contextlib.suppress(LookupError):
                add_bias = self.producer(scores, "Add")
                self.scaled_product(add_bias)
                return add_bias, mask
        raise LookupError(add_mask.output[0])

    def without_other_consumers(self, nodes: Iterable[NodeProto]) -> tuple[NodeProto, ...]:
        """Sort nodes. Raises LookupError where others read more than the last one's output."""
        by_output = {node.output[0]: node for node in nodes}
        ordered = sorted(by_output, key=self.position.__getitem__)
        for name in ordered[:-1]:
            for consumer in self.consumers[name]:
                if consumer.output[0] not in by_output:
                    raise LookupError(name)
        return tuple(by_output[name] for name in ordered)


def _core_around(index: AttentionIndex, softmax: NodeProto) -> Core:
    """Read the attention around a softmax. Raises LookupError or ValueError for another shape."""
    add_mask = index.producer(softmax.input[0], "Add")
    nodes = [add_mask, softmax]
    try:
        product, scaled, mask = index.scaled_product(add_mask)
        scores = scaled.output[0]
        bias = ""
    except LookupError:
        add_bias, mask = index.biased(add_mask)
        product, scaled, bias = index.scaled_product(add_bias)
        scores = add_bias.output[0]
        nodes.insert(0, add_bias)
    weighted = index.only_consumer(softmax, "MatMul")
    transpose = index.only_consumer(weighted, "Transpose")
    reshape = index.only_consumer(transpose, "Reshape")
    _, heads, query_rows, head_size = index.shapes[product.input[0]]
    _, _, channels = index.shapes[reshape.output[0]]
    if not isinstance(heads, int) or not isinstance(head_size, int):
        raise LookupError(product.input[0])
    if heads * head_size != channels or weighted.input[0] != softmax.output[0]:
        raise LookupError(softmax.output[0])
    _check_order(transpose, HEADS_FIRST)
    return Core(
        query=product.input[0],
        key=product.input[1],
        value=weighted.input[1],
        query_rows=query_rows,
        heads=heads,
        head_size=head_size,
        scale=_scale(index, product, scaled),
        scores=scores,
        bias=bias,
        mask=mask,
        add_mask=add_mask,
        softmax=softmax,
        join_heads=(transpose, reshape),
        nodes=(product, scaled, *nodes, weighted, transpose, reshape),
    )


def _split_as_bert(index: AttentionIndex, core: Core) -> Attention:
    """Read where a core's heads come from. Raises LookupError where it is not as in BERT."""
    if core.bias:
        raise LookupError(core.bias)
    query = index.split_heads(core.query, HEADS_FIRST)
    key = index.split_heads(core.key, HEADS_AND_CHANNELS_FIRST)
    value = index.split_heads(core.value, HEADS_FIRST)
    return Attention(
        core=core,
        inputs=(query[0].input[0], key[0].input[0], value[0].input[0]),
        split_query=query,
        nodes=index.without_other_consumers((*query, *key, *value, *core.nodes)),
    )


def _scale(index: AttentionIndex, product: NodeProto, scaled: NodeProto) -> float:
    if scaled is product:
        return 1.0
    factor = float(index.constant(scaled.input[1]).item())  # ValueError where it is no scalar
    return 1 / factor if scaled.op_type == "Div" else factor


def _check_order(transpose: NodeProto, order: list[int]) -> None:
    if permutation(transpose) != order:
        raise LookupError(transpose.name)


def permutation(transpose: NodeProto) -> list[int]:
    """Return the order in which a Transpose puts the axes."""
    return list(transpose.attribute[0].ints)
