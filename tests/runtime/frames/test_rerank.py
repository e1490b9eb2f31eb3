from __future__ import annotations

import gc
import json

import daft
import numpy as np
import pytest
from helpers.tiny import make_tiny
from safetensors.torch import load_file, save_file

from xopt.optimize.export import export
from xopt.runtime import open_scorer, rerank
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder


def test_rerank_scores_a_dataframe(tiny: ModelFolder, docs: Candidates) -> None:
    queries, texts = zip(*docs.pairs, strict=True)
    frame = daft.from_pydict(
        {"id": list(range(len(queries))), "q": list(queries), "passage": list(texts)}
    )
    scored = rerank(frame, tiny.path, "onnx-fp32", query="q", text="passage", score="logit").sort(
        "id"
    )
    assert scored.schema()["logit"].dtype == daft.DataType.float32()
    assert scored.column_names == ["id", "q", "passage", "logit"]
    expected = open_scorer(tiny.path).score(docs.pairs)
    assert np.abs(np.array(scored.to_pydict()["logit"]) - expected).max() < 1e-4


# Daft leaves its workers' pipes open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_rerank_gives_the_same_scores_from_several_workers(
    tiny: ModelFolder, docs: Candidates
) -> None:
    queries, texts = zip(*docs.pairs, strict=True)
    frame = daft.from_pydict(
        {"id": list(range(len(queries))), "query": list(queries), "text": list(texts)}
    )
    scored = rerank(frame, tiny.path, workers=2, threads=1).sort("id").to_pydict()
    assert np.abs(np.array(scored["score"]) - open_scorer(tiny.path).score(docs.pairs)).max() < 1e-4
    gc.collect()  # here, not in a later test


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model of three labels."""
    folder = tmp_path_factory.mktemp("three")
    return export(str(make_tiny(folder / "model", labels=3)), folder / "out", rank_label="none")


PAIRS = [("a query", "a text"), ("data", "search"), ("data", "index shard")]


def frame_of(pairs: list[tuple[str | None, str | None]], **columns: list[object]) -> daft.DataFrame:
    queries, texts = zip(*pairs, strict=True)
    return daft.from_pydict({"query": list(queries), "text": list(texts), **columns})


def test_a_label_or_a_difference_of_two_is_the_score_of_a_model_of_several(
    three: ModelFolder,
) -> None:
    logits = open_scorer(three.path).score(PAIRS)
    for label, expected in ((2, logits[:, 2]), ((1, 0), logits[:, 1] - logits[:, 0])):
        scored = (
            rerank(frame_of(PAIRS), three.path, label=label).sort("score", desc=True).to_pydict()
        )
        assert scored["score"] == pytest.approx(sorted(expected, reverse=True), abs=1e-4)
    lists = rerank(frame_of([*PAIRS, ("data", None)]), three.path, label="all").to_pydict()["score"]
    assert np.abs(np.array(lists[:3]) - logits).max() < 1e-4
    assert lists[3] is None


@pytest.mark.parametrize(
    "label", [None, 3, -1, (0, 3), (0, 1, 2), (1,), (), True, (0, True), "first", 1.0]
)
def test_several_labels_are_never_sorted_by_accident(three: ModelFolder, label: object) -> None:
    with pytest.raises(
        BadInput, match=r"`label=K` takes one logit, `label=\(K, L\)` the difference of two"
    ):
        rerank(frame_of(PAIRS), three.path, label=label)


def test_a_null_text_has_a_null_score_and_is_counted(
    tiny: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    pairs: list[tuple[str | None, str | None]] = [
        *PAIRS,
        ("data", None),
        (None, "text"),
        (None, None),
    ]
    scores = rerank(frame_of(pairs), tiny.path).to_pydict()["score"]
    assert scores[:3] == pytest.approx(open_scorer(tiny.path).score(PAIRS), abs=1e-4)
    assert scores[3:] == [None, None, None]
    assert "3 rows of this worker have a null text; their scores are null" in caplog.text
    assert (
        rerank(frame_of([("data", None)] * 4), tiny.path).to_pydict()["score"] == [None] * 4
    )  # a column without a type
    assert (
        rerank(frame_of(PAIRS), tiny.path).where(daft.col("query") == "none").to_pydict()["score"]
        == []
    )
    with pytest.raises(BadInput, match="a row has a null text: query 'data', text None"):
        rerank(frame_of(pairs), tiny.path, nulls="raise").collect()


def test_a_score_that_is_not_finite_is_null_and_counted(
    tiny_copy: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    file = tiny_copy.path / "model.safetensors"
    weights = load_file(file)
    vocabulary = json.loads((tiny_copy.path / "tokenizer.json").read_text())["model"]["vocab"]
    weights["bert.embeddings.word_embeddings.weight"][vocabulary["z"]] = float("nan")
    save_file(weights, file, {"format": "pt"})
    damaged = tiny_copy.with_variant(tiny_copy.variant("torch-fp32"))
    scored = (
        rerank(frame_of([("data", "z"), *PAIRS]), damaged.path, "torch-fp32")
        .sort("score", desc=True)
        .to_pydict()
    )
    assert scored["score"].count(None) == 1
    assert scored["text"][scored["score"].index(None)] == "z"
    assert "1 rows of this worker have a score that is not finite" in caplog.text


def test_a_column_that_is_there_is_replaced_only_on_request(tiny: ModelFolder) -> None:
    frame = frame_of(PAIRS, score=[17.3, 1.0, 2.0])
    with pytest.raises(
        BadInput, match="there is a column 'score' already; name another with `score=`"
    ):
        rerank(frame, tiny.path)
    for name in ("text", "query"):
        with pytest.raises(
            BadInput, match=f"`score='{name}'`: is the column of a text; name another"
        ):
            rerank(frame, tiny.path, score=name, overwrite=True)
    assert rerank(frame, tiny.path, score="mine").to_pydict()["score"] == [17.3, 1.0, 2.0]
    assert rerank(frame, tiny.path, overwrite=True).to_pydict()["score"] != [17.3, 1.0, 2.0]


@pytest.mark.parametrize(
    "values",
    [[1, 2, 3], [b"a", b"b", b"c"], [["a"], ["b"], ["c"]], [1.5, 2.5, 3.5], [{"a": "b"}] * 3],
)
def test_columns_are_checked_before_anything_runs(tiny: ModelFolder, values: list[object]) -> None:
    frame = frame_of(PAIRS, other=values)
    with pytest.raises(BadInput, match=r"column 'other' is of .*, not of strings; cast it first"):
        rerank(frame, tiny.path, text="other")
    with pytest.raises(
        BadInput, match="no column 'body' among query, text, other; name it with `text=`"
    ):
        rerank(frame, tiny.path, text="body")


def test_each_querys_best_are_left_with_their_ranks(tiny: ModelFolder, docs: Candidates) -> None:
    queries, texts = zip(*docs.pairs, strict=True)
    ids = [row.query_id for row in docs.rows]
    frame = daft.from_pydict(
        {"query_id": [*ids, None], "query": [*queries, "data"], "text": [*texts, "search"]}
    )
    frame = frame.union_all(
        daft.from_pydict({"query_id": ["null"], "query": ["data"], "text": [None]})
    )
    best = rerank(frame, tiny.path, top_k=3).sort(["query_id", "rank"]).to_pydict()
    assert list(best) == ["query_id", "query", "text", "score", "rank"]
    scores = open_scorer(tiny.path).score(docs.pairs)
    for query_id, rows in docs.groups().items():
        own = [i for i, name in enumerate(best["query_id"]) if name == query_id]
        assert [best["rank"][i] for i in own] == [1, 2, 3]
        assert [best["score"][i] for i in own] == pytest.approx(
            sorted(scores[rows], reverse=True)[:3], abs=1e-4
        )
    (lost,) = [i for i, name in enumerate(best["query_id"]) if name == "null"]
    assert (best["score"][lost], best["rank"][lost]) == (None, 1)
    assert None not in best["query_id"]
    with pytest.raises(
        BadInput, match="no column 'qid' among query_id, query, text; name it with `query_id=`"
    ):
        rerank(frame, tiny.path, top_k=3, query_id="qid")


def test_what_cannot_be_run_is_refused_at_once(tiny: ModelFolder) -> None:
    frame = frame_of(PAIRS)
    for message, named in (
        ("no variant 'onnx-int4'", {"variant": "onnx-int4"}),
        ("device 'gpu': unknown; use cpu or cuda", {"device": "gpu"}),
        ("`top_k=0`: give a whole number, at least 1", {"top_k": 0, "query_id": "query"}),
        ("`workers=-1`: give a whole number, at least 1", {"workers": -1}),
        ("`threads=0`: give a whole number, at least 1", {"threads": 0}),
        ("`workers=1.5`: give a whole number", {"workers": 1.5}),
        ("`query='\\*'`: give a text other than", {"query": "*"}),
        ("`score=None`: give a text other than", {"score": None}),
        ("`label=1`: the model has one label", {"label": 1}),
        ("`nulls='drop'`", {"nulls": "drop"}),
    ):
        with pytest.raises(BadInput, match=message):
            rerank(frame, tiny.path, **named)
    with pytest.raises(BadInput, match="candidates are list, not a Daft DataFrame"):
        rerank(PAIRS, tiny.path)


def test_queries_of_one_id_are_never_ranked_as_one(tiny: ModelFolder) -> None:
    frame = daft.from_pydict(
        {"query_id": ["a", "a", "b"], "query": ["data", "index", None], "text": ["t", "u", "v"]}
    )
    with pytest.raises(Exception, match="query id 'a' stands for several queries"):
        rerank(frame, tiny.path, top_k=1).collect()
    assert rerank(frame.where(daft.col("text") != "u"), tiny.path, top_k=1).count_rows() == 2


@pytest.mark.parametrize("options", [{"first": "bm25"}, {"rank": "place"}, {"query_id": "topic"}])
def test_what_serves_nothing_is_refused(tiny: ModelFolder, options: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=f"`{next(iter(options))}='"):
        rerank(frame_of(PAIRS), tiny.path, **options)


def test_columns_of_xopts_own_are_not_lost(tiny: ModelFolder) -> None:
    with pytest.raises(
        BadInput, match="column '_xopt_row': names that start with '_xopt_' are xopt's own"
    ):
        rerank(frame_of(PAIRS, _xopt_row=[1, 2, 3], query_id=[1, 2, 3]), tiny.path, top_k=1)


def test_what_has_no_score_is_ranked_last(tiny: ModelFolder) -> None:
    frame = daft.from_pydict(
        {"query_id": ["q"] * 3, "query": ["data"] * 3, "text": [None, "index", "search"]}
    )
    best = rerank(frame, tiny.path, top_k=3).sort("rank").to_pydict()
    assert best["rank"] == [1, 2, 3]
    assert best["text"][2] is None
    assert best["score"][2] is None
    two = rerank(frame, tiny.path, top_k=2).to_pydict()
    assert set(two["text"]) == {"index", "search"}
