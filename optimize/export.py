"""Export: a CrossEncoder becomes a model folder that holds its ONNX graph and everything beside
it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from xopt.optimize.exporters import EXPORTERS, OPSET, export_graph
from xopt.optimize.graph.absorb import absorb_keys
from xopt.optimize.graph.attention import fuse_attention
from xopt.optimize.graph.gelu import reorder_gelu
from xopt.optimize.graph.one_row import keep_one_row
from xopt.optimize.graph.structure import write_graph
from xopt.optimize.model.facts import encoder_facts, label_names, rank_label_of, trained_with
from xopt.optimize.model.parity import (
    check_parity,
    check_tokens,
    expected_logits,
    pairs_for,
    short_pairs,
)
from xopt.optimize.model.portable import write_for_all_versions
from xopt.optimize.model.source import (
    check_cross_encoder,
    check_files,
    check_weights,
    fingerprint,
    local_folder,
    materialise,
    task_of,
)
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import already_there, check_writable, heard, new_folder, sha256_of
from xopt.runtime.folder import MANIFEST, ONNX_FILE, WEIGHTS, Manifest, ModelFolder
from xopt.runtime.machine import versions_here
from xopt.runtime.scoring.backends.network import DTYPE, Network, load_encoder
from xopt.runtime.scoring.encode import clean
from xopt.runtime.scoring.variants import exported_variants

__all__ = ["check_place", "check_source", "export"]

log = logging.getLogger(__name__)

PADDED_LEFT = (
    "; its tokenizer pads on the left, and its scores change with the padding of their batch"
)
PYTORCH = {"format": "pt"}


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
) -> ModelFolder:
    """Write the model folder `out` for `model`, a hub id, a folder or `demo`.

    The folder appears when it is complete and has passed its check, else not at all. `torch_only`
    leaves ONNX out, and needs no exporter; `exporter` is one of `EXPORTERS`, see there. A
    `portable` graph has no operators of onnxruntime's own. A model of several labels needs
    `rank_label`: the label that ranks, by name or number, two with a minus for the difference of
    their logits, or "none". Raises BadInput where `model` is not a CrossEncoder, `out` can't be
    written or is there and, with `force`, no model folder, and GateFailed where the tokens, or
    the logits of an FP32 variant by more than `allowed_difference`, differ from those of
    sentence-transformers for the model as it was given.
    """
    if exporter not in (None, *EXPORTERS):
        raise BadInput(f"exporter {exporter!r}: unknown; one of {', '.join(EXPORTERS)}")
    check_place(out, force)
    check_source(model, out)
    with (
        materialise(model, allow_pickle) as source,
        new_folder(out, replace=force) as folder,
        heard(),
    ):
        check_files(source, model)
        check_cross_encoder(source, model, trust_remote_code)
        check_weights(source, model, allow_pickle)
        _check_weights_fit(source, model, trust_remote_code, allow_pickle)
        try:
            encoder = load_encoder(source, trusted=trust_remote_code, pickles=allow_pickle)
        except Exception as error:  # each architecture and tokenizer fails in its own way
            raise BadInput(f"{model}: cannot be loaded ({first_line(error)})") from error
        facts = encoder_facts(encoder, model)
        names = label_names(encoder.config.to_dict(), encoder.num_labels)
        facts["rank_label"] = rank_label_of(names, rank_label, source, model)
        facts["trained_with"] = trained_with(source)
        pairs = pairs_for(encoder.tokenizer, facts["max_length"], facts["truncation"])
        short = short_pairs(encoder, pairs)
        expected = expected_logits(encoder, model, short)
        _save(encoder, folder)
        write_for_all_versions(folder)
        recipe = None
        if not torch_only:
            recipe = _write_onnx(folder, facts["inputs"], trust_remote_code, exporter, portable)
        made = _write_manifest(folder, {"model": model, **_origin(model, source)}, recipe, facts)
        check_tokens(made, encoder, pairs)
        left = encoder.tokenizer.padding_side == "left" and facts["padding_side"] == "right"
        check_parity(
            replace(made, trusted=trust_remote_code),
            encoder,
            short,
            expected,
            PADDED_LEFT if left else "",
        )
    return ModelFolder.open(out, trust_remote_code)


def check_place(out: Path, force: bool) -> None:
    """Raises BadInput where `out` cannot become a model folder, before anything is loaded."""
    if out.is_symlink() and not out.exists():
        raise BadInput(f"{out}: is a link to nothing; remove it, or choose another folder with -o")
    if not str(out).isprintable() and clean(str(out)) != str(out):
        raise BadInput(f"{str(out)!r}: its name is no text in UTF-8; choose another folder with -o")
    if out.exists() and force:
        if out.resolve() == Path.cwd():
            raise BadInput(
                f"{out}: is the working directory; go elsewhere, or choose another folder with -o"
            )
        if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
            raise BadInput(
                f"{out}: no model folder (it has no {MANIFEST}); --force replaces nothing else"
            )
    elif out.exists():
        raise already_there(out)
    else:
        check_writable(out)


def check_source(model: str, out: Path) -> None:
    """Raises BadInput where `out` would replace the model that it is made of."""
    source = local_folder(model)
    if source is None or (place := out.resolve()) not in (
        source.resolve(),
        *source.resolve().parents,
    ):
        return
    way = "choose another folder with -o"
    if (place / MANIFEST).is_file():
        given = ModelFolder.open(place).manifest.source.get("model")
        way += f", or export what it was made of: {given}"
    raise BadInput(
        f"{out}: is, or holds, the model that is to be exported, and what was made of it since; {way}"
    )


def _origin(model: str, source: Path) -> dict[str, str]:
    """The hub's revision and the files' fingerprint, by which `changed_since` tells whether the
    model is the same.
    """
    from_hub = local_folder(model) is None and source.parent.name == "snapshots"
    return {"revision": source.name if from_hub else "", "sha256": fingerprint(source)}


def _check_weights_fit(
    source: Path, given: str, trust_remote_code: bool, allow_pickle: bool
) -> None:
    """Raises BadInput where weights of the network are not in its files: a head that was never
    trained, or got lost.
    """
    task = task_of(source)
    kind = getattr(transformers, {"": "AutoModel"}.get(task, f"AutoModelFor{task}"))
    try:
        _, info = kind.from_pretrained(
            source,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            **{DTYPE: torch.float32},
        )
    except Exception as error:  # each architecture fails in its own way
        raise BadInput(f"{given}: cannot be loaded ({first_line(error)})") from error
    # which no module reads
    missing = sorted(key for key in info["missing_keys"] if task or "pooler" not in key)
    if missing:
        raise BadInput(
            f"{given}: its weights lack {missing[0]!r}; the head was never trained or got lost"
        )


def _save(encoder: Any, folder: Path) -> None:
    """Save the CrossEncoder with all that it carries beside its weights, and those in one file."""
    encoder.save_pretrained(str(folder), create_model_card=False)
    if 0 < (getattr(encoder.config, "max_position_embeddings", None) or 0) < encoder.max_seq_length:
        # As it is opened again, sentence-transformers takes the lesser of the two where it is not
        # told.
        file = next(folder.rglob("sentence_bert_config.json"))
        settings = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(
            json.dumps({**settings, "max_seq_length": encoder.max_seq_length}, indent=4),
            encoding="utf-8",
        )
    if (folder / WEIGHTS).is_file():
        return
    # transformers splits weights of more than 5 GB
    shards = sorted(folder.glob("model-*.safetensors"))
    save_file(
        {name: tensor for shard in shards for name, tensor in load_file(shard).items()},
        folder / WEIGHTS,
        PYTORCH,
    )
    for file in (*shards, folder / f"{WEIGHTS}.index.json"):
        file.unlink()


def _write_onnx(
    folder: Path, inputs: Sequence[str], trusted: bool, exporter: str | None, portable: bool
) -> dict[str, Any]:
    """Export into `onnx/model.onnx`, rewritten, exactly, to less work; how it was made."""
    network = Network(load_encoder(folder, trusted=trusted, attn_implementation="eager"))
    read = [
        name
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in (*inputs, "attention_mask")
    ]
    model, made_by = export_graph(network, read, exporter)
    model, narrowed = keep_one_row(reorder_gelu(model)[0])
    model, absorbed = absorb_keys(model)
    model, fused = (model, 0) if portable else fuse_attention(model)
    (folder / ONNX_FILE).parent.mkdir()
    write_graph(model, folder / ONNX_FILE)
    log.info("export: %d matrix products of the last layer now see one token a pair only", narrowed)
    log.info("export: %d attentions of one token make no keys and values", absorbed)
    log.info("export: %d attentions are one operator where no pair is padded", fused)
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
    files = {
        f.relative_to(folder).as_posix(): sha256_of(f)
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }
    variants = exported_variants(folder, recipe)
    manifest = Manifest(
        source=source,
        versions=versions_here(),
        files=files,
        variants={v.name: v for v in variants},
        **facts,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return ModelFolder(folder, manifest)
