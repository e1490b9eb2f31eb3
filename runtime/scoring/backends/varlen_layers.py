"""Layers over packed pairs, with the weights of transformers' own: `layer(hidden, packed, rows)`,
[tokens, channels].

`rows` names one token a pair, the first or the last, of which alone the result is wanted, [pairs,
channels]; None is for all tokens. On a GPU attention is flash attention over sequences of varying
length (`torch.nn.attention.varlen`; Dao 2023, arXiv:2307.08691), on a CPU a loop over the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everyone knows it by
from torch import Tensor, nn

from xopt.runtime.scoring.backends.packed import Packed

__all__ = ["BertEmbedding", "BertLayer", "DecoderLayer", "ModernLayer", "Window"]

# positions start behind the padding id and skip it
COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")

Window = (
    tuple[int, int] | None
)  # tokens to the left and right that a token sees, -1 for all; None for all on both sides
CAUSAL: Window = (-1, 0)


class BertEmbedding:
    """Words, places and types (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, body: Any, kind: str, typed: bool) -> None:
        self.parts, self.project = (
            body.embeddings,
            getattr(body, "embeddings_project", nn.Identity()),
        )
        self.padding = body.embeddings.padding_idx if kind in COUNTS_FROM_PADDING else None
        self.typed = typed

    def __call__(self, packed: Packed) -> Tensor:
        types = packed.type_ids if self.typed else torch.zeros_like(packed.type_ids)
        hidden = self.parts.word_embeddings(packed.ids) + self.parts.token_type_embeddings(types)
        embedded: Tensor = self.project(
            self.parts.LayerNorm(hidden + self.parts.position_embeddings(self._positions(packed)))
        )
        return embedded

    def _positions(self, packed: Packed) -> Tensor:
        """As transformers has it: where positions start behind the padding id, that id in a text
        is not counted.
        """
        if self.padding is None:
            return packed.positions
        counted = (packed.ids != self.padding).int()
        total = torch.cumsum(counted, 0)
        start = torch.arange(len(counted), device=counted.device) - packed.positions
        places: Tensor = (total - (total - counted)[start]) * counted + self.padding
        return places


@dataclass(frozen=True)
class _Projection:
    """Query, key and value as one product, or key and value of all tokens and query of some."""

    weight: Tensor
    bias: Tensor | None
    size: int  # of a head
    queries: int  # rows of the weight that make queries

    @staticmethod
    def of(parts: Sequence[nn.Linear], size: int) -> _Projection:
        """Three products joined."""
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts]).detach()
        return _Projection(
            torch.cat([part.weight for part in parts]).detach(), bias, size, parts[0].out_features
        )

    def __call__(self, hidden: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        others = (len(self.weight) - self.queries) // 2 // self.size
        if rows is None:
            parts = [self.queries // self.size, others, others]
            query, key, value = torch.split(self._part(hidden, slice(None)), parts, 1)
        else:
            query = self._part(hidden[rows], slice(self.queries))
            key, value = torch.split(self._part(hidden, slice(self.queries, None)), others, 1)
        return query, key, value

    def _part(self, hidden: Tensor, rows: slice) -> Tensor:
        bias = None if self.bias is None else self.bias[rows]
        return F.linear(hidden, self.weight[rows], bias).view(len(hidden), -1, self.size)


class BertLayer:
    """Normalises after each block (Devlin et al. 2018, arXiv:1810.04805)."""

    window: Window = None

    def __init__(self, layer: Any) -> None:
        own = layer.attention.self
        self.project = _Projection.of((own.query, own.key, own.value), own.attention_head_size)
        self.joined, self.up, self.down = layer.attention.output, layer.intermediate, layer.output

    def __call__(self, hidden: Tensor, packed: Packed, rows: Tensor | None) -> Tensor:
        attended = _attend(*self.project(hidden, rows), packed, rows is not None)
        hidden = hidden if rows is None else hidden[rows]
        hidden = self.joined.LayerNorm(self.joined.dense(attended) + hidden)
        made: Tensor = self.down.LayerNorm(self.down.dense(self.up(hidden)) + hidden)
        return made


class ModernLayer:
    """Normalises before each block, and turns queries and keys by position (Warner et al. 2024,
    arXiv:2412.13663).
    """

    def __init__(self, layer: Any, heads: int, turns: Sequence[Tensor], window: Window) -> None:
        weight = layer.attn.Wqkv.weight.detach()
        width = len(weight) // 3
        self.project = _Projection(weight, layer.attn.Wqkv.bias, width // heads, width)
        self.layer, self.turns, self.window = layer, turns, window

    def __call__(self, hidden: Tensor, packed: Packed, rows: Tensor | None) -> Tensor:
        query, key, value = self.project(self.layer.attn_norm(hidden), rows)
        cos, sin = (table[packed.positions.long()] for table in self.turns)
        key = _turned(key, cos, sin)
        query = _turned(query, cos, sin) if rows is None else _turned(query, cos[rows], sin[rows])
        hidden = hidden if rows is None else hidden[rows]
        hidden = hidden + self.layer.attn.Wo(
            _attend(query, key, value, packed, rows is not None, self.window)
        )
        made: Tensor = hidden + self.layer.mlp(self.layer.mlp_norm(hidden))
        return made


class DecoderLayer:
    """Llama's: root mean squares, turned queries and keys, fewer of the latter, gates (Touvron et
    al. 2023, arXiv:2302.13971; Ainslie et al. 2023, arXiv:2305.13245). Qwen3 normalises queries
    and keys too.
    """

    window = CAUSAL

    def __init__(self, layer: Any, rotary: Any) -> None:
        own = layer.self_attn
        self.project = _Projection.of((own.q_proj, own.k_proj, own.v_proj), own.head_dim)
        self.layer, self.rotary, self.scale = layer, rotary, own.scaling
        self.norms = [getattr(own, name, nn.Identity()) for name in ("q_norm", "k_norm")]

    def __call__(self, hidden: Tensor, packed: Packed, rows: Tensor | None) -> Tensor:
        layer = self.layer
        query, key, value = self.project(layer.input_layernorm(hidden), rows)
        query, key = (norm(states) for norm, states in zip(self.norms, (query, key), strict=True))
        cos, sin = (
            table[0][:, None]
            for table in self.rotary(hidden.float(), packed.positions[None].long())
        )
        key = _turned(key, cos, sin)
        query = _turned(query, cos, sin) if rows is None else _turned(query, cos[rows], sin[rows])
        hidden = hidden if rows is None else hidden[rows]
        # One query a pair is the last token's, which sees all.
        window = self.window if rows is None else None
        attended = _attend(query, key, value, packed, rows is not None, window, self.scale)
        hidden = hidden + layer.self_attn.o_proj(attended)
        made: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return made


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in FP32."""
    left, right = states.float().chunk(2, -1)
    return (states.float() * cos + torch.cat([-right, left], -1) * sin).to(states.dtype)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Packed,
    one_row: bool,
    window: Window = None,
    scale: float | None = None,
) -> Tensor:
    """Attention within each pair: [queries, heads, size] to [queries, heads * size]. Keys may
    have fewer heads.
    """
    grouped = query.shape[1] != key.shape[1]
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        bounds = (
            torch.arange(packed.pairs + 1, dtype=torch.int32, device=query.device)
            if one_row
            else packed.bounds
        )
        longest = packed.longest
        more: dict[str, Any] = {} if window is None else {"window_size": window}
        attended: Any = varlen_attn(
            query,
            key,
            value,
            bounds,
            packed.bounds,
            1 if one_row else longest,
            longest,
            scale=scale,
            enable_gqa=grouped,
            **more,
        )
        flat: Tensor = attended.flatten(1)
        return flat
    made, start = [], 0
    for row, length in enumerate(packed.lengths.tolist()):
        stop = start + length
        rows = slice(row, row + 1) if one_row else slice(start, stop)
        q, k, v = (
            states.transpose(0, 1)[None]
            for states in (query[rows], key[start:stop], value[start:stop])
        )
        mask = None if window is None else _seen(length, window)
        seen = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
        made.append(seen[0].transpose(0, 1).flatten(1))
        start = stop
    return torch.cat(made)


def _seen(length: int, window: tuple[int, int]) -> Tensor:
    """Which tokens each token sees: bool[length, length]."""
    place = torch.arange(length)
    back = place[:, None] - place
    left, right = (length if side < 0 else side for side in window)
    return (back <= left) & (-back <= right)
