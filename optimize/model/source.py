"""Where a model comes from: a folder, the hub or the demo, and checks before anything of it is
run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from xopt.optimize.model.demo import write_demo
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import sha256_of
from xopt.runtime.folder import MANIFEST, WEIGHTS, modules_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

__all__ = [
    "DEMO",
    "check_cross_encoder",
    "check_files",
    "check_weights",
    "default_out",
    "fingerprint",
    "materialise",
    "same_model",
    "task_of",
]

log = logging.getLogger(__name__)

DEMO = "demo"
INDEX = f"{WEIGHTS}.index.json"  # names the shards of weights that stand in several files
# What is loaded of a model's folder. Of other formats of the same weights, checkpoints and
# documentation nothing is.
CONFIGS = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    INDEX,
)
PARTS = (*CONFIGS, "*.safetensors", "vocab.txt", "merges.txt", "*.model", "*.py", "*.jinja")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
ONLY_PICKLES = "no safetensors weights; --allow-pickle reads pickles, which can run code"
HUB_S = 10  # to wait for the hub's first answer, before what is cached is taken


def local_folder(model: str) -> Path | None:
    """The folder that MODEL names; None for a hub id and for `demo`, which is always the built-in
    model.
    """
    try:
        folder = Path(model).expanduser()
    except RuntimeError:  # ~ of nobody here
        return None
    return folder if model != DEMO and folder.is_dir() else None


def default_out(model: str) -> Path:
    """Where a model's folder lands unless told: `models/NAME-xopt`, NAME the last part of a hub
    id or a path.
    """
    folder = local_folder(model)
    return (
        Path("models")
        / f"{folder.resolve().name if folder else model.rstrip('/').rpartition('/')[2]}-xopt"
    )


def same_model(model: str, kept: dict[str, str]) -> bool:
    """Whether MODEL is what a folder was made of, as the manifest's `source` has it: a path has
    many spellings.
    """
    folders = [local_folder(name) for name in (model, kept["model"])]
    resolved = {folder.resolve() if folder else None for folder in folders}
    return (
        model == kept["model"]
        or (resolved - {None} == resolved and len(resolved) == 1)
        or bool(folders[0] and fingerprint(folders[0]) == kept.get("sha256"))
    )


@contextlib.contextmanager
def materialise(model: str, allow_pickle: bool = False) -> Iterator[Path]:
    """Yield a folder with MODEL: its own, the hub's snapshot of it, or a temporary one with the
    demo model.

    A snapshot is brought up to date where the hub answers, and taken as it was cached where it
    does not.
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


def hub_answer(model: str) -> ModelInfo | None:
    """What the hub says of the newest revision of a hub id; None where it does not answer, asked
    once.

    Raises BadInput where it answers that there is no such model, or none for this user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return HfApi().model_info(model, timeout=HUB_S)
    except (HFValidationError, RepositoryNotFoundError) as error:
        reason = first_line(error)
        raise BadInput(
            f"{model}: neither a folder here nor a model that the hub gives ({reason})"
        ) from error
    # each version of the client has errors of its own for a hub out of reach
    except Exception as error:
        log.info(
            "%s: the hub does not answer (%s); what is cached is taken", model, type(error).__name__
        )
        return None


def _snapshot(model: str, allow_pickle: bool) -> Path:
    """The folder of a hub id in the cache, its newest revision where the hub answers."""
    from huggingface_hub import snapshot_download

    wanted = [
        *PARTS,
        *(f"*/{name}" for name in PARTS),
        *((*PICKLES, "*/pytorch_model.bin") if allow_pickle else ()),
    ]
    answer = hub_answer(model)
    files = (
        [file.rfilename for file in (answer.siblings or ()) if "/" not in file.rfilename]
        if answer
        else []
    )
    safe = any(file.endswith(".safetensors") for file in files)
    if not safe and not allow_pickle and any(fnmatch(file, PICKLES[0]) for file in files):
        raise BadInput(f"{model}: {ONLY_PICKLES}")
    try:
        # of no revision, so that the cache knows afterwards which is the newest
        found = snapshot_download(
            model,
            allow_patterns=wanted,
            ignore_patterns=["onnx/*", "openvino/*", "checkpoint-*"],
            local_files_only=answer is None,
        )
    except Exception as error:  # the client's own, by version
        reason = first_line(error) if answer else "it does not answer, and nothing is cached"
        raise BadInput(
            f"{model}: neither a folder here nor a model that the hub gives ({reason})"
        ) from error
    return Path(found)


def fingerprint(folder: Path) -> str:
    """The sha256 of all files that are loaded: another one where a model was trained again or its
    tokenizer changed.
    """
    digest = hashlib.sha256()
    inner = [folder / path for _, path in modules_of(folder) if path]
    for place in (folder, *inner):
        for file in sorted(
            {f for pattern in (*PARTS, *PICKLES) for f in place.glob(pattern) if f.is_file()}
        ):
            digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def changed_since(model: str, kept: dict[str, str]) -> bool:
    """Whether MODEL is another one now than when a folder was made of it, as the manifest's
    `source` has it.
    """
    folder = local_folder(model)
    if folder is None:
        answer = hub_answer(model) if model != DEMO and kept.get("revision") else None
        if answer is None or answer.sha == kept["revision"]:
            return False
        try:
            # a new revision may differ in its README alone
            folder = _snapshot(model, allow_pickle=False)
        except BadInput:
            return True
    return kept.get("sha256", "") not in ("", fingerprint(folder))


def check_files(folder: Path, given: str) -> None:
    """Raises BadInput, with its name, where a file of a model is missing or damaged."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{given}: no config.json in it; give a folder in the Hugging Face layout")
    for file in (folder / name for name in (*CONFIGS, MANIFEST) if (folder / name).is_file()):
        _check_json(file, list if file.name == "modules.json" else dict)
    for _, path in modules_of(folder):
        if path and (folder / path / "config.json").is_file():
            _check_json(folder / path / "config.json", dict)


def _check_json(file: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> None:
    """Raises BadInput where a file does not hold JSON of a kind, of objects where it is a list."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: damaged, not JSON ({error}); get the model again") from error
    if not isinstance(value, kind) or (
        isinstance(value, list) and not all(isinstance(item, dict) for item in value)
    ):
        raise BadInput(
            f"{file}: damaged, not {'a list of objects' if kind is list else 'an object'}; get it again"
        )


def check_weights(folder: Path, given: str, allow_pickle: bool) -> None:
    """Raises BadInput, with its name, where a file of weights is damaged or was not downloaded
    whole.
    """
    names = [WEIGHTS]
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        names = sorted(
            set(
                json.loads((folder / INDEX).read_text(encoding="utf-8"))
                .get("weight_map", {})
                .values()
            )
        )
    pickles = list(folder.glob(PICKLES[0]))
    for _, path in modules_of(folder):
        place = folder / path
        if (
            path
            and (place / "pytorch_model.bin").is_file()
            and not (place / WEIGHTS).is_file()
            and not allow_pickle
        ):
            raise BadInput(
                f"{given}: its {path} has no safetensors; --allow-pickle reads pickles, which can run code"
            )
    for file in (folder / name for name in names):
        if not file.is_file():
            if pickles and allow_pickle:
                return
            if pickles:
                raise BadInput(f"{given}: {ONLY_PICKLES}")
            raise BadInput(
                f"{given}: its weights {file.name} are missing, or were not downloaded whole; get it again"
            )
        try:
            with safe_open(str(file), "pt") as tensors:
                names = list(tensors.keys())
                broken = next(
                    (name for name in names if tensors.get_tensor(name).isnan().any()), None
                )
                if broken:
                    log.warning(
                        "%s: its weights %s hold NaN; some pairs will have no score", given, broken
                    )
        except (SafetensorError, OSError) as error:
            raise BadInput(
                f"{given}: its {file.name} is damaged ({error}); get it again"
            ) from error


def task_of(folder: Path) -> str:
    """What the transformer of a CrossEncoder was trained for, as transformers' AutoModelFor...
    has it; "" for its body.

    sentence-transformers tells by modules.json and by the architecture that config.json names.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = folder / "sentence_bert_config.json"
    if len(modules_of(folder)) > 1 and settings.is_file():
        task = json.loads(settings.read_text(encoding="utf-8")).get(
            "transformer_task", "feature-extraction"
        )
        return {
            "text-generation": "CausalLM",
            "sequence-classification": "SequenceClassification",
        }.get(task, "")
    return "CausalLM" if _architecture(config).endswith("ForCausalLM") else "SequenceClassification"


def check_cross_encoder(folder: Path, given: str, trust_remote_code: bool) -> None:
    """Raises BadInput where `folder` holds something else than a CrossEncoder, or code that is
    not trusted.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).to_dict()
    except Exception as error:  # each architecture checks its own
        if "trust_remote_code" in str(error):
            raise BadInput(
                f"{given}: runs code from its repository; read it, then give --trust-remote-code"
            ) from error
        raise BadInput(f"{given}: its config.json cannot be read ({first_line(error)})") from error
    modules, kind = modules_of(folder), _architecture(config)
    for name, _ in modules:
        if not name.startswith("sentence_transformers.") and not trust_remote_code:
            raise BadInput(
                f"{given}: its module {name} is code of its own; read it, then give --trust-remote-code"
            )
    if len(modules) > 1:
        if not any(_scores(folder / path, name) for name, path in modules):
            names = ", ".join(name.rpartition(".")[2] for name, _ in modules)
            raise BadInput(
                f"{given}: none of its modules gives scores ({names}): a bi-encoder? Give a CrossEncoder"
            )
    elif kind.endswith("ForCausalLM"):
        log.warning(
            "%s: a language model that does not say how it ranks; sentence-transformers takes the logit of 'yes' less "
            "that of 'no', and so does this export",
            given,
        )
    elif config.get("architectures") and not kind.endswith("ForSequenceClassification"):
        what = "a language model?" if kind.endswith("LMHeadModel") else "a bi-encoder?"
        raise BadInput(f"{given}: {kind} has no classification head ({what}); give a CrossEncoder")


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or ["no architecture"])[0])


def _scores(folder: Path, module: str) -> bool:
    """Whether a module of sentence-transformers gives scores: its last one, or custom code that
    says nothing of it.
    """
    if not module.startswith("sentence_transformers."):
        return True
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return module.endswith(".LogitScore") or settings.get("module_output_name") == "scores"
