from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.data.bm25 import bm25_ranking

texts = st.lists(st.sampled_from(["search", "engine", "ranking", "model"]), max_size=4).map(" ".join)


@given(st.lists(texts, min_size=1, max_size=12), st.lists(texts, min_size=1, max_size=4), st.integers(1, 14))
def test_a_query_s_ranking_is_its_own(passages: list[str], queries: list[str], depth: int) -> None:
    """Whatever else is asked, and however deep; of like passages the earlier one comes first."""
    for query, ranking in zip(queries, bm25_ranking(passages, queries, depth), strict=True):
        assert ranking == bm25_ranking(passages, [query], len(passages))[0][:depth]
        for first, second in itertools.pairwise(ranking):
            assert passages[first] != passages[second] or first < second
