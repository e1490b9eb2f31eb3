from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.rankings import Record

from xopt.runtime.data.candidates import Candidates


@pytest.fixture(scope="session")
def records(docs: Candidates) -> list[Record]:
    """The rows of a few queries of the demo data, with a column of a user's own."""
    return [
        {"query_id": r.query_id, "query": r.query, "doc_id": r.doc_id, "text": r.text, "n": number}
        for number, r in enumerate(docs.rows)
    ]


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., str]:
    """Write records to a Parquet file of the test's own, in row groups that cut through queries."""

    def write(records: list[Record], name: str = "candidates.parquet") -> str:
        pq.write_table(pa.Table.from_pylist(records), tmp_path / name, row_group_size=7)
        return str(tmp_path / name)

    return write
