"""HTTP -> rankings: one server for every client of a reranker. Needs the extra `serve`."""

from xopt.runtime.serve.app import Settings, app

__all__ = ["Settings", "app"]
