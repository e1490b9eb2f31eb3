"""PyTorch through the planner: what a user without ONNX gets."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from xopt.runtime.folder import ModelFolder, Variant
from xopt.runtime.machine import check_device

__all__ = ["TorchBackend"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchBackend:
    """Runs the transformers model on padded arrays; safe to call from several threads at once."""

    def __init__(self, folder: ModelFolder, variant: Variant, threads: int, device: str = "cpu") -> None:
        check_device(device)
        folder.checked(variant.file)
        self.threads, self.device, self.inputs = threads, device, set(folder.manifest.inputs)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder.path, dtype=DTYPES[variant.precision], use_safetensors=True, local_files_only=True
        )
        self.model = model.eval().to(device)

    def __call__(self, arrays: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Logits, float32[pairs, labels], of int64[pairs, width] arrays."""
        torch.set_num_threads(self.threads)  # OpenMP keeps it by thread, and callers come from any thread
        with torch.inference_mode():
            tensors = {k: torch.from_numpy(v).to(self.device) for k, v in arrays.items() if k in self.inputs}
            logits: NDArray[np.float32] = self.model(**tensors).logits.float().cpu().numpy()
        return logits
