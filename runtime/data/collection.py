"""Collections of documents, queries and qrels: BEIR folders and ir_datasets, with first-stage rankings from a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xopt.runtime.data.rows import read_jsonl
from xopt.runtime.data.trec import Qrels, Run, read_qrels
from xopt.runtime.errors import BadInput

__all__ = ["Collection", "read_beir", "read_irds"]


@dataclass(frozen=True)
class Collection:
    """Documents and queries by id, the judged queries' grades by document id, and a run where one comes with it."""

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels
    run: Run | None = None


def read_beir(folder: Path, split: str) -> Collection:
    """Read a folder in BEIR's layout (Thakur et al. 2021): corpus.jsonl[.gz], queries.jsonl, qrels/SPLIT.tsv.

    A document is the title, a line break and the text. Raises BadInput where a file is missing or a
    line does not parse, naming the file and the line.
    """
    corpus = {}
    for where, row in read_jsonl(_first(folder, "corpus.jsonl", "corpus.jsonl.gz")):
        title, text = row.get("title") or "", _field(row, "text", where)
        corpus[_field(row, "_id", where)] = f"{title}\n{text}" if title else text
    queries = {
        _field(row, "_id", at): _field(row, "text", at)
        for at, row in read_jsonl(_first(folder, "queries.jsonl", "queries.jsonl.gz"))
    }
    return Collection(folder.resolve().name, corpus, queries, read_qrels(_first(folder, f"qrels/{split}.tsv")))


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(
        f"{folder}: no {' or '.join(names)}; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"
    )


def _field(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise BadInput(f"{where}: {name!r} is {value!r}, not a text")
    return value


def read_irds(name: str, run: Run | None) -> Collection:
    """Read a dataset of ir_datasets (https://ir-datasets.com) by its id.

    With a run, the given one or the dataset's own scored documents, only the documents that it names
    are read. Raises BadInput where the package or the dataset is not there.
    """
    try:
        import ir_datasets
    except ImportError:
        raise BadInput(f"irds:{name}: needs the package ir_datasets (pip install ir_datasets)") from None
    try:
        dataset = ir_datasets.load(name)
        queries = {query.query_id: query.default_text() for query in dataset.queries_iter()}
        qrels: Qrels = {}
        for qrel in dataset.qrels_iter() if dataset.has_qrels() else ():
            qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = int(qrel.relevance)
        if run is None and dataset.has_scoreddocs():
            run = {}
            for scored in dataset.scoreddocs_iter():
                run.setdefault(scored.query_id, {})[scored.doc_id] = float(scored.score)
        docs: Iterable[Any] = dataset.docs_iter()
        if run is not None:
            docs = dataset.docs_store().get_many({doc_id for ranking in run.values() for doc_id in ranking}).values()
        corpus = {doc.doc_id: doc.default_text() for doc in docs}
    except Exception as error:  # each dataset has its own reader and its own errors
        raise BadInput(f"irds:{name}: ir_datasets cannot read it ({type(error).__name__}: {error})") from error
    return Collection(name, corpus, queries, qrels, run)
