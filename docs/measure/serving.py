"""What HTTP costs: `xopt serve` beside the bare scorer on the same texts and threads.

    python docs/measure/serving.py rate|latency|fair|same DIR [--variant V] [--quick] [--json FILE]

- rate: pairs a second of 16 and 64 clients, each with 20 documents, and of the scorer.
- latency: how much longer one request of 1 and of 10 documents takes than the scorer.
- fair: how long requests of 10 documents take alone, and beside a stream of 1,000.
- same: whether a reply alone and one among 64 clients are the same bytes.

Server and scorer take turns. The server is started with 2 threads. `--quick` ends in three minutes.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from servers import HOST, Server, free_port, started, xopt_serve

from xopt.runtime import open_scorer
from xopt.runtime.bench.load import Request, Target, closed_loop, rerank_request, summarise
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.scoring.scorer import Scorer

THREADS = 2
CLIENTS = (16, 64)
DOCUMENTS = 20
REQUESTS = 64  # different ones
PATIENT = ("--deadline", "600", "--longest-wait", "600")
# So that one process's threads are asleep before the other's turn.
PAUSE_S = 0.05


@dataclass(frozen=True)
class Case:
    """What is measured, and how long: `scale` is below 1 for a quick look."""

    folder: str
    variant: str
    scale: float

    @contextmanager
    def served(self) -> Iterator[Server]:
        """Yield a server of it that has warmed up."""
        port = free_port()
        command = xopt_serve(self.folder, self.variant, THREADS, port, *PATIENT)
        with (
            tempfile.TemporaryDirectory() as scratch,
            started(command, port, Path(scratch) / "log") as server,
        ):
            yield server

    def scorer(self) -> Scorer:
        return open_scorer(self.folder, self.variant, threads=THREADS)

    def times(self, count: int) -> int:
        """Return how often to do what is done `count` times."""
        return max(1, round(count * self.scale))


def requests(documents: int, count: int = REQUESTS) -> list[Request]:
    """Return queries of the demo data with their own candidates, and others' where those end."""
    candidates = demo_candidates().shuffled()
    texts = [row.text for row in candidates.rows]
    made = []
    for rows in itertools.islice(candidates.groups().values(), count):
        own = [row.text for row in candidates.rows[rows]]
        distinct = list(dict.fromkeys([*own, *texts]))  # equal ones are scored once
        made.append(rerank_request(candidates.rows[rows.start].query, distinct[:documents]))
    return made


def target(server: Server) -> Target:
    return Target(f"{server.address}/v1/rerank")


def rate(case: Case) -> dict[str, Any]:
    """Compare pairs a second in each number of clients with those of the scorer."""
    sent = requests(DOCUMENTS)
    pairs = [pair for request in sent for pair in request.pairs]
    scorer = case.scorer()
    scorer.score(pairs[:256])
    rates: dict[str, list[float]] = {}
    generator = []
    with case.served() as server:
        for _ in range(case.times(3)):
            start_s = time.perf_counter()
            scorer.score(pairs)
            pass_s = time.perf_counter() - start_s
            rates.setdefault("scorer", []).append(len(pairs) / pass_s)
            for clients in CLIENTS:
                # As long as the scorer takes for all pairs, so that both see the same ones.
                seconds = pass_s * case.times(2)
                warm_up_s = 2 * pass_s * clients / REQUESTS
                load = closed_loop(
                    target(server), sent, clients=clients, seconds=seconds, warm_up_s=warm_up_s
                )
                summary = summarise(load)
                assert not summary.failed
                rates.setdefault(f"{clients} clients", []).append(summary.pairs_per_s)
                generator.append(summary.generator_cores)
    bare = statistics.median(rates["scorer"])
    for name, values in rates.items():
        found = statistics.median(values)
        print(f"{name}: {found:,.1f} pairs/s, {found / bare:.3f} of the scorer's")
    print(f"the clients' share: {max(generator):.3f} of a core")
    return {"pairs_per_s": rates, "generator_cores": generator}


def latency(case: Case) -> dict[str, Any]:
    """Compare single requests with calls of the scorer, one after the other."""
    scorer = case.scorer()
    found: dict[str, Any] = {}
    with case.served() as server:
        connection = http.client.HTTPConnection(HOST, server.port)
        for documents in (1, 10):
            times: dict[str, list[float]] = {"server": [], "scorer": []}
            sent = requests(documents, case.times(300))
            for number, request in enumerate(sent):
                turns = [
                    ("server", lambda body=request.body: answer(connection, body)),
                    ("scorer", lambda pairs=request.pairs: scorer.score(pairs)),
                ]
                for name, call in turns if number % 2 else turns[::-1]:
                    times[name].append(seconds_of(call))
                    time.sleep(PAUSE_S)
            found[str(documents)] = times
            warm = len(sent) // 10
            ms = {name: 1000 * statistics.median(each[warm:]) for name, each in times.items()}
            added_ms = ms["server"] - ms["scorer"]
            print(
                f"{documents} documents: {ms['server']:.2f} ms over HTTP, {ms['scorer']:.2f} ms by "
                f"the scorer, {added_ms:.2f} ms added (medians of {len(sent) - warm})"
            )
    return found


def answer(connection: http.client.HTTPConnection, body: bytes) -> bytes:
    """Send a request, and return the answer's body."""
    connection.request("POST", "/v1/rerank", body)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        sys.exit(f"{response.status}: {content[:200]!r}")
    return content


def seconds_of(call: Callable[[], Any]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


@contextmanager
def beside(server: Server, sent: list[Request], clients: int, seconds: float) -> Iterator[None]:
    """Let clients ask for so many seconds, while something else is measured."""
    load = threading.Thread(
        target=closed_loop,
        args=(target(server), sent),
        kwargs={"clients": clients, "seconds": seconds, "warm_up_s": 0},
    )
    load.start()
    time.sleep(2)
    yield
    if not load.is_alive():
        sys.exit("the load beside ended before the measurement did")
    load.join()


def fair(case: Case) -> dict[str, Any]:
    """Compare how long small requests take alone, and beside large ones."""
    small = requests(10)
    large = requests(1000, 4)
    seconds = 120 * case.scale

    def took_s(server: Server) -> list[float]:
        load = closed_loop(target(server), small, clients=1, seconds=seconds)
        answers = [each for each in load.answers if each.intended_s > load.warm_up_s]
        assert all(each.status == 200 for each in answers)
        return [each.took_s for each in answers]

    with case.served() as server:
        alone = took_s(server)
        before = forwards(server)
        with beside(server, large, clients=2, seconds=seconds + 5):
            crowded = took_s(server)
            count, forward_s = forwards(server) - before
    one_s = forward_s / count
    alone_s, crowded_s = (float(np.percentile(each, 99)) for each in (alone, crowded))
    print(f"10 documents alone: p99 {1000 * alone_s:.0f} ms of {len(alone)}")
    print(f"beside 1,000 documents: p99 {1000 * crowded_s:.0f} ms of {len(crowded)}")
    print(f"a forward beside them: {1000 * one_s:.0f} ms in the mean")
    print(f"less one forward: {(crowded_s - one_s) / alone_s:.2f} times the time alone")
    return {"alone_s": alone, "beside_s": crowded, "forward_s": one_s}


def forwards(server: Server) -> np.ndarray:
    """Return how many forwards there were, and how many seconds they took together."""
    connection = http.client.HTTPConnection(HOST, server.port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    values = []
    for what in ("count", "sum"):
        found = re.search(rf"^xopt_forward_seconds_{what} (\S+)", text, re.M)
        assert found
        values.append(float(found[1]))
    return np.array(values)


def same(case: Case) -> dict[str, Any]:
    """Compare replies alone with those among 64 clients, byte by byte."""
    sent = requests(DOCUMENTS)
    asked = sent[: case.times(20)]
    with case.served() as server:
        connection = http.client.HTTPConnection(HOST, server.port)
        alone = [answer(connection, each.body) for each in asked]
        seconds = 180 * case.scale
        crowded: list[bytes] = []
        with beside(server, sent[::-1], clients=63, seconds=seconds):
            ends_s = time.monotonic() + seconds - 30
            for each in asked:
                crowded.append(answer(connection, each.body))
                if time.monotonic() > ends_s:
                    break
    equal = sum(map(bytes.__eq__, alone, crowded))
    print(f"{equal} of {len(crowded)} replies among 64 clients are those alone, byte by byte")
    return {"equal": equal, "of": len(crowded)}


MEASURES = {"rate": rate, "latency": latency, "fair": fair, "same": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("folder")
    parser.add_argument("--variant", default="onnx-int8")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    case = Case(given.folder, given.variant, 0.33 if given.quick else 1)
    result = {"variant": case.variant, "threads": THREADS, **MEASURES[given.measure](case)}
    if given.json:
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
