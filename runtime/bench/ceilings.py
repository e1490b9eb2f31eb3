"""What this machine can do at most, measured in a few seconds: matrix products and copying."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import numpy_helper, parser

from xopt.runtime.machine import has_bf16

__all__ = ["Ceilings", "measure_ceilings"]

SIZE = 1024  # of the square matrices
OPERATIONS = 2 * SIZE**3  # a multiplication and an addition are two
COPIED_BYTES = 256 << 20  # by all threads together; more than a cache holds
SECONDS = 0.4  # for each, after a warm-up; the best run counts


@dataclass(frozen=True)
class Ceilings:
    """What `threads` can do: 10^9 operations, or bytes read or written, a second.

    bf16_gflops is None where the processor multiplies no bfloat16.
    """

    threads: int
    fp32_gflops: float
    int8_gflops: float
    bf16_gflops: float | None
    memory_gbs: float


def measure_ceilings(threads: int) -> Ceilings:
    """Measure the kernels of onnxruntime, and torch's for bfloat16."""
    random = np.random.default_rng(0)
    fp32 = random.normal(size=(SIZE, SIZE)).astype(np.float32)
    int8 = random.integers(-64, 64, (SIZE, SIZE)).astype(np.int8)
    uint8 = np.abs(int8).astype(np.uint8)
    size = f"[{SIZE}, {SIZE}]"
    fp32_product = f"(float{size} x) => (float{size} y) {{ y = MatMul(x, weights) }}"
    int8_product = f"(uint8{size} x) => (int32{size} y) {{ y = MatMulInteger(x, weights) }}"
    return Ceilings(
        threads=threads,
        fp32_gflops=_gflops(fp32_product, fp32, fp32, threads),
        int8_gflops=_gflops(int8_product, uint8, int8, threads),
        bf16_gflops=_bf16_gflops(threads) if has_bf16() else None,
        memory_gbs=_copied_gbs(threads),
    )


def _gflops(
    product: str, x: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], threads: int
) -> float:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> ceiling {product}')
    # A constant, which onnxruntime packs beforehand as it does a model's weights.
    model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return OPERATIONS / _shortest_s(lambda: session.run(None, {"x": x})) / 1e9


def _bf16_gflops(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    x = torch.randn(SIZE, SIZE, dtype=torch.bfloat16)
    return OPERATIONS / _shortest_s(lambda: x @ x) / 1e9


def _copied_gbs(threads: int) -> float:
    part_bytes = COPIED_BYTES // threads
    sources = [np.ones(part_bytes, np.uint8) for _ in range(threads)]
    targets = [np.empty(part_bytes, np.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _shortest_s(lambda: list(pool.map(np.copyto, targets, sources)))
    return 2 * threads * part_bytes / seconds / 1e9


def _shortest_s(run: Callable[[], object]) -> float:
    """Return the seconds of the shortest of the runs that fit in `SECONDS`."""
    run()
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
