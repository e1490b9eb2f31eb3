"""Scorers: a variant, a plan, and `score(pairs)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.encode import Encoder, Pair, Tokens, check_pairs
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan, Variant
from xopt.runtime.machine import cores, machine_name
from xopt.runtime.plan import Forward, default_plan, plan_forwards
from xopt.runtime.stages import Stages, Stopwatch

__all__ = ["BatchScorer", "PlannedScorer", "Scorer", "open_scorer"]

Backend = Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]


class Scorer(Protocol):
    """Anything that scores pairs, and knows where its time went."""

    @property
    def stages(self) -> Stages:
        """What it has done so far."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Logits of (query, document) pairs in the order given: float32[n], or float32[n, labels] of several labels."""


class PlannedScorer:
    """Scores pairs in three steps: encode, forward, finish."""

    def __init__(self, encoder: Encoder, backend: Backend, plan: Plan, labels: int) -> None:
        self.encoder, self.backend, self.plan, self.labels = encoder, backend, plan, labels
        self.truncated = 0  # pairs cut to the model's length so far
        self._watch = Stopwatch(plan.callers)

    @property
    def stages(self) -> Stages:
        """Where the time of all calls so far went."""
        return self._watch.stages

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Logits of (query, document) pairs in the order given: float32[n], or float32[n, labels] of several labels.

        Identical pairs are scored once. Raises BadInput where a pair is not two texts. Pairs longer
        than the model are cut as the reference cuts them and counted in `truncated`.
        """
        pairs = list(pairs)  # an iterator can be read once
        check_pairs(pairs)
        place: dict[Pair, int] = {}
        places = [place.setdefault((query, text), len(place)) for query, text in pairs]
        start = time.monotonic()
        tokens = self.encoder.encode(list(place))
        self._watch.encoded(time.monotonic() - start)
        self.truncated += tokens.truncated
        return self.score_tokens(tokens)[places]

    def with_plan(self, plan: Plan) -> PlannedScorer:
        """A scorer of the same open backend, whose threads stay as they are, with other callers and tokens."""
        return PlannedScorer(self.encoder, self.backend, plan, self.labels)

    def score_tokens(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits of pairs that are tokenised already; see `score`."""
        logits = np.empty((len(tokens.ids), self.labels), np.float32)

        def run(forward: Forward) -> None:
            arrays, start = pad(tokens, forward, self.encoder.pad_id), time.monotonic()
            logits[forward.rows] = self.backend(arrays)
            text = int(tokens.lengths[forward.rows].sum())
            self._watch.forwarded(time.monotonic() - start, len(forward.rows), forward.width, text)

        start = time.monotonic()
        forwards = plan_forwards(tokens.lengths, self.plan.tokens, self.encoder.max_length)
        if self.plan.callers == 1 or len(forwards) == 1:
            for forward in forwards:
                run(forward)
        else:
            with ThreadPoolExecutor(self.plan.callers) as callers:
                for _ in callers.map(run, forwards):
                    pass
        self._watch.ran(time.monotonic() - start)
        return logits[:, 0] if self.labels == 1 else logits


class BatchScorer:
    """Scores pairs as sentence-transformers batches them, for backends that it does not run here: no plan."""

    def __init__(self, scorer: PlannedScorer, batch_size: int) -> None:
        self.scorer, self.batch_size = scorer, batch_size
        self._watch = Stopwatch(callers=1)

    @property
    def stages(self) -> Stages:
        """Where the time of all calls so far went."""
        return self._watch.stages

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Logits of (query, document) pairs in the order given; see `Scorer`."""
        start = time.monotonic()
        tokens = self.scorer.encoder.encode(pairs)
        self._watch.encoded(time.monotonic() - start)
        logits = np.empty((len(pairs), self.scorer.labels), np.float32)
        order = np.argsort([-len(query) - len(text) for query, text in pairs], kind="stable")
        for first in range(0, len(order), self.batch_size):
            rows, start = order[first : first + self.batch_size], time.monotonic()
            forward = Forward(rows, int(tokens.lengths[rows].max()))
            logits[rows] = self.scorer.backend(pad(tokens, forward, self.scorer.encoder.pad_id))
            took = time.monotonic() - start
            self._watch.forwarded(took, len(rows), forward.width, int(tokens.lengths[rows].sum()))
            self._watch.ran(took)
        return logits[:, 0] if self.scorer.labels == 1 else logits


def pad(tokens: Tokens, forward: Forward, pad_id: int) -> dict[str, NDArray[np.int64]]:
    """The int64[pairs, width] arrays of one forward: ids, attention mask and type ids."""
    shape = (len(forward.rows), forward.width)
    ids, mask, types = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for i, row in enumerate(forward.rows):
        length = int(tokens.lengths[row])
        ids[i, :length], mask[i, :length], types[i, :length] = tokens.ids[row], 1, tokens.type_ids[row]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def open_scorer(
    folder: str | Path,
    variant: str = "onnx-fp32",
    *,
    plan: Plan | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> PlannedScorer:
    """Open a variant of a model folder.

    Without `plan`, the plan that `xopt tune` found for this machine is used, else a default for
    `threads` (all usable cores unless given). The ONNX scorer imports neither torch nor transformers.
    Raises BadInput where the folder, the variant or the device is not there, or a file is damaged.
    """
    model = ModelFolder.open(folder)
    chosen = model.variant(variant)
    plan = plan or find_plan(model, chosen, threads)
    return PlannedScorer(Encoder(model), _open_backend(model, chosen, plan, device), plan, model.manifest.labels)


def find_plan(model: ModelFolder, variant: Variant, threads: int | None = None) -> Plan:
    """The tuned plan for this machine, or the default one; a tuned plan serves only the threads it was found for."""
    tuned = model.manifest.plans.get(machine_name(), {}).get(variant.name)
    if tuned is not None and threads in (None, tuned.callers * tuned.threads):
        return tuned
    return default_plan(variant.backend, threads or cores())


def _open_backend(model: ModelFolder, variant: Variant, plan: Plan, device: str) -> Backend:
    if variant.backend == "onnx":
        from xopt.runtime.onnx_backend import OnnxBackend

        return OnnxBackend(model, variant, plan.threads, device)
    if variant.backend == "openvino":
        from xopt.runtime.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(model, variant, plan, device)
    if variant.backend == "torch":
        from xopt.runtime.torch_backend import TorchBackend

        return TorchBackend(model, variant, plan.threads, device)
    raise BadInput(f"{model.path}: variant {variant.name!r} has an unknown backend {variant.backend!r}")
