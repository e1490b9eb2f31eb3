"""A job on disk: what goes in and what comes out, by which model, and which parts are done."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from xopt.runtime.data.columns import Columns
from xopt.runtime.data.places import Place, shown
from xopt.runtime.data.sources import Source, is_same
from xopt.runtime.errors import BadInput
from xopt.runtime.files import check_writable, writing
from xopt.runtime.formats import OtherVersion, check_format, read
from xopt.runtime.jobs.inputs.files import File
from xopt.runtime.jobs.inputs.parts import Part, Slice
from xopt.runtime.jobs.output import Target
from xopt.runtime.jobs.score import Counts
from xopt.runtime.locks import locked

__all__ = ["Job", "Record", "Settings", "only_one"]

FORMAT = 2
AGAIN = "give another `out=`, or start again with `force=True`"


@dataclass(frozen=True)
class Settings:
    """What makes a job another one: see `rerank_files`. variant: None until it is chosen."""

    variant: str | None = None
    cascade: bool = False
    columns: Columns = field(default_factory=Columns)
    score: str = "score"
    rank: str = "rank"
    top_k: int | None = None
    ids_only: bool = False
    run: str | None = None
    split: str | None = None
    depth: int | None = None

    def by_name(self) -> dict[str, Any]:
        """Give the values by the names of their arguments, those of columns too."""
        values = asdict(self)
        columns = values.pop("columns")
        return {**values, **columns}


@dataclass(frozen=True)
class Record:
    """What a job is, and how it is cut.

    model: the fingerprint of what makes the scores. replaces: whether a file that stood at OUT
    before is to be replaced. finished: the bytes of the one file that was made.
    """

    settings: Settings
    sources: tuple[Source, ...]
    model: str
    files: tuple[File, ...]
    schema: pa.Schema
    parts: tuple[tuple[Slice, ...], ...]
    replaces: bool = False
    finished: int | None = None

    def to_json(self, folder: Path) -> str:
        """Write it down. Places in the job's folder are kept relative to it, since it may move.

        What follows the path of an address is left out: a signature there is a secret.
        """
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()

        def plain(value: Any) -> Any:
            if not isinstance(value, Place):
                return {field.name: getattr(value, field.name) for field in fields(value)}
            path = Path(value.path)
            if value.is_local and folder in path.parents:
                return {"path": path.relative_to(folder).as_posix(), "store": ""}
            return {"path": shown(value.path), "store": shown(value.store)}

        values = {"format": FORMAT, **vars(self), "schema": schema}
        return json.dumps(values, default=plain) + "\n"

    @staticmethod
    def from_json(text: str, folder: Path) -> Record:
        """Read what `to_json` wrote.

        Raises OtherVersion for what another version wrote, and ValueError, KeyError or TypeError
        for anything else.
        """
        values = json.loads(text)
        check_format(values, FORMAT)
        values["settings"] = _settings(values["settings"])
        values["sources"] = tuple(_source(each, folder) for each in values["sources"])
        values["files"] = tuple(_file(each, folder) for each in values["files"])
        values["schema"] = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"])))
        values["parts"] = tuple(tuple(map(_slice, part)) for part in values["parts"])
        return read(Record, values)

    def found_at(self, sources: Sequence[Source]) -> Record:
        """Give the record with the places where its sources are now, which may have moved.

        The address of a store may have another signature. A fingerprint of content stays.
        """
        pairs = list(zip(self.sources, sources, strict=True))
        now = [replace(new, fingerprint=old.fingerprint) for old, new in pairs]
        places = {old.place: new.place for old, new in pairs}
        names = {old.name: new.name for old, new in pairs}
        files = [
            replace(
                file,
                name=names.get(file.name, file.name),
                place=places.get(file.place) or file.place,
            )
            for file in self.files
        ]
        return replace(self, sources=tuple(now), files=tuple(files))


def _place(values: dict[str, str] | None, folder: Path) -> Place | None:
    if values is None:
        return None
    place = read(Place, values)
    return replace(place, path=str(folder / place.path)) if place.is_local else place


def _settings(values: dict[str, Any]) -> Settings:
    return read(Settings, {**values, "columns": read(Columns, values.get("columns", {}))})


def _source(values: dict[str, Any], folder: Path) -> Source:
    return read(Source, {**values, "place": _place(values["place"], folder)})


def _file(values: dict[str, Any], folder: Path) -> File:
    columns = read(Columns, values["columns"])
    return read(File, {**values, "columns": columns, "place": _place(values["place"], folder)})


def _slice(values: Sequence[int]) -> Slice:
    file, start, stop = values
    return file, start, stop


class Job:
    """A job on disk."""

    def __init__(self, target: Target, record: Record) -> None:
        self.target = target
        self.record = record

    @staticmethod
    def open(target: Target) -> Job | None:
        """Open the job that was begun for a target, if any.

        Raises BadInput where its record cannot be read.
        """
        file = target.record
        if not file.is_file():
            return None
        try:
            return Job(target, Record.from_json(file.read_text(encoding="utf-8"), target.job))
        except OtherVersion as error:
            raise BadInput(
                f"{target.job}: was begun by {error}; use that version, or give another `out=`"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise BadInput(f"{file}: is damaged ({error}); bring it back, {AGAIN}") from error

    @staticmethod
    def begin(target: Target, record: Record) -> Job:
        """Write the record of a new job."""
        job = Job(target, record)
        for folder in (target.job / "done", target.part(0).parent):
            folder.mkdir(parents=True, exist_ok=True)
        job._write_record()
        return job

    def go_on(self, settings: Settings, sources: Sequence[Source], model: str) -> None:
        """Go on with these sources.

        Raises BadInput where something else is asked than the job was begun for. It does so too
        where its inputs or its model changed, or something stands at OUT that it did not make.
        """
        begun = f"{self.target.job}: this job was begun with"
        asked = settings.by_name()
        for name, value in self.record.settings.by_name().items():
            # Of a run the content counts, which stands in the sources' fingerprints.
            is_moved_run = name == "run" and value and asked[name]
            if asked[name] != value and not is_moved_run:
                raise BadInput(f"{begun} {name}={value!r}, not {asked[name]!r}; {AGAIN}")
        self._check_sources(sources, begun)
        if model != self.record.model:
            raise BadInput(f"{begun} another model folder, or that was made again since; {AGAIN}")
        made = self.record.replaces or self.record.finished is not None or not self.target.one_file
        if not made and self.target.out.exists():
            raise BadInput(
                f"{self.target.out}: was not made by the job in {self.target.job}, which is not "
                "done; move it away, and give the same command again"
            )
        self.record = self.record.found_at(sources)

    def _check_sources(self, sources: Sequence[Source], begun: str) -> None:
        """Raises BadInput for other sources; those of the same content may have moved."""
        before = self.record.sources
        pairs = list(zip(before, sources, strict=False))
        same = [is_same(*pair) for pair in pairs]
        # What is not the same was changed where it lies, or is another input.
        stayed = [(was.kind, was.where) == (now.kind, now.where) for was, now in pairs]
        is_other = [not (one or other) for one, other in zip(same, stayed, strict=True)]
        if any(is_other) or len(before) != len(sources):
            then = ", ".join(source.where for source in before)
            now = ", ".join(source.where for source in sources)
            raise BadInput(f"{begun} the inputs {then:.160}, not {now:.160}; {AGAIN}")
        if not all(same):
            changed = sources[same.index(False)].name
            if self.record.settings.run is not None:
                changed += " or its run"
            raise BadInput(
                f"{changed}: changed since {self.target.job} was begun; put it back, {AGAIN}"
            )

    def parts(self) -> list[Part]:
        """Give all parts."""
        return [Part(number, slices) for number, slices in enumerate(self.record.parts)]

    def noted(self) -> list[int]:
        """Give the numbers of the parts that were done, at a glance."""
        numbers = range(len(self.record.parts))
        return [number for number in numbers if self.target.note(number).exists()]

    def done(self) -> dict[int, Counts]:
        """Give what was counted in the parts that are written whole, by their numbers."""
        found = {}
        for number, counts in self.notes().items():
            file = self.target.part(number)
            if file.is_file() and file.stat().st_size == counts.bytes:
                found[number] = counts
        return found

    def left(self, parts: Sequence[Part]) -> list[Part]:
        """Give those of `parts` that are not done."""
        done = self.done()
        return [part for part in parts if part.number not in done]

    def killed(self, done: Collection[int]) -> dict[int, int]:
        """Give the parts, but those done, within which processes were killed, and how often."""
        times = {
            int(mark.stem): len(mark.read_text(encoding="utf-8").splitlines())
            for mark in self.target.marks()
        }
        # A mark without a line was begun on a full disk.
        return {number: count for number, count in times.items() if count and number not in done}

    def forget_killed(self) -> None:
        """Remove the marks of parts that were begun: nothing runs, and none is to blame."""
        for mark in self.target.marks():
            mark.unlink(missing_ok=True)

    def finish(self) -> None:
        """Make the one file of the parts, if that is asked."""
        if self.target.one_file:
            with self.target.joined(range(len(self.record.parts))) as made:
                # Before it stands at OUT: what does and is not noted is a user's own.
                self._write_finished(made)
        else:
            self._write_finished(0)

    def tidy(self) -> None:
        """Remove what a finished job no longer needs."""
        self.target.check_own()
        self.forget_killed()
        for folder in (*self.target.job.glob("prepared*"), self.target.job / "parts"):
            shutil.rmtree(folder, ignore_errors=True)

    def _write_finished(self, made: int) -> None:
        self.record = replace(self.record, finished=made)
        self._write_record()

    def _write_record(self) -> None:
        with self.target.new_file(self.target.record) as temporary:
            text = self.record.to_json(self.target.job)
            temporary.write_text(text, encoding="utf-8", errors="replace")

    def has_files(self) -> bool:
        """Tell whether the files that were prepared are there still: they go when all is done."""
        paths = [Path(file.place.path) for file in self.record.files if file.place.is_local]
        return all(path.is_file() for path in paths if self.target.job in path.parents)

    def is_finished(self) -> bool:
        """Tell whether all was made, and is there still.

        Raises BadInput where the one file was changed since.
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
            raise BadInput(f"{self.target.out}: changed since it was made; {AGAIN}")
        return True

    def notes(self) -> dict[int, Counts]:
        """Give what was counted in each part that was done, by its number."""
        found = {}
        for number in range(len(self.record.parts)):
            # A note that is not there, or was cut short by a power failure, is none.
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                note = json.loads(self.target.note(number).read_text(encoding="utf-8"))
                found[number] = Counts.noted(note)
        return found


@contextlib.contextmanager
def only_one(target: Target) -> Iterator[Target]:
    """Be the only process that works at a job, and yield the target that knows it.

    Raises BadInput where another one does.
    """
    check_writable(target.out)
    with writing(target.job):
        target.job.mkdir(parents=True, exist_ok=True)
    try:
        with locked(target.job, wait=False) as lock:
            target.sweep()
            try:
                yield replace(target, lock=lock)
            except OSError:
                lock.check()  # what the job reads and writes is gone where it was taken over
                raise
    except BlockingIOError as error:
        raise BadInput(
            f"{target.job}: another process works at this job ({error}); wait for it"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            target.job.rmdir()  # where no job was begun
