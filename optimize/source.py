"""Where a model comes from: a folder, the hub or the demo, and checks before anything of it is run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from xopt.optimize.demo import write_demo
from xopt.runtime.errors import BadInput
from xopt.runtime.files import sha256_of
from xopt.runtime.folder import WEIGHTS

__all__ = [
    "check_cross_encoder",
    "check_files",
    "check_weights",
    "default_out",
    "fingerprint",
    "materialise",
    "same_model",
]

log = logging.getLogger(__name__)

DEMO = "demo"
INDEX = f"{WEIGHTS}.index.json"  # names the shards of weights that stand in several files
# What makes a model. Of other formats of the same weights, other tools' exports and documentation nothing is read.
PARTS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.py", "*.jinja")
PICKLES = ("*.bin", "*.pt")
EXPORTS = ("onnx", "openvino")
HUB_S = 10  # to wait for the hub's first answer, before what is cached is taken


def default_out(model: str) -> Path:
    """Where a model's folder lands unless told: `models/NAME-xopt`, NAME the last part of a hub id or a path."""
    name = (
        Path(model).expanduser().resolve().name
        if Path(model).expanduser().is_dir()
        else model.rstrip("/").rpartition("/")[2]
    )
    return Path("models") / f"{name}-xopt"


def same_model(first: str, second: str) -> bool:
    """Whether two names that people give are one model: paths may be written in several ways."""
    folders = [Path(name).expanduser() for name in (first, second)]
    there = DEMO not in (first, second) and all(folder.is_dir() for folder in folders)
    return first == second or (there and folders[0].resolve() == folders[1].resolve())


@contextlib.contextmanager
def materialise(model: str, allow_pickle: bool = False) -> Iterator[Path]:
    """Yield a folder with MODEL: its own, the hub's snapshot of it, or a temporary one with the demo model.

    `demo` is always the built-in model. A snapshot is brought up to date where the hub answers, and taken as it was
    cached where it does not.
    """
    folder = Path(model).expanduser()
    if model == DEMO:
        if folder.is_dir():
            log.warning("demo: the built-in model; give ./demo for the folder of that name")
        with TemporaryDirectory(prefix="xopt-demo-") as scratch:
            write_demo(Path(scratch))
            yield Path(scratch)
    elif folder.is_dir():
        yield folder
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise BadInput(f"{model}: no such folder; give a hub id, a folder or `demo`")
    else:
        yield _snapshot(model, allow_pickle)


def _snapshot(model: str, allow_pickle: bool) -> Path:
    """The folder of a hub id in the cache, its newest revision where the hub answers."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = [*PARTS, *(PICKLES if allow_pickle else ())]
    ignored = [f"{name}/*" for name in EXPORTS]
    revision = None
    try:
        with contextlib.suppress(OSError, HfHubHTTPError):  # no network: what is cached, asked for once
            revision = HfApi().model_info(model, timeout=HUB_S).sha
        found = snapshot_download(
            model, revision=revision, allow_patterns=wanted, ignore_patterns=ignored, local_files_only=revision is None
        )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0] if revision else "it does not answer, and nothing is cached"
        raise BadInput(f"{model}: neither a folder here nor a model that the hub gives ({reason})") from error
    return Path(found)


def fingerprint(folder: Path) -> str:
    """The sha256 of all files that make a model: another one where it was trained again or its tokenizer changed."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in (*PARTS, *PICKLES) for file in folder.rglob(pattern) if file.is_file()}):
        name = file.relative_to(folder)
        if name.parts[0] not in EXPORTS and name.name != "xopt.json":
            digest.update(f"{name.as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def check_files(folder: Path, given: str) -> None:
    """Raises BadInput, with its name, where a file of a model is missing or damaged."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{given}: no config.json in it; give a folder in the Hugging Face layout")
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}: damaged, not JSON ({error}); get the model again") from error


def check_weights(folder: Path, given: str, allow_pickle: bool) -> None:
    """Raises BadInput, with its name, where a file of weights is damaged or was not downloaded whole."""
    names = [WEIGHTS]
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8")).get("weight_map", {}).values()))
    pickles = [file for pattern in PICKLES for file in folder.glob(pattern)]
    for file in (folder / name for name in names):
        if not file.is_file():
            if pickles and allow_pickle:
                return
            if pickles:
                raise BadInput(f"{given}: no safetensors weights; --allow-pickle reads pickles, which can run code")
            raise BadInput(f"{given}: its weights {file.name} are missing, or were not downloaded whole; get it again")
        try:
            with safe_open(str(file), "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{given}: its {file.name} is damaged ({error}); get it again") from error


def check_cross_encoder(folder: Path, given: str, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration of a sequence classifier. Raises BadInput where `folder` holds something else."""
    modules = _modules(folder)
    if len(modules) > 1:
        raise BadInput(
            f"{given}: its head is modules of their own ({', '.join(modules[1:])}), which are not exported yet"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise BadInput(f"{given}: runs code from its repository; read it, then give --trust-remote-code") from error
        raise BadInput(f"{given}: its config.json cannot be read ({str(error).split(chr(10))[0]})") from error
    kind = (config.architectures or ["no architecture"])[0]
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        raise BadInput(
            f"{given}: {kind} is a causal language model; xopt takes cross-encoders with a classification head"
        )
    if not kind.endswith("ForSequenceClassification"):
        raise BadInput(f"{given}: {kind} has no classification head (a bi-encoder?); give a CrossEncoder")
    return config


def _modules(folder: Path) -> list[str]:
    """The modules that sentence-transformers puts together, by class name; empty where modules.json is missing."""
    file = folder / "modules.json"
    listed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return [str(module.get("type", "")).rpartition(".")[2] for module in listed]
