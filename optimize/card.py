"""Card: the README.md of a model folder, with what a hub reads and what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import onnx

from xopt.optimize.model.demo import BASE_ID
from xopt.optimize.model.source import DEMO
from xopt.runtime.errors import BadInput
from xopt.runtime.files import write_text
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.variants import one_module, plain

__all__ = ["OURS", "write_card"]

README = "README.md"
OURS = "Written by `xopt card`"
MEASURES = ("tau", "top10", "dcg10_loss")


def write_card(folder: ModelFolder, repo: str, *, base_model: str | None = None, force: bool = False) -> Path:
    """Write README.md into a model folder, for the repository `repo` that it will be uploaded to.

    `base_model` is the hub id that the folder was made of, the one that its manifest has unless given. Raises BadInput
    where nothing was measured yet, and where a README.md is there that is not its own and `force` does not replace it.
    """
    manifest, file = folder.manifest, folder.path / README
    if not manifest.measured:
        raise BadInput(f"{folder.path}: nothing was measured; run `xopt optimize {_given(folder)} -o {folder.path}`")
    if file.is_file() and not force and OURS not in file.read_text(encoding="utf-8", errors="replace"):
        raise BadInput(f"{file}: is there, and not written by xopt; --force replaces it")
    folder.check_writable()
    graphs = list(dict.fromkeys(v.file for v in manifest.variants.values() if v.file.endswith(".onnx")))
    portable = next((v.file for v in manifest.variants.values() if v.recipe.get("scheme") == "portable"), "")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xopt.optimize.report", "templates"),
        autoescape=False,  # it is no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    text = environment.get_template("card.md").render(
        manifest=manifest,
        folder=folder.path,
        repo=repo,
        base_model=json.dumps(base) if (base := base_model or _base_model(folder)) else "",  # YAML takes JSON's texts
        base=base,
        tags=_tags(folder, graphs),
        rows=lambda found: _rows(folder, found),
        plain=plain(folder) and manifest.labels == 1,
        in_sentence_transformers=plain(folder) and one_module(folder),
        graphs=graphs,
        portable=portable,
        operators={name: _operators(folder.checked(name)) for name in graphs},
    )
    write_text(file, text)
    return file


def _given(folder: ModelFolder) -> str:
    return folder.manifest.source["model"]


def _base_model(folder: ModelFolder) -> str:
    """The hub id of what the folder was made of; empty where that was no hub's."""
    if _given(folder) == DEMO:
        return BASE_ID
    return _given(folder) if folder.manifest.source.get("revision") else ""


def _tags(folder: ModelFolder, graphs: Sequence[str]) -> list[str]:
    tags = ["sentence-transformers", "cross-encoder", "reranker", *(["onnx"] if graphs else [])]
    if plain(folder) and folder.manifest.labels == 1 and graphs:
        tags.append("transformers.js")
    if any(variant.backend == "openvino" for variant in folder.manifest.variants.values()):
        tags.append("openvino")
    return [*tags, "xopt"]


def _rows(folder: ModelFolder, found: Mapping[str, Any]) -> list[list[str]]:
    """A row a variant that was judged and is there still, fastest first."""
    rows = []
    for name, judged in sorted(found["variants"].items(), key=lambda item: -(item[1]["ratio"] or 0)):
        if name in folder.manifest.variants:
            measures = [_interval(judged["measures"].get(measure)) for measure in MEASURES]
            speed = f"{judged['ratio']:.1f} x" if judged["ratio"] else ""
            verdict = judged["verdict"] + (", recommended" if name == found["recommended"] else "")
            rows.append([name, f"`{folder.variant(name).file}`", speed, *measures, verdict])
    return rows


def _interval(values: Sequence[float] | None) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]" if values else ""


def _operators(graph: Path) -> str:
    """Whose operators a graph has: every runtime's, or onnxruntime's own too."""
    model = onnx.load(graph, load_external_data=False)
    own = sorted({node.op_type for node in _nodes(model.graph) if node.domain == "com.microsoft"})
    return f"onnxruntime's own too ({', '.join(own)})" if own else "ONNX's own, for any runtime"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, those of its branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
