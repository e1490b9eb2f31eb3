from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings
from texts import shortened
from tiny import make_tiny

from xopt.cli.main import cli
from xopt.optimize.export import export
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime.bench.bench import Bench, Case, bench
from xopt.runtime.bench.strategy import STRATEGIES
from xopt.runtime.data.candidates import Candidates, demo_candidates
from xopt.runtime.folder import ModelFolder

settings.register_profile("xopt", deadline=None)  # machines are slow at times: no test asserts a time
settings.load_profile("xopt")


@pytest.fixture(scope="session")
def calibration() -> Candidates:
    """Queries of the demo data that are none of `docs`: no verdict counts what has calibrated."""
    return demo_candidates(queries=24, depth=6).between(8, 24)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, calibration: Candidates) -> ModelFolder:
    """The demo model, exported and quantised: trained weights, for where behaviour is at stake. Not to be changed."""
    out = tmp_path_factory.mktemp("demo") / "demo-xopt"
    return quantize(export("demo", out), recipe_for(detect_target()), calibration)


@pytest.fixture
def demo_copy(demo: ModelFolder, tmp_path: Path) -> ModelFolder:
    """The demo model in a folder of the test's own, to change and to damage."""
    return ModelFolder.open(shutil.copytree(demo.path, tmp_path / "demo-xopt"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, calibration: Candidates) -> ModelFolder:
    """A tiny random BERT, exported and quantised. Not to be changed."""
    root = tmp_path_factory.mktemp("tiny")
    return quantize(export(str(make_tiny(root / "bert")), root / "bert-xopt"), recipe_for(detect_target()), calibration)


@pytest.fixture
def tiny_copy(tiny: ModelFolder, tmp_path: Path) -> ModelFolder:
    """A tiny model folder of the test's own, to change and to damage."""
    return ModelFolder.open(shutil.copytree(tiny.path, tmp_path / "tiny-xopt"))


@pytest.fixture(scope="session")
def docs() -> Candidates:
    """A few queries of the demo data, of short texts."""
    return shortened(demo_candidates(queries=8, depth=12), 500)


@pytest.fixture(scope="session")
def benched(demo: ModelFolder, docs: Candidates) -> Bench:
    """A bench of the demo model under every strategy: some seconds a case, for its fresh process."""
    cases = [Case("torch-fp32", s.name) for s in STRATEGIES.values() if not s.by_query] + [Case("onnx-int8", "planned")]
    return bench(demo, docs, cases, repeat=1)


@pytest.fixture
def xopt() -> Callable[..., Result]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return run
