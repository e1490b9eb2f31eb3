from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import make_tiny

from xopt.optimize.model.bands import use_bands
from xopt.runtime.scoring.backends.network import load_encoder

BUCKETS = 8
KINDS: dict[str, dict[str, Any]] = {
    "both terms": {},
    "keys and queries of their own": {"share_att_key": False},
    "shared with the tokens": {"share_att_key": True},
    "by distance to the key": {"pos_att_type": ["c2p"]},
    "by distance to the query": {"pos_att_type": ["p2c"]},
    "no term": {"pos_att_type": []},
    "buckets": {"position_buckets": BUCKETS, "share_att_key": True},
    "buckets of fewer positions": {"position_buckets": BUCKETS, "max_relative_positions": 24},
    "normalised": {"norm_rel_ebd": "layer_norm", "position_buckets": BUCKETS},
    "few positions": {"max_relative_positions": 5},
    "a convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_bands_are_the_scores_of_transformers(tmp_path: Path, kind: str) -> None:
    make_tiny(tmp_path, "deberta-v2", **KINDS[kind])
    model = load_encoder(tmp_path).model
    banded = load_encoder(tmp_path).model
    assert use_bands(banded) == 2
    torch.manual_seed(0)
    for width in (1, 2, BUCKETS // 2 + 1, 17, 64):
        ids = torch.randint(5, 40, (3, width))
        mask = torch.ones_like(ids)
        mask[1, width // 2 + 1 :] = 0
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits
            got = banded(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(got, expected, atol=1e-5)
        assert expected.std() > 1e-3


def test_other_models_have_no_bands(tmp_path: Path) -> None:
    assert use_bands(load_encoder(make_tiny(tmp_path, "bert")).model) == 0


def test_attention_of_its_own_stays(tmp_path: Path) -> None:
    model = load_encoder(make_tiny(tmp_path, "deberta-v2")).model
    attention = model.deberta.encoder.layer[1].attention
    attention.self.__class__ = type("Own", (type(attention.self),), {})
    assert use_bands(model) == 0


def test_attention_without_relative_positions_stays(tmp_path: Path) -> None:
    make_tiny(tmp_path, "deberta-v2", relative_attention=False, position_biased_input=True)
    assert use_bands(load_encoder(tmp_path).model) == 0
