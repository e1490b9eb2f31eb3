"""Sources: the files, folders, patterns and collections that a user names."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pyarrow import fs

from xopt.runtime.data.places import Place, located, reached, shown
from xopt.runtime.data.text import READERS
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import sha256_of, sha256_of_stream

__all__ = ["DEMO", "KINDS", "Source", "find_sources", "fingerprinted", "is_same"]

log = logging.getLogger(__name__)

DEMO = "demo"
KINDS = ", ".join((*READERS, ".parquet"))
SHA256 = re.compile("[0-9a-f]{64}")
PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".snappy")
WILD = "*?["
# Hadoop and Spark skip files whose names begin so.
HIDDEN = (".", "_")
COLLECTION_FILES = ("corpus.jsonl*", "queries.jsonl*", "qrels/*")
COLLECTION_MARKS = ("corpus.jsonl", "corpus.jsonl.gz", "qrels")  # by which a BEIR folder is known
# The folders of tables whose log says which of their files count, and who reads them.
LOGS = {
    "_delta_log": "a Delta table: read it with daft.read_deltalake and rerank()",
    ".hoodie": "a Hudi table: read it with daft.read_hudi and rerank()",
    "metadata": "an Iceberg table: read it with daft.read_iceberg and rerank()",
    "_spark_metadata": "a table of Spark's streaming: read it with Spark",
}


@dataclass(frozen=True)
class Source:
    """One file or one data set that candidates are read from.

    kind: "parquet", "text" (JSON lines, CSV or TSV) or "hf" (a Hugging Face dataset). Those with a
    first stage are "collection" (a BEIR folder), "irds" and "demo". place: where it lies, none for
    a data set that a library provides. fingerprint: see `fingerprinted`.
    """

    name: str
    kind: str
    place: Place | None = None
    fingerprint: str = ""

    @property
    def has_first_stage(self) -> bool:
        """Whether documents are chosen for its queries; else its rows are the candidates."""
        return self.kind in ("collection", "irds", "demo")

    @property
    def where(self) -> str:
        """Its path, without secrets, or its name."""
        return shown(self.place.path) if self.place is not None else self.name

    @property
    def is_known_by_content(self) -> bool:
        """Whether the fingerprint is the sha256 of all that it holds."""
        is_sha256 = SHA256.fullmatch(self.fingerprint) is not None
        return is_sha256 and self.kind not in ("irds", "demo")  # they have the run's


def find_sources(inputs: Iterable[str], made: Sequence[Path] = ()) -> list[Source]:
    """Find what `inputs` name, in their order; the files of a folder or a pattern by name.

    `made` are the places that a job writes to: what lies there is no source. Raises BadInput where
    an input is missing, of no known kind or named twice, or is what the job writes.
    """
    found: list[Source] = []
    for given in inputs:
        found += _named(given, made)
    if not found:
        raise BadInput("no inputs; name files, folders or data sets of candidates")
    first: dict[object, str] = {}
    for source in found:
        key = source.place.path if source.place else source.name
        if key in first:
            raise BadInput(f"{source.name}: named twice, also as {first[key]}; name it once")
        first[key] = source.name
    _refuse_tables_with_a_log(found)
    return found


def fingerprinted(sources: Sequence[Source], run: str | None) -> list[Source]:
    """Fill in what tells whether a source has changed.

    Of a local file it is the sha256, of a local collection or dataset that of all its files. On a
    store it is size and time of change. A collection has the run's sha256 with it, and a data set
    that a library provides has that alone.
    """
    with ThreadPoolExecutor() as threads:
        prints = threads.map(lambda source: _fingerprint(source, run), sources)
        return [replace(s, fingerprint=each) for s, each in zip(sources, prints, strict=True)]


def is_same(was: Source, source: Source) -> bool:
    """Whether a source is the one that it was, with the content that it had.

    What lay on this machine may lie elsewhere: on a store it is read, for its sha256. Size and time
    are enough for what lies on a store where it lay, and nowhere else.
    """
    if was.kind != source.kind:
        return False
    if not was.is_known_by_content:
        return was.where == source.where and was.fingerprint == source.fingerprint
    place = source.place
    if place is None or place.is_local or source.kind not in ("parquet", "text"):
        return was.fingerprint == source.fingerprint
    log.info("%s: is read whole, since its sha256 tells whether it is the same", source.name)
    with place.open() as stream:
        return sha256_of_stream(stream) == was.fingerprint


def _named(given: str, made: Sequence[Path]) -> list[Source]:
    """The sources of one input."""
    if given == DEMO:
        return [Source(given, "demo")]
    if given.startswith(("hf:", "irds:")) and "://" not in given:
        return [Source(given, given.partition(":")[0])]
    _check_name(given)
    place, name = located(given), shown(given)
    if place.is_local and Path(place.path) in made:
        raise BadInput(f"{name}: is what would be written; give another `out=`")
    try:
        with reached(place):
            type_ = place.system.get_file_info(place.path).type
        if type_ == fs.FileType.Directory:
            found = _in_folder(name, place, made)
            if not found:
                raise BadInput(
                    f"{name}: no {KINDS} file in it, and no corpus.jsonl of a BEIR folder"
                )
            return found
        if type_ == fs.FileType.NotFound and any(wild in name for wild in WILD):
            return _matching(name, place, made)
    except OSError as error:
        raise BadInput(f"{name}: cannot be read ({first_line(error)})") from error
    if type_ != fs.FileType.File:
        raise BadInput(
            f"{name}: no such file or folder; give `demo`, a BEIR folder, irds:ID, hf:ID, or "
            f"{KINDS} files"
        )
    kind = _kind(name)
    if kind is None:
        suffix = PurePosixPath(name).suffix
        raise BadInput(f"{name}: unknown kind {suffix!r}; give {KINDS} files, gzipped or not")
    return [Source(name, kind, place)]


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{name!r}: a name that is not UTF-8; rename it") from None


def _kind(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(".parquet"):
        return "parquet"
    return "text" if lower.removesuffix(".gz").endswith(tuple(READERS)) else None


def _in_folder(name: str, place: Place, made: Sequence[Path]) -> list[Source]:
    """The collection that a folder holds, or the files in it and below."""
    marks = [f"{place.path.rstrip('/')}/{mark}" for mark in COLLECTION_MARKS]
    infos = place.system.get_file_info(marks)
    if any(info.type != fs.FileType.NotFound for info in infos):
        return [Source(name, "collection", place)]
    return _files(f"{name.rstrip('/')}/", place, "**", made)


def _matching(name: str, place: Place, made: Sequence[Path]) -> list[Source]:
    """The files that a pattern names, and those in the folders that it names."""
    start = min(name.find(wild) for wild in WILD if wild in name)
    head = name[:start].rpartition("/")[0]
    pattern = name[len(head) :].lstrip("/")
    above = located(head or ("/" if name.startswith("/") else "."))
    if not above.is_local:
        above = replace(above, store=place.store)
    if above.system.get_file_info(above.path).type != fs.FileType.Directory:
        raise BadInput(f"{name}: no such folder: {head}")
    prefix = name[: len(name) - len(pattern)]
    found = _files(prefix, above, pattern, made)
    if not found:
        raise BadInput(f"{name}: no {KINDS} file has such a name")
    return found


def _files(prefix: str, folder: Place, pattern: str, made: Sequence[Path]) -> list[Source]:
    """The files below a folder that fit a pattern, or lie in a folder that does.

    `prefix` stands before their names in messages. Others are left out with a warning, but for
    packed ones, which are refused.
    """
    found: dict[str, Source] = {}
    others: list[str] = []
    results: list[str] = []
    empty: list[str] = []
    for path, is_folder in sorted(_globbed(folder, pattern).items()):
        if is_folder and pattern.endswith("**"):
            continue  # what is in it fits too
        name = prefix + path
        place = _below(folder, path, name)
        if _is_made(place, made):
            continue
        if _is_of_a_job(folder, PurePosixPath(path)):
            results.append(path)
        elif is_folder:
            within = _in_folder(name, place, made)
            found.update((source.name, source) for source in within)
            empty += [] if within else [path]
        elif (kind := _kind(path)) is not None:
            _check_name(name)
            found[name] = Source(name, kind, place)
        else:
            _refuse_packed(name)
            others.append(path)
    _warn(prefix, f"{len(results)} files that jobs of `xopt rerank` made are left out", results)
    if found:
        _warn(prefix, f"{len(others)} files of other kinds are left out", others)
        _warn(prefix, f"{len(empty)} folders without {KINDS} files are left out", empty)
    return [found[name] for name in sorted(found)]


def _below(folder: Place, path: str, name: str) -> Place:
    """The place of a path below a folder. Raises BadInput for a link that leads nowhere.

    On this machine links are followed: what has several names is one file.
    """
    place = f"{folder.path.rstrip('/')}/{path}"
    if not folder.is_local:
        return replace(folder, path=place)
    if not Path(place).exists():
        raise BadInput(f"{name}: a link to what is not there; mend or remove it")
    return Place(os.path.realpath(place))


def _warn(prefix: str, what: str, names: Sequence[str]) -> None:
    if names:
        log.warning("%s: %s: %.160s", prefix, what, ", ".join(names))


def _globbed(folder: Place, pattern: str) -> dict[str, bool]:
    """What fits a pattern below a folder, by its path from there, and whether it is a folder."""
    if folder.is_local:
        names = glob.glob(pattern, root_dir=folder.path, recursive=True)  # noqa: PTH207 # follows links
        found = {name.rstrip("/"): Path(folder.path, name).is_dir() for name in names}
    else:
        from fsspec.implementations.arrow import ArrowFSWrapper

        top = folder.path.rstrip("/")
        try:
            system = ArrowFSWrapper(folder.system)
            if pattern == "**":
                matches = system.find(top, detail=True)
            else:
                matches = system.glob(f"{glob.escape(top)}/{pattern}", detail=True)
        except ValueError as error:  # of `**` beside other letters
            raise BadInput(f"{shown(folder.store)}: not a pattern ({first_line(error)})") from error
        found = {
            path[len(top) :].strip("/"): info["type"] == "directory"
            for path, info in matches.items()
        }
    return {path: is_folder for path, is_folder in found.items() if not _is_hidden(path)}


def _is_made(place: Place, made: Sequence[Path]) -> bool:
    """Whether it is, or lies in, what the job makes."""
    own = Path(place.path)
    return place.is_local and any(own == each or each in own.parents for each in made)


def _is_hidden(path: str) -> bool:
    """Whether a path is empty, or a part of it is none of a table's."""
    return not path or any(part.startswith(HIDDEN) for part in path.split("/"))


def _is_of_a_job(folder: Place, path: PurePosixPath) -> bool:
    """Whether a file below a folder is what another job made there, or lies in that job's own.

    A job's folder stands beside what it makes. A folder or a file that is named itself is read.
    """
    if not folder.is_local:
        return False
    for each in (path, *path.parents[:-1]):
        beside = Path(folder.path, each.with_name(f"{each.name}.job"))
        inside = Path(folder.path, each)
        if (beside / "job.json").is_file():
            return True
        if each.suffix == ".job" and (inside / "job.json").is_file():
            return True
    return False


def _refuse_packed(name: str) -> None:
    """Raises BadInput for a table in a packing that is not read: it would be left out."""
    path = PurePosixPath(name.lower())
    if path.suffix in PACKED and (_kind(path.stem) is not None):
        raise BadInput(
            f"{name}: cannot be read; unpack it, and give {KINDS} files, gzipped but for Parquet"
        )


def _refuse_tables_with_a_log(sources: Sequence[Source]) -> None:
    """Raises BadInput for the files of a Delta, Iceberg or Hudi table.

    Their folders hold rows that were deleted, and earlier versions of rows; a log beside them says
    which files count.
    """
    folders: dict[Place, Source] = {}
    for source in sources:
        if source.place is None or source.place.path.startswith(("http:", "https:")):
            continue  # HTTP lists no folders
        path = PurePosixPath(source.place.path)
        above = path.parents if source.kind != "collection" else (path, *path.parents)
        for folder in above:
            if str(folder) != ".":
                folders.setdefault(replace(source.place, path=str(folder)), source)
    for place, source in folders.items():
        table = _table_with_a_log(place)
        if table is not None:
            raise BadInput(
                f"{source.name}: of {table}, or write a copy of its rows; its log says which files "
                "count"
            )


def _table_with_a_log(folder: Place) -> str | None:
    """What table a folder is the root of, and how to read it."""
    names = [f"{folder.path.rstrip('/')}/{name}" for name in LOGS]
    try:
        infos = folder.system.get_file_info(names)
    except Exception:  # a folder that may not be looked into, for which each store has its own
        return None
    for info, (name, table) in zip(infos, LOGS.items(), strict=True):
        if info.type != fs.FileType.Directory:
            continue
        if name != "metadata" or _is_icebergs(folder.system, info.path):
            return table
    return None


def _is_icebergs(system: fs.FileSystem, folder: str) -> bool:
    found = system.get_file_info(fs.FileSelector(folder))
    return any(".metadata.json" in info.path for info in found)


def _sha256_of_all(folder: Path, files: Iterable[Path], more: Sequence[str] = ()) -> str:
    lines = [f"{file.relative_to(folder)} {sha256_of(file)}" for file in files]
    return hashlib.sha256("\n".join([*lines, *more]).encode()).hexdigest()


def _fingerprint(source: Source, run: str | None) -> str:
    runs = [sha256_of(Path(run))] if run is not None else []
    place = source.place
    try:
        if source.kind == "hf":
            local = Path(source.name.removeprefix("hf:").partition(":")[0])
            files = [path for path in sorted(local.rglob("*")) if path.is_file()]
            return _sha256_of_all(local, files) if local.is_dir() else ""
        if place is None:
            return "".join(runs)
        if place.is_local and source.kind != "collection":
            return sha256_of(Path(place.path))
        if place.is_local:
            folder = Path(place.path)
            files = [file for name in COLLECTION_FILES for file in folder.glob(name)]
            return _sha256_of_all(folder, sorted(files), runs)
        infos = [place.system.get_file_info(place.path)]
        if source.kind == "collection":
            infos = place.system.get_file_info(fs.FileSelector(place.path, recursive=True))
        return "; ".join([*(f"{info.size} bytes of {info.mtime}" for info in infos), *runs])
    except OSError as error:
        raise BadInput(f"{source.name}: cannot be read ({first_line(error)})") from error
