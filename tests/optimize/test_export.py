from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import MAX_LENGTH, make_tiny
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from xopt.optimize.export import check_place, export
from xopt.optimize.model import parity as parity_module
from xopt.optimize.model.parity import MAX_DIFFERENCE, check_tokens, parity_pairs
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.bench.strategy import ScorerSpec
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.files import sha256_of
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.backends.network import load_encoder

IDENTITY = "torch.nn.modules.linear.Identity"


def test_a_model_folder_carries_what_makes_it_a_cross_encoder(tmp_path: Path) -> None:
    source = CrossEncoder(
        str(make_tiny(tmp_path / "model")),
        prompts={"rank": "search data: "},
        default_prompt_name="rank",
        max_length=40,
    )
    source.save_pretrained(str(tmp_path / "source"))
    made = export(str(tmp_path / "source"), tmp_path / "out")
    manifest = made.manifest
    assert (manifest.max_length, manifest.labels, manifest.prompt) == (40, 1, "search data: ")
    assert manifest.activation == "torch.nn.modules.activation.Sigmoid"
    again = CrossEncoder(str(made.path))
    assert (again.max_seq_length, again.prompts, again.default_prompt_name) == (
        40,
        source.prompts,
        "rank",
    )
    pairs = parity_pairs(40)
    logits = open_scorer(made.path).score(pairs)
    assert np.abs(1 / (1 + np.exp(-logits)) - source.predict(pairs)).max() < MAX_DIFFERENCE


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
def test_a_tokenizer_without_a_length_gets_the_one_that_positions_reach(
    tmp_path: Path, architecture: str
) -> None:
    folder = make_tiny(tmp_path / "model", architecture)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))
    made = export(str(folder), tmp_path / "out")
    assert made.manifest.max_length == MAX_LENGTH + (2 if architecture == "bert" else 0)
    scorer = open_scorer(made.path)
    scorer.score([("data " * 50, "data " * 50)])
    assert scorer.stages.truncated == 1


@pytest.mark.parametrize(
    ("architecture", "reach"), [("deberta-v2", 128), ("modernbert", 128), ("bert", MAX_LENGTH + 2)]
)
def test_a_length_beyond_the_positions_is_kept_where_they_have_no_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, reach: int
) -> None:
    """Relative positions, and those that turn, reach as far as sentence-transformers is told to
    go.
    """
    source = tmp_path / "source"
    sizes = source / "sentence_bert_config.json"
    CrossEncoder(str(make_tiny(tmp_path / "model", architecture)), device="cpu").save_pretrained(
        str(source)
    )
    sizes.write_text(json.dumps({**json.loads(sizes.read_text()), "max_seq_length": 128}))
    made = export(str(source), tmp_path / "out")
    assert (
        made.manifest.max_length
        == CrossEncoder(str(made.path), device="cpu").max_seq_length
        == reach
    )
    assert ("its positions end at" in caplog.text) == (architecture == "bert")
    if architecture != "bert":
        pairs = [("data", "search the index " * count) for count in (5, 30, 60)]
        expected = CrossEncoder(str(source), device="cpu").predict(
            pairs, activation_fn=torch.nn.Identity(), batch_size=1
        )
        for variant in ("torch-fp32", "onnx-fp32"):
            assert np.abs(open_scorer(made, variant).score(pairs) - expected).max() < MAX_DIFFERENCE


def test_a_folder_is_not_replaced_by_what_is_made_of_it(
    tiny_copy: ModelFolder, tmp_path: Path
) -> None:
    inner = tiny_copy.path / "kept"
    make_tiny(inner)
    link = tmp_path / "link"
    link.symlink_to(tiny_copy.path)
    for model, out in (
        (tiny_copy.path, tiny_copy.path),
        (link, tiny_copy.path),
        (inner, tiny_copy.path),
    ):
        with pytest.raises(
            BadInput,
            match=r"is, or holds, the model .*; choose .* or export what it was made of: .*bert",
        ):
            export(str(model), out, force=True)
    assert (
        ModelFolder.open(tiny_copy.path).manifest.variants.keys()
        == tiny_copy.manifest.variants.keys()
    )


def test_a_configuration_that_names_no_architecture_is_taken_by_its_weights(tmp_path: Path) -> None:
    for name, head in (("model", True), ("body", False)):
        folder = make_tiny(tmp_path / name)
        if not head:
            BertModel.from_pretrained(folder).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in config.items() if k != "architectures"})
        )
    assert export(str(tmp_path / "model"), tmp_path / "out", torch_only=True).manifest.labels == 1
    with pytest.raises(BadInput, match="its weights lack 'classifier"):
        export(str(tmp_path / "body"), tmp_path / "none", torch_only=True)


def test_the_manifest_holds_the_sha256_of_every_file(tiny_copy: object) -> None:
    folder = tiny_copy.path
    files = {
        str(p.relative_to(folder)): sha256_of(p)
        for p in folder.rglob("*")
        if p.is_file() and p.name != "xopt.json"
    }
    assert json.loads((folder / "xopt.json").read_text())["files"] == files


def bi_encoder(folder: Path) -> str:
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
    )
    BertModel(config).save_pretrained(folder)
    return "BertModel has no classification head"


def causal(folder: Path) -> str:
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(
        folder
    )
    return "GPT2LMHeadModel has no classification head"


def headless(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    make_tiny(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return "its weights lack 'classifier.bias'"


def damaged(folder: Path) -> str:
    weights = make_tiny(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return r"model\.safetensors: damaged"


def pickled(folder: Path) -> str:
    import torch
    from safetensors.torch import load_file

    make_tiny(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return "no safetensors weights in .*`allow_pickle=True`"


def remote(folder: Path) -> str:
    make_tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "somebodys", "auto_map": {"AutoConfig": "config.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "config.py").write_text("raise SystemExit('remote code ran')")
    return "give `trust_remote_code=True`"


def empty(folder: Path) -> str:
    folder.mkdir()
    return r"no config.json in it"


@pytest.mark.parametrize("make", [bi_encoder, causal, headless, damaged, pickled, remote, empty])
def test_what_is_no_cross_encoder_is_refused_and_leaves_nothing(
    tmp_path: Path, make: object
) -> None:
    message = make(tmp_path / "model")
    with pytest.raises(BadInput, match=message):
        export(str(tmp_path / "model"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_pickle_is_read_when_the_user_says_so(tmp_path: Path) -> None:
    pickled(tmp_path / "model")
    made = export(str(tmp_path / "model"), tmp_path / "out", allow_pickle=True)
    assert (made.path / "model.safetensors").is_file()


def test_without_onnx_the_folder_holds_torch_alone(tmp_path: Path) -> None:
    made = export(str(make_tiny(tmp_path / "model")), tmp_path / "out", torch_only=True)
    assert {variant.backend for variant in made.manifest.variants.values()} == {
        "torch",
        "torch-varlen",
    }
    assert not (made.path / "onnx").exists()
    with pytest.raises(BadInput, match="no variant 'onnx-fp32', only torch-fp32"):
        open_scorer(made.path, "onnx-fp32")
    assert np.isfinite(open_scorer(made.path).score([("data", "index")])).all()  # torch-fp32
    with pytest.raises(
        BadInput,
        match=r"model.onnx: not made at export; export the model again, without `torch_only=True`",
    ):
        quantize(made, recipe_for(detect_target()))


def test_packed_forms_are_offered_where_they_are_exact(tmp_path: Path) -> None:
    relative = make_tiny(tmp_path / "model", position_embedding_type="relative_key")
    made = export(str(relative), tmp_path / "out", torch_only=True)
    assert list(made.manifest.variants) == ["torch-fp32", "torch-fp16", "torch-bf16"]


def test_a_graph_that_disagrees_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny(tmp_path / "model")
    monkeypatch.setattr(parity_module, "allowed_difference", lambda *_: 1e-12)
    monkeypatch.setattr(parity_module, "MAX_DIFFERENCE", 1e-12)
    with pytest.raises(GateFailed, match=r"differ by .*, over 1e-12"):
        export(str(model), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_tokens_that_are_others_are_refused(tiny: ModelFolder) -> None:
    encoder = load_encoder(tiny.path)
    pairs = parity_pairs(MAX_LENGTH)
    check_tokens(tiny, encoder, pairs)
    other = replace(tiny, manifest=replace(tiny.manifest, prompt="search "))
    with pytest.raises(
        GateFailed, match="the tokens of a scorer and of sentence-transformers differ on the pair"
    ):
        check_tokens(other, encoder, pairs)


def run_export(model: Path, out: Path, before: str = "") -> subprocess.Popen[str]:
    code = f"{before}\nfrom xopt.cli.main import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "export", str(model), "-o", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    limit = (
        # a file may not grow further
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"
    )
    process = run_export(model, tmp_path / "out", limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert (
        errors.strip().splitlines()[-1].startswith(f"Error: {tmp_path / 'out'}: cannot be written")
    )
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_stop_in_mid_export_leaves_nothing_half_written(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    model = make_tiny(tmp_path / "model")
    process = run_export(model, tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.new-*/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, sent)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not (tmp_path / "out").exists()
    if sent == signal.SIGKILL:  # nobody was left to clean up: the next export does
        export(str(model), tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
    else:
        assert [p.name for p in tmp_path.iterdir()] == ["model"]


CONFIGURATION = """
from transformers import BertConfig
class MineConfig(BertConfig):
    model_type = "%s"
"""
MODELING = """
from transformers import BertForSequenceClassification
from .configuration_mine import MineConfig
class MineForSequenceClassification(BertForSequenceClassification):
    config_class = MineConfig
"""


# one may say that it is what it is not, or nothing
@pytest.mark.parametrize("kind", ["mine", "bert", ""])
def test_code_of_the_model_runs_where_it_is_trusted_and_unchanged(
    tmp_path: Path, kind: str
) -> None:
    model = make_tiny(tmp_path / "mine")
    (model / "configuration_mine.py").write_text(CONFIGURATION % kind)
    (model / "modeling_mine.py").write_text(MODELING)
    config = json.loads((model / "config.json").read_text())
    auto = {
        "AutoConfig": "configuration_mine.MineConfig",
        "AutoModelForSequenceClassification": "modeling_mine.MineForSequenceClassification",
    }
    config |= {
        "model_type": kind,
        "architectures": ["MineForSequenceClassification"],
        "auto_map": auto,
    }
    (model / "config.json").write_text(json.dumps(config))
    if kind != "bert":  # of which transformers has code of its own
        with pytest.raises(BadInput, match="give `trust_remote_code=True`"):
            export(str(model), tmp_path / "out", torch_only=True)
    made = export(str(model), tmp_path / "out", torch_only=True, trust_remote_code=True)
    # none that knows its layers
    assert list(made.manifest.variants) == ["torch-fp32", "torch-fp16", "torch-bf16"]
    expected = open_scorer(made, "torch-fp32").score([("a query", "a document")])
    spec = ScorerSpec(str(made.path), "torch-fp32", "default", threads=1, trusted=True)
    assert spec.open().score([("a query", "a document")]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(BadInput, match="runs code that came with the model"):
        open_scorer(made.path, "torch-fp32")
    with (made.path / "modeling_mine.py").open("a") as code:
        code.write("print()")
    with pytest.raises(BadInput, match=r"modeling_mine\.py: sha256 differs"):
        open_scorer(made.path, "torch-fp32", trust_remote_code=True)


def test_a_place_of_no_use_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place, force, message in (
        (tmp_path / "link", False, "is a link to nothing"),
        (tmp_path / os.fsdecode(b"caf\xe9"), False, "a name that is not UTF-8"),
        (tmp_path / "notes", False, "exists already"),
        (tmp_path / "notes", True, "no model folder"),
        (tmp_path / "here", True, "is the working directory"),
    ):
        with pytest.raises(BadInput, match=message):
            check_place(place, force)
