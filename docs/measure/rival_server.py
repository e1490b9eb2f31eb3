"""A reranker over HTTP as it is usually written: FastAPI around sentence-transformers.

    MODEL=DIR python -m uvicorn rival_server:app --app-dir docs/measure

BACKEND is torch, onnx or openvino, and FILE one of the model's files for it. BATCH pairs make a
batch. AT_ONCE requests are scored at a time, each on THREADS threads; others wait in FastAPI's.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import onnxruntime
import torch
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

BACKEND = os.environ.get("BACKEND", "torch")
FILE = os.environ.get("FILE")
BATCH = int(os.environ.get("BATCH", "32"))
AT_ONCE = threading.Semaphore(int(os.environ.get("AT_ONCE", "1")))
THREADS = int(os.environ.get("THREADS", "2"))


class Rerank(BaseModel):
    """A query, and the documents to rank for it."""

    query: str
    documents: list[str]
    top_n: int | None = None


def settings() -> dict[str, Any]:
    """Return what makes the backend keep to its threads."""
    if BACKEND == "openvino":
        return {"ov_config": {"INFERENCE_NUM_THREADS": THREADS}}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return {"session_options": options, "provider": "CPUExecutionProvider"}


app = FastAPI()
torch.set_num_threads(THREADS)
model = CrossEncoder(
    os.environ["MODEL"],
    backend=BACKEND,
    device="cpu",
    local_files_only=True,
    model_kwargs={"file_name": FILE, **settings()} if FILE else {},
)


@app.get("/health")
def health() -> dict[str, str]:
    """Tell that the process is alive."""
    return {"status": "ok"}


@app.post("/rerank")
def rerank(asked: Rerank) -> dict[str, list[dict[str, float]]]:
    """Rank documents; FastAPI runs this in one of its threads."""
    pairs = [(asked.query, document) for document in asked.documents]
    with AT_ONCE:
        scores = model.predict(pairs, batch_size=BATCH, show_progress_bar=False)
    results = [
        {"index": index, "relevance_score": float(score)} for index, score in enumerate(scores)
    ]
    results.sort(key=lambda each: -each["relevance_score"])
    return {"results": results[: asked.top_n]}
