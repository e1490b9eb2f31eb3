"""The Dockerfile and the manifest for Kubernetes fit the server that they run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from xopt.cli.commands.serve import serve
from xopt.runtime.serve import server

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
REQUIREMENTS = (ROOT / "docs/deploy/requirements.txt").read_text(encoding="utf-8").split()
MANIFEST = (ROOT / "docs/deploy/kubernetes.yaml").read_text(encoding="utf-8")


@pytest.fixture
def pod() -> dict[str, Any]:
    deployment = next(yaml.safe_load_all(MANIFEST))
    return deployment["spec"]["template"]["spec"]


def test_the_image_is_short_and_without_root() -> None:
    assert len(DOCKERFILE.splitlines()) <= 30
    last_stage = DOCKERFILE.rpartition("FROM")[2]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last_stage, re.MULTILINE)
    # Signals reach no server that a shell has started.
    assert re.search(r'^ENTRYPOINT \["xopt", "serve",', last_stage, re.MULTILINE)


def test_what_the_image_copies_is_there() -> None:
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_the_image_installs_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["serve"]
    asked = {Requirement(line).name for line in [*project["dependencies"], *extra]}
    assert set(REQUIREMENTS) <= asked
    assert {Requirement(line).name for line in extra} <= set(REQUIREMENTS)


def test_a_pod_has_time_to_answer_all_requests(pod: dict[str, Any]) -> None:
    container = pod["containers"][0]
    arguments = container["args"]
    deadline_s = float(arguments[arguments.index("--deadline") + 1])
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    own_s = server.DRAIN_S + server.HEARING_S + server.WRITING_S
    assert pod["terminationGracePeriodSeconds"] > before_s + deadline_s + own_s


def test_a_pod_asks_for_what_the_server_has(pod: dict[str, Any]) -> None:
    container = pod["containers"][0]
    options = {name for parameter in serve.params for name in parameter.opts}
    assert {each for each in container["args"] if each.startswith("--")} <= options
    assert container["resources"]["requests"] == container["resources"]["limits"]
    paths = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")
    }
    assert set(paths.values()) == {"/ready"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
