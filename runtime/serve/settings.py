"""What whoever starts a server decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """How a server treats its clients.

    api_keys: any of them opens the door; none for everybody.
    root_path: a prefix that paths may have.
    deadline_s: how long a request may take that names no time of its own.
    longest_wait_s: how much work may lie before a request that is let in.
    most_bytes: of a body, also when unpacked.
    refuse_cut: answer 422 where a client sends `truncate: false` and a document is too long.
    cors_origins: sites whose pages may ask, such as https://example.com; "*" for all.
    log_requests: log a line for each request for scores.
    spans: "numbers" for a span of each by OpenTelemetry, "texts" for one with the texts in it.
    """

    api_keys: tuple[str, ...] = ()
    root_path: str = ""
    deadline_s: float = 60.0
    longest_wait_s: float = 20.0
    most_bytes: int = 64 << 20
    refuse_cut: bool = False
    cors_origins: tuple[str, ...] = ()
    log_requests: bool = False
    spans: Literal["numbers", "texts"] | None = None
