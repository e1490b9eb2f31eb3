from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.data.bm25 import bm25_ranking, words_of

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("दिल्ली हिन्दी ५", ["दिल्ली", "हिन्दी", "५"]),
        ("বাংলা சென்னை", ["বাংলা", "சென்னை"]),
        ("เชียงใหม่", ["เชี", "ชีย", "ยง", "งใ", "ให", "หม่"]),
        ("cafe\u0301 nai\u0308ve ﬁne", ["café", "naïve", "fine"]),
        ("İstanbul", ["istanbul"]),
        ("שָׁלוֹם مُحَمَّد", ["שלום", "محمد"]),
        ("क्\u200dया co\u00adoperate", ["क्या", "cooperate"]),
        ("C and R", ["c", "r"]),
        ("it's l'amour", ["l", "amour"]),
    ],
)
def test_words_of_many_scripts(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_queries_without_a_word_in_the_corpus_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bm25_ranking(["the café", "a tea"], ["cafe\u0301", "wine", "beer"], 2, "menu")
    assert "menu: 2 of 3 queries have no term in the corpus" in caplog.text
