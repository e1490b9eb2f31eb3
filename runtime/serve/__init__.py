"""HTTP -> rankings: one server for every client of a reranker. Needs the extra `serve`."""
