"""Pairs end to end without padding: what torch's forwards read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.plan import Forward

__all__ = ["Packed", "pack"]


@dataclass(frozen=True)
class Packed:
    """The pairs of one forward on a device."""

    ids: Tensor  # int32[tokens]
    type_ids: Tensor  # int32[tokens]
    positions: Tensor  # int32[tokens], within a pair
    bounds: Tensor  # int32[pairs + 1]: where each pair starts, and the last one ends
    lengths: NDArray[np.int64]  # on the host, which does not wait for the device
    width: int  # the planner's

    @property
    def pairs(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def counts(self) -> Tensor:
        """How many tokens each pair has: int64[pairs]."""
        return (self.bounds[1:] - self.bounds[:-1]).long()

    @property
    def starts(self) -> Tensor:
        """The first token of each pair: int64[pairs]."""
        return self.bounds[:-1].long()

    @property
    def ends(self) -> Tensor:
        """The last token of each pair: int64[pairs]."""
        return self.bounds[1:].long() - 1

    @property
    def rows(self) -> Tensor:
        """The pair of each token: int64[tokens]."""
        # With its size known, the host does not wait for the device.
        return torch.repeat_interleave(self.counts, output_size=len(self.ids))


def pack(tokens: Tokens, forward: Forward, device: str) -> Packed:
    """Bring the pairs of a forward to the device, in one copy that no one waits for."""
    lengths = tokens.lengths[forward.rows]
    total = int(lengths.sum())
    pairs = len(lengths)
    buffer = torch.empty(3 * total + pairs + 1, dtype=torch.int32, pin_memory=device == "cuda")
    ids, type_ids, positions, bounds = np.split(buffer.numpy(), [total, 2 * total, 3 * total])
    bounds[0] = 0
    np.cumsum(lengths, out=bounds[1:])
    for kept, values in ((ids, tokens.ids), (type_ids, tokens.type_ids)):
        np.concatenate([values[row] for row in forward.rows], out=kept, casting="same_kind")
    positions[:] = np.arange(total) - np.repeat(bounds[:-1], lengths)
    on_device = buffer.to(device, non_blocking=True)
    parts = torch.split(on_device, [total, total, total, pairs + 1])
    return Packed(parts[0], parts[1], parts[2], parts[3], lengths, forward.width)
