"""Layers over packed pairs, with the weights of transformers' own.

`layer(hidden, packed, rows)` takes and gives [tokens, channels], or gives [pairs, channels]:
then `rows` holds the one token of each pair whose result is needed.
On a GPU attention is flash attention over sequences of varying length
(`torch.nn.attention.varlen`; Dao 2023, arXiv:2307.08691), on a CPU a loop over the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everyone knows it by
from torch import Tensor, nn

from xopt.runtime.scoring.backends.packed import Packed

__all__ = ["ALL", "CAUSAL", "BertEmbedding", "BertLayer", "DecoderLayer", "ModernLayer", "Window"]

# Their positions start after the padding id and skip it.
COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")

# How many tokens to its left and right a token sees, -1 for all; None for all on both sides.
Window = tuple[int, int] | None
CAUSAL: Window = (-1, 0)

Rows = Tensor | slice
ALL = slice(None)

States = tuple[Tensor, Tensor, Tensor]  # query, key and value, each [tokens, heads, size]


class BertEmbedding:
    """Sums words, positions and types (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, body: Any, kind: str, typed: bool) -> None:
        self.parts = body.embeddings
        self.project = getattr(body, "embeddings_project", nn.Identity())  # ELECTRA's
        self.padding = body.embeddings.padding_idx if kind in COUNTS_FROM_PADDING else None
        self.typed = typed

    def __call__(self, packed: Packed) -> Tensor:
        types = packed.type_ids if self.typed else torch.zeros_like(packed.type_ids)
        hidden = self.parts.word_embeddings(packed.ids)
        hidden = hidden + self.parts.token_type_embeddings(types)
        hidden = hidden + self.parts.position_embeddings(self._positions(packed))
        embedded: Tensor = self.project(self.parts.LayerNorm(hidden))
        return embedded

    def _positions(self, packed: Packed) -> Tensor:
        """Return positions as transformers counts them: without padding ids in a text."""
        if self.padding is None:
            return packed.positions
        counted = (packed.ids != self.padding).int()
        total = torch.cumsum(counted, 0)
        starts = torch.arange(len(counted), device=counted.device) - packed.positions
        before_pair = (total - counted)[starts]
        positions: Tensor = (total - before_pair) * counted + self.padding
        return positions


@dataclass(frozen=True)
class _Projection:
    """Makes query, key and value in one product; for one query a pair, in two."""

    weight: Tensor
    bias: Tensor | None
    head_size: int
    query_channels: int

    @staticmethod
    def of(parts: Sequence[nn.Linear], head_size: int) -> _Projection:
        weight = torch.cat([part.weight for part in parts]).detach()
        bias = None
        if parts[0].bias is not None:
            bias = torch.cat([part.bias for part in parts]).detach()
        return _Projection(weight, bias, head_size, parts[0].out_features)

    def __call__(self, hidden: Tensor, rows: Rows) -> States:
        query_heads = self.query_channels // self.head_size
        key_heads = (len(self.weight) - self.query_channels) // self.head_size // 2
        if isinstance(rows, slice):
            joined = self._product(hidden, ALL)
            query, key, value = torch.split(joined, [query_heads, key_heads, key_heads], 1)
        else:
            query = self._product(hidden[rows], slice(self.query_channels))
            joined = self._product(hidden, slice(self.query_channels, None))
            key, value = torch.split(joined, key_heads, 1)
        return query, key, value

    def _product(self, hidden: Tensor, channels: slice) -> Tensor:
        bias = None if self.bias is None else self.bias[channels]
        product = F.linear(hidden, self.weight[channels], bias)
        return product.view(len(hidden), -1, self.head_size)


class BertLayer:
    """Normalises after each block (Devlin et al. 2018, arXiv:1810.04805)."""

    window: Window = None

    def __init__(self, layer: Any) -> None:
        own = layer.attention.self
        self.project = _Projection.of((own.query, own.key, own.value), own.attention_head_size)
        self.joined = layer.attention.output
        self.up = layer.intermediate
        self.down = layer.output

    def __call__(self, hidden: Tensor, packed: Packed, rows: Rows) -> Tensor:
        attended = _attend(self.project(hidden, rows), packed)
        hidden = self.joined.LayerNorm(self.joined.dense(attended) + hidden[rows])
        output: Tensor = self.down.LayerNorm(self.down.dense(self.up(hidden)) + hidden)
        return output


class ModernLayer:
    """Normalises before each block, and rotates queries and keys by position.

    Warner et al. 2024, arXiv:2412.13663.
    """

    def __init__(
        self, layer: Any, heads: int, rotation: tuple[Tensor, Tensor], window: Window
    ) -> None:
        joined = layer.attn.Wqkv
        channels = joined.out_features // 3
        self.project = _Projection(joined.weight.detach(), joined.bias, channels // heads, channels)
        self.layer = layer
        self.rotation = rotation
        self.window = window

    def __call__(self, hidden: Tensor, packed: Packed, rows: Rows) -> Tensor:
        query, key, value = self.project(self.layer.attn_norm(hidden), rows)
        positions = packed.positions.long()
        cos, sin = self.rotation
        query, key = _rotated(query, key, cos[positions], sin[positions], rows)
        attended = _attend((query, key, value), packed, self.window)
        hidden = hidden[rows] + self.layer.attn.Wo(attended)
        output: Tensor = hidden + self.layer.mlp(self.layer.mlp_norm(hidden))
        return output


class DecoderLayer:
    """Llama's layer; Qwen3 normalises queries and keys, too.

    Touvron et al. 2023, arXiv:2302.13971; Ainslie et al. 2023, arXiv:2305.13245.
    """

    window = CAUSAL

    def __init__(self, layer: Any, rotary: Any) -> None:
        own = layer.self_attn
        self.project = _Projection.of((own.q_proj, own.k_proj, own.v_proj), own.head_dim)
        self.query_norm = getattr(own, "q_norm", nn.Identity())
        self.key_norm = getattr(own, "k_norm", nn.Identity())
        self.layer = layer
        self.rotary = rotary
        self.scale = own.scaling

    def __call__(self, hidden: Tensor, packed: Packed, rows: Rows) -> Tensor:
        layer = self.layer
        query, key, value = self.project(layer.input_layernorm(hidden), rows)
        cos, sin = self.rotary(hidden.float(), packed.positions[None].long())
        query, key = _rotated(
            self.query_norm(query), self.key_norm(key), cos[0][:, None], sin[0][:, None], rows
        )
        # One query a pair is the last token's, which sees all.
        window = self.window if isinstance(rows, slice) else None
        attended = _attend((query, key, value), packed, window, self.scale)
        hidden = hidden[rows] + layer.self_attn.o_proj(attended)
        output: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return output


def _rotated(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by position (Su et al. 2021, arXiv:2104.09864)."""

    def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        exact = states.float()
        left, right = exact.chunk(2, -1)
        return (exact * cos + torch.cat([-right, left], -1) * sin).to(states.dtype)

    return rotate(query, cos[rows], sin[rows]), rotate(key, cos, sin)


def _attend(
    states: States, packed: Packed, window: Window = None, scale: float | None = None
) -> Tensor:
    """Attend within each pair: [queries, heads, size] to [queries, heads * size].

    There is a query a token, or one a pair. Keys may have fewer heads.
    """
    if states[0].is_cuda:
        return _attend_on_gpu(states, packed, window, scale)
    return _attend_on_cpu(states, packed, window, scale)


def _attend_on_gpu(states: States, packed: Packed, window: Window, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = states
    bounds = packed.bounds
    longest = packed.longest
    if len(query) != len(key):  # one a pair
        bounds = torch.arange(packed.pairs + 1, dtype=torch.int32, device=query.device)
        longest = 1
    more: dict[str, Any] = {} if window is None else {"window_size": window}
    attended: Any = varlen_attn(
        query,
        key,
        value,
        bounds,
        packed.bounds,
        longest,
        packed.longest,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        **more,
    )
    flat: Tensor = attended.flatten(1)
    return flat


def _attend_on_cpu(states: States, packed: Packed, window: Window, scale: float | None) -> Tensor:
    query, key, value = states
    outputs = []
    start = 0
    for pair, length in enumerate(packed.lengths.tolist()):
        tokens = slice(start, start + length)
        queries = tokens if len(query) == len(key) else slice(pair, pair + 1)
        attended = F.scaled_dot_product_attention(
            _heads_first(query[queries]),
            _heads_first(key[tokens]),
            _heads_first(value[tokens]),
            attn_mask=None if window in (None, CAUSAL) else _visible(length, window),
            is_causal=window == CAUSAL,  # with a mask in its place torch writes all scores out
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(attended[0].transpose(0, 1).flatten(1))
        start += length
    return torch.cat(outputs)


def _heads_first(states: Tensor) -> Tensor:
    return states.transpose(0, 1)[None]


def _visible(length: int, window: tuple[int, int]) -> Tensor:
    """Return which tokens each token sees: bool[length, length]."""
    positions = torch.arange(length)
    distance = positions[:, None] - positions
    left, right = (length if side < 0 else side for side in window)
    return (distance <= left) & (-distance <= right)
