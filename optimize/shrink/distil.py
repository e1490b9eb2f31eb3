"""Distilling: a network with fewer layers learns to score as the whole one does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xopt.optimize.shrink.layers import layers_of
from xopt.optimize.shrink.lists import TrainingList
from xopt.runtime.progress import progress
from xopt.runtime.scoring.backends.network import Network
from xopt.runtime.scoring.encode import Encoder

__all__ = ["Distilled", "batch", "distil"]

LISTS_A_STEP = 8
LEARNING_RATE = 3e-4
WARM_UP = 0.05  # share of the time
WEIGHT_DECAY = 0.01
# Of a list's mean logit beside the differences in the list: enough to keep the scale.
MEAN_WEIGHT = 0.2


@dataclass(frozen=True)
class Distilled:
    """A training, with the mean losses of its first and of its last steps."""

    steps: int
    pairs: int
    seconds: float
    first_loss: float
    last_loss: float


def distil(
    teacher: Any,
    student: Any,
    kept: Sequence[int],
    lists: Iterator[TrainingList],
    encoder: Encoder,
    seconds: float,
    device: str,
    mixed: bool,
) -> Distilled:
    """Train the `student`, a CrossEncoder with the layers `kept` of the `teacher`.

    It learns the differences of logits within a list: MarginMSE (Hofstaetter et al. 2020,
    arXiv:2010.02666) over all pairs of the list. One logit a pair teaches too little. So
    each layer also learns the teacher's output before the next kept layer, for all tokens.
    TinyBERT does the same (Jiao et al. 2020, arXiv:1909.10351). Embeddings of words stay as
    they are: their gradients cost more than a layer. `mixed` computes products in bfloat16.
    Both CrossEncoders are changed, and only the student's weights are of use afterwards.
    """
    trainer = _Trainer(teacher, student, kept, device, mixed)
    start = now = time.monotonic()
    losses: list[float] = []
    with progress("training", unit="pairs", work=seconds) as step:
        while now - start < seconds:
            inputs, sizes = batch([next(lists) for _ in range(LISTS_A_STEP)], encoder, device)
            losses.append(trainer.step(inputs, sizes, (now - start) / seconds))
            before = now
            now = time.monotonic()
            step.advance(sum(sizes), now - before)
            step.note = f"loss {np.mean(losses[-50:]):.3f}"
    few = max(1, len(losses) // 20)
    first = float(np.mean(losses[:few]))
    last = float(np.mean(losses[-few:]))
    return Distilled(len(losses), step.done, now - start, first_loss=first, last_loss=last)


class _Trainer:
    """Trains the student, a step at a time."""

    def __init__(
        self,
        teacher: Any,
        student: Any,
        kept: Sequence[int],
        device: str,
        mixed: bool,
    ) -> None:
        layers = layers_of(teacher)
        # A kept layer stands for all that follow it, up to the next kept one.
        ends = [*kept[1:], len(layers)]
        self.teacher = _WithOutputs(teacher, [layers[end - 1] for end in ends], device)
        self.student = _WithOutputs(student, layers_of(student), device)
        student.eval()  # without dropout; gradients flow all the same
        # A language model's output embeddings are only those of the compared tokens.
        model = student.model
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            if part is not None:
                part.requires_grad_(False)
        self.weights = [each for each in student.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, weight_decay=WEIGHT_DECAY)
        self.device = device
        self.mixed = mixed
        self.variance = 1.0  # of the teacher's logits, a running mean

    def step(self, inputs: dict[str, Tensor], sizes: Sequence[int], progress: float) -> float:
        """Learn from lists of these sizes. Returns the loss."""
        text = inputs["attention_mask"].bool()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
            with torch.no_grad():
                expected, expected_outputs = self.teacher(inputs)
            found, outputs = self.student(inputs)
            hidden_loss = _hidden_loss(outputs, expected_outputs, text)
        self.variance = 0.95 * self.variance + 0.05 * max(float(expected.var()), 1e-3)
        loss = _list_loss(found, expected, sizes) / self.variance + hidden_loss
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(progress)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        return float(loss.detach())


class _WithOutputs:
    """A CrossEncoder that also gives layers' outputs, [pairs, width, hidden] each."""

    def __init__(self, encoder: Any, layers: Sequence[nn.Module], device: str) -> None:
        self.network = Network(encoder.to(device))
        self.layers = layers
        self.outputs: dict[nn.Module, Tensor] = {}
        for layer in layers:
            layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, _: Any, output: Any) -> None:
        self.outputs[layer] = output[0] if isinstance(output, tuple) else output

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        logits: Tensor = self.network(**inputs).float()
        return logits, [self.outputs[layer] for layer in self.layers]


def _learning_rate(progress: float) -> float:
    """A linear rise, then half a cosine."""
    rise = progress / WARM_UP + 0.02
    fall = 0.5 + 0.5 * math.cos(math.pi * progress)
    return LEARNING_RATE * min(rise, fall)


def _list_loss(found: Tensor, expected: Tensor, sizes: Sequence[int]) -> Tensor:
    """Squared errors of logits within lists, and of the lists' means."""
    losses = []
    for errors in torch.split(found - expected, list(sizes)):
        mean = errors.mean(0)
        within = (errors - mean).square().mean()
        losses.append(within + MEAN_WEIGHT * mean.square().mean())
    return torch.stack(losses).mean()


def _hidden_loss(found: list[Tensor], expected: list[Tensor], text: Tensor) -> Tensor:
    """Squared errors of outputs where there is text, in units of their variance."""
    losses = []
    for own, other in zip(found, expected, strict=True):
        target = other[text].float()
        error = own[text].float() - target
        losses.append(error.square().mean() / target.var())
    return torch.stack(losses).mean()


def batch(
    lists: Sequence[TrainingList],
    encoder: Encoder,
    device: str,
) -> tuple[dict[str, Tensor], list[int]]:
    """Tokenise and pad all pairs. Returns inputs, and how many pairs each list has."""
    pairs = [(query, text) for query, texts in lists for text in texts]
    tokens = encoder.encode(pairs)
    shape = (len(pairs), int(tokens.lengths.max()))
    arrays = {
        "input_ids": np.full(shape, encoder.pad_id),
        "attention_mask": np.zeros(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    for row, ids in enumerate(tokens.ids):
        text = slice(-len(ids), None) if encoder.left else slice(len(ids))
        arrays["input_ids"][row, text] = ids
        arrays["attention_mask"][row, text] = 1
        arrays["token_type_ids"][row, text] = tokens.type_ids[row]
    if not encoder.typed:
        del arrays["token_type_ids"]
    inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return inputs, [len(texts) for _, texts in lists]
