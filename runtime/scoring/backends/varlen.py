"""A CrossEncoder over pairs end to end: no padding, and the last layer for one row a pair.

Its layers use the weights of the transformers model; see
`xopt.runtime.scoring.backends.varlen_layers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import Tensor, nn

from xopt.runtime.folder import modules_of
from xopt.runtime.scoring.backends.network import compare_only, pooling_of, rope_type
from xopt.runtime.scoring.backends.packed import Packed
from xopt.runtime.scoring.backends.varlen_layers import (
    ALL,
    CAUSAL,
    BertEmbedding,
    BertLayer,
    DecoderLayer,
    ModernLayer,
)

__all__ = ["VARLEN_TYPES", "VarlenNetwork", "has_packed_form"]

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
DECODERS = ("gemma", "llama", "mistral", "qwen2", "qwen3")
VARLEN_TYPES = (*BERT_LIKE, "modernbert", *DECODERS)
# The rows that a pooling reads, by sentence-transformers' name for it.
POOLED_ROWS = {"cls": "first", "lasttoken": "last", "mean": "mean"}

Head = Callable[[Tensor], Tensor]  # of float32[pairs, hidden] to float32[pairs, labels]


def has_packed_form(folder: Path) -> bool:
    """Return whether the model in a folder can run packed."""
    if any(folder.glob("*.py")):
        return False  # its own code
    for place, (kind, path) in enumerate(modules_of(folder)):
        if kind.endswith(".Pooling"):
            mode = _read_json(folder / path / "config.json").get("pooling_mode")
            # A module before the pooling would see every token.
            if place != 1 or mode not in list(POOLED_ROWS):  # or a list of modes
                return False
    config = _read_json(folder / "config.json")
    kind = config["model_type"]
    if kind in DECODERS:
        if config.get("is_causal", True) is False or _has_windows(config):
            return False
        return rope_type(config) in ("default", "linear", "llama3")
    absolute = config.get("position_embedding_type", "absolute") == "absolute"
    return kind in VARLEN_TYPES and absolute and not config.get("is_decoder")


def _read_json(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def _has_windows(config: dict[str, Any]) -> bool:
    if {"sliding_attention", "chunked_attention"} & set(config.get("layer_types") or ()):
        return True
    if not config.get("use_sliding_window", True):
        return False
    window = config.get("sliding_window")
    return bool(window) and window < config.get("max_position_embeddings", 0)


@dataclass(frozen=True)
class _Body:
    """A model up to its head."""

    embed: Callable[[Packed], Tensor]
    layers: list[Any]
    norm: Callable[[Tensor], Tensor]


class VarlenNetwork:
    """Makes logits, float32[pairs, labels], of packed pairs.

    The body runs in `dtype`, and the head in FP32: FP16 would tie near-equal logits.
    `typed` says that the tokenizer gives token types.
    The network owns the encoder, and changes it.
    """

    def __init__(self, encoder: Any, dtype: torch.dtype, device: str, *, typed: bool) -> None:
        model = encoder.model
        kind = model.config.model_type
        rotations: dict[bool, tuple[Tensor, Tensor]] = {}
        if kind == "modernbert":  # before its buffers lose precision
            rotations = _rotations(model, encoder.max_seq_length or 0, device)
        for name, part in model.base_model.named_children():
            part.to(device=device, dtype=None if name == "rotary_emb" else dtype)
        self._reads, self._head = _head(encoder, kind, device)
        if kind == "modernbert":
            self._body = _modernbert(model, rotations)
        elif kind in DECODERS:
            self._body = _decoder(model.base_model, kind)
        else:
            self._body = _bert(model.base_model, kind, typed)

    def __call__(self, packed: Packed) -> Tensor:
        hidden = self._body.embed(packed)
        *layers, last = self._body.layers
        for layer in layers:
            hidden = layer(hidden, packed, ALL)
        if self._reads == "mean":
            hidden = self._body.norm(last(hidden, packed, ALL).float())
            sums = torch.zeros(packed.pairs, hidden.shape[1], device=hidden.device)
            sums.index_add_(0, packed.rows, hidden)
            return self._head(sums / packed.counts[:, None])
        rows = packed.starts if self._reads == "first" else packed.ends
        # The last layer runs for one row where that sees the whole pair. With a window it cannot:
        # flash attention counts that from the last key.
        if last.window is None or (last.window == CAUSAL and self._reads == "last"):
            hidden = last(hidden, packed, rows)
        else:
            hidden = last(hidden, packed, ALL)[rows]
        return self._head(self._body.norm(hidden.float()))


def _bert(body: Any, kind: str, typed: bool) -> _Body:
    layers = [BertLayer(layer) for layer in body.encoder.layer]
    return _Body(BertEmbedding(body, kind, typed), layers, nn.Identity())


def _decoder(body: Any, kind: str) -> _Body:
    scale = 1.0
    # Before transformers 5 Gemma scales word embeddings outside of their module.
    if kind == "gemma" and not hasattr(body.embed_tokens, "embed_scale"):
        scale = float(body.config.hidden_size) ** 0.5
    layers = [DecoderLayer(layer, body.rotary_emb) for layer in body.layers]
    return _Body(lambda packed: body.embed_tokens(packed.ids) * scale, layers, body.norm.float())


def _modernbert(model: Any, rotations: dict[bool, tuple[Tensor, Tensor]]) -> _Body:
    body = model.base_model
    words = body.embeddings
    heads = model.config.num_attention_heads
    reach = model.config.local_attention // 2
    layers = []
    for layer, local in zip(body.layers, _local_layers(model.config), strict=True):
        window = (reach, reach) if local else None
        layers.append(ModernLayer(layer, heads, rotations[local], window))
    return _Body(
        lambda packed: words.norm(words.tok_embeddings(packed.ids)),
        layers,
        body.final_norm.float(),
    )


def _local_layers(config: Any) -> list[bool]:
    """Return which layers of a ModernBERT see a window only."""
    kinds = getattr(config, "layer_types", None)
    if kinds:  # since transformers 5
        return [kind == "sliding_attention" for kind in kinds]
    every = config.global_attn_every_n_layers
    return [number % every != 0 for number in range(config.num_hidden_layers)]


def _rotations(model: Any, max_length: int, device: str) -> dict[bool, tuple[Tensor, Tensor]]:
    """Return cosines and sines, FP32[positions, 1, size], of local layers and others."""
    body = model.base_model
    reach = max(model.config.max_position_embeddings, max_length)
    positions = torch.arange(reach)[None]
    like = torch.zeros(1)
    tables = {}
    one_of_each = dict(zip(_local_layers(model.config), body.layers, strict=True))
    for local, layer in one_of_each.items():
        if hasattr(body, "rotary_emb"):  # transformers 5
            kind = "sliding_attention" if local else "full_attention"
            cos, sin = body.rotary_emb(like, positions, kind)
        else:
            cos, sin = layer.attn.rotary_emb(like, positions)
        tables[local] = (cos[0][:, None].to(device), sin[0][:, None].to(device))
    return tables


def _head(encoder: Any, kind: str, device: str) -> tuple[str, Head]:
    """Return the rows that the head reads, "first", "last" or "mean", and the head."""
    model = encoder.model
    pooling = pooling_of(encoder)
    if pooling is not None:
        behind = list(encoder)[list(encoder).index(pooling) + 1 :]
        head = _through(behind, "sentence_embedding", device)
        return POOLED_ROWS[str(pooling.pooling_mode)], head
    if isinstance(encoder[-1], LogitScore):
        compare_only(model, encoder[-1])
        words = model.get_output_embeddings().to(device).float()
        score = _through([encoder[-1]], encoder[-1].module_input_name, device)
        return "last", lambda rows: score(words(rows)[:, None])
    reads, classify = _classifier(model, kind, device)
    finish = _through(list(encoder)[1:], "scores", device)
    return reads, lambda rows: finish(classify(rows))


def _classifier(model: Any, kind: str, device: str) -> tuple[str, Head]:
    """Return the same for a classification head of transformers."""
    if kind in DECODERS:
        return "last", model.score.to(device).float()
    classifier = model.classifier.to(device).float()
    if kind == "modernbert":
        dense = model.head.to(device).float()
        reads = "mean" if model.config.classifier_pooling == "mean" else "first"
        return reads, lambda rows: classifier(dense(rows))
    if kind == "bert":
        pooler = model.base_model.pooler.float()
        return "first", lambda rows: classifier(pooler(rows[:, None]))
    return "first", lambda rows: classifier(rows[:, None])


def _through(modules: Iterable[nn.Module], name: str, device: str) -> Head:
    """Join modules of sentence-transformers to one function of the feature `name`."""
    placed = [module.to(device).float() for module in modules]

    def head(values: Tensor) -> Tensor:
        features = {name: values}
        for module in placed:
            features = module(features)
        return features["scores"]

    return head
