"""Holds the BLAS of numpy and scipy to the threads that a cascade may use."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from threadpoolctl import threadpool_limits

__all__ = ["blas_threads"]


class _Limit:
    """A number of threads that holds from the first user to the last: the process has but one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limits: Any = None

    @contextlib.contextmanager
    def of(self, threads: int) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._limits = threadpool_limits(threads, user_api="blas")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._limits.restore_original_limits()


# Runs what is within it on so many threads.
blas_threads = _Limit().of
