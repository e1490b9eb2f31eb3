"""Distilling: a network with fewer layers learns to score as the whole one does."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xopt.optimize.shrink.layers import layers_of
from xopt.optimize.shrink.lists import List
from xopt.runtime.scoring.backends.network import Network
from xopt.runtime.scoring.encode import Encoder

__all__ = ["Distilled", "batch", "distil"]

log = logging.getLogger(__name__)

LISTS_A_STEP = 8
LEARNING_RATE, WARM_UP, DECAY = 3e-4, 0.05, 0.01
# the weight of a list's mean beside the differences in it: small, so that the scale is kept and
# no more
SCALE = 0.2
HIDDEN = 1.0  # the weight of the layers' outputs beside the logits
SAY_EVERY_S = 60


@dataclass(frozen=True)
class Distilled:
    """How it went: steps, pairs seen, seconds, and the mean loss of the first and the last
    steps.
    """

    steps: int
    pairs: int
    seconds: float
    first_loss: float
    last_loss: float


class _Watched:
    """A network that also gives the outputs of some of its layers, [pairs, width, hidden] each."""

    def __init__(self, network: Network, layers: Sequence[nn.Module]) -> None:
        self.network, self.outputs = network, [torch.empty(0)] * len(layers)
        for number, layer in enumerate(layers):
            layer.register_forward_hook(self._keeping(number))

    def _keeping(self, number: int) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self.outputs[number] = output[0] if isinstance(output, tuple) else output

        return keep

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.network(**inputs).float()
        return logits


def distil(
    teacher: Any,
    student: Any,
    kept: Sequence[int],
    lists: Iterator[List],
    encoder: Encoder,
    seconds: float,
    device: str,
    mixed: bool,
) -> Distilled:
    """Train the `student`, a CrossEncoder that has the layers `kept` of the `teacher`, for so
    many seconds.

    For each list the differences of logits within it are to be the teacher's (MarginMSE over all
    pairs of a list; Hofstaetter et al. 2020, arXiv:2010.02666), its mean logit too, with little
    weight, which keeps the scale. Each layer is to hand on, of all tokens, what the next one that
    was kept used to get, the last one what the head got (layer by layer as in "TinyBERT", Jiao et
    al. 2020, arXiv:1909.10351): one logit a pair teaches too little. Word embeddings stay as they
    are, whose gradients cost more than a layer, and so do those that a language model's logits
    come from: of them the network has but the tokens that are compared. With `mixed`, products
    are of bfloat16. Both encoders are changed and of no use afterwards but for their weights.
    """
    holder, name = layers_of(teacher, "")
    whole = getattr(holder, name)
    before = [*kept[1:], len(whole)]  # which layer comes next
    taught = _Watched(Network(teacher.to(device)), [whole[i - 1] for i in before])
    holder, name = layers_of(student, "")
    learning = _Watched(Network(student.to(device)), list(getattr(holder, name)))
    for part in (student.model.get_input_embeddings(), student.model.get_output_embeddings()):
        if part is not None:
            part.requires_grad_(False)
    weights = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=DECAY)
    student.eval()  # without dropout; gradients flow all the same
    start, said, losses, pairs = time.monotonic(), time.monotonic(), [], 0
    spread = 1.0
    while (past := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(
                past / WARM_UP + 0.02, 0.5 + 0.5 * math.cos(math.pi * past)
            )
        step = [next(lists) for _ in range(LISTS_A_STEP)]
        inputs, sizes = batch(step, encoder, device)
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            with torch.inference_mode():
                expected = taught(inputs)
            found = learning(inputs)
            hidden = _hidden_loss(
                learning.outputs,
                [each.clone() for each in taught.outputs],
                inputs["attention_mask"],
            )
        spread = 0.95 * spread + 0.05 * max(float(expected.var()), 1e-3)
        loss = _list_loss(found, expected.clone(), sizes) / spread + HIDDEN * hidden
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        pairs += sum(sizes)
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            log.info(
                "shrink: %.0f %% of the time, %d pairs, loss %.3f",
                100 * past,
                pairs,
                np.mean(losses[-50:]),
            )
    few = max(1, len(losses) // 20)
    took = time.monotonic() - start
    return Distilled(
        len(losses), pairs, took, float(np.mean(losses[:few])), float(np.mean(losses[-few:]))
    )


def _list_loss(found: Tensor, expected: Tensor, sizes: Sequence[int]) -> Tensor:
    """Squared differences within lists, and of their means; of each label."""
    losses = []
    for own, other in zip(
        torch.split(found, list(sizes)), torch.split(expected, list(sizes)), strict=True
    ):
        error = own - other
        mean = error.mean(0)
        losses.append((error - mean).square().mean() + SCALE * mean.square().mean())
    return torch.stack(losses).mean()


def _hidden_loss(found: Sequence[Tensor], expected: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean squared errors of layers' outputs at tokens that are text, relative to the outputs'
    own variance.
    """
    text = mask.bool()
    losses = [
        (own[text].float() - other[text].float()).square().mean() / other[text].float().var()
        for own, other in zip(found, expected, strict=True)
    ]
    return torch.stack(losses).mean()


def batch(
    lists: Sequence[List], encoder: Encoder, device: str
) -> tuple[dict[str, Tensor], list[int]]:
    """Padded inputs of all pairs, as the network reads them, and how many pairs each list has."""
    pairs = [(query, text) for query, texts in lists for text in texts]
    tokens = encoder.encode(pairs)
    shape = len(pairs), int(tokens.lengths.max())
    ids, types, mask = (
        np.full(shape, encoder.pad_id),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
    )
    for row, (own, kinds) in enumerate(zip(tokens.ids, tokens.type_ids, strict=True)):
        where = slice(shape[1] - len(own), None) if encoder.left else slice(len(own))
        ids[row, where], types[row, where], mask[row, where] = own, kinds, 1
    inputs = {"input_ids": ids, "attention_mask": mask} | (
        {"token_type_ids": types} if encoder.typed else {}
    )
    on_device = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
    return on_device, [len(texts) for _, texts in lists]
