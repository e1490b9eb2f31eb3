from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.machines import names_in, on_machine

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import MANIFEST, Manifest, ModelFolder, Plan, Variant
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
