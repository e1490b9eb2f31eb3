"""A transformers model run over pairs end to end: no padding anywhere, and the last layer for the first rows only.

The weights are those of the transformers model. On a GPU attention is flash attention over sequences of
varying length (`torch.nn.attention.varlen`; Dao 2023, arXiv:2307.08691), on a CPU a loop over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everyone knows it by
from torch import Tensor, nn

from xopt.runtime.scoring.backends.packed import Packed

__all__ = ["VARLEN_TYPES", "VarlenNetwork", "has_packed_form"]

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
VARLEN_TYPES = (*BERT_LIKE, "modernbert")
COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")  # positions start behind the padding id and skip it

Window = tuple[int, int] | None  # tokens to the left and right that a token sees; None for all


def has_packed_form(config: dict[str, Any]) -> bool:
    """Whether a model with this config.json can run packed."""
    return config["model_type"] in VARLEN_TYPES and config.get("position_embedding_type", "absolute") == "absolute"


class VarlenNetwork:
    """Runs a sequence classifier over packed pairs: `network(packed)` gives logits, float32[pairs, labels].

    The body runs in `dtype`, the head in FP32: it sees a row a pair, and FP16 would tie near-equal logits.
    Raises ValueError for a model that has no packed form.
    """

    def __init__(self, model: Any, dtype: torch.dtype, device: str, *, typed: bool) -> None:
        kind = model.config.model_type
        if not has_packed_form(model.config.to_dict()):
            raise ValueError(f"{kind}: no packed form; it takes {', '.join(VARLEN_TYPES)} with absolute positions")
        turns = _turns(model) if kind == "modernbert" else {}  # before the body's buffers lose precision
        body = model.base_model.to(device=device, dtype=dtype)
        self._embed: Callable[[Packed], Tensor]
        self._layers: list[_BertLayer] | list[_ModernLayer]
        self._norm = nn.Identity()
        if kind == "modernbert":
            parts, heads = body.embeddings, model.config.num_attention_heads
            self._embed = lambda packed: parts.norm(parts.tok_embeddings(packed.ids))
            self._norm = body.final_norm.float()
            windows = [(model.config.local_attention // 2,) * 2 if local else None for local in _local(model)]
            self._layers = [
                _ModernLayer(layer, heads, [table.to(device) for table in turns[window is not None]], window)
                for layer, window in zip(body.layers, windows, strict=True)
            ]
        else:
            self._embed = _BertEmbedding(body, kind, typed)
            self._layers = [_BertLayer(layer) for layer in body.encoder.layer]
        self._mean = getattr(model.config, "classifier_pooling", "cls") == "mean"
        self._head = _head(model, kind, device)

    def __call__(self, packed: Packed) -> Tensor:
        """Logits of packed pairs."""
        hidden = self._embed(packed)
        *layers, last = self._layers
        for layer in layers:
            hidden = layer(hidden, packed, first_only=False)
        # A window of flash attention lies at the end of the keys where queries are fewer: no first rows through it.
        narrow = not self._mean and last.window is None
        hidden = last(hidden, packed, first_only=narrow)
        if not self._mean:
            return self._head(self._norm((hidden if narrow else hidden[packed.starts]).float()))
        sums = torch.zeros(packed.pairs, hidden.shape[1], device=hidden.device)
        sums.index_add_(0, packed.rows, self._norm(hidden.float()))
        return self._head(sums / (packed.bounds[1:] - packed.bounds[:-1])[:, None])


class _BertEmbedding:
    def __init__(self, body: Any, kind: str, typed: bool) -> None:
        self.parts, self.project = body.embeddings, getattr(body, "embeddings_project", nn.Identity())
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
        """As transformers has it: where positions start behind the padding id, that id in a text is not counted."""
        if self.padding is None:
            return packed.positions
        counted = (packed.ids != self.padding).int()
        total = torch.cumsum(counted, 0)
        start = torch.arange(len(counted), device=counted.device) - packed.positions
        places: Tensor = (total - (total - counted)[start]) * counted + self.padding
        return places


@dataclass(frozen=True)
class _Projection:
    """Query, key and value as one product, or key and value of all tokens and query of the first ones."""

    weight: Tensor
    bias: Tensor | None
    heads: int

    def __call__(self, hidden: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        size = self.weight.shape[0] // 3
        if first is None:
            query, key, value = self._part(hidden, slice(None)).chunk(3, 1)
        else:
            query = self._part(hidden[first], slice(size))
            key, value = self._part(hidden, slice(size, None)).chunk(2, 1)
        return query, key, value

    def _part(self, hidden: Tensor, rows: slice) -> Tensor:
        bias = None if self.bias is None else self.bias[rows]
        made = F.linear(hidden, self.weight[rows], bias)
        return made.view(len(hidden), -1, self.weight.shape[1] // self.heads)


class _BertLayer:
    """Normalises after each block (Devlin et al. 2018, arXiv:1810.04805)."""

    window: Window = None

    def __init__(self, layer: Any) -> None:
        own = layer.attention.self
        parts = own.query, own.key, own.value
        self.project = _Projection(
            torch.cat([part.weight for part in parts]).detach(),
            torch.cat([part.bias for part in parts]).detach(),
            own.num_attention_heads,
        )
        self.joined, self.up, self.down = layer.attention.output, layer.intermediate, layer.output

    def __call__(self, hidden: Tensor, packed: Packed, *, first_only: bool) -> Tensor:
        first = packed.starts if first_only else None
        attended = _attend(*self.project(hidden, first), packed, first_only)
        if first is not None:
            hidden = hidden[first]
        hidden = self.joined.LayerNorm(self.joined.dense(attended) + hidden)
        made: Tensor = self.down.LayerNorm(self.down.dense(self.up(hidden)) + hidden)
        return made


class _ModernLayer:
    """Normalises before each block, and turns queries and keys by position (Warner et al. 2024, arXiv:2412.13663)."""

    def __init__(self, layer: Any, heads: int, turns: Sequence[Tensor], window: Window) -> None:
        self.project = _Projection(layer.attn.Wqkv.weight.detach(), layer.attn.Wqkv.bias, heads)
        self.layer, self.turns, self.window = layer, turns, window

    def __call__(self, hidden: Tensor, packed: Packed, *, first_only: bool) -> Tensor:
        first = packed.starts if first_only else None
        query, key, value = self.project(self.layer.attn_norm(hidden), first)
        positions = packed.positions.long()
        key = self._turn(key, positions)
        query = query if first_only else self._turn(query, positions)  # position 0 is not turned
        if first is not None:
            hidden = hidden[first]
        hidden = hidden + self.layer.attn.Wo(_attend(query, key, value, packed, first_only, self.window))
        made: Tensor = hidden + self.layer.mlp(self.layer.mlp_norm(hidden))
        return made

    def _turn(self, states: Tensor, positions: Tensor) -> Tensor:
        cos, sin = (table[positions] for table in self.turns)
        left, right = states.float().chunk(2, -1)
        return (states.float() * cos + torch.cat([-right, left], -1) * sin).to(states.dtype)


def _local(model: Any) -> list[bool]:
    """Which layers of a ModernBERT see a window only."""
    config = model.config
    kinds = getattr(config, "layer_types", None)  # since transformers 5
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    return [number % config.global_attn_every_n_layers != 0 for number in range(config.num_hidden_layers)]


def _turns(model: Any) -> dict[bool, tuple[Tensor, Tensor]]:
    """Cosines and sines, FP32 [positions, 1, size], of layers that see all and of those that see a window."""
    body, like = model.base_model, torch.zeros(1)
    positions = torch.arange(model.config.max_position_embeddings)[None]
    made = {}
    for local, layer in dict(zip(_local(model), body.layers, strict=True)).items():
        if hasattr(body, "rotary_emb"):  # transformers 5
            cos, sin = body.rotary_emb(like, positions, "sliding_attention" if local else "full_attention")
        else:
            cos, sin = layer.attn.rotary_emb(like, positions)
        made[local] = cos[0][:, None], sin[0][:, None]
    return made


def _head(model: Any, kind: str, device: str) -> Callable[[Tensor], Tensor]:
    """What makes logits of a pair's row: float32[pairs, hidden] to float32[pairs, labels]."""
    classifier = model.classifier.to(device).float()
    if kind == "modernbert":
        head = model.head.to(device).float()
        return lambda rows: classifier(head(rows))
    if kind == "bert":
        pooler = model.base_model.pooler.float()
        return lambda rows: classifier(pooler(rows[:, None]))
    return lambda rows: classifier(rows[:, None])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, first_only: bool, window: Window = None
) -> Tensor:
    """Attention within each pair: [queries, heads, size] to [queries, heads * size]."""
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        bounds = torch.arange(packed.pairs + 1, dtype=torch.int32, device=query.device) if first_only else packed.bounds
        more: dict[str, Any] = {} if window is None else {"window_size": window}
        longest = packed.longest
        attended: Any = varlen_attn(
            query, key, value, bounds, packed.bounds, 1 if first_only else longest, longest, **more
        )
        flat: Tensor = attended.flatten(1)
        return flat
    made, start = [], 0
    for row, length in enumerate(packed.lengths.tolist()):
        stop = start + length
        rows = slice(row, row + 1) if first_only else slice(start, stop)
        q, k, v = (states.transpose(0, 1)[None] for states in (query[rows], key[start:stop], value[start:stop]))
        mask = None
        if window is not None:
            place = torch.arange(length)
            mask = ((place[:, None] - place) <= window[0]) & ((place - place[:, None]) <= window[1])
        made.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1).flatten(1))
        start = stop
    return torch.cat(made)
