"""Configuration files that transformers 4 reads as transformers 5 does.

transformers 5 writes keys that version 4 does not know, which would then take another base for
rotary positions, or find no tokenizer. Both versions read the older keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xopt.optimize.model.source import read_json

__all__ = ["add_legacy_config", "write_json"]

SPECIAL_TOKENS = tuple(
    f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
# The key of transformers 4 for the rotary base of each kind of layer.
MODERNBERT_BASES = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
OTHER_BASES = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}


def add_legacy_config(folder: Path) -> None:
    """Add what transformers 4 needs to the configuration in `folder`."""
    config = read_json(folder / "config.json")
    tokenizer = read_json(folder / "tokenizer_config.json")
    write_json(folder / "config.json", {**_legacy_rope(config), **config})
    write_json(folder / "tokenizer_config.json", _legacy_tokenizer(tokenizer))
    special_tokens = folder / "special_tokens_map.json"
    if not special_tokens.is_file():  # transformers 5 writes none
        tokens = {role: tokenizer[role] for role in SPECIAL_TOKENS if tokenizer.get(role)}
        write_json(special_tokens, tokens)


def write_json(file: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _legacy_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return transformers 4's keys for rotary positions."""
    rope = config.get("rope_parameters")
    if not rope:
        return {}
    is_modernbert = config.get("model_type") == "modernbert"
    legacy: dict[str, Any] = {}
    bases = MODERNBERT_BASES if is_modernbert else OTHER_BASES
    for layer_type, key in bases.items():
        base = rope.get(layer_type, {}).get("rope_theta")
        if base is not None:
            legacy[key] = base
    if "rope_theta" in rope:
        legacy["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            scaling = dict(rope)
            del scaling["rope_theta"]
            legacy["rope_scaling"] = scaling
    if "partial_rotary_factor" in rope:
        legacy["partial_rotary_factor"] = rope["partial_rotary_factor"]
        legacy["rotary_pct"] = rope["partial_rotary_factor"]
        legacy["rotary_emb_base"] = rope.get("rope_theta")
    if is_modernbert:
        legacy["global_attn_every_n_layers"] = _layers_between(config.get("layer_types") or [])
    return legacy


def _layers_between(layer_types: list[str]) -> int:
    """Return after how many layers full attention comes again."""
    if layer_types.count("full_attention") > 1:
        return layer_types.index("full_attention", 1)
    return max(len(layer_types), 1)


def _legacy_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    legacy = dict(config)
    if legacy.get("tokenizer_class") == "TokenizersBackend":
        legacy["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(legacy.get("extra_special_tokens"), list):  # a dictionary in transformers 4
        legacy["additional_special_tokens"] = legacy.pop("extra_special_tokens")
    return legacy
