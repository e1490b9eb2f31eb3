"""The server does what its OpenAPI says, whatever it is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from xopt.runtime.serve.openapi import described
from xopt.runtime.serve.shapes import PATHS

LACKS = "lacks the extra clients: pip install 'xopt-rerank[clients]'"


def operations() -> list[tuple[str, str, bool]]:
    """Return a path and a method for each description, of those that share one the first.

    Each is sent what is valid, and what is not where it has a body.
    """
    found: list[tuple[str, str, bool]] = []
    seen: list[Any] = []
    for path, methods in described()["paths"].items():
        for method, operation in methods.items():
            if operation not in seen:
                seen.append(operation)
                found.append((path, method, True))
                if method == "post":
                    found.append((path, method, False))
    return found


def test_every_path_is_described():
    assert set(PATHS) < set(described()["paths"])


@pytest.mark.slow
def test_the_description_is_openapi():
    validator = pytest.importorskip("openapi_spec_validator", reason=LACKS)
    validator.validate(described())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the fuzzer's own
@pytest.mark.parametrize(("path", "method", "valid"), operations())
def test_every_reply_is_as_described(client: Any, path: str, method: str, valid: bool):
    schemathesis = pytest.importorskip("schemathesis", reason=LACKS)
    operation = schemathesis.openapi.from_dict(described())[path][method.upper()]
    modes = schemathesis.GenerationMode
    cases = operation.as_strategy(modes.POSITIVE if valid else modes.NEGATIVE)
    address = str(client.base_url)

    @given(cases)
    @settings(
        max_examples=20 if method == "post" else 2,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),  # bodies are slow to make
    )
    def asked(case: Any) -> None:
        reply = case.call(base_url=address)
        assert reply.status_code < 500
        # No schema tells whether the model folder has a cascade.
        by_cascade = (case.headers or {}).get("X-Cascade") == "true"
        assert reply.status_code < 300 or by_cascade or not valid, reply.text
        case.operation.validate_response(reply)
        described_types = case.operation.definition.raw["responses"]
        described_reply = described_types[str(reply.status_code)]
        if "content" in described_reply:
            media_type = reply.headers["content-type"][0].partition(";")[0]
            assert media_type in described_reply["content"]

    asked()
