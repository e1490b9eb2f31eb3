from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.data.bm25 import bm25_ranking

texts = st.lists(st.sampled_from(["search", "engine", "ranking", "model"]), max_size=4).map(
    " ".join
)


@given(
    st.lists(texts, min_size=1, max_size=12),
    st.lists(texts, min_size=1, max_size=4),
    st.integers(1, 14),
)
def test_a_query_s_ranking_is_its_own(passages: list[str], queries: list[str], depth: int) -> None:
    """Whatever else is asked, and however deep; of like passages the earlier one comes first."""
    for query, ranking in zip(queries, bm25_ranking(passages, queries, depth), strict=True):
        assert ranking == bm25_ranking(passages, [query], len(passages))[0][:depth]
        for first, second in itertools.pairwise(ranking):
            assert passages[first] != passages[second] or first < second


def test_chinese_and_japanese_are_ranked_by_pairs_of_characters() -> None:
    passages = ["今天天气很好", "搜索引擎排列文档", "機械学習の論文", "search engine 搜索", "好"]
    rankings = bm25_ranking(passages, ["搜索引擎", "論文を読む", "天气 weather"], 5)
    assert [ranking[0] for ranking in rankings] == [1, 2, 0]
    assert rankings[0][1] == 3
