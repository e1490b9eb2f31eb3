"""The job: files of candidates in, files of rankings out, from where it was."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xopt.runtime.data.columns import Columns
from xopt.runtime.folder import ModelFolder
from xopt.runtime.jobs.inputs.parts import Part, Slice
from xopt.runtime.jobs.job import Job, Settings, only_one
from xopt.runtime.jobs.request import NATIVE, Request, Resources, checked_request
from xopt.runtime.jobs.score import Assignment, Counts, PartScorer
from xopt.runtime.progress import Step, progress

__all__ = ["Preview", "Reranked", "preview", "rerank_files", "run_job"]

log = logging.getLogger(__name__)

# Places in the inputs, and rows at each, by which a preview tells how long it will take. A
# cascade scores a small part of long lists and all of short ones, and so sees whole ones.
SAMPLE = 8, 64
CASCADE_SAMPLE = 2, 1000


@dataclass(frozen=True)
class Reranked:
    """What a job made.

    `counts` are of all its calls, `now` of this one, and `parts_now` of its parts were done by it.
    """

    out: str
    variant: str
    parts: int
    parts_now: int
    counts: Counts
    now: Counts
    seconds: float


@dataclass(frozen=True)
class Preview:
    """What a job would do.

    By a sample `pairs_s` pairs a second, and `seconds` for what is left, with one instance.
    """

    out: str
    variant: str
    inputs: tuple[str, ...]
    rows: int
    rows_left: int
    gathered: int
    parts: int
    pairs_s: float
    seconds: float


def rerank_files(
    folder: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    variant: str | None = None,
    cascade: bool = False,
    query: str = "",
    text: str | None = None,
    query_id: str | None = None,
    doc_id: str | None = None,
    first: str | None = None,
    score: str = "score",
    rank: str = "rank",
    top_k: int | None = None,
    ids_only: bool = False,
    run: str | None = None,
    split: str | None = None,
    depth: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    workers: int | None = None,
    where: str = "native",
    force: bool = False,
    trust_remote_code: bool = False,
) -> Reranked:
    """Score and rank files of candidates, and write the rankings. Call it again to go on.

    - `inputs`: Parquet, JSON lines, CSV or TSV files, or folders and patterns of them. They lie on
      this machine or on a store that Arrow or fsspec reach. Collections are inputs too, as in
      `read_candidates`, with `run`, `split` and `depth`.
    - `out`: a .parquet, .jsonl or .run file, or a folder of Parquet files. Beside it stands
      `OUT.job`, with the job's parts. Each is written whole or not at all.
    - `variant`: what scores. By default the one that the job was begun with, or that
      `xopt optimize` recommended on this machine, or onnx-fp32. The log says which.
    - `cascade`: rank by the folder's cascade. `first` is the column of the first stage's scores.
    - `query`, `text`, `query_id`, `doc_id`: the columns to read.
    - `score`, `rank`: the columns to write, the logit, and the place from 1 within its query.
    - `top_k`: write each query's best only. Without it each row of the inputs comes out once.
    - `ids_only`: write the ids without the other columns.
    - `workers`: score in this many processes, each with a GPU of its own on "cuda". Without it
      one instance uses all cores.
    - `where`: "native", or "ray" or a Ray cluster's address for an actor on each node or GPU. The
      nodes need one file system.
    - `force`: begin the job again.

    A row with a null text, or a score that is not finite, has a null score and comes last.

    Raises BadInput where an input, the model or a column is missing or of no use. It does so too
    where the job was begun with others, or cannot go on. What was done is kept.
    """
    columns = Columns(query, text, query_id=query_id, doc_id=doc_id, first=first)
    settings = Settings(variant, cascade, columns, score, rank, top_k, ids_only, run, split, depth)
    resources = Resources(device, threads, workers, where)
    model = ModelFolder.open(os.fspath(folder), trust_remote_code)
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    names = [os.fspath(name) for name in given]
    return run_job(model, names, os.fspath(out), settings, resources, force)


def run_job(
    model: ModelFolder,
    inputs: Sequence[str],
    out: str,
    settings: Settings,
    resources: Resources,
    force: bool = False,
) -> Reranked:
    """Find or begin the job, do the parts that are left, join them, and tidy up."""
    start = time.monotonic()
    request = checked_request(model, inputs, out, settings, resources)
    with only_one(request.target) as target:
        request, job = _job(replace(request, target=target), resources, force)
        finished = job.is_finished()
        before = job.notes() if finished else job.done()
        if finished:
            log.info("rerank: %s is done already; nothing is scored", out)
        else:
            if before:
                log.info(
                    "rerank: %d of %d parts are done; going on with the rest",
                    len(before),
                    len(job.parts()),
                )
            _do(request, job, resources)
            with progress("joining the parts"):
                job.finish()
        job.tidy()
        notes = job.notes()
        now = [counts for number, counts in notes.items() if number not in before]
        return Reranked(
            out,
            str(request.settings.variant),
            len(notes),
            len(now),
            functools.reduce(Counts.plus, notes.values(), Counts()),
            functools.reduce(Counts.plus, now, Counts()),
            time.monotonic() - start,
        )


def _begun(request: Request, resources: Resources, force: bool) -> tuple[Request, Job | None]:
    """The job that was begun, if any, and the request with its variant."""
    job = None if force else Job.open(request.target)
    if job is None:
        request.target.check_free(force)
        return request.with_variant_of(None, resources), None
    request = request.with_variant_of(job.record.settings, resources)
    job.go_on(request.settings, request.sources, request.fingerprint(like=job.record.model))
    return request, job


def _job(request: Request, resources: Resources, force: bool) -> tuple[Request, Job]:
    """The job that was begun, or a new one, and the request with its variant."""
    target = request.target
    request, job = _begun(request, resources, force)
    if job is not None:
        if job.is_finished() or job.has_files():
            return request, job
        log.warning(
            "rerank: %s: some of it is gone since it was made; it is made again", target.out
        )
        target.check_free(force)
    if force and target.record.is_file():
        log.info(
            "rerank: begun again; to go on after a fault give the same command without `force=True`"
        )
    prepared = Path(tempfile.mkdtemp(prefix="prepared-", dir=target.job))
    try:
        with progress("reading the inputs"):
            planned = request.planned(prepared, resources.device)
    except BaseException:
        shutil.rmtree(prepared)
        raise
    target.clear(keep=prepared)  # only now: bad inputs cost nothing that was made
    record = request.record(planned, replaces=target.one_file and target.out.exists())
    return request, Job.begin(target, record)


def _do(request: Request, job: Job, resources: Resources) -> None:
    """Do the parts that are left."""
    done = job.done()
    _say_killed(job.killed(done))
    parts = job.parts()
    total = sum(part.rows for part in parts)
    todo = [part for part in parts if part.number not in done]
    left = sum(part.rows for part in todo)
    with progress("rerank", total, "pairs", work=left, done=total - left) as step:
        _do_parts(request.assignment(job.record, resources), job, todo, resources, step)


def _do_parts(
    assignment: Assignment, job: Job, todo: Sequence[Part], resources: Resources, step: Step
) -> None:
    """Do parts in this process, or with workers."""
    if resources.where == NATIVE and resources.workers is None:
        scorer = PartScorer(assignment)
        for part in todo:
            step.advance(scorer.do(part).rows)
        return
    from xopt.runtime.jobs.workers import do_parts, start_ray

    workers = resources.workers or 1
    cpus = resources.threads
    if resources.where != NATIVE:
        nodes, cpus_of_a_node = start_ray(resources.where, resources.device)
        workers = resources.workers or nodes
        if resources.workers is None:
            cpus = resources.threads or cpus_of_a_node

    rows = {part.number: part.rows for part in job.parts()}

    def tell() -> None:
        new = sum(rows[number] for number in job.noted()) - step.done
        if new:
            step.advance(new)

    try:
        do_parts(assignment, todo, workers, cpus, job.left, tell)
    except (KeyboardInterrupt, SystemExit):
        job.forget_killed()  # its workers were, on purpose
        raise


def _say_killed(times: dict[int, int]) -> None:
    """Warn of parts within which earlier processes were killed, most often of all."""
    most = max(times.values(), default=0)
    parts = [str(number) for number, count in times.items() if count == most]
    if parts:
        log.warning(
            "rerank: was killed within part %s (%d so far); if memory ran out, give "
            "`threads=1` or fewer `workers=`, or begin with another `variant=` and `out=`",
            " or ".join(parts),
            most,
        )


def preview(
    model: ModelFolder,
    inputs: Sequence[str],
    out: str,
    settings: Settings,
    resources: Resources,
    force: bool = False,
) -> Preview:
    """Tell what `run_job` would do, and how long it would take by a sample.

    Writes nothing but a temporary copy of text.
    """
    request = checked_request(model, inputs, out, settings, resources)
    request, begun = _begun(request, resources, force)
    done = 0
    if begun is not None:
        there = begun.notes() if begun.is_finished() else begun.done()
        done = sum(counts.rows for counts in there.values())
    with tempfile.TemporaryDirectory(prefix="xopt-preview-") as scratch:
        planned = request.planned(Path(scratch), resources.device)
        scorer = PartScorer(request.assignment(planned, resources))
        places, rows_at_each = CASCADE_SAMPLE if settings.cascade else SAMPLE
        sample = _sample(planned.parts, places, rows_at_each)
        scorer.scored(scorer.read(sample[0])[1])  # the first forwards of a shape are slow
        start = time.monotonic()
        rows = sum(len(scorer.scored(scorer.read(part)[1])[0]) for part in sample)
        rate = rows / (time.monotonic() - start)
    left = planned.rows - done
    return Preview(
        out,
        str(request.settings.variant),
        tuple(source.name for source in request.sources),
        planned.rows,
        left,
        planned.gathered,
        len(planned.parts),
        rate,
        left / rate,
    )


def _sample(parts: Sequence[Sequence[Slice]], places: int, most: int) -> list[Part]:
    """The first rows of some parts, so many at most."""
    chosen = np.unique(np.linspace(0, len(parts) - 1, places).astype(int)).tolist()
    sample = []
    for number in chosen:
        file, start, stop = parts[number][0]
        sample.append(Part(number, ((file, start, min(stop, start + most)),)))
    return sample
