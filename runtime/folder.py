"""Model folders: a Hugging Face layout, and the manifest `xopt.json` that says how it was made."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.files import check_writable, new_file, scratch_beside, sha256_of
from xopt.runtime.formats import OtherVersion, check_format, read
from xopt.runtime.locks import locked

__all__ = [
    "MANIFEST",
    "ONNX_FILE",
    "WEIGHTS",
    "KeptFile",
    "Manifest",
    "ModelFolder",
    "Plan",
    "Variant",
    "data_file",
    "modules_of",
]

MANIFEST = "xopt.json"
FORMAT = 1
# What export writes, in FP32: the weights for torch, and a graph.
WEIGHTS = "model.safetensors"
ONNX_FILE = "onnx/model.onnx"
# The options of `xopt quantize` that make a variant.
MADE_BY = {
    "onnx-fp16": "--fp16",
    "onnx-int8": "--int8",
    "openvino-int8": "--int8 --scheme static",
    "onnx-int8-portable": "--int8 --scheme portable",
    "onnx-int8-stock": "--int8 --scheme stock",
}


# Where Linux shows the files that a process has open.
DESCRIPTORS = Path("/proc/self/fd")


def data_file(file: Path) -> Path:
    """Return where the weights of an ONNX graph are that is too large to hold them."""
    return file.with_name(f"{file.name}_data")


class KeptFile:
    """A file that can be read again, whatever happens to its folder in the meantime.

    On Linux it is kept open, and so stays though it is removed or replaced. Elsewhere, and where
    the weights are in a file of their own beside it, `path` has to be the same file still.
    """

    def __init__(self, path: Path) -> None:
        self._source = path
        weights = (data_file(path), path.with_suffix(".bin"))  # the latter of OpenVINO's own format
        self._files = [file for file in (path, *weights) if file.is_file()]
        if len(self._files) == 1 and DESCRIPTORS.is_dir():
            descriptor = os.open(path, os.O_RDONLY)
            closing = weakref.finalize(self, os.close, descriptor)
            closing.atexit = False  # the number may be another file's by then
            self._files = [DESCRIPTORS / str(descriptor)]
        self._states = self._now()

    @property
    def path(self) -> Path:
        """Where to read it. Raises BadInput where it is no longer what it was."""
        if self._now() != self._states:
            raise BadInput(f"{self._source}: removed or changed since it was opened; open it again")
        return self._files[0]

    def _now(self) -> list[tuple[int, ...]]:
        try:
            states = [file.stat() for file in self._files]
        except FileNotFoundError:
            return []
        return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """Return the class and path of each sentence-transformers module; none without modules.json."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    modules = json.loads(file.read_text(encoding="utf-8"))
    return [(str(module.get("type", "")), str(module.get("path", ""))) for module in modules]


@dataclass(frozen=True)
class Variant:
    """One runnable form of a model, the file with its weights, and the recipe that made it."""

    name: str
    backend: str
    precision: str
    file: str
    recipe: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Plan:
    """How a scorer uses the machine: callers, threads of each, padded tokens a forward."""

    callers: int
    threads: int
    tokens: int

    def __post_init__(self) -> None:
        if min(self.callers, self.threads, self.tokens) < 1:
            raise BadInput(f"{self}: callers, threads and tokens must each be at least 1")


@dataclass(frozen=True)
class Manifest:
    """What a model folder holds, and what it was made from.

    `files` maps each file to its sha256. `plans` maps a machine and a variant to a plan.
    """

    source: dict[str, str]
    versions: dict[str, str]
    max_length: int
    labels: int
    activation: str
    prompt: str
    pad_id: int
    truncation_side: str
    inputs: list[str]  # what the tokenizer gives the model
    files: dict[str, str]
    variants: dict[str, Variant]
    plans: dict[str, dict[str, Plan]] = field(default_factory=dict)
    # Which text of a pair that is too long is cut, as the library tokenizers names it.
    truncation: str = "longest_first"
    # Whether the names of special tokens within a text are plain text.
    split_special_tokens: bool = False
    padding_side: str = "right"
    # An id that is cut from the end of a pair: the head reads the last token before it.
    trailing_pad: int | None = None
    # How a pair becomes one text: literal parts, with "query" or "document" between them.
    # The model's own prompt is among the literal parts.
    template: list[str] = field(default_factory=list)
    # The ids that such a text ends in, even where it was cut.
    suffix: list[int] = field(default_factory=list)
    # The prompts that have a name.
    prompts: dict[str, str] = field(default_factory=dict)
    # The template with any prompt, which is "prompt" between literal parts, and with none.
    # Empty where the chat template does more than place it, and in older folders.
    prompted: list[str] = field(default_factory=list)
    unprompted: list[str] = field(default_factory=list)
    # Whether texts with another prompt end in the same ids too, even where they were cut.
    restores_suffix: bool = False
    # What `xopt optimize` found, by machine.
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Of several labels the one that ranks, or two whose difference does.
    rank_label: list[int] = field(default_factory=list)
    # Hashes of the queries that `xopt shrink` trained the model with.
    trained_with: list[str] = field(default_factory=list)
    # The values of `xopt.runtime.cascade.Cascade`.
    cascade: dict[str, Any] = field(default_factory=dict)

    def recommended(self, machine: str) -> str | None:
        """Return the variant that `xopt optimize` recommended on a machine, if it still exists."""
        name = self.measured.get(machine, {}).get("recommended")
        return name if name in self.variants else None

    @property
    def ranks(self) -> bool:
        """Whether the logits of a pair give one score to rank by."""
        return self.labels == 1 or bool(self.rank_label)

    def ranking(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores to rank by, float32[n], of logits, float32[n] or float32[n, labels].

        Where no label ranks, the logits are returned as they are.
        """
        if logits.ndim == 1 or not self.rank_label:
            return logits
        scores = logits[:, self.rank_label[0]]
        if len(self.rank_label) == 2:
            scores = scores - logits[:, self.rank_label[1]]
        return scores

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises OtherVersion for what another version wrote, and ValueError, TypeError or
        AttributeError for anything else.
        """
        values = json.loads(text)
        check_format(values, FORMAT)
        variants = values.get("variants", {}).items()
        values["variants"] = {name: read(Variant, variant) for name, variant in variants}
        for plans in values.get("plans", {}).values():
            for name, plan in plans.items():
                plans[name] = read(Plan, plan)
        return read(Manifest, values)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder on disk, opened with `ModelFolder.open(path)`.

    - `path`: where it lies.
    - `manifest`: what `xopt.json` says of it.
    - `trusted`: code that came with it may run.
    """

    path: Path
    manifest: Manifest
    trusted: bool = False

    @staticmethod
    def open(path: str | Path, trusted: bool = False) -> ModelFolder:
        """Read a model folder's manifest. Raises BadInput where none can be read."""
        folder = Path(path)
        if not folder.is_dir():
            raise BadInput(
                f"{folder}: no such folder; make it with `xopt export MODEL -o {folder}`"
            )
        file = folder / MANIFEST
        if not file.is_file():
            raise BadInput(
                f"{folder}: no {MANIFEST} in it; "
                f"make a model folder with `xopt export {folder} -o NEW`"
            )
        try:
            manifest = Manifest.from_json(file.read_text(encoding="utf-8"))
        except OtherVersion as error:
            raise BadInput(
                f"{file}: was written by {error}; use that version, or export the model to another "
                "folder"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{file}: is damaged, or no manifest ({error}); export the model again"
            ) from error
        return ModelFolder(folder, manifest, trusted)

    def variant(self, name: str) -> Variant:
        """Return the variant of this name. Raises BadInput with the names that exist."""
        if name in self.manifest.variants:
            return self.manifest.variants[name]
        message = f"{self.path}: no variant {name!r}, only {', '.join(self.manifest.variants)}"
        if name in MADE_BY:
            message += f"; {self._quantize_with(MADE_BY[name])}"
        raise BadInput(message)

    def checked(self, file: str, remedy: str = "") -> Path:
        """Return the path of a file in the folder, once its sha256 is that of the manifest.

        A graph's data file is checked with it. `remedy` says what makes the file again, where no
        variant's name does. Raises BadInput where a file is missing or another one.
        """
        path = self.path / file
        if file not in self.manifest.files:
            raise BadInput(
                f"{path}: not made at export; export the model again, "
                "without `torch_only=True` and with `force=True`"
            )
        remedy = remedy or self._remedy(file)
        for name in _with_data_file(file):
            if name not in self.manifest.files:
                continue
            if not (self.path / name).is_file():
                raise BadInput(f"{self.path / name}: missing; {remedy}")
            if sha256_of(self.path / name) != self.manifest.files[name]:
                raise BadInput(
                    f"{self.path / name}: sha256 differs from {MANIFEST}: "
                    f"damaged or changed; {remedy}"
                )
        return path

    def _remedy(self, file: str) -> str:
        for variant in self.manifest.variants.values():
            if variant.file == file and variant.name in MADE_BY:
                return self._quantize_with(MADE_BY[variant.name])
        return "export the model again with `force=True`"

    def _quantize_with(self, options: str) -> str:
        return f"make it with `xopt quantize {self.path} {options}`"

    def write(
        self, change: Callable[[Manifest], Manifest], place: Callable[[], object] = lambda: None
    ) -> ModelFolder:
        """Change the manifest, whole or not at all, and return the folder with the new one.

        `change` gets the manifest as it is on disk now, under a lock, since another command may
        have written to it. `place` moves new files to their places once nothing else can fail.
        """
        file = self.path / MANIFEST
        check_writable(file)
        with locked(self.path) as lock:
            changed = replace(self, manifest=change(ModelFolder.open(self.path).manifest))
            with new_file(file) as temporary:
                temporary.write_text(changed.manifest.to_json(), encoding="utf-8", errors="replace")
                lock.check()
                place()
        return changed

    def check_writable(self) -> None:
        """Raise BadInput where nothing can be added to the folder."""
        check_writable(self.path)

    def with_variant(
        self, variant: Variant, make: Callable[[Path], None] | None = None
    ) -> ModelFolder:
        """Add or replace a variant, and forget what was found for an earlier one of that name.

        `make` writes the variant's file, and perhaps a data file, to a path; the earlier files
        stay until then. Without `make` the files are in the folder already.
        """
        if make is None:
            return self._enter(variant, (self.path / variant.file).parent)
        with scratch_beside(self.path / variant.file) as scratch:
            make(scratch / Path(variant.file).name)
            return self._enter(variant, scratch)

    def _enter(self, variant: Variant, source: Path) -> ModelFolder:
        """Enter a variant into the manifest, and move its files from the folder `source`."""
        made = {}
        for name in _with_data_file(variant.file):
            path = source / Path(name).name
            if path.is_file():
                made[name] = path
        digests = {name: sha256_of(path) for name, path in made.items()}
        earlier: set[str] = set()

        def add(manifest: Manifest) -> Manifest:
            earlier.update(_own_files(manifest, variant.name))
            return _with_variant(manifest, variant, digests)

        def place() -> None:
            for name, path in made.items():
                path.replace(self.path / name)

        changed = self.write(add, place)
        for name in earlier - set(made):
            (self.path / name).unlink(missing_ok=True)
        return changed

    def size_bytes(self, variant: str) -> int:
        paths = [self.path / name for name in _with_data_file(self.variant(variant).file)]
        return sum(path.stat().st_size for path in paths if path.is_file())


def _with_data_file(file: str) -> tuple[str, str]:
    """Return a variant's file, and the one that a large graph's weights are in."""
    return file, data_file(Path(file)).as_posix()


def _own_files(manifest: Manifest, name: str) -> set[str]:
    """Return the files that no other variant than the one of this name uses."""
    if name not in manifest.variants:
        return set()
    own = set(_with_data_file(manifest.variants[name].file))
    for other in manifest.variants.values():
        if other.name != name:
            own.difference_update(_with_data_file(other.file))
    return own


def _with_variant(manifest: Manifest, variant: Variant, digests: dict[str, str]) -> Manifest:
    """Return the manifest with a variant and its files, without those of an earlier one."""
    name = variant.name
    outdated = {*_with_data_file(variant.file), *_own_files(manifest, name)}
    files = {file: digest for file, digest in manifest.files.items() if file not in outdated}
    measured = {}
    for machine, found in manifest.measured.items():
        measured[machine] = {**found, "variants": _without(found["variants"], name)}
        if found["recommended"] == name:
            measured[machine]["recommended"] = None
    return replace(
        manifest,
        files=files | digests,
        variants={**manifest.variants, name: variant},
        plans={machine: _without(plans, name) for machine, plans in manifest.plans.items()},
        measured=measured,
        cascade={} if manifest.cascade.get("variant") == name else manifest.cascade,
    )


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
