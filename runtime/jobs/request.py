"""What a job is asked, checked against the model and the inputs before anything is done."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.cascade.fingerprint import model_fingerprint
from xopt.runtime.data.candidates import SPLIT, read_candidates
from xopt.runtime.data.tables import Values
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.jobs.inputs.columns import Columns
from xopt.runtime.jobs.inputs.parts import part_rows
from xopt.runtime.jobs.inputs.plan import COLLECTION, Planned, plan
from xopt.runtime.jobs.inputs.sources import WITHOUT_FIRST_STAGE, Source, find_sources
from xopt.runtime.jobs.job import Record
from xopt.runtime.jobs.output import Target, target_of
from xopt.runtime.jobs.score import Work
from xopt.runtime.machine import machine_name
from xopt.runtime.scoring.device import check_device, check_name

__all__ = ["NATIVE", "Asked", "How", "Request", "checked_request"]

log = logging.getLogger(__name__)

NATIVE = "native"  # where: this machine
VARIANT = "onnx-fp32"  # where none is recommended for this machine


@dataclass(frozen=True)
class Asked:
    """What makes a job another one: see `rerank_files`."""

    variant: str | None = None
    cascade: bool = False
    columns: Columns = field(default_factory=lambda: Columns("", None))
    score: str = "score"
    rank: str = "rank"
    top_k: int | None = None
    ids_only: bool = False
    run: str | None = None
    split: str | None = None
    depth: int | None = None


@dataclass(frozen=True)
class How:
    """Where and on how much it runs, which another call may choose anew."""

    device: str = "cpu"
    threads: int | None = None
    workers: int | None = None
    where: str = NATIVE


@dataclass(frozen=True)
class Request:
    """A job that can be begun: its model, its inputs and where it goes. `asked.variant` is the
    one that scores.
    """

    model: ModelFolder
    asked: Asked
    sources: tuple[Source, ...]
    target: Target

    @property
    def fingerprint(self) -> str:
        """Of what makes the scores."""
        return model_fingerprint(self.model, str(self.asked.variant), self.asked.cascade)

    def planned(self, folder: Path, device: str) -> Planned:
        """The inputs, cut into parts; what has to be written for that goes to `folder`."""
        asked, words = self.asked, self.target.kind == "run"
        most = part_rows(device, asked.cascade)
        made = plan(
            self.sources,
            self._collection,
            asked.columns,
            folder,
            most,
            asked.ids_only,
            words,
            asked.split or SPLIT,
        )
        for option in ("score", "rank"):
            name = getattr(asked, option)
            if name in made.schema.names and not words:
                raise BadInput(
                    f"there is a column {name!r} already; name another with --{option}, or give --ids-only"
                )
        return made

    def work(self, planned: Record | Planned, how: How) -> Work:
        """What parts need to be done."""
        return Work(
            model=str(self.model.path.resolve()),
            variant=None if self.asked.cascade else self.asked.variant,
            device=how.device,
            threads=how.threads,
            trusted=self.model.trusted,
            files=planned.files,
            schema=planned.schema,
            target=self.target,
            score=self.asked.score,
            rank=self.asked.rank,
            top_k=self.asked.top_k,
        )

    def record(self, planned: Planned, replaces: bool) -> Record:
        """What is kept of it."""
        asked, cut = asdict(self.asked), (planned.files, planned.schema, planned.parts)
        return Record(asked, self.sources, self.fingerprint, *cut, replaces)

    def _collection(self, source: Source) -> Iterable[Values]:
        asked = self.asked
        found = read_candidates(source.name, run=asked.run, split=asked.split, depth=asked.depth)
        for number, row in enumerate(found.rows):
            values = (row.query_id, row.query, row.doc_id, row.text)
            yield f"{source.name}: row {number}", dict(zip(COLLECTION, values, strict=True))


def checked_request(
    model: ModelFolder, inputs: Sequence[str], out: str, asked: Asked, how: How
) -> Request:
    """A request. Raises BadInput where the model cannot rank so, or an input is missing or of no
    known kind.
    """
    # of a cluster's GPUs its nodes can tell
    (check_device if how.where == NATIVE else check_name)(how.device)
    for name, value in (("workers", how.workers), ("threads", how.threads), ("top_k", asked.top_k)):
        if value is not None and (type(value) is not int or value < 1):
            raise BadInput(f"{name} is {value!r}; give a whole number, at least 1, or leave it out")
    if asked.score == asked.rank or not asked.score or not asked.rank:
        raise BadInput(f"score={asked.score!r}, rank={asked.rank!r}: name two columns")
    target = target_of(out)
    if not model.manifest.ranks:
        raise BadInput(
            f"{model.path}: the model has {model.manifest.labels} labels, and no one score to rank by; export it with "
            "--rank-label"
        )
    sources = tuple(find_sources(inputs, asked.run, (target.out, target.job)))
    for source in sources:
        if asked.depth and source.kind in WITHOUT_FIRST_STAGE:
            raise BadInput(
                f"{source.name}: --depth is for BEIR folders and irds: datasets; of a table all rows are ranked"
            )
        if asked.split and source.kind in ("parquet", "table"):
            raise BadInput(
                f"{source.name}: --split is for BEIR folders and hf: datasets; a file has none"
            )
    return Request(model, replace(asked, variant=_variant(model, asked, how)), sources, target)


def _variant(model: ModelFolder, asked: Asked, how: How) -> str:
    if not asked.cascade:
        if asked.columns.first is not None:
            raise BadInput(
                f"--first {asked.columns.first}: the first stage's scores serve a cascade; give --cascade too"
            )
        here = how.device == "cpu" or how.where == NATIVE
        recommended = model.manifest.recommended(machine_name(how.device)) if here else None
        name = asked.variant or recommended or VARIANT
        return model.variant(name).name
    kept = Cascade.of(model)
    if asked.variant not in (None, kept.variant):
        raise BadInput(
            f"--variant {asked.variant}: the cascade was certified with {kept.variant}; leave it out"
        )
    if kept.order.with_score != (asked.columns.first is not None):
        named = f"by scores, as {kept.certificate.column!r} was: name their column with --first"
        raise BadInput(
            f"{model.path}: its cascade goes {named if kept.order.with_score else 'without --first'}"
        )
    if beyond := kept.beyond(asked.top_k):
        log.warning("%s: %s", model.path, beyond)
    return kept.variant
