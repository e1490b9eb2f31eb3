from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import daft
import datasets
import numpy as np
import pandas
import pytest
import sentence_transformers
import torch
from helpers.tiny import TEMPLATE, make_logit_score, make_tiny

from xopt.optimize.export import export
from xopt.optimize.model.parity import MAX_DIFFERENCE, parity_pairs
from xopt.runtime import CrossEncoder, rerank
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import Manifest, ModelFolder
from xopt.runtime.machine import machine_name

PAIRS = parity_pairs(60)
FEW = [*PAIRS[::4], *PAIRS[-2:]]  # the longest are cut
Both = tuple[CrossEncoder, sentence_transformers.CrossEncoder]


@pytest.fixture(scope="module", params=[1, 3])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A model as xopt and as sentence-transformers run it, of one label with a sigmoid, and of
    three.
    """
    root = tmp_path_factory.mktemp("both")
    model = str(make_tiny(root / "model", labels=request.param))
    made = export(model, root / "out", rank_label="2-0" if request.param > 1 else None)
    return CrossEncoder(made.path), sentence_transformers.CrossEncoder(model, device="cpu")


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pairs": (PAIRS, {}),
    "lists": ([list(pair) for pair in PAIRS], {}),
    "one pair": (PAIRS[5], {}),
    "one list": (list(PAIRS[5]), {}),
    "an array": (np.array(PAIRS), {}),
    "an array of one pair": (np.array(PAIRS[5]), {}),
    "none": ([], {}),
    "a tensor": (PAIRS, {"convert_to_tensor": True}),
    "one tensor": (PAIRS[5], {"convert_to_tensor": True}),
    "tensors": (PAIRS, {"convert_to_numpy": False}),
    "no tensors": ([], {"convert_to_numpy": False}),
    "logits": (PAIRS, {"activation_fn": torch.nn.Identity()}),
    "tanh": (PAIRS, {"activation_fn": torch.nn.Tanh(), "convert_to_tensor": True}),
    "softmax": (PAIRS, {"apply_softmax": True}),
    "a batch size": (PAIRS, {"batch_size": 1}),
    "a prompt": (PAIRS, {"prompt": "search data "}),
    "a bar": (PAIRS, {"show_progress_bar": True}),
}


@pytest.mark.parametrize(("inputs", "named"), CALLS.values(), ids=CALLS)
def test_predict_gives_what_sentence_transformers_gives(
    both: Both, inputs: Any, named: dict[str, Any]
) -> None:
    if "apply_softmax" in named and both[0].num_labels == 1:
        assert np.array_equal(both[0].predict(inputs, **named), both[0].predict(inputs))
        return  # before version 6 sentence-transformers makes 1 of all scores
    mine, theirs = (model.predict(inputs, **named) for model in both)
    assert type(mine) is type(theirs)
    if isinstance(mine, list):
        assert [type(score) for score in mine] == [type(score) for score in theirs]
        mine, theirs = (
            torch.stack(scores) if scores else torch.zeros(0) for scores in (mine, theirs)
        )
    if len(inputs):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert np.abs(np.asarray(mine) - np.asarray(theirs)).max() < MAX_DIFFERENCE
    else:
        assert len(mine) == len(theirs) == 0


@pytest.mark.parametrize("top_k", [None, 3, 100])
@pytest.mark.parametrize("documents", [True, False])
def test_rank_gives_what_sentence_transformers_gives(
    both: Both, top_k: int | None, documents: bool
) -> None:
    mine, theirs = both
    texts = [text for _, text in PAIRS] + [PAIRS[3][1]]  # the last one ties with the fourth
    ranked = mine.rank("ranking data", texts, top_k=top_k, return_documents=documents)
    assert all(type(row["score"]) is float for row in ranked)
    if mine.num_labels == 1:
        expected = theirs.rank("ranking data", texts, top_k=top_k, return_documents=documents)
        assert [row["corpus_id"] for row in ranked] == [row["corpus_id"] for row in expected]
        assert [row.get("text") for row in ranked] == [row.get("text") for row in expected]
        assert [row["score"] for row in ranked] == pytest.approx(
            [row["score"] for row in expected], abs=1e-4
        )
    else:  # by the difference of two labels, as its export was told
        scores = theirs.predict([("ranking data", text) for text in texts])
        order = np.argsort(scores[:, 0] - scores[:, 2], kind="stable")[:top_k]
        assert [row["corpus_id"] for row in ranked] == order.tolist()


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoder:
    """A model of large logits, whose sigmoid is 1.0 for most documents."""
    root = tmp_path_factory.mktemp("hot")
    make_tiny(root / "tiny")
    model = sentence_transformers.CrossEncoder(str(root / "tiny"), device="cpu")
    classifier = model.model.classifier
    classifier.weight.data *= 200
    classifier.bias.data += 150
    model.save_pretrained(str(root / "model"), create_model_card=False)
    return CrossEncoder(export(str(root / "model"), root / "out").path)


WORDS = ("data", "index", "ranking", "search")
DOCUMENTS = [f"{first} {second} engine" for first in WORDS for second in WORDS]


def ids(ranking: list[dict[str, Any]]) -> list[int]:
    return [row["corpus_id"] for row in ranking]


def test_documents_whose_sigmoid_is_one_are_ranked_by_their_logits(hot: CrossEncoder) -> None:
    logits = hot.scorer.score([("data", text) for text in DOCUMENTS])
    order = np.argsort(-logits, kind="stable").tolist()
    best = hot.rank("data", DOCUMENTS)
    assert sum(row["score"] == 1.0 for row in best) > len(DOCUMENTS) / 2
    assert ids(best) == order
    assert ids(hot.rank("data", DOCUMENTS, top_k=3)) == order[:3]
    assert len(set(logits.tolist())) == len(DOCUMENTS)
    last = len(DOCUMENTS) - 1
    assert ids(hot.rank("data", DOCUMENTS[::-1])) == [last - row for row in order]
    table = daft.from_pydict({"query": ["data"] * len(DOCUMENTS), "text": DOCUMENTS})
    table = table.with_column("query_id", daft.lit("1"))
    frame = rerank(table, hot.folder.path, top_k=len(DOCUMENTS)).sort("rank").to_pydict()
    assert frame["text"] == [DOCUMENTS[row] for row in order]


def inverse(logits: torch.Tensor) -> torch.Tensor:
    return -logits


def top(logits: torch.Tensor) -> torch.Tensor:
    return (logits > 150).float()


@pytest.mark.parametrize(
    ("activation_fn", "reversed_"),
    [
        (torch.nn.Sigmoid(), False),
        (torch.nn.Identity(), False),
        (torch.nn.Tanh(), False),
        (torch.sigmoid, False),
        (top, False),
        (inverse, True),
    ],
)
def test_an_activation_ranks_where_it_does_not_keep_the_order_and_its_ties_are_by_logit(
    hot: CrossEncoder, activation_fn: Any, reversed_: bool
) -> None:
    order = ids(hot.rank("data", DOCUMENTS))
    expected = order[::-1] if reversed_ else order
    assert ids(hot.rank("data", DOCUMENTS, activation_fn=activation_fn)) == expected
    own = CrossEncoder(hot.folder.path, activation_fn=activation_fn)
    assert ids(own.rank("data", DOCUMENTS, top_k=5)) == expected[:5]


def test_what_older_versions_call_arguments_is_taken(both: Both) -> None:
    mine, _ = both
    expected = mine.predict(PAIRS, activation_fn=torch.nn.Identity())
    old = mine.predict(
        sentences=PAIRS, activation_fct=torch.nn.Identity(), num_workers=2, device="cpu", pool=None
    )
    assert np.array_equal(old, expected)
    assert mine.rank("data", ["index"], convert_to_tensor=True) == mine.rank("data", ["index"])
    with pytest.raises(TypeError, match="device='cuda': a model folder has no such argument"):
        mine.predict(PAIRS, device="cuda")
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        mine.predict(PAIRS, batch_size=0)


@pytest.mark.parametrize(
    "bad",
    [
        [("a", "b"), "text"],
        [("a", "b", "c")],
        [("a", None)],
        [["a", "b"], [1, "b"]],
        [("a", "b"), {"query": "a", "document": "b"}],
        [("a", "b"), {"a", "b"}],
        [("a", "b"), None],
    ],
)
def test_what_is_no_pair_is_refused(both: Both, bad: Any) -> None:
    with pytest.raises(BadInput, match="expected a query and a document, two texts"):
        both[0].predict(bad)


FRAME = pandas.DataFrame(PAIRS, columns=["query", "text"])
ROWS = datasets.Dataset.from_pandas(FRAME)


def test_pairs_may_come_in_what_gives_them_one_by_one(both: Both) -> None:
    mine, _ = both
    expected = mine.predict(PAIRS)
    column = datasets.Dataset.from_dict({"pair": [list(pair) for pair in PAIRS]})["pair"]
    in_order = (iter(PAIRS), zip(*zip(*PAIRS, strict=True), strict=True), column)
    for pairs in (*in_order, FRAME.to_numpy(), pandas.Series(PAIRS), FRAME.itertuples(index=False)):
        assert np.array_equal(mine.predict(pairs), expected)
    documents = FRAME["text"]
    assert mine.rank("data", documents) == mine.rank("data", documents.tolist())


@pytest.mark.parametrize("bad", ["text", None, 5, FRAME, ROWS, {"a": "b"}, set(PAIRS)])
def test_what_has_no_rows_in_order_is_refused(both: Both, bad: Any) -> None:
    mine, _ = both
    kind = type(bad).__name__
    with pytest.raises(BadInput, match=f"expected a list of pairs, not {kind}; give"):
        mine.predict(bad)
    with pytest.raises(BadInput, match=f"expected a list of documents, not {kind}; give"):
        mine.rank("data", bad)


def test_the_activation_is_the_models_own_once_and_can_be_another(tmp_path: Path) -> None:
    model = sentence_transformers.CrossEncoder(
        str(make_tiny(tmp_path / "tiny")), activation_fn=torch.nn.Tanh()
    )
    model.save_pretrained(str(tmp_path / "model"))
    mine = CrossEncoder(export(str(tmp_path / "model"), tmp_path / "out").path)
    assert isinstance(mine.activation_fn, torch.nn.Tanh)
    assert np.abs(mine.predict(PAIRS) - model.predict(PAIRS)).max() < MAX_DIFFERENCE
    other = CrossEncoder(mine.folder.path, activation_fn=torch.nn.Sigmoid())
    assert (
        np.abs(
            np.arctanh(mine.predict(PAIRS[:9])) - np.log(1 / (1 / other.predict(PAIRS[:9]) - 1))
        ).max()
        < 1e-2
    )


def test_an_activation_that_is_code_needs_trust(tiny_copy: ModelFolder) -> None:
    manifest = tiny_copy.path / "xopt.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"activation": "mine.Activation"})
    )
    model = CrossEncoder(tiny_copy.path)
    with pytest.raises(
        BadInput, match=r"its activation mine\.Activation is code of its own; give `trust"
    ):
        model.predict(PAIRS)
    assert model.predict(PAIRS, activation_fn=torch.nn.Identity()).shape == (len(PAIRS),)


def test_pairs_can_be_cut_shorter_here_and_in_another_process(
    tmp_path: Path, tiny: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    long = [("data " * 30, "search engine " * 30)]
    short = CrossEncoder(tiny.path, "torch-fp32", max_length=12)
    theirs = sentence_transformers.CrossEncoder(str(tiny.path), device="cpu", max_length=12)
    assert short.max_length == short.max_seq_length == 12
    assert np.abs(short.predict(long) - theirs.predict(long)).max() < MAX_DIFFERENCE
    again = pickle.loads(pickle.dumps(short))
    assert (again.variant, again.max_length) == ("torch-fp32", 12)
    assert np.array_equal(again.predict(long), short.predict(long))
    assert CrossEncoder(tiny.path, max_length=4096).max_length == tiny.manifest.max_length
    assert "cuts pairs to 64" in caplog.text
    with pytest.raises(BadInput, match="max_length is 0"):
        CrossEncoder(tiny.path, max_length=0)
    for few in (1, 3):
        with pytest.raises(
            BadInput, match=f"max_length is {few}, which leaves no room for 3 special tokens"
        ):
            CrossEncoder(tiny.path, max_length=few)
    assert CrossEncoder(tiny.path, max_length=4).predict(long).shape == (1,)


def test_the_variant_is_the_one_that_was_recommended_here(tiny_copy: ModelFolder) -> None:
    assert CrossEncoder(tiny_copy.path).variant == "onnx-fp32"
    found = {machine_name("cpu"): {"recommended": "onnx-int8", "variants": {"onnx-int8": {}}}}
    made = tiny_copy.write(lambda manifest: replace(manifest, measured=found))
    assert CrossEncoder(tiny_copy.path).variant == "onnx-int8"
    assert CrossEncoder(tiny_copy.path, "torch-fp32").variant == "torch-fp32"
    made.with_variant(made.variant("onnx-int8"))  # made again: what was measured is another file's
    assert CrossEncoder(tiny_copy.path).variant == "onnx-fp32"
    assert ModelFolder.open(tiny_copy.path).manifest.measured[machine_name("cpu")]["variants"] == {}


PROMPTS: dict[str, dict[str, Any]] = {
    "none": {},
    "a default": {
        "prompts": {"rank": "search data", "code": "python code"},
        "default_prompt_name": "rank",
    },
}
BEHIND = (
    "{{ (messages | selectattr('role', 'eq', 'query') | first).content }} document "
    "{{ (messages | selectattr('role', 'eq', 'document') | first).content }}"
    "{% for m in messages if m.role == 'system' %} rank by {{ m.content | trim }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "own"),
    [
        (None, PROMPTS["a default"]),
        (TEMPLATE, PROMPTS["none"]),
        (TEMPLATE, PROMPTS["a default"]),
        (BEHIND, PROMPTS["a default"]),
    ],
    ids=["plain pairs", "before, none", "before", "behind"],
)
def test_a_prompt_can_be_chosen_by_call(
    tmp_path: Path, template: str | None, own: dict[str, Any]
) -> None:
    if template is None:
        tiny = sentence_transformers.CrossEncoder(
            str(make_tiny(tmp_path / "tiny")), device="cpu", **own
        )
        tiny.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    else:
        make_logit_score(tmp_path / "model", template=template, **own)
    made = export(str(tmp_path / "model"), tmp_path / "out", torch_only=True)
    mine = CrossEncoder(made.path, "torch-fp32")
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "model"), device="cpu")
    calls = [{"prompt": prompt} for prompt in (None, "", "another index ", "search data", " \n")]
    calls += [{"prompt_name": name} for name in own.get("prompts", {})]
    for call in calls:
        difference = mine.predict(FEW, **call) - theirs.predict(FEW, **call)
        assert np.abs(difference).max() < MAX_DIFFERENCE, call
    documents = [text for _, text in FEW]
    ranked = mine.rank("data", documents, prompt="another index ")
    expected = theirs.rank("data", documents, prompt="another index ")
    assert [row["score"] for row in ranked] == pytest.approx(
        [row["score"] for row in expected], abs=1e-4
    )
    assert np.abs(mine.predict(FEW) - mine.predict(FEW, prompt="another index ")).max() > 0.01
    prompted = mine.scorer.with_prompt("another index ")
    again = pickle.loads(pickle.dumps(prompted))
    assert np.array_equal(again.score(FEW), prompted.score(FEW))
    for model in (mine, theirs):
        with pytest.raises(ValueError, match=r"Prompt name 'query' not found .* with keys"):
            model.predict(FEW, prompt_name="query")


def test_a_prompt_by_name_has_no_effect_beside_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_logit_score(tmp_path / "model", **PROMPTS["a default"])
    mine = CrossEncoder(export(str(model), tmp_path / "out", torch_only=True).path, "torch-fp32")
    both = mine.predict(PAIRS, prompt="index", prompt_name="code")
    assert np.array_equal(both, mine.predict(PAIRS, prompt="index"))
    assert "prompt_name='code' has no effect beside `prompt=`" in caplog.text


def older(manifest: Manifest) -> Manifest:
    """As folders were written before prompts were kept beside their template."""
    return replace(manifest, prompt="", prompts={}, prompted=[], unprompted=[])


UPPER = TEMPLATE.replace("Rank: {{ m.content }}", "{{ m.content | upper }}")


@pytest.mark.parametrize("template", [TEMPLATE, UPPER])
def test_a_prompt_that_a_chat_template_changes_stays(tmp_path: Path, template: str) -> None:
    model = make_logit_score(tmp_path / "model", template=template, **PROMPTS["a default"])
    made = export(str(model), tmp_path / "out", torch_only=True)
    if template == TEMPLATE:
        made = made.write(older)
        assert "restores_suffix" in (made.path / "xopt.json").read_text()
    mine = CrossEncoder(made.path, "torch-fp32")
    theirs = sentence_transformers.CrossEncoder(str(model), device="cpu")
    assert np.abs(mine.predict(PAIRS) - theirs.predict(PAIRS)).max() < MAX_DIFFERENCE
    with pytest.raises(BadInput, match="prompt='another': its prompt is part of the chat template"):
        mine.predict(PAIRS, prompt="another")
    if template == UPPER:
        same = mine.predict(PAIRS, prompt="search data")
        assert np.array_equal(same, mine.predict(PAIRS))
        without = mine.predict(PAIRS, prompt="") - theirs.predict(PAIRS, prompt="")
        assert np.abs(without).max() < MAX_DIFFERENCE
    else:  # whether it has one of its own is not known
        with pytest.raises(BadInput, match=r"prompt='': .* export the model again"):
            mine.predict(PAIRS, prompt="")


def test_no_label_that_ranks_is_said(tmp_path: Path) -> None:
    made = export(str(make_tiny(tmp_path / "model", labels=3)), tmp_path / "out", rank_label="none")
    message = r"CrossEncoder\.rank\(\) only works for models with num_labels=1.*`rank_label=`"
    with pytest.raises(ValueError, match=message):
        CrossEncoder(made.path).rank("data", ["index"])


def test_neither_torch_nor_transformers_is_imported_where_none_is_needed(tiny: ModelFolder) -> None:
    code = (
        "import sys; from xopt.runtime import CrossEncoder\n"
        f"model = CrossEncoder({str(tiny.path)!r})\n"
        "model.predict([('a', 'b')])\n"
        "model.rank('a', ['b', 'c'])\n"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_device_that_is_not_there_is_one_clear_line(tiny: ModelFolder) -> None:
    for device in (None, "cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)):
        assert CrossEncoder(tiny.path, device=device).device == "cpu"
    with pytest.raises(BadInput, match="device 'gpu': unknown; use cpu or cuda"):
        CrossEncoder(tiny.path, device="gpu")
    with pytest.raises(BadInput, match="device 'mps': no variant runs on it; use cpu or cuda"):
        CrossEncoder(tiny.path, device="mps")
    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:0", "cuda:1"):
            with pytest.raises(BadInput, match="device 'cuda': torch sees no CUDA GPU here"):
                CrossEncoder(tiny.path, device=device)
