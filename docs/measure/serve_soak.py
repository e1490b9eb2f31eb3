"""An hour of everything at once at `xopt serve`: is memory flat, and is nothing lost?

    python docs/measure/serve_soak.py DIR [--variant V] [--minutes N] [--json FILE]

16 clients send requests of 1 to 1,000 documents of 1 to 10,000 words, as many short as long ones on
a scale of logarithms. Some clients are slow, some leave in the middle, and some send what is no
request: wrong JSON, wrong types, bombs of gzip, too much. Of what is answered the form is checked,
and some scores against a scorer's.

Prints the memory of the server's processes. Ends with 1 where an answer is lost, wrong or a failure
of the server, and where memory grows by over 5 % after the first ten minutes.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import http.client
import json
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy.special import expit
from servers import HOST, Server, free_port, started, xopt_serve

from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.scoring.scorer import Scorer

CLIENTS = 16
THREADS = 2
MOST_DOCUMENTS = 1_000
MOST_WORDS = 10_000
TOLERANCE = 1e-5
CHECKED = 3  # documents of an answer whose scores are compared
BURST = 25  # malformed requests in a row
SAMPLE_S = 10.0
WARM_MINUTES = 10.0
COMPARED_MINUTES = 5.0
MOST_GROWTH = 0.05
ANSWER_S = 150.0  # over the server's deadline and what a slow client takes
LONGEST_RETRY_S = 5.0
REFUSED = (429, 503, 504)
MOST_BYTES = 64 << 20  # the server's limit of a body

Headers = dict[str, str]


@dataclass(frozen=True)
class Malformed:
    """A request that is none, and the statuses that it may get."""

    name: str
    body: bytes
    statuses: tuple[int, ...]
    headers: Headers = field(default_factory=dict)
    path: str = "/v1/rerank"


def malformed() -> list[Malformed]:
    """Return a request of each kind that has to be refused."""
    packed = {"Content-Encoding": "gzip"}
    good = b'{"query": "copy", "documents": ["a file"]}'
    bodies = {
        "empty": b"",
        "half of a JSON": good[:20],
        "NaN": b'{"query": NaN, "documents": ["a"]}',
        "not UTF-8": b'{"query": "\xff\xfe", "documents": ["a"]}',
        "half a surrogate": b'{"query": "\\ud800", "documents": ["a"]}',
        "deep": b"[" * 100_000,
        "a list": b"[1, 2]",
        "no documents": b'{"query": "copy", "documents": []}',
        "documents missing": b'{"query": "copy"}',
        "a number of documents": b'{"query": "copy", "documents": 7}',
        "numbers as documents": b'{"query": "copy", "documents": ["a", 7, null]}',
        "an empty query": b'{"query": "", "documents": ["a"]}',
        "top_n below 0": b'{"query": "copy", "documents": ["a"], "top_n": -1}',
        "a huge list of the wrong type": b'{"query": "a", "documents": [%s0]}' % (b"0," * 500_000),
    }
    kinds = [Malformed(name, body, (400, 422)) for name, body in bodies.items()]
    bomb = gzip.compress(bytes(MOST_BYTES * 4))
    kinds += [
        Malformed("a bomb", bomb, (413,), packed),
        Malformed("half of a gzip", gzip.compress(good)[:30], (400,), packed),
        Malformed("no gzip", good, (400,), packed),
        Malformed("an unknown encoding", good, (415,), {"Content-Encoding": "br"}),
        Malformed("no JSON", good, (415,), {"Content-Type": "text/plain"}),
        Malformed("a deadline that is no number", good, (400,), {"X-Request-Timeout": "soon"}),
        Malformed("no such path", good, (404,), path="/v1/nothing"),
        Malformed("a method that is not there", good, (405,), path="/health"),
    ]
    return kinds


HUGE = Malformed("huge", b" " * (MOST_BYTES + 1), (413,))


class Texts:
    """Documents of any length, cut out of the demo data."""

    def __init__(self) -> None:
        rows = demo_candidates().rows
        self.queries = sorted({row.query for row in rows})
        self.text = " ".join(row.text for row in rows)
        self.begins = [found.start() for found in re.finditer(r"\S+", self.text)]

    def document(self, choose: random.Random) -> str:
        words = log_uniform(choose, MOST_WORDS)
        first = choose.randrange(len(self.begins) - words)
        return self.text[self.begins[first] : self.begins[first + words]]

    def request(self, choose: random.Random) -> dict[str, Any]:
        count = log_uniform(choose, MOST_DOCUMENTS)
        documents = [self.document(choose) for _ in range(count)]
        body = {"query": choose.choice(self.queries), "documents": documents}
        if choose.random() < 0.5:
            body["top_n"] = log_uniform(choose, count)
        return body


def log_uniform(choose: random.Random, most: int) -> int:
    return round(most ** choose.random())


@dataclass
class State:
    """What all clients share."""

    port: int
    texts: Texts
    scorer: Scorer
    ends_s: float
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    worst: float = 0.0
    compared: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, status: int) -> None:
        with self.lock:
            self.statuses[f"{what}: {status}"] += 1

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)

    def compare(self, body: dict[str, Any], results: list[dict[str, Any]]) -> None:
        """Compare scores with the scorer's."""
        pairs = [(body["query"], body["documents"][each["index"]]) for each in results]
        scores = np.array([each["relevance_score"] for each in results])
        with self.lock:
            expected = expit(self.scorer.score(pairs).astype(np.float64))
            difference = float(np.abs(scores - expected).max())
            self.worst = max(self.worst, difference)
            self.compared += len(pairs)
        if not difference <= TOLERANCE:
            self.fault(f"scores differ by {difference}: {pairs!r:.200}")


class Client:
    """One client, with a connection that it keeps as long as it can."""

    def __init__(self, number: int, state: State) -> None:
        self.state = state
        self.choose = random.Random(number)
        self.connection = http.client.HTTPConnection(HOST, state.port, timeout=ANSWER_S)
        self.malformed = malformed()

    def run(self) -> None:
        """Do what comes by chance until the time is over."""
        what = {self.patient: 12, self.slow: 2, self.leave: 4, self.spoil: 2, self.babble: 1}
        doings, weights = list(what), list(what.values())
        while time.monotonic() < self.state.ends_s and not self.state.faults:
            (do,) = self.choose.choices(doings, weights)
            try:
                do()
            except Exception:  # whatever it is, it ends the soak
                self.state.fault(f"{do.__name__}, an answer is lost:\n{traceback.format_exc()}")
        self.connection.close()

    def answer(self) -> tuple[int, bytes]:
        """Read an answer; the connection stays open where the server leaves it so."""
        response = self.connection.getresponse()
        return response.status, response.read()

    def patient(self) -> None:
        """Send a request, and wait for the answer."""
        body = self.state.texts.request(self.choose)
        self.connection.request("POST", "/v1/rerank", json.dumps(body))
        self.check("request", body, *self.answer())

    def slow(self) -> None:
        """Send a request bit by bit over some seconds, and read the answer late."""
        body = self.state.texts.request(self.choose)
        data = json.dumps(body).encode()
        headers = {"Content-Length": str(len(data))}
        self.connection.request("POST", "/v1/rerank", self.bits(data), headers)
        time.sleep(self.choose.uniform(0, 3))
        self.check("slow request", body, *self.answer())

    def bits(self, data: bytes) -> Iterator[bytes]:
        size = len(data) // 20 + 1
        for begin in range(0, len(data), size):
            yield data[begin : begin + size]
            time.sleep(self.choose.uniform(0, 0.5))

    def leave(self) -> None:
        """Go away while the request is sent, or while it waits or is scored."""
        data = json.dumps(self.state.texts.request(self.choose)).encode()
        sent = data[: len(data) // self.choose.choice((1, 2))]
        headers = {"Content-Length": str(len(data))}
        self.connection.request("POST", "/v1/rerank", sent, headers)
        time.sleep(log_uniform(self.choose, 3000) / 1000)
        self.connection.close()
        self.state.count("left", 0)

    def spoil(self) -> None:
        """Send many requests that are none."""
        for kind in self.choose.choices(self.malformed, k=BURST):
            self.refused(kind)
        if self.choose.random() < 0.1:
            self.refused(HUGE)

    def refused(self, kind: Malformed) -> None:
        self.connection.request("POST", kind.path, kind.body, kind.headers)
        status, content = self.answer()
        self.state.count("malformed", status)
        if status not in kind.statuses or not json.loads(content):
            self.state.fault(f"{kind.name}: {status} {content[:200]!r}")

    def babble(self) -> None:
        """Send what is no HTTP."""
        self.connection.close()
        self.connection.connect()
        self.connection.sock.sendall(self.choose.randbytes(1000) + b"\r\n\r\n")
        self.connection.sock.recv(1000)  # uvicorn says 400, or just closes
        self.connection.close()
        self.state.count("no HTTP", 0)

    def check(self, what: str, body: dict[str, Any], status: int, content: bytes) -> None:
        """Check an answer: its status, its form, and some of its scores."""
        self.state.count(what, status)
        if status in REFUSED:
            time.sleep(self.choose.uniform(0, LONGEST_RETRY_S))
            return
        if status != 200:
            self.state.fault(f"{what}: {status} {content[:200]!r}")
            return
        results = json.loads(content)["results"]
        count = len(body["documents"])
        indices = {each["index"] for each in results}
        scores = [each["relevance_score"] for each in results]
        right = (
            len(results) == len(indices) == body.get("top_n", count)
            and indices <= set(range(count))
            and scores == sorted(scores, reverse=True)
        )
        if not right:
            self.state.fault(f"{what}: {count} documents, {len(results)} results: {scores}")
        elif self.choose.random() < 0.1:
            self.state.compare(body, self.choose.sample(results, min(CHECKED, count, len(results))))


def watch(server: Server, clients: list[threading.Thread], state: State) -> list[int]:
    """Return the server's memory in MiB, every ten seconds, until all clients have ended."""
    series: list[int] = []
    while any(client.is_alive() for client in clients):
        time.sleep(SAMPLE_S)
        if server.process.poll() is not None:
            state.fault(f"the server has ended: {server.log.read_text()[-2000:]}")
            return series
        series.append(server.rss_bytes() >> 20)
        if len(series) % 6 == 0:
            answers = sum(state.statuses.values())
            print(f"minute {len(series) // 6}: {series[-1]:,} MiB, {answers:,} answers", flush=True)
        if time.monotonic() > state.ends_s + ANSWER_S:
            state.fault(f"a client has no answer after {ANSWER_S:.0f} s")
            return series
    return series


def ended(server: Server, state: State) -> None:
    """Check that nothing is left in the server's queue, and that it ends well."""
    time.sleep(1)
    connection = http.client.HTTPConnection(HOST, server.port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    left = re.findall(r"^xopt_queue\w* [1-9].*", text, re.M)
    if left:
        state.fault(f"left in the queue: {left}")
    code = server.end()
    if code:
        state.fault(f"the server ended with {code}: {server.log.read_text()[-2000:]}")


def growth(series: list[int]) -> tuple[float, float]:
    """Return the medians of the first minutes after the warm-up, and of the last ones, in MiB."""
    a_minute = 60 / SAMPLE_S
    warm = round(WARM_MINUTES * a_minute)
    compared = round(COMPARED_MINUTES * a_minute)
    early = statistics.median(series[warm : warm + compared])
    return early, statistics.median(series[-compared:])


def soaked(folder: str, variant: str, minutes: float, scratch: Path) -> tuple[State, list[int]]:
    """Run everything against a server. Returns what was seen, and its memory."""
    port = free_port()
    command = xopt_serve(folder, variant, THREADS, port)
    scorer = open_scorer(folder, variant, threads=1)
    texts = Texts()
    with started(command, port, scratch / "server.log") as server:
        print(f"started: {server.rss_bytes() >> 20:,} MiB", flush=True)
        state = State(port, texts, scorer, time.monotonic() + 60 * minutes)
        clients = []
        for number in range(CLIENTS):
            client = Client(number, state)
            clients.append(threading.Thread(target=client.run, daemon=True))
        for thread in clients:
            thread.start()
        series = watch(server, clients, state)
        if not state.faults:
            ended(server, state)
        own_s = sum(psutil.Process().cpu_times()[:2])
        print(f"clients used {own_s:,.0f} s of the cores in {60 * minutes:,.0f} s")
    return state, series


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--variant", default="onnx-int8")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        state, series = soaked(given.folder, given.variant, given.minutes, Path(scratch))
    for what, count in sorted(state.statuses.items()):
        print(f"{what}: {count:,}")
    print(f"{state.compared:,} scores differ by at most {state.worst:.1e} from the scorer's")
    print(f"memory in MiB, {max(series):,} at most:", *series)
    result = {"statuses": state.statuses, "worst": state.worst, "rss_mib": series}
    if given.minutes >= WARM_MINUTES + 2 * COMPARED_MINUTES and not state.faults:
        early, late = growth(series)
        result |= {"early_mib": early, "late_mib": late}
        print(f"medians: {early:,.0f} MiB after {WARM_MINUTES:.0f} minutes, {late:,.0f} at the end")
        if late > (1 + MOST_GROWTH) * early:
            state.fault(f"memory grew by {late / early - 1:.1%}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if state.faults:
        sys.exit("\n".join(state.faults))


if __name__ == "__main__":
    main()
