"""Fingerprints of variants, by which jobs and cascades know the model that they were made with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, fields
from typing import Any

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import Manifest, ModelFolder

__all__ = ["LEXICON", "MAKES_NO_SCORES", "MAKES_SCORES", "PARTLY", "model_fingerprint"]

LEXICON = "cascade.safetensors"  # beside the manifest
# It stands before the sha256. That of scheme 1 stands alone.
SCHEME = 2
# Scheme 1 hashes these, whatever they are; scheme 2 leaves out what has its default.
ALWAYS_IN_1 = (
    "max_length",
    "labels",
    "activation",
    "prompt",
    "pad_id",
    "truncation_side",
    "inputs",
    "truncation",
    "split_special_tokens",
    "padding_side",
    "trailing_pad",
    "template",
    "suffix",
    "rank_label",
)
# Jobs and cascades ask with the default prompt, whatever others there are.
OTHER_PROMPTS = ("prompts", "prompted", "unprompted", "restores_suffix")
# Each field of the manifest is in one of these. A new one that makes scores follows ALWAYS_IN_1:
# at its default it changes no fingerprint of either scheme.
MAKES_SCORES = (*ALWAYS_IN_1,)
MAKES_NO_SCORES = ("source", "versions", "plans", "measured", "trained_with", *OTHER_PROMPTS)
PARTLY = ("files", "variants", "cascade")  # of the variant alone, or of the cascade


def model_fingerprint(model: ModelFolder, variant: str, cascade: bool, like: str = "") -> str:
    """Return the scheme and the sha256 of what a variant's, or its `cascade`'s, scores depend on.

    `like` is an earlier fingerprint, whose scheme is taken. Raises BadInput if that is of a newer
    version.
    """
    scheme = _scheme_of(like)
    if scheme > SCHEME:
        raise BadInput(
            f"{model.path}: was fingerprinted by a newer xopt (scheme {scheme}); use that version"
        )
    values = _values(model.manifest, scheme)
    file = model.variant(variant).file
    values["files"] = {}
    for name, sha256 in model.manifest.files.items():
        is_own = name.startswith(file) or not name.startswith("onnx/")
        if is_own and (cascade or name != LEXICON):
            values["files"][name] = sha256
    values["cascade"] = model.manifest.cascade if cascade else None
    text = json.dumps([variant, values], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return digest if scheme == 1 else f"{scheme}:{digest}"


def _scheme_of(fingerprint: str) -> int:
    number, _, digest = fingerprint.rpartition(":")
    if digest and not number:
        return 1
    return int(number) if number.isdecimal() else SCHEME


def _values(manifest: Manifest, scheme: int) -> dict[str, Any]:
    """The fields that make scores and are not left out."""
    values = asdict(manifest)
    found = {}
    for field in fields(manifest):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        always = scheme == 1 and field.name in ALWAYS_IN_1
        if field.name in MAKES_SCORES and (always or values[field.name] != default):
            found[field.name] = values[field.name]
    return found
