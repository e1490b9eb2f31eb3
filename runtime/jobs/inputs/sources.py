"""Inputs: files, folders, patterns and collections, local or on a store, and their fingerprints."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from xopt.runtime.data.tables import FILES, HIDDEN
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import sha256_of

__all__ = ["Source", "find_sources", "located"]

log = logging.getLogger(__name__)

WILD = "*?["
PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".snappy")
BEIR = ("corpus.jsonl*", "queries.jsonl*", "qrels/*")


@dataclass(frozen=True)
class Source:
    """An input by its name: a Parquet file, a table in text, or a collection; and the fingerprint of what it holds.

    That is the sha256 of a local file or of all files of a local folder, size and time of change of a file on a store,
    and nothing for a data set that a library provides. place: its path or address, however it was named.
    """

    name: str
    kind: str
    fingerprint: str
    place: str


def located(name: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address, and the path there. Raises BadInput where there is none of that kind.

    s3, gs, abfs and hdfs are Arrow's; of others (https, hf and what else fsspec has) fsspec's are taken.
    """
    if "://" not in name:
        return fs.LocalFileSystem(), str(Path(name).resolve())
    try:
        system, path = fs.FileSystem.from_uri(name)
    except (pa.ArrowException, OSError, ValueError):
        try:
            import fsspec

            found, path = fsspec.core.url_to_fs(name)
            system = fs.PyFileSystem(fs.FSSpecHandler(found))
        except (ImportError, ValueError, OSError) as error:
            raise BadInput(f"{name}: cannot be reached ({first_line(error)})") from error
    return system, path


def find_sources(inputs: Sequence[str], run: str | None = None, made: Sequence[Path] = ()) -> list[Source]:
    """The sources that `inputs` name, in their order, a folder's and a pattern's by name, without what a job `made`.

    Raises BadInput where one is missing, of no known kind, named twice or what the job makes, and where `run` goes with
    no collection.
    """
    if run is not None and not Path(run).is_file():
        raise BadInput(f"{run}: no such file; --run takes a TREC run")
    found: list[tuple[str, str]] = []
    for given in inputs:
        _check_name(given)
        if "://" not in given and Path(given).resolve() in made:
            raise BadInput(f"{given}: is what would be written; give another -o")
        for name, kind in _named(given, run):
            if "://" in name or not _within_any(Path(name).resolve(), made):
                found.append((name, kind))
    if not found:
        raise BadInput("no inputs; name files, folders or data sets of candidates")
    places = [located(name)[1] if kind != "data set" else name for name, kind in found]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise BadInput(f"{found[number][0]}: named twice, also as {found[places.index(place)][0]}; name it once")
    if run is not None and any(kind in ("parquet", "table") for _, kind in found):
        named = next(name for name, kind in found if kind in ("parquet", "table"))
        raise BadInput(f"{named}: --run names documents of a BEIR folder or an irds: dataset; this is neither")
    with ThreadPoolExecutor() as threads:
        prints = threads.map(lambda item: _fingerprint(item[0], item[1], run), found)
        return [Source(*item, made_of, place) for item, made_of, place in zip(found, prints, places, strict=True)]


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{name!r}: a name that is not UTF-8; rename it") from None


def _within_any(path: Path, places: Sequence[Path]) -> bool:
    return any(path == place or place in path.parents for place in places)


def _named(name: str, run: str | None) -> list[tuple[str, str]]:
    if name == "demo" or (name.startswith(("hf:", "irds:")) and "://" not in name):
        return [(name, "data set")]
    system, path = located(name)
    try:
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound and any(c in name for c in WILD):
            return _matching(name)
        if info.type == fs.FileType.Directory:
            return _within(name, system, path, run)
    except OSError as error:
        raise BadInput(f"{name}: cannot be read ({first_line(error)})") from error
    if info.type == fs.FileType.NotFound:
        raise BadInput(
            f"{name}: no such file or folder; give {', '.join(FILES)} files, a BEIR folder, irds:ID or hf:ID"
        )
    kind = _kind(name)
    if kind is None:
        raise BadInput(f"{name}: unknown kind {Path(path).suffix!r}; give {', '.join(FILES)} files, gzipped or not")
    return [(name, kind)]


def _kind(name: str) -> str | None:
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    if suffix not in FILES or (suffix == ".parquet" and name.lower().endswith(".gz")):
        return None
    return "parquet" if suffix == ".parquet" else "table"


def _files(system: fs.FileSystem, folder: str) -> list[str]:
    """The visible files below a folder, by path. Raises BadInput for a link that leads nowhere."""
    below = len(folder.rstrip("/")) + 1

    def visible(path: str) -> bool:
        return not any(part.startswith(HIDDEN) for part in path[below:].split("/"))

    local = Path(folder).rglob("*") if isinstance(system, fs.LocalFileSystem) else ()
    lost = next((path for path in local if path.is_symlink() and not path.exists() and visible(str(path))), None)
    if lost is not None:  # Arrow leaves it out
        raise BadInput(f"{lost}: a link to what is not there; mend or remove it")
    found = system.get_file_info(fs.FileSelector(folder, recursive=True))
    return sorted(info.path for info in found if info.type == fs.FileType.File and visible(info.path))


def _within(name: str, system: fs.FileSystem, path: str, run: str | None) -> list[tuple[str, str]]:
    files = _files(system, path)
    if "://" not in name and (run is not None or any(Path(f).name.startswith("corpus.jsonl") for f in files)):
        return [(name, "collection")]
    found = [(name.rstrip("/") + file[len(path.rstrip("/")) :], _kind(file)) for file in files]
    if not (known := _known(name, found)):
        raise BadInput(f"{name}: no {', '.join(FILES)} file in it, and no corpus.jsonl of a BEIR folder")
    return known


def _known(name: str, found: Sequence[tuple[str, str | None]]) -> list[tuple[str, str]]:
    """The files of a kind that is read; others are left out with a warning, but for packed ones, which are refused."""
    others = [file for file, kind in found if kind is None]
    for file in others:
        if Path(file.lower()).suffix in PACKED and Path(Path(file.lower()).stem).suffix in FILES:
            raise BadInput(
                f"{file}: cannot be read; unpack it, and give {', '.join(FILES)} files, gzipped but for Parquet"
            )
    if others and len(others) < len(found):
        log.warning("%s: %d files of other kinds are left out: %.160s", name, len(others), ", ".join(others))
    return [(file, kind) for file, kind in found if kind is not None]


def _matching(name: str) -> list[tuple[str, str]]:
    head = name[: min(name.find(c) for c in WILD if c in name)].rpartition("/")[0]
    system, folder = located(head or ("/" if name.startswith("/") else "."))
    if system.get_file_info(folder).type != fs.FileType.Directory:
        raise BadInput(f"{name}: no such folder: {head}")
    below = [file[len(folder.rstrip("/")) + 1 :] for file in _files(system, folder)]
    pattern = name[len(head) :].lstrip("/")
    deep = [f for f in below if "**" in name or f.count("/") == pattern.count("/")]
    fitting = [f for f in deep if fnmatch.fnmatchcase(f, pattern)]
    start = f"{head}/" if head or name.startswith("/") else ""
    if not (known := _known(name, [(start + f, _kind(f)) for f in fitting])):
        raise BadInput(f"{name}: no {', '.join(FILES)} file has such a name")
    return known


def _sha256_of_all(folder: Path, files: Sequence[Path], more: Sequence[str] = ()) -> str:
    lines = [f"{file.relative_to(folder)} {sha256_of(file)}" for file in files]
    return hashlib.sha256("\n".join([*lines, *more]).encode()).hexdigest()


def _fingerprint(name: str, kind: str, run: str | None) -> str:
    try:
        if kind == "data set":
            local = Path(name.removeprefix("hf:").partition(":")[0])
            if name.startswith("hf:") and local.is_dir():
                return _sha256_of_all(local, [path for path in sorted(local.rglob("*")) if path.is_file()])
            return "" if run is None else sha256_of(Path(run))
        if kind == "collection":
            files = [path for pattern in BEIR for path in sorted(Path(name).glob(pattern))]
            return _sha256_of_all(Path(name), files, [sha256_of(Path(run))] if run is not None else [])
        system, path = located(name)
        if isinstance(system, fs.LocalFileSystem):
            return sha256_of(Path(path))
        info = system.get_file_info(path)
        return f"{info.size} bytes of {info.mtime}"
    except OSError as error:
        raise BadInput(f"{name}: cannot be read ({first_line(error)})") from error
