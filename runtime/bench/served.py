"""Served: how many requests a server answers, and in which time, at rates that it can hold."""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xopt.runtime.bench.load import (
    Load,
    Request,
    Summary,
    Target,
    check_server,
    closed_loop,
    open_loop,
    rerank_request,
    summarise,
)
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores, cpu_name, versions_here
from xopt.runtime.progress import progress
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.scorer import open_scorer

__all__ = [
    "LoadSettings",
    "Served",
    "ServedLoad",
    "Server",
    "bench_server",
    "bench_variants",
    "requests_of",
    "search",
]

log = logging.getLogger(__name__)

# Of the highest rate, what a server is to stand well, and what it may have to stand.
SHARES = (0.5, 0.8)
# Each halves the gap in which the highest rate lies that keeps a time.
HALVINGS = 4
MOST_QUERIES = 200
BARE_PAIRS = 500
# After so long a client gives up, as most do.
PATIENCE_S = 60.0
PATH = "/v1/rerank"
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+(?=\n)")
LOOK_S = 0.05


@dataclass(frozen=True)
class LoadSettings:
    """Which load to put on a server.

    sizes: documents a request; each size has an equal share of the requests.
    clients: of the closed loop.
    seconds: of each load, after a second of warm-up.
    rate: requests a second of the one open loop; None for shares of the closed loop's rate.
    p95_s: also find the highest rate at which 95 % of the requests take no longer.
    """

    sizes: tuple[int, ...] = (1, 10, 100)
    clients: int = 16
    seconds: float = 10.0
    rate: float | None = None
    p95_s: float | None = None


@dataclass(frozen=True)
class ServedLoad:
    """A load and its figures; `rate` is that of its arrivals, None of a closed loop.

    p95_kept: whether 95 % of the requests kept the time that was asked for, None if none was.
    """

    rate: float | None
    p95_kept: bool | None
    summary: Summary


@dataclass(frozen=True)
class Server:
    """A server under each load.

    name: the variant that it scores by, or its address.
    bare_pairs_per_s: the speed of the variant's scorer without a server, None where unknown.
    best_rate: the most requests a second of which 95 % kept the time. None if no time was given,
        or none of the rates kept it.
    """

    name: str
    bare_pairs_per_s: float | None
    best_rate: float | None
    loads: tuple[ServedLoad, ...]


@dataclass(frozen=True)
class Served:
    """All servers, the load that they had, and what it ran on."""

    data: str
    settings: LoadSettings
    threads: int
    cores: int
    machine: str
    versions: dict[str, str]
    served: tuple[Server, ...]


def bench_variants(
    folder: ModelFolder,
    candidates: Candidates,
    variants: Sequence[str],
    settings: LoadSettings,
    *,
    threads: int | None = None,
) -> Served:
    """Put the load on a server of each variant, in a fresh process, one after the other.

    Before that its scorer runs on the same pairs without a server. The key of the environment
    variable XOPT_API_KEY is that of the servers and of the client.

    Raises BadInput where the candidates are too few, or a server does not start.
    """
    requests = requests_of(candidates, settings.sizes)
    servers = []
    for variant in variants:
        bare = None
        if settings.rate is None:  # else nothing finds the highest rate, to compare with
            with _step(f"{variant}, its scorer without a server"):
                bare = _bare_rate(folder, variant, requests, threads)
        with _started(folder, variant, threads) as address:
            servers.append(_loaded(variant, _target(address), requests, settings, bare))
    return _result(candidates, settings, servers, threads)


def bench_server(url: str, candidates: Candidates, settings: LoadSettings) -> Served:
    """Put the load on a server that runs, of any reranker that takes `documents`.

    The path is /v1/rerank unless the address has one. The key of the environment variable
    XOPT_API_KEY goes with each request.

    Raises BadInput where it cannot be reached or answers with an error.
    """
    target = _target(url)
    requests = requests_of(candidates, settings.sizes)
    server = _loaded(url, target, requests, settings, None)
    return _result(candidates, settings, [server], None)


def _result(
    candidates: Candidates, settings: LoadSettings, servers: Sequence[Server], threads: int | None
) -> Served:
    return Served(
        data=candidates.name,
        settings=settings,
        threads=threads or cores(),
        cores=cores(),
        machine=cpu_name(),
        versions=versions_here(),
        served=tuple(servers),
    )


@contextmanager
def _step(title: str) -> Iterator[None]:
    """Say what is done, and show it while it lasts."""
    log.info("%s", title)
    with progress(title):
        yield


# Requests


def requests_of(candidates: Candidates, sizes: Sequence[int]) -> list[Request]:
    """Return a request of each size for each query, mixed, always in the same way."""
    texts = list(dict.fromkeys(row.text for row in candidates.rows))
    if len(texts) < max(sizes):
        raise BadInput(
            f"{candidates.name}: has {len(texts)} different documents, and `sizes={max(sizes)}` "
            "asks for more; give more data, or a smaller size"
        )
    places = {text: place for place, text in enumerate(texts)}
    requests = []
    for rows in itertools.islice(candidates.groups().values(), MOST_QUERIES):
        own = [row.text for row in candidates.rows[rows]]
        chosen = _documents(own, texts, places[own[0]], max(sizes))
        query = candidates.rows[rows.start].query
        requests += [rerank_request(query, chosen[:size]) for size in sizes]
    random.Random(0).shuffle(requests)
    return requests


def _documents(own: Sequence[str], texts: Sequence[str], place: int, count: int) -> list[str]:
    """Return different documents: a query's own, then those that follow in the data."""
    chosen: dict[str, None] = {}
    for text in itertools.chain(own, texts[place:], texts[:place]):
        if len(chosen) == count:
            break
        chosen[text] = None
    return list(chosen)


# The scorer alone


def _bare_rate(
    folder: ModelFolder, variant: str, requests: Sequence[Request], threads: int | None
) -> float:
    """Return the pairs a second of a scorer on pairs of the requests, each once."""
    distinct: dict[Pair, None] = {}
    for request in requests:
        distinct.update(dict.fromkeys(request.pairs))
        if len(distinct) >= BARE_PAIRS:
            break
    pairs = list(distinct)[:BARE_PAIRS]
    scorer = open_scorer(folder, variant, threads=threads)
    scorer.score(pairs)  # some backends compile for each new shape
    start_s = time.perf_counter()
    scorer.score(pairs)
    return len(pairs) / (time.perf_counter() - start_s)


# The server


@contextmanager
def _started(folder: ModelFolder, variant: str, threads: int | None) -> Iterator[str]:
    """Yield the address of a server in a fresh process, when it has warmed up."""
    command = [sys.executable, "-m", "xopt", "serve", str(folder.path.resolve())]
    command += ["--variant", variant, "--port", "0"]
    if threads is not None:
        command += ["--threads", str(threads)]
    if folder.trusted:
        command.append("--trust-remote-code")
    with tempfile.NamedTemporaryFile("w", prefix="xopt-bench-", suffix=".err") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            with _step(f"{variant}, its server starts"):
                address = _address(process, Path(errors.name), variant)
            yield address
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], errors: Path, variant: str) -> str:
    """Wait until the server says where it listens."""
    while True:
        has_ended = process.poll() is not None
        said = errors.read_text(encoding="utf-8", errors="replace")
        found = ADDRESS.search(said)
        if found:
            return found[0]
        if has_ended:
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise BadInput(f"the server of {variant} did not start: {last.removeprefix('Error: ')}")
        time.sleep(LOOK_S)


def _target(url: str) -> Target:
    """Return where to send requests, with the key of the environment."""
    scheme, _, rest = url.partition("://")
    if scheme not in {"http", "https"} or not rest.strip("/"):
        raise BadInput(
            f"`serve={url}`: is no address; give http://HOST:PORT, or the option without a value "
            "behind DIR"
        )
    _, _, path = rest.partition("/")
    key = os.environ.get("XOPT_API_KEY")
    return Target(
        url=url if path else url.rstrip("/") + PATH,
        headers={"Authorization": f"Bearer {key}"} if key else None,
        timeout_s=PATIENCE_S,
    )


# The loads


def _loaded(
    name: str,
    target: Target,
    requests: Sequence[Request],
    settings: LoadSettings,
    bare: float | None,
) -> Server:
    """Put all loads on a server."""
    check_server(target, requests[0])

    def closed() -> ServedLoad:
        with _step(f"{name}, {settings.clients} clients, each with its next request at once"):
            load = closed_loop(target, requests, clients=settings.clients, seconds=settings.seconds)
        return _figures(load, None, settings)

    def at(rate: float) -> ServedLoad:
        with _step(f"{name}, {rate:.1f} requests a second"):
            load = open_loop(target, requests, rate=rate, seconds=settings.seconds)
        return _figures(load, rate, settings)

    if settings.rate is not None:
        return Server(name, bare, None, (at(settings.rate),))
    first = closed()
    highest = first.summary.requests_per_s
    if not highest:
        raise BadInput(
            f"{name}: answered no request in {settings.seconds:g} s; give `seconds=` more, or "
            "smaller `sizes=`"
        )
    if settings.p95_s is None:
        opened = [at(share * highest) for share in SHARES]
        return Server(name, bare, None, (first, *opened))
    opened = search(at, highest)
    kept = [load.rate for load in opened if load.p95_kept and load.rate is not None]
    return Server(name, bare, max(kept, default=None), (first, *opened))


def _figures(load: Load, rate: float | None, settings: LoadSettings) -> ServedLoad:
    kept = None
    if rate is not None and settings.p95_s is not None:
        kept = load.share_within(settings.p95_s) >= 0.95
    return ServedLoad(rate, kept, summarise(load))


def search(at: Callable[[float], ServedLoad], highest: float) -> list[ServedLoad]:
    """Try rates by halving the gap between one that keeps the time and one that does not."""
    tried = []
    low = 0.0
    high = highest
    for _ in range(HALVINGS):
        rate = (low + high) / 2
        found = at(rate)
        tried.append(found)
        if found.p95_kept:
            low = rate
        else:
            high = rate
    return tried
