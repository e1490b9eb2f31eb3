"""Load on a server: requests in a closed or an open loop, and how it answered them.

In a closed loop each of some clients asks again as soon as it is answered, which finds the highest
rate. In an open loop requests arrive at a rate, whether or not earlier ones are answered. There a
request's time counts from when it was to arrive, so that it includes all waiting (G. Tene, "How
not to measure latency", 2013). Needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import aiohttp
import numpy as np

from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import Pair

if sys.platform == "win32":  # which uvloop is not made for
    from asyncio import run
else:
    from uvloop import run

__all__ = [
    "Answer",
    "Load",
    "Request",
    "SizeSummary",
    "Summary",
    "Target",
    "check_server",
    "closed_loop",
    "open_loop",
    "rerank_request",
    "summarise",
]

Outcome = Literal["answered", "refused", "timed_out", "cancelled", "failed"]
OUTCOMES: dict[int, Outcome] = {
    200: "answered",
    429: "refused",
    503: "refused",
    504: "timed_out",
}
CANCELLED = "the client gave up"
# More requests at once wait here, and that counts; a process may open some 1,000 files.
MOST_CONNECTIONS = 512
WARM_UP_S = 1.0


@dataclass(frozen=True)
class Request:
    """A prepared request: its body, and the pairs that it asks to score."""

    body: bytes
    pairs: tuple[Pair, ...]

    @property
    def documents(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Target:
    """Where requests go, by POST.

    timeout_s: after so long the client gives up and closes the connection; None for never.
    """

    url: str
    headers: Mapping[str, str] | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class Answer:
    """What became of one request. All times are in seconds since the load began.

    intended_s: when it was to be sent; sent_s: when it was.
    status: that of HTTP; None where no answer came.
    size: of the answer's body in bytes.
    fault: why no answer came.
    """

    documents: int
    intended_s: float
    sent_s: float
    ended_s: float
    status: int | None
    size: int = 0
    fault: str = ""

    @property
    def took_s(self) -> float:
        """How long a user waits who comes at the intended time."""
        return self.ended_s - self.intended_s

    @property
    def outcome(self) -> Outcome:
        if self.status is None:
            return "cancelled" if self.fault == CANCELLED else "failed"
        return OUTCOMES.get(self.status, "failed")


@dataclass(frozen=True)
class Load:
    """All answers of a load, whose first `warm_up_s` seconds do not count.

    seconds: how long requests were sent, the warm-up included.
    cpu_s: what it took to send and receive, in CPU seconds of this process.
    wall_s: from the first request to the last answer.
    """

    answers: tuple[Answer, ...]
    warm_up_s: float
    seconds: float
    wall_s: float
    cpu_s: float

    @property
    def counted(self) -> list[Answer]:
        """The requests that were to be sent after the warm-up."""
        return [answer for answer in self.answers if answer.intended_s >= self.warm_up_s]

    def share_within(self, seconds: float) -> float:
        """Return the share of the counted requests that were answered within so long."""
        counted = self.counted
        soon = [
            answer
            for answer in counted
            if answer.outcome == "answered" and answer.took_s <= seconds
        ]
        return len(soon) / len(counted) if counted else 0.0


@dataclass(frozen=True)
class SizeSummary:
    """The requests of one size: how many were answered, and in how many seconds.

    The percentiles are of answered requests only, NaN without any.
    """

    documents: int
    sent: int
    answered: int
    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True)
class Summary:
    """A load in figures.

    - Rates count what was answered between the warm-up and the end of sending.
    - All else counts what was to be sent in that time, and waits for its answer.

    refused: 429 or 503. timed_out: 504. cancelled: the client gave up. failed: all else.
    late_p99_s: how late the generator was, which the requests' times include.
    generator_cores: CPU seconds of the generator a second.
    """

    requests_per_s: float
    pairs_per_s: float
    sent: int
    answered: int
    refused: int
    timed_out: int
    cancelled: int
    failed: int
    all_sizes: SizeSummary
    sizes: tuple[SizeSummary, ...]
    late_p99_s: float
    generator_cores: float


def rerank_request(query: str, texts: Sequence[str]) -> Request:
    """Prepare a request in the form that Cohere, Jina, vLLM, infinity and xopt take."""
    body = {"model": "default", "query": query, "documents": list(texts)}
    return Request(json.dumps(body).encode(), tuple((query, text) for text in texts))


def check_server(target: Target, request: Request) -> None:
    """Send one request. Raises BadInput where no JSON comes back with status 200."""

    async def first() -> tuple[int, bytes]:
        async with (
            _session(target) as session,
            session.post(target.url, data=request.body) as reply,
        ):
            return reply.status, await reply.read()

    try:
        status, content = run(first())
        text = content.decode(errors="replace")
        if status == 200:
            json.loads(text)
    except asyncio.TimeoutError as error:
        raise BadInput(
            f"{target.url}: gives no answer in {target.timeout_s:g} s; is its server ready?"
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise BadInput(
            f"{target.url}: cannot be reached ({error}); start its server, or check the address"
        ) from error
    except ValueError as error:
        raise BadInput(
            f"{target.url}: answers no JSON but {text[:60]!r}; give the path of a reranker, as in "
            "http://HOST:PORT/v1/rerank"
        ) from error
    if status != 200:
        raise BadInput(
            f"{target.url}: answers with status {status} ({text[:200]}); check its path, and the "
            "key in XOPT_API_KEY"
        )


def closed_loop(
    target: Target,
    requests: Sequence[Request],
    *,
    clients: int,
    seconds: float,
    warm_up_s: float = WARM_UP_S,
) -> Load:
    """Let each of some clients send its next request as soon as it has an answer.

    They take the requests by turns, from the first again after the last, for `warm_up_s` and then
    `seconds`.
    """
    ending_s = warm_up_s + seconds
    following = itertools.cycle(requests)

    async def client(sender: _Sender) -> None:
        while (now_s := sender.now_s()) < ending_s:
            await sender.send(next(following), now_s)

    async def drive(sender: _Sender) -> None:
        await asyncio.gather(*(client(sender) for _ in range(clients)))

    return _run(target, drive, warm_up_s, ending_s)


def open_loop(
    target: Target,
    requests: Sequence[Request],
    *,
    rate: float,
    seconds: float,
    warm_up_s: float = WARM_UP_S,
    seed: int = 0,
) -> Load:
    """Send requests at a rate a second, at random times: a Poisson process.

    It takes the requests in turn, from the first again after the last, for `warm_up_s` and then
    `seconds`. It then waits for all answers.
    """
    ending_s = warm_up_s + seconds
    following = itertools.cycle(requests)

    async def drive(sender: _Sender) -> None:
        sent = []
        for arrival_s in _arrivals(rate, ending_s, seed):
            await asyncio.sleep(max(0.0, arrival_s - sender.now_s()))
            # The loop's timer counts milliseconds, and may be early by one.
            intended_s = min(arrival_s, sender.now_s())
            sent.append(asyncio.ensure_future(sender.send(next(following), intended_s)))
        await asyncio.gather(*sent)

    return _run(target, drive, warm_up_s, ending_s)


def _arrivals(rate: float, ending_s: float, seed: int) -> Iterator[float]:
    """Yield when requests arrive until then; the gaps are exponential."""
    random = np.random.default_rng(seed)
    arrival_s = random.exponential(1 / rate)
    while arrival_s < ending_s:
        yield arrival_s
        arrival_s += random.exponential(1 / rate)


class _Sender:
    """Sends requests over connections that it keeps, and notes the answers."""

    def __init__(self, target: Target, session: aiohttp.ClientSession) -> None:
        self.target = target
        self.session = session
        self.answers: list[Answer] = []
        self.began_s = time.perf_counter()

    def now_s(self) -> float:
        return time.perf_counter() - self.began_s

    async def send(self, request: Request, intended_s: float) -> None:
        """Send a request, and note what came of it."""
        sent_s = self.now_s()
        status = None
        size = 0
        fault = ""
        try:
            async with self.session.post(self.target.url, data=request.body) as reply:
                size = len(await reply.read())
                status = reply.status
        except asyncio.TimeoutError:
            fault = CANCELLED
        except (aiohttp.ClientError, OSError) as error:
            fault = str(error) or type(error).__name__
        self.answers.append(
            Answer(request.documents, intended_s, sent_s, self.now_s(), status, size, fault)
        )


@contextlib.asynccontextmanager
async def _session(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS),
        timeout=aiohttp.ClientTimeout(total=target.timeout_s),
        headers={"Content-Type": "application/json", **(target.headers or {})},
    ) as session:
        yield session


def _run(
    target: Target, drive: Callable[[_Sender], Awaitable[None]], warm_up_s: float, seconds: float
) -> Load:
    """Run a loop in this thread to its end."""

    async def load() -> Load:
        async with _session(target) as session:
            cpu_s = time.thread_time()
            sender = _Sender(target, session)
            await drive(sender)
            return Load(
                answers=tuple(sender.answers),
                warm_up_s=warm_up_s,
                seconds=seconds,
                wall_s=sender.now_s(),
                cpu_s=time.thread_time() - cpu_s,
            )

    return run(load())


def summarise(load: Load) -> Summary:
    """Put a load into figures."""
    window_s = load.seconds - load.warm_up_s
    done = [
        answer
        for answer in load.answers
        if answer.outcome == "answered" and load.warm_up_s <= answer.ended_s < load.seconds
    ]
    counted = load.counted
    outcomes = Counter(answer.outcome for answer in counted)
    sizes = sorted({answer.documents for answer in counted})
    by_size = []
    for size in sizes:
        of_size = [answer for answer in counted if answer.documents == size]
        by_size.append(_size_summary(size, of_size))
    return Summary(
        requests_per_s=len(done) / window_s,
        pairs_per_s=sum(answer.documents for answer in done) / window_s,
        sent=len(counted),
        answered=outcomes["answered"],
        refused=outcomes["refused"],
        timed_out=outcomes["timed_out"],
        cancelled=outcomes["cancelled"],
        failed=outcomes["failed"],
        all_sizes=_size_summary(0, counted),
        sizes=tuple(by_size),
        late_p99_s=_percentile([answer.sent_s - answer.intended_s for answer in counted], 99),
        generator_cores=load.cpu_s / load.wall_s if load.wall_s else 0.0,
    )


def _size_summary(documents: int, answers: Sequence[Answer]) -> SizeSummary:
    took_s = [answer.took_s for answer in answers if answer.outcome == "answered"]
    return SizeSummary(
        documents=documents,
        sent=len(answers),
        answered=len(took_s),
        p50_s=_percentile(took_s, 50),
        p95_s=_percentile(took_s, 95),
        p99_s=_percentile(took_s, 99),
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")
