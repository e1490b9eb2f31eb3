"""Where a model comes from, and whether it is still the same: folders by any name, the demo, the
hub.
"""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import make_tiny
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file

from xopt.optimize.export import export
from xopt.optimize.model.source import changed_since, fingerprint, materialise, same_model
from xopt.runtime.errors import BadInput


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_fingerprint_tells_weights_and_tokenizers_apart_and_nothing_else(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    first = fingerprint(model)
    for name in ("README.md", "eval.json", "training_args.bin"):
        (model / name).write_text("{}\n{}")  # nothing that is loaded
    for name in ("onnx", "checkpoint-5"):
        (model / name).mkdir()
        (model / name / "config.json").write_text("{}")
    assert fingerprint(model) == first
    assert export(str(model), tmp_path / "out", torch_only=True).manifest.source["sha256"] == first
    change(model / "tokenizer_config.json", truncation_side="left")
    assert fingerprint(model) != first


def test_one_folder_has_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("model/", "./model", str(model)):
        assert same_model(name, {"model": "model"})
    monkeypatch.chdir("/")
    # from another working directory
    assert same_model(str(model), {"model": "model", "sha256": fingerprint(model)})
    assert not same_model(str(model), {"model": "demo", "sha256": ""})
    assert not same_model("org/model", {"model": "org/other"})


def test_demo_is_the_built_in_model_whatever_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    with materialise("demo") as folder:
        assert (folder / "model.safetensors").is_file()
    assert "give ./demo for the folder" in caplog.text
    with materialise("./demo") as folder:
        assert folder.resolve() == tmp_path / "demo"


def test_a_cached_hub_model_opens_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _no_network)
    snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / "0123abcd"
    shutil.copytree(make_tiny(tmp_path / "model"), snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abcd")
    made = export("me/tiny", tmp_path / "out", torch_only=True)
    assert (made.manifest.source["model"], made.manifest.source["revision"]) == (
        "me/tiny",
        "0123abcd",
    )
    with pytest.raises(
        BadInput, match="me/other: neither a folder here nor a model that the hub gives"
    ):
        export("me/other", tmp_path / "other", torch_only=True)


def test_a_hub_that_answers_no_is_not_one_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        response = type(
            "Response", (), {"headers": {}, "status_code": 401, "request": None, "url": ""}
        )()
        raise RepositoryNotFoundError(
            "401 Client Error: no such model, or a token is asked for", response=response
        )

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", gone)
    for name, reason in (
        ("me/gated", "no such model, or a token"),
        ("me/not a name", "neither a folder"),
    ):
        with pytest.raises(
            BadInput,
            match=f"{name}: neither a folder here nor a model that the hub gives .*|{reason}",
        ):
            export(name, tmp_path / "out", torch_only=True)
    with pytest.raises(BadInput, match="401 Client Error"):
        export("me/gated", tmp_path / "out", torch_only=True)


def test_pickles_on_the_hub_are_downloaded_only_where_they_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = make_tiny(tmp_path / "hub")
    torch.save(load_file(hub / "model.safetensors"), hub / "pytorch_model.bin")
    (hub / "model.safetensors").unlink()

    def download(_: str, allow_patterns: list[str], **__: object) -> str:
        folder = tmp_path / str(len(allow_patterns))
        for file in hub.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                folder.mkdir(exist_ok=True)
                shutil.copy(file, folder)
        return str(folder)

    answer = SimpleNamespace(sha="1")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: answer)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(BadInput, match=r"me/old: no safetensors weights in .*`allow_pickle=True`"):
        export("me/old", tmp_path / "out", torch_only=True)
    made = export("me/old", tmp_path / "out", torch_only=True, allow_pickle=True)
    assert (made.path / "model.safetensors").is_file()


def test_a_revision_with_the_same_files_is_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny(tmp_path / "model")
    answer = SimpleNamespace(sha="2")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: answer)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(model))
    kept = {"model": "me/tiny", "revision": "1", "sha256": fingerprint(model)}
    (model / "README.md").write_text("new")
    assert not changed_since("me/tiny", kept)
    change(model / "tokenizer_config.json", truncation_side="left")
    assert changed_since("me/tiny", kept)
    assert not changed_since("me/tiny", {**kept, "revision": "2"})  # which is the hub's


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network")
