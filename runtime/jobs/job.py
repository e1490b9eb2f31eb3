"""A job's own record: what goes in and what comes out, by which model, and which parts are done."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from xopt.runtime.errors import BadInput
from xopt.runtime.files import check_writable, locked, write_text, writing
from xopt.runtime.jobs.inputs.columns import Columns
from xopt.runtime.jobs.inputs.files import File
from xopt.runtime.jobs.inputs.parts import Part
from xopt.runtime.jobs.inputs.sources import Source
from xopt.runtime.jobs.output import Target
from xopt.runtime.jobs.score import Counts

__all__ = ["Job", "Record", "only_one"]

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What a job is asked, and how it is cut.

    replaces: whether a file that stood at OUT before is to be replaced. finished: the bytes of
    the one file that was made.
    """

    asked: dict[str, Any]
    sources: tuple[Source, ...]
    model: str
    files: tuple[File, ...]
    schema: pa.Schema
    parts: tuple[tuple[tuple[int, int, int], ...], ...]
    replaces: bool = False
    finished: int | None = None

    def to_json(self) -> str:
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return json.dumps({"format": FORMAT, **vars(self), "schema": schema}, default=asdict) + "\n"

    @staticmethod
    def from_json(text: str) -> Record:
        values = json.loads(text)
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        values["sources"] = tuple(Source(**each) for each in values["sources"])
        values["files"] = tuple(
            File(**{**each, "columns": Columns(**each["columns"])}) for each in values["files"]
        )
        values["schema"] = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"])))
        values["parts"] = tuple(tuple((f, a, b) for f, a, b in part) for part in values["parts"])
        return Record(**values)


class Job:
    """A job on disk."""

    def __init__(self, target: Target, record: Record) -> None:
        self.target, self.record = target, record

    @staticmethod
    def open(target: Target) -> Job | None:
        """The job that was begun for a target, if any. Raises BadInput where its record cannot be
        read.
        """
        file = target.record
        if not file.is_file():
            return None
        try:
            return Job(target, Record.from_json(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise BadInput(
                f"{file}: not a job that this xopt reads ({error}); start again with --force"
            ) from error

    @staticmethod
    def begin(target: Target, record: Record) -> Job:
        """Write the record of a new job."""
        job = Job(target, record)
        for folder in (target.job / "done", target.part(0).parent):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(target.record, record.to_json())
        return job

    def check(self, asked: dict[str, Any], sources: Sequence[Source], model: str) -> None:
        """Raises BadInput where the command asks something else than the job did, or its inputs
        or model changed.

        Or where something stands at OUT that it did not make.
        """
        there = f"{self.target.job}: this job"
        out = "; give another -o, or start again with --force"
        for name, value in self.record.asked.items():
            if asked[name] != value:
                raise BadInput(f"{there} was begun with {name}={value!r}, not {asked[name]!r}{out}")
        before, now = ([source.place for source in each] for each in (self.record.sources, sources))
        if before != now:
            raise BadInput(
                f"{there} was begun with the inputs {', '.join(before):.160}, not {', '.join(now):.160}{out}"
            )
        for old, new in zip(self.record.sources, sources, strict=True):
            if old.fingerprint != new.fingerprint:
                raise BadInput(
                    f"{new.name}: changed since {self.target.job} was begun; put it back{out.replace(';', ',', 1)}"
                )
        if model != self.record.model:
            raise BadInput(
                f"{there} was begun with another model folder, or that was made again since{out}"
            )
        made = self.record.replaces or self.record.finished is not None or not self.target.one_file
        if not made and self.target.out.exists():
            raise BadInput(
                f"{self.target.out}: was not made by the job in {self.target.job}, which is not done; move it away, "
                "and give the same command again"
            )

    def parts(self) -> list[Part]:
        """All parts."""
        return [Part(number, slices) for number, slices in enumerate(self.record.parts)]

    def noted(self) -> list[int]:
        """The numbers of the parts that were done, at a glance."""
        return [
            number for number in range(len(self.record.parts)) if self.target.note(number).exists()
        ]

    def done(self) -> dict[int, Counts]:
        """The parts that are written whole, with what was counted."""

        def whole(number: int, counts: Counts) -> bool:
            file = self.target.part(number)
            return file.is_file() and file.stat().st_size == counts.bytes

        return {number: counts for number, counts in self.notes().items() if whole(number, counts)}

    def left(self, parts: Sequence[Part]) -> list[Part]:
        """Those of `parts` that are not done."""
        done = self.done()
        return [part for part in parts if part.number not in done]

    def finish(self) -> None:
        """Make the one file of the parts, if that is asked."""
        if self.target.one_file:
            with self.target.joined(range(len(self.record.parts))) as made:
                # before it stands at OUT: what does and is not noted is a user's own
                self._write_finished(made)
        else:
            self._write_finished(0)

    def tidy(self) -> None:
        """Remove what a finished job no longer needs."""
        for folder in (*self.target.job.glob("prepared*"), self.target.job / "parts"):
            shutil.rmtree(folder, ignore_errors=True)

    def _write_finished(self, made: int) -> None:
        self.record = replace(self.record, finished=made)
        write_text(self.target.record, self.record.to_json())

    def has_files(self) -> bool:
        """Whether the files that were prepared for it are there still: they go when all is done."""
        mine = (Path(file.path) for file in self.record.files if "://" not in file.path)
        return all(file.is_file() for file in mine if self.target.job in file.parents)

    def is_finished(self) -> bool:
        """Whether all was made, and is there still. Raises BadInput where the one file was
        changed since.
        """
        if self.record.finished is None:
            return False
        if not self.target.one_file:
            return len(self.done()) == len(self.record.parts)
        if not self.target.out.is_file():
            return False
        if self.target.out.stat().st_size != self.record.finished:
            if self.record.replaces and len(self.done()) == len(self.record.parts):
                return False  # killed before it replaced what was there: parts go afterwards
            raise BadInput(
                f"{self.target.out}: changed since it was made; give another -o, or start again with --force"
            )
        return True

    def notes(self) -> dict[int, Counts]:
        """What was counted in each part that was done; a note that cannot be read is none."""
        found = {}
        for number in range(len(self.record.parts)):
            # none, or cut short by a power failure
            with contextlib.suppress(OSError, ValueError, TypeError):
                found[number] = Counts(
                    **json.loads(self.target.note(number).read_text(encoding="utf-8"))
                )
        return found


@contextlib.contextmanager
def only_one(target: Target) -> Iterator[None]:
    """Be the only process that works at a job. Raises BadInput where another one does."""
    check_writable(target.out)
    with writing(target.job):
        target.job.mkdir(parents=True, exist_ok=True)
    try:
        with locked(target.job, wait=False):
            target.sweep()
            yield
    except BlockingIOError:
        raise BadInput(f"{target.job}: another process works at this job; wait for it") from None
    finally:
        with contextlib.suppress(OSError):
            target.job.rmdir()  # where no job was begun
