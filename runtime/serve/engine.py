"""Scores the pairs of many requests: fair by tokens, in time, and only for who still waits.

A request's pairs wait by width. Each caller of the scorer's plan is a thread that asks for the
next forward. It leads off with the request that has had the fewest tokens so far (start-time fair
queueing, Goyal, Vin and Cheng 1997), and is filled up with pairs of the same width, whosever they
are. So a small request passes between the forwards of a large one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import Pair, Tokens
from xopt.runtime.scoring.plan import WIDTH_STEP, Forward
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.serve.metrics import Metrics

__all__ = ["Closed", "Engine", "Overloaded", "TimedOut", "Work"]

# How fast the measured rates follow: the share of a new value.
FOLLOWING = 0.1
# Tokens a character, before any text was seen.
FIRST_TOKENS_PER_CHARACTER = 0.3
WARM_UP_ROUNDS = 3


class Overloaded(Exception):
    """The queue is too long for this request; `retry_s` says when to come again."""

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_s:.0f} s")
        self.retry_s = retry_s


class TimedOut(Exception):
    """A request's time was over before its pairs were scored."""


class Closed(Exception):
    """The engine takes no more requests."""


@dataclass(eq=False)
class Work:
    """One request's distinct pairs on their way through the engine.

    deadline_s: when its time is over, by time.monotonic.
    served: tokens that it has had, counted from the queue's state when it came.
    rows: of its pairs those that wait, by width.
    """

    tokens: Tokens
    deadline_s: float
    done: Future[NDArray[np.float32]]
    logits: NDArray[np.float32]
    left: int
    rows: dict[int, deque[int]] = field(default_factory=dict)
    served: float = 0.0
    queued_s: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        return self.done.done()


@dataclass(frozen=True)
class _Batch:
    """A forward's pairs, of one request or several."""

    members: list[tuple[Work, int]]
    tokens: Tokens
    forward: Forward
    alone: bool


class Engine:
    """Runs a scorer for many requests; `on_death` is called if a forward fails unexpectedly."""

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
        self._waiting: list[Work] = []
        self._reserved = 0.0  # tokens of requests that are let in and not scored yet
        self._running = 0
        self._virtual = 0.0  # tokens that the leading request had had
        self._changed = threading.Condition()
        self._closed = False
        self._callers = [
            threading.Thread(target=self._call, name=f"xopt-caller-{number}", daemon=True)
            for number in range(scorer.plan.callers)
        ]

    def start(self, pairs: Sequence[Pair]) -> None:
        """Warm up on some pairs, which gives the first rate, and begin to take requests."""
        for _ in range(WARM_UP_ROUNDS):
            start_s = time.monotonic()
            tokens = self.scorer.encode(pairs)
            self.scorer.score_tokens(tokens)
            self.tokens_per_s = int(tokens.lengths.sum()) / (time.monotonic() - start_s)
        for caller in self._callers:
            caller.start()

    def close(self) -> None:
        """End the callers; what waits is not scored."""
        self._shut()
        for caller in self._callers:
            caller.join()

    def _shut(self) -> None:
        with self._changed:
            self._closed = True
            for work in self._waiting:
                if not work.is_over:
                    work.done.set_exception(Closed())
            self._waiting = []
            self._changed.notify_all()

    def _die(self, error: BaseException) -> None:
        """Take no more, since a forward failed in a way that nobody foresaw."""
        self._shut()
        self._on_death(error)

    @property
    def queued_tokens(self) -> float:
        """The tokens of all requests that are let in and not scored yet."""
        return self._reserved

    @property
    def queued_requests(self) -> int:
        return len(self._waiting)

    def admit(self, pairs: Sequence[Pair], seconds: float) -> float:
        """Let a request in that has `seconds`, and return the tokens that it is expected to have.

        Raises Overloaded where the tokens before it and its own take longer, or longer than
        `longest_wait_s` where others wait. Nothing was tokenised then.
        """
        longest = self.scorer.encoder.max_length
        characters = np.array([len(query) + len(text) for query, text in pairs])
        expected = float(np.minimum(characters * self._tokens_per_character + 1, longest).sum())
        with self._changed:
            if self._closed:
                raise Closed
            before_s = self._reserved / self.tokens_per_s
            own_s = expected / self.tokens_per_s
            if self._reserved and before_s + own_s > min(seconds, self.longest_wait_s + own_s):
                raise Overloaded(max(1.0, before_s + own_s - seconds, before_s / 2))
            self._reserved += expected
        return expected

    def release(self, expected: float) -> None:
        """Take back what `admit` counted, when a request has ended, however it did."""
        with self._changed:
            self._reserved = max(0.0, self._reserved - expected)

    def tokenise(self, pairs: Sequence[Pair]) -> Tokens:
        """Tokenise pairs, and learn how many tokens characters make."""
        tokens = self.scorer.encode(pairs)
        characters = sum(len(query) + len(text) for query, text in pairs)
        if characters and not tokens.truncated:
            rate = int(tokens.lengths.sum()) / characters
            self._tokens_per_character += FOLLOWING * (rate - self._tokens_per_character)
        return tokens

    def submit(self, tokens: Tokens, deadline_s: float) -> Work:
        """Let tokenised pairs wait for their forwards; cancel `Work.done` to give them up."""
        shape = (len(tokens.ids), self.scorer.labels)[: 1 + (self.scorer.labels > 1)]
        work = Work(tokens, deadline_s, Future(), np.empty(shape, np.float32), len(tokens.ids))
        for row in np.argsort(-tokens.lengths, kind="stable"):
            width = self._width(int(tokens.lengths[row]))
            work.rows.setdefault(width, deque()).append(int(row))
        with self._changed:
            if self._closed:
                raise Closed
            work.served = self._virtual
            self._waiting.append(work)
            self._changed.notify()
        return work

    def _width(self, length: int) -> int:
        multiple = self.scorer.backend.step or WIDTH_STEP
        return min(-(-length // multiple) * multiple, self.scorer.encoder.max_length)

    def _call(self) -> None:
        """Run forwards until the engine is closed."""
        while True:
            with self._changed:
                batch = self._next()
                while batch is None and not self._closed:
                    self._changed.wait()
                    batch = self._next()
                if batch is None:
                    return
                self._running += 1
            start_s = time.monotonic()
            try:
                logits = self.scorer.run(batch.tokens, batch.forward, batch.alone)
            except BadInput as error:  # out of memory, with this pair alone
                self._fail(batch, error)
            except BaseException as error:
                self._fail(batch, error)
                self._die(error)
                return
            else:
                self._deliver(batch, logits)
            finally:
                with self._changed:
                    self._running -= 1
            self._measure(batch, time.monotonic() - start_s)

    def _next(self) -> _Batch | None:
        """Take the next forward's pairs; the lock is held."""
        self._drop_what_is_over()
        works = sorted(self._waiting, key=lambda work: work.served)
        if not works:
            return None
        lead = works[0]
        width = next(iter(lead.rows))
        room = max(1, self.scorer.plan.tokens // width)
        members = [(lead, row) for row in lead.rows[width]][:room]
        for work in works[1:]:
            free = room - len(members)
            members += [(work, row) for row in work.rows.get(width, ())][:free]
        lengths = np.array([work.tokens.lengths[row] for work, row in members])
        # The planner says how many of them may run together on this backend.
        count = len(self.scorer.planned(lengths)[0].rows)
        members = members[:count]
        for work, _ in members:
            self._take(work, width)
        alone = not self._waiting and not self._running
        parts = [work.tokens.taken(np.array([row])) for work, row in members]
        forward = Forward(np.arange(count), width)
        return _Batch(members, Tokens.joined(parts), forward, alone)

    def _take(self, work: Work, width: int) -> None:
        """Take the first waiting pair of a width out of a request."""
        row = work.rows[width].popleft()
        work.served += int(work.tokens.lengths[row])
        self._virtual = max(self._virtual, min(each.served for each in self._waiting))
        if not work.rows[width]:
            del work.rows[width]
        if not work.rows:
            self._waiting.remove(work)

    def _drop_what_is_over(self) -> None:
        """Forget requests whose client has left, and end those whose time is over."""
        now_s = time.monotonic()
        kept = []
        for work in self._waiting:
            if work.is_over:
                self.metrics.cancelled.inc()
            elif work.deadline_s < now_s:
                work.done.set_exception(TimedOut())
            else:
                kept.append(work)
        self._waiting = kept

    def _deliver(self, batch: _Batch, logits: NDArray[np.float32]) -> None:
        """Give each request its logits, and end those that have all."""
        with self._changed:
            for (work, row), logit in zip(batch.members, logits, strict=True):
                work.logits[row] = logit
                work.left -= 1
                if not work.left and not work.is_over:
                    work.done.set_result(work.logits)

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        with self._changed:
            for work, _ in batch.members:
                if not work.is_over:
                    work.done.set_exception(error)

    def _measure(self, batch: _Batch, seconds: float) -> None:
        """Follow the rate of all callers together."""
        tokens = int(batch.tokens.lengths.sum())
        callers = 1 if batch.alone else len(self._callers)
        self.metrics.forwarded(len(batch.members), tokens, seconds)
        rate = callers * tokens / max(seconds, 1e-6)
        with self._changed:
            self.tokens_per_s += FOLLOWING * (rate - self.tokens_per_s)
