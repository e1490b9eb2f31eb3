"""A part of a job: its rows are read, scored, ranked and written."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xopt.runtime.cascade.cascade import CascadeScorer, Lists, open_cascade
from xopt.runtime.files import new_file
from xopt.runtime.folder import ModelFolder
from xopt.runtime.jobs.inputs.columns import Row, rows_of
from xopt.runtime.jobs.inputs.files import File, Reader, conformed
from xopt.runtime.jobs.inputs.parts import Part
from xopt.runtime.jobs.output import Target, run_lines, write_part
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.scorer import open_scorer

__all__ = ["Counts", "PartScorer", "Work"]


@dataclass(frozen=True)
class Work:
    """What a part needs to be done, in any process: the model and how it runs, the inputs, and
    where things go.

    schema: the users' columns that are kept. score, rank: the names of those that are made.
    """

    model: str
    variant: str | None  # None: by its cascade
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
    """What was done: rows; those scored, with a null text, with a score that is not finite, left
    out by the cascade; pairs cut to the model's length; tokens; rows and bytes written; seconds.
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

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


class PartScorer:
    """Opens a scorer once, and does parts."""

    def __init__(self, work: Work) -> None:
        self.work = work
        model = ModelFolder.open(work.model, work.trusted)
        self.manifest = model.manifest
        self.cascade: CascadeScorer | None = None
        if work.variant is None:
            self.cascade = open_cascade(model, threads=work.threads, device=work.device)
        else:
            self.scorer = open_scorer(model, work.variant, threads=work.threads, device=work.device)
        self._not_finite = 0  # of a cascade: such scores look like those that it leaves out
        self._readers: dict[int, Reader] = {}

    def do(self, part: Part) -> Counts:
        """Score a part and write it, then note that it is done. Raises BadInput where that cannot
        be.
        """
        start, before = time.monotonic(), (self.cascade or self.scorer).stages
        self._not_finite = 0
        table, rows = self.read(part)
        scores, turns = self.scored(rows)
        order, ranks = _ranked(_groups(rows), turns)
        if self.work.top_k is not None:
            order = order[ranks[order] <= self.work.top_k]
        elif self.work.target.kind != "run":
            order = np.arange(len(rows))
        size = self._write(part.number, table, rows, order, scores, ranks)
        spent = (self.cascade or self.scorer).stages.minus(before)
        whole = np.array([row.query is not None and row.text is not None for row in rows], bool)
        unscored = int((whole & np.isnan(scores)).sum())
        counts = Counts(
            rows=len(rows),
            scored=int(np.isfinite(scores).sum()),
            null=int((~whole).sum()),
            not_finite=self._not_finite if self.cascade else unscored,
            skipped=unscored - self._not_finite if self.cascade else 0,
            cut=int(spent.truncated),
            tokens=int(spent.text_tokens),
            written=len(order),
            bytes=size,
            seconds=time.monotonic() - start,
        )
        with new_file(self.work.target.note(part.number), swept=True) as temporary:
            temporary.write_text(json.dumps(asdict(counts)), encoding="utf-8")
        return counts

    def read(self, part: Part) -> tuple[pa.Table, list[Row]]:
        """The users' columns of a part, and what is to be scored."""
        tables: list[pa.Table] = []
        rows: list[Row] = []
        for number, start, stop in part.slices:
            file = self.work.files[number]
            if number not in self._readers:
                self._readers = {number: Reader(file, self.work.schema.names)}
            table = self._readers[number].rows(start, stop)
            tables.append(conformed(table, self.work.schema))
            values = {name: table.column(name).to_pylist() for name in file.columns.names()}
            rows += rows_of(values, file.columns, file.name, range(start, stop))
        return pa.concat_tables(tables), rows

    def scored(self, rows: Sequence[Row]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Scores of rows, NaN where there is none; and what to rank those of one query by, the
        lowest first.
        """
        scores = np.full(len(rows), np.nan, np.float32)
        there, pairs = _pairs(rows)
        if self.cascade:
            return self._cascaded(rows, there)
        if pairs:
            scores[there] = self.manifest.ranking(self.scorer.logits(pairs))
        scores[~np.isfinite(scores)] = np.nan
        return scores, np.where(np.isnan(scores), np.inf, -scores.astype(np.float64))

    def _cascaded(
        self, rows: Sequence[Row], there: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        assert self.cascade is not None
        scores, turns = np.full(len(rows), np.nan, np.float32), np.full(len(rows), np.inf)
        bounds = np.flatnonzero(np.diff(_groups(rows)[there])) + 1
        lists = [part for part in np.split(there, bounds) if len(part)]
        first = None
        if self.cascade.cascade.order.with_score:
            first = [np.array([rows[i].first for i in places], np.float32) for places in lists]
        found = self.cascade.rank_all(
            Lists(
                [str(rows[p[0]].query) for p in lists],
                [[str(rows[i].text) for i in p] for p in lists],
                first,
            ),
            finite=False,
        )
        self._not_finite += sum(ranked.not_finite for ranked in found)
        for places, ranked in zip(lists, found, strict=True):
            scores[places] = ranked.scores
            turns[places[ranked.ranking]] = np.arange(len(places))
        return scores, turns

    def _write(
        self,
        number: int,
        table: pa.Table,
        rows: Sequence[Row],
        order: NDArray[np.int64],
        scores: NDArray[np.float32],
        ranks: NDArray[np.int64],
    ) -> int:
        if self.work.target.kind == "run":
            chosen = [rows[i] for i in order]
            ids = [row.query_id for row in chosen], [row.doc_id for row in chosen]
            return write_part(
                self.work.target, number, run_lines(*ids, ranks[order], scores[order])
            )
        made = table.take(pa.array(order))
        for name, values in (
            (self.work.score, pa.array(scores[order], mask=np.isnan(scores[order]))),
            (self.work.rank, pa.array(ranks[order])),
        ):
            made = made.append_column(pa.field(name, values.type), values)
        return write_part(self.work.target, number, made)


def _pairs(rows: Sequence[Row]) -> tuple[NDArray[np.int64], list[Pair]]:
    """The rows that have both texts, and those."""
    there = [i for i, row in enumerate(rows) if row.query is not None and row.text is not None]
    return np.array(there, np.int64), [(str(rows[i].query), str(rows[i].text)) for i in there]


def _groups(rows: Sequence[Row]) -> NDArray[np.int64]:
    """The number of each row's query, whose rows stand together."""
    new = [i > 0 and row.query_id != rows[i - 1].query_id for i, row in enumerate(rows)]
    return np.cumsum(np.array(new, np.int64))


def _ranked(
    groups: NDArray[np.int64], turns: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows by query and then by their turns, those of one turn as they stand; and the rank of
    each, from 1.
    """
    order = np.lexsort((np.arange(len(groups)), turns, groups))
    starts = np.searchsorted(groups, groups[order], side="left")
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - starts + 1
    return order, ranks
