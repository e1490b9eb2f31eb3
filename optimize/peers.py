"""Peers: what a user would run instead, made as sentence-transformers' documentation says, to be
timed beside xopt.

Source: https://sbert.net/docs/cross_encoder/usage/efficiency.html
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
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import sha256_of, write_text
from xopt.runtime.folder import MANIFEST, WEIGHTS, ModelFolder, Variant
from xopt.runtime.machine import has_module
from xopt.runtime.scoring.backends.backend import pad
from xopt.runtime.scoring.encode import Encoder
from xopt.runtime.scoring.plan import Forward
from xopt.runtime.scoring.variants import BACKENDS, CTRANSLATE2_FILE

__all__ = ["make_peers"]

log = logging.getLogger(__name__)

# sentence-transformers has none for this target; of the others it has the names
CONFIGS = {"avx_vnni": "avx2"}
ONNX, OPENVINO = "onnx/model.onnx", "openvino/openvino_model_qint8_quantized.xml"


def make_peers(folder: ModelFolder, candidates: Candidates, target: str, out: Path) -> ModelFolder:
    """Make sentence-transformers' own variants of a model in the new folder `out`, which holds
    nothing else to run.

    st-onnx: its ONNX export. st-onnx-qint8: its dynamic INT8 for `target`. st-openvino-qint8,
    where nncf is installed: static INT8 by NNCF with its settings, calibrated on pairs of
    `candidates`. ct2-int8, where ctranslate2 is installed and the model is BERT's: CTranslate2's
    INT8. Raises BadInput where sentence-transformers cannot export the model.
    """
    if not BACKENDS["onnx"].in_sentence_transformers(folder):
        raise BadInput(
            f"{folder.path}: sentence-transformers has no ONNX of it to compare with: that takes a transformer with "
            "its own head, and optimum (pip install 'xopt-rerank[optimum]')"
        )
    shutil.copytree(folder.path, out, ignore=shutil.ignore_patterns("onnx", MANIFEST))
    log.info("peers: exporting with sentence-transformers")
    # a result's JSON may go to standard output
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        # the tracer warns of each Python branch; the bench shows their agreement
        warnings.simplefilter("ignore")
        try:
            _export(folder, target, out)
        except Exception as error:  # each architecture fails in its own way
            raise BadInput(
                f"{folder.path}: sentence-transformers cannot export it to compare with ({first_line(error)}); leave "
                "--peers out"
            ) from error
        gc.collect()  # with the scratch folder that it exported to, and a warning
        openvino = has_module("nncf") and _could_make(
            "st-openvino-qint8", lambda: _quantize_openvino(folder, candidates, out)
        )
    (int8,) = (out / "onnx").glob("model_q*.onnx")  # quint8 or qint8, by target
    variants = [
        Variant("st-onnx", "onnx", "fp32", ONNX),
        Variant("st-onnx-qint8", "onnx", "int8", f"onnx/{int8.name}"),
    ]
    if openvino:
        variants.append(Variant("st-openvino-qint8", "openvino", "int8", OPENVINO))
    able = has_module("ctranslate2") and _is_bert(folder.path)
    if able and _could_make("ct2-int8", lambda: _convert_ctranslate2(out)):
        variants.append(Variant("ct2-int8", "ctranslate2", "int8", CTRANSLATE2_FILE))
    files = {
        file.relative_to(out).as_posix(): sha256_of(file)
        for file in out.rglob("*")
        if file.is_file()
    }
    manifest = replace(
        folder.manifest, files=files, variants={v.name: v for v in variants}, plans={}
    )
    write_text(out / MANIFEST, manifest.to_json())
    return ModelFolder(out, manifest, folder.trusted)


def _export(folder: ModelFolder, target: str, out: Path) -> None:
    model = CrossEncoder(
        str(out),
        backend="onnx",
        local_files_only=True,
        trust_remote_code=folder.trusted,
        model_kwargs={"provider": "CPUExecutionProvider"},
    )
    model.save_pretrained(str(out), create_model_card=False)
    export_dynamic_quantized_onnx_model(model, CONFIGS.get(target, target), str(out))


def _could_make(name: str, make: Callable[[], None]) -> bool:
    """Whether a peer could be made of this model."""
    try:
        make()
    except Exception as error:  # each tool and architecture fails in its own way
        log.warning("peers: without %s (%s)", name, first_line(error))
        return False
    return True


def _quantize_openvino(folder: ModelFolder, candidates: Candidates, out: Path) -> None:
    import nncf
    import openvino

    encoder = Encoder(folder)
    tokens = encoder.encode(calibration_pairs(candidates))
    forwards = [Forward(np.array([row]), int(length)) for row, length in enumerate(tokens.lengths)]
    inputs = [
        {
            k: v
            for k, v in pad(tokens, forward, encoder.pad_id, left=encoder.left).items()
            if k in folder.manifest.inputs
        }
        for forward in forwards
    ]
    log.info("peers: quantising with NNCF on %d pairs", len(inputs))
    nncf.set_log_level(logging.ERROR)
    quantised = nncf.quantize(
        openvino.Core().read_model(out / ONNX),
        nncf.Dataset(inputs),
        subset_size=len(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    (out / OPENVINO).parent.mkdir()
    openvino.save_model(quantised, out / OPENVINO)


def _is_bert(folder: Path) -> bool:
    """Whether CTranslate2 runs all of the model but a linear layer behind its pooler."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    absolute = config.get("position_embedding_type", "absolute") == "absolute"
    return bool(config.get("model_type") == "bert" and absolute and (folder / WEIGHTS).is_file())


def _convert_ctranslate2(out: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    log.info("peers: converting for CTranslate2")
    TransformersConverter(str(out)).convert(
        str((out / CTRANSLATE2_FILE).parent), quantization="int8"
    )
