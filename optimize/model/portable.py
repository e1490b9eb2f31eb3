"""Configuration files that transformers 4 and 5 read alike.

transformers 5 writes keys and names that version 4 does not know: it would turn positions by
another base without a word, or find no tokenizer. The ones that version 4 knows are read by both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["write_for_all_versions"]

SPECIAL = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
TOKENIZERS = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def write_for_all_versions(folder: Path) -> None:
    """Add to the configuration in `folder` what transformers 4 needs, and tools that know its
    files.
    """
    for name, translate in (("config.json", _config), ("tokenizer_config.json", _tokenizer)):
        file = folder / name
        values = json.loads(file.read_text(encoding="utf-8"))
        translated = translate(values)
        if translated != values:
            file.write_text(
                json.dumps(translated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    special = folder / "special_tokens_map.json"
    if not special.is_file():  # version 5 writes none
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        special.write_text(
            json.dumps({k: config[k] for k in SPECIAL if config.get(k)}, indent=2), encoding="utf-8"
        )


def _config(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    parts = [
        rope.get(kind, {}).get("rope_theta") for kind in ("full_attention", "sliding_attention")
    ]
    modern = config.get("model_type") == "modernbert"
    names = (
        ("global_rope_theta", "local_rope_theta")
        if modern
        else ("rope_theta", "rope_local_base_freq")
    )
    added: dict[str, Any] = {
        name: theta for name, theta in zip(names, parts, strict=True) if theta is not None
    }
    if "rope_theta" in rope:
        added["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            added["rope_scaling"] = {
                key: value for key, value in rope.items() if key != "rope_theta"
            }
    if "partial_rotary_factor" in rope:
        added["partial_rotary_factor"] = added["rotary_pct"] = rope["partial_rotary_factor"]
        added["rotary_emb_base"] = rope.get("rope_theta")
    if modern and rope:
        whole = [
            i for i, kind in enumerate(config.get("layer_types") or ()) if kind == "full_attention"
        ]
        added["global_attn_every_n_layers"] = (
            whole[1] if len(whole) > 1 else len(config.get("layer_types") or ()) or 1
        )
    return {**added, **config}


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    made = dict(config)
    if made.get("tokenizer_class") in TOKENIZERS:
        made["tokenizer_class"] = TOKENIZERS[made["tokenizer_class"]]
    if isinstance(made.get("extra_special_tokens"), list):  # version 4 has names for them there
        made["additional_special_tokens"] = made.pop("extra_special_tokens")
    return made
