"""By what a variant of a model folder is known again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from xopt.runtime.folder import ModelFolder

__all__ = ["LEXICON", "model_fingerprint"]

LEXICON = "cascade.safetensors"  # beside the manifest
# Of a manifest, what no score depends on.
NO_MATTER = (
    "plans",
    "measured",
    "versions",
    "trained_with",
    "source",
    "files",
    "variants",
    "cascade",
)


def model_fingerprint(model: ModelFolder, variant: str, cascade: bool) -> str:
    """The sha256 of what makes a variant's scores: its file, the tokenizer's, and the manifest's
    rules.
    """
    values = {
        name: value for name, value in asdict(model.manifest).items() if name not in NO_MATTER
    }
    file = model.variant(variant).file
    there = (name for name in model.manifest.files if cascade or name != LEXICON)
    names = [name for name in there if name.startswith(file) or not name.startswith("onnx/")]
    values["files"] = {name: model.manifest.files[name] for name in names}
    values["cascade"] = model.manifest.cascade if cascade else None
    return hashlib.sha256(
        json.dumps([variant, values], sort_keys=True, default=str).encode()
    ).hexdigest()
