"""Peers: what a user would run instead of xopt, to be timed beside it.

They are made as sentence-transformers' documentation says, see
https://sbert.net/docs/cross_encoder/usage/efficiency.html.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
from sentence_transformers import CrossEncoder, export_dynamic_quantized_onnx_model

from xopt.optimize.int8.calibrate import calibration_pairs
from xopt.runtime.bench.ctranslate2 import CTRANSLATE2, CTRANSLATE2_FILE
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import sha256_of, write_text
from xopt.runtime.folder import MANIFEST, ONNX_FILE, WEIGHTS, ModelFolder, Variant
from xopt.runtime.machine import has_module
from xopt.runtime.progress import progress
from xopt.runtime.scoring.backends.backend import pad
from xopt.runtime.scoring.encode import Encoder
from xopt.runtime.scoring.plan import Forward
from xopt.runtime.scoring.variants import BACKENDS

__all__ = ["make_peers"]

log = logging.getLogger(__name__)

# sentence-transformers' targets have the names of ours, but for one that it lacks.
TARGETS = {"avx_vnni": "avx2"}
OPENVINO_FILE = "openvino/openvino_model_qint8_quantized.xml"


def make_peers(folder: ModelFolder, candidates: Candidates, target: str, out: Path) -> ModelFolder:
    """Make other tools' variants of a model in the new folder `out`.

    st-onnx is sentence-transformers' ONNX export, st-onnx-qint8 its dynamic INT8 for `target`.
    st-openvino-qint8 is its static INT8 by NNCF, calibrated on pairs of `candidates`, where nncf
    is installed. ct2-int8 is CTranslate2's INT8, where that is installed and the model is BERT's.
    Raises BadInput where sentence-transformers cannot export the model.
    """
    if not BACKENDS["onnx"].in_sentence_transformers(folder):
        raise BadInput(
            f"{folder.path}: sentence-transformers has no ONNX of it to compare with: that takes "
            "a transformer with its own head, and optimum (pip install 'xopt-rerank[optimum]')"
        )
    shutil.copytree(folder.path, out, ignore=shutil.ignore_patterns("onnx", MANIFEST))
    # Standard output may be for the JSON of a result. The tracer warns of each branch in Python;
    # whether that matters, the agreement in the bench shows.
    with (
        progress("making what other tools run"),
        warnings.catch_warnings(),
        redirect_stdout(sys.stderr),
    ):
        warnings.simplefilter("ignore")
        _export(folder, target, out)
        gc.collect()  # removes the export's scratch folder, which warns of that
        (int8,) = (out / "onnx").glob("model_q*.onnx")  # quint8 or qint8, by target
        variants = [
            Variant("st-onnx", "onnx", "fp32", ONNX_FILE),
            Variant("st-onnx-qint8", "onnx", "int8", f"onnx/{int8.name}"),
        ]
        if has_module("nncf"):
            openvino = Variant("st-openvino-qint8", "openvino", "int8", OPENVINO_FILE)
            if _made(openvino, lambda: _quantize_openvino(folder, candidates, out)):
                variants.append(openvino)
        if has_module("ctranslate2") and _is_bert(folder.path):
            ct2 = Variant("ct2-int8", CTRANSLATE2, "int8", CTRANSLATE2_FILE)
            if _made(ct2, lambda: _convert_ctranslate2(out)):
                variants.append(ct2)
    return _model_folder(folder, out, variants)


def _model_folder(folder: ModelFolder, out: Path, variants: list[Variant]) -> ModelFolder:
    """Write the manifest of the variants in `out`, and open it."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    files = {path.relative_to(out).as_posix(): sha256_of(path) for path in paths}
    by_name = {variant.name: variant for variant in variants}
    manifest = replace(folder.manifest, files=files, variants=by_name, plans={})
    write_text(out / MANIFEST, manifest.to_json())
    return ModelFolder(out, manifest, folder.trusted)


def _export(folder: ModelFolder, target: str, out: Path) -> None:
    log.info("peers: exporting with sentence-transformers")
    try:
        model = CrossEncoder(
            str(out),
            backend="onnx",
            local_files_only=True,
            trust_remote_code=folder.trusted,
            model_kwargs={"provider": "CPUExecutionProvider"},
        )
        model.save_pretrained(str(out), create_model_card=False)
        export_dynamic_quantized_onnx_model(model, TARGETS.get(target, target), str(out))
    except Exception as error:  # each architecture fails in its own way
        raise BadInput(
            f"{folder.path}: sentence-transformers cannot export it to compare with "
            f"({first_line(error)}); leave `peers=` out"
        ) from error


def _made(peer: Variant, make: Callable[[], None]) -> bool:
    """Make a peer, and return whether that was possible."""
    try:
        make()
    except Exception as error:  # each tool and architecture fails in its own way
        log.warning("peers: without %s (%s)", peer.name, first_line(error))
        return False
    return True


def _quantize_openvino(folder: ModelFolder, candidates: Candidates, out: Path) -> None:
    import nncf
    import openvino

    encoder = Encoder(folder)
    tokens = encoder.encode(calibration_pairs(candidates))
    inputs = []
    for row, length in enumerate(tokens.lengths):
        forward = Forward(np.array([row]), int(length))
        arrays = pad(tokens, forward, encoder.pad_id, left=encoder.left)
        inputs.append({name: arrays[name] for name in arrays if name in folder.manifest.inputs})
    log.info("peers: quantising with NNCF on %d pairs", len(inputs))
    nncf.set_log_level(logging.ERROR)
    quantised = nncf.quantize(
        openvino.Core().read_model(out / ONNX_FILE),
        nncf.Dataset(inputs),
        subset_size=len(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    (out / OPENVINO_FILE).parent.mkdir()
    openvino.save_model(quantised, out / OPENVINO_FILE)


def _is_bert(folder: Path) -> bool:
    """Return whether CTranslate2 runs all of the model but a linear layer behind its pooler."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert" or not (folder / WEIGHTS).is_file():
        return False
    return bool(config.get("position_embedding_type", "absolute") == "absolute")


def _convert_ctranslate2(out: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    log.info("peers: converting for CTranslate2")
    home = (out / CTRANSLATE2_FILE).parent
    TransformersConverter(str(out)).convert(str(home), quantization="int8")
