"""What the server counts, for Prometheus: names begin with `xopt_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "xopt_requests", "Requests by status", ["status"], registry=registry
        )
        self.stage_s = Histogram(
            "xopt_stage_seconds",
            "Seconds of a request by stage: read, tokenise, queue_and_score, reply",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.forward_s = Histogram(
            "xopt_forward_seconds", "Seconds of a forward", buckets=SECONDS, registry=registry
        )
        self.forward_rows = Histogram(
            "xopt_forward_rows", "Pairs of a forward", buckets=ROWS, registry=registry
        )
        self.forward_tokens = Histogram(
            "xopt_forward_tokens", "Tokens of a forward", buckets=TOKENS, registry=registry
        )
        self.queue_requests = Gauge(
            "xopt_queue_requests", "Requests let in and not answered yet", registry=registry
        )
        self.queue_tokens = Gauge(
            "xopt_queue_tokens", "Tokens let in and not scored yet", registry=registry
        )
        self.rate = Gauge("xopt_tokens_per_second", "The measured rate", registry=registry)
        self.cut = Counter("xopt_cut", "Documents cut to the model's length", registry=registry)
        self.cascade_pairs = Counter(
            "xopt_cascade_pairs",
            "Documents that a cascade scored or skipped",
            ["outcome"],
            registry=registry,
        )
        self.cancelled = Counter("xopt_cancelled", "Requests whose client left", registry=registry)
        self.refused = Counter("xopt_refused", "Requests refused for load", registry=registry)
        self.timed_out = Counter(
            "xopt_timed_out", "Requests whose time was over", registry=registry
        )

    def forwarded(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a forward."""
        self.forward_rows.observe(rows)
        self.forward_tokens.observe(tokens)
        self.forward_s.observe(seconds)

    def cascaded(self, scored: int, skipped: int) -> None:
        """Count the documents of a request that a cascade ranked."""
        self.cascade_pairs.labels("scored").inc(scored)
        self.cascade_pairs.labels("skipped").inc(skipped)

    def text(self) -> bytes:
        """Return all of it in Prometheus' format."""
        return generate_latest(self.registry)
