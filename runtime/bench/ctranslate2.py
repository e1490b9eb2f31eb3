"""CTranslate2, which variants are compared with: fed as xopt's own backends are."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from xopt.runtime.folder import WEIGHTS, ModelFolder, Plan, Variant
from xopt.runtime.scoring.backends.backend import PaddedArrays
from xopt.runtime.scoring.variants import BackendKind

__all__ = ["CTRANSLATE2", "CTRANSLATE2_FILE", "CTranslate2Backend", "ctranslate2_kind"]

CTRANSLATE2 = "ctranslate2"
CTRANSLATE2_FILE = "ctranslate2/model.bin"


class CTranslate2Backend(PaddedArrays):
    """BERT's encoder and pooler in CTranslate2, and its head in numpy; callers may share it."""

    def __init__(self, folder: ModelFolder, variant: Variant, plan: Plan, device: str) -> None:
        self.folder = str(folder.checked(variant.file).parent)
        self.device = device
        self.precision = variant.precision
        self.encoder = self._encoder(plan.callers, plan.threads)
        weights = load_file(folder.checked(WEIGHTS))
        self.weight = weights["classifier.weight"].T
        self.bias = weights["classifier.bias"]
        self.pad_id = folder.manifest.pad_id
        self.left = False

    def wide(self, threads: int) -> CTranslate2Backend:
        other = copy.copy(self)
        other.encoder = other._encoder(1, threads)
        return other

    def _encoder(self, callers: int, threads: int) -> Any:
        from ctranslate2 import Encoder

        return Encoder(
            self.folder,
            self.device,
            compute_type=self.precision,
            inter_threads=callers,
            intra_threads=threads,
        )

    def forward(self, batch: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return logits, float32[pairs, labels], of int64[pairs, width] arrays."""
        from ctranslate2 import StorageView

        ids = StorageView.from_array(batch["input_ids"].astype(np.int32))
        lengths = StorageView.from_array(batch["attention_mask"].sum(1).astype(np.int32))
        output = self.encoder.forward_batch(ids, lengths, batch["token_type_ids"].tolist())
        logits: NDArray[np.float32] = np.array(output.pooler_output) @ self.weight + self.bias
        return logits


# Of no precision that commands run unasked, and of none that export writes.
ctranslate2_kind = BackendKind({"cpu": ()}, CTRANSLATE2_FILE, (), CTranslate2Backend)
