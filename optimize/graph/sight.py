"""Which tokens a token sees, as masks say it where no pair is padded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from xopt.optimize.graph.structure import SMALL, GraphIndex, needed_for, open_session, rebuilt

__all__ = ["ATTENTION_MASK", "BEFORE", "EVERYTHING", "Sight", "sights_of"]

ATTENTION_MASK = "attention_mask"
# A number below it hides a token: softmax makes 0 of a score to which it is added.
HIDES_BELOW = -1e9


# Tokens of the pairs that masks are tried with, and by how much these are longer than a window.
SHORT_PAIRS = (2, 300)
BEYOND = 44
MOST_TRIED = 8192 + BEYOND  # a mask of longer pairs takes a gigabyte


@dataclass(frozen=True)
class Sight:
    """Which tokens a token sees: those before it and itself where `causal`, else all.

    With a `window` only those that are at most so many tokens away.
    """

    causal: bool = False
    window: int | None = None

    def seen(self, length: int) -> NDArray[np.bool_]:
        """Return which tokens are seen, [tokens that see, tokens]."""
        places = np.arange(length)
        away = places[:, None] - places
        seen = np.ones((length, length), bool)
        if self.causal:
            seen &= away >= 0
        if self.window is not None:
            seen &= np.abs(away) <= self.window
        return seen


EVERYTHING = Sight()
BEFORE = Sight(causal=True)


def sights_of(model: ModelProto, masks: Iterable[str], max_length: int) -> dict[str, Sight]:
    """Return what each mask of a graph lets a token see, by the mask's name.

    The part of the graph that makes the masks is run on pairs without padding. Some are short.
    Others are longer than each window that a pair of `max_length` tokens shows. Masks that do
    anything else are left out.
    """
    names = sorted(set(masks))
    mask_graph = rebuilt(model, needed_for(model.graph.node, names), outputs=names)
    if not names or ATTENTION_MASK not in GraphIndex(mask_graph).consumers:
        return {}
    lengths = _lengths(mask_graph, max_length)
    if max(lengths) > MOST_TRIED:
        return {}
    session = open_session(mask_graph)
    sights: dict[str, Sight | None] = {}
    for length in sorted(lengths, reverse=True):  # a long pair shows the window
        unpadded = np.ones((2, length), np.int64)
        added = session.run(names, {value.name: unpadded for value in mask_graph.graph.input})
        for name, mask in zip(names, added, strict=True):
            sight = sights.setdefault(name, _sight(mask))
            if sight is None or not _lets_see(sight, mask, length):
                sights[name] = None
    return {name: sight for name, sight in sights.items() if sight is not None}


def _lengths(mask_graph: ModelProto, max_length: int) -> list[int]:
    """Return lengths of pairs, in tokens, that show what masks let a token see.

    A window's length is a number in the graph. Pairs that are a little longer show it.
    """
    index = GraphIndex(mask_graph)
    lengths = set(SHORT_PAIRS)
    for name in {name for node in mask_graph.graph.node for name in node.input}:
        with contextlib.suppress(LookupError):
            for number in np.abs(index.constant(name).astype(np.float64)).ravel()[:SMALL]:
                if min(SHORT_PAIRS) < number < max_length:
                    lengths.add(min(int(number) + BEYOND, max_length))
    return sorted(lengths)


def _sight(mask: NDArray[np.float32]) -> Sight | None:
    """Guess what a mask, [..., tokens that see, tokens], lets a token see."""
    if not mask.any():
        return EVERYTHING
    if mask.ndim < 2 or mask.shape[-2] < 2:
        return None
    first = mask.reshape(-1, *mask.shape[-2:])[0]
    seen_by_first = int((first[0] == 0).sum())
    seen_by_last = int((first[-1] == 0).sum())
    causal = seen_by_first == 1
    window = seen_by_last - 1
    return Sight(causal, window if window + 1 < mask.shape[-1] else None)


def _lets_see(sight: Sight, mask: NDArray[np.float32], length: int) -> bool:
    if sight == EVERYTHING:
        return not mask.any()
    if mask.shape[-2:] != (length, length):
        return False
    seen = sight.seen(length)
    return bool((mask[..., seen] == 0).all() and (mask[..., ~seen] <= HIDES_BELOW).all())
