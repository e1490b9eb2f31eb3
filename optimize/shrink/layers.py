"""Finds the layers of a CrossEncoder, and those of them to keep."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from xopt.runtime.errors import BadInput

__all__ = ["Kept", "find_layers", "keep_layers", "layers_of", "search_layers", "sets_tried"]

log = logging.getLogger(__name__)

MOST_SETS = 100  # of layers that are all tried

Kept = tuple[int, ...]  # layers by number, counted from 0


def find_layers(encoder: Any) -> tuple[nn.Module, str]:
    """Return the module that holds the layers, and the name of the attribute.

    Raises BadInput where there is no list of layers, or they share weights.
    """
    network = encoder.model
    count = getattr(network.config, "num_hidden_layers", None)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, name
    raise BadInput(
        f"{network.name_or_path}: {network.config.model_type} has no list of {count} layers "
        "to leave some out of; choose another model"
    )


def layers_of(encoder: Any) -> list[nn.Module]:
    module, name = find_layers(encoder)
    return list(getattr(module, name))


def keep_layers(encoder: Any, kept: Sequence[int]) -> None:
    """Remove all other layers from a CrossEncoder and its configuration."""
    module, name = find_layers(encoder)
    layers = getattr(module, name)
    setattr(module, name, nn.ModuleList([layers[i] for i in kept]))
    config = encoder.model.config
    config.num_hidden_layers = len(kept)
    attention = getattr(config, "layer_types", None)
    if isinstance(attention, list):
        config.layer_types = [attention[i] for i in kept]


def sets_tried(count: int, keep: int, fixed: int = 0) -> int:
    """Count the sets of layers that `search_layers` compares."""
    sets = math.comb(count - fixed, keep - fixed)
    return sets if sets <= MOST_SETS else sum(range(keep - fixed + 1, count - fixed + 1))


def search_layers(
    count: int,
    keep: int,
    agreement: Callable[[Kept], float],
    fixed: int = 0,
) -> tuple[Kept, float]:
    """Find the `keep` of `count` layers that agree best with all, and their agreement.

    The first `fixed` layers stay. Few sets are all tried. Where there are many, the layer
    that is missed least is left out, again and again.
    """
    kept = tuple(range(count))
    if math.comb(count - fixed, keep - fixed) <= MOST_SETS:
        others = itertools.combinations(kept[fixed:], keep - fixed)
        return _best((kept[:fixed] + chosen for chosen in others), agreement)
    value = 1.0
    while len(kept) > keep:
        fewer = [kept[:i] + kept[i + 1 :] for i in range(fixed, len(kept))]
        kept, value = _best(fewer, agreement)
        log.info("shrink: %d layers left, agreement %.3f", len(kept), value)
    return kept, value


def _best(sets: Iterable[Kept], agreement: Callable[[Kept], float]) -> tuple[Kept, float]:
    values = {kept: agreement(kept) for kept in sets}
    best = max(values, key=lambda kept: values[kept])
    return best, values[best]
