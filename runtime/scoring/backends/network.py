"""A CrossEncoder as one network, from tokens to logits: what torch runs, and what is exported to
ONNX.

sentence-transformers' CrossEncoder is a list of modules: a transformer with its classification
head; a transformer, a pooling and a head of their own; or a causal language model, whose score is
the logit of one token less that of another.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import WEIGHTS, ModelFolder

__all__ = [
    "DTYPE",
    "Network",
    "compare_only",
    "decodes",
    "its_own_code",
    "load_encoder",
    "load_own",
    "reads_last",
    "rope_type",
]

# from_pretrained's name
DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def load_encoder(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    trusted: bool = False,
    pickles: bool = False,
    **how: Any,
) -> Any:
    """The CrossEncoder in a folder, on the CPU; `how` goes to transformers' from_pretrained.
    Nothing is downloaded.
    """
    return CrossEncoder(
        str(folder),
        device="cpu",
        local_files_only=True,
        trust_remote_code=trusted,
        model_kwargs={DTYPE: dtype, "use_safetensors": None if pickles else True, **how},
    ).eval()


@contextlib.contextmanager
def its_own_code(folder: ModelFolder) -> Iterator[None]:
    """Raises BadInput where a model needs code that came with it and was not trusted, or was
    changed since.

    Without it transformers may take its own code of that name, which is another model.
    """
    refusal = BadInput(
        f"{folder.path}: runs code that came with the model; read it, then give --trust-remote-code "
        "(trust_remote_code=True)"
    )
    for file in folder.manifest.files:
        if file.endswith(".py"):
            if not folder.trusted:
                raise refusal
            folder.checked(file)
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise refusal from error


def load_own(folder: ModelFolder, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    """The CrossEncoder of a model folder, as `load_encoder`. Raises BadInput where its weights or
    code were changed.
    """
    folder.checked(WEIGHTS)
    with its_own_code(folder):
        return load_encoder(folder.path, dtype, trusted=folder.trusted, **how)


def reads_last(encoder: Any) -> bool:
    """Whether a score is read from the last token: of a language model, or of one with a head on
    that token.
    """
    pooling = _pooling(encoder)
    return (
        isinstance(encoder[-1], LogitScore)
        or decodes(encoder)
        or (
            pooling is not None
            and pooling.pooling_mode == "lasttoken"
            and _causal_body(encoder.model)
        )
    )


def _causal_body(model: Any) -> bool:
    """Whether a token of this network sees none behind it."""
    causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
    return causal and getattr(model.config, "is_causal", True) is not False


def rope_type(config: dict[str, Any]) -> str:
    """How positions turn, by config.json of transformers 4 or 5."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return str(rope.get("rope_type", rope.get("type", "default")))


def decodes(encoder: Any) -> bool:
    """Whether this is a decoder with a classification head, which transformers names `score` in
    all of them.
    """
    return isinstance(getattr(encoder.model, "score", None), nn.Linear)


def _pooling(encoder: Any) -> Pooling | None:
    return next((module for module in encoder if isinstance(module, Pooling)), None)


class Network(nn.Module):
    """`network(input_ids, attention_mask[, token_type_ids])`, int64[pairs, width], gives logits,
    [pairs, labels].

    Where scores are read from the last token, pairs are padded on the left, and only that token's
    row goes through the head; elsewhere on the right. Of a vocabulary only the tokens that are
    compared get logits. It takes the encoder over, and may change it.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.last = reads_last(encoder)
        self.decodes = decodes(encoder)
        self.kind = str(encoder.model.config.model_type)
        self.classifies = len(encoder) == 1  # by a head of transformers' own
        self.turns_by_length = rope_type(encoder.model.config.to_dict()) in ("dynamic", "longrope")
        self.fixed: dict[str, Any] = {
            "modality": "message" if "message" in encoder[0].modality_config else "text"
        }
        parameters = inspect.signature(encoder.model.forward).parameters
        if "use_cache" in parameters:
            self.fixed["use_cache"] = False
        if isinstance(encoder[-1], LogitScore):
            self.fixed["logits_to_keep"] = 1
            compare_only(encoder.model, encoder[-1])
        self.placed = self.last and "position_ids" in parameters

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits, in the precision of the head."""
        features = {"input_ids": input_ids, "attention_mask": attention_mask, **self.fixed}
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        if self.placed:
            features["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        modules = list(self.encoder)
        if self.decodes:
            del features["modality"]
            hidden = self.encoder.model.base_model(**features)[0]
            features["scores"] = self.encoder.model.score(hidden[:, -1])
            del modules[0]
        for module in modules:
            if isinstance(module, Pooling) and (self.last or module.pooling_mode == "cls"):
                features["sentence_embedding"] = features["token_embeddings"][
                    :, -1 if self.last else 0
                ]
            else:
                features = module(features)
        scores: Tensor = features["scores"]
        return scores


def compare_only(model: Any, score: LogitScore) -> None:
    """Leave of the vocabulary the tokens whose logits are compared."""
    whole = model.get_output_embeddings()
    tokens = [token for token in (score.true_token_id, score.false_token_id) if token is not None]
    kept = nn.Linear(
        whole.in_features, len(tokens), whole.bias is not None, dtype=whole.weight.dtype
    )
    kept.weight = nn.Parameter(whole.weight.detach()[tokens].clone())
    if whole.bias is not None:
        kept.bias = nn.Parameter(whole.bias.detach()[tokens].clone())
    model.set_output_embeddings(kept)
    score.true_token_id, score.false_token_id = 0, 1 if len(tokens) > 1 else None
