from __future__ import annotations

import numpy as np
import pytest

from xopt.optimize.int8 import rounding
from xopt.optimize.int8.rounding import round_weights


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("inputs", [24, 200])  # within a block, and over several
def test_rounding_against_real_inputs_beats_rounding_to_the_nearest(bits: int, inputs: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(inputs, 16))
    # channels that go together
    x = rng.normal(size=(1000, inputs // 4)) @ rng.normal(size=(inputs // 4, inputs))
    integers, scales = round_weights(weights, x.T @ x / len(x), bits)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= 2 ** (bits - 1) - 1
    nearest = np.round(weights / scales) * scales
    assert np.linalg.norm(x @ (integers * scales - weights)) < 0.8 * np.linalg.norm(
        x @ (nearest - weights)
    )


def test_blocks_are_for_speed_and_round_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weights, x = (
        rng.normal(size=(200, 16)),
        rng.normal(size=(1000, 50)) @ rng.normal(size=(50, 200)),
    )
    in_blocks, _ = round_weights(weights, x.T @ x / len(x), 8)
    monkeypatch.setattr(rounding, "BLOCK", 200)
    at_once, _ = round_weights(weights, x.T @ x / len(x), 8)
    assert (in_blocks == at_once).mean() > 0.99  # sums in another order round a few the other way


def test_channels_that_held_nothing_and_columns_of_zeros_are_no_trouble() -> None:
    weights = np.ones((8, 3))
    weights[:, 1] = 0
    integers, scales = round_weights(weights, np.zeros((8, 8)), 8)
    assert (integers[:, 1] == 0).all()
    assert np.allclose(integers * scales, weights, atol=1e-6)
