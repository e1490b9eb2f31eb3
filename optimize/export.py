"""Export: a CrossEncoder becomes a model folder that holds its ONNX graph and everything beside it."""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from xopt.optimize.source import check_cross_encoder, materialise
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.files import new_folder, sha256_of
from xopt.runtime.folder import MANIFEST, ONNX_FILE, Manifest, ModelFolder, Plan
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.scoring.variants import exported_variants

__all__ = ["MAX_DIFFERENCE", "export", "parity_pairs"]

log = logging.getLogger(__name__)

MAX_DIFFERENCE = 1e-4  # between the logits of variants in FP32
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
TEXT = (
    "the of ranking a query and document search engine with score 12 models, 'quoted' text (in brackets) for reading "
    "über naïve 東京 Zürich e-mail 3.14 Python function returns None data index shard"
)
UNLIMITED = 1 << 20  # positions of models whose configuration names no limit
PARITY_PLAN = Plan(callers=1, threads=cores(), tokens=1024)


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
    ONNX out, and needs neither onnx nor optimum. Raises BadInput where `model` is not a CrossEncoder or `out`
    can't be written, GateFailed where another FP32 variant's logits differ from torch's by more than
    `MAX_DIFFERENCE`.
    """
    with materialise(model) as source, new_folder(out, replace=force) as folder:
        check_cross_encoder(source, model, trust_remote_code)
        network, facts = _save_reference(source, model, folder, trust_remote_code, allow_pickle)
        rewrites = None
        if not torch_only:
            _write_onnx(network, folder)
            rewrites = _rewrite(folder / ONNX_FILE)
        made = _write_manifest(folder, {"model": model, **facts.pop("source")}, rewrites, facts)
        _check_parity(replace(made, trusted=trust_remote_code))
    return ModelFolder.open(out, trust_remote_code)


def _save_reference(
    source: str, given: str, folder: Path, trust_remote_code: bool, allow_pickle: bool
) -> tuple[Any, dict[str, Any]]:
    """Save the CrossEncoder in FP32 as sentence-transformers does, with all that it carries beside weights."""
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
        if info["missing_keys"]:
            raise BadInput(
                f"{given}: its weights lack {sorted(info['missing_keys'])[0]!r}; the head was never trained or got lost"
            )
        encoder = CrossEncoder(source, device="cpu", trust_remote_code=trust_remote_code, model_kwargs=loading)
    except SafetensorError as error:
        raise BadInput(f"{given}: its model.safetensors is damaged ({error}); get it again") from error
    except (ValueError, RuntimeError, ImportError) as error:
        raise BadInput(f"{given}: cannot be loaded ({str(error).splitlines()[0]})") from error
    except OSError as error:
        if not allow_pickle and "safetensors" in str(error):
            raise BadInput(
                f"{given}: no safetensors weights; --allow-pickle reads pickles, which can run code"
            ) from error
        raise BadInput(f"{given}: cannot be loaded ({str(error).splitlines()[0]})") from error
    if not encoder.tokenizer.is_fast:
        raise BadInput(f"{given}: its tokenizer has no fast form (tokenizer.json), which the ONNX scorer needs")
    max_length = _max_length(encoder, given)
    encoder.save_pretrained(str(folder), create_model_card=False)
    activation = type(encoder.activation_fn)
    return network, {
        "source": {"revision": str(getattr(encoder.config, "_commit_hash", None) or "")},
        "max_length": max_length,
        "labels": encoder.num_labels,
        "activation": f"{activation.__module__}.{activation.__qualname__}",
        "prompt": encoder.prompts.get(encoder.default_prompt_name) or "" if encoder.default_prompt_name else "",
        "pad_id": encoder.tokenizer.pad_token_id,
        "truncation_side": encoder.tokenizer.truncation_side,
        "inputs": list(encoder.tokenizer.model_input_names),
    }


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
        except (ValueError, RuntimeError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(
                f"{network.config.model_type}: optimum cannot export this architecture ({reason})"
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


def _check_parity(folder: ModelFolder) -> None:
    pairs = parity_pairs(folder.manifest.max_length)
    exact = [variant.name for variant in folder.manifest.variants.values() if variant.precision == "fp32"]
    reference, *others = (open_scorer(folder, name, plan=PARITY_PLAN).score(pairs) for name in exact)
    for name, scores in zip(exact[1:], others, strict=True):
        difference = float(np.abs(reference - scores).max())
        if not difference <= MAX_DIFFERENCE:  # NaN is no agreement either
            raise GateFailed(
                f"{folder.manifest.source['model']}: {name} and {exact[0]} differ by {difference:.2g}, over "
                f"{MAX_DIFFERENCE:g}"
            )


def parity_pairs(max_length: int) -> list[Pair]:
    """Deterministic pairs from one word to beyond `max_length` tokens, for comparing logits."""
    text = TEXT.split()
    words = [text[(7 * i * i + 3 * i) % len(text)] for i in range(max_length + 16)]
    lengths = sorted({1, 2, 3, *(int(length) for length in np.geomspace(4, max_length + 16, 24))})
    return [(" ".join(words[-1 - n % 9 :]), " ".join(words[n % 5 : n])) for n in lengths]
