from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from helpers.once import once

from xopt.optimize.cascade.certify import Certified, certify
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder

Xopt = Callable[..., Result]
LOOSE = {"max_loss": 0.1, "confidence": 0.8}  # which takes 16 queries


@pytest.fixture(scope="session")
def trained(
    demo: ModelFolder, queries: Candidates, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelFolder, Certified]:
    """The demo model with a cascade: trained weights, for what a cascade is worth. Not to be
    changed.
    """

    def make(place: Path) -> tuple[ModelFolder, Certified]:
        path = shutil.copytree(demo.path, place / "demo-xopt")
        found = certify(ModelFolder.open(path), queries, "onnx-int8", **LOOSE)
        return ModelFolder.open(path), found

    return once(tmp_path_factory, "trained", make)


@pytest.fixture
def copied(certified: tuple[ModelFolder, Certified], tmp_path: Path) -> ModelFolder:
    return ModelFolder.open(shutil.copytree(certified[0].path, tmp_path / "copied-xopt"))
