"""A drop-in for sentence-transformers' CrossEncoder, on any variant of a model folder."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.scoring.default import default_variant
from xopt.runtime.scoring.device import check_device
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.ranking import ranked
from xopt.runtime.scoring.scorer import checked, open_scorer

__all__ = ["CrossEncoder"]

log = logging.getLogger(__name__)

Scores = NDArray[np.float32]
# The activations of most models, without torch.
FAST_ACTIVATIONS: dict[str, Callable[[Scores], Scores]] = {
    "torch.nn.modules.linear.Identity": lambda logits: logits,
    "torch.nn.modules.activation.Sigmoid": expit,
}
# Arguments of sentence-transformers that have no effect here.
NO_EFFECT = ("num_workers", "chunk_size")
NO_EFFECT_IN_RANK = (*NO_EFFECT, "apply_softmax", "convert_to_numpy", "convert_to_tensor")
PROGRESS_PAIRS = 4096  # pairs between two steps of a progress bar


class CrossEncoder:
    """Ranks as sentence-transformers' CrossEncoder does, with a model folder in its place.

    `variant` is by default the one that `xopt optimize` recommended for this machine,
    or else onnx-fp32. `max_length` cuts pairs shorter than the folder does.
    `activation_fn`, a function of torch tensors, replaces the model's own.
    `plan`, `threads`, `trust_remote_code` and the errors raised are those of `open_scorer`.
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
        folder = ModelFolder.open(model_name_or_path, trust_remote_code)
        self.variant = variant or default_variant(folder, self.device)
        self.folder = folder if max_length is None else _cut_to(folder, max_length)
        self.scorer = open_scorer(
            self.folder, self.variant, plan=plan, threads=threads, device=self.device
        )
        special = self.scorer.encoder.special
        if self.max_seq_length <= special:
            raise BadInput(
                f"max_length is {self.max_seq_length}, which leaves no room for {special} special "
                "tokens; give more"
            )
        self._own_activation_fn = activation_fn
        self._reopen = functools.partial(
            CrossEncoder,
            folder.path.resolve(),
            self.variant,
            device=self.device,
            max_length=max_length,
            activation_fn=activation_fn,
            plan=plan,
            threads=threads,
            trust_remote_code=trust_remote_code,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reopen, ()

    @property
    def num_labels(self) -> int:
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
        """What makes scores of logits: the function given, or the model's torch module."""
        if self._own_activation_fn:
            return self._own_activation_fn
        path = self.folder.manifest.activation
        if not path.startswith("torch.") and not self.folder.trusted:
            raise BadInput(
                f"{self.folder.path}: its activation {path} is code of its own; "
                "give `trust_remote_code=True`"
            )
        module, _, name = path.rpartition(".")
        activation: Callable[..., Any] = getattr(importlib.import_module(module), name)()
        return activation

    @property
    def default_activation_function(self) -> Callable[..., Any]:
        """The older name of `activation_fn`."""
        warnings.warn(
            "`default_activation_function` is deprecated; use `activation_fn`",
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
        """Score a (query, document) pair, or a sequence of them, in the order given.

        One pair gives a float32, or float32[labels]; several float32[n], or float32[n, labels].
        That is an array, with `convert_to_tensor` a torch tensor, and with neither a list of
        tensors. `prompt`, or the one called `prompt_name`, takes the place of the model's own.
        It stands before the query, or where a chat template has its system message.
        `apply_softmax` makes the scores of several labels sum to 1.
        `batch_size` has no effect: no score depends on it.
        Raises BadInput where a pair is not two texts, and ValueError where no prompt has the name.
        """
        inputs = others.pop("sentences", inputs)
        activation_fn = activation_fn or others.pop("activation_fct", None)
        self._check_arguments(batch_size, others, NO_EFFECT)
        single = self.is_singular_input(inputs)
        pairs = [_pair(pair) for pair in ([inputs] if single else inputs)]
        logits = self._logits(pairs, prompt_name, prompt, bool(show_progress_bar))
        scores = self._activated(logits, activation_fn)
        if apply_softmax and scores.ndim > 1:
            scores = softmax(scores, axis=1)
        if convert_to_numpy and not convert_to_tensor:
            return scores[0] if single else scores
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(scores))
        rows = tensor if convert_to_tensor else list(tensor)
        return rows[0] if single else rows

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
        """Rank documents, best first; ties stay in order.

        Each has `corpus_id`, `score` as a Python float and, where asked for, `text`.
        A model of several labels ranks by the one that it was exported with.
        Raises ValueError where there is none.
        """
        activation_fn = activation_fn or others.pop("activation_fct", None)
        self._check_arguments(batch_size, others, NO_EFFECT_IN_RANK)
        if not self.folder.manifest.ranks:
            raise ValueError(
                "CrossEncoder.rank() only works for models with num_labels=1. "
                "Consider using CrossEncoder.predict() with input pairs instead. "
                "Or export the model with `rank_label=`, the label that it ranks by."
            )
        documents = list(documents)
        pairs = [_pair((query, document)) for document in documents]
        logits = self._logits(pairs, prompt_name, prompt, bool(show_progress_bar))
        ranking = self.folder.manifest.ranking
        scores = ranking(self._activated(logits, activation_fn))
        # Of several labels the logits rank, which validate judges: activations may reorder
        # differences.
        order, _ = ranked(scores if self.num_labels == 1 else ranking(logits))
        best = order[:top_k].tolist()
        if return_documents:
            return [_result(row, scores[row], text=documents[row]) for row in best]
        return [_result(row, scores[row]) for row in best]

    @staticmethod
    def is_singular_input(inputs: Any) -> bool:
        """Return whether this is one pair, and not a sequence of pairs."""
        if isinstance(inputs, np.ndarray):
            return inputs.size > 0 and inputs.ndim < 2
        if isinstance(inputs, (list, tuple)):
            return len(inputs) > 0 and not isinstance(inputs[0], (list, tuple, np.ndarray))
        return isinstance(inputs, str)

    def _check_arguments(
        self, batch_size: int, others: dict[str, Any], no_effect: Collection[str]
    ) -> None:
        for name, value in others.items():
            same_device = name == "device" and str(value) == self.device
            if value is not None and name not in no_effect and not same_device:
                raise TypeError(
                    f"{name}={value!r}: a model folder has no such argument; "
                    "give it when the folder is opened"
                )
        if batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")

    def _logits(
        self, pairs: list[Pair], prompt_name: str | None, prompt: str | None, show_progress: bool
    ) -> Scores:
        scorer = self.scorer
        prompt = self._chosen_prompt(prompt_name, prompt)
        if prompt is not None:
            scorer = scorer.with_prompt(prompt)
        if not pairs:
            return np.empty(0, np.float32)  # of several labels, too
        if not show_progress:
            return scorer.score(pairs)
        from rich.console import Console
        from rich.progress import track

        starts = range(0, len(pairs), PROGRESS_PAIRS)
        logits = [
            scorer.logits(pairs[start : start + PROGRESS_PAIRS])
            for start in track(starts, "Batches", console=Console(stderr=True))
        ]
        return checked(pairs, np.concatenate(logits))

    def _chosen_prompt(self, name: str | None, prompt: str | None) -> str | None:
        """Return the prompt that a call asks for, as sentence-transformers understands it."""
        if name is None:
            return prompt
        if prompt is not None:
            log.warning("prompt_name=%r has no effect beside `prompt=`", name)
            return prompt
        prompts = self.folder.manifest.prompts
        if name not in prompts:
            raise ValueError(
                f"Prompt name {name!r} not found in the configured prompts dictionary with keys "
                f"{list(prompts)!r}. Export the model again where it has more."
            )
        return prompts[name]

    def _activated(self, logits: Scores, activation_fn: Callable[..., Any] | None) -> Scores:
        activation_fn = activation_fn or self._own_activation_fn
        fast = FAST_ACTIVATIONS.get(self.folder.manifest.activation)
        if fast and not activation_fn:
            return fast(logits)
        import torch

        with torch.inference_mode():
            rows = torch.from_numpy(logits[:, None] if self.num_labels == 1 else logits)
            activated = (activation_fn or self.activation_fn)(rows)
            scores = np.asarray(activated.float(), np.float32)
        return scores[:, 0] if self.num_labels == 1 else scores


def _cut_to(folder: ModelFolder, tokens: int) -> ModelFolder:
    most = folder.manifest.max_length
    if tokens > most:
        log.warning("max_length=%d: %s cuts pairs to %d", tokens, folder.path, most)
        return folder
    if tokens < 1:
        raise BadInput(f"max_length is {tokens}; give at least 1, or leave it out")
    return replace(folder, manifest=replace(folder.manifest, max_length=tokens))


def _pair(pair: Any) -> Any:
    """Return a pair as scorers take it. They refuse what is none."""
    if isinstance(pair, str):
        return pair
    return tuple(pair.tolist() if isinstance(pair, np.ndarray) else pair)


def _result(row: int, score: np.floating[Any], **more: str) -> dict[str, Any]:
    return {"corpus_id": row, "score": score.item(), **more}
