"""The model folder: a Hugging Face layout and `xopt.json`, the manifest that says how it was
made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.files import check_writable, locked, new_file, scratch_beside, sha256_of

__all__ = [
    "MANIFEST",
    "ONNX_FILE",
    "WEIGHTS",
    "Manifest",
    "ModelFolder",
    "Plan",
    "Variant",
    "data_file",
    "modules_of",
]

MANIFEST = "xopt.json"
# what export writes: FP32, for torch and as a graph
WEIGHTS, ONNX_FILE = "model.safetensors", "onnx/model.onnx"
FORMAT = 1
MADE_BY = {  # options of `xopt quantize`
    "onnx-fp16": "--fp16",
    "onnx-int8": "--int8",
    "openvino-int8": "--int8 --scheme static",
    "onnx-int8-portable": "--int8 --scheme portable",
    "onnx-int8-stock": "--int8 --scheme stock",
}


def data_file(file: Path) -> Path:
    """Where the weights stand of an ONNX graph that is too large to hold them."""
    return file.with_name(f"{file.name}_data")


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """The modules that sentence-transformers puts a model together of, by class and path; none
    without modules.json.
    """
    file = folder / "modules.json"
    listed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return [(str(module.get("type", "")), str(module.get("path", ""))) for module in listed]


@dataclass(frozen=True)
class Variant:
    """One runnable form of a model: backend, precision, the file with its weights, and how that
    was made.
    """

    name: str
    backend: str
    precision: str
    file: str
    recipe: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Plan:
    """How a scorer uses the machine: concurrent callers, threads of each, padded tokens a
    forward.
    """

    callers: int
    threads: int
    tokens: int

    def __post_init__(self) -> None:
        if min(self.callers, self.threads, self.tokens) < 1:
            raise BadInput(f"{self}: callers, threads and tokens must each be at least 1")


@dataclass(frozen=True)
class Manifest:
    """What was made from what. `files` maps each file to its sha256, `plans` a machine and a
    variant to a plan.
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
    # which text of a pair that is too long is cut; as tokenizers names it
    truncation: str = "longest_first"
    split_special_tokens: bool = False  # the names of special tokens within a text are text
    padding_side: str = "right"
    # an id that is cut from the end of a pair: the head reads the last token before it
    trailing_pad: int | None = None
    # of pairs as one text: literal parts, QUERY or DOCUMENT between
    template: list[str] = field(default_factory=list)
    # ids that such a text ends in where it was cut, too
    suffix: list[int] = field(default_factory=list)
    # by machine: what `xopt optimize` found there
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    # of several labels: one that ranks, or two for the difference
    rank_label: list[int] = field(default_factory=list)
    # hashes of the queries that `xopt shrink` trained it with
    trained_with: list[str] = field(default_factory=list)
    cascade: dict[str, Any] = field(default_factory=dict)  # as `xopt.runtime.cascade` keeps it

    def recommended(self, machine: str) -> str | None:
        """The variant that `xopt optimize` recommended on a machine, if it is there still."""
        name = self.measured.get(machine, {}).get("recommended")
        return name if name in self.variants else None

    @property
    def ranks(self) -> bool:
        """Whether the logits of a pair give one score to rank by."""
        return self.labels == 1 or bool(self.rank_label)

    def ranking(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """What ranks, float32[n], of the logits of a model that has one label, or says which one
        ranks; else those.
        """
        if logits.ndim == 1 or not self.rank_label:
            return logits
        first, *second = self.rank_label
        return logits[:, first] - logits[:, second[0]] if second else logits[:, first]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        values = json.loads(text)
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        values["variants"] = {name: Variant(**v) for name, v in values["variants"].items()}
        values["plans"] = {
            m: {v: Plan(**p) for v, p in plans.items()} for m, plans in values["plans"].items()
        }
        return Manifest(**values)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder on disk, as its manifest describes it; `trusted` where code that came with
    it may run.
    """

    path: Path
    manifest: Manifest
    trusted: bool = False

    @staticmethod
    def open(path: str | Path, trusted: bool = False) -> ModelFolder:
        """Read a model folder's manifest. Raises BadInput where there is none that this version
        can read.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BadInput(
                f"{folder}: no such folder; make it with `xopt export MODEL -o {folder}`"
            )
        file = folder / MANIFEST
        if not file.is_file():
            raise BadInput(
                f"{folder}: no {MANIFEST} in it; make a model folder with `xopt export {folder} -o NEW`"
            )
        try:
            return ModelFolder(
                folder, Manifest.from_json(file.read_text(encoding="utf-8")), trusted
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{file}: not a manifest that this xopt reads ({error}); export the model again"
            ) from error

    def variant(self, name: str) -> Variant:
        """The variant of this name. Raises BadInput with the names there are."""
        try:
            return self.manifest.variants[name]
        except KeyError:
            there = ", ".join(self.manifest.variants)
            make = f"; {_quantized_by(self.path, MADE_BY[name])}" if name in MADE_BY else ""
            raise BadInput(f"{self.path}: no variant {name!r}, only {there}{make}") from None

    def checked(self, file: str, again: str = "") -> Path:
        """The path of a file in this folder. Raises BadInput where it is not the file that the
        manifest names.

        `again` says what makes the file again, unless a variant's name does.
        """
        names = (
            v.name for v in self.manifest.variants.values() if v.file == file and v.name in MADE_BY
        )
        made = next(
            (_quantized_by(self.path, MADE_BY[name]) for name in names),
            "export the model again with --force",
        )
        again = again or made
        path, data = self.path / file, data_file(Path(file)).as_posix()
        if file not in self.manifest.files:
            raise BadInput(
                f"{path}: not made at export; export the model again, without --torch-only and with --force"
            )
        for name in (name for name in (file, data) if name in self.manifest.files):
            if not (self.path / name).is_file():
                raise BadInput(f"{self.path / name}: missing; {again}")
            if sha256_of(self.path / name) != self.manifest.files[name]:
                raise BadInput(
                    f"{self.path / name}: sha256 differs from {MANIFEST}: damaged or changed; {again}"
                )
        return path

    def write(
        self, change: Callable[[Manifest], Manifest], place: Callable[[], object] = lambda: None
    ) -> ModelFolder:
        """Change the manifest, whole or not at all, and return the new folder value.

        It is changed as it stands on disk now, with a lock: another command may write at the same
        time. `place` puts files of the new one in their places when nothing else can fail.
        """
        file = self.path / MANIFEST
        check_writable(file)
        with locked(self.path):
            changed = replace(self, manifest=change(ModelFolder.open(self.path).manifest))
            with new_file(file) as temporary:
                temporary.write_text(changed.manifest.to_json(), encoding="utf-8", errors="replace")
                place()
        return changed

    def check_writable(self) -> None:
        """Raises BadInput where nothing can be added to the folder, before work is done for it."""
        check_writable(self.path)

    def with_variant(
        self, variant: Variant, make: Callable[[Path], None] | None = None
    ) -> ModelFolder:
        """Add or replace a variant; what was found for another one of that name goes, and its file.

        `make` writes its file, and a data file, to a path; without it they are in place. The
        variant that was there is whole until the new one is.
        """
        if make is None:
            return self._with_variant(variant, self.path / variant.file)
        with scratch_beside(self.path / variant.file) as scratch:
            made = scratch / Path(variant.file).name
            make(made)
            return self._with_variant(variant, made)

    def _with_variant(self, variant: Variant, file: Path) -> ModelFolder:
        names = _files_of(variant)
        made = {
            name: sha256_of(path)
            for name in names
            if (path := file.with_name(Path(name).name)).is_file()
        }
        gone: list[str] = []

        def add(to: Manifest) -> Manifest:
            used = {
                name
                for other in to.variants.values()
                if other.name != variant.name
                for name in _files_of(other)
            }
            before = _files_of(to.variants[variant.name]) if variant.name in to.variants else ()
            gone.extend(name for name in before if name not in (*used, *made))
            files = {
                name: digest for name, digest in to.files.items() if name not in (*names, *gone)
            }
            plans = {
                m: {v: p for v, p in kept.items() if v != variant.name}
                for m, kept in to.plans.items()
            }
            measured = {
                machine: _without(found, variant.name) for machine, found in to.measured.items()
            }
            variants = {**to.variants, variant.name: variant}
            cascade = {} if to.cascade.get("variant") == variant.name else to.cascade
            return replace(
                to,
                files=files | made,
                variants=variants,
                plans=plans,
                measured=measured,
                cascade=cascade,
            )

        def place() -> None:
            for name in made:
                file.with_name(Path(name).name).replace(self.path / name)

        changed = self.write(add, place)
        for name in gone:
            (self.path / name).unlink(missing_ok=True)
        return changed

    def size_bytes(self, variant: str) -> int:
        """What the files of a variant hold."""
        file = self.path / self.variant(variant).file
        return sum(path.stat().st_size for path in (file, data_file(file)) if path.is_file())


def _files_of(variant: Variant) -> tuple[str, str]:
    """The names of its file, and of the one that its weights stand in where they are too large."""
    return variant.file, data_file(Path(variant.file)).as_posix()


def _quantized_by(folder: Path, options: str) -> str:
    return f"make it with `xopt quantize {folder} {options}`"


def _without(found: dict[str, Any], variant: str) -> dict[str, Any]:
    """What was measured on a machine, but for one variant."""
    left = {
        **found,
        "variants": {name: value for name, value in found["variants"].items() if name != variant},
    }
    return {**left, "recommended": None} if found["recommended"] == variant else left
