"""A part of a job: its rows are read, scored, ranked and written."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xopt.runtime.cascade.cascade import CascadeScorer, Lists, open_cascade
from xopt.runtime.data.parquet import conformed
from xopt.runtime.files import writing
from xopt.runtime.folder import ModelFolder
from xopt.runtime.jobs.inputs.files import File, Reader, pairs_at
from xopt.runtime.jobs.inputs.parts import Part
from xopt.runtime.jobs.output import Target, run_lines, write_part
from xopt.runtime.scoring.ranking import ranked
from xopt.runtime.scoring.scorer import open_scorer

__all__ = ["Assignment", "Counts", "PartScorer"]


@dataclass(frozen=True)
class Assignment:
    """What a process needs to do parts: the model and how it runs, the inputs, the target.

    variant: None to rank by the folder's cascade. schema: the users' columns that are kept. score,
    rank: the names of those that are made.
    """

    model: str
    variant: str | None
    device: str
    threads: int | None
    trusted: bool
    files: tuple[File, ...]
    schema: pa.Schema
    target: Target
    score: str
    rank: str
    top_k: int | None


@dataclass(frozen=True)
class Counts:
    """What was done.

    Of rows: all, those scored, with a null text, with a score that is not finite, and left out by
    the cascade. Then pairs cut to the model's length, tokens, rows and bytes written, and seconds.
    """

    rows: int = 0
    scored: int = 0
    null: int = 0
    not_finite: int = 0
    skipped: int = 0
    cut: int = 0
    tokens: int = 0
    written: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @staticmethod
    def noted(note: dict[str, Any]) -> Counts:
        """Give what a note says, without what only a newer version counts."""
        known = [field.name for field in fields(Counts)]
        return Counts(**{name: note[name] for name in known if name in note})

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


class Pairs:
    """What a part scores, a row each: texts and ids, None where there are none.

    there: int[m], the rows that have both texts. queries: int[n], the number of each row's query,
    whose rows stand together.
    """

    def __init__(self, table: pa.Table) -> None:
        self.query: list[str | None] = table.column("query").to_pylist()
        self.text: list[str | None] = table.column("text").to_pylist()
        self.query_id: list[str | None] = table.column("query_id").to_pylist()
        self.doc_id: list[str | None] = table.column("doc_id").to_pylist()
        self.first = table.column("first").to_numpy()
        has_texts = pc.and_(table.column("query").is_valid(), table.column("text").is_valid())
        self.there = np.flatnonzero(has_texts.to_numpy())
        changes = [a != b for a, b in itertools.pairwise(self.query_id)]
        self.queries = np.concatenate([np.zeros(1, np.int64), np.cumsum(changes, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.query)


class PartScorer:
    """Opens a scorer once, and does parts."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        model = ModelFolder.open(assignment.model, assignment.trusted)
        threads = assignment.threads
        device = assignment.device
        self.manifest = model.manifest
        self.cascade: CascadeScorer | None = None
        if assignment.variant is None:
            self.cascade = open_cascade(model, threads=threads, device=device)
        else:
            self.scorer = open_scorer(model, assignment.variant, threads=threads, device=device)
        self._not_finite = 0  # of a cascade: such scores look like those that it leaves out
        self._readers: dict[int, Reader] = {}

    def do(self, part: Part) -> Counts:
        """Score a part and write it, then note that it is done. Raises BadInput where it cannot.

        A mark stays where the process is killed within it.
        """
        target = self.assignment.target
        target.check_own()
        mark = target.mark(part.number)
        try:
            with writing(mark), mark.open("a", encoding="utf-8") as stream:
                stream.write("begun\n")
            return self._do(part)
        finally:
            if target.is_own():  # else the mark is that of the process that took over
                mark.unlink(missing_ok=True)

    def _do(self, part: Part) -> Counts:
        start = time.monotonic()
        before = (self.cascade or self.scorer).stages
        self._not_finite = 0
        table, pairs = self.read(part)
        scores, keys = self.scored(pairs)
        order, ranks = ranked(keys, pairs.queries)
        if self.assignment.top_k is not None:
            order = order[ranks[order] <= self.assignment.top_k]
        elif self.assignment.target.kind != "run":
            order = np.arange(len(pairs))
        size = self._write(part.number, table, pairs, order, scores, ranks)
        spent = (self.cascade or self.scorer).stages.minus(before)
        unscored = int(np.isnan(scores[pairs.there]).sum())
        counts = Counts(
            rows=len(pairs),
            scored=int(np.isfinite(scores).sum()),
            null=len(pairs) - len(pairs.there),
            not_finite=self._not_finite if self.cascade else unscored,
            skipped=unscored - self._not_finite if self.cascade else 0,
            cut=int(spent.truncated),
            tokens=int(spent.text_tokens),
            written=len(order),
            bytes=size,
            seconds=time.monotonic() - start,
        )
        target = self.assignment.target
        with target.new_file(target.note(part.number), swept=True) as temporary:
            temporary.write_text(json.dumps(asdict(counts)), encoding="utf-8")
        return counts

    def read(self, part: Part) -> tuple[pa.Table, Pairs]:
        """Read the users' columns of a part, and what is to be scored."""
        tables = []
        pairs = []
        for number, start, stop in part.slices:
            file = self.assignment.files[number]
            if number not in self._readers:
                self._readers = {number: Reader(file, self.assignment.schema.names)}
            table = self._readers[number].rows(start, stop)
            tables.append(conformed(table, self.assignment.schema, file.name))
            pairs.append(pairs_at(table, file, range(start, stop)))
        return pa.concat_tables(tables), Pairs(pa.concat_tables(pairs))

    def scored(self, pairs: Pairs) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Score pairs: float32[n], NaN where there is none; and what ranks those of one query."""
        if self.cascade is not None:
            return self._cascaded(self.cascade, pairs)
        scores = np.full(len(pairs), np.nan, np.float32)
        if len(pairs.there):
            texts = [(str(pairs.query[i]), str(pairs.text[i])) for i in pairs.there]
            scores[pairs.there] = self.manifest.ranking(self.scorer.logits(texts))
        scores[~np.isfinite(scores)] = np.nan
        return scores, scores.astype(np.float64)

    def _cascaded(
        self, cascade: CascadeScorer, pairs: Pairs
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Rank by the cascade: what it leaves out has no score, and its place in the ranking."""
        scores = np.full(len(pairs), np.nan, np.float32)
        keys = np.full(len(pairs), np.nan)
        bounds = np.flatnonzero(np.diff(pairs.queries[pairs.there])) + 1
        lists = [rows for rows in np.split(pairs.there, bounds) if len(rows)]
        queries = [str(pairs.query[rows[0]]) for rows in lists]
        documents = [self._texts(pairs, rows) for rows in lists]
        first = None
        if cascade.cascade.order.with_score:
            first = [pairs.first[rows].astype(np.float32) for rows in lists]
        found = cascade.rank_all(Lists(queries, documents, first), finite=False)
        self._not_finite += sum(each.not_finite for each in found)
        for rows, each in zip(lists, found, strict=True):
            scores[rows] = each.scores
            keys[rows[each.ranking]] = -np.arange(len(rows))
        return scores, keys

    @staticmethod
    def _texts(pairs: Pairs, rows: NDArray[np.int64]) -> list[str]:
        return [str(pairs.text[row]) for row in rows]

    def _write(
        self,
        number: int,
        table: pa.Table,
        pairs: Pairs,
        order: NDArray[np.int64],
        scores: NDArray[np.float32],
        ranks: NDArray[np.int64],
    ) -> int:
        target = self.assignment.target
        if target.kind == "run":
            query_ids = [pairs.query_id[row] for row in order]
            doc_ids = [pairs.doc_id[row] for row in order]
            lines = run_lines(query_ids, doc_ids, ranks[order], scores[order])
            return write_part(target, number, lines)
        written = scores[order]
        made = table.take(pa.array(order))
        made = made.append_column(self.assignment.score, pa.array(written, mask=np.isnan(written)))
        made = made.append_column(self.assignment.rank, pa.array(ranks[order]))
        return write_part(target, number, made)
