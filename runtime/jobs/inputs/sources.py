"""Inputs: files, folders, patterns and collections, local or on a store, and their fingerprints."""

from __future__ import annotations

import glob
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

__all__ = ["ROWS", "Source", "find_sources", "located"]

log = logging.getLogger(__name__)

WILD = "*?["
PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".snappy")
ROWS = ("parquet", "table", "hf")  # kinds whose rows are the candidates; others have a first stage
BEIR = ("corpus.jsonl*", "queries.jsonl*", "qrels/*")


@dataclass(frozen=True)
class Source:
    """An input by its name, and the fingerprint of what it holds.

    kind: "parquet", "table" (in text), "hf" (a Hugging Face dataset), or, with a first stage, "collection" (a BEIR
    folder) or "data set" (irds: and the demo's). The fingerprint is the sha256 of a local file or of all files of a
    local folder, size and time of change of a file on a store, and nothing for a data set that a library provides.
    place: its path or address, however it was named.
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
        found += [(name, kind) for name, kind in _named(given, run, made) if not _made(name, made)]
    if not found:
        raise BadInput("no inputs; name files, folders or data sets of candidates")
    places = [located(name)[1] if kind not in ("hf", "data set") else name for name, kind in found]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise BadInput(f"{found[number][0]}: named twice, also as {found[places.index(place)][0]}; name it once")
    if run is not None and any(kind in ROWS for _, kind in found):
        named = next(name for name, kind in found if kind in ROWS)
        raise BadInput(f"{named}: --run names documents of a BEIR folder or an irds: dataset; this is neither")
    with ThreadPoolExecutor() as threads:
        prints = threads.map(lambda item: _fingerprint(item[0], item[1], run), found)
        return [Source(*item, made_of, place) for item, made_of, place in zip(found, prints, places, strict=True)]


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{name!r}: a name that is not UTF-8; rename it") from None


def _made(name: str, made: Sequence[Path]) -> bool:
    """Whether it is, or lies in, what the job makes."""
    path = Path(name).resolve()
    return "://" not in name and any(path == place or place in path.parents for place in made)


def _named(name: str, run: str | None, made: Sequence[Path]) -> list[tuple[str, str]]:
    if name == "demo" or (name.startswith(("hf:", "irds:")) and "://" not in name):
        return [(name, "hf" if name.startswith("hf:") else "data set")]
    system, path = located(name)
    try:
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound and any(c in name for c in WILD):
            return _matching(name, run, made)
        if info.type == fs.FileType.Directory:
            return _within(name, system, path, run)
    except (OSError, UnicodeError) as error:  # Arrow's names of files are UTF-8
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
    below = [file[len(path.rstrip("/")) + 1 :] for file in _files(system, path)]
    if "://" not in name and (run is not None or any(file.startswith("corpus.jsonl") for file in below)):
        return [(name, "collection")]
    found = [(f"{name.rstrip('/')}/{file}", _kind(file)) for file in below]
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


def _matching(name: str, run: str | None, made: Sequence[Path]) -> list[tuple[str, str]]:
    """The files that a pattern names, and those in folders that it does; `**` is any number of folders, and none."""
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper

    head = name[: min(name.find(c) for c in WILD if c in name)].rpartition("/")[0]
    system, folder = located(head or ("/" if name.startswith("/") else "."))
    if system.get_file_info(folder).type != fs.FileType.Directory:
        raise BadInput(f"{name}: no such folder: {head}")
    folder, pattern = folder.rstrip("/"), name[len(head) :].lstrip("/")
    # Arrow has no patterns, and leaves out links that lead nowhere.
    able = fsspec.filesystem("file") if isinstance(system, fs.LocalFileSystem) else ArrowFSWrapper(system)
    below = [path[len(folder) :].lstrip("/") for path in able.glob(f"{glob.escape(folder)}/{pattern}")]
    start = f"{head}/" if head or name.startswith("/") else ""
    files: list[tuple[str, str | None]] = []
    found: list[tuple[str, str]] = []
    for each in sorted({each.rstrip("/") for each in below} - {""}):
        if any(part.startswith(HIDDEN) for part in each.split("/")) or _made(start + each, made):
            continue
        info = system.get_file_info(f"{folder}/{each}")
        if info.type == fs.FileType.NotFound:
            raise BadInput(f"{start}{each}: a link to what is not there; mend or remove it")
        if info.type == fs.FileType.File:
            files.append((start + each, _kind(each)))
        elif "**" not in pattern:  # else what is in it has a name of its own
            found += _within(start + each, system, info.path, run)
    if not (known := sorted([*_known(name, files), *found])):
        raise BadInput(f"{name}: no {', '.join(FILES)} file has such a name")
    return known


def _sha256_of_all(folder: Path, files: Sequence[Path], more: Sequence[str] = ()) -> str:
    lines = [f"{file.relative_to(folder)} {sha256_of(file)}" for file in files]
    return hashlib.sha256("\n".join([*lines, *more]).encode()).hexdigest()


def _fingerprint(name: str, kind: str, run: str | None) -> str:
    try:
        if kind == "hf":
            local = Path(name.removeprefix("hf:").partition(":")[0])
            return _sha256_of_all(local, [path for path in sorted(local.rglob("*")) if path.is_file()])
        if kind == "data set":
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
