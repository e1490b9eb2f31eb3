"""Folders in BEIR's layout: `corpus.jsonl[.gz]`, `queries.jsonl`, `qrels/SPLIT.tsv` (Thakur et al. 2021)."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xopt.runtime.errors import BadInput

__all__ = ["Beir", "read_beir", "read_jsonl"]


@dataclass(frozen=True)
class Beir:
    """Passages and queries by id, and the judged queries' grades by document id."""

    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def read_beir(folder: Path, split: str = "test") -> Beir:
    """Read a BEIR folder; a passage is the title, a line break and the text.

    Raises BadInput where a file is missing or a line does not parse, naming the file and the line.
    """
    corpus = {}
    for where, row in read_jsonl(_first(folder, "corpus.jsonl", "corpus.jsonl.gz")):
        title, text = row.get("title") or "", _field(row, "text", where)
        corpus[_field(row, "_id", where)] = f"{title}\n{text}" if title else text
    queries = {
        _field(row, "_id", at): _field(row, "text", at) for at, row in read_jsonl(_first(folder, "queries.jsonl"))
    }
    return Beir(corpus, queries, _read_qrels(_first(folder, f"qrels/{split}.tsv")))


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t")
        next(rows, None)  # the header
        for number, row in enumerate(rows, start=2):
            try:
                query_id, doc_id, grade = row
                qrels.setdefault(query_id, {})[doc_id] = int(grade)
            except ValueError:
                raise BadInput(
                    f"{path}:{number}: expected query-id, corpus-id and a whole score, got {row!r}"
                ) from None
    return qrels


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"{folder}: no {' or '.join(names)}; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/")


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file, gzipped or not, each with its file and line."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"{where}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise BadInput(f"{where}: not a JSON object")
            yield where, row


def _field(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise BadInput(f"{where}: {name!r} is {value!r}, not a text")
    return value
