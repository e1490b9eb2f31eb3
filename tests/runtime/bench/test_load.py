"""Load on a server: what counts, and that waiting does."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.bench.load import (
    CANCELLED,
    Answer,
    Load,
    Target,
    check_server,
    closed_loop,
    open_loop,
    rerank_request,
    summarise,
)
from xopt.runtime.errors import BadInput

ONE = rerank_request("how to copy", ["a file"])
THREE = rerank_request("how to copy", ["a file", "a folder", "a link"])
BUSY_S = 0.02
STATUSES = {200: "answered", 429: "refused", 503: "refused", 504: "timed_out", 500: "failed"}


class Slow(BaseHTTPRequestHandler):
    """Answers one request after the other, each in `BUSY_S` at least."""

    protocol_version = "HTTP/1.1"
    one_at_a_time = threading.Lock()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.one_at_a_time:
            time.sleep(BUSY_S)
        self.server.keys.append(self.headers.get("Authorization"))  # type: ignore[attr-defined] # ours
        status, content = self.server.reply  # type: ignore[attr-defined] # ours
        with contextlib.suppress(OSError):  # the client may have left
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def slow() -> Iterator[Any]:
    """A server, whose `reply` a test may set."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        server.reply = (200, b"[]")  # type: ignore[attr-defined] # ours
        server.keys = []  # type: ignore[attr-defined] # ours
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def target(server: Any, **options: Any) -> Target:
    return Target(f"http://127.0.0.1:{server.server_address[1]}/v1/rerank", **options)


def test_a_closed_loop_asks_again_when_it_is_answered(slow):
    load = closed_loop(target(slow), [ONE, THREE], clients=2, seconds=0.3, warm_up_s=0.1)
    assert {answer.outcome for answer in load.answers} == {"answered"}
    assert {answer.documents for answer in load.answers} == {1, 3}
    times = [(answer.sent_s, 1) for answer in load.answers]
    times += [(answer.ended_s, -1) for answer in load.answers]
    at_once = np.cumsum([change for _, change in sorted(times)])
    assert at_once.max() == 2
    assert all(answer.took_s >= BUSY_S for answer in load.answers)
    assert summarise(load).requests_per_s <= 1.5 / BUSY_S  # some end together


def test_an_open_loop_counts_waiting(slow):
    """Twice what the server can do comes, and users who come later wait for longer."""
    load = open_loop(target(slow), [ONE], rate=2 / BUSY_S, seconds=0.8, warm_up_s=0.0)
    in_order = sorted(load.answers, key=lambda answer: answer.intended_s)
    quarter = len(in_order) // 4
    first = np.median([answer.took_s for answer in in_order[:quarter]])
    last = np.median([answer.took_s for answer in in_order[-quarter:]])
    assert last > 2 * first
    assert all(answer.sent_s >= answer.intended_s for answer in in_order)
    found = summarise(load)
    assert found.answered == found.sent == len(in_order)
    assert found.requests_per_s < 1.2 / BUSY_S  # what was answered, not what was sent


def test_requests_arrive_as_a_poisson_process_always_the_same(slow):
    loads = [
        open_loop(target(slow), [ONE], rate=100, seconds=0.5, warm_up_s=0.0, seed=3)
        for _ in range(2)
    ]
    times = [sorted(answer.intended_s for answer in load.answers) for load in loads]
    assert times[0] == pytest.approx(times[1], abs=0.005)  # the loop's timer is no better
    gaps = np.diff(times[0])
    assert 0.5 < gaps.std() / gaps.mean() < 1.5
    assert 25 < len(times[0]) < 80


def test_a_client_that_gives_up_is_cancelled(slow):
    impatient = target(slow, timeout_s=BUSY_S / 4)
    load = closed_loop(impatient, [ONE], clients=1, seconds=0.2, warm_up_s=0.0)
    assert {answer.outcome for answer in load.answers} == {"cancelled"}
    found = summarise(load)
    assert found.cancelled == found.sent > 0
    assert math.isnan(found.all_sizes.p50_s)


@pytest.mark.parametrize(("status", "outcome"), STATUSES.items())
def test_statuses_are_counted(slow, status, outcome):
    slow.reply = (status, b"{}")
    found = summarise(closed_loop(target(slow), [ONE], clients=1, seconds=0.1, warm_up_s=0.0))
    assert getattr(found, outcome) == found.sent > 0


def test_no_server_is_a_failure():
    nowhere = Target("http://127.0.0.1:1/")
    load = open_loop(nowhere, [ONE], rate=50, seconds=0.2, warm_up_s=0.0)
    assert {answer.outcome for answer in load.answers} == {"failed"}
    assert all(answer.fault for answer in load.answers)
    with pytest.raises(BadInput, match="cannot be reached"):
        check_server(nowhere, ONE)


def test_headers_go_with_each_request(slow):
    keyed = target(slow, headers={"Authorization": "Bearer key"})
    closed_loop(keyed, [ONE], clients=2, seconds=0.1, warm_up_s=0.0)
    assert set(slow.keys) == {"Bearer key"}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, b"no key"), "answers with status 401 \\(no key\\)"),
        ((200, b"<html>"), "answers no JSON but '<html>'"),
    ],
)
def test_a_server_that_is_no_reranker_is_named(slow, reply, message):
    slow.reply = reply
    with pytest.raises(BadInput, match=message):
        check_server(target(slow), ONE)


def test_a_server_that_never_answers_is_named(slow):
    with pytest.raises(BadInput, match=r"gives no answer in 0\.001 s"):
        check_server(target(slow, timeout_s=0.001), ONE)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    intended_s = draw(st.floats(0, 10))
    sent_s = intended_s + draw(st.floats(0, 1))
    ended_s = sent_s + draw(st.floats(0, 5))
    status = draw(st.sampled_from([*STATUSES, None]))
    fault = "" if status else draw(st.sampled_from([CANCELLED, "reset"]))
    return Answer(
        draw(st.sampled_from([1, 10, 100])), intended_s, sent_s, ended_s, status, fault=fault
    )


@given(st.lists(answers()), st.floats(0, 5))
def test_a_summary_counts_each_request_once(found, warm_up_s):
    load = Load(tuple(found), warm_up_s, seconds=10.0, wall_s=16.0, cpu_s=1.0)
    summary = summarise(load)
    after = [answer for answer in found if answer.intended_s >= warm_up_s]
    ends = (summary.answered, summary.refused, summary.timed_out, summary.cancelled, summary.failed)
    assert sum(ends) == summary.sent == len(after)
    assert sum(size.sent for size in summary.sizes) == summary.sent
    assert sum(size.answered for size in summary.sizes) == summary.answered
    assert [size.documents for size in summary.sizes] == sorted({a.documents for a in after})
    for size in (summary.all_sizes, *summary.sizes):
        if size.answered:
            assert size.p50_s <= size.p95_s <= size.p99_s <= 6.0001
    assert summary.pairs_per_s >= summary.requests_per_s


@given(st.lists(answers(), min_size=1))
def test_a_share_is_of_all_requests_that_were_sent(found):
    load = Load(tuple(found), 0.0, seconds=10.0, wall_s=16.0, cpu_s=1.0)
    answered = [answer for answer in found if answer.outcome == "answered"]
    assert load.share_within(math.inf) == len(answered) / len(found)
    assert load.share_within(-1.0) == 0
