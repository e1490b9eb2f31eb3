"""CTranslate2, a peer: it is fed as our own backends are, and its head is computed here."""

from __future__ import annotations

import ctranslate2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from xopt.runtime.folder import WEIGHTS, ModelFolder, Plan, Variant
from xopt.runtime.scoring.backends.backend import PaddedArrays

__all__ = ["CTranslate2Backend"]


class CTranslate2Backend(PaddedArrays):
    """Runs BERT's encoder and pooler in CTranslate2, and BERT's head in numpy; may be called from
    several threads.
    """

    def __init__(
        self, folder: ModelFolder, variant: Variant, plan: Plan, device: str = "cpu"
    ) -> None:
        home = folder.checked(variant.file).parent
        self.encoder = ctranslate2.Encoder(
            str(home),
            device,
            compute_type=variant.precision,
            inter_threads=plan.callers,
            intra_threads=plan.threads,
        )
        weights = load_file(folder.checked(WEIGHTS))
        self.weight, self.bias = weights["classifier.weight"].T, weights["classifier.bias"]
        self.pad_id, self.left = folder.manifest.pad_id, False

    def forward(self, batch: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Logits, float32[pairs, labels], of int64[pairs, width] arrays."""
        ids = ctranslate2.StorageView.from_array(batch["input_ids"].astype(np.int32))
        lengths = ctranslate2.StorageView.from_array(
            batch["attention_mask"].sum(1).astype(np.int32)
        )
        output = self.encoder.forward_batch(ids, lengths, batch["token_type_ids"].tolist())
        logits: NDArray[np.float32] = np.array(output.pooler_output) @ self.weight + self.bias
        return logits
