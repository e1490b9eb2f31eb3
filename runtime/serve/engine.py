"""Scores the pairs of many requests: fair by tokens, in time, and only for who still waits.

A request's pairs wait by width. Each caller of the scorer's plan is a thread that asks for the
next forward. Requests about as small as the smallest come first, in the order that they came in.
So requests of one size end in turn, and not all late. Where larger ones wait too, every fourth
forward goes to one of them: the one that has had the fewest tokens. Pairs of the same width fill
it up, whosever they are. So a small request passes between the forwards of large ones, however
many these are, and small ones starve no large one.

A large request that comes counts from what each has had that waited all the time. That is the
virtual time of fair queueing (Parekh and Gallager 1993).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Pair, Tokens, windows
from xopt.runtime.scoring.plan import WIDTH_STEP, Forward
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.serve.metrics import Metrics

__all__ = ["Closed", "Engine", "Overloaded", "QueuedRequest", "TimedOut"]

# The measured rate follows that of the last forwards, which took about so long.
FOLLOWING_S = 5.0
# Requests are of about one size up to so many times the smaller one. They come first in the order
# that they came in, and a larger one does not ride in the forward of a smaller one.
LARGER = 4
# Of so many forwards one goes to a larger request, where one waits.
LARGER_TURN = 4
# The share of a new value in the tokens a character.
FOLLOWING = 0.1
# Tokens a character, before any text was seen.
FIRST_TOKENS_PER_CHARACTER = 0.3


T = TypeVar("T")


class Overloaded(Exception):
    """The queue is too long for this request; `retry_s` says when to come again."""

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_s:.0f} s")
        self.retry_s = retry_s


class TimedOut(Exception):
    """A request's time was over before its pairs were scored."""

    def __init__(self) -> None:
        super().__init__("the time of this request is over")


class Closed(Exception):
    """The engine takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is starting or ending")


def _no_tokens() -> Tokens:
    return Tokens([], [], np.zeros(0, np.int64))


@dataclass(eq=False)
class QueuedRequest:
    """One request's distinct pairs on their way through the engine.

    deadline_s: when its time is over, by time.monotonic.
    expected_tokens: how large it is, by an estimate.
    left_tokens: what is not scored yet; the estimate until it is tokenised.
    came_s: when it was let in, by time.monotonic.
    done: the logits of what was submitted last. Whoever cancels it gives the request up.
    left_rows: how many pairs are not scored yet.
    waiting: of its pairs those that no forward has taken, by width, the widest first.
    served: tokens that it has had, counted from the queue's state when it came.
    """

    deadline_s: float
    expected_tokens: int
    left_tokens: int
    came_s: float = field(default_factory=time.monotonic)
    done: Future[NDArray[np.float32]] = field(default_factory=Future)
    tokens: Tokens = field(default_factory=_no_tokens)
    logits: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    left_rows: int = 0
    waiting: dict[int, deque[int]] = field(default_factory=dict)
    served: float = 0.0

    def fail(self, error: BaseException) -> None:
        """End it with an error, unless it has ended."""
        with contextlib.suppress(InvalidStateError):
            self.done.set_exception(error)

    def deliver(self, row: int, logit: NDArray[np.float32]) -> None:
        """Take a pair's logit, and end with the last one."""
        self.logits[row] = logit
        self.left_rows -= 1
        self.left_tokens -= int(self.tokens.lengths[row])
        if not self.left_rows:
            # Its client may leave at any moment, which cancels it.
            with contextlib.suppress(InvalidStateError):
                self.done.set_result(self.logits)


@dataclass(frozen=True)
class _Batch:
    """A forward's pairs, of one request or several.

    alone: nothing else runs or waits, so that it may have all threads.
    """

    members: list[tuple[QueuedRequest, int]]
    width: int
    alone: bool

    @property
    def tokens(self) -> Tokens:
        """The tokens of its pairs, in their order."""
        ids = [queued.tokens.ids[row] for queued, row in self.members]
        type_ids = [queued.tokens.type_ids[row] for queued, row in self.members]
        return Tokens(ids, type_ids, np.array([len(each) for each in ids], np.int64))

    def parts(self) -> list[_Batch]:
        """Return a batch for each pair."""
        return [_Batch([member], self.width, self.alone) for member in self.members]


class Engine:
    """Runs a scorer for many requests; `on_death` is called if a forward fails unexpectedly.

    A request is let in by `admit`, tokenised, given to `submit`, and ends with `release`.
    """

    def __init__(
        self,
        scorer: PlannedScorer,
        metrics: Metrics,
        longest_wait_s: float,
        on_death: Callable[[BaseException], None],
    ) -> None:
        self.scorer = scorer
        self.metrics = metrics
        self.longest_wait_s = longest_wait_s
        self.tokens_per_s = 1.0
        self._on_death = on_death
        self._tokens_per_character = FIRST_TOKENS_PER_CHARACTER
        self._admitted: set[QueuedRequest] = set()
        self._waiting: list[QueuedRequest] = []  # of those admitted, the ones with pairs that wait
        self._rows: Counter[int] = Counter()  # pairs that wait, by width
        self._running = 0
        self._turns = itertools.cycle(range(LARGER_TURN))
        self._virtual = 0.0  # tokens that a request has had which waited all the time
        self._changed = threading.Condition()
        self._closed = False
        self._tokenisers = ThreadPoolExecutor(cores(), "xopt-tokeniser")
        self._callers = [
            threading.Thread(target=self._call, name=f"xopt-caller-{number}", daemon=True)
            for number in range(scorer.plan.callers)
        ]

    def start(self, pairs: Sequence[Pair]) -> None:
        """Warm up on one pair and on all, which gives the first rate; begin to take requests."""
        for some in (pairs[:1], pairs, pairs):
            start_s = time.monotonic()
            tokens = self.scorer.encode(some)
            self.scorer.score_tokens(tokens)
            self.tokens_per_s = int(tokens.lengths.sum()) / (time.monotonic() - start_s)
        for caller in self._callers:
            caller.start()

    def close(self) -> None:
        """End the callers; what waits is not scored."""
        self._shut()
        self._tokenisers.shutdown()
        for caller in self._callers:
            caller.join()

    def _shut(self) -> None:
        with self._changed:
            self._closed = True
            for queued in self._admitted:
                queued.fail(Closed())
            self._waiting = []
            self._changed.notify_all()

    @property
    def queued_tokens(self) -> int:
        """The tokens of all requests that are let in and not scored yet."""
        with self._changed:
            return sum(queued.left_tokens for queued in self._admitted)

    @property
    def queued_requests(self) -> int:
        return len(self._admitted)

    def admit(self, pairs: Sequence[Pair], deadline_s: float) -> QueuedRequest:
        """Let a request in. Raises Overloaded where it would wait too long, and Closed.

        What is scored before it may not take longer than `longest_wait_s`, nor together with its
        own pairs longer than its time. Nothing is tokenised here.
        """
        longest = self.scorer.encoder.max_length
        characters = np.array([len(query) + len(text) for query, text in set(pairs)])
        expected = np.minimum(characters * self._tokens_per_character + 1, longest)
        own = int(expected.sum())
        with self._changed:
            if self._closed:
                raise Closed
            before = self._tokens_before(own)
            before_s = before / self.tokens_per_s
            late_s = before_s + own / self.tokens_per_s - (deadline_s - time.monotonic())
            if before and (before_s > self.longest_wait_s or late_s > 0):
                raise Overloaded(max(1.0, late_s, before_s - self.longest_wait_s))
            queued = QueuedRequest(deadline_s, own, own)
            self._admitted.add(queued)
        return queued

    def _tokens_before(self, own: int) -> float:
        """Return how many tokens are scored before a request of `own` tokens ends.

        Those are all of requests that are not larger, and what larger ones get in their turns.
        """
        of_first = 0
        of_larger = 0
        for queued in self._admitted:
            if queued.expected_tokens > LARGER * own:
                of_larger += queued.left_tokens
            else:
                of_first += queued.left_tokens
        return of_first + min(of_larger, (of_first + own) / (LARGER_TURN - 1))

    def release(self, queued: QueuedRequest) -> None:
        """Forget a request that has ended, however it did."""
        queued.done.cancel()
        with self._changed:
            self._admitted.discard(queued)

    async def beside(self, run: Callable[..., T], *arguments: Any) -> T:
        """Run what tokenises in a thread that is there for that."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenisers, run, *arguments)

    def tokenise(self, queued: QueuedRequest, pairs: Sequence[Pair]) -> Tokens:
        """Tokenise a request's pairs, and learn how many tokens characters make.

        Raises TimedOut where it is given up on the way, or its time is over.
        """
        parts = []
        for window in windows(pairs):
            if queued.done.done() or queued.deadline_s < time.monotonic():
                raise TimedOut
            parts.append(self.scorer.encode(pairs[window]))
        tokens = Tokens.joined(parts)
        characters = sum(len(query) + len(text) for query, text in pairs)
        if characters and not tokens.truncated:
            rate = int(tokens.lengths.sum()) / characters
            self._tokens_per_character += FOLLOWING * (rate - self._tokens_per_character)
        return tokens

    def submit(self, queued: QueuedRequest, tokens: Tokens, more_follow: bool = False) -> None:
        """Let a request's tokenised pairs wait for their forwards. Raises Closed.

        Where `more_follow`, it may bring more when all that it brought are scored. Each time
        `queued.done` is another one.
        """
        labels = self.scorer.labels
        rows = len(tokens.ids)
        queued.tokens = tokens
        queued.logits = np.empty(rows if labels == 1 else (rows, labels), np.float32)
        queued.left_rows = rows
        for row in np.argsort(-tokens.lengths, kind="stable"):
            width = self._width(int(tokens.lengths[row]))
            queued.waiting.setdefault(width, deque()).append(int(row))
        with self._changed:
            if self._closed:
                raise Closed
            if queued.done.done():
                queued.done = Future()
            expected = queued.left_tokens if more_follow else 0
            queued.left_tokens = max(expected, int(tokens.lengths.sum()))
            queued.served = max(queued.served, self._virtual)
            self._waiting.append(queued)
            self._rows.update({width: len(rows) for width, rows in queued.waiting.items()})
            # For one pair one caller: another would wake for nothing.
            self._changed.notify(rows)

    def _width(self, length: int) -> int:
        multiple = self.scorer.backend.step or WIDTH_STEP
        return min(-(-length // multiple) * multiple, self.scorer.encoder.max_length)

    def _call(self) -> None:
        """Run forwards until the engine is closed."""
        try:
            while True:
                batch = self._taken()
                if batch is None:
                    return
                try:
                    self._run(batch)
                finally:
                    with self._changed:
                        self._running -= 1
        except BaseException as error:  # no caller may die unseen
            self._shut()
            self._on_death(error)

    def _taken(self) -> _Batch | None:
        """Wait for the next forward, and count it as running; None when the engine is closed."""
        with self._changed:
            while not self._closed:
                batch = self._next()
                if batch is not None:
                    self._running += 1
                    return batch
                self._changed.wait()
        return None

    def _next(self) -> _Batch | None:
        """Take the next forward's pairs; the lock is held."""
        self._drop_what_is_over()
        if not self._waiting:
            return None
        least_served = min(queued.served for queued in self._waiting)
        members = self._fitting(self._in_turn())
        lengths = np.array([queued.tokens.lengths[row] for queued, row in members])
        # The planner says how many of them may run together on this backend.
        forward = self.scorer.planned(lengths)[0]
        members = members[: len(forward.rows)]
        token_count = int(lengths[: len(members)].sum())
        self._virtual = max(self._virtual, least_served) + token_count / len(self._waiting)
        for queued, row in members:
            self._take(queued, row)
        self._waiting = [queued for queued in self._waiting if queued.waiting]
        alone = not self._waiting and not self._running
        return _Batch(members, forward.width, alone)

    def _in_turn(self) -> list[QueuedRequest]:
        """Return the requests that wait, first the one whose turn it is."""
        smallest = min(queued.expected_tokens for queued in self._waiting)
        first: list[QueuedRequest] = []
        larger: list[QueuedRequest] = []
        for queued in self._waiting:
            is_larger = queued.expected_tokens > LARGER * smallest
            (larger if is_larger else first).append(queued)
        first.sort(key=lambda queued: queued.came_s)
        larger.sort(key=lambda queued: (queued.served, queued.came_s))
        if larger and next(self._turns) == 0:
            return larger + first
        return first + larger

    def _fitting(self, requests: list[QueuedRequest]) -> list[tuple[QueuedRequest, int]]:
        """Return pairs that fit into a forward with the first request's.

        First come those of one width, of all requests that are not larger. Then come narrower
        ones of its own, where the backend runs them together.
        """
        lead = requests[0]
        width = self._fullest(lead)
        room = self._room(width)
        most = LARGER * lead.expected_tokens
        wanted = [(queued, width) for queued in requests if queued.expected_tokens <= most]
        if not self.scorer.backend.step:
            wanted += [(lead, each) for each in lead.waiting if each < width]
        members: list[tuple[QueuedRequest, int]] = []
        for queued, each in wanted:
            rows = itertools.islice(queued.waiting.get(each, ()), room - len(members))
            members += [(queued, row) for row in rows]
        return members

    def _room(self, width: int) -> int:
        """Return how many pairs of a width a forward takes."""
        return max(1, self.scorer.plan.tokens // width)

    def _fullest(self, lead: QueuedRequest) -> int:
        """Return which of a request's widths fills a forward best; of equal ones the widest.

        A backend that pads takes the widest: the others fill up its forwards.
        """
        if not self.scorer.backend.step:
            return next(iter(lead.waiting))
        return max(
            lead.waiting, key=lambda width: width * min(self._rows[width], self._room(width))
        )

    def _take(self, queued: QueuedRequest, row: int) -> None:
        """Take a pair, the first of its width, out of those that wait."""
        length = int(queued.tokens.lengths[row])
        width = self._width(length)
        queued.waiting[width].popleft()
        self._rows[width] -= 1
        if not queued.waiting[width]:
            del queued.waiting[width]
        queued.served += length

    def _drop_what_is_over(self) -> None:
        """Forget requests that were given up or have failed, and end those whose time is over."""
        now_s = time.monotonic()
        still_waiting = []
        for queued in self._waiting:
            if queued.deadline_s < now_s:
                queued.fail(TimedOut())
            if queued.done.done():
                self._rows.subtract({width: len(rows) for width, rows in queued.waiting.items()})
            else:
                still_waiting.append(queued)
        self._waiting = still_waiting

    def _run(self, batch: _Batch) -> None:
        """Run a forward; one that needs too much memory pair by pair, so that one alone fails."""
        tokens = batch.tokens
        start_s = time.monotonic()
        forward = Forward(np.arange(len(batch.members)), batch.width)
        try:
            logits = self.scorer.run(tokens, forward, batch.alone)
        except BadInput as error:
            parts = batch.parts()
            if len(parts) == 1:
                batch.members[0][0].fail(error)
                return
            for part in parts:
                self._run(part)
            return
        with self._changed:
            for (queued, row), logit in zip(batch.members, logits, strict=True):
                queued.deliver(row, logit)
        self._measure(batch, int(tokens.lengths.sum()), time.monotonic() - start_s)

    def _measure(self, batch: _Batch, tokens: int, seconds: float) -> None:
        """Follow the rate of all callers together."""
        self.metrics.forwarded(len(batch.members), tokens, seconds)
        share = 1 - math.exp(-seconds / FOLLOWING_S)
        with self._changed:
            rate = self._running * tokens / max(seconds, 1e-6)
            self.tokens_per_s += share * (rate - self.tokens_per_s)
