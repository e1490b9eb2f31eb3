"""A CrossEncoder as one network, from tokens to logits: run by torch, and exported to ONNX.

sentence-transformers' CrossEncoder is a list of modules, of one of three kinds:

- a transformer with its own classification head;
- a transformer that a pooling and a head follow as modules;
- a causal language model, whose score is the difference of two tokens' logits.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
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
    "is_decoder_classifier",
    "its_own_code",
    "load_encoder",
    "load_own",
    "pooling_of",
    "reads_last_token",
    "rope_type",
]

# The argument of from_pretrained.
DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"

# While transformers loads a model, torch makes tensors without data in all threads.
_loads = threading.Lock()


def load_encoder(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    trusted: bool = False,
    pickles: bool = False,
    chat_template: str | None = None,
    **model_kwargs: Any,
) -> Any:
    """Load the CrossEncoder in a folder; `model_kwargs` go to from_pretrained."""
    use_safetensors = None if pickles else True
    processor_kwargs = {} if chat_template is None else {"chat_template": chat_template}
    with _loads:
        return CrossEncoder(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=trusted,
            processor_kwargs=processor_kwargs,
            model_kwargs={DTYPE: dtype, "use_safetensors": use_safetensors, **model_kwargs},
        ).eval()


@contextlib.contextmanager
def its_own_code(folder: ModelFolder) -> Iterator[None]:
    """Raise BadInput where a model has code of its own that is not trusted, or was changed.

    Without this check transformers may take its own code of that name: another model.
    """
    refusal = BadInput(
        f"{folder.path}: runs code that came with the model; "
        "read it, then give `trust_remote_code=True`"
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


def load_own(folder: ModelFolder, dtype: torch.dtype = torch.float32, **model_kwargs: Any) -> Any:
    """Load a model folder's CrossEncoder. Raises BadInput where a file was changed."""
    folder.checked(WEIGHTS)
    with its_own_code(folder):
        return load_encoder(folder.path, dtype, trusted=folder.trusted, **model_kwargs)


def reads_last_token(encoder: Any) -> bool:
    """Return whether a score is read from the last token."""
    if isinstance(encoder[-1], LogitScore) or is_decoder_classifier(encoder):
        return True
    pooling = pooling_of(encoder)
    if pooling is None or pooling.pooling_mode != "lasttoken":
        return False
    return _is_causal(encoder.model)


def _is_causal(model: Any) -> bool:
    """Return whether a token sees none after it."""
    layers = any(getattr(module, "is_causal", False) is True for module in model.modules())
    return layers and getattr(model.config, "is_causal", True) is not False


def rope_type(config: dict[str, Any]) -> str:
    """Return the kind of rotary positions, of transformers 4 or 5."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return str(rope.get("rope_type", rope.get("type", "default")))


def is_decoder_classifier(encoder: Any) -> bool:
    """Return whether this is a decoder with a classification head."""
    return isinstance(getattr(encoder.model, "score", None), nn.Linear)


def pooling_of(encoder: Any) -> Pooling | None:
    return next((module for module in encoder if isinstance(module, Pooling)), None)


class Network(nn.Module):
    """Makes logits, [pairs, labels], of int64[pairs, width] tensors.

    Where scores are read from the last token, pairs are padded on the left, else on the right.
    The head sees one row a pair, and the output vocabulary is cut to the tokens compared.
    The network owns the encoder, and changes it.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        config = encoder.model.config
        self.encoder = encoder
        self.last = reads_last_token(encoder)
        self.is_decoder_classifier = is_decoder_classifier(encoder)
        self.kind = str(config.model_type)
        self.classifies = len(encoder) == 1  # with a head of transformers' own
        self.rotates_by_length = rope_type(config.to_dict()) in ("dynamic", "longrope")
        has_messages = "message" in encoder[0].modality_config
        self.constants: dict[str, Any] = {"modality": "message" if has_messages else "text"}
        parameters = inspect.signature(encoder.model.forward).parameters
        if "use_cache" in parameters:
            self.constants["use_cache"] = False
        if isinstance(encoder[-1], LogitScore):
            self.constants["logits_to_keep"] = 1
            compare_only(encoder.model, encoder[-1])
        self.needs_positions = self.last and "position_ids" in parameters

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask, **self.constants}
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        if self.needs_positions:
            features["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        modules = list(self.encoder)
        if self.is_decoder_classifier:
            del features["modality"]
            hidden = self.encoder.model.base_model(**features)[0]
            features["scores"] = self.encoder.model.score(hidden[:, -1])
            del modules[0]
        for module in modules:
            if isinstance(module, Pooling) and (self.last or module.pooling_mode == "cls"):
                token = -1 if self.last else 0
                features["sentence_embedding"] = features["token_embeddings"][:, token]
            else:
                features = module(features)
        scores: Tensor = features["scores"]
        return scores


def compare_only(model: Any, score: LogitScore) -> None:
    """Cut the output vocabulary to the tokens whose logits are compared."""
    output = model.get_output_embeddings()
    tokens = [token for token in (score.true_token_id, score.false_token_id) if token is not None]
    output.weight = nn.Parameter(output.weight.detach()[tokens].clone())
    if output.bias is not None:
        output.bias = nn.Parameter(output.bias.detach()[tokens].clone())
    output.out_features = len(tokens)
    score.true_token_id = 0
    score.false_token_id = 1 if len(tokens) > 1 else None
