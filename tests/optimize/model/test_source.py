"""Model folders as people have them: what CrossEncoder does with one is what xopt does, or it is
refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import MAX_LENGTH, make_tiny
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from transformers import AutoTokenizer, BertModel, PreTrainedModel

from xopt.optimize.export import export
from xopt.optimize.model.parity import MAX_DIFFERENCE, pairs_for, parity_pairs
from xopt.optimize.quantize import quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.errors import BadInput, GateFailed, NotFinite


def change(file: Path, **values: Any) -> None:
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**config, **values}.items() if v is not None}))


def short(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", processing_kwargs={"text": {"max_length": 16}})


def short_for_all(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", processing_kwargs={"common": {"max_length": 16}})


def only_documents_are_cut(folder: Path) -> None:
    change(
        folder / "sentence_bert_config.json",
        processing_kwargs={"text": {"truncation": "only_second"}},
    )


def only_queries_are_cut(folder: Path) -> None:
    change(
        folder / "sentence_bert_config.json",
        processing_kwargs={"text": {"truncation": "only_first"}},
    )


def longer_than_the_tokenizer(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", processing_kwargs={"text": {"max_length": 66}})


def special_tokens_are_text(folder: Path) -> None:
    AutoTokenizer.from_pretrained(folder, split_special_tokens=True).save_pretrained(folder)


def no_token_types(folder: Path) -> None:
    change(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])


def cut_on_the_left(folder: Path) -> None:
    change(folder / "tokenizer_config.json", truncation_side="left")


def padded_on_the_left(folder: Path) -> None:
    change(folder / "tokenizer_config.json", padding_side="left")


def with_a_prompt(folder: Path) -> None:
    change(
        folder / "config_sentence_transformers.json",
        prompts={"rank": "search "},
        default_prompt_name="rank",
    )


ODD = (
    short,
    short_for_all,
    only_documents_are_cut,
    only_queries_are_cut,
    longer_than_the_tokenizer,
    special_tokens_are_text,
    no_token_types,
    cut_on_the_left,
    with_a_prompt,
)


@pytest.mark.parametrize("odd", ODD)
def test_what_a_folder_says_is_done(tmp_path: Path, odd: Callable[[Path], None]) -> None:
    CrossEncoder(str(make_tiny(tmp_path / "tiny"))).save_pretrained(str(tmp_path / "model"))
    plain = CrossEncoder(str(tmp_path / "model"))
    odd(tmp_path / "model")
    changed = CrossEncoder(str(tmp_path / "model"))
    truncation = {only_documents_are_cut: "only_second", only_queries_are_cut: "only_first"}.get(
        odd, "longest_first"
    )
    pairs = pairs_for(plain.tokenizer, MAX_LENGTH, truncation)
    expected = changed.predict(pairs, activation_fn=torch.nn.Identity())
    # it matters
    assert np.abs(expected - plain.predict(pairs, activation_fn=torch.nn.Identity())).max() > 0.01
    made = export(str(tmp_path / "model"), tmp_path / "out")
    for variant in ("onnx-fp32", "torch-fp32", "torch-varlen-fp32"):
        assert (
            np.abs(open_scorer(made.path, variant).score(pairs) - expected).max() < MAX_DIFFERENCE
        )
    again = CrossEncoder(str(made.path)).predict(pairs, activation_fn=torch.nn.Identity())
    assert np.abs(again - expected).max() < MAX_DIFFERENCE
    if odd is only_documents_are_cut:
        # no room for a document
        with pytest.raises(BadInput, match="the tokenizer cannot encode these texts"):
            open_scorer(made.path).score([("data " * 80, "index")])


def processed_otherwise(folder: Path) -> str:
    change(
        folder / "sentence_bert_config.json",
        processing_kwargs={"text": {"add_special_tokens": False}},
    )
    return "its processing_kwargs set add_special_tokens=False, which is not reproduced"


def no_room(folder: Path) -> str:
    change(folder / "sentence_bert_config.json", processing_kwargs={"text": {"max_length": 2}})
    return "its max_length is 2, which leaves no room for 3 special tokens"


def never_cut(folder: Path) -> str:
    change(folder / "sentence_bert_config.json", processing_kwargs={"text": {"truncation": False}})
    return "its processing_kwargs set truncation=False, which is not reproduced"


def a_bi_encoder_of_modules(folder: Path) -> str:
    BertModel.from_pretrained(folder).save_pretrained(folder / "body")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "body")
    modules = [Transformer(str(folder / "body")), Pooling(32, "cls"), Dense(32, 8)]
    shutil.rmtree(folder)
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return r"no module gives scores \(Transformer, Pooling, Dense\): a bi-encoder\?"


def a_module_of_its_own(folder: Path) -> str:
    dense = Dense(1, 1, module_input_name="scores", module_output_name="scores")
    modules = [CrossEncoder(str(folder), device="cpu")[0], dense]
    shutil.rmtree(folder)
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(folder))
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "head.Mine"
    (folder / "modules.json").write_text(json.dumps(listed))
    return r"its module head\.Mine is code of its own; read it, then give `trust_remote_code=True`"


def no_padding_token(folder: Path) -> str:
    # transformers 5 writes the first one only
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            change(folder / name, pad_token=None)
    return "its tokenizer has no padding token"


def a_missing_shard(folder: Path) -> str:
    shards(folder)
    next(folder.glob("model-00002*")).unlink()
    return r"model: sentence-transformers cannot load it \(.*model-00002-of-"


def a_cut_shard(folder: Path) -> str:
    shards(folder)
    file = next(folder.glob("model-00002*"))
    file.write_bytes(file.read_bytes()[:200])
    return "model-00002-of-.*: damaged"


def a_half_download(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")
    return "no safetensors weights in .*; get it again"


def a_dangling_link(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/gone")
    return r"model\.safetensors: damaged \(No such file"


def an_empty_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").write_text("")
    return "tokenizer.json: damaged, not JSON"


def half_a_configuration(folder: Path) -> str:
    file = folder / "config.json"
    file.write_text(file.read_text()[:40])
    return "config.json: damaged, not JSON"


def shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, half in halves.items():
        save_file({name: weights[name] for name in half}, folder / file, {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, half in halves.items() for name in half},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


REFUSED = (
    processed_otherwise,
    no_room,
    never_cut,
    a_bi_encoder_of_modules,
    a_module_of_its_own,
    no_padding_token,
    a_missing_shard,
    a_cut_shard,
    a_half_download,
    a_dangling_link,
    an_empty_tokenizer,
    half_a_configuration,
)


@pytest.mark.parametrize("odd", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_reason(
    tmp_path: Path, odd: Callable[[Path], str]
) -> None:
    CrossEncoder(str(make_tiny(tmp_path / "tiny"))).save_pretrained(str(tmp_path / "model"))
    message = odd(tmp_path / "model")
    with pytest.raises(BadInput, match=message):
        export(str(tmp_path / "model"), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "tiny"]


def test_scores_that_move_with_the_padding_are_no_ones(tmp_path: Path) -> None:
    CrossEncoder(str(make_tiny(tmp_path / "tiny"))).save_pretrained(str(tmp_path / "model"))
    padded_on_the_left(tmp_path / "model")
    with pytest.raises(GateFailed, match=r"differ by .*; its tokenizer pads on the left"):
        export(str(tmp_path / "model"), tmp_path / "out", torch_only=True)


def test_weights_in_shards_are_exported_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny(tmp_path / "model")
    expected = open_scorer(
        export(str(model), tmp_path / "whole", torch_only=True).path, "torch-fp32"
    )
    shards(model)
    saved = PreTrainedModel.save_pretrained  # which splits the weights of a large model
    monkeypatch.setattr(
        PreTrainedModel,
        "save_pretrained",
        lambda self, *a, **k: saved(self, *a, **{"max_shard_size": "20KB", **k}),
    )
    made = export(str(model), tmp_path / "out", torch_only=True)
    assert [file for file in made.manifest.files if "safetensors" in file] == ["model.safetensors"]
    pairs = parity_pairs(MAX_LENGTH)
    assert (
        np.abs(open_scorer(made.path, "torch-fp32").score(pairs) - expected.score(pairs)).max()
        < 1e-6
    )


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"][3] = float("inf")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(GateFailed, match=r"sentence-transformers' score of \(.*\) is not finite"):
        export(str(model), tmp_path / "out")


def test_a_nan_never_leaves_in_silence(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    # a word that export does not use
    row = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]["z"]
    weights["bert.embeddings.word_embeddings.weight"][row] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    made = export(str(model), tmp_path / "out")
    scorer = open_scorer(made.path)
    pairs = [("data", "index shard"), ("data", "z"), ("data", "the of")]
    with pytest.raises(
        NotFinite, match=r"1 of 3 scores are not finite, first that of pair 1 \('data', 'z'\)"
    ):
        scorer.score(pairs)
    assert np.isnan(scorer.logits(pairs)).tolist() == [False, True, False]
    rows = tuple(Row("q", "data", str(i), text) for i, (_, text) in enumerate(pairs))
    with pytest.raises(BadInput, match=r"is not finite for the pair \('data', 'z'\)"):
        quantize(made, recipe_for("avx2"), Candidates("nan", rows))


def test_force_replaces_model_folders_only(tmp_path: Path) -> None:
    model = str(make_tiny(tmp_path / "model"))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(
        BadInput,
        match=r"no model folder \(no xopt.json\); `force=True` replaces nothing else",
    ):
        export(model, precious, force=True, torch_only=True)
    with pytest.raises(BadInput, match="no model folder"):
        export(model, precious / "thesis.tex", force=True, torch_only=True)
    assert (precious / "thesis.tex").read_text() == "x"
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        export(model, tmp_path / "empty", force=True, torch_only=True)
