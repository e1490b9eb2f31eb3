from __future__ import annotations

import gc
from pathlib import Path

import daft
import numpy as np
import pytest
from tiny import make_tiny

from xopt.optimize.export import export
from xopt.runtime import open_scorer, rerank
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder


def test_rerank_scores_a_dataframe(tiny: ModelFolder, docs: Candidates) -> None:
    queries, texts = zip(*docs.pairs, strict=True)
    frame = daft.from_pydict({"id": list(range(len(queries))), "q": list(queries), "passage": list(texts)})
    scored = rerank(frame, tiny.path, "onnx-fp32", query="q", text="passage", score="logit").sort("id")
    assert scored.schema()["logit"].dtype == daft.DataType.float32()
    assert scored.column_names == ["id", "q", "passage", "logit"]
    expected = open_scorer(tiny.path).score(docs.pairs)
    assert np.abs(np.array(scored.to_pydict()["logit"]) - expected).max() < 1e-4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Daft leaves its workers' pipes open
def test_rerank_gives_the_same_scores_from_several_workers(tiny: ModelFolder, docs: Candidates) -> None:
    queries, texts = zip(*docs.pairs, strict=True)
    frame = daft.from_pydict({"id": list(range(len(queries))), "query": list(queries), "text": list(texts)})
    scored = rerank(frame, tiny.path, workers=2, threads=1).sort("id").to_pydict()
    assert np.abs(np.array(scored["score"]) - open_scorer(tiny.path).score(docs.pairs)).max() < 1e-4
    gc.collect()  # here, not in a later test


def test_rerank_gives_all_logits_of_a_model_of_several_labels(tmp_path: Path) -> None:
    made = export(str(make_tiny(tmp_path / "model", labels=3)), tmp_path / "out")
    frame = daft.from_pydict({"query": ["a query", "data"], "text": ["a text", "search"]})
    logits = rerank(frame, made.path).to_pydict()["score"]
    assert (
        np.abs(np.array(logits) - open_scorer(made.path).score([("a query", "a text"), ("data", "search")])).max()
        < 1e-4
    )


def test_rerank_refuses_what_is_not_there_and_what_is_no_text(tiny: ModelFolder) -> None:
    frame = daft.from_pydict({"query": ["a query"], "text": [None]})
    with pytest.raises(BadInput, match="no variant 'onnx-int4'"):
        rerank(frame, tiny.path, "onnx-int4")
    with pytest.raises(BadInput, match="device 'gpu': unknown; use cpu or cuda"):
        rerank(frame, tiny.path, device="gpu")
    with pytest.raises(BadInput, match="pair 0: expected a query and a document"):
        rerank(frame.with_column("text", frame["text"].cast(daft.DataType.string())), tiny.path).collect()
