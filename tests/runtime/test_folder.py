from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.machines import names_in, on_machine

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import (
    DESCRIPTORS,
    MANIFEST,
    KeptFile,
    Manifest,
    ModelFolder,
    Plan,
    Variant,
)
from xopt.runtime.locks import LOCK


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
from dataclasses import replace
from xopt.runtime.folder import ModelFolder, Plan
folder = ModelFolder.open(here)
for i in range(40):
    plans = {f"{sys.argv[2]} {i}": {"onnx-fp32": Plan(1, 1, 512)}}
    folder.write(lambda manifest: replace(manifest, plans=manifest.plans | plans))
"""


@pytest.mark.parametrize("flock", ["works", "nothing", "38"])
def test_two_machines_that_write_at_once_lose_nothing(tiny_copy: ModelFolder, flock: str) -> None:
    before = names_in(tiny_copy.path)
    hosts = ("host-a", "host-b")
    writers = [on_machine(host, WRITE, tiny_copy.path, host, flock=flock) for host in hosts]
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert len(ModelFolder.open(tiny_copy.path).manifest.plans) == 80
    assert names_in(tiny_copy.path) == before


def test_a_writer_that_another_one_took_over_from_changes_nothing(tiny_copy: ModelFolder) -> None:
    before = (tiny_copy.path / MANIFEST).read_bytes()
    moved = []

    def change(manifest: Manifest) -> Manifest:
        (tiny_copy.path / LOCK).write_text("another's")
        return replace(manifest, max_length=1)

    with pytest.raises(BadInput, match="another process took over here"):
        tiny_copy.write(change, lambda: moved.append(True))
    assert (tiny_copy.path / MANIFEST).read_bytes() == before
    assert (tiny_copy.path / LOCK).read_text() == "another's"
    assert moved == []


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
        overwritten.path  # noqa: B018 # the access is the test


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
            kept.path  # noqa: B018 # the access is the test
