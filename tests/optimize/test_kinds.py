"""Every kind of CrossEncoder that sentence-transformers has, exported, quantised and scored."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pytest
import torch
from helpers.tiers import mostly_slow
from helpers.tiny import ARCHITECTURES, KINDS, MAX_LENGTH, make_logit_score, make_modular, make_tiny
from sentence_transformers import CrossEncoder
from torch import Tensor

from xopt.optimize import exporters
from xopt.optimize.export import export
from xopt.optimize.judge.statistics import PASSED
from xopt.optimize.model.parity import (
    MAX_DIFFERENCE,
    allowed_difference,
    expected_logits,
    pairs_for,
)
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.optimize.validate import validate
from xopt.runtime import open_scorer, rerank
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import has_module
from xopt.runtime.scoring.backends.network import Network, load_encoder

QUICK = {
    "bert",
    "deberta-v2",
    "modernbert",
    "llama, head of 3 labels",
    "bert, modules, mean",
    "qwen3, LogitScore",
}


@pytest.mark.parametrize("kind", mostly_slow(KINDS, QUICK))
def test_every_kind_exports_and_scores_as_sentence_transformers_does(
    tmp_path: Path, docs: Candidates, kind: str
) -> None:
    model = KINDS[kind](tmp_path / "model")
    made = export(str(model), tmp_path / "out", rank_label="none" if several(model) else None)
    encoder = load_encoder(model)
    pairs = pairs_for(encoder.tokenizer, MAX_LENGTH)
    expected = expected_logits(encoder, "model", pairs)
    assert np.std(expected) > 0.1  # the scores spread, so that agreement means something
    exact = [v.name for v in made.manifest.variants.values() if v.precision == "fp32"]
    assert {"torch-fp32", "onnx-fp32"} <= set(exact)
    for variant in exact:
        assert np.abs(open_scorer(made, variant).score(pairs) - expected).max() < MAX_DIFFERENCE
    int8 = open_scorer(quantize(made, recipe_for(detect_target()), docs), "onnx-int8").score(pairs)
    assert np.abs(int8 - expected).max() > 0
    # What is right has 0.988 and more, MobileBERT, which normalises nothing between its layers,
    # 0.979; one product with the scales of other columns leaves 0.93 or less.
    assert np.corrcoef(int8.ravel(), expected.ravel())[0, 1] > 0.96
    again = CrossEncoder(str(made.path), device="cpu")  # the folder is a CrossEncoder still
    assert np.array_equal(expected_logits(again, "again", pairs), expected)
    judged = validate(made, ["onnx-fp32"], docs.head(24), exact=None).judged[1]
    assert judged.max_difference < MAX_DIFFERENCE
    assert judged.verdict == PASSED
    label = None if made.manifest.ranks else 0
    frame = daft.from_pydict(
        {"query": [query for query, _ in pairs], "text": [text for _, text in pairs]}
    )
    ranked = rerank(frame, made.path, "onnx-fp32", label=label).to_pydict()["score"]
    assert (
        np.abs(np.array(ranked) - (expected if label is None else expected[:, label])).max()
        < MAX_DIFFERENCE
    )


def several(model: Path) -> bool:
    return CrossEncoder(str(model), device="cpu").num_labels > 1


@pytest.mark.parametrize("architecture", mostly_slow(ARCHITECTURES, {"bert"}))
def test_optimums_graphs_agree_where_it_is_installed(tmp_path: Path, architecture: str) -> None:
    if not has_module("optimum.exporters.onnx"):
        pytest.skip("optimum is not installed here")
    model = make_tiny(tmp_path / "model", architecture)
    theirs = export(str(model), tmp_path / "out", exporter="optimum")
    recipe = theirs.variant("onnx-fp32").recipe
    assert recipe["exporter"] == "optimum"
    assert recipe["one_row_matmuls"] >= 4  # rewritten as torch's is
    encoder = load_encoder(model)
    pairs = pairs_for(encoder.tokenizer, MAX_LENGTH)
    assert (
        np.abs(open_scorer(theirs).score(pairs) - expected_logits(encoder, "model", pairs)).max()
        < 2e-5
    )


def test_optimum_exports_what_torch_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unable(*_: Any, **__: Any) -> None:
        raise RuntimeError("an operator without a translation")

    monkeypatch.setattr(torch.onnx, "export", unable)
    with pytest.raises(
        BadInput, match=r"bert: torch cannot export this architecture \(an operator without a"
    ):
        export(str(make_tiny(tmp_path / "model")), tmp_path / "out", exporter="torch")
    modular = str(make_modular(tmp_path / "modular", "bert"))
    with pytest.raises(BadInput, match="torch cannot export"):
        export(modular, tmp_path / "out")
    with pytest.raises(BadInput, match=r"needs optimum|optimum exports classification heads only"):
        export(modular, tmp_path / "out", exporter="optimum")
    if has_module("optimum.exporters.onnx"):
        monkeypatch.undo()
        monkeypatch.setattr(exporters, "_export_with_torch", unable)
        made = export(str(tmp_path / "model"), tmp_path / "out")
        assert made.variant("onnx-fp32").recipe["exporter"] == "optimum"
        assert "optimum does it" in caplog.text


class Unmasked(Network):
    """Right where nothing is padded, as xopt runs it in onnxruntime, and wrong in everybody
    else's batches.
    """

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        unmasked = torch.ones_like(input_ids) + 0 * attention_mask
        return super().forward(input_ids, unmasked, token_type_ids)


class Cut(Network):
    """A length that became a constant, as traced branches do."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        parts = [
            part[:, :40] for part in (input_ids, attention_mask, token_type_ids) if part is not None
        ]
        return super().forward(*parts)


@pytest.mark.parametrize(
    ("wrong", "where"), [(Unmasked, "in a batch that is padded"), (Cut, "on the pair")]
)
def test_a_graph_that_is_wrong_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: type[Network], where: str
) -> None:
    monkeypatch.setattr("xopt.optimize.export.Network", wrong)
    model = str(make_tiny(tmp_path / "model"))
    with pytest.raises(
        GateFailed, match=f"onnx-fp32 and sentence-transformers differ by .*{where}"
    ):
        export(model, tmp_path / "out", exporter="torch")
    assert not (tmp_path / "out").exists()


def test_rounding_is_allowed_for_where_a_model_makes_much_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xopt.optimize.model.parity.MAX_DIFFERENCE", 1e-7)
    for architecture, least, most in (("bert", 1e-7, 1e-4), ("mobilebert", 2e-5, 1e-2)):
        encoder = load_encoder(
            make_tiny(tmp_path / architecture, architecture, initializer_range=0.3)
        )
        pairs = pairs_for(encoder.tokenizer, MAX_LENGTH)
        expected = expected_logits(encoder, "model", pairs)
        assert least <= allowed_difference(encoder, "model", pairs, expected) < most
        assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}  # as it was


TEMPLATES = {
    "twice": (
        "{{ messages[0].content }} and {{ messages[1].content }} and {{ messages[0].content }} data"
    ),
    "document first": "{{ messages[1].content | trim }} search {{ messages[0].content }}\n\nindex",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_may_place_texts_anywhere(tmp_path: Path, template: str) -> None:
    made = export(
        str(make_logit_score(tmp_path / "model", template=template)),
        tmp_path / "out",
        torch_only=True,
    )
    assert made.manifest.template[1::2] in (
        ["query", "document", "query"],
        ["document.strip", "query"],
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages[0].content | upper }} {{ messages[1].content }}",
            "does more with the texts than place them",
        ),
        (
            "{{ messages[0].content }}",
            "its chat template has no place for a document; export it with one",
        ),
        (
            "{{ raise_exception('no') }}",
            r"its chat template cannot render a query and a document \(no\); export it with one",
        ),
    ],
)
def test_a_template_that_is_not_reproduced_is_refused(
    tmp_path: Path, template: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        export(str(make_logit_score(tmp_path / "model", template=template)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="session")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three labels with names."""
    folder = make_tiny(tmp_path_factory.mktemp("labels") / "model", labels=3)
    config = json.loads((folder / "config.json").read_text())
    names = ["contradiction", "entailment", "neutral"]
    config |= {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("entailment", [1]),
        ("2", [2]),
        ("entailment-contradiction", [1, 0]),
        ("1-0", [1, 0]),
        ("none", []),
    ],
)
def test_which_of_several_labels_ranks_is_kept(
    tmp_path: Path, judge_model: Path, asked: str, kept: list[int]
) -> None:
    made = export(str(judge_model), tmp_path / "out", rank_label=asked, torch_only=True)
    assert ModelFolder.open(made.path).manifest.rank_label == kept
    logits = open_scorer(made, "torch-fp32").score([("a query", "a document"), ("data", "index")])
    ranked = made.manifest.ranking(logits)
    assert ranked.shape == ((2,) if kept else (2, 3))
    if len(kept) == 2:
        assert np.array_equal(ranked, logits[:, 1] - logits[:, 0])
    # a model folder says it itself
    again = export(str(made.path), tmp_path / "again", torch_only=True)
    assert again.manifest.rank_label == kept


@pytest.mark.parametrize("asked", [None, "relevant", "3", "1-1", "entailment-"])
def test_a_label_that_is_not_known_is_asked_for(
    tmp_path: Path, judge_model: Path, asked: str | None
) -> None:
    with pytest.raises(
        BadInput,
        match=r"has 3 labels \(contradiction, entailment, neutral\); .*say with `rank_label=`",
    ):
        export(str(judge_model), tmp_path / "out", rank_label=asked)
    assert not (tmp_path / "out").exists()


def test_one_label_needs_no_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has one label, which ranks"):
        export(str(make_tiny(tmp_path / "model")), tmp_path / "out", rank_label="0")


def test_an_interrupt_that_an_exporter_loses_still_ends_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(*_: Any, **__: Any) -> None:
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        try:
            # as Python calls it; libraries of this process have handlers of their own
            handler(signal.SIGINT, None)
        except KeyboardInterrupt:  # as a callback does, or an error of the exporter's own around it
            raise RuntimeError("something else") from None

    model = str(make_tiny(tmp_path / "model"))
    monkeypatch.setattr(torch.onnx, "export", losing)
    with pytest.raises(KeyboardInterrupt):
        export(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
