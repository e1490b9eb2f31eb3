"""CrossEncoders that are put together in another way than most: right, or refused with the
reason.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import MAX_LENGTH, make_body, make_logit_score, make_modular, make_tiny
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling

from xopt.optimize.export import export
from xopt.optimize.model.facts import rank_label_of
from xopt.optimize.model.legacy_config import add_legacy_config
from xopt.optimize.model.parity import MAX_DIFFERENCE, expected_logits, parity_pairs
from xopt.optimize.pipeline import _exported
from xopt.runtime import open_scorer
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.backends.network import load_encoder

SCORES = {"activation_function": torch.nn.Identity(), "module_output_name": "scores"}


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def of_modules(folder: Path, *modules: torch.nn.Module, **prompt: Any) -> Path:
    encoder = CrossEncoder(
        modules=[make_body(folder, "bert", "feature-extraction"), *modules], **prompt
    )
    encoder.save_pretrained(str(folder), create_model_card=False)
    return folder


def dense_before_the_pooling(folder: Path) -> Path:
    tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    return of_modules(folder, Dense(32, 16, **tokens), Pooling(16, "mean"), Dense(16, 1, **SCORES))


def two_poolings(folder: Path) -> Path:
    return of_modules(folder, Pooling(32, ("cls", "mean")), Dense(64, 1, **SCORES))


def last_token_of_an_encoder(folder: Path) -> Path:
    return make_modular(folder, "roberta", "lasttoken")


def causal_bert(folder: Path) -> Path:
    return make_tiny(folder, "bert", is_decoder=True)


def no_special_tokens(folder: Path) -> Path:
    change(make_tiny(folder, "llama") / "tokenizer.json", post_processor=None)
    return folder


@pytest.mark.parametrize(
    "make",
    [
        dense_before_the_pooling,
        two_poolings,
        last_token_of_an_encoder,
        causal_bert,
        no_special_tokens,
    ],
)
def test_what_is_odd_scores_as_sentence_transformers_does(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    model = make(tmp_path / "model")
    made = export(str(model), tmp_path / "out")
    assert made.manifest.padding_side == ("left" if make is no_special_tokens else "right")
    pairs = parity_pairs(MAX_LENGTH)
    expected = expected_logits(load_encoder(model), "model", pairs)
    for variant in (v.name for v in made.manifest.variants.values() if v.precision == "fp32"):
        assert np.abs(open_scorer(made, variant).score(pairs) - expected).max() < MAX_DIFFERENCE
        assert np.isfinite(open_scorer(made, variant).score([("", "")])).all()


def prompts_left_out(folder: Path) -> str:
    of_modules(folder, Pooling(32, "mean", include_prompt=False), Dense(32, 1, **SCORES))
    return r"its pooling leaves prompts out \(include_prompt\)"


def a_date(folder: Path) -> str:
    make_logit_score(
        folder,
        template="{{ strftime_now('%Y') }} {{ messages[0].content }} {{ messages[1].content }}",
    )
    return "its chat template writes the date"


def a_question(folder: Path) -> str:
    texts = "{{ messages[0].content }} {{ messages[1].content }}"
    make_logit_score(folder, template="{% if '?' in messages[0].content %}data {% endif %}" + texts)
    return "its chat template does more with the texts"


def another_padding(folder: Path) -> str:
    change(make_tiny(folder, "llama") / "config.json", pad_token_id=3)
    return "pads with the id 0, its head expects 3"


def a_pickled_module(folder: Path) -> str:
    place = next(make_modular(folder, "bert").glob("2_*"))
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    return f"no safetensors weights in .*{place.name}; .*`allow_pickle=True`"


def a_damaged_module(folder: Path) -> str:
    (next(make_modular(folder, "bert").glob("2_*")) / "config.json").write_text("{")
    return r"2_.*config\.json: damaged, not JSON"


def no_list_of_modules(folder: Path) -> str:
    (make_modular(folder, "bert") / "modules.json").write_text('["Transformer"]')
    return r"modules\.json: damaged, not made of JSON objects"


@pytest.mark.parametrize(
    "odd",
    [
        prompts_left_out,
        a_date,
        a_question,
        another_padding,
        a_pickled_module,
        a_damaged_module,
        no_list_of_modules,
    ],
)
def test_what_is_not_reproduced_is_refused(tmp_path: Path, odd: Callable[[Path], str]) -> None:
    message = odd(tmp_path / "model")
    with pytest.raises(BadInput, match=message):
        export(str(tmp_path / "model"), tmp_path / "out", torch_only=True)
    assert not (tmp_path / "out").exists()


def test_a_label_that_could_be_two_is_asked_for(tmp_path: Path) -> None:
    assert rank_label_of(["1", "2", "x"], "x", tmp_path, "m") == [2]
    for names, asked in ((["1", "2", "3"], "1"), (["a", "b", "a-b"], "a-b")):
        with pytest.raises(BadInput, match=f"`rank_label='{asked}'` is several of them"):
            rank_label_of(names, asked, tmp_path, "m")
    with pytest.raises(BadInput, match="say with `rank_label=`"):
        rank_label_of(["a", "b"], None, tmp_path, "m")


def test_the_main_job_changes_the_label_of_a_folder_that_is_there(tmp_path: Path) -> None:
    model = str(make_tiny(tmp_path / "model", labels=3))
    export(model, tmp_path / "out", rank_label="none", torch_only=True)
    ModelFolder.open(tmp_path / "out").write(
        lambda manifest: replace(manifest, cascade={"of": "another label"})
    )
    changed = _exported(model, tmp_path / "out", False, "LABEL_2").manifest
    assert (changed.rank_label, changed.cascade) == ([2], {})
    assert ModelFolder.open(tmp_path / "out").manifest.rank_label == [2]
    with pytest.raises(BadInput, match="`rank_label='banana'` is none of them"):
        _exported(model, tmp_path / "out", False, "banana")


def test_positions_that_turn_in_part_are_written_for_both_versions(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "phi", "rope_parameters": rope})
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "[PAD]", "model_max_length": 9})
    )
    add_legacy_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_parameters"] == rope
    assert (config["partial_rotary_factor"], config["rotary_pct"], config["rope_theta"]) == (
        0.25,
        0.25,
        500.0,
    )
    assert json.loads((tmp_path / "special_tokens_map.json").read_text()) == {"pad_token": "[PAD]"}


def test_a_scorer_with_a_prompt_keeps_it_in_another_process(tiny: ModelFolder) -> None:
    pairs = [("a query", "a document"), ("data", "index")]
    prompted = open_scorer(tiny).with_prompt("search data ")
    expected = prompted.score(pairs)
    assert np.array_equal(pickle.loads(pickle.dumps(prompted)).score(pairs), expected)
    assert np.array_equal(
        open_scorer(tiny).score([(f"search data {q}", text) for q, text in pairs]), expected
    )
