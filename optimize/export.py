"""Export: make a model folder of a CrossEncoder, with its ONNX graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from xopt.optimize.exporters import EXPORTERS, OPSET, export_graph
from xopt.optimize.graph.absorb import absorb_keys
from xopt.optimize.graph.attention import fuse_attention
from xopt.optimize.graph.gelu import reorder_gelu
from xopt.optimize.graph.one_row import keep_one_row
from xopt.optimize.graph.rms_norm import divide_by_root
from xopt.optimize.graph.structure import write_graph
from xopt.optimize.model.chat import asked_of
from xopt.optimize.model.facts import encoder_facts, label_names, rank_label_of
from xopt.optimize.model.legacy_config import add_legacy_config, write_json
from xopt.optimize.model.loading import check_config_files, load_checked
from xopt.optimize.model.parity import (
    check_parity,
    check_tokens,
    expected_logits,
    pairs_for,
    short_pairs,
)
from xopt.optimize.model.source import (
    WEIGHTS_INDEX,
    fingerprint,
    local_folder,
    materialise,
    read_json,
)
from xopt.runtime.errors import BadInput
from xopt.runtime.files import already_there, check_writable, keep_signals, new_folder, sha256_of
from xopt.runtime.folder import MANIFEST, ONNX_FILE, WEIGHTS, Manifest, ModelFolder
from xopt.runtime.machine import versions_here
from xopt.runtime.progress import progress
from xopt.runtime.scoring.backends.network import Network, load_encoder
from xopt.runtime.scoring.variants import exported_variants

__all__ = ["check_place", "export"]

log = logging.getLogger(__name__)

GRAPH_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export(
    model: str,
    out: Path,
    *,
    force: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    torch_only: bool = False,
    exporter: str | None = None,
    rank_label: str | None = None,
    portable: bool = False,
    template: str | None = None,
    answers: str | None = None,
) -> ModelFolder:
    """Write the model folder `out` for `model`: a hub id, a folder or `demo`.

    - `force`: replace the model folder `out`.
    - `trust_remote_code`, `allow_pickle`: allow code that comes with the model.
    - `torch_only`: leave ONNX out.
    - `exporter`: "torch" or "optimum". By default torch's, or optimum's where that fails.
    - `rank_label`: the name or number of the label that ranks. "A-B" is a difference.
    - `portable`: make a graph without operators of onnxruntime's own.
    - `template`: how a language model is asked, a file with a chat template or a known name.
    - `answers`: the tokens that a language model compares, such as "yes,no".

    The folder appears once it is complete and checked, or not at all.

    Raises BadInput where `model` is no CrossEncoder, or `out` cannot be written. Raises
    GateFailed where tokens or FP32 logits differ from the reference's.
    """
    if exporter not in (None, *EXPORTERS):
        raise BadInput(f"exporter {exporter!r}: unknown; one of {', '.join(EXPORTERS)}")
    check_place(out, force)
    _check_apart(model, out)
    with (
        progress("export", total=4, unit="steps") as step,
        materialise(model, allow_pickle) as source,
        _new_model(out, force) as folder,
    ):
        step.begin("loading")
        check_config_files(source, model)
        asked = asked_of(source, model, template, answers)
        encoder = load_checked(source, model, asked, trust_remote_code, allow_pickle)
        facts = _facts(encoder, source, model, rank_label)
        pairs = pairs_for(encoder.tokenizer, facts["max_length"], facts["truncation"])
        step.begin("scoring with sentence-transformers")
        compared = short_pairs(encoder, pairs)
        expected = expected_logits(encoder, model, compared)
        step.begin("writing the graph")
        _save(encoder, folder)
        recipe = None
        if not torch_only:
            recipe = _write_onnx(folder, facts, trust_remote_code, exporter, portable)
        made = _write_manifest(folder, _origin(model, source), recipe, facts)
        step.begin("checking")
        check_tokens(made, encoder, pairs)
        check_parity(replace(made, trusted=trust_remote_code), encoder, compared, expected)
    return ModelFolder.open(out, trust_remote_code)


@contextmanager
def _new_model(out: Path, force: bool) -> Iterator[Path]:
    """Give a folder to write to, which stands at `out` when the block ends; Ctrl-C ends it."""
    with new_folder(out, replace=force) as folder, keep_signals():
        yield folder


def _facts(encoder: Any, source: Path, model: str, rank_label: str | None) -> dict[str, Any]:
    """Return what the manifest says of a CrossEncoder, by field."""
    names = label_names(encoder.config.to_dict(), encoder.num_labels)
    return {
        **encoder_facts(encoder, model),
        "rank_label": rank_label_of(names, rank_label, source, model),
        "trained_with": read_json(source / MANIFEST).get("trained_with") or [],
    }


def check_place(out: Path, force: bool) -> None:
    """Raise BadInput where `out` cannot become a model folder."""
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{str(out)!r}: a name that is not UTF-8; choose another `out=`") from None
    if out.is_symlink() and not out.exists():
        raise BadInput(f"{out}: is a link to nothing; remove it, or choose another `out=`")
    if not out.exists():
        check_writable(out)
    elif not force:
        raise already_there(out)
    elif out.resolve() == Path.cwd():
        raise BadInput(f"{out}: is the working directory; choose another `out=`")
    elif not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise BadInput(
            f"{out}: no model folder (no {MANIFEST}); `force=True` replaces nothing else"
        )


def _check_apart(model: str, out: Path) -> None:
    """Raise BadInput where `out` would replace the model that it is made of."""
    source = local_folder(model)
    if source is None or not source.resolve().is_relative_to(out.resolve()):
        return
    way_out = "choose another `out=`"
    if (out / MANIFEST).is_file():
        origin = ModelFolder.open(out).manifest.source["model"]
        way_out += f", or export what it was made of: {origin}"
    raise BadInput(f"{out}: is, or holds, the model that is to be exported; {way_out}")


def _origin(model: str, source: Path) -> dict[str, str]:
    """Return what `same_model` and `changed_since` compare."""
    from_hub = local_folder(model) is None and source.parent.name == "snapshots"
    revision = source.name if from_hub else ""
    return {"model": model, "revision": revision, "sha256": fingerprint(source)}


def _save(encoder: Any, folder: Path) -> None:
    """Save a CrossEncoder with its weights in one file."""
    encoder.save_pretrained(str(folder), create_model_card=False)
    if not (folder / WEIGHTS).is_file():  # transformers splits large weights
        encoder.model.save_pretrained(folder, max_shard_size="1000TB")
        (folder / WEIGHTS_INDEX).unlink(missing_ok=True)
    positions = getattr(encoder.config, "max_position_embeddings", None) or 0
    if 0 < positions < encoder.max_seq_length:
        # Else sentence-transformers cuts at the positions when it opens the folder.
        file = next(folder.rglob("sentence_bert_config.json"))
        write_json(file, {**read_json(file), "max_seq_length": encoder.max_seq_length})
    add_legacy_config(folder)


def _write_onnx(
    folder: Path,
    facts: dict[str, Any],
    trusted: bool,
    exporter: str | None,
    portable: bool,
) -> dict[str, Any]:
    """Write `onnx/model.onnx`, after exact rewrites, and return its recipe."""
    network = Network(load_encoder(folder, trusted=trusted, attn_implementation="eager"))
    read = {"attention_mask", *facts["inputs"]}
    inputs = [name for name in GRAPH_INPUTS if name in read]
    graph, made_by = export_graph(network, inputs, exporter)
    graph, _ = reorder_gelu(graph)
    graph, _ = divide_by_root(graph)
    graph, narrowed = keep_one_row(graph)
    log.info("export: %d matrix products of the last layer now see one token a pair only", narrowed)
    graph, absorbed = absorb_keys(graph)
    log.info("export: %d attentions of one token make no keys and values", absorbed)
    fused = 0
    if not portable:
        graph, fused = fuse_attention(graph, facts["max_length"])
    log.info("export: %d attentions need no mask where no pair is padded", fused)
    (folder / ONNX_FILE).parent.mkdir()
    write_graph(graph, folder / ONNX_FILE)
    return {
        "exporter": made_by,
        "opset": OPSET,
        "one_row_matmuls": narrowed,
        "absorbed": absorbed,
        "fused_attentions": fused,
    }


def _write_manifest(
    folder: Path, source: dict[str, str], recipe: dict[str, Any] | None, facts: dict[str, Any]
) -> ModelFolder:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    manifest = Manifest(
        source=source,
        versions=versions_here(),
        files={file.relative_to(folder).as_posix(): sha256_of(file) for file in files},
        variants={variant.name: variant for variant in exported_variants(folder, recipe)},
        **facts,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return ModelFolder(folder, manifest)
