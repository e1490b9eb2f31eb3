"""Scorers: a variant, a plan, and `score(pairs)`."""

from __future__ import annotations

import functools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput, NotFinite
from xopt.runtime.folder import ModelFolder, Plan, Variant
from xopt.runtime.machine import cores, machine_name
from xopt.runtime.progress import Step, progress
from xopt.runtime.scoring.backends.backend import Backend, OutOfMemory
from xopt.runtime.scoring.default import default_variant
from xopt.runtime.scoring.device import check_device
from xopt.runtime.scoring.encode import Encoder, Encoding, Pair, Tokens, check_pairs, windows
from xopt.runtime.scoring.plan import Forward, default_plan, plan_forwards
from xopt.runtime.scoring.stages import Stages, Stopwatch
from xopt.runtime.scoring.variants import BACKENDS, check_variant

__all__ = ["PlannedScorer", "Scorer", "checked", "find_plan", "open_scorer"]

log = logging.getLogger(__name__)


class Scorer(ABC):
    """Scores pairs, and knows where its time went."""

    @property
    @abstractmethod
    def stages(self) -> Stages:
        """Where the time of all calls so far went."""

    @abstractmethod
    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return the same as `score`, NaN and infinities included."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return the logits of (query, document) pairs in the order given.

        They are float32[n], or float32[n, labels] with several labels.
        Identical pairs are scored once.
        Pairs longer than the model are cut as the reference cuts them, and counted in `stages`.
        Raises BadInput where a pair is not two texts, or needs more memory than the device has.
        Raises NotFinite where a logit is NaN or infinite.
        """
        pairs = list(pairs)  # an iterator can be read once
        return checked(pairs, self.logits(pairs))


def checked(pairs: Sequence[Pair], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of pairs. Raises NotFinite where one is NaN or infinite."""
    finite = np.isfinite(logits) if logits.ndim == 1 else np.isfinite(logits).all(1)
    if not finite.all():
        first = int(np.argmin(finite))
        query, text = pairs[first]
        raise NotFinite(
            f"{int((~finite).sum())} of {len(pairs)} scores are not finite, first that of pair "
            f"{first} ({query!r:.60}, {text!r:.60}): the weights are damaged, "
            "or half precision overflows; try onnx-fp32"
        )
    return logits


@dataclass(frozen=True)
class _Window:
    """Pairs that are planned together: their tokens, the row of the first, and how far all are."""

    tokens: Tokens
    first: int
    step: Step


@dataclass(frozen=True)
class _Started:
    """A forward that a device has done or works at.

    `marks` are times before loading, after it, and after the forward.
    """

    rows: NDArray[np.intp]
    output: Any
    marks: tuple[Any, Any, Any]
    width: int
    text_tokens: int


@dataclass(eq=False, repr=False)
class PlannedScorer(Scorer):
    """Scores pairs in three steps: encode, forward, finish.

    `_reopen` opens it again in another process, of a plan and a prompt.
    Forwards that are the only one of their call, and long ones, run on a second backend, whose
    one caller has all threads. It is opened with the first of them, and has one user at a time.
    """

    encoder: Encoder
    backend: Backend
    plan: Plan
    labels: int
    variant: str
    _reopen: Callable[[Plan, str], PlannedScorer]
    _wide: dict[int, Backend] = field(default_factory=dict)  # by threads
    _wide_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._watch = Stopwatch()

    @property
    def stages(self) -> Stages:
        return self._watch.stages

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return the same as `score`, NaN and infinities included.

        Where forwards do not fit into memory, `plan` gets half the tokens, with a warning.
        """
        pairs = list(pairs)
        check_pairs(pairs)
        distinct: dict[Pair, int] = {}
        rows = [distinct.setdefault((query, text), len(distinct)) for query, text in pairs]
        started: list[_Started] = []
        first = 0
        token_count = 0
        with self._progress(len(distinct)) as step:
            for tokens in self._encoded(list(distinct)):
                token_count += int(tokens.lengths.sum())
                # of windows that are not tokenised yet, as many a pair
                stop = first + len(tokens.ids)
                step.work = token_count / max(1, stop) * len(distinct)
                started += self._start(_Window(tokens, first, step))
                first = stop
            return self._finish(started, len(distinct))[rows]

    def _progress(self, pairs: int) -> AbstractContextManager[Step]:
        return progress(f"{self.variant} scores", pairs, "pairs")

    def with_plan(self, plan: Plan) -> PlannedScorer:
        """Return a scorer of the same backend, and its threads, with another plan."""
        return replace(self, plan=plan)

    def with_prompt(self, prompt: str) -> PlannedScorer:
        """Return a scorer of the same backend with another prompt, which may be empty.

        Raises BadInput where the chat template holds one that cannot be replaced.
        """
        return replace(self, encoder=self.encoder.with_prompt(prompt))

    def __reduce__(self) -> tuple[Any, ...]:
        # Sessions and locks cannot be sent to another process.
        return self._reopen, (self.plan, self.encoder.prompt)

    def encode(self, pairs: Sequence[Pair]) -> Tokens:
        """Return the tokens of pairs, for `score_tokens`."""
        start = time.monotonic()
        tokens = self.encoder.encode(pairs)
        self._watch.encoded(time.monotonic() - start, tokens.truncated)
        return tokens

    def score_tokens(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return the logits of tokenised pairs; see `logits`."""
        with self._progress(len(tokens.ids)) as step:
            step.work = int(tokens.lengths.sum())
            return self._finish(self._start(_Window(tokens, 0, step)), len(tokens.ids))

    def run(self, tokens: Tokens, forward: Forward, alone: bool) -> NDArray[np.float32]:
        """Return the logits of one forward that has all rows of `tokens`.

        Of the plan's callers each may call it at once. With `alone`, where no other one does,
        the forward has the threads of all.
        """
        window = _Window(tokens, 0, Step(self.variant))  # no listener shows so short a step
        if alone or self._runs_alone(forward):
            with self._wide_lock:
                started = self._start_in_turn(self._wide_backend(), window, [forward])
        else:
            started = self._start_in_turn(self.backend, window, [forward])
        return self._finish(started, len(tokens.ids))

    def planned(self, lengths: NDArray[np.int64]) -> list[Forward]:
        max_width = self.encoder.max_length
        return plan_forwards(lengths, self.plan.tokens, max_width, self.backend.step)

    def _encoded(self, pairs: list[Pair]) -> Iterator[Tokens]:
        """Tokenise all pairs, so that they are sorted together, or windows of them.

        Windows are tokenised ahead of a device that works by itself.
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

    def _start(self, window: _Window) -> list[_Started]:
        """Plan and start forwards."""
        forwards = self.planned(window.tokens.lengths)
        alone = [forward for forward in forwards if self._runs_alone(forward)]
        others = [forward for forward in forwards if not self._runs_alone(forward)]
        if self.plan.callers > 1 and len(others) == 1 and not self._wide_lock.locked():
            alone.append(others.pop())
        started = []
        if alone:
            with self._wide_lock:
                started += self._start_in_turn(self._wide_backend(), window, alone)
        if self.plan.callers > 1 and len(others) > 1:
            return started + self._start_together(window, others)
        return started + self._start_in_turn(self.backend, window, others)

    def _runs_alone(self, forward: Forward) -> bool:
        """Return whether a forward may fill the memory; a GPU's are as large as plans say."""
        return forward.is_long and not self.backend.streams

    def _wide_backend(self) -> Backend:
        """Return what has all threads for one forward. The caller holds its lock."""
        if self.plan.callers == 1:
            return self.backend
        threads = self.plan.callers * self.plan.threads
        if threads not in self._wide:
            try:
                self._wide[threads] = self.backend.wide(threads)
            except BadInput as error:
                log.warning("single pairs have the threads of one caller: %s", error)
                self._wide[threads] = self.backend
        return self._wide[threads]

    def _start_together(self, window: _Window, forwards: list[Forward]) -> list[_Started]:
        """Run forwards on all callers; what gets no memory beside others, once more in turn."""

        def tried(forward: Forward) -> _Started | Forward:
            try:
                return self._forward(self.backend, window, forward)
            except OutOfMemory:
                return forward

        start = time.monotonic()
        with ThreadPoolExecutor(self.plan.callers) as callers:
            results = list(callers.map(tried, forwards))
        self._watch.ran(time.monotonic() - start, self.plan.callers)
        started = [result for result in results if isinstance(result, _Started)]
        failed = [result for result in results if isinstance(result, Forward)]
        if not failed:
            return started
        log.warning(
            "out of memory with %d forwards at once: %d go on one at a time",
            self.plan.callers,
            len(failed),
        )
        with self._wide_lock:  # this backend has kept memory that another one would need more of
            return started + self._start_in_turn(self.backend, window, failed)

    def _start_in_turn(
        self, backend: Backend, window: _Window, forwards: list[Forward]
    ) -> list[_Started]:
        start = time.monotonic()
        waiting = deque(forwards)
        started = []
        while waiting:
            try:
                started.append(self._forward(backend, window, waiting[0]))
                waiting.popleft()
            except OutOfMemory:
                waiting = deque(self._planned_smaller(window.tokens, list(waiting)))
        self._watch.ran(time.monotonic() - start)
        return started

    def _forward(self, backend: Backend, window: _Window, forward: Forward) -> _Started:
        before = backend.mark()
        batch = backend.load(window.tokens, forward)
        loaded = backend.mark()
        output = backend.forward(batch)
        marks = (before, loaded, backend.mark())
        text_tokens = int(window.tokens.lengths[forward.rows].sum())
        window.step.advance(len(forward.rows), text_tokens)
        return _Started(forward.rows + window.first, output, marks, forward.width, text_tokens)

    def _planned_smaller(self, tokens: Tokens, waiting: list[Forward]) -> list[Forward]:
        if len(waiting[0].rows) == 1:
            raise BadInput(
                f"out of memory with a single pair of {waiting[0].width} tokens; use a variant of "
                "half precision, a smaller model or a device with more memory"
            )
        half = max(1, self.plan.tokens // 2)
        log.warning(
            "out of memory with %d tokens a forward: going on with %d", self.plan.tokens, half
        )
        self.plan = replace(self.plan, tokens=half)
        rows = np.concatenate([forward.rows for forward in waiting])
        return [
            replace(forward, rows=rows[forward.rows])
            for forward in self.planned(tokens.lengths[rows])
        ]

    def _finish(self, started: Sequence[_Started], pairs: int) -> NDArray[np.float32]:
        """Wait for all forwards, and return their logits by pair."""
        start = time.monotonic()
        logits = np.empty((pairs, self.labels), np.float32)
        if started:
            rows = np.concatenate([forward.rows for forward in started])
            logits[rows] = self.backend.finish([forward.output for forward in started])
        seconds = self.backend.seconds
        for forward in started:
            before, loaded, after = forward.marks
            self._watch.forwarded(
                seconds(loaded, after),
                seconds(before, loaded),
                len(forward.rows),
                forward.width,
                forward.text_tokens,
            )
        self._watch.ran(time.monotonic() - start)
        return logits[:, 0] if self.labels == 1 else logits


def open_scorer(
    folder: str | Path | ModelFolder,
    variant: str | None = None,
    *,
    plan: Plan | None = None,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> PlannedScorer:
    """Open a variant of a model folder.

    - `variant`: by default the one recommended for this machine, or else onnx-fp32.
    - `plan`: by default the one that `xopt tune` found for this machine, or else a default one.
    - `threads`: what the scorer may use, by default all usable cores.
    - `device`: "cpu" or "cuda".
    - `trust_remote_code`: let torch variants run code that came with the model.

    Returns a scorer. Its `score(pairs)` returns the logits of (query, document) pairs in the order
    given: float32[n], or float32[n, labels] with several labels.

    Raises BadInput where folder, variant or device is not there, or a file is damaged.
    """
    if threads is not None and threads < 1:
        raise BadInput(f"threads is {threads}; give at least 1, or leave it out for all cores")
    if not isinstance(folder, ModelFolder):
        folder = ModelFolder.open(folder, trust_remote_code)
    chosen = _chosen_variant(folder, variant, device)
    plan = plan or find_plan(folder, chosen, threads, device)
    # Another process may work in another directory.
    absolute = replace(folder, path=folder.path.resolve())
    with progress(f"opening {chosen.name}"):
        backend = BACKENDS[chosen.backend].open(folder, chosen, plan, device)
    return PlannedScorer(
        Encoder(folder, _tokenizer_threads(plan, threads, device)),
        backend,
        plan,
        folder.manifest.labels,
        chosen.name,
        functools.partial(_reopen, absolute, chosen.name, threads, device),
    )


def _chosen_variant(folder: ModelFolder, name: str | None, device: str) -> Variant:
    """Return a variant, by default the one to use here. Raises BadInput where it cannot run."""
    if name is None:
        check_device(device)
        name = default_variant(folder, device)
    variant = folder.variant(name)
    check_variant(variant, device)  # before a plan is looked up for a device that is not there
    return variant


def _tokenizer_threads(plan: Plan, threads: int | None, device: str) -> int | None:
    """Return how many threads may tokenise; on a GPU, of each call that runs ahead."""
    if device == "cpu":
        return plan.callers * plan.threads
    return max(1, threads // plan.threads) if threads else None


def _reopen(
    folder: ModelFolder,
    variant: str,
    threads: int | None,
    device: str,
    plan: Plan,
    prompt: str,
) -> PlannedScorer:
    scorer = open_scorer(folder, variant, plan=plan, threads=threads, device=device)
    return scorer if prompt == scorer.encoder.prompt else scorer.with_prompt(prompt)


def find_plan(
    model: ModelFolder, variant: Variant, threads: int | None = None, device: str = "cpu"
) -> Plan:
    """Return the plan that was tuned for this machine, or the default one.

    On a CPU a tuned plan is used only for as many threads as it was tuned for.
    """
    plans = model.manifest.plans.get(machine_name(device), {})
    tuned = plans.get(variant.name)
    if tuned is not None:
        for_any_threads = device == "cuda" or threads is None
        if for_any_threads or threads == tuned.callers * tuned.threads:
            return tuned
    return default_plan(variant.backend, threads or cores(), device)
