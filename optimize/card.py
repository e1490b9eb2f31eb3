"""Card: the README.md of a model folder, with what a hub reads and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from xopt.optimize.model.demo import BASE_ID
from xopt.optimize.model.source import DEMO
from xopt.optimize.report.page import template_named
from xopt.runtime.errors import BadInput
from xopt.runtime.files import write_text
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.variants import reads_as_others

__all__ = ["OURS", "write_card"]

README = "README.md"
OURS = "Written by `xopt card`"


def write_card(
    folder: ModelFolder, repo: str, *, base_model: str | None = None, force: bool = False
) -> Path:
    """Write README.md into a model folder, for the repository `repo` that it will be uploaded to.

    `base_model` is the hub id that the folder was made of, the one that its manifest has unless
    given. Raises BadInput where nothing was measured yet, and where a README.md is there that is
    not its own and `force` does not replace it.
    """
    manifest, file = folder.manifest, folder.path / README
    if not manifest.measured:
        raise BadInput(
            f"{folder.path}: nothing was measured; run `xopt optimize {_given(folder)} -o {folder.path}`"
        )
    if (
        file.is_file()
        and not force
        and OURS not in file.read_text(encoding="utf-8", errors="replace")
    ):
        raise BadInput(f"{file}: is there, and not written by xopt; --force replaces it")
    folder.check_writable()
    graphs = list(
        dict.fromkeys(v.file for v in manifest.variants.values() if v.file.endswith(".onnx"))
    )
    # Other tools add no prompt, and take the first logit for the score.
    bare = (
        manifest.padding_side == "right"
        and not (manifest.template or manifest.prompt)
        and manifest.labels == 1
    )
    text = template_named("card.md").render(
        manifest=manifest,
        repo=repo,
        base_model=base_model or _base_model(folder),
        tags=_tags(folder, graphs, bare),
        bare=bare,
        in_sentence_transformers=reads_as_others(folder),
        graphs=graphs,
        portable=next(
            (v.file for v in manifest.variants.values() if v.recipe.get("scheme") == "portable"), ""
        ),
        operators={name: _operators(folder.checked(name)) for name in graphs},
    )
    write_text(file, text + "\n")
    return file


def _given(folder: ModelFolder) -> str:
    return folder.manifest.source["model"]


def _base_model(folder: ModelFolder) -> str:
    """The hub id of what the folder was made of; empty where that was no hub's."""
    if _given(folder) == DEMO:
        return BASE_ID
    return _given(folder) if folder.manifest.source.get("revision") else ""


def _tags(folder: ModelFolder, graphs: Sequence[str], bare: bool) -> list[str]:
    openvino = any(variant.backend == "openvino" for variant in folder.manifest.variants.values())
    tags = {
        "onnx": bool(graphs),
        "transformers.js": bool(graphs) and bare,
        "openvino": openvino,
        "xopt": True,
    }
    return [
        "sentence-transformers",
        "cross-encoder",
        "reranker",
        *(tag for tag, fits in tags.items() if fits),
    ]


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
