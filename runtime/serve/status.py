"""What a server tells of itself: that it is alive, ready, what it counts, and what it serves."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from xopt.runtime.machine import machine_name
from xopt.runtime.serve.openapi import described, page
from xopt.runtime.serve.service import Service
from xopt.runtime.serve.shapes import MOST_DOCUMENTS

__all__ = ["Status"]


class Status:
    """The routes that ask for no scores. They answer beside the queue, and need no key."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def health(self, _: Request) -> Response:
        """Tell that the process is alive; no queue is asked."""
        return _json({"status": "ok"})

    async def is_ready(self, _: Request) -> Response:
        return _json({"ready": self.service.ready}, 200 if self.service.ready else 503)

    async def is_live_for_weaviate(self, _: Request) -> Response:
        return Response(status_code=204)

    async def is_ready_for_weaviate(self, _: Request) -> Response:
        return Response(status_code=204 if self.service.ready else 503)

    async def meta(self, _: Request) -> Response:
        """Tell Weaviate of the model, which hands it on as it is."""
        return _json({"model": self.service.folder.path.name, "variant": self.service.variant})

    async def metrics_text(self, _: Request) -> Response:
        self.service.metrics.queue_requests.set(self.service.engine.queued_requests)
        self.service.metrics.queue_tokens.set(self.service.engine.queued_tokens)
        self.service.metrics.rate.set(self.service.engine.tokens_per_s)
        return Response(self.service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self._described_model()]})

    async def model(self, _: Request) -> Response:
        """Describe the model, whatever it is called; Xinference's client asks first."""
        return _json(self._described_model())

    async def asks_for_key(self, _: Request) -> Response:
        """Tell whether requests need a key; Xinference's client sends none otherwise."""
        return _json({"auth": bool(self.service.settings.api_keys)})

    def _described_model(self) -> dict[str, Any]:
        """Return what the clients of OpenAI and of Xinference read."""
        return {
            "id": self.service.folder.path.name,
            "object": "model",
            "created": 0,
            "owned_by": "xopt",
            "model_type": "rerank",
        }

    async def openapi(self, _: Request) -> Response:
        return _json(described())

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(page())

    async def info(self, _: Request) -> Response:
        """Tell what a client may want to know of the model and the limits."""
        manifest = self.service.folder.manifest
        measured = manifest.measured.get(machine_name("cpu"), {})
        judged = measured.get("variants", {}).get(self.service.variant, {})
        return _json(
            {
                "model_id": self.service.folder.path.name,
                "variant": self.service.variant,
                "max_input_length": manifest.max_length,
                "max_body_bytes": self.service.settings.most_bytes,
                "max_client_batch_size": MOST_DOCUMENTS,
                "auto_truncate": not self.service.settings.refuse_cut,
                "deadline_s": self.service.settings.deadline_s,
                "agreement": {
                    "verdict": judged.get("verdict"),
                    "queries": measured.get("queries"),
                    "measures": judged.get("measures", {}),
                },
                "cascade": self.service.cascade.described(),
                "tokens_per_s": round(self.service.engine.tokens_per_s),
            }
        )


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
