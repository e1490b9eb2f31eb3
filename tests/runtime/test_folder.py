from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from xopt.runtime.folder import ModelFolder, Plan, Variant


def test_commands_on_one_folder_keep_what_the_other_wrote(tiny_copy: ModelFolder) -> None:
    first, second = ModelFolder.open(tiny_copy.path), ModelFolder.open(tiny_copy.path)
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
folder = ModelFolder.open(sys.argv[1])
for i in range(40):
    folder.write(lambda to: replace(to, plans={**to.plans, f"{sys.argv[2]} {i}": {"onnx-fp32": Plan(1, 1, 512)}}))
"""


def test_two_processes_that_write_at_once_lose_nothing(tiny_copy: ModelFolder) -> None:
    command = [sys.executable, "-c", WRITE, str(tiny_copy.path)]
    writers = [subprocess.Popen([*command, name]) for name in ("first", "second")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert len(ModelFolder.open(tiny_copy.path).manifest.plans) == 80
