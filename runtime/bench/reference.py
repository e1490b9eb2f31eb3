"""sentence-transformers itself: the reference for scores, and what the bench compares with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from xopt.runtime.folder import ModelFolder, Variant
from xopt.runtime.progress import Step, progress
from xopt.runtime.scoring.backends.network import DTYPE, its_own_code
from xopt.runtime.scoring.backends.torch import DTYPES
from xopt.runtime.scoring.encode import Pair, clean
from xopt.runtime.scoring.scorer import Scorer
from xopt.runtime.scoring.stages import Stages, Stopwatch

__all__ = ["ReferenceScorer"]


class ReferenceScorer(Scorer):
    """A variant as sentence-transformers runs it: padded batches of pairs, sorted by length."""

    def __init__(
        self,
        folder: ModelFolder,
        variant: Variant,
        threads: int,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        folder.checked(variant.file)
        self.threads = threads
        self.batch_size = batch_size
        torch.set_num_threads(threads)
        with its_own_code(folder):
            self.model = CrossEncoder(
                str(folder.path),
                device=device,
                backend=variant.backend,
                local_files_only=True,
                trust_remote_code=folder.trusted,
                model_kwargs=_model_kwargs(variant, threads, device),
            )
        self._watch = Stopwatch()
        self._progress: Step | None = None
        self._preprocess = self.model.preprocess
        self.model.preprocess = self._encode
        self.model.register_forward_pre_hook(self._before)
        self.model.register_forward_hook(self._after)

    @property
    def stages(self) -> Stages:
        return self._watch.stages

    def _encode(self, *arguments: Any, **named: Any) -> Any:
        start = time.monotonic()
        features = self._preprocess(*arguments, **named)
        self._watch.encoded(time.monotonic() - start)
        # The mask is still on the host here; on a GPU, reading it would wait for the device.
        mask = features["attention_mask"]
        self._batch = mask.shape[0], mask.shape[1], int(mask.sum())
        return features

    def _before(self, *_: Any) -> None:
        self._start = time.monotonic()

    def _after(self, *_: Any) -> None:
        took_s = time.monotonic() - self._start
        self._watch.forwarded(took_s, 0.0, *self._batch)
        self._watch.ran(took_s)
        if self._progress is not None:
            self._progress.advance(self._batch[0])

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        torch.set_num_threads(self.threads)  # kept by thread, and Daft calls from several
        # The longest pairs come first, so that no rate holds for the rest.
        with progress("sentence-transformers scores", len(pairs), "pairs") as self._progress:
            scores = self.model.predict(
                [(clean(query), clean(text)) for query, text in pairs],
                batch_size=self.batch_size,
                activation_fn=torch.nn.Identity(),
                show_progress_bar=False,
            )
        return np.asarray(scores, np.float32)


def _model_kwargs(variant: Variant, threads: int, device: str) -> dict[str, Any]:
    if variant.backend == "torch":
        return {DTYPE: DTYPES[variant.precision], "use_safetensors": True}
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return {
        "file_name": variant.file,
        "provider": f"{device.upper()}ExecutionProvider",
        "session_options": options,
    }
