"""Collections of documents, queries and qrels: BEIR folders and ir_datasets, with first-stage
rankings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xopt.runtime.data.fields import Judgements, Qrels, Texts, document_of, id_of, unranked_query_of
from xopt.runtime.data.tables import read_jsonl
from xopt.runtime.data.trec import Run, read_qrels
from xopt.runtime.errors import BadInput

__all__ = ["Collection", "first_stage", "read_beir", "read_irds"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """Documents and queries by id, the judged queries' grades by document id, and a run where one
    comes with it.
    """

    name: str
    corpus: Texts
    queries: Texts
    qrels: Qrels
    run: Run | None = None


def read_beir(folder: Path, split: str, run: Run | None = None) -> Collection:
    """Read a folder in BEIR's layout (Thakur et al. 2021): corpus.jsonl, queries.jsonl,
    qrels/SPLIT.tsv, or gzipped.

    With a run there need not be qrels. A document is the title, a line break and the text. Raises
    BadInput where a file is missing or a line does not parse, naming the file and the line.
    """
    corpus, queries = Texts("document"), Texts("query")
    for where, row in read_jsonl(_first(folder, "corpus.jsonl")):
        corpus.add(
            id_of(row.get("_id"), "_id", where),
            document_of(row.get("title"), row.get("text"), where),
            where,
        )
    for where, row in read_jsonl(_first(folder, "queries.jsonl")):
        queries.add(id_of(row.get("_id"), "_id", where), unranked_query_of(row.get("text")), where)
    judged = run is None or (folder / "qrels").is_dir()  # a run names its queries itself
    qrels = read_qrels(_first(folder, f"qrels/{split}.tsv")) if judged else {}
    return _known(Collection(folder.resolve().name, corpus, queries, qrels, run))


def _first(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise BadInput(
        f"{folder}: no {name} or {name}.gz; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"
    )


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
        queries, corpus, judgements = Texts("query"), Texts("document"), Judgements()
        for where, query in _placed(dataset.queries_iter(), f"irds:{name}: query"):
            queries.add(
                id_of(query.query_id, "query_id", where),
                unranked_query_of(query.default_text()),
                where,
            )
        for where, qrel in _placed(
            dataset.qrels_iter() if dataset.has_qrels() else (), f"irds:{name}: qrel"
        ):
            judgements.add(
                id_of(qrel.query_id, "query_id", where),
                id_of(qrel.doc_id, "doc_id", where),
                qrel.relevance,
                where,
            )
        qrels = judgements.qrels
        if run is None and dataset.has_scoreddocs():
            run = _scored(dataset.scoreddocs_iter(), name)
        docs: Iterable[Any] = dataset.docs_iter()
        if run is not None:
            needed = {d for ranking in run.values() for d in ranking} | {
                d for judged in qrels.values() for d in judged
            }
            docs = dataset.docs_store().get_many(needed).values()
        for where, doc in _placed(docs, f"irds:{name}: document"):
            corpus.add(
                id_of(doc.doc_id, "doc_id", where),
                document_of(None, doc.default_text(), where),
                where,
            )
    except BadInput:
        raise
    except Exception as error:  # each dataset has its own reader and its own errors
        raise BadInput(
            f"irds:{name}: ir_datasets cannot read it ({type(error).__name__}: {error})"
        ) from error
    return _known(Collection(name, corpus, queries, qrels, run))


def _placed(records: Iterable[Any], what: str) -> Iterator[tuple[str, Any]]:
    """Records, each with where it stands."""
    return ((f"{what} {number}", record) for number, record in enumerate(records, start=1))


def _scored(records: Iterable[Any], name: str) -> Run:
    """A dataset's own first stage, a query's best document first."""
    run: Run = {}
    for where, scored in _placed(records, f"irds:{name}: scored document"):
        if run.setdefault(scored.query_id, {}).setdefault(
            scored.doc_id, float(scored.score)
        ) != float(scored.score):
            raise BadInput(
                f"{where}: document {scored.doc_id!r} of query {scored.query_id!r} has two scores"
            )
    return {q: dict(sorted(docs.items(), key=lambda item: -item[1])) for q, docs in run.items()}


def _known(collection: Collection) -> Collection:
    """The collection without judgements of queries and documents that it lacks; a warning counts
    them.
    """
    queries = [q for q in collection.qrels if q in collection.queries]
    kept = {
        q: {d: g for d, g in collection.qrels[q].items() if d in collection.corpus} for q in queries
    }
    documents = sum(len(collection.qrels[q]) - len(judged) for q, judged in kept.items())
    if len(queries) < len(collection.qrels):
        log.warning(
            "%s: %d of %d judged queries are not among its queries: left out",
            collection.name,
            len(collection.qrels) - len(queries),
            len(collection.qrels),
        )
    if documents:
        log.warning(
            "%s: %d judgements of documents that it does not have: left out",
            collection.name,
            documents,
        )
    return replace(collection, qrels={q: judged for q, judged in kept.items() if judged})


def first_stage(
    collection: Collection, depth: int, run: str | None
) -> Iterator[tuple[str, list[str]]]:
    """For each query the `depth` best documents of the first stage: of the run, or by BM25 where
    there is none.

    A document with the query's own id, in ArguAna and Quora the query itself, is left out unless
    it is judged, as BEIR's evaluation does it; a warning counts them. Raises BadInput where the
    run, called `run`, names what the collection lacks, or a query has no text.
    """
    rankings = collection.run if collection.run is not None else _bm25(collection, depth + 1)
    selves = 0
    for query_id, ranking in rankings.items():
        if query_id not in collection.queries:
            raise BadInput(
                f"{run or collection.name}: query {query_id!r} is not in {collection.name}"
            )
        if not collection.queries[query_id].strip():
            raise BadInput(
                f"{collection.queries.places[query_id]}: query {query_id!r} has no text to rank for"
            )
        chosen: list[str] = []
        for doc_id in ranking:
            if doc_id not in collection.corpus:
                raise BadInput(
                    f"{run or collection.name}: document {doc_id!r} is not in {collection.name}"
                )
            if doc_id == query_id and doc_id not in collection.qrels.get(query_id, ()):
                selves += 1
            elif len(chosen) < depth:
                chosen.append(doc_id)
        yield query_id, chosen
    if selves:
        log.warning(
            "%s: %d documents with their query's own id are left out", collection.name, selves
        )


def _bm25(collection: Collection, depth: int) -> dict[str, list[str]]:
    from xopt.runtime.data.bm25 import bm25_ranking

    judged, doc_ids = list(collection.qrels), list(collection.corpus)
    if not judged or not doc_ids:
        raise BadInput(
            f"{collection.name}: no judged queries to rank documents for; give a --run, or another --split"
        )
    texts = [collection.queries[query_id] for query_id in judged]
    ranked = bm25_ranking(list(collection.corpus.values()), texts, depth)
    return {q: [doc_ids[i] for i in ranking] for q, ranking in zip(judged, ranked, strict=True)}
