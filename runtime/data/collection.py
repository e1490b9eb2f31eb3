"""Collections of documents, queries and qrels, with first-stage rankings: BEIR, ir_datasets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs

from xopt.runtime.data.fields import Judgements, Qrels, Texts, documents, ids
from xopt.runtime.data.places import Place
from xopt.runtime.data.text import read_jsonl, readable
from xopt.runtime.data.trec import Run, read_qrels
from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import clean

__all__ = ["Collection", "first_stage", "read_beir", "read_irds"]

log = logging.getLogger(__name__)

RECORDS_AT_ONCE = 4096
Record = tuple[str, Any, Any, Any]  # where it stands, an id, a title and a text, as they were read


@dataclass(frozen=True)
class Collection:
    """Documents and queries by id, qrels, and a run where one comes along."""

    name: str
    corpus: Texts
    queries: Texts
    qrels: Qrels
    run: Run | None = None


def read_beir(name: str, folder: Place, split: str, run: Run | None = None) -> Collection:
    """Read a folder in BEIR's layout (Thakur et al. 2021), its files gzipped or not.

    It holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv; with a run there need not be qrels. A
    document is the title, a line break and the text. Raises BadInput where a file is missing or a
    line does not parse, naming the file and the line.
    """
    with readable(name):
        corpus = _documents(_beir(name, folder, "corpus.jsonl"), "_id")
        queries = _queries(_beir(name, folder, "queries.jsonl"), "_id")
        qrels: Qrels = {}
        info = folder.system.get_file_info(f"{folder.path}/qrels")
        if run is None or info.type == fs.FileType.Directory:  # a run names its queries itself
            qrels = read_qrels(*_file(name, folder, f"qrels/{split}.tsv"))
    return _known(Collection(PurePosixPath(folder.path).name, corpus, queries, qrels, run))


def _beir(name: str, folder: Place, file: str) -> Iterator[Record]:
    for where, row in read_jsonl(*_file(name, folder, file)):
        yield where, row.get("_id"), row.get("title"), row.get("text")


def _file(name: str, folder: Place, file: str) -> tuple[str, Place]:
    """The name and the place of a file of the folder, gzipped or not."""
    for each in (file, f"{file}.gz"):
        place = replace(folder, path=f"{folder.path.rstrip('/')}/{each}")
        if place.system.get_file_info(place.path).type == fs.FileType.File:
            return f"{name.rstrip('/')}/{each}", place
    raise BadInput(
        f"{name}: no {file} or {file}.gz; a BEIR folder holds corpus.jsonl, queries.jsonl and "
        "qrels/SPLIT.tsv"
    )


def _documents(records: Iterator[Record], id_name: str) -> Texts:
    made = Texts("document")
    while chunk := list(islice(records, RECORDS_AT_ONCE)):
        places, names, titles, texts = zip(*chunk, strict=True)
        found = documents(titles, texts, places.__getitem__, needed=True).to_pylist()
        doc_ids = ids(names, id_name, places.__getitem__).to_pylist()
        for doc_id, text, where in zip(doc_ids, found, places, strict=True):
            made.add(doc_id, text, where)
    return made


def _queries(records: Iterator[Record], id_name: str) -> Texts:
    """Queries by id. One that is no text is blank: it is refused only if it is to be ranked for."""
    made = Texts("query")
    while chunk := list(islice(records, RECORDS_AT_ONCE)):
        places, names, _, texts = zip(*chunk, strict=True)
        query_ids = ids(names, id_name, places.__getitem__).to_pylist()
        for query_id, text, where in zip(query_ids, texts, places, strict=True):
            made.add(query_id, clean(text) if isinstance(text, str) else "", where)
    return made


def read_irds(name: str, run: Run | None) -> Collection:
    """Read a dataset of ir_datasets (https://ir-datasets.com) by its id.

    With a run, the given one or the dataset's own scored documents, only the documents that it
    names or the qrels judge are read. Raises BadInput where the package or the dataset is not
    there.
    """
    try:
        import ir_datasets
    except ImportError:
        raise BadInput(
            f"irds:{name}: needs the package ir_datasets (pip install ir_datasets)"
        ) from None
    try:
        dataset = ir_datasets.load(name)
        asked = _placed(dataset.queries_iter(), f"irds:{name}: query")
        queries = _queries(
            ((where, query.query_id, None, query.default_text()) for where, query in asked),
            "query_id",
        )
        qrels = _irds_qrels(dataset, name)
        if run is None and dataset.has_scoreddocs():
            run = _scored(dataset.scoreddocs_iter(), name)
        docs: Iterable[Any] = dataset.docs_iter()
        if run is not None:
            needed = set().union(*run.values(), *qrels.values())
            docs = dataset.docs_store().get_many(needed).values()
        placed = _placed(docs, f"irds:{name}: document")
        corpus = _documents(
            ((where, doc.doc_id, None, doc.default_text()) for where, doc in placed), "doc_id"
        )
    except BadInput:
        raise
    except Exception as error:  # each dataset has its own reader and its own errors
        raise BadInput(
            f"irds:{name}: ir_datasets cannot read it ({type(error).__name__}: {error})"
        ) from error
    return _known(Collection(name, corpus, queries, qrels, run))


def _irds_qrels(dataset: Any, name: str) -> Qrels:
    judgements = Judgements()
    records = _placed(dataset.qrels_iter() if dataset.has_qrels() else (), f"irds:{name}: qrel")
    while chunk := list(islice(records, RECORDS_AT_ONCE)):
        places, found = zip(*chunk, strict=True)
        query_ids = ids([qrel.query_id for qrel in found], "query_id", places.__getitem__)
        doc_ids = ids([qrel.doc_id for qrel in found], "doc_id", places.__getitem__)
        for number, qrel in enumerate(found):
            query_id, doc_id = query_ids[number].as_py(), doc_ids[number].as_py()
            judgements.add(query_id, doc_id, qrel.relevance, places[number])
    return judgements.qrels


def _placed(records: Iterable[Any], what: str) -> Iterator[tuple[str, Any]]:
    """Records, each with where it stands."""
    return ((f"{what} {number}", record) for number, record in enumerate(records, start=1))


def _scored(records: Iterable[Any], name: str) -> Run:
    """A dataset's own first stage, a query's best document first."""
    run: Run = {}
    for where, scored in _placed(records, f"irds:{name}: scored document"):
        score = float(scored.score)
        if run.setdefault(scored.query_id, {}).setdefault(scored.doc_id, score) != score:
            raise BadInput(
                f"{where}: document {scored.doc_id!r} of query {scored.query_id!r} has two scores; "
                "keep one"
            )
    return {q: dict(sorted(docs.items(), key=lambda item: -item[1])) for q, docs in run.items()}


def _known(collection: Collection) -> Collection:
    """Leave out judgements of queries and documents that it lacks; a warning counts them."""
    kept: Qrels = {}
    strangers = documents_lacking = 0
    for query_id, judged in collection.qrels.items():
        if query_id not in collection.queries:
            strangers += 1
            continue
        known = {doc_id: grade for doc_id, grade in judged.items() if doc_id in collection.corpus}
        documents_lacking += len(judged) - len(known)
        if known:
            kept[query_id] = known
    if strangers:
        log.warning(
            "%s: %d of %d judged queries are not among its queries: left out",
            collection.name,
            strangers,
            len(collection.qrels),
        )
    if documents_lacking:
        log.warning(
            "%s: %d judgements of documents that it does not have: left out",
            collection.name,
            documents_lacking,
        )
    return replace(collection, qrels=kept)


def first_stage(
    collection: Collection, depth: int, run: str | None
) -> Iterator[tuple[str, list[str]]]:
    """Give each query the `depth` best documents of the run, or by BM25 where there is none.

    A document with the query's own id is left out unless it is judged, as in BEIR's evaluation. In
    ArguAna and Quora that is the query itself. A warning counts them. Raises BadInput where the
    run, called `run`, names what the collection lacks, or a query has no text.
    """
    rankings = collection.run if collection.run is not None else _bm25(collection, depth + 1)
    name = run or collection.name
    selves = 0
    for query_id, ranking in rankings.items():
        if query_id not in collection.queries:
            raise BadInput(
                f"{name}: query {query_id!r} is not in {collection.name}; give the run of this data"
            )
        if not collection.queries[query_id].strip():
            where = collection.queries.places[query_id]
            raise BadInput(f"{where}: query {query_id!r} has no text to rank for; give it one")
        unknown = next((doc_id for doc_id in ranking if doc_id not in collection.corpus), None)
        if unknown is not None:
            raise BadInput(
                f"{name}: document {unknown!r} is not in {collection.name}; "
                "give the run of this data"
            )
        is_itself = query_id in ranking and query_id not in collection.qrels.get(query_id, ())
        selves += is_itself
        chosen = [doc_id for doc_id in ranking if not is_itself or doc_id != query_id]
        yield query_id, chosen[:depth]
    if selves:
        log.warning(
            "%s: %d documents with their query's own id are left out", collection.name, selves
        )


def _bm25(collection: Collection, depth: int) -> dict[str, list[str]]:
    from xopt.runtime.data.bm25 import bm25_ranking

    judged = list(collection.qrels)
    doc_ids = list(collection.corpus)
    if not judged or not doc_ids:
        raise BadInput(
            f"{collection.name}: no judged queries to rank documents for; give a `run=`, or "
            "another `split=`"
        )
    texts = [collection.queries[query_id] for query_id in judged]
    ranked = bm25_ranking(list(collection.corpus.values()), texts, depth, collection.name)
    return {q: _taken(doc_ids, rows) for q, rows in zip(judged, ranked, strict=True)}


def _taken(values: list[str], rows: list[int]) -> list[str]:
    return [values[row] for row in rows]
