"""DeBERTa's scores by relative position, from one product each.

DeBERTa adds two terms to the score of a token i as the query and a token j as the key. One is the
query times a key for the distance i - j. The other is the key times a query for that distance (He
et al., DeBERTa, 2021). transformers projects the embeddings of all distances in each forward. It
multiplies with all of them, and gathers a score for each two tokens.

Here they are projected once. A forward takes those of the distances that it has, from the largest
to the smallest. So each row of the product has the scores of its token side by side. Those of the
next row begin one place before (Dai et al., Transformer-XL, 2019). Read with rows that are one
place shorter, they stand in columns.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["use_bands"]


def use_bands(model: Any) -> int:
    """Replace each attention by relative position of a DeBERTa v2 or v3, and count them.

    `model` changes. Its outputs are equal but for the order of floating-point sums.
    """
    if model.config.model_type != "deberta-v2":
        return 0
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder

    count = 0
    for module in model.modules():
        # A class of the model's own may do something else.
        if type(module) is DebertaV2Encoder and module.relative_attention:
            count += _replaced(module)
    return count


def _replaced(encoder: Any) -> int:
    """Replace the attentions of a DebertaV2Encoder, and count them."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

    if any(type(layer.attention.self) is not DisentangledSelfAttention for layer in encoder.layer):
        return 0
    embeddings = encoder.get_rel_embedding().detach()
    encoder.get_attention_mask = _added_mask
    encoder.get_rel_pos = _Rows(encoder)
    for layer in encoder.layer:
        layer.attention.self = _BandedAttention(layer.attention.self, embeddings)
    return len(encoder.layer)


def _added_mask(attention_mask: Tensor) -> Tensor:
    """Return what is added to scores, [pairs, 1, 1, tokens]."""
    hidden = torch.finfo(torch.float32).min
    return torch.where(attention_mask.bool(), 0.0, hidden)[:, None, None, :]


class _Rows:
    """Which embeddings belong to the distances of a forward.

    Takes the place of DebertaV2Encoder.get_rel_pos.
    """

    def __init__(self, encoder: Any) -> None:
        self.buckets = encoder.position_buckets
        self.most = encoder.max_relative_positions
        self.span = self.buckets if self.buckets > 0 else self.most

    def __call__(self, hidden_states: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Return the rows of the keys and of the queries for tokens - 1, ..., 0, ..., -tokens."""
        from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta

        tokens = hidden_states.shape[1]
        distances = tokens - 1 - torch.arange(2 * tokens, device=hidden_states.device)
        if self.buckets > 0 and self.most > 0:
            bucketed = deberta.make_log_bucket_position(distances, self.buckets, self.most)
            distances = bucketed.to(torch.int64)
        last = 2 * self.span - 1
        keys = torch.clamp(distances + self.span, 0, last)
        queries = torch.clamp(self.span - distances, 0, last)
        return keys, queries


class _BandedAttention(nn.Module):
    """Takes the place of DisentangledSelfAttention, with its weights.

    position_keys, position_queries: the embeddings projected, [distances, channels]; None where
    the model has no such term.
    """

    position_keys: Tensor | None
    position_queries: Tensor | None

    def __init__(self, attention: Any, embeddings: Tensor) -> None:
        super().__init__()
        self.query_proj = attention.query_proj
        self.key_proj = attention.key_proj
        self.value_proj = attention.value_proj
        self.heads = attention.num_attention_heads
        kinds = {"c2p", "p2c"}.intersection(attention.pos_att_type)
        self.scale = 1 / math.sqrt(attention.attention_head_size * (1 + len(kinds)))
        shares = attention.share_att_key
        keys = attention.key_proj if shares else getattr(attention, "pos_key_proj", None)
        queries = attention.query_proj if shares else getattr(attention, "pos_query_proj", None)
        rows = embeddings[: 2 * attention.pos_ebd_size]
        self._keep("position_keys", keys if "c2p" in kinds else None, rows)
        self._keep("position_queries", queries if "p2c" in kinds else None, rows)

    def _keep(self, name: str, projection: nn.Module | None, rows: Tensor) -> None:
        """Keep the embeddings as they are added to scores, so with the scores' scale."""
        with torch.no_grad():
            projected = None if projection is None else projection(rows) * self.scale
        self.register_buffer(name, projected)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        *_: Any,
        relative_pos: tuple[Tensor, Tensor],
        **__: Any,
    ) -> tuple[Tensor, None]:
        """Return the heads' results, [pairs, tokens, channels], and no attention."""
        query = self._split(self.query_proj(hidden_states)).permute(0, 2, 1, 3)
        key = self._split(self.key_proj(hidden_states))
        value = self._split(self.value_proj(hidden_states)).permute(0, 2, 1, 3)
        scores = torch.matmul(query, key.permute(0, 2, 3, 1)) * self.scale
        of_keys, of_queries = relative_pos
        terms = []
        if self.position_keys is not None:
            terms.append(self._band(query, self.position_keys, of_keys))
        if self.position_queries is not None:
            by_key = self._band(key.permute(0, 2, 1, 3), self.position_queries, of_queries)
            terms.append(by_key.transpose(-1, -2))
        if terms:
            scores = scores + sum(terms[1:], terms[0])
        shares = torch.softmax(scores + attention_mask, dim=-1)
        heads = torch.matmul(shares, value).permute(0, 2, 1, 3)
        return heads.reshape(*hidden_states.shape[:2], -1), None

    def _split(self, channels: Tensor) -> Tensor:
        return channels.view(*channels.shape[:2], self.heads, -1)

    def _band(self, tokens: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        """Return the scores of tokens, [pairs, heads, tokens, channels], by distance to others."""
        width = tokens.shape[2]
        by_distance = table.index_select(0, rows).view(-1, self.heads, tokens.shape[3])
        product = torch.matmul(tokens, by_distance.permute(1, 2, 0))
        side_by_side = product.flatten(2)[:, :, width - 1 : width - 1 + width * (2 * width - 1)]
        return side_by_side.reshape(*tokens.shape[:3], 2 * width - 1)[..., :width]
