"""HTTP -> rankings: one server for every client of a reranker. Needs the extra `serve`."""

from xopt.runtime.serve.app import app
from xopt.runtime.serve.settings import Settings

__all__ = ["Settings", "app"]
