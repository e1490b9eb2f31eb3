from __future__ import annotations

import itertools

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.data.agreement import first_stage_scores
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.data.quality import quality_by_query

METRICS = {
    "ndcg10": ir_measures.nDCG @ 10,
    "mrr10": ir_measures.RR @ 10,
    "recall10": ir_measures.R @ 10,
}


def one_query(n: int, judged: dict[str, int]) -> Candidates:
    return Candidates(
        "test", tuple(Row("q", "query", f"d{i}", "text") for i in range(n)), {"q": judged}
    )


def by_ir_measures(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], name: str
) -> dict[str, float]:
    return {m.query_id: m.value for m in ir_measures.iter_calc([METRICS[name]], qrels, run)}


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning"
)  # it divides 0 by 0 without a relevant one
@given(st.data())
def test_without_ties_quality_is_trec_evals(data: st.DataObject) -> None:
    # a single candidate, too
    sizes = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    rows = tuple(
        Row(f"q{q}", "query", f"d{i}", "text") for q, n in enumerate(sizes) for i in range(n)
    )
    grades = st.dictionaries(
        st.sampled_from([f"d{i}" for i in range(16)]), st.integers(-1, 3), max_size=6
    )
    # Queries that nobody judged, that no document is relevant to, and relevant documents that are
    # no candidates:
    qrels = data.draw(
        st.dictionaries(st.sampled_from([f"q{q}" for q in range(len(sizes))]), grades, min_size=1)
    )
    qrels = {q: judged for q, judged in qrels.items() if judged} or {"q0": {"d0": 1}}
    scores = np.array(data.draw(st.permutations(range(len(rows)))), np.float32)
    run: dict[str, dict[str, float]] = {}
    for row, score in zip(rows, scores, strict=True):
        run.setdefault(row.query_id, {})[row.doc_id] = float(score)
    measured = quality_by_query(Candidates("test", rows, qrels), scores)
    for name in METRICS:
        expected = by_ir_measures(qrels, run, name)
        for q, value in enumerate(measured[name]):
            relevant = any(grade > 0 for grade in qrels.get(f"q{q}", {}).values())
            known = expected.get(f"q{q}", np.nan) if relevant or f"q{q}" not in qrels else 0.0
            assert value == pytest.approx(known, nan_ok=True)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.dictionaries(
        st.sampled_from([f"d{i}" for i in range(7)]), st.integers(0, 3), min_size=1, max_size=6
    ),
)
def test_with_ties_quality_is_the_mean_over_all_orders(
    scores: list[int], judged: dict[str, int]
) -> None:
    names = [f"d{i}" for i in range(len(scores))]
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    strict = np.array([np.argsort(order) for order in orders])  # ranks of the documents
    measured = quality_by_query(one_query(len(scores), judged), np.array(scores, np.float32))
    each = [
        quality_by_query(one_query(len(names), judged), -ranks.astype(np.float32))
        for ranks in strict
    ]
    for name in METRICS:
        assert measured[name][0] == pytest.approx(np.mean([values[name][0] for values in each]))


def test_a_tie_does_not_depend_on_the_names_of_documents() -> None:
    values = []
    for names in ("abc", "zbc", "bza"):
        rows = tuple(Row("q", "query", name, "text") for name in names)
        values.append(
            quality_by_query(Candidates("test", rows, {"q": {names[0]: 1}}), np.ones(3, np.float32))
        )
    assert values[0] == values[1] == values[2]
    assert values[0]["mrr10"] == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3])
    assert values[0]["recall10"] == [1.0]


def test_long_ties_count_to_the_tenth_rank() -> None:
    scores = np.zeros(40, np.float32)
    measured = quality_by_query(one_query(40, {"d3": 1, "d30": 1}), scores)
    assert measured["recall10"] == pytest.approx([10 / 40])
    assert measured["mrr10"][0] == pytest.approx(
        np.mean(
            [
                1 / (min(a, b) + 1) if min(a, b) < 10 else 0
                for a, b in itertools.combinations(range(40), 2)
            ]
        )
    )


def test_what_has_no_score_comes_last() -> None:
    judged = {"d0": 1}
    for missing in (np.nan, -np.inf):
        measured = quality_by_query(
            one_query(3, judged), np.array([missing, 0.0, -1e30], np.float32)
        )
        assert measured["mrr10"] == pytest.approx([1 / 3])


def test_the_first_stage_ranks_in_the_order_given() -> None:
    candidates = one_query(20, {"d2": 1})
    assert quality_by_query(candidates, first_stage_scores(candidates))["mrr10"] == pytest.approx(
        [1 / 3]
    )


def test_no_qrels_no_quality() -> None:
    assert (
        quality_by_query(Candidates("test", one_query(3, {}).rows), np.zeros(3, np.float32)) == {}
    )
