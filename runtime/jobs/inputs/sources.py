"""Inputs: files, folders, patterns and collections, local or on a store, and their fingerprints."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from xopt.runtime.data.tables import FILES, HIDDEN
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import sha256_of

__all__ = ["WITHOUT_FIRST_STAGE", "Source", "find_sources", "located"]

log = logging.getLogger(__name__)

WILD = "*?["
PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".snappy")
WITHOUT_FIRST_STAGE = ("parquet", "table", "hf")  # kinds of inputs: their rows are the candidates
BEIR = ("corpus.jsonl*", "queries.jsonl*", "qrels/*")


@dataclass(frozen=True)
class Source:
    """An input by its name, and the fingerprint of what it holds.

    kind: "parquet", "table" (in text), "hf" (a Hugging Face dataset), or, with a first stage,
    "collection" (a BEIR folder) or "data set" (irds: and the demo's). The fingerprint is the
    sha256 of a local file or of all files of a local folder, size and time of change of a file on
    a store, and nothing for a data set that a library provides. place: its path or address,
    however it was named.
    """

    name: str
    kind: str
    fingerprint: str
    place: str


def located(name: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address, and the path there. Raises BadInput where there is
    none of that kind.

    s3, gs, abfs and hdfs are Arrow's; of others (https, hf and what else fsspec has) fsspec's are
    taken.
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


def find_sources(
    inputs: Sequence[str], run: str | None = None, made: Sequence[Path] = ()
) -> list[Source]:
    """The sources that `inputs` name, in their order, a folder's and a pattern's by name, without
    what a job `made`.

    Raises BadInput where one is missing, of no known kind, named twice or what the job makes, and
    where `run` goes with no collection.
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
    first: dict[str, str] = {}
    for (name, _), place in zip(found, places, strict=True):
        if place in first:
            raise BadInput(f"{name}: named twice, also as {first[place]}; name it once")
        first[place] = name
    if run is not None and any(kind in WITHOUT_FIRST_STAGE for _, kind in found):
        named = next(name for name, kind in found if kind in WITHOUT_FIRST_STAGE)
        raise BadInput(
            f"{named}: --run names documents of a BEIR folder or an irds: dataset; this is neither"
        )
    with ThreadPoolExecutor() as threads:
        prints = threads.map(lambda item: _fingerprint(item[0], item[1], run), found)
        return [
            Source(*item, made_of, place)
            for item, made_of, place in zip(found, prints, places, strict=True)
        ]


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{name!r}: a name that is not UTF-8; rename it") from None


def _made(name: str, made: Sequence[Path]) -> bool:
    """Whether it is, or lies in, what the job makes."""
    if "://" in name:
        return False
    path = Path(name).resolve()
    return any(path == place or place in path.parents for place in made)


def _named(name: str, run: str | None, made: Sequence[Path]) -> list[tuple[str, str]]:
    if name == "demo" or (name.startswith(("hf:", "irds:")) and "://" not in name):
        return [(name, "hf" if name.startswith("hf:") else "data set")]
    system, path = located(name)
    try:
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound and any(c in name for c in WILD):
            return _matching(name, run, made)
        if info.type == fs.FileType.Directory:
            if known := _within(name, system, path, run):
                return known
            raise BadInput(
                f"{name}: no {', '.join(FILES)} file in it, and no corpus.jsonl of a BEIR folder"
            )
    except (OSError, UnicodeError) as error:  # Arrow's names of files are UTF-8
        raise BadInput(f"{name}: cannot be read ({first_line(error)})") from error
    if info.type == fs.FileType.NotFound:
        raise BadInput(
            f"{name}: no such file or folder; give {', '.join(FILES)} files, a BEIR folder, irds:ID or hf:ID"
        )
    kind = _kind(name)
    if kind is None:
        raise BadInput(
            f"{name}: unknown kind {Path(path).suffix!r}; give {', '.join(FILES)} files, gzipped or not"
        )
    return [(name, kind)]


def _kind(name: str) -> str | None:
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    if suffix not in FILES or (suffix == ".parquet" and name.lower().endswith(".gz")):
        return None
    return "parquet" if suffix == ".parquet" else "table"


def _listed(system: fs.FileSystem, folder: str, deep: bool) -> dict[str, fs.FileType]:
    """What stands in a folder, or below it, by path from there: hidden ones are left out, lost
    links NotFound.
    """
    start = len(folder.rstrip("/")) + 1
    found = system.get_file_info(fs.FileSelector(folder, recursive=deep))
    types = {info.path[start:]: info.type for info in found}
    if isinstance(system, fs.LocalFileSystem):  # Arrow leaves out links that lead nowhere
        links = (
            path
            for path in (Path(folder).rglob("*") if deep else Path(folder).iterdir())
            if path.is_symlink()
        )
        types |= {str(path)[start:]: fs.FileType.NotFound for path in links if not path.exists()}
    return {
        path: types[path]
        for path in sorted(types)
        if not any(p.startswith(HIDDEN) for p in path.split("/"))
    }


def _found(path: str, type_: fs.FileType) -> bool:
    """Whether it is a file. Raises BadInput for a link that leads nowhere."""
    if type_ == fs.FileType.NotFound:
        raise BadInput(f"{path}: a link to what is not there; mend or remove it")
    return bool(type_ == fs.FileType.File)


def _within(name: str, system: fs.FileSystem, path: str, run: str | None) -> list[tuple[str, str]]:
    """The files of a folder that are read, or the collection that it is."""
    start = name.rstrip("/")
    below = [
        file
        for file, type_ in _listed(system, path, deep=True).items()
        if _found(f"{start}/{file}", type_)
    ]
    if "://" not in name and (
        run is not None or any(file.startswith("corpus.jsonl") for file in below)
    ):
        return [(name, "collection")]
    return _known(name, [(f"{start}/{file}", _kind(file)) for file in below])


def _known(name: str, found: Sequence[tuple[str, str | None]]) -> list[tuple[str, str]]:
    """The files of a kind that is read; others are left out with a warning, but for packed ones,
    which are refused.
    """
    others = [file for file, kind in found if kind is None]
    for file in others:
        if Path(file.lower()).suffix in PACKED and Path(Path(file.lower()).stem).suffix in FILES:
            raise BadInput(
                f"{file}: cannot be read; unpack it, and give {', '.join(FILES)} files, gzipped but for Parquet"
            )
    if others and len(others) < len(found):
        log.warning(
            "%s: %d files of other kinds are left out: %.160s", name, len(others), ", ".join(others)
        )
    return [(file, kind) for file, kind in found if kind is not None]


def _matching(name: str, run: str | None, made: Sequence[Path]) -> list[tuple[str, str]]:
    """The files that a pattern names, and those in folders that it does; `**` is any number of
    folders, and none.
    """
    head = name[: min(name.find(c) for c in WILD if c in name)].rpartition("/")[0]
    system, folder = located(head or ("/" if name.startswith("/") else "."))
    if system.get_file_info(folder).type != fs.FileType.Directory:
        raise BadInput(f"{name}: no such folder: {head}")
    pattern = name[len(head) :].strip("/").split("/")
    start = f"{head}/" if head or name.startswith("/") else ""
    files: list[tuple[str, str | None]] = []
    found: list[tuple[str, str]] = []
    for each, type_ in _fitting(system, folder, pattern).items():
        if type_ != fs.FileType.NotFound and _made(start + each, made):
            continue
        if _found(start + each, type_):
            files.append((start + each, _kind(each)))
        elif type_ == fs.FileType.Directory and pattern[-1] != "**":  # else what is in it fits too
            inner = _within(start + each, system, f"{folder.rstrip('/')}/{each}", run)
            found += inner
            if not inner:
                log.warning(
                    "%s: a folder without %s files is left out", start + each, ", ".join(FILES)
                )
    if not (known := sorted(set(_known(name, [*files, *found])))):
        raise BadInput(f"{name}: no {', '.join(FILES)} file has such a name")
    return known


def _fitting(system: fs.FileSystem, folder: str, pattern: Sequence[str]) -> dict[str, fs.FileType]:
    """What fits a pattern below a folder: only such folders are looked into as may hold it."""
    if "**" in pattern:
        below = _listed(system, folder, deep=True)
        return {path: type_ for path, type_ in below.items() if _fits(path.split("/"), pattern)}
    first, *rest = pattern
    here = {
        name: type_
        for name, type_ in _listed(system, folder, deep=False).items()
        if fnmatchcase(name, first)
    }
    if not rest:
        return here
    folders = [name for name, type_ in here.items() if type_ == fs.FileType.Directory]
    inner = {name: _fitting(system, f"{folder.rstrip('/')}/{name}", rest) for name in folders}
    return {
        f"{name}/{each}": type_ for name, found in inner.items() for each, type_ in found.items()
    }


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return _fits(path, pattern[1:]) or (bool(path) and _fits(path[1:], pattern))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _sha256_of_all(folder: Path, files: Sequence[Path], more: Sequence[str] = ()) -> str:
    lines = [f"{file.relative_to(folder)} {sha256_of(file)}" for file in files]
    return hashlib.sha256("\n".join([*lines, *more]).encode()).hexdigest()


def _fingerprint(name: str, kind: str, run: str | None) -> str:
    try:
        if kind == "hf":
            local = Path(name.removeprefix("hf:").partition(":")[0])
            files = [path for path in sorted(local.rglob("*")) if path.is_file()]
            return _sha256_of_all(local, files) if local.is_dir() else ""
        if kind == "data set":
            return "" if run is None else sha256_of(Path(run))
        if kind == "collection":
            files = [path for pattern in BEIR for path in sorted(Path(name).glob(pattern))]
            return _sha256_of_all(
                Path(name), files, [sha256_of(Path(run))] if run is not None else []
            )
        system, path = located(name)
        if isinstance(system, fs.LocalFileSystem):
            return sha256_of(Path(path))
        info = system.get_file_info(path)
        return f"{info.size} bytes of {info.mtime}"
    except OSError as error:
        raise BadInput(f"{name}: cannot be read ({first_line(error)})") from error
