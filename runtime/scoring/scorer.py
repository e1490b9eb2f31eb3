"""Scorers: a variant, a plan, and `score(pairs)`."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput, NotFinite
from xopt.runtime.folder import ModelFolder, Plan, Variant
from xopt.runtime.machine import cores, machine_name
from xopt.runtime.scoring.backends.backend import Backend, OutOfMemory
from xopt.runtime.scoring.encode import Encoder, Encoding, Pair, Tokens, check_pairs, windows
from xopt.runtime.scoring.plan import Forward, default_plan, plan_forwards
from xopt.runtime.scoring.stages import Stages, Stopwatch
from xopt.runtime.scoring.variants import BACKENDS, check_variant

__all__ = ["PlannedScorer", "Scorer", "checked", "find_plan", "open_scorer"]

log = logging.getLogger(__name__)


class Scorer(ABC):
    """Anything that scores pairs, and knows where its time went."""

    @property
    @abstractmethod
    def stages(self) -> Stages:
        """Where the time of all calls so far went."""

    @abstractmethod
    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """As `score`, where NaN and infinities are left for the caller to see."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Logits of (query, document) pairs in the order given: float32[n], or float32[n, labels]
        of several labels.

        Identical pairs are scored once. Raises BadInput where a pair is not two texts, or one
        alone does not fit into the device's memory, and NotFinite where a logit is NaN or
        infinite. Pairs longer than the model are cut as the reference cuts them and counted in
        `stages`.
        """
        pairs = list(pairs)  # an iterator can be read once
        return checked(pairs, self.logits(pairs))


def checked(pairs: Sequence[Pair], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits of pairs. Raises NotFinite, with the first pair, where one of them is NaN or
    infinite.
    """
    sound = np.isfinite(logits) if logits.ndim == 1 else np.isfinite(logits).all(1)
    if not sound.all():
        first = int(np.argmin(sound))
        query, text = pairs[first]
        raise NotFinite(
            f"{int((~sound).sum())} of {len(pairs)} scores are not finite, first that of pair {first} "
            f"({query!r:.60}, {text!r:.60}): the weights are damaged, or half precision overflows; try onnx-fp32"
        )
    return logits


@dataclass(frozen=True)
class _Started:
    """A forward that a device has done or works at: its rows, its logits there, marks around load
    and forward.
    """

    rows: NDArray[np.intp]
    output: Any
    marks: tuple[Any, Any, Any]
    width: int
    text_tokens: int


class _Alone:
    """A second backend, with the threads of all callers in one, for a forward that is the only
    one of its call.

    It is opened when it is first asked for. Who comes while it is at work is better served by a
    caller's own threads.
    """

    def __init__(self, open_it: Callable[[], Backend]) -> None:
        self._open, self._lock = open_it, threading.Lock()
        self._backend: Backend | None = None

    @contextlib.contextmanager
    def free(self) -> Iterator[Backend | None]:
        """The backend, or None while it is at work."""
        if not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            self._backend = self._backend or self._open()
            yield self._backend
        finally:
            self._lock.release()


class PlannedScorer(Scorer):
    """Scores pairs in three steps: encode, forward, finish."""

    def __init__(
        self,
        encoder: Encoder,
        backend: Backend,
        plan: Plan,
        labels: int,
        reopen: Callable[..., PlannedScorer],
        alone: _Alone,
    ) -> None:
        self.encoder, self.backend, self.plan, self.labels, self._reopen = (
            encoder,
            backend,
            plan,
            labels,
            reopen,
        )
        self._alone = alone
        self._watch = Stopwatch(plan.callers)

    @property
    def stages(self) -> Stages:
        """Where the time of all calls so far went."""
        return self._watch.stages

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """As `score`, NaN included. Where forwards do not fit into memory, `plan` halves its
        tokens, with a warning.
        """
        pairs = list(pairs)
        check_pairs(pairs)
        place: dict[Pair, int] = {}
        places = [place.setdefault((query, text), len(place)) for query, text in pairs]
        started: list[_Started] = []
        first = 0
        for tokens in self._encoded(list(place)):
            started += self._start(tokens, first)
            first += len(tokens.ids)
        return self._finish(started, len(place))[places]

    def with_plan(self, plan: Plan) -> PlannedScorer:
        """A scorer of the same open backend, whose threads stay as they are, with other callers
        and tokens.
        """
        return PlannedScorer(
            self.encoder, self.backend, plan, self.labels, self._reopen, self._alone
        )

    def with_prompt(self, prompt: str) -> PlannedScorer:
        """A scorer of the same open backend, with another prompt before each query."""
        encoder = copy.copy(self.encoder)
        encoder.prompt = prompt
        reopen = functools.partial(_with_prompt, self._reopen, prompt)
        return PlannedScorer(encoder, self.backend, self.plan, self.labels, reopen, self._alone)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is opened again: sessions and locks cannot be sent there."""
        return functools.partial(self._reopen, plan=self.plan), ()

    def encode(self, pairs: Sequence[Pair]) -> Tokens:
        """The tokens of pairs, for `score_tokens`; those that were cut are counted in `stages`."""
        start = time.monotonic()
        tokens = self.encoder.encode(pairs)
        self._watch.encoded(time.monotonic() - start, tokens.truncated)
        return tokens

    def score_tokens(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits of pairs that are tokenised already; see `score`."""
        return self._finish(self._start(tokens, 0), len(tokens.ids))

    def _encoded(self, pairs: list[Pair]) -> Iterator[Tokens]:
        """Tokens of all pairs, so that sorting sees them all; or, while a device works, of
        windows ahead of it.
        """
        if not self.backend.streams:
            yield self.encode(pairs)
            return
        ahead: deque[Future[list[Encoding]]] = deque()
        with ThreadPoolExecutor(self.plan.threads) as threads:
            for window in windows(pairs):
                ahead.append(threads.submit(self._encodings, pairs[window]))
                if len(ahead) > self.plan.threads:
                    yield self._tokens(ahead.popleft().result())
            while ahead:
                yield self._tokens(ahead.popleft().result())

    def _encodings(self, pairs: list[Pair]) -> list[Encoding]:
        start = time.monotonic()
        encodings = self.encoder.encodings(pairs)
        self._watch.encoded(time.monotonic() - start)
        return encodings

    def _tokens(self, encodings: list[Encoding]) -> Tokens:
        start = time.monotonic()
        tokens = self.encoder.tokens(encodings)
        self._watch.encoded(time.monotonic() - start, tokens.truncated)
        return tokens

    def _start(self, tokens: Tokens, first: int) -> list[_Started]:
        """Plan the forwards of `tokens`, whose first pair is number `first`, and start each."""
        start = time.monotonic()
        todo = deque(self.planned(tokens.lengths))
        started: list[_Started] = []
        while todo:
            try:
                if self.plan.callers > 1 and len(todo) > 1:
                    with ThreadPoolExecutor(self.plan.callers) as callers:
                        all_of_them = list(
                            callers.map(lambda forward: self._forward(tokens, forward, first), todo)
                        )
                    started += all_of_them
                    break
                with (
                    self._alone.free()
                    if self.plan.callers > 1
                    else contextlib.nullcontext() as other
                ):
                    started.append(self._forward(tokens, todo[0], first, other))
                todo.popleft()
            except OutOfMemory:
                todo = self._halved(tokens, todo)
        self._watch.ran(time.monotonic() - start)
        return started

    def _forward(
        self, tokens: Tokens, forward: Forward, first: int, other: Backend | None = None
    ) -> _Started:
        backend = other or self.backend
        mark = backend.clock.mark
        before = mark()
        batch = backend.load(tokens, forward)
        loaded = mark()
        output = backend.forward(batch)
        text = int(tokens.lengths[forward.rows].sum())
        return _Started(forward.rows + first, output, (before, loaded, mark()), forward.width, text)

    def _halved(self, tokens: Tokens, todo: Iterable[Forward]) -> deque[Forward]:
        """The forwards that are left, planned again with half the tokens."""
        forwards = list(todo)
        if len(forwards[0].rows) == 1:
            raise BadInput(
                f"out of memory with a single pair of {forwards[0].width} tokens; use a variant of half precision, a "
                "smaller model or a device with more memory"
            )
        half = max(1, self.plan.tokens // 2)
        log.warning(
            "out of memory with %d tokens a forward: going on with %d", self.plan.tokens, half
        )
        self.plan = replace(self.plan, tokens=half)
        rest = np.concatenate([forward.rows for forward in forwards])
        return deque(Forward(rest[f.rows], f.width) for f in self.planned(tokens.lengths[rest]))

    def planned(self, lengths: NDArray[np.int64]) -> list[Forward]:
        """The forwards that pairs of these lengths, int64[pairs], are run in."""
        return plan_forwards(lengths, self.plan.tokens, self.encoder.max_length, self.backend.step)

    def _finish(self, started: Sequence[_Started], pairs: int) -> NDArray[np.float32]:
        """Wait for all forwards, note their times and put their logits into the order of the
        pairs.
        """
        start = time.monotonic()
        logits = np.empty((pairs, self.labels), np.float32)
        if started:
            logits[np.concatenate([s.rows for s in started])] = self.backend.finish(
                [s.output for s in started]
            )
        for s in started:
            copied, took = (
                self.backend.clock.seconds(a, b) for a, b in itertools.pairwise(s.marks)
            )
            self._watch.forwarded(took, copied, len(s.rows), s.width, s.text_tokens)
        self._watch.ran(time.monotonic() - start)
        return logits[:, 0] if self.labels == 1 else logits


def _with_prompt(reopen: Callable[..., PlannedScorer], prompt: str, *, plan: Plan) -> PlannedScorer:
    return reopen(plan=plan).with_prompt(prompt)


def open_scorer(
    folder: str | Path | ModelFolder,
    variant: str = "onnx-fp32",
    *,
    plan: Plan | None = None,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> PlannedScorer:
    """Open a variant of a model folder.

    Without `plan`, the plan that `xopt tune` found for this machine is used, else a default for
    `threads` (all usable cores unless given). The ONNX scorer imports neither torch nor
    transformers. `trust_remote_code` lets torch variants run code that came with the model.
    Raises BadInput where the folder, the variant or the device is not there, or a file is
    damaged.
    """
    if threads is not None and threads < 1:
        raise BadInput(f"threads is {threads}; give at least 1, or leave it out for all cores")
    model = (
        folder if isinstance(folder, ModelFolder) else ModelFolder.open(folder, trust_remote_code)
    )
    chosen = model.variant(variant)
    check_variant(chosen, device)  # a plan is found for a device that is there
    plan = plan or find_plan(model, chosen, threads, device)
    open_it = functools.partial(BACKENDS[chosen.backend].open, model, chosen)
    one = replace(plan, callers=1, threads=plan.callers * plan.threads)
    alone = _Alone(lambda: open_it(one, device))
    here = replace(model, path=model.path.resolve())  # another process may work in another folder
    reopen = functools.partial(open_scorer, here, variant, device=device)
    return PlannedScorer(
        Encoder(model), open_it(plan, device), plan, model.manifest.labels, reopen, alone
    )


def find_plan(
    model: ModelFolder, variant: Variant, threads: int | None = None, device: str = "cpu"
) -> Plan:
    """The tuned plan for this machine, or the default one; on a CPU it serves only the threads it
    was found for.
    """
    tuned = model.manifest.plans.get(machine_name(device), {}).get(variant.name)
    if tuned is not None and (device == "cuda" or threads in (None, tuned.callers * tuned.threads)):
        return tuned
    return default_plan(variant.backend, threads or cores(), device)
