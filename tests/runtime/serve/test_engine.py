"""The queue: fair, in time, only for who waits, and never silently dead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime import open_scorer
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.serve.engine import Closed, Engine, Overloaded, QueuedRequest, TimedOut
from xopt.runtime.serve.metrics import Metrics

QUERY = "how to copy a file"
FOREVER_S = math.inf
PAIRS = [(QUERY, "copies " * count) for count in (0, 1, 2, 5, 9, 9, 30, 100)]


def opened(folder: ModelFolder, callers: int = 2) -> PlannedScorer:
    return open_scorer(folder, "onnx-fp32", plan=Plan(callers, 1, 128))


@pytest.fixture
def deaths() -> list[BaseException]:
    return []


@pytest.fixture
def engine_of(deaths: list[BaseException]) -> Iterator[Callable[[PlannedScorer], Engine]]:
    engines = []

    def make(scorer: PlannedScorer) -> Engine:
        engine = Engine(scorer, Metrics(), 5.0, deaths.append)
        engine.start(PAIRS)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(tiny: ModelFolder, engine_of: Callable[[PlannedScorer], Engine]) -> Engine:
    return engine_of(opened(tiny))


def submitted(engine: Engine, pairs: list[Any]) -> QueuedRequest:
    queued = engine.admit(pairs, FOREVER_S)
    engine.submit(queued, engine.tokenise(queued, pairs))
    return queued


def wait_until(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_requests_together_get_the_scorers_logits(engine, tiny):
    expected = opened(tiny).logits(PAIRS)

    def ask(first: int) -> float:
        queued = submitted(engine, PAIRS[first:])
        logits = queued.done.result(60)
        engine.release(queued)
        return float(np.abs(logits - expected[first:]).max())

    with ThreadPoolExecutor(8) as clients:
        assert max(clients.map(ask, [0, 3, 7] * 20)) < 1e-5
    assert (engine.queued_tokens, engine.queued_requests) == (0, 0)


def test_a_request_may_bring_more_when_its_first_pairs_are_scored(engine, tiny):
    expected = opened(tiny).logits(PAIRS)
    before = engine._virtual
    queued = submitted(engine, PAIRS[:3])
    found = [queued.done.result(60)]
    more = engine.scorer.encode(PAIRS[3:])
    served = int(queued.tokens.lengths.sum() + more.lengths.sum())
    engine.submit(queued, more)
    found.append(queued.done.result(60))
    assert np.abs(np.concatenate(found) - expected).max() < 1e-5
    assert queued.served - before == served  # or it would come first each time
    engine.release(queued)


@given(st.lists(st.integers(0, 70), min_size=1, max_size=40), st.sampled_from([0, 1, 8]))
def test_a_forward_takes_each_pair_once_and_is_not_too_large(engine_at_rest, counts, step):
    engine = engine_at_rest(step)
    pairs = [(QUERY, "copies " * count) for count in counts]
    requests = [submitted(engine, pairs[::2] or pairs), submitted(engine, pairs[1::2] or pairs)]
    taken = []
    while (batch := engine._next()) is not None:
        lengths = batch.tokens.lengths
        assert lengths.max() <= batch.width
        assert len(lengths) == 1 or len(lengths) * batch.width <= engine.scorer.plan.tokens
        taken += [(requests.index(queued), row) for queued, row in batch.members]
    expected = [
        (number, row) for number, queued in enumerate(requests) for row in range(queued.left_rows)
    ]
    assert sorted(taken) == expected


@pytest.fixture(scope="module")
def engine_at_rest(tiny: ModelFolder) -> Callable[[int], Engine]:
    """An engine whose callers never start, for a backend of some step."""
    scorer = opened(tiny)

    def make(step: int) -> Engine:
        scorer.backend.step = step
        engine = Engine(scorer, Metrics(), 5.0, print)
        engine.tokens_per_s = 1e6
        return engine

    return make


def test_what_is_given_up_is_not_computed_on(engine, held):
    with held(engine.scorer) as began:
        given_up = submitted(engine, [(QUERY, f"copies {n}") for n in range(200)])
        for _ in range(engine.scorer.plan.callers):
            assert began.acquire(timeout=30)
        engine.release(given_up)
        assert engine.queued_tokens == 0
        other = submitted(engine, PAIRS[:1])
    assert len(other.done.result(60)) == 1
    with pytest.raises(CancelledError):
        given_up.done.result()
    assert given_up.waiting  # its other pairs never ran
    engine.release(other)


def test_a_request_whose_time_is_over_ends_so(engine, held):
    with held(engine.scorer) as began:
        running = [submitted(engine, [pair]) for pair in PAIRS[:2]]
        for _ in running:
            assert began.acquire(timeout=30)
        late = submitted(engine, PAIRS)
        late.deadline_s = time.monotonic() - 1
        other = submitted(engine, PAIRS[:1])
    assert len(other.done.result(60)) == 1
    with pytest.raises(TimedOut):
        late.done.result(60)


def test_a_small_request_passes_between_the_forwards_of_a_large_one(tiny, engine_of, held):
    engine = engine_of(opened(tiny, callers=1))
    ended = []
    with held(engine.scorer) as began:
        large = submitted(engine, [(QUERY, f"copies {n}") for n in range(500)])
        large.done.add_done_callback(lambda _: ended.append("large"))
        assert began.acquire(timeout=30)
        for _ in range(3):
            small = submitted(engine, PAIRS[:3])
            small.done.add_done_callback(lambda _: ended.append("small"))
    large.done.result(60)
    wait_until(lambda: len(ended) == 4)
    assert ended == ["small"] * 3 + ["large"]


def test_small_requests_that_come_and_go_starve_no_large_one(engine_at_rest):
    engine = engine_at_rest(1)
    large = submitted(engine, [(QUERY, "copies " * 60)] * 20)
    small = [submitted(engine, [(QUERY, "copies " * number)]) for number in range(4)]
    forwards = 0
    while large.waiting:
        assert engine._next() is not None
        forwards += 1
        assert forwards < 2000
        for number, each in enumerate(small):
            if not each.waiting:
                small[number] = submitted(engine, [(QUERY, "copies " * number)])
    # It takes ten, of which the first is the first of all, and then it has every fourth.
    assert forwards == 37
    for _ in small:
        engine._next()


def test_requests_of_about_one_size_end_in_the_order_that_they_came(engine_at_rest):
    engine = engine_at_rest(1)
    # Of lengths of their own, so that none rides along. The second and fourth are smaller.
    shapes = [(30, 12), (20, 7), (25, 16), (15, 8), (35, 12)]
    requests = [submitted(engine, [(QUERY, "copies " * count)] * rows) for count, rows in shapes]
    ended = []
    while engine._next() is not None:
        ended += [each for each in requests if not each.waiting and each not in ended]
    assert ended == requests


def test_what_is_given_up_is_not_tokenised_on(engine):
    queued = engine.admit(PAIRS, FOREVER_S)
    engine.release(queued)
    with pytest.raises(TimedOut):
        engine.tokenise(queued, PAIRS)
    late = engine.admit(PAIRS, FOREVER_S)
    late.deadline_s = time.monotonic() - 1
    with pytest.raises(TimedOut):
        engine.tokenise(late, PAIRS)
    engine.release(late)


def test_a_pair_that_needs_too_much_memory_fails_its_own_request_alone(engine, monkeypatch):
    run = engine.scorer.run
    longest = int(engine.scorer.encode(PAIRS).lengths.max())

    def small_only(tokens: Any, *arguments: Any) -> Any:
        if tokens.lengths.max() == longest:
            raise BadInput("out of memory")
        return run(tokens, *arguments)

    monkeypatch.setattr(engine.scorer, "run", small_only)
    bad, good = submitted(engine, PAIRS), submitted(engine, PAIRS[:6])
    assert np.isfinite(good.done.result(60)).all()
    with pytest.raises(BadInput, match="out of memory"):
        bad.done.result(60)


def test_neighbours_in_the_same_forward_do_not_fail(engine, monkeypatch, held, tiny):
    run = engine.scorer.run
    pairs = [(QUERY, "query document"), (QUERY, "document query")]
    ids = engine.scorer.encode(pairs).ids[0].tolist()
    failed_with = []

    def not_this_one(tokens: Any, *arguments: Any) -> Any:
        if ids in [row.tolist() for row in tokens.ids]:
            failed_with.append(len(tokens.ids))
            raise BadInput("out of memory")
        return run(tokens, *arguments)

    monkeypatch.setattr(engine.scorer, "run", not_this_one)
    with held(engine.scorer) as began:
        for _ in range(engine.scorer.plan.callers):
            submitted(engine, PAIRS[:1])
            assert began.acquire(timeout=30)
        bad, good = submitted(engine, pairs[:1]), submitted(engine, pairs[1:])
    expected = opened(tiny).logits(pairs[1:])
    assert good.done.result(60) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(BadInput):
        bad.done.result(60)
    assert failed_with == [2, 1]


def test_a_fault_in_a_forward_ends_everything_and_says_so(engine, monkeypatch, deaths):
    def broken(*_: Any) -> Any:
        raise RuntimeError("the backend broke")

    waiting = engine.admit(PAIRS, FOREVER_S)
    monkeypatch.setattr(engine.scorer, "run", broken)
    queued = submitted(engine, PAIRS)
    for each in (queued, waiting):
        with pytest.raises(Closed):
            each.done.result(60)
    wait_until(lambda: len(deaths) > 0)
    assert "the backend broke" in str(deaths[0])
    with pytest.raises(Closed):
        engine.admit(PAIRS, FOREVER_S)


def test_a_request_is_let_in_by_what_is_scored_before_it(tiny):
    engine = Engine(opened(tiny), Metrics(), 1.0, print)
    engine.tokens_per_s = 100
    many = [(QUERY, f"{number} " + "copies " * 100) for number in range(10)]
    large = engine.admit(many * 2, FOREVER_S)  # each is scored once
    assert engine.queued_tokens == 10 * tiny.manifest.max_length
    small = engine.admit(PAIRS[:1], FOREVER_S)  # it passes between the forwards of the large one
    with pytest.raises(Overloaded) as refused:
        engine.admit(many, FOREVER_S)
    assert refused.value.retry_s >= 1
    with pytest.raises(Overloaded):
        engine.admit(PAIRS[:1], time.monotonic() + 0.01)
    engine.release(large)
    engine.release(small)
    engine.release(small)
    assert engine.queued_tokens == 0
    # Where nothing waits, an estimate refuses nobody.
    engine.admit(many, time.monotonic() + 0.01)
    # Of about its size, and so all of it ends before the next one does.
    with pytest.raises(Overloaded) as refused:
        engine.admit(many[:4], FOREVER_S)
    assert refused.value.retry_s == pytest.approx(10 * tiny.manifest.max_length / 100 - 1)
