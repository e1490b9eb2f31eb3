"""The model card: the README.md of a model folder, for a hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from xopt.optimize.model.demo import BASE_ID
from xopt.optimize.model.source import DEMO
from xopt.optimize.report.page import load_template
from xopt.runtime.errors import BadInput
from xopt.runtime.files import write_text
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.variants import runs_in_sentence_transformers

__all__ = ["OURS", "write_card"]

OURS = "Written by `xopt card`"  # a README.md without it is the user's


def write_card(
    folder: ModelFolder,
    repo: str,
    *,
    base_model: str | None = None,
    force: bool = False,
) -> Path:
    """Write README.md into a model folder: metadata for a hub, and what was measured.

    The code in it loads `repo`, where the folder will be uploaded to. `base_model` is
    the hub id that it was made of, unless its manifest has one. Raises BadInput where
    nothing was measured, or a README.md is there that xopt did not write, unless `force`.
    """
    file = folder.path / "README.md"
    _check(folder, file, force)
    variants = folder.manifest.variants.values()
    files = dict.fromkeys(variant.file for variant in variants)
    graphs = [name for name in files if name.endswith(".onnx")]
    portable = [each.file for each in variants if each.recipe.get("scheme") == "portable"]
    bare = _is_bare(folder)
    text = load_template("card.md").render(
        manifest=folder.manifest,
        repo=repo,
        base_model=base_model or _base_model(folder),
        tags=_tags(folder, bool(graphs), bare),
        bare=bare,
        in_sentence_transformers=runs_in_sentence_transformers(folder),
        graphs=graphs,
        portable=portable[0] if portable else "",
        operators_by_graph={name: _operators(folder.checked(name)) for name in graphs},
    )
    write_text(file, text + "\n")
    return file


def _check(folder: ModelFolder, file: Path, force: bool) -> None:
    if not folder.manifest.measured:
        model = folder.manifest.source["model"]
        raise BadInput(
            f"{folder.path}: nothing was measured; run `xopt optimize {model} -o {folder.path}`"
        )
    there = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else OURS
    if OURS not in there and not force:
        raise BadInput(f"{file}: was not written by xopt; `force=True` replaces it")
    folder.check_writable()


def _is_bare(folder: ModelFolder) -> bool:
    """Whether tools that add no prompt and take the first logit can run it."""
    manifest = folder.manifest
    return (
        manifest.padding_side == "right"
        and manifest.labels == 1
        and not manifest.template
        and not manifest.prompt
    )


def _base_model(folder: ModelFolder) -> str:
    """The hub id of what the folder was made of, or nothing."""
    source = folder.manifest.source
    if source["model"] == DEMO:
        return BASE_ID
    return source["model"] if source.get("revision") else ""


def _tags(folder: ModelFolder, has_graphs: bool, bare: bool) -> list[str]:
    tags = ["sentence-transformers", "cross-encoder", "reranker"]
    if has_graphs:
        tags.append("onnx")
    if has_graphs and bare:
        tags.append("transformers.js")
    variants = folder.manifest.variants.values()
    if any(variant.backend == "openvino" for variant in variants):
        tags.append("openvino")
    return [*tags, "xopt"]


def _operators(graph: Path) -> str:
    """Whose operators a graph has: ONNX's alone, or onnxruntime's too."""
    nodes = _nodes(onnx.load(graph, load_external_data=False).graph)
    own = sorted({node.op_type for node in nodes if node.domain == "com.microsoft"})
    if own:
        return f"onnxruntime's own too ({', '.join(own)})"
    return "ONNX's own, for any runtime"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of its branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
