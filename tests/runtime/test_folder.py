from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import DESCRIPTORS, KeptFile, ModelFolder, Plan, Variant


def test_commands_on_one_folder_keep_what_the_other_wrote(tiny_copy: ModelFolder) -> None:
    first = ModelFolder.open(tiny_copy.path)
    second = ModelFolder.open(tiny_copy.path)
    plans = {"a machine": {"onnx-fp32": Plan(1, 1, 512)}}
    first.write(lambda manifest: replace(manifest, plans=plans))
    second.with_variant(Variant("another", "onnx", "fp32", "onnx/model.onnx"))
    now = ModelFolder.open(tiny_copy.path).manifest
    assert now.plans == plans
    assert "another" in now.variants


WRITE = """
import sys
from dataclasses import replace
from xopt.runtime.folder import ModelFolder, Plan
path, name = sys.argv[1:]
folder = ModelFolder.open(path)
for i in range(40):
    plans = {f"{name} {i}": {"onnx-fp32": Plan(1, 1, 512)}}
    folder.write(lambda manifest: replace(manifest, plans=manifest.plans | plans))
"""


def test_two_processes_that_write_at_once_lose_nothing(tiny_copy: ModelFolder) -> None:
    command = [sys.executable, "-c", WRITE, str(tiny_copy.path)]
    writers = [subprocess.Popen([*command, name]) for name in ("first", "second")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert len(ModelFolder.open(tiny_copy.path).manifest.plans) == 80


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="only Linux shows what is open")
def test_a_kept_file_outlives_its_place(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"as it was")
    removed, replaced = KeptFile(file), KeptFile(file)
    file.unlink()
    assert removed.path.read_bytes() == b"as it was"
    file.write_bytes(b"another")
    assert replaced.path.read_bytes() == b"as it was"
    overwritten = KeptFile(file)
    file.write_bytes(b"a third one")
    with pytest.raises(BadInput, match=r"model.onnx: removed or changed since it was opened"):
        overwritten.path  # noqa: B018


@pytest.mark.parametrize("weights", ["model.onnx_data", "model.bin", None])
def test_a_file_that_cannot_be_kept_has_to_be_the_same_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str | None
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"as it was")
    changed = file
    if weights:  # which are found by its place
        changed = tmp_path / weights
        changed.write_bytes(b"weights")
    else:
        monkeypatch.setattr("xopt.runtime.folder.DESCRIPTORS", tmp_path / "none")
    kept = KeptFile(file)
    assert kept.path == file
    changed.rename(tmp_path / "elsewhere")
    for content in (None, b"as it was"):
        if content:
            changed.write_bytes(content)
        with pytest.raises(BadInput, match="removed or changed"):
            kept.path  # noqa: B018
