"""A drop-in for sentence-transformers' CrossEncoder, on any variant of a model folder."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.scoring.default import default_variant
from xopt.runtime.scoring.device import check_device, unnumbered
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.ranking import ranked
from xopt.runtime.scoring.scorer import checked, open_scorer
from xopt.runtime.scoring.st_arguments import (
    ABSENT,
    NO_EFFECT_IN_PREDICT,
    NO_EFFECT_IN_RANK,
    ModelCard,
    check_call,
    opening,
)

__all__ = ["CrossEncoder"]

log = logging.getLogger(__name__)

Scores = NDArray[np.float32]
# The activations of most models, without torch.
FAST_ACTIVATIONS: dict[str, Callable[[Scores], Scores]] = {
    "torch.nn.modules.linear.Identity": lambda logits: logits,
    "torch.nn.modules.activation.Sigmoid": expit,
}
# Activations that keep the order of logits. In float32 they tie large ones, which still rank.
KEEP_ORDER = (
    *FAST_ACTIVATIONS,
    "torch.nn.modules.activation.LogSigmoid",
    "torch.nn.modules.activation.Tanh",
)
PROGRESS_PAIRS = 4096  # pairs between two steps of a progress bar


class CrossEncoder:
    """Ranks as sentence-transformers' CrossEncoder does, with a model folder in its place.

    - `model_name_or_path`: the model folder.
    - `variant`: by default the one that `xopt optimize` recommended for this machine, or else
      onnx-fp32. It may be sentence-transformers' number of labels.
    - `max_length`: cut pairs shorter than the folder does.
    - `activation_fn`: a function of torch tensors, in place of the model's own.
    - `plan`, `threads`, `trust_remote_code`: those of `open_scorer`.
    - `others`: arguments of sentence-transformers, older ones too.

    Raises what `open_scorer` raises, and BadInput for an argument that cannot be had, with the
    reason.
    """

    model_card_data = ModelCard()

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        variant: str | int | None = None,
        max_length: int | None = None,
        activation_fn: Callable[..., Any] | None = None,
        device: str | None = None,
        *,
        plan: Plan | None = None,
        threads: int | None = None,
        trust_remote_code: bool = False,
        **others: Any,
    ) -> None:
        asked = opening(
            {
                "model_name_or_path": model_name_or_path,
                "variant": variant,
                "max_length": max_length,
                "activation_fn": activation_fn,
                **others,
            }
        )
        self.device = unnumbered("cpu" if device is None else device)  # a torch.device, too
        check_device(self.device)
        folder = ModelFolder.open(asked.folder, trust_remote_code)
        asked.check(folder.manifest)
        self.variant = asked.variant or default_variant(folder, self.device)
        # The process may go to another directory, and open it again.
        self._whole = replace(folder, path=folder.path.resolve())
        self._own_activation_fn: Callable[..., Any] | None = asked.activation_fn
        self._plan = plan
        self._threads = threads
        self._open(asked.max_length)

    def _open(self, max_length: int | None) -> None:
        """Open the variant for pairs of at most so many tokens."""
        folder = self._whole if max_length is None else _cut_to(self._whole, max_length)
        scorer = open_scorer(
            folder, self.variant, plan=self._plan, threads=self._threads, device=self.device
        )
        tokens = folder.manifest.max_length
        special = scorer.encoder.special
        if tokens <= special:
            raise BadInput(
                f"max_length is {tokens}, which leaves no room for {special} special "
                "tokens; give more"
            )
        self.folder = folder
        self.scorer = scorer

    def __reduce__(self) -> tuple[Any, ...]:
        reopen = functools.partial(
            type(self),
            self.folder.path,
            self.variant,
            self.max_seq_length,
            self._own_activation_fn,
            self.device,
            plan=self._plan,
            threads=self._threads,
            trust_remote_code=self.folder.trusted,
        )
        return reopen, ()

    if not TYPE_CHECKING:  # a type checker knows by itself what is not there

        def __getattr__(self, name: str) -> Any:
            reason = ABSENT.get(name)
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{message}: {reason}" if reason else message)

    @property
    def num_labels(self) -> int:
        return self.folder.manifest.labels

    @property
    def max_seq_length(self) -> int:
        """The tokens that a pair is cut to. Setting it opens the variant again."""
        return self.folder.manifest.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int | None) -> None:
        if tokens != self.max_seq_length:
            self._open(tokens)

    @property
    def max_length(self) -> int:
        """The older name of `max_seq_length`."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, tokens: int | None) -> None:
        self.max_seq_length = tokens

    @property
    def activation_fn(self) -> Callable[..., Any]:
        """Return what makes scores of logits: the function given, or the model's torch module."""
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

    @activation_fn.setter
    def activation_fn(self, activation_fn: Callable[..., Any] | None) -> None:
        self._own_activation_fn = activation_fn

    @property
    def default_activation_function(self) -> Callable[..., Any]:
        """The older name of `activation_fn`."""
        _warn_of_older_name()
        return self.activation_fn

    @default_activation_function.setter
    def default_activation_function(self, activation_fn: Callable[..., Any] | None) -> None:
        _warn_of_older_name()
        self.activation_fn = activation_fn

    def eval(self) -> CrossEncoder:
        """Return the model itself, which does not train."""
        return self

    def to(self, device: object) -> CrossEncoder:
        """Return the model itself. Raises BadInput for another device than its own."""
        if unnumbered(device) != self.device:
            raise BadInput(
                f"device {str(device)!r}: it runs on {self.device}; "
                "open the model folder with `device=`"
            )
        return self

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

        - `prompt`, `prompt_name`: a prompt, or the name of one, in place of the model's own. It
          stands before the query, or where a chat template has its system message.
        - `batch_size`: has no effect, since no score depends on it.
        - `apply_softmax`: make the scores of several labels sum to 1.
        - `convert_to_numpy`, `convert_to_tensor`: return an array or a torch tensor. With neither,
          a list of tensors.

        One pair gives a float32, or float32[labels]. Several give float32[n], or
        float32[n, labels].

        Raises BadInput where a pair is not two texts, and ValueError where no prompt has the name.
        """
        inputs = others.pop("sentences", inputs)
        activation_fn = activation_fn or others.pop("activation_fct", None)
        check_call(others, NO_EFFECT_IN_PREDICT, batch_size, self.device)
        pairs, single = self._pairs(inputs)
        logits = self._logits(pairs, prompt_name, prompt, bool(show_progress_bar))
        scores = self._activated(logits, activation_fn)
        if apply_softmax and scores.ndim > 1:
            scores = softmax(scores, axis=1)
        found = scores
        if convert_to_tensor or not convert_to_numpy:
            found = _tensors(scores, as_list=not convert_to_tensor)
        return found[0] if single else found

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

        Logits rank, so that a sigmoid of 1.0 for all good documents ties none of them.
        An activation that is not known to keep their order ranks by its scores, and among
        equal ones by logits.
        A model of several labels ranks by the one that it was exported with.

        Raises ValueError where there is none.
        """
        activation_fn = activation_fn or others.pop("activation_fct", None)
        check_call(others, NO_EFFECT_IN_RANK, batch_size, self.device)
        self._check_ranks()
        _check_list(documents, "documents", "their texts")
        documents = list(documents)
        pairs = [_pair((query, document)) for document in documents]
        logits = self._logits(pairs, prompt_name, prompt, bool(show_progress_bar))
        ranking = self.folder.manifest.ranking
        scores = ranking(self._activated(logits, activation_fn))
        best = self._order(ranking(logits), scores, activation_fn)[:top_k].tolist()
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

    def _pairs(self, inputs: Any) -> tuple[list[Pair], bool]:
        """Return pairs, and whether a single one was given."""
        _check_list(inputs, "pairs", "`list(zip(QUERIES, DOCUMENTS))`")
        single = self.is_singular_input(inputs)
        return [_pair(pair) for pair in ([inputs] if single else inputs)], single

    def _check_ranks(self) -> None:
        """Raises ValueError where no label ranks, with the advice of sentence-transformers."""
        if not self.folder.manifest.ranks:
            raise ValueError(
                "CrossEncoder.rank() only works for models with num_labels=1. "
                "Consider using CrossEncoder.predict() with input pairs instead. "
                "Or export the model with `rank_label=`, the label that it ranks by."
            )

    def _order(
        self, logits: Scores, scores: Scores, activation_fn: Callable[..., Any] | None
    ) -> NDArray[np.int64]:
        """Return the rows best first, of the logits to rank by and what was made of them."""
        by_logits, _ = ranked(logits)
        activation_fn = activation_fn or self._own_activation_fn
        path = _path_of(activation_fn) if activation_fn else self.folder.manifest.activation
        # Of several labels the logits rank, which validate judges: activations may reorder
        # differences.
        if self.num_labels > 1 or path in KEEP_ORDER:
            return by_logits
        by_scores, _ = ranked(scores[by_logits])
        return by_logits[by_scores]

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


def _warn_of_older_name() -> None:
    warnings.warn(
        "`default_activation_function` is deprecated; use `activation_fn`",
        DeprecationWarning,
        stacklevel=3,
    )


def _cut_to(folder: ModelFolder, tokens: int) -> ModelFolder:
    most = folder.manifest.max_length
    if tokens > most:
        log.warning("max_length=%d: %s cuts pairs to %d", tokens, folder.path, most)
        return folder
    if tokens < 1:
        raise BadInput(f"max_length is {tokens}; give at least 1, or leave it out")
    return replace(folder, manifest=replace(folder.manifest, max_length=tokens))


def _path_of(activation_fn: Callable[..., Any]) -> str:
    """Return the module and name of an activation's class, as the manifest has them."""
    kind = type(activation_fn)
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_list(values: Any, what: str, example: str) -> None:
    """Raise BadInput for what has no order, and for frames, which give names of columns."""
    unordered = isinstance(values, (str, Mapping, set, frozenset))
    ordered = isinstance(values, Iterable) and not unordered
    if not ordered or hasattr(values, "columns") or hasattr(values, "column_names"):
        raise BadInput(f"expected a list of {what}, not {type(values).__name__}; give {example}")


def _pair(pair: Any) -> Any:
    """Return a pair as scorers take it. They refuse what is none."""
    if isinstance(pair, np.ndarray):
        pair = pair.tolist()
    return tuple(pair) if isinstance(pair, list) else pair


def _tensors(scores: Scores, as_list: bool) -> Any:
    """Return scores as a torch tensor, or as a list of one each."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(scores))
    return list(tensor) if as_list else tensor


def _result(row: int, score: np.floating[Any], **more: str) -> dict[str, Any]:
    return {"corpus_id": row, "score": score.item(), **more}
