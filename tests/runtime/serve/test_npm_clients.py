"""npm's clients of Cohere, against a server: each ranks as the scorer does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from xopt.runtime import open_scorer

PACKAGES = Path(__file__).parent / "npm"
CLIENTS = ("cohere-ai 1", "cohere-ai 2", "@ai-sdk/cohere")
QUERY = "how to copy a file"
TEXTS = ["ranking query", "search engine", "os.remove(path)", "index of the data"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    place = tmp_path_factory.mktemp("npm") / "clients"
    shutil.copytree(PACKAGES, place)
    ended = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--fetch-retries=0"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        assert "network" in ended.stderr, ended.stderr
        pytest.skip("the registry of npm cannot be reached")
    return place


def asked(place: Path, address: object, key: str) -> dict[str, Any]:
    question = {
        "address": str(address).rstrip("/"),
        "key": key,
        "query": QUERY,
        "documents": TEXTS,
        "topN": 3,
    }
    command = ["node", "ask.mjs", json.dumps(question)]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    answers: dict[str, Any] = json.loads(ended.stdout)
    return answers


def test_they_rank_as_the_scorer_does(installed, serve, tiny):
    scores = expit(open_scorer(tiny, "onnx-fp32").score([(QUERY, text) for text in TEXTS]))
    best = np.argsort(-scores)[:3]
    with serve(api_keys=("right",)) as client:
        answers = asked(installed, client.base_url, "right")
        refused = asked(installed, client.base_url, "wrong")
    for name in CLIENTS:
        indices, got = zip(*answers[name]["ranking"], strict=True)
        assert list(indices) == best.tolist()
        assert got == pytest.approx(scores[best].tolist(), abs=1e-5)
        assert refused[name]["status"] == 401
        assert "API key" in refused[name]["message"]


def test_the_lock_names_no_registry():
    lock = json.loads((PACKAGES / "package-lock.json").read_text(encoding="utf-8"))
    assert all("resolved" not in package for package in lock["packages"].values())
