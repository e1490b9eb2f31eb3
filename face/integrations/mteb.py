"""MTEB, which takes models of sentence-transformers' own classes, or of this shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from mteb.models.model_meta import ModelMeta
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.cross_encoder import CrossEncoder

__all__ = ["CrossEncoderForMTEB"]

LOGITS = torch.nn.Identity()


class CrossEncoderForMTEB:
    """A CrossEncoder as `mteb.evaluate` takes it.

    Scores are logits: a sigmoid would tie the best. Results are kept by MTEB under the folder's
    name, the variant, its weights and the length that pairs are cut to.
    """

    def __init__(self, model: CrossEncoder) -> None:
        manifest = model.folder.manifest
        if not manifest.ranks:
            raise BadInput(
                f"{model.folder.path}: none of its labels ranks; export it with `rank_label=`"
            )
        digest = manifest.files[manifest.variants[model.variant].file]
        self.model = model
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"xopt/{model.folder.path.name}",
                "revision": f"{model.variant}-{digest[:12]}-{model.max_seq_length}",
                "model_type": ["cross-encoder"],
            }
        )

    def predict(
        self,
        inputs1: Iterable[Any],
        inputs2: Iterable[Any],
        **task: object,  # noqa: ARG002 # MTEB says which task it is
    ) -> NDArray[np.float32]:
        """Score the pairs of two loaders of batches with a `text`, queries and documents."""
        pairs = zip(_texts(inputs1), _texts(inputs2), strict=True)
        logits = self.model.predict(list(pairs), activation_fn=LOGITS)
        return self.model.folder.manifest.ranking(logits)


def _texts(loader: Iterable[Any]) -> list[str]:
    texts: list[str] = []
    for batch in loader:
        texts += batch["text"]
    return texts
