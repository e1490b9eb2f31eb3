"""The layers of a CrossEncoder's network: finding them, leaving some out, and which ones to leave
out.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from xopt.runtime.errors import BadInput

__all__ = ["keep_layers", "layers_of", "search_layers", "sets_tried"]

log = logging.getLogger(__name__)

# sets of layers that are all tried; of more, one layer after the other is left out
MOST_TRIED = 100

Kept = tuple[int, ...]


def layers_of(encoder: Any, given: str) -> tuple[nn.Module, str]:
    """The module that holds the layers of a CrossEncoder's network, and the name of the list
    within it.

    Raises BadInput where there is no such list, or its layers share weights.
    """
    network = encoder.model
    count = getattr(network.config, "num_hidden_layers", None)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, name
    raise BadInput(
        f"{given}: {network.config.model_type} has no list of {count} layers to leave some out of"
    )


def keep_layers(encoder: Any, kept: Sequence[int], given: str) -> None:
    """Leave all layers but these out of a CrossEncoder's network, for good; its configuration
    says so then.
    """
    holder, name = layers_of(encoder, given)
    layers = getattr(holder, name)
    setattr(holder, name, nn.ModuleList([layers[i] for i in kept]))
    config = encoder.model.config
    config.num_hidden_layers = len(kept)
    if isinstance(getattr(config, "layer_types", None), list):  # of attention, by layer
        config.layer_types = [config.layer_types[i] for i in kept]


def sets_tried(layers: int, keep: int, fixed: int = 0) -> int:
    """How many sets `search_layers` tries."""
    every = math.comb(layers - fixed, keep - fixed)
    return every if every <= MOST_TRIED else sum(range(keep - fixed + 1, layers - fixed + 1))


def search_layers(
    layers: int, keep: int, agreement: Callable[[Kept], float], fixed: int = 0
) -> tuple[Kept, float]:
    """Which `keep` of the layers agree best with all of them, without any training, and how well.

    The first `fixed` of them stay. All sets are tried where they are few; else the layer that is
    missed least is left out, until enough are.
    """
    stay, rest = tuple(range(fixed)), range(fixed, layers)
    if math.comb(len(rest), keep - fixed) <= MOST_TRIED:
        tried = {
            stay + own: agreement(stay + own) for own in itertools.combinations(rest, keep - fixed)
        }
        best = max(tried, key=lambda kept: tried[kept])
        return best, tried[best]
    kept = (*stay, *rest)
    value = 1.0
    while len(kept) > keep:
        fewer = {
            k: agreement(k) for k in (kept[:i] + kept[i + 1 :] for i in range(fixed, len(kept)))
        }
        kept = max(fewer, key=lambda each: fewer[each])
        value = fewer[kept]
        log.info("shrink: %d layers left, agreement %.3f", len(kept), value)
    return kept, value
