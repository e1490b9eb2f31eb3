"""Fingerprints of variants."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from xopt.runtime.folder import ModelFolder

__all__ = ["LEXICON", "model_fingerprint"]

LEXICON = "cascade.safetensors"  # beside the manifest
# Fields of the manifest that no score depends on, or of which a part is added below.
LEFT_OUT = {"plans", "measured", "versions", "trained_with", "source"}
LEFT_OUT |= {"files", "variants", "cascade"}


def model_fingerprint(model: ModelFolder, variant: str, cascade: bool) -> str:
    """Return the sha256 of what a variant's, or its `cascade`'s, scores depend on."""
    manifest = model.manifest
    values = asdict(manifest)
    for name in LEFT_OUT:
        del values[name]
    file = model.variant(variant).file
    values["files"] = {}
    for name, sha256 in manifest.files.items():
        is_own = name.startswith(file) or not name.startswith("onnx/")
        if is_own and (cascade or name != LEXICON):
            values["files"][name] = sha256
    values["cascade"] = manifest.cascade if cascade else None
    text = json.dumps([variant, values], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
