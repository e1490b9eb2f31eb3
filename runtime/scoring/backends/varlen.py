"""A CrossEncoder run over pairs end to end: no padding anywhere, and the last layer for one row a
pair.

The weights are those of the transformers model; see `xopt.runtime.scoring.backends.varlen_layers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from xopt.runtime.folder import modules_of
from xopt.runtime.scoring.backends.network import compare_only, rope_type
from xopt.runtime.scoring.backends.packed import Packed
from xopt.runtime.scoring.backends.varlen_layers import (
    BertEmbedding,
    BertLayer,
    DecoderLayer,
    ModernLayer,
    Window,
)

__all__ = ["VARLEN_TYPES", "VarlenNetwork", "has_packed_form"]

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
DECODERS = ("gemma", "llama", "mistral", "qwen2", "qwen3")
VARLEN_TYPES = (*BERT_LIKE, "modernbert", *DECODERS)
# what a pooling reads, by sentence-transformers' name
ROWS = {"cls": "first", "lasttoken": "last", "mean": "mean"}

Layer = BertLayer | ModernLayer | DecoderLayer


def has_packed_form(folder: Path) -> bool:
    """Whether the model in a folder can run packed, by its configuration; not with code of its
    own.
    """
    if any(folder.glob("*.py")):
        return False
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    poolings = [path for kind, path in modules_of(folder) if kind.endswith(".Pooling")]
    if poolings and modules_of(folder)[1][1] != poolings[0]:
        return False  # what stands before it sees every token
    modes = [
        json.loads((folder / path / "config.json").read_text(encoding="utf-8")) for path in poolings
    ]
    return _packs(config) and all(_reads(mode.get("pooling_mode")) for mode in modes)


def _packs(config: dict[str, Any]) -> bool:
    """Whether there are packed layers for this config.json."""
    kind = config["model_type"]
    windows = {"sliding_attention", "chunked_attention"} & set(config.get("layer_types") or ())
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    sliding = bool(window) and window < config.get("max_position_embeddings", 0)
    if kind in DECODERS:
        turns = rope_type(config) in ("default", "linear", "llama3")
        return not windows and not sliding and turns and config.get("is_causal", True) is not False
    encodes = config.get("position_embedding_type", "absolute") == "absolute" and not config.get(
        "is_decoder"
    )
    return kind in VARLEN_TYPES and encodes


def _reads(mode: Any) -> str:
    """Which rows of a pair a pooling reads; empty where it reads them in another way, or in
    several.
    """
    return ROWS.get(mode, "") if isinstance(mode, str) else ""


class VarlenNetwork:
    """Runs a CrossEncoder over packed pairs: `network(packed)` gives logits, float32[pairs,
    labels].

    The body runs in `dtype`, the head in FP32: it sees a row a pair, and FP16 would tie
    near-equal logits. It takes the encoder over, and changes it. Raises ValueError for a model
    that has no packed form.
    """

    def __init__(self, encoder: Any, dtype: torch.dtype, device: str, *, typed: bool) -> None:
        model = encoder.model
        kind = model.config.model_type
        if not _packs(model.config.to_dict()):
            raise ValueError(
                f"{kind}: no packed form; it takes {', '.join(VARLEN_TYPES)} with absolute positions"
            )
        reach = max(model.config.max_position_embeddings, encoder.max_seq_length or 0)
        # before the body's buffers lose precision
        turns = _turns(model, reach) if kind == "modernbert" else {}
        rotary = model.base_model.rotary_emb.to(device) if kind in DECODERS else None
        body = model.base_model
        for name, part in body.named_children():  # what turns by position stays in FP32
            part.to(device=device, dtype=None if name == "rotary_emb" else dtype)
        self._reads, self._head = _head(encoder, kind, device)
        self._embed: Callable[[Packed], Tensor]
        self._layers: list[Layer]
        self._norm: Callable[[Tensor], Tensor] = nn.Identity()
        if kind == "modernbert":
            parts, heads = body.embeddings, model.config.num_attention_heads
            self._embed = lambda packed: parts.norm(parts.tok_embeddings(packed.ids))
            self._norm = body.final_norm.float()
            windows = [
                (model.config.local_attention // 2,) * 2 if local else None
                for local in _local(model)
            ]
            self._layers = [
                ModernLayer(
                    layer, heads, [table.to(device) for table in turns[window is not None]], window
                )
                for layer, window in zip(body.layers, windows, strict=True)
            ]
        elif kind in DECODERS:
            words, scale = body.embed_tokens, _embedding_scale(body, kind)
            self._embed = lambda packed: words(packed.ids) * scale
            self._norm = body.norm.float()
            self._layers = [DecoderLayer(layer, rotary) for layer in body.layers]
        else:
            self._embed = BertEmbedding(body, kind, typed)
            self._layers = [BertLayer(layer) for layer in body.encoder.layer]

    def __call__(self, packed: Packed) -> Tensor:
        """Logits of packed pairs."""
        hidden = self._embed(packed)
        *layers, last = self._layers
        for layer in layers:
            hidden = layer(hidden, packed, None)
        rows = {"first": packed.starts, "last": packed.ends}.get(self._reads)
        # A window of flash attention lies at the end of the keys where queries are fewer: no one
        # row through it.
        narrow = _narrows(last.window, self._reads)
        hidden = last(hidden, packed, rows if narrow else None)
        if rows is not None:
            return self._head(self._norm((hidden if narrow else hidden[rows]).float()))
        sums = torch.zeros(packed.pairs, hidden.shape[1], device=hidden.device)
        sums.index_add_(0, packed.rows, self._norm(hidden.float()))
        return self._head(sums / (packed.bounds[1:] - packed.bounds[:-1])[:, None])


def _narrows(window: Window, reads: str) -> bool:
    """Whether the last layer can run for one row: it sees all, or all that lies before it and is
    the last.
    """
    return reads != "mean" and (window is None or (reads == "last" and window[0] < 0))


def _embedding_scale(body: Any, kind: str) -> float:
    """What word embeddings are multiplied by outside of their own module: Gemma's, before
    transformers 5.
    """
    outside = kind == "gemma" and not hasattr(body.embed_tokens, "embed_scale")
    return float(body.config.hidden_size) ** 0.5 if outside else 1.0


def _local(model: Any) -> list[bool]:
    """Which layers of a ModernBERT see a window only."""
    config = model.config
    kinds = getattr(config, "layer_types", None)  # since transformers 5
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    return [
        number % config.global_attn_every_n_layers != 0
        for number in range(config.num_hidden_layers)
    ]


def _turns(model: Any, reach: int) -> dict[bool, tuple[Tensor, Tensor]]:
    """Cosines and sines, FP32 [reach, 1, size], of layers that see all and of those that see a
    window.
    """
    body, like = model.base_model, torch.zeros(1)
    positions = torch.arange(reach)[None]
    made = {}
    for local, layer in dict(zip(_local(model), body.layers, strict=True)).items():
        if hasattr(body, "rotary_emb"):  # transformers 5
            cos, sin = body.rotary_emb(
                like, positions, "sliding_attention" if local else "full_attention"
            )
        else:
            cos, sin = layer.attn.rotary_emb(like, positions)
        made[local] = cos[0][:, None], sin[0][:, None]
    return made


def _head(encoder: Any, kind: str, device: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Which rows of a pair are read, and what makes of those, float32[pairs, hidden],
    float32[pairs, labels].
    """
    model, pooling = (
        encoder.model,
        next((module for module in encoder if isinstance(module, Pooling)), None),
    )
    if pooling is not None:
        after = [
            module.to(device).float()
            for module in list(encoder)[list(encoder).index(pooling) + 1 :]
        ]
        return _reads(pooling.pooling_mode), lambda rows: _through(
            after, {"sentence_embedding": rows}
        )
    if isinstance(encoder[-1], LogitScore):
        compare_only(model, encoder[-1])
        kept = model.get_output_embeddings().to(device).float()
        score = encoder[-1]
        return "last", lambda rows: _through(
            [score], {score.module_input_name: kept(rows)[:, None]}
        )
    reads, head = _classifier(model, kind, device)
    after = [module.to(device).float() for module in list(encoder)[1:]]
    return reads, lambda rows: _through(after, {"scores": head(rows)})


def _classifier(model: Any, kind: str, device: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The same for a classification head of transformers."""
    if kind in DECODERS:
        return "last", model.score.to(device).float()
    classifier = model.classifier.to(device).float()
    if kind == "modernbert":
        head = model.head.to(device).float()
        reads = "mean" if model.config.classifier_pooling == "mean" else "first"
        return reads, lambda rows: classifier(head(rows))
    if kind == "bert":
        pooler = model.base_model.pooler.float()
        return "first", lambda rows: classifier(pooler(rows[:, None]))
    return "first", lambda rows: classifier(rows[:, None])


def _through(modules: list[nn.Module], features: dict[str, Tensor]) -> Tensor:
    for module in modules:
        features = module(features)
    return features["scores"]
