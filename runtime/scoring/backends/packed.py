"""Pairs end to end, without padding: what torch's forwards read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.plan import Forward

__all__ = ["Packed", "pack"]


@dataclass(frozen=True)
class Packed:
    """The pairs of one forward on a device.

    ids, type_ids and positions (a token's place within its pair) are int32[tokens]; `bounds`,
    int32[pairs + 1], says where each pair starts and where the last one ends. `lengths` and
    `longest`, in tokens, are known to the host without asking the device; `width` is what the
    planner would pad to.
    """

    ids: torch.Tensor
    type_ids: torch.Tensor
    positions: torch.Tensor
    bounds: torch.Tensor
    lengths: NDArray[np.int64]
    width: int

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """The tokens of the longest pair."""
        return int(self.lengths.max())

    @property
    def starts(self) -> torch.Tensor:
        """Where each pair starts: int64[pairs]."""
        return self.bounds[:-1].long()

    @property
    def ends(self) -> torch.Tensor:
        """The last token of each pair: int64[pairs]."""
        return self.bounds[1:].long() - 1

    @property
    def rows(self) -> torch.Tensor:
        """The pair of each token: int64[tokens]."""
        counts = (self.bounds[1:] - self.bounds[:-1]).long()
        # a known size: no wait for the device
        return torch.repeat_interleave(counts, output_size=len(self.ids))


def pack(tokens: Tokens, forward: Forward, device: str) -> Packed:
    """Bring the pairs of a forward to the device: one buffer and one copy, which the host does
    not wait for on CUDA.
    """
    lengths = tokens.lengths[forward.rows]
    total, pairs = int(lengths.sum()), len(lengths)
    buffer = torch.empty(3 * total + pairs + 1, dtype=torch.int32, pin_memory=device == "cuda")
    ids, type_ids, positions, bounds = np.split(buffer.numpy(), [total, 2 * total, 3 * total])
    bounds[0] = 0
    np.cumsum(lengths, out=bounds[1:])
    np.concatenate([tokens.ids[row] for row in forward.rows], out=ids, casting="same_kind")
    np.concatenate(
        [tokens.type_ids[row] for row in forward.rows], out=type_ids, casting="same_kind"
    )
    np.subtract(
        np.arange(total), np.repeat(bounds[:-1], lengths), out=positions, casting="same_kind"
    )
    there = buffer.to(device, non_blocking=True)
    on_device = torch.split(there, [total, total, total, pairs + 1])
    return Packed(on_device[0], on_device[1], on_device[2], on_device[3], lengths, forward.width)
