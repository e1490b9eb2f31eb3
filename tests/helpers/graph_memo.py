"""Graphs that torch has exported before, kept on disk by all that they are made of.

torch's exporter takes seconds for the smallest network, and the tests ask for the same few again
and again. Only its own call is remembered: all of xopt's steps before and after it run as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import torch
from filelock import FileLock
from transformers import PretrainedConfig

KEPT_FOR_S = 7 * 24 * 3600
LIBRARIES = ("torch", "onnx", "onnxscript", "transformers", "sentence-transformers")
PLAIN = (bool, int, float, str, type(None), torch.dtype)


class GraphMemo:
    """Stands for `torch.onnx.export`, and asks it where no graph of such a network is kept in
    `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.export = torch.onnx.export
        self.exporting_s = 0.0

    def __call__(self, network: torch.nn.Module, tokens: Any, *others: Any, **how: Any) -> Any:
        """A program as torch's, of which xopt reads `model_proto`."""
        if not how.get("dynamo"):  # an exporter of others, which writes a file
            return self.export(network, tokens, *others, **how)
        start = time.monotonic()
        file = self.folder / f"{key_of(network, tokens, how)}.onnx"
        with FileLock(f"{file}.lock"):  # the other worker may be making the same
            if not file.is_file():
                unfinished = file.with_suffix(".part")
                onnx.save(self.export(network, tokens, **how).model_proto, unfinished)
                unfinished.replace(file)
        file.touch()
        program = SimpleNamespace(model_proto=onnx.load(file))
        self.exporting_s += time.monotonic() - start
        return program

    def taken_s(self) -> float:
        """Seconds of exporting since this was last asked."""
        taken, self.exporting_s = self.exporting_s, 0.0
        return taken

    def forget(self) -> None:
        """Remove what no test has asked for lately."""
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # the other worker was there first
                if time.time() - file.stat().st_mtime > KEPT_FOR_S:
                    file.unlink()


def key_of(network: torch.nn.Module, tokens: tuple[torch.Tensor, ...], how: dict[str, Any]) -> str:
    """The sha256 of weights, settings, code, versions and options."""
    key = hashlib.sha256()
    for library in LIBRARIES:
        key.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    for part in (*_code(network), *_settings(network)):
        key.update(f"{part}\n".encode())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        key.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        key.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    shapes = [tuple(tensor.shape) for tensor in tokens]
    key.update(f"{shapes} {sorted(how.items())}".encode())
    return key.hexdigest()


def _code(network: torch.nn.Module) -> Iterator[str]:
    """The source of modules that no version number stands for."""
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    for kind in sorted(kinds, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        yield f"{kind.__module__}.{kind.__qualname__}"
        library = kind.__module__.split(".")[0]
        if library == "xopt":
            yield Path(inspect.getfile(kind)).read_text(encoding="utf-8")
        elif library not in ("builtins", "torch", "transformers", "sentence_transformers"):
            yield inspect.getsource(kind)


def _settings(network: torch.nn.Module) -> Iterator[str]:
    for name, module in network.named_modules():
        yield f"{name} {type(module).__qualname__} {_plain(vars(module))}"


def _plain(value: Any) -> Any:
    """What of an attribute can change a graph, in values that print the same in each run."""
    if isinstance(value, PLAIN):
        return "a path" if isinstance(value, str) and "/" in value else value
    if isinstance(value, PretrainedConfig):
        return _plain({**value.to_dict(), "attention": value._attn_implementation})
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return type(value).__qualname__
