"""What sentence-transformers' arguments and attributes mean where a model folder is opened."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import Manifest
from xopt.runtime.scoring.device import unnumbered

__all__ = [
    "ABSENT",
    "NO_EFFECT_IN_PREDICT",
    "NO_EFFECT_IN_RANK",
    "ModelCard",
    "Opening",
    "check_call",
    "opening",
]

# Older names of the constructor's arguments.
RENAMED = {
    "model_name": "model_name_or_path",
    "automodel_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "tokenizer_kwargs": "processor_kwargs",
    "config_args": "config_kwargs",
    "cache_dir": "cache_folder",
    "default_activation_function": "activation_fn",
}
# Nothing is downloaded, trained or published here.
NO_EFFECT = (
    "cache_folder",
    "classifier_dropout",
    "local_files_only",
    "model_card_data",
    "token",
)
NO_EFFECT_IN_PREDICT = ("num_workers", "chunk_size")
NO_EFFECT_IN_RANK = (
    *NO_EFFECT_IN_PREDICT,
    "apply_softmax",
    "convert_to_numpy",
    "convert_to_tensor",
)
DTYPE = "a model folder has its dtype: choose a variant with `variant=`"
PROMPT = "give `prompt=` to `predict` or `rank`, which replaces the folder's own"
TRAINS = "a model folder does not train: train the model, and export it"
ON_DISK = "a model folder is on disk: copy it"
NO_MODULE = "a model folder is no torch module"
# Why an argument of the constructor can ask for nothing.
REFUSED = {
    "backend": 'a model folder has its backends: choose a variant, as `variant="onnx-fp32"`',
    "config_kwargs": "a model folder has its configuration: change it, and export the model again",
    "default_prompt_name": PROMPT,
    "keep_in_fp32_modules": DTYPE,
    "model_kwargs": "a model folder is loaded as its variant says: choose one with `variant=`",
    "modules": "a model folder has its modules: export the model that is made of these",
    "processor_kwargs": "a model folder has its tokenizer: change it, and export the model again",
    "prompts": PROMPT,
    "revision": "a model folder is one revision: export the model of this one",
}
# Why an attribute of sentence-transformers' is not there.
ABSENT = {
    "bfloat16": DTYPE,
    "compile": NO_MODULE,
    "config": "load it with `transformers.AutoConfig.from_pretrained(DIR)`",
    "cpu": 'open the model folder with `device="cpu"`',
    "cuda": 'open the model folder with `device="cuda"`',
    "default_prompt_name": PROMPT,
    "dtype": "its variant has a precision, and may mix several: see `variant`",
    "fit": TRAINS,
    "float": DTYPE,
    "forward": NO_MODULE,
    "half": DTYPE,
    "model": NO_MODULE,
    "parameters": NO_MODULE,
    "prompts": PROMPT,
    "push_to_hub": ON_DISK,
    "save": ON_DISK,
    "save_pretrained": ON_DISK,
    "start_multi_process_pool": "one process uses the whole machine, by its plan: leave out `pool`",
    "tokenizer": "load it with `transformers.AutoTokenizer.from_pretrained(DIR)`",
    "train": TRAINS,
}


class ModelCard:
    """Takes what sentence-transformers' evaluators note of a model, and keeps nothing."""

    def set_evaluation_metrics(self, *metrics: object) -> None:
        """Keep nothing: evaluators return their metrics, too."""


@dataclass(frozen=True)
class Opening:
    """How a model folder is opened, as the constructor's arguments ask for it."""

    folder: Any
    variant: str | None
    labels: int | None
    max_length: int | None
    activation_fn: Any

    def check(self, manifest: Manifest) -> None:
        """Raise BadInput where the folder has another number of labels."""
        if self.labels not in (None, manifest.labels):
            raise BadInput(
                f"num_labels={self.labels}: {self.folder} has {manifest.labels}; "
                "export the model with a head of as many, or leave it out"
            )


def opening(given: dict[str, Any]) -> Opening:
    """Read arguments by name, older names among them. What is None has no effect.

    Raises BadInput for what cannot be, with the reason, and TypeError for a name that
    sentence-transformers does not have.
    """
    asked: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None:
            asked.setdefault(RENAMED.get(name, name), value)
    if "model_name_or_path" not in asked:
        raise TypeError("CrossEncoder() needs a model folder")
    folder = asked.pop("model_name_or_path")
    variant = asked.pop("variant", None)
    labels = asked.pop("num_labels", None)
    if isinstance(variant, int):  # which sentence-transformers has second
        labels = variant
        variant = None
    processor = _without_none(asked.pop("processor_kwargs", {}))
    config = _without_none(asked.pop("config_kwargs", {}))
    tokens = processor.pop("model_max_length", None)
    labels = config.pop("num_labels", labels)
    opened = Opening(
        folder, variant, labels, asked.pop("max_length", tokens), asked.pop("activation_fn", None)
    )
    _refuse(asked | {"processor_kwargs": processor, "config_kwargs": config}, variant)
    return opened


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _refuse(asked: dict[str, Any], variant: str | None) -> None:
    """Raise BadInput where an argument asks for something, and TypeError for an unknown one."""
    for name, value in asked.items():
        if name in NO_EFFECT:
            continue
        if name not in REFUSED:
            raise TypeError(f"CrossEncoder() got an unexpected keyword argument {name!r}")
        if name == "model_kwargs":
            _refuse_model_kwargs(_without_none(value))
        elif value and not (name == "backend" and _is_backend_of(value, variant)):
            raise BadInput(f"{name}={value!r}: {REFUSED[name]}")


def _is_backend_of(backend: str, variant: str | None) -> bool:
    """Whether a variant runs on this backend; torch is asked for by default, and means any."""
    return backend == "torch" or (variant or "").startswith(f"{backend}-")


def _refuse_model_kwargs(values: dict[str, Any]) -> None:
    for name, value in values.items():
        is_dtype = name in ("dtype", "torch_dtype")
        if not (is_dtype and value == "auto"):
            reason = DTYPE if is_dtype else REFUSED["model_kwargs"]
            raise BadInput(f"{name}={value!r}: {reason}")


def check_call(
    others: dict[str, Any], no_effect: Collection[str], batch_size: int, device: str
) -> None:
    """Check the arguments of `predict` or `rank` that do nothing here.

    Raises TypeError where one asks for something, and ValueError for a batch size below 1.
    """
    for name, value in others.items():
        if value is None or name in no_effect:
            continue
        if name != "device" or unnumbered(value) != device:
            raise TypeError(
                f"{name}={value!r}: a model folder has no such argument; "
                "give it when the folder is opened"
            )
    if batch_size <= 0:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
