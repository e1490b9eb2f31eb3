"""What this machine can do at most: matrix products in FP32, BF16 and INT8, and copying memory. A
few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from xopt.runtime.machine import has_bf16

__all__ = ["Ceilings", "measure_ceilings"]

SIZE = 1024  # of the square matrices
COPIED_BYTES = 256 << 20  # by all threads together; more than a cache holds
SECONDS = 0.4  # for each, after a warm-up; the best run counts


@dataclass(frozen=True)
class Ceilings:
    """With so many threads: 10^9 operations a second of products (a multiplication and an
    addition are two), and 10^9 bytes a second read or written. bf16_gflops is None where the
    processor multiplies no bfloat16.
    """

    threads: int
    fp32_gflops: float
    int8_gflops: float
    bf16_gflops: float | None
    memory_gbs: float


def measure_ceilings(threads: int) -> Ceilings:
    """Measure them with onnxruntime's kernels, and torch's for bfloat16."""
    random = np.random.default_rng(0)
    fp32 = _product(
        "MatMul", random.normal(size=(SIZE, SIZE)).astype(np.float32), TensorProto.FLOAT, threads
    )
    int8 = _product(
        "MatMulInteger",
        random.integers(-64, 64, (SIZE, SIZE)).astype(np.int8),
        TensorProto.UINT8,
        threads,
    )
    return Ceilings(threads, fp32, int8, _bf16(threads) if has_bf16() else None, _memory(threads))


def _product(operator: str, weights: np.ndarray[Any, Any], kind: int, threads: int) -> float:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "ceiling",
        [helper.make_tensor_value_info("x", kind, [SIZE, SIZE])],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.INT32 if kind == TensorProto.UINT8 else kind, [SIZE, SIZE]
            )
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.abs(weights).astype(np.uint8) if kind == TensorProto.UINT8 else weights
    return 2 * SIZE**3 / _best(lambda: session.run(None, {"x": x})) / 1e9


def _bf16(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    x = torch.randn(SIZE, SIZE, dtype=torch.bfloat16)
    return 2 * SIZE**3 / _best(lambda: x @ x) / 1e9


def _memory(threads: int) -> float:
    each = COPIED_BYTES // threads
    arrays = [(np.ones(each, np.uint8), np.empty(each, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), arrays)))
    return 2 * threads * each / seconds / 1e9


def _best(run: Callable[[], object]) -> float:
    """The shortest of the runs that fit in `SECONDS`."""
    run()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
