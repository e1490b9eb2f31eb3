"""Which variant scores where none is asked for."""

from __future__ import annotations

import functools
import logging

from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import machine_name

__all__ = ["default_variant"]

log = logging.getLogger(__name__)


def default_variant(folder: ModelFolder, device: str | None) -> str:
    """Choose the variant that `xopt optimize` recommended for this machine, else onnx-fp32.

    The log says once which one that is, and why. `device` is None where the machine that scores
    is not known. A folder without ONNX graphs has torch-fp32 in place of onnx-fp32.
    """
    variants = folder.manifest.variants
    exact = "onnx-fp32" if "onnx-fp32" in variants else "torch-fp32"
    if device is None:
        _say(f"{folder.path}: {exact} scores; name another with `variant=`")
        return exact
    machine = machine_name(device)
    recommended = folder.manifest.recommended(machine)
    if recommended is not None:
        _say(f"{folder.path}: {recommended} scores, which `xopt optimize` recommended on {machine}")
        return recommended
    if machine in folder.manifest.measured:
        why = f"`xopt optimize` recommended nothing on {machine}"
    elif folder.manifest.measured:
        why = f"{', '.join(folder.manifest.measured)} was measured, and not this machine, {machine}"
    else:
        why = "`xopt optimize` has not measured it on this machine"
    _say(f"{folder.path}: {exact} scores: {why}; name another with `variant=`")
    return exact


@functools.cache
def _say(text: str) -> None:
    """Log a text once."""
    log.info(text)
