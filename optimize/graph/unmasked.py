"""Attention without a mask, written so that the scores of all tokens are never held at once.

onnxruntime's MultiHeadAttention does that where a token sees all others, and its
GroupQueryAttention where it sees those before it. Where it sees a window around it, blocks of
queries are multiplied with the keys of their own block and of its two neighbours. Where something
else than a mask is added to scores, as DeBERTa does by position, they are all there anyway.
The two operators want tokens before heads. They rotate nothing: RotaryEmbedding does.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from xopt.optimize.graph.heads import (
    HEADS_AND_CHANNELS_FIRST,
    HEADS_FIRST,
    AttentionIndex,
    Core,
    permutation,
)
from xopt.optimize.graph.one_row import END
from xopt.optimize.graph.sight import ATTENTION_MASK, EVERYTHING, Sight
from xopt.optimize.graph.structure import GraphWriter
from xopt.runtime.scoring.backends.backend import UNPADDED

__all__ = ["SharedNodes", "Unmasked", "write_row", "write_unmasked"]

MICROSOFT = "com.microsoft"
KEYS_TURNED = [0, 1, 3, 2]
# Of [pairs, tokens, query or key or value, heads, channels]
PACKED_HEADS_FIRST = [0, 3, 2, 1, 4]
# Of [pairs, blocks, tokens, heads, channels], and back
BLOCKS_HEADS_FIRST = [0, 3, 1, 2, 4]
BLOCKS_KEYS_TURNED = [0, 3, 1, 4, 2]
BLOCKS_TOKENS_FIRST = [0, 2, 3, 1, 4]
GROUP_CHANNELS = 8  # a head's channels are a multiple of it, for GroupQueryAttention
UNSEEN = -1e30  # is added to a score, of which softmax then makes 0
PAYING_BLOCKS = 4  # with so many, or fewer, blocks and their neighbours are all tokens, or nearly


class SharedNodes:
    """Constants and nodes that the attentions of a graph share.

    `behind` has the nodes by the tensor that they have to stand behind.
    """

    def __init__(self) -> None:
        self.write = GraphWriter()
        self.behind: dict[str, list[NodeProto]] = defaultdict(list)

    def integers(self, *values: int) -> str:
        name = "_".join(str(value) for value in values)
        return self.write.constant(f"{UNPADDED}/int_{name}", np.array(values, np.int64))

    def integer(self, value: int) -> str:
        return self.write.constant(f"{UNPADDED}/int_scalar_{value}", np.int64(value))

    def number(self, value: float) -> str:
        return self.write.constant(f"{UNPADDED}/number_{value}", np.float32(value))

    def reads(self) -> set[str]:
        """Return the tensors that the nodes read."""
        return {name for nodes in self.behind.values() for node in nodes for name in node.input}

    def node(self, tensor: str, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Write a node behind `tensor`, once for all that read it."""
        output = f"{UNPADDED}/{operator}/{'/'.join(inputs)}"
        if all(node.output[0] != output for node in self.behind[tensor]):
            writer = GraphWriter()
            writer.node(operator, inputs, output, **attributes)
            self.behind[tensor] += writer.nodes
        return output


@dataclass(frozen=True)
class Unmasked:
    """Nodes that make an attention without its mask, where the tensor `condition` is true."""

    condition: str
    nodes: list[NodeProto]


def write_unmasked(
    index: AttentionIndex, core: Core, sight: Sight, shared: SharedNodes, output: str
) -> Unmasked:
    """Write nodes that make `output`, [pairs, query rows, heads x channels].

    Raises LookupError for an attention that they cannot make.
    """
    attention = _Attention(index, core, shared, output)
    if sight == EVERYTHING:
        attention.see_everything()
        return Unmasked(UNPADDED, attention.write.nodes)
    if core.bias or core.query_rows == 1 or (sight.causal and sight.window is not None):
        raise LookupError(core.output)
    if sight.causal:
        attention.see_before()
        return Unmasked(UNPADDED, attention.write.nodes)
    if not sight.window:
        raise LookupError(core.output)
    blocks = _Blocks(shared, sight.window)
    attention.see_window(blocks)
    return Unmasked(blocks.pay_off(), attention.write.nodes)


class _Attention:
    """One attention as it is written."""

    def __init__(self, index: AttentionIndex, core: Core, shared: SharedNodes, output: str) -> None:
        self.index = index
        self.core = core
        self.shared = shared
        self.output = output
        self.write = GraphWriter()

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        label = f"{self.output}/{len(self.write.nodes)}_{operator}"
        return self.write.node(operator, inputs, label, **attributes)

    def see_everything(self) -> None:
        core = self.core
        query = self.tokens_first(core.query)
        inputs = [query, self.key(core.heads), self.tokens_first(core.value)]
        if core.bias:
            self.check_bias()
            inputs += ["", "", core.bias]
        self.write.node(
            "MultiHeadAttention",
            inputs,
            self.output,
            domain=MICROSOFT,
            num_heads=core.heads,
            scale=core.scale,
        )

    def check_bias(self) -> None:
        """Raise LookupError for a bias of one row for all rows, or one column for all columns."""
        shape = self.index.shapes[self.core.bias]
        if len(shape) != 4 or shape[3] == 1 or (shape[2] == 1 and self.core.query_rows != 1):
            raise LookupError(self.core.bias)

    def see_before(self) -> None:
        core = self.core
        if core.head_size % GROUP_CHANNELS:
            raise LookupError(core.output)
        key_heads = self.heads_before_repeat(core.value)
        query = self.tokens_first(core.query)
        key = self.key(key_heads)
        value = self.tokens_first(core.value, key_heads)
        # The kernel that holds few scores runs only where it gives keys and values back, too.
        unread = [f"{self.output}/present_{name}" for name in ("key", "value")]
        attention = helper.make_node(
            "GroupQueryAttention",
            [query, key, value, "", "", *_lengths(self.shared)],
            [self.output, *unread],
            self.output,
            domain=MICROSOFT,
            num_heads=core.heads,
            kv_num_heads=key_heads,
            scale=core.scale,
        )
        self.write.nodes.append(attention)

    def see_window(self, blocks: _Blocks) -> None:
        core = self.core
        per_block = self.shared.integers(0, -1, blocks.tokens, core.heads, core.head_size)
        query = self.node("Pad", [self.tokens_first(core.query), blocks.to_whole()])
        query_blocks = self.node("Reshape", [query, per_block])
        queries = self.node("Transpose", [query_blocks], perm=BLOCKS_HEADS_FIRST)
        keys = self.with_neighbours(self.key(core.heads), blocks, BLOCKS_KEYS_TURNED)
        value = self.tokens_first(core.value)
        values = self.with_neighbours(value, blocks, BLOCKS_HEADS_FIRST)

        scores = self.node("MatMul", [queries, keys])
        scaled = self.node("Mul", [scores, self.shared.number(core.scale)])
        seen = self.node("Add", [scaled, blocks.unseen()])
        shares = self.node("Softmax", [seen], axis=-1)
        heads = self.node("MatMul", [shares, values])

        tokens_first = self.node("Transpose", [heads], perm=BLOCKS_TOKENS_FIRST)
        channels = self.shared.integers(0, -1, core.heads * core.head_size)
        whole = self.node("Reshape", [tokens_first, channels])
        zero = self.shared.integers(0)
        one = self.shared.integers(1)
        self.write.node("Slice", [whole, zero, _width(self.shared), one], self.output)

    def with_neighbours(self, name: str, blocks: _Blocks, order: list[int]) -> str:
        """Write each block of [pairs, tokens, heads x channels] between its two neighbours."""
        shared = self.shared
        per_block = shared.integers(0, -1, blocks.tokens, self.core.heads, self.core.head_size)
        padded = self.node("Pad", [name, blocks.to_neighbours()])
        all_blocks = self.node("Reshape", [padded, per_block])
        axis = shared.integers(1)
        shifted = [
            self.node("Slice", [all_blocks, shared.integers(first), shared.integers(end), axis])
            for first, end in ((0, -2), (1, -1), (2, END))
        ]
        joined = self.node("Concat", shifted, axis=2)
        return self.node("Transpose", [joined], perm=order)

    def key(self, heads: int) -> str:
        """Write the key as [pairs, tokens, heads x channels]."""
        turned = self.index.producer(self.core.key, "Transpose")
        order = permutation(turned)
        if order == KEYS_TURNED:
            return self.tokens_first(turned.input[0], heads)
        if order == HEADS_AND_CHANNELS_FIRST:
            return self.joined(turned.input[0], heads)
        raise LookupError(self.core.output)

    def heads_before_repeat(self, name: str) -> int:
        """Return how many heads a tensor has before each is repeated for several queries."""
        with contextlib.suppress(LookupError):
            heads = self.index.shapes[self.before_repeat(name)][1]
            if isinstance(heads, int) and self.core.heads % heads == 0:
                return heads
        return self.core.heads

    def before_repeat(self, name: str) -> str:
        repeated = self.index.producer(name, "Reshape")
        expanded = self.index.producer(repeated.input[0], "Expand")
        unsqueezed = self.index.producer(expanded.input[0], "Unsqueeze")
        if self.index.constant(unsqueezed.input[1]).tolist() != [2]:
            raise LookupError(name)
        return str(unsqueezed.input[0])

    def tokens_first(self, name: str, heads: int = 0) -> str:
        """Write a tensor, [pairs, heads, tokens, channels], as [pairs, tokens, heads x channels].

        Where `heads` are fewer than the tensor has, as it was before they were repeated.
        """
        heads = heads or self.core.heads
        if heads < self.core.heads:
            name = self.before_repeat(name)
        return self.unrepeated(name, heads)

    def unrepeated(self, name: str, heads: int) -> str:
        """Write a tensor of so many heads as [pairs, tokens, heads x channels]."""
        for write in (self.split, self.packed, self.rotated):
            with contextlib.suppress(LookupError):
                return write(name, heads)
        return self.joined(self.node("Transpose", [name], perm=HEADS_FIRST), heads)

    def joined(self, name: str, heads: int) -> str:
        """Write [pairs, tokens, heads, channels] with heads side by side."""
        with contextlib.suppress(LookupError):
            split = self.index.producer(name, "Reshape")
            width = self.index.shapes[split.input[0]][2:]
            if width == [heads * self.core.head_size]:
                return str(split.input[0])
        return self.node("Reshape", [name, self.shared.integers(0, 0, -1)])

    def split(self, name: str, heads: int) -> str:
        """Write what was split into heads by a Reshape and a Transpose."""
        transpose = self.index.producer(name, "Transpose")
        if permutation(transpose) != HEADS_FIRST:
            raise LookupError(name)
        return self.joined(transpose.input[0], heads)

    def packed(self, name: str, heads: int) -> str:
        """Write one of a query, a key and a value that stand side by side."""
        index = self.index
        squeeze = index.producer(name, "Squeeze")
        taken = index.producer(squeeze.input[0], "Slice")
        transpose = index.producer(taken.input[0], "Transpose")
        packed = index.producer(transpose.input[0], "Reshape").input[0]
        (first,) = index.constant(taken.input[1]).tolist()
        (axis,) = index.constant(taken.input[3]).tolist()
        channels = heads * self.core.head_size
        if permutation(transpose) != PACKED_HEADS_FIRST or axis != 2:
            raise LookupError(name)
        if index.shapes[packed][2:] != [3 * channels]:
            raise LookupError(name)
        integers = self.shared.integers
        columns = integers(first * channels), integers((first + 1) * channels), integers(2)
        return self.node("Slice", [packed, *columns])

    def rotated(self, name: str, heads: int) -> str:
        """Write a query or key that is rotated by position: x cos + (-x2, x1) sin."""
        index = self.index
        for straight, turned in itertools.permutations(index.producer(name, "Add").input):
            with contextlib.suppress(LookupError, ValueError):
                source, cosines = index.producer(straight, "Mul").input
                halves, sines = index.producer(turned, "Mul").input
                self.check_halves(halves, source)
                caches = self.cache(cosines, "Cos"), self.cache(sines, "Sin")
                first_place = self.shared.integers(0)
                return self.node(
                    "RotaryEmbedding",
                    [self.unrepeated(source, heads), first_place, *caches],
                    domain=MICROSOFT,
                    num_heads=heads,
                )
        raise LookupError(name)

    def check_halves(self, name: str, source: str) -> None:
        """Raise LookupError or ValueError where a tensor is not (-x2, x1) of a source (x1, x2)."""
        index = self.index
        half = self.core.head_size // 2
        negated, first = index.producer(name, "Concat").input
        second = index.producer(negated, "Neg").input[0]
        for part, start in ((second, half), (first, 0)):
            cut = index.producer(part, "Slice")
            starts, ends, axes = [index.constant(bound).tolist() for bound in cut.input[1:4]]
            is_half = starts == [start] and ends[0] >= start + half and axes[0] in (3, -1)
            if cut.input[0] != source or not is_half or (start == 0 and ends != [half]):
                raise LookupError(name)

    def cache(self, name: str, operator: str) -> str:
        """Write the cosines or sines of all places, [tokens, channels / 2].

        Raises LookupError where the other half of the channels has others.
        """
        index = self.index
        whole = str(index.producer(name, "Unsqueeze").input[0])
        angles = index.producer(index.producer(whole, operator).input[0], "Concat").input
        if len(set(angles)) != 1:
            raise LookupError(name)
        shared = self.shared
        half = shared.integers(self.core.head_size // 2)
        of_one_pair = shared.node(whole, "Gather", [whole, shared.integer(0)], axis=0)
        bounds = shared.integers(0), half, shared.integers(1)
        return shared.node(whole, "Slice", [of_one_pair, *bounds])


class _Blocks:
    """Blocks of as many tokens as a window has to each side, and what they share."""

    def __init__(self, shared: SharedNodes, tokens: int) -> None:
        self.shared = shared
        self.tokens = tokens

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.shared.node(ATTENTION_MASK, operator, inputs, **attributes)

    def pay_off(self) -> str:
        """Write whether no pair is padded, and pairs are so long that blocks save work."""
        least = self.shared.integers(PAYING_BLOCKS * self.tokens)
        long = self.node("Greater", [_width(self.shared), least])
        scalar = self.node("Squeeze", [long])
        return self.shared.node(UNPADDED, "And", [UNPADDED, scalar])

    def missing(self) -> str:
        """Write how many tokens the last block lacks."""
        negative = self.node("Neg", [_width(self.shared)])
        return self.node("Mod", [negative, self.shared.integers(self.tokens)])

    def to_whole(self) -> str:
        """Write the padding of [pairs, tokens, channels] to whole blocks."""
        integers = self.shared.integers
        parts = [integers(0, 0, 0, 0), self.missing(), integers(0)]
        return self.node("Concat", parts, axis=0)

    def to_neighbours(self) -> str:
        """Write the padding to whole blocks, with one more at both ends."""
        integers = self.shared.integers
        after = self.node("Add", [self.missing(), integers(self.tokens)])
        parts = [integers(0, self.tokens, 0, 0), after, integers(0)]
        return self.node("Concat", parts, axis=0)

    def unseen(self) -> str:
        """Write what is added to scores, [blocks, tokens, three times as many tokens]."""
        shared = self.shared
        rows = np.arange(self.tokens)[:, None]
        columns = np.arange(3 * self.tokens)
        near = np.abs(columns - self.tokens - rows) <= self.tokens
        within = shared.write.constant(f"{UNPADDED}/near_{self.tokens}", near)

        width = _width(shared)
        end = self.node("Squeeze", [width])
        last = self.node("Sub", [end, shared.integer(self.tokens)])
        first_start = shared.integer(-self.tokens)
        starts = self.node("Range", [first_start, last, shared.integer(self.tokens)])
        starts_row = self.node("Unsqueeze", [starts, shared.integers(1, 2)])
        places = self.node("Add", [starts_row, shared.integers(*columns.tolist())])
        first = shared.integers(0)
        exists = self.node(
            "And",
            [self.node("GreaterOrEqual", [places, first]), self.node("Less", [places, width])],
        )
        seen = self.node("And", [exists, within])
        return self.node("Where", [seen, shared.number(0.0), shared.number(UNSEEN)])


def write_row(sight: Sight, shared: SharedNodes) -> str:
    """Write one row of a mask for pairs without padding, [1, 1, 1, tokens], or 1 for all tokens.

    It is what the last token sees where none sees those behind it, else what the first one sees.
    """
    if sight.causal or sight.window is None:
        return shared.write.constant(f"{UNPADDED}/row_of_zeros", np.zeros((1, 1, 1, 1), np.float32))
    width = shared.node(ATTENTION_MASK, "Squeeze", [_width(shared)])
    bounds = [shared.integer(0), width, shared.integer(1)]
    places = shared.node(ATTENTION_MASK, "Range", bounds)
    window = shared.integers(sight.window)
    near = shared.node(ATTENTION_MASK, "LessOrEqual", [places, window])
    values = [near, shared.number(0.0), shared.number(UNSEEN)]
    row = shared.node(ATTENTION_MASK, "Where", values)
    return shared.node(ATTENTION_MASK, "Unsqueeze", [row, shared.integers(0, 1, 2)])


def _width(shared: SharedNodes) -> str:
    """Write the number of tokens of a pair."""
    return shared.node(ATTENTION_MASK, "Shape", [ATTENTION_MASK], start=1, end=2)


def _lengths(shared: SharedNodes) -> tuple[str, str]:
    """Write the last place of each pair, and the number of tokens, as int32."""
    one = shared.integers(1)
    tokens = shared.node(ATTENTION_MASK, "ReduceSum", [ATTENTION_MASK, one], keepdims=0)
    last = shared.node(ATTENTION_MASK, "Sub", [tokens, one])
    most = shared.node(ATTENTION_MASK, "ReduceMax", [tokens], keepdims=0)
    int32 = TensorProto.INT32
    return (
        shared.node(ATTENTION_MASK, "Cast", [last], to=int32),
        shared.node(ATTENTION_MASK, "Cast", [most], to=int32),
    )
