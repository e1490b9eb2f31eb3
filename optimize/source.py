"""Where a model comes from: checks on a hub id or a folder, before anything of it is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoConfig, PretrainedConfig

from xopt.optimize.demo import write_demo
from xopt.runtime.errors import BadInput

__all__ = ["check_cross_encoder", "default_out", "materialise"]


def default_out(model: str) -> Path:
    """Where a model's folder lands unless told: `models/NAME-xopt`, NAME the last part of a hub id or a path."""
    name = (
        Path(model).expanduser().resolve().name
        if Path(model).expanduser().is_dir()
        else model.rstrip("/").rpartition("/")[2]
    )
    return Path("models") / f"{name}-xopt"


@contextlib.contextmanager
def materialise(model: str) -> Iterator[str]:
    """Yield what transformers can load for MODEL: a hub id, a folder, or a temporary one with the demo model."""
    if model == "demo" and not Path(model).is_dir():
        with TemporaryDirectory(prefix="xopt-demo-") as folder:
            write_demo(Path(folder))
            yield folder
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        if not Path(model).expanduser().is_dir():
            raise BadInput(f"{model}: no such folder; give a hub id, a folder or `demo`")
        yield str(Path(model).expanduser())
    else:
        yield model


def check_cross_encoder(model: str, given: str, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration of a sequence classifier. Raises BadInput where `model` is something else."""
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise BadInput(f"{given}: no config.json in it; give a folder in the Hugging Face layout")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise BadInput(f"{given}: runs code from its repository; read it, then give --trust-remote-code") from error
        reason = str(error).split("\n")[0]
        raise BadInput(f"{given}: neither a folder here nor a model that the hub gives ({reason})") from error
    kind = (config.architectures or ["no architecture"])[0]
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        raise BadInput(
            f"{given}: {kind} is a causal language model; xopt takes cross-encoders with a classification head"
        )
    if not kind.endswith("ForSequenceClassification"):
        raise BadInput(f"{given}: {kind} has no classification head (a bi-encoder?); give a CrossEncoder")
    return config
