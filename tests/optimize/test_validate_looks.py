"""Validate draws as many queries as it takes, and none that calibrated."""

from __future__ import annotations

import pytest
from helpers.texts import shortened

from xopt.optimize.judge.looks import FIRST_LOOK
from xopt.optimize.judge.statistics import PASSED, UNDECIDED, Gate
from xopt.optimize.quantize import quantize, recipe_for
from xopt.optimize.validate import validate
from xopt.runtime.data.candidates import Candidates, demo_candidates, query_hash
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder


def many(queries: int) -> Candidates:
    """Queries of few short candidates."""
    return shortened(demo_candidates(queries=queries, depth=4), 40)


def test_queries_are_drawn_until_all_is_decided(tiny: ModelFolder) -> None:
    candidates = many(150)
    result = validate(tiny, ["onnx-fp32", "onnx-int8"], candidates, [Gate("tau", 0.2)])
    assert result.reference == "onnx-fp32"
    assert 0 < result.reference_difference < 1e-4
    assert result.prepared_with == len(
        {row.query for row in candidates.rows} & calibrated(tiny, candidates)
    )
    assert result.all_queries == 150 - result.prepared_with
    assert result.queries == FIRST_LOOK  # of what is that clear no more is needed
    assert [judged.verdict for judged in result.judged] == [PASSED] * 3
    edge = float(result.judged[2].measures["tau"].mean)
    torch = validate(tiny, ["onnx-int8"], candidates, [Gate("tau", edge)], exact=None)
    assert (torch.reference, torch.queries) == ("torch-fp32", torch.all_queries)  # the data are out
    assert torch.judged[1].queries == torch.all_queries


def calibrated(folder: ModelFolder, candidates: Candidates) -> set[str]:
    hashes = set(folder.variant("onnx-int8").recipe["calibrated_with"])
    return {row.query for row in candidates.rows if query_hash(row.query) in hashes}


def test_time_that_is_out_leaves_what_is_open_undecided(tiny: ModelFolder) -> None:
    candidates = many(150)
    edge = (
        validate(tiny, ["onnx-int8"], candidates, [Gate("tau", -1)]).judged[1].measures["tau"].mean
    )
    result = validate(tiny, ["onnx-int8"], candidates, [Gate("tau", float(edge))], minutes=1e-6)
    assert (result.out_of_time, result.queries, result.judged[1].verdict) == (
        True,
        FIRST_LOOK,
        UNDECIDED,
    )
    assert (result.verdict, result.passed) == (UNDECIDED, False)


def test_slower_variants_than_one_that_passed_are_not_followed(tiny: ModelFolder) -> None:
    candidates = many(150)
    result = validate(
        tiny, ["onnx-fp32", "onnx-int8"], candidates, [Gate("tau", 0.9999)], first=True
    )
    assert [judged.queries for judged in result.judged] == [FIRST_LOOK] * 3
    assert result.judged[1].verdict == PASSED


def test_data_that_calibrated_a_variant_do_not_judge_it(
    tiny_copy: ModelFolder, docs: Candidates
) -> None:
    made = quantize(tiny_copy, recipe_for("avx2"), docs)
    with pytest.raises(
        BadInput, match="all its queries calibrated a variant; give other data to judge by"
    ):
        validate(made, ["onnx-int8"], docs)
    assert validate(made, ["onnx-fp32"], docs).prepared_with == 0
