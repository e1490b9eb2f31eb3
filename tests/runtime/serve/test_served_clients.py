"""The clients that others wrote, against a server: each ranks as the scorer does."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.rerank_clients import CLIENTS, KEYLESS, OFFLINE, WITHOUT_TEXTS
from scipy.special import expit

from xopt.runtime import open_scorer
from xopt.runtime.folder import ModelFolder

TESTS = Path(__file__).parents[2]
GUIDE = TESTS.parent / "docs" / "guides" / "serve.md"
QUERY = "how to copy a file"
TEXTS = ["ranking query", "search engine", "os.remove(path)", "index of the data", "file " * 3000]
Answer = dict[str, Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("litellm") is None,
        reason="lacks the extra clients: pip install 'xopt-rerank[clients]'",
    ),
]


def run(*arguments: str, given: str = "") -> str:
    """Return what a fresh process of Python prints."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=TESTS,
        env={**os.environ, **OFFLINE},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def asked(address: object, clients: list[str], key: str, top_n: int = 3) -> dict[str, Answer]:
    """Return what each client answers, all in one fresh process."""
    question = {"address": str(address).rstrip("/"), "query": QUERY, "texts": TEXTS}
    questions = [{"client": client, "key": key, "top_n": top_n, **question} for client in clients]
    printed = run("-m", "helpers.rerank_clients", given=json.dumps(questions))
    answers = json.loads(printed.splitlines()[-1])
    return dict(zip(clients, answers, strict=True))


@pytest.fixture(scope="module")
def answers(serve: Any) -> dict[tuple[str, str, int], Answer]:
    """What each client answers with a right key, and with a wrong one."""
    found = {}
    with serve(api_keys=("right",)) as client:
        with_key = [name for name in CLIENTS if name not in KEYLESS]
        for key, top_n in (("right", 3), ("right", len(TEXTS)), ("wrong", 3)):
            for name, answer in asked(client.base_url, with_key, key, top_n).items():
                found[name, key, top_n] = answer
    with serve() as client:
        for top_n in (3, len(TEXTS)):
            for name, answer in asked(client.base_url, KEYLESS, "any", top_n).items():
                found[name, "right", top_n] = answer
    return found


@pytest.mark.parametrize("top_n", [3, len(TEXTS)])
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_ranks_as_the_scorer_does(answers, tiny: ModelFolder, name, top_n):
    scores = expit(open_scorer(tiny, "onnx-fp32").score([(QUERY, text) for text in TEXTS]))
    best = np.argsort(-scores)[:top_n]
    answer = answers[name, "right", top_n]
    assert "ranking" in answer, answer
    indices, got, texts = zip(*answer["ranking"], strict=True)
    assert list(indices) == best.tolist()
    assert got == pytest.approx(scores[best].tolist(), abs=1e-5)
    expected = [None if name in WITHOUT_TEXTS else TEXTS[index] for index in indices]
    assert list(texts) == expected


# Where a client has an error of its own for a wrong key, it raises that.
AUTHENTICATION = {
    "cohere": "UnauthorizedError",
    "langchain_cohere": "UnauthorizedError",
    "litellm": "AuthenticationError",
    "llama_index cohere": "UnauthorizedError",
    "voyageai": "AuthenticationError",
}


@pytest.mark.parametrize("name", [name for name in CLIENTS if name not in KEYLESS])
def test_a_client_says_that_its_key_is_wrong(answers, name):
    answer = answers[name, "wrong", 3]
    kind = AUTHENTICATION.get(name, AUTHENTICATION.get(name.split()[0], "Exception"))
    assert kind in answer["kinds"]
    # Some keep the reply, some the message, and LlamaIndex' of TEI nothing.
    assert kind != "Exception" or name == "llama_index tei" or "API key" in answer["error"]


@pytest.mark.parametrize("name", ["cohere 1", "cohere 2", "haystack tei", "voyageai"])
def test_a_client_comes_again_where_it_is_told_to(serve, name):
    with serve(longest_wait_s=0.5) as client:
        before = client.engine.admit([(QUERY, text) for text in TEXTS], math.inf)
        client.engine.tokens_per_s = before.left_tokens / 1.2
        answered = threading.Event()

        def release_when_refused() -> None:
            while "xopt_refused_total 0.0" in client.get("/metrics").text:
                if answered.wait(0.01):
                    return
            client.engine.release(before)

        releasing = threading.Thread(target=release_when_refused)
        releasing.start()
        try:
            answer = asked(client.base_url, [name], "any")[name]
        finally:
            answered.set()
            releasing.join()
        assert 'xopt_requests_total{status="429"} 1.0' in client.get("/metrics").text
        assert len(answer["ranking"]) == 3


def test_the_lines_of_the_guide_work(client):
    guide = GUIDE.read_text(encoding="utf-8")
    before, *blocks = re.findall(r"```python\n(query = .+?|import .+?|from .+?)```", guide, re.S)
    asking = [block for block in blocks if "http://127.0.0.1:8000" in block]
    assert len(asking) == 5
    for block in asking:
        lines = block.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))
        run("-c", f"{before}\n{lines}\nassert results")
