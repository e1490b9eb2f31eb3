"""Export: a CrossEncoder becomes a model folder that holds its ONNX graph and everything beside it."""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from xopt.optimize.model.parity import check_parity, expected_logits, first_line, pairs_for
from xopt.optimize.model.source import (
    check_cross_encoder,
    check_files,
    check_weights,
    fingerprint,
    local_folder,
    materialise,
)
from xopt.runtime.errors import BadInput
from xopt.runtime.files import already_there, check_writable, new_folder, sha256_of
from xopt.runtime.folder import MANIFEST, ONNX_FILE, WEIGHTS, Manifest, ModelFolder
from xopt.runtime.scoring.encode import clean
from xopt.runtime.scoring.variants import exported_variants

__all__ = ["export"]

log = logging.getLogger(__name__)

OPSET = 18
LIBRARIES = (
    "xopt-rerank",
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
)
PADDED_LEFT = "; its tokenizer pads on the left, and its scores change with the padding of their batch"
PYTORCH = {"format": "pt"}
UNLIMITED = 1 << 20  # positions of models whose configuration names no limit


def export(
    model: str,
    out: Path,
    *,
    force: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    torch_only: bool = False,
) -> ModelFolder:
    """Write the model folder `out` for `model`, a hub id, a folder or `demo`.

    The folder appears when it is complete and has passed its check, else not at all. `torch_only` leaves
    ONNX out, and needs neither onnx nor optimum. Raises BadInput where `model` is not a CrossEncoder, `out`
    can't be written or is there and, with `force`, no model folder, and GateFailed where the logits of an FP32 variant
    differ by more than `MAX_DIFFERENCE` from those of sentence-transformers for the model as it was given.
    """
    _check_place(out, force)
    with materialise(model, allow_pickle) as source, new_folder(out, replace=force) as folder:
        check_files(source, model)
        check_cross_encoder(source, model, trust_remote_code)
        check_weights(source, model, allow_pickle)
        encoder, network, facts = _load(source, model, trust_remote_code, allow_pickle)
        pairs = pairs_for(encoder.tokenizer, facts["max_length"], facts["truncation"])
        expected = expected_logits(encoder, model, pairs)
        _save(encoder, folder)
        rewrites = None
        if not torch_only:
            _write_onnx(network, folder)
            rewrites = _rewrite(folder / ONNX_FILE)
        made = _write_manifest(folder, {"model": model, **_origin(model, source)}, rewrites, facts)
        left = encoder.tokenizer.padding_side == "left"
        check_parity(replace(made, trusted=trust_remote_code), pairs, expected, PADDED_LEFT if left else "")
    return ModelFolder.open(out, trust_remote_code)


def _check_place(out: Path, force: bool) -> None:
    """Raises BadInput where `out` cannot become a model folder, before anything is loaded."""
    if out.is_symlink() and not out.exists():
        raise BadInput(f"{out}: is a link to nothing; remove it, or choose another folder with -o")
    if not str(out).isprintable() and clean(str(out)) != str(out):
        raise BadInput(f"{str(out)!r}: its name is no text in UTF-8; choose another folder with -o")
    if out.exists() and force:
        if out.resolve() == Path.cwd():
            raise BadInput(f"{out}: is the working directory; go elsewhere, or choose another folder with -o")
        if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
            raise BadInput(f"{out}: no model folder (it has no {MANIFEST}); --force replaces nothing else")
    elif out.exists():
        raise already_there(out)
    else:
        check_writable(out)


def _origin(model: str, source: Path) -> dict[str, str]:
    """The hub's revision and the files' fingerprint, by which `changed_since` tells whether the model is the same."""
    from_hub = local_folder(model) is None and source.parent.name == "snapshots"
    return {"revision": source.name if from_hub else "", "sha256": fingerprint(source)}


def _load(source: Path, given: str, trust_remote_code: bool, allow_pickle: bool) -> tuple[Any, Any, dict[str, Any]]:
    """The CrossEncoder in FP32 as sentence-transformers loads it, its network to export, and the manifest's facts."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification

    loading = {"dtype": torch.float32, "use_safetensors": None if allow_pickle else True}
    try:
        network, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            attn_implementation="eager",
            **loading,
        )
        encoder = CrossEncoder(str(source), device="cpu", trust_remote_code=trust_remote_code, model_kwargs=loading)
    except Exception as error:  # each architecture and tokenizer fails in its own way
        raise BadInput(f"{given}: cannot be loaded ({first_line(error)})") from error
    if info["missing_keys"]:
        raise BadInput(
            f"{given}: its weights lack {sorted(info['missing_keys'])[0]!r}; the head was never trained or got lost"
        )
    if not encoder.tokenizer.is_fast:
        raise BadInput(f"{given}: its tokenizer has no fast form (tokenizer.json), which the ONNX scorer needs")
    if encoder.tokenizer.pad_token_id is None:
        raise BadInput(
            f"{given}: its tokenizer has no padding token, so that pairs cannot be scored together; set pad_token in "
            "its tokenizer_config.json, and pad_token_id in config.json"
        )
    activation = type(encoder.activation_fn)
    facts = {
        **_encoding(encoder, given),
        "labels": encoder.num_labels,
        "activation": f"{activation.__module__}.{activation.__qualname__}",
        "prompt": encoder.prompts.get(encoder.default_prompt_name) or "" if encoder.default_prompt_name else "",
        "pad_id": encoder.tokenizer.pad_token_id,
        "truncation_side": encoder.tokenizer.truncation_side,
        "inputs": list(encoder.tokenizer.model_input_names),
        "split_special_tokens": bool(getattr(encoder.tokenizer, "split_special_tokens", False)),
    }
    return encoder, network, facts


def _encoding(encoder: Any, given: str) -> dict[str, Any]:
    """How the model cuts pairs, its `processing_kwargs` included. Raises BadInput for one that is not reproduced."""
    settings = getattr(encoder[0], "processing_kwargs", None) or {}
    asked = {**(settings.get("text") or {}), **(settings.get("common") or {})}  # as sentence-transformers merges them
    facts: dict[str, Any] = {"max_length": _max_length(encoder, given), "truncation": "longest_first"}
    for name, value in asked.items():
        if name == "max_length" and type(value) is int:
            facts["max_length"] = value  # over that of the tokenizer, too
        elif name == "truncation" and value in (True, "longest_first", "only_first", "only_second"):
            facts["truncation"] = "longest_first" if value is True else value
        elif name not in ("padding", "pad_to_multiple_of", "return_tensors"):  # which change no score
            raise BadInput(
                f"{given}: its processing_kwargs set {name}={value!r}, which is not reproduced; leave it out"
            )
    special = encoder.tokenizer.num_special_tokens_to_add(pair=True)
    if facts["max_length"] <= special:
        raise BadInput(
            f"{given}: its max_length is {facts['max_length']}, which leaves no room for {special} special tokens"
        )
    return facts


def _save(encoder: Any, folder: Path) -> None:
    """Save the CrossEncoder with all that it carries beside its weights, and those in one file."""
    encoder.save_pretrained(str(folder), create_model_card=False)
    if (folder / WEIGHTS).is_file():
        return
    shards = sorted(folder.glob("model-*.safetensors"))  # transformers splits weights of more than 5 GB
    save_file(
        {name: tensor for shard in shards for name, tensor in load_file(shard).items()}, folder / WEIGHTS, PYTORCH
    )
    for file in (*shards, folder / f"{WEIGHTS}.index.json"):
        file.unlink()


def _max_length(encoder: Any, given: str) -> int:
    """The length that the reference cuts pairs to, or what its positions reach where that is less."""
    positions = getattr(getattr(encoder.model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)  # RoBERTa's positions start behind the padding id
    positions_there = getattr(encoder.config, "max_position_embeddings", None) or UNLIMITED
    reach = positions_there - (0 if padding is None else padding + 1)
    if encoder.max_seq_length is None or encoder.max_seq_length > reach:
        encoder.max_seq_length = reach
    if encoder.max_seq_length < 1:
        raise BadInput(f"{given}: its max_length is {encoder.max_seq_length}")
    return int(encoder.max_seq_length)


def _write_onnx(network: Any, folder: Path) -> None:
    """Export with optimum into `onnx/model.onnx`; only the graph and its weights stay of what optimum writes."""
    from optimum.exporters.onnx import onnx_export_from_model

    out = folder / "onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of each Python branch; the parity check judges the result
        try:
            onnx_export_from_model(network, out, opset=OPSET, task="text-classification", do_validation=False)
        except Exception as error:  # each architecture fails in its own way
            raise BadInput(
                f"{network.config.model_type}: optimum cannot export this architecture ({first_line(error)}); "
                "--torch-only leaves ONNX out"
            ) from error
    for file in out.iterdir():
        if not file.name.startswith("model.onnx"):
            file.unlink()


def _rewrite(file: Path) -> dict[str, int]:
    """Rewrite the graph in place, exactly, to less work; how often each rewrite applied."""
    import onnx

    from xopt.optimize.graph.attention import fuse_attention
    from xopt.optimize.graph.first_row import keep_first_row
    from xopt.optimize.graph.structure import read_structure

    model, narrowed = keep_first_row(read_structure(file))
    model, fused = fuse_attention(model)
    onnx.save(model, file)  # weights that stand in a file of their own stay there
    log.info("export: %d matrix products of the last layer now see the first token only", narrowed)
    log.info("export: %d attentions are one operator where no pair is padded", fused)
    return {"first_row_matmuls": narrowed, "fused_attentions": fused}


def _write_manifest(
    folder: Path, source: dict[str, str], rewrites: dict[str, int] | None, facts: dict[str, Any]
) -> ModelFolder:
    files = {f.relative_to(folder).as_posix(): sha256_of(f) for f in sorted(folder.rglob("*")) if f.is_file()}
    recipe = None if rewrites is None else {"exporter": "optimum", "opset": OPSET, **rewrites}
    variants = exported_variants(folder, recipe)
    here = {package.name for package in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if name in here}
    manifest = Manifest(source=source, versions=versions, files=files, variants={v.name: v for v in variants}, **facts)
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return ModelFolder(folder, manifest)
