"""What a job is asked for, checked against the model and the inputs before anything is done."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.cascade.fingerprint import model_fingerprint
from xopt.runtime.data.candidates import SPLIT, check_options, read_collection
from xopt.runtime.data.sources import Source, find_sources, fingerprinted
from xopt.runtime.data.text import Row
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.jobs.inputs.parts import part_rows
from xopt.runtime.jobs.inputs.plan import COLLECTION, Planned, Wanted, plan
from xopt.runtime.jobs.job import Record, Settings
from xopt.runtime.jobs.output import Target, target_of
from xopt.runtime.jobs.score import Assignment
from xopt.runtime.scoring.default import default_variant
from xopt.runtime.scoring.device import check_device, check_name

__all__ = ["NATIVE", "Request", "Resources", "checked_request"]

log = logging.getLogger(__name__)

NATIVE = "native"  # where: this machine


@dataclass(frozen=True)
class Resources:
    """Where and on how much a job runs, which another call may choose anew."""

    device: str = "cpu"
    threads: int | None = None
    workers: int | None = None
    where: str = NATIVE


@dataclass(frozen=True)
class Request:
    """A job that can be begun: its model, its settings, its inputs and where it goes."""

    model: ModelFolder
    settings: Settings
    sources: tuple[Source, ...]
    target: Target

    def fingerprint(self, like: str = "") -> str:
        """The fingerprint of what makes the scores, by the scheme of an earlier one."""
        settings = self.settings
        return model_fingerprint(self.model, str(settings.variant), settings.cascade, like)

    def with_variant_of(self, begun: Settings | None, resources: Resources) -> Request:
        """Choose a variant if none was asked for: that of the begun job, or the default."""
        if self.settings.variant is not None:
            return self
        if begun is not None and begun.variant in self.model.manifest.variants:
            name = begun.variant
        elif resources.device != "cpu" and resources.where != NATIVE:
            name = default_variant(self.model, None)  # which GPUs a cluster has, its nodes know
        else:
            name = default_variant(self.model, resources.device)
        return replace(self, settings=replace(self.settings, variant=name))

    def planned(self, folder: Path, device: str) -> Planned:
        """Cut the inputs into parts; what has to be written for that goes to `folder`."""
        settings = self.settings
        words = self.target.kind == "run"
        wanted = Wanted(
            settings.columns,
            part_rows(device, settings.cascade),
            settings.ids_only,
            words,
            settings.split or SPLIT,
        )
        made = plan(self.sources, self._collection, wanted, folder)
        for option in ("score", "rank"):
            name = getattr(settings, option)
            if name in made.schema.names and not words:
                raise BadInput(
                    f"there is a column {name!r} already; name another with `{option}=`, or give "
                    "`ids_only=True`"
                )
        return made

    def assignment(self, planned: Record | Planned, resources: Resources) -> Assignment:
        """What a process needs to do parts."""
        return Assignment(
            model=str(self.model.path.resolve()),
            variant=None if self.settings.cascade else self.settings.variant,
            device=resources.device,
            threads=resources.threads,
            trusted=self.model.trusted,
            files=planned.files,
            schema=planned.schema,
            target=self.target,
            score=self.settings.score,
            rank=self.settings.rank,
            top_k=self.settings.top_k,
        )

    def record(self, planned: Planned, replaces: bool) -> Record:
        """What is kept of it."""
        return Record(
            settings=self.settings,
            sources=self.sources,
            model=self.fingerprint(),
            files=planned.files,
            schema=planned.schema,
            parts=planned.parts,
            replaces=replaces,
        )

    def _collection(self, source: Source) -> Iterable[Row]:
        asked = self.settings
        found = read_collection(source, asked.run, asked.split, asked.depth)
        for number, row in enumerate(found.rows):
            values = (row.query_id, row.query, row.doc_id, row.text)
            yield f"{source.name}: row {number}", dict(zip(COLLECTION, values, strict=True))


def checked_request(
    model: ModelFolder,
    inputs: Sequence[str],
    out: str,
    settings: Settings,
    resources: Resources,
) -> Request:
    """Check what is asked.

    Raises BadInput where the model cannot rank so, or an input is missing or of no known kind.
    """
    if resources.where == NATIVE:
        check_device(resources.device)
    else:
        check_name(resources.device)  # what GPUs a cluster has, its nodes can tell
    _check_values(settings, resources)
    target = target_of(out)
    if not model.manifest.ranks:
        raise BadInput(
            f"{model.path}: the model has {model.manifest.labels} labels, and no one score to rank "
            "by; export it with `rank_label=`"
        )
    sources = _checked_sources(inputs, target, settings)
    if settings.cascade:
        settings = replace(settings, variant=_cascades_variant(model, settings))
    elif settings.columns.first is not None:
        raise BadInput(
            f"`first={settings.columns.first}`: the first stage's scores serve a cascade; give "
            "`cascade=True` too"
        )
    elif settings.variant is not None:
        model.variant(settings.variant)
    return Request(model, settings, sources, target)


def _checked_sources(
    inputs: Sequence[str], target: Target, settings: Settings
) -> tuple[Source, ...]:
    """Find the inputs. Raises BadInput where one is missing or has no use for a setting."""
    sources = find_sources(inputs, (target.out, target.job))
    if settings.run is not None and not Path(settings.run).is_file():
        raise BadInput(f"{settings.run}: no such file; `run=` takes a TREC run")
    for source in sources:
        check_options(source, settings.run, settings.split)
        if settings.depth and not source.has_first_stage:
            raise BadInput(
                f"{source.name}: `depth=` is for BEIR folders and irds: datasets; of a table all "
                "rows are ranked"
            )
    return tuple(fingerprinted(sources, settings.run))


def _check_values(settings: Settings, resources: Resources) -> None:
    """Raises BadInput for what is no number to count with, or names one column for two."""
    numbers = {"workers": resources.workers, "threads": resources.threads, "top_k": settings.top_k}
    for name, value in numbers.items():
        if value is not None and (type(value) is not int or value < 1):
            raise BadInput(f"{name} is {value!r}; give a whole number, at least 1, or leave it out")
    if settings.score == settings.rank or not settings.score or not settings.rank:
        raise BadInput(f"score={settings.score!r}, rank={settings.rank!r}: name two columns")


def _cascades_variant(model: ModelFolder, settings: Settings) -> str:
    """The variant that the folder's cascade was certified with."""
    kept = Cascade.of(model)
    if settings.variant not in (None, kept.variant):
        raise BadInput(
            f"`variant={settings.variant}`: the cascade was certified with {kept.variant}; leave "
            "it out"
        )
    if kept.order.with_score != (settings.columns.first is not None):
        goes = "without `first=`"
        if kept.order.with_score:
            goes = f"by scores, as {kept.certificate.column!r} was: name their column with `first=`"
        raise BadInput(f"{model.path}: its cascade goes {goes}")
    beyond = kept.beyond(settings.top_k)
    if beyond:
        log.warning("%s: %s", model.path, beyond)
    return kept.variant
