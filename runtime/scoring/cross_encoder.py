"""A drop-in for sentence-transformers' CrossEncoder: `predict` and `rank`, on any variant of a
model folder.
"""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import machine_name
from xopt.runtime.scoring.device import check_device
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.scorer import checked, open_scorer

__all__ = ["CrossEncoder"]

log = logging.getLogger(__name__)

Scores = NDArray[np.float32]
# the activations that most models have, without torch
FAST: dict[str, Callable[[Scores], Scores]] = {
    "torch.nn.modules.linear.Identity": lambda logits: logits,
    "torch.nn.modules.activation.Sigmoid": expit,
}
# Arguments of sentence-transformers that change nothing here, and those that rank has no more.
NO_EFFECT = ("num_workers", "chunk_size")
NOT_OF_RANK = ("apply_softmax", "convert_to_numpy", "convert_to_tensor")
CHUNK = 4096  # pairs between two steps of a progress bar


class CrossEncoder:
    """Ranks as sentence-transformers' CrossEncoder does, with a model folder in its place.

    `variant` is the one that `xopt optimize` recommended for this machine, else onnx-fp32.
    `max_length` cuts pairs shorter than the folder does. `activation_fn`, of a torch tensor,
    takes the place of the model's own. `plan`, `threads` and `trust_remote_code` as in
    `open_scorer`, which says what is raised.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        variant: str | None = None,
        *,
        device: str | None = None,
        max_length: int | None = None,
        activation_fn: Callable[..., Any] | None = None,
        plan: Plan | None = None,
        threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.device = str(device or "cpu")  # sentence-transformers takes a torch.device, too
        check_device(self.device)
        how: dict[str, Any] = {
            "plan": plan,
            "threads": threads,
            "device": self.device,
            "trust_remote_code": trust_remote_code,
        }
        folder = ModelFolder.open(model_name_or_path, trust_remote_code)
        self.variant = (
            variant or folder.manifest.recommended(machine_name(self.device)) or "onnx-fp32"
        )
        self.folder = folder if max_length is None else _cut_to(folder, max_length)
        self._given = activation_fn
        self.scorer = open_scorer(self.folder, self.variant, **how)
        special, cut = self.scorer.encoder.special, self.folder.manifest.max_length
        if cut <= special:
            raise BadInput(
                f"max_length is {cut}, which leaves no room for {special} special tokens; give more"
            )
        there = folder.path.resolve()
        more: dict[str, Any] = {"max_length": max_length, "activation_fn": activation_fn}
        self._reopen = functools.partial(CrossEncoder, there, self.variant, **how, **more)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is opened again."""
        return self._reopen, ()

    @property
    def num_labels(self) -> int:
        """The labels of the model."""
        return self.folder.manifest.labels

    @property
    def max_seq_length(self) -> int:
        """The tokens that a pair is cut to."""
        return self.folder.manifest.max_length

    @property
    def max_length(self) -> int:
        """The older name of `max_seq_length`."""
        return self.max_seq_length

    @property
    def activation_fn(self) -> Callable[..., Any]:
        """What is applied to logits: the model's own, as a torch module, unless another one was
        given.
        """
        path = self.folder.manifest.activation
        if self._given:
            return self._given
        if not path.startswith("torch.") and not self.folder.trusted:
            raise BadInput(
                f"{self.folder.path}: its activation {path} is code of its own; give trust_remote_code=True"
            )
        module, _, name = path.rpartition(".")
        made: Callable[..., Any] = getattr(importlib.import_module(module), name)()
        return made

    @property
    def default_activation_function(self) -> Callable[..., Any]:
        """The older name of `activation_fn`."""
        warnings.warn(
            "The `default_activation_function` property was renamed and is now deprecated; use `activation_fn`",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.activation_fn

    def predict(
        self,
        inputs: Any = (),
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **others: Any,
    ) -> Any:
        """Scores of a (query, document) pair, or of a sequence of them, in the order given.

        One pair gives a float32, or float32[labels]; several give float32[n] or float32[n,
        labels]: an array, with `convert_to_tensor` a torch tensor, with neither a list of torch
        tensors. `batch_size` has no effect: the plan sorts and packs pairs, and no score depends
        on it. `apply_softmax` makes scores of several labels sum to 1. `prompt` stands before the
        query in place of the model's own. Raises BadInput for what is no pair of texts.
        """
        inputs, activation_fn = self._renamed(inputs, activation_fn, others, NO_EFFECT)
        if batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
        single = self.is_singular_input(inputs)
        pairs = [_pair(pair) for pair in ([inputs] if single else inputs)]
        scores = self._activated(
            self._logits(pairs, prompt_name, prompt, bool(show_progress_bar)), activation_fn
        )
        if apply_softmax and scores.ndim > 1:
            scores = softmax(scores, axis=1)
        if convert_to_numpy and not convert_to_tensor:
            return scores[0] if single else scores
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(scores))
        made = tensor if convert_to_tensor else list(tensor)
        return made[0] if single else made

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        **others: Any,
    ) -> list[dict[str, Any]]:
        """Documents, best first: `corpus_id`, `score` as a Python float and, where asked for,
        `text`; ties in order.

        A model of several labels ranks by the one that its export was told. Raises ValueError
        where that is none.
        """
        _, activation_fn = self._renamed((), activation_fn, others, (*NO_EFFECT, *NOT_OF_RANK))
        if not self.folder.manifest.ranks:
            raise ValueError(
                "CrossEncoder.rank() only works for models with num_labels=1. Consider using CrossEncoder.predict() "
                "with input pairs instead. Or export the model with --rank-label, which says by which label it ranks."
            )
        if batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
        documents = list(documents)
        pairs = [_pair((query, document)) for document in documents]
        logits = self._logits(pairs, prompt_name, prompt, bool(show_progress_bar))
        rank = self.folder.manifest.ranking
        scores = rank(self._activated(logits, activation_fn)).tolist()
        # Of several labels the logits rank, as validate has judged them: activations turn
        # differences around.
        by = scores if self.num_labels == 1 else rank(logits).tolist()
        order = sorted(range(len(documents)), key=lambda number: -by[number])[:top_k]
        texts = [{"text": documents[i]} if return_documents else {} for i in order]
        return [
            {"corpus_id": i, "score": scores[i], **text}
            for i, text in zip(order, texts, strict=True)
        ]

    @staticmethod
    def is_singular_input(inputs: Any) -> bool:
        """Whether this is one pair, and not a sequence of pairs."""
        if isinstance(inputs, np.ndarray):
            return inputs.size > 0 and inputs.ndim < 2
        if isinstance(inputs, (list, tuple)):
            return len(inputs) > 0 and not isinstance(inputs[0], (list, tuple, np.ndarray))
        return isinstance(inputs, str)

    def _renamed(
        self, inputs: Any, activation_fn: Any, others: dict[str, Any], known: Sequence[str]
    ) -> Any:
        """Two arguments, by the names that older versions have for them too. Raises TypeError for
        what is unknown.
        """
        inputs = others.pop("sentences", inputs)
        activation_fn = activation_fn or others.pop("activation_fct", None)
        for name, value in others.items():
            if (
                name not in known
                and value is not None
                and not (name == "device" and str(value) == self.device)
            ):
                raise TypeError(
                    f"{name}={value!r}: a model folder has no such argument; say it when it is opened"
                )
        return inputs, activation_fn

    def _logits(
        self, pairs: list[Pair], prompt_name: str | None, prompt: str | None, bar: bool
    ) -> Scores:
        own, scorer = self.folder.manifest, self.scorer
        if prompt_name is not None:
            raise BadInput(
                f"prompt_name={prompt_name!r}: a model folder keeps its default prompt alone; give prompt="
            )
        if prompt is not None and prompt != own.prompt:
            if own.template:
                raise BadInput(
                    f"prompt={prompt!r}: its prompt is part of the chat template; export the model with this one"
                )
            scorer = scorer.with_prompt(prompt)
        if not pairs:
            return np.empty(0, np.float32)  # of several labels, too
        if not bar:
            return scorer.score(pairs)
        from rich.console import Console
        from rich.progress import track

        chunks = track(range(0, len(pairs), CHUNK), "Batches", console=Console(stderr=True))
        return checked(
            pairs, np.concatenate([scorer.logits(pairs[start : start + CHUNK]) for start in chunks])
        )

    def _activated(self, logits: Scores, given: Callable[..., Any] | None) -> Scores:
        """Scores: what the activation makes of logits, float32, once."""
        fast = FAST.get(self.folder.manifest.activation)
        if fast and not (given or self._given):
            return fast(logits)
        import torch

        with torch.inference_mode():
            rows = torch.from_numpy(logits[:, None] if self.num_labels == 1 else logits)
            scores = np.asarray((given or self.activation_fn)(rows).float(), np.float32)
        return scores.reshape(len(logits)) if self.num_labels == 1 else scores


def _cut_to(folder: ModelFolder, tokens: int) -> ModelFolder:
    if tokens > folder.manifest.max_length:
        log.warning(
            "max_length=%d: %s cuts pairs to %d", tokens, folder.path, folder.manifest.max_length
        )
        return folder
    if tokens < 1:
        raise BadInput(f"max_length is {tokens}; give at least 1, or leave it out")
    return replace(folder, manifest=replace(folder.manifest, max_length=tokens))


def _pair(pair: Any) -> Any:
    """A pair as scorers take it; what is none they refuse."""
    return (
        tuple(pair.tolist() if isinstance(pair, np.ndarray) else pair)
        if not isinstance(pair, str)
        else pair
    )
