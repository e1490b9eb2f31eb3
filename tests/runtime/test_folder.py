from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from xopt.runtime.folder import ModelFolder, Plan, Variant


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
