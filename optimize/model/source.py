"""Where a model comes from (a folder, the hub, the demo), and whether it changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from xopt.optimize.model.demo import write_demo
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import sha256_of
from xopt.runtime.folder import WEIGHTS, modules_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

__all__ = [
    "CONFIG_FILES",
    "DEMO",
    "PICKLES",
    "WEIGHTS_INDEX",
    "changed_since",
    "default_out",
    "fingerprint",
    "local_folder",
    "materialise",
    "module_folders",
    "read_json",
    "same_model",
]

log = logging.getLogger(__name__)

DEMO = "demo"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
CONFIG_FILES = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    WEIGHTS_INDEX,
)
# What is loaded of a model; not checkpoints and other formats of its weights.
LOADED = (*CONFIG_FILES, "*.safetensors", "vocab.txt", "merges.txt", "*.model", "*.py", "*.jinja")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
HUB_TIMEOUT_S = 10


def read_json(file: Path) -> Any:
    """Return the content of a JSON file, or {} where there is none.

    Raises BadInput where it is not JSON.
    """
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: damaged, not JSON ({error}); get it again") from error


def local_folder(model: str) -> Path | None:
    """Return the folder that `model` names; None for a hub id and for `demo`."""
    try:
        folder = Path(model).expanduser()
    except RuntimeError:  # ~name of a user who does not exist
        return None
    return folder if model != DEMO and folder.is_dir() else None


def default_out(model: str) -> Path:
    """Return `models/NAME-xopt`, with the last part of a hub id or a path."""
    folder = local_folder(model)
    name = folder.resolve().name if folder else model.rstrip("/").rpartition("/")[2]
    return Path("models", f"{name}-xopt")


def same_model(model: str, recorded: dict[str, str]) -> bool:
    """Return whether a folder was made of `model`; `recorded` is its manifest's `source`.

    A path can be spelled in many ways, so the same files count as the same model, too.
    """
    if model == recorded["model"]:
        return True
    folder = local_folder(model)
    if folder is None:
        return False
    recorded_folder = local_folder(recorded["model"])
    if recorded_folder is not None and folder.resolve() == recorded_folder.resolve():
        return True
    return fingerprint(folder) == recorded["sha256"]


@contextlib.contextmanager
def materialise(model: str, allow_pickle: bool = False) -> Iterator[Path]:
    """Yield a folder with `model`, which is temporary for `demo`.

    Raises BadInput where there is no such model.
    """
    folder = local_folder(model)
    if folder:
        yield folder
    elif model == DEMO:
        if Path(DEMO).is_dir():
            log.warning("demo: the built-in model; give ./demo for the folder of that name")
        with TemporaryDirectory(prefix="xopt-demo-") as scratch:
            write_demo(Path(scratch))
            yield Path(scratch)
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise BadInput(f"{model}: no such folder; give a hub id, a folder or `demo`")
    else:
        yield _snapshot(model, allow_pickle)


def _ask_hub(model: str) -> ModelInfo | None:
    """Return the hub's answer on the newest revision of a model; None for no answer.

    Raises BadInput where it has no such model, or not for this user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return HfApi().model_info(model, timeout=HUB_TIMEOUT_S)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise _not_found(model, first_line(error)) from error
    except Exception as error:  # out of reach: each version has its own
        reason = type(error).__name__
        log.info("%s: no answer from the hub (%s); the cached model is used", model, reason)
        return None


def _not_found(model: str, reason: str) -> BadInput:
    return BadInput(f"{model}: neither a folder here nor a model that the hub gives ({reason})")


def _snapshot(model: str, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download

    answer = _ask_hub(model)
    files = (*LOADED, *PICKLES) if allow_pickle else LOADED
    try:
        # No `revision=`: the cache then knows which one is the newest.
        folder = snapshot_download(
            model,
            allow_patterns=[*files, *(f"*/{name}" for name in files)],
            ignore_patterns=["onnx/*", "openvino/*", "checkpoint-*"],
            local_files_only=answer is None,
        )
    except Exception as error:
        reason = first_line(error) if answer else "no answer, and nothing is cached"
        raise _not_found(model, reason) from error
    return Path(folder)


def module_folders(folder: Path) -> list[Path]:
    """Return a model's folder and those of its modules."""
    return sorted({folder, *(folder / path for _, path in modules_of(folder))})


def fingerprint(folder: Path) -> str:
    """Return the sha256 of all files that are loaded from a model's folder."""
    digest = hashlib.sha256()
    for place in module_folders(folder):
        files: set[Path] = set()
        for pattern in (*LOADED, *PICKLES):
            files.update(file for file in place.glob(pattern) if file.is_file())
        for file in sorted(files):
            name = file.relative_to(folder).as_posix()
            digest.update(f"{name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def changed_since(model: str, recorded: dict[str, str]) -> bool:
    """Return whether `model` changed since a folder was made of it, see `same_model`."""
    folder = local_folder(model)
    if folder is None:
        revision = recorded.get("revision")
        answer = _ask_hub(model) if revision else None
        if answer is None or answer.sha == revision:
            return False
        try:
            # A new revision may differ in its README only.
            folder = _snapshot(model, allow_pickle=False)
        except BadInput:
            return True
    return fingerprint(folder) != recorded["sha256"]
