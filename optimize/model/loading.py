"""Load a CrossEncoder, after checks of its files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from xopt.optimize.model.chat import Asked, set_answers
from xopt.optimize.model.source import CONFIG_FILES, module_folders, read_json
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.folder import MANIFEST, modules_of
from xopt.runtime.scoring.backends.network import load_encoder

__all__ = ["check_config_files", "load_checked"]

log = logging.getLogger(__name__)

TRUST = "read it, then give `trust_remote_code=True`"


def load_checked(folder: Path, model: str, asked: Asked, trusted: bool, pickles: bool) -> Any:
    """Return the CrossEncoder in `folder`; `model` is the name that the user gave.

    Raises BadInput where files are missing or damaged, where there is no CrossEncoder,
    or where it needs code or pickles that are not allowed.
    """
    _check_kind(folder, model, trusted)
    _check_weight_files(folder, model, pickles)
    try:
        encoder = load_encoder(
            folder, trusted=trusted, pickles=pickles, chat_template=asked.template
        )
        missing = _missing_weights(encoder, folder, pickles)
    except Exception as error:  # each architecture fails in its own way
        raise BadInput(
            f"{model}: sentence-transformers cannot load it ({first_line(error)}); get it again, "
            "or install the versions that it was made with"
        ) from error
    if missing:
        raise BadInput(f"{model}: its weights lack {missing[0]!r}; train its head, or get it again")
    if "message" not in encoder[0].modality_config:
        _check_plain(asked, model)
    if asked.answers:
        set_answers(encoder, model, asked.answers)
    for name, weight in encoder.model.named_parameters():
        if weight.isnan().any():
            log.warning("%s: NaN in its weights %s; some pairs have no score", model, name)
            break
    return encoder


def _check_plain(asked: Asked, model: str) -> None:
    """Raise BadInput where a model without a chat template should have one."""
    if asked.template is not None:
        raise BadInput(
            f"{model}: was saved as a model that reads plain pairs; leave `template=` out"
        )
    if asked.answers:
        raise BadInput(f"{model}: has no chat template; give it one with `template=`")


def check_config_files(folder: Path, model: str) -> None:
    """Raise BadInput where a configuration file is missing or damaged."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{model}: no config.json in it; give a CrossEncoder's folder")
    for name in (*CONFIG_FILES, MANIFEST):
        _check_objects(folder / name)
    for place in module_folders(folder):
        _check_objects(place / "config.json")


def _check_objects(file: Path) -> None:
    content = read_json(file)
    values = content if isinstance(content, list) else [content]
    if not all(isinstance(value, dict) for value in values):
        raise BadInput(f"{file}: damaged, not made of JSON objects; get it again")


def _check_kind(folder: Path, model: str, trusted: bool) -> None:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:  # each architecture checks its own
        if "trust_remote_code" in str(error):
            raise BadInput(f"{model}: runs code from its repository; {TRUST}") from error
        raise BadInput(
            f"{model}: its config.json cannot be read ({first_line(error)}); get it again, "
            "or install a transformers that knows it"
        ) from error
    modules = modules_of(folder)
    for name, _ in modules:
        if not name.startswith("sentence_transformers.") and not trusted:
            raise BadInput(f"{model}: its module {name} is code of its own; {TRUST}")
    if len(modules) > 1:
        if not any(_gives_scores(folder / path, name) for name, path in modules):
            names = ", ".join(name.rpartition(".")[2] for name, _ in modules)
            raise BadInput(
                f"{model}: no module gives scores ({names}): a bi-encoder? Give a CrossEncoder"
            )
    elif config.architectures:
        _check_architecture(config.architectures[0], model)


def _check_architecture(architecture: str, model: str) -> None:
    if not architecture.endswith(("ForSequenceClassification", "ForCausalLM")):
        raise BadInput(f"{model}: {architecture} has no classification head; give a CrossEncoder")


def _gives_scores(folder: Path, module: str) -> bool:
    """Return whether a module gives scores; custom code may."""
    if not module.startswith("sentence_transformers.") or module.endswith(".LogitScore"):
        return True
    settings = read_json(folder / "config.json")
    return bool(settings.get("module_output_name") == "scores")


def _check_weight_files(folder: Path, model: str, pickles: bool) -> None:
    for place in module_folders(folder):
        files = list(place.glob("*.safetensors"))
        has_weights = place == folder or (place / "pytorch_model.bin").is_file()
        if has_weights and not files and not pickles:
            raise BadInput(
                f"{model}: no safetensors weights in {place}; get it again, "
                "or read pickles, which can run code, with `allow_pickle=True`"
            )
        for file in files:
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise BadInput(f"{file}: damaged ({error}); get it again") from error


def _missing_weights(encoder: Any, folder: Path, pickles: bool) -> list[str]:
    network = encoder.model
    _, info = type(network).from_pretrained(
        folder, output_loading_info=True, use_safetensors=None if pickles else True
    )
    missing = sorted(info["missing_keys"])
    if network is network.base_model:  # without a head; no module reads its pooler
        return [name for name in missing if "pooler" not in name]
    return missing
