"""`xopt serve` beside other servers of the same model, each with its best settings.

    python docs/measure/serve_rivals.py DIR [NAME...] [--kept FOLDER] [--variant V]
        [--seconds N] [--rounds N] [--settings] [--quick] [--json FILE]

The servers take turns, each on 2 threads. Clients ask for 20 documents of the demo data: 16 of
them in a closed loop, then arrivals at 0.8 of that rate. How well a server ranks is the
agreement of its replies with FP32. FOLDER keeps the rivals' files and environments, which take
minutes to make. `--settings` tries each rival's settings instead.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from clients import environment
from servers import HOST, Server, free_port, started, xopt_serve
from serving import DOCUMENTS, PATIENT, THREADS, requests

from xopt.optimize.peers import make_peers
from xopt.optimize.quantize import detect_target
from xopt.runtime import open_scorer
from xopt.runtime.bench.load import Load, Request, Target, closed_loop, open_loop, summarise
from xopt.runtime.data.agreement import agreement
from xopt.runtime.data.candidates import Candidates, Row, demo_candidates
from xopt.runtime.folder import MANIFEST, ModelFolder

HERE = Path(__file__).parent
CLIENTS = 16
OPEN_SHARE = 0.8
INFINITY = (
    # The last ones with what it imports.
    "infinity-emb[server,torch,optimum]==0.0.78 torch==2.13.0 sentence-transformers<4 "
    "transformers<4.50 optimum<1.25 click<8.2 pyarrow<20 datasets<3.5"
)

LLAMA = "xllamacpp gguf safetensors"


@dataclass(frozen=True)
class Rival:
    """How a server is started, and where it answers.

    command: makes its command of a port.
    """

    name: str
    command: Callable[[int], list[str]]
    ready: str = "/health"
    path: str = "/rerank"
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """What the rivals need: their files of the model, and environments with their packages."""

    folder: Path
    model: ModelFolder

    def peers(self) -> Path:
        """Return a folder with the model as sentence-transformers' documentation makes it."""
        place = self.folder / "peers"
        if not (place / MANIFEST).is_file():
            make_peers(self.model, demo_candidates(), detect_target(), place)
        return place

    def quantized(self) -> Path:
        """Return a folder with the same INT8 file only, by the name that infinity looks for."""
        place = self.folder / "quantized"
        (place / "onnx").mkdir(parents=True, exist_ok=True)
        for file in self.peers().iterdir():
            link(place / file.name, file) if file.is_file() else None
        link(place / "onnx" / "model_quantized.onnx", self.peers() / self.onnx_int8())
        return place

    def onnx_int8(self) -> str:
        (file,) = (self.peers() / "onnx").glob("model_q*.onnx")
        return f"onnx/{file.name}"

    def python(self, name: str, packages: str, alone: bool = False) -> str:
        """Return the Python of an environment, on top of this one's packages unless `alone`."""
        place = self.folder / name
        if not place.is_dir():
            environment(place, packages, alone)
        return str(place / "bin" / "python")


def link(place: Path, file: Path) -> None:
    if not place.exists():
        place.symlink_to(file.resolve())


def infinity(kept: Kept, engine: str, batch: int, *more: str) -> Rival:
    """Michael Feil's infinity: batches of rows, sorted by length."""
    folder = kept.quantized() if engine == "optimum" else kept.peers()
    python = kept.python("infinity", INFINITY, alone=True)
    program = str(Path(python).with_name("infinity_emb"))
    command = [program, "v2", "--model-id", str(folder), "--engine", engine]
    command += ["--device", "cpu", "--batch-size", str(batch), "--served-model-name", "default"]
    variables = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return Rival(
        f"infinity, {engine}",
        lambda port: [*command, *more, "--host", HOST, "--port", str(port)],
        variables={**variables, "INFINITY_QUEUE_SIZE": "100000"},
    )


def fastapi(kept: Kept, backend: str, batch: int, at_once: int, workers: int = 1) -> Rival:
    """FastAPI around sentence-transformers, with its INT8 files."""
    openvino = "openvino/openvino_model_qint8_quantized.xml"
    files = {"onnx": kept.onnx_int8(), "openvino": openvino}
    python = kept.python("fastapi", "fastapi optimum-intel")
    command = [python, "-m", "uvicorn", "rival_server:app", "--app-dir", str(HERE)]
    command += ["--workers", str(workers), "--log-level", "warning"]
    variables = {"MODEL": str(kept.peers()), "BACKEND": backend, "FILE": files[backend]}
    return Rival(
        f"FastAPI, sentence-transformers, {backend}",
        lambda port: [*command, "--host", HOST, "--port", str(port)],
        variables={
            **variables,
            "BATCH": str(batch),
            "AT_ONCE": str(at_once),
            "THREADS": str(THREADS // (at_once * workers)),
        },
    )


def llama(kept: Kept, slots: int) -> Rival:
    """llama.cpp's server; it gives both texts the same segment, which costs agreement."""
    python = kept.python("llama", LLAMA, alone=True)
    file = str(kept.folder / "demo.gguf")
    command = [python, str(HERE / "rival_llama.py"), str(kept.model.path), file]
    return Rival("llama.cpp, Q8_0", lambda port: [*command, str(port), str(THREADS), str(slots)])


def xopt(folder: str, variant: str) -> Rival:
    return Rival(
        f"xopt serve, {variant}",
        lambda port: xopt_serve(folder, variant, THREADS, port, *PATIENT),
        ready="/ready",
    )


def rivals(kept: Kept, variant: str) -> dict[str, Callable[[], Rival]]:
    """Return the servers with the settings that were best, by a short name."""
    return {
        "xopt": lambda: xopt(str(kept.model.path), variant),
        "infinity-torch": lambda: infinity(kept, "torch", 8),
        "infinity-onnx": lambda: infinity(kept, "optimum", 8),
        "fastapi-onnx": lambda: fastapi(kept, "onnx", 1, 1),
        "fastapi-openvino": lambda: fastapi(kept, "openvino", 1, 1),
        "llama": lambda: llama(kept, 4),
    }


def settings(kept: Kept) -> dict[str, list[Rival]]:
    """Return each rival with the settings to choose from, by its short name."""
    batches = (8, 32)
    torch = [infinity(kept, "torch", batch) for batch in batches]
    found = {
        "infinity-torch": [*torch, infinity(kept, "torch", 32, "--dtype", "int8")],
        "infinity-onnx": [infinity(kept, "optimum", batch) for batch in batches],
        "llama": [llama(kept, slots) for slots in (1, 4)],
    }
    # The batch, how many requests at once, and processes.
    ways = [(1, 1, 1), (1, 1, 2), (8, 1, 1), (8, 1, 2), (32, 1, 1)]
    for backend in ("onnx", "openvino"):
        found[f"fastapi-{backend}"] = [fastapi(kept, backend, *way) for way in ways]
    return found


def start(rival: Rival, log: Path) -> Any:
    """Start a server on the threads that all have."""
    port = free_port()
    variables = {"OMP_NUM_THREADS": str(THREADS), **rival.variables}
    return started(rival.command(port), port, log, rival.ready, **variables)


def scores_of(server: Server, path: str, sent: list[Request]) -> list[list[float]]:
    """Return the scores of each request's documents in the order sent; none where it fails."""
    connection = http.client.HTTPConnection(HOST, server.port)
    scores = []
    for request in sent:
        connection.request("POST", path, request.body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
        results = content["results"] if response.status == 200 else []
        by_index = {each["index"]: each["relevance_score"] for each in results}
        scores.append([by_index[index] for index in sorted(by_index)])
    return scores


def measured(
    rival: Rival, sent: list[Request], clients: int, seconds: float, log: Path
) -> dict[str, Any]:
    """Measure a server once, by the closed loop and the open one."""
    warm_up_s = seconds / 3
    with start(rival, log) as server:
        target = Target(f"{server.address}{rival.path}")
        load = closed_loop(target, sent, clients=clients, seconds=seconds, warm_up_s=warm_up_s)
        closed = figures(load)
        rate = OPEN_SHARE * closed["pairs_per_s"] / DOCUMENTS
        load = open_loop(target, sent, rate=rate, seconds=seconds, warm_up_s=warm_up_s)
        rss_mib = server.rss_bytes() >> 20
    return {"closed": closed, "open": figures(load), "rss_mib": rss_mib}


def failed(load: Load) -> int:
    """Return how many requests have no ranking for an answer."""
    return sum(answer.status != 200 for answer in load.answers)


def figures(load: Load) -> dict[str, float]:
    summary = summarise(load)
    return {
        "failed": failed(load),
        "pairs_per_s": summary.pairs_per_s,
        "p50_s": summary.all_sizes.p50_s,
        "p95_s": summary.all_sizes.p95_s,
        "generator_cores": summary.generator_cores,
    }


def row(name: str, rounds: list[dict[str, Any]], tau: float) -> dict[str, Any]:
    """Return a server's row: medians over the rounds."""

    def median(loop: str, figure: str) -> float:
        return statistics.median(each[loop][figure] for each in rounds)

    return {
        "server": name,
        "pairs_per_s": median("closed", "pairs_per_s"),
        "p50_s": median("closed", "p50_s"),
        "p95_s": median("closed", "p95_s"),
        "open_p50_s": median("open", "p50_s"),
        "open_p95_s": median("open", "p95_s"),
        "tau": tau,
        "failed": median("closed", "failed"),
        "rss_mib": statistics.median(each["rss_mib"] for each in rounds),
        "generator_cores": median("closed", "generator_cores"),
    }


def compared(folder: ModelFolder, sent: list[Request], scores: list[list[float]]) -> float:
    """Return the mean tau-b of a server's rankings with FP32's, of the requests answered."""
    listed = []
    found = []
    for number, (request, each) in enumerate(zip(sent, scores, strict=True)):
        if each:
            listed += [Row(str(number), query, "", text) for query, text in request.pairs]
            found += each
    answered = Candidates("served", tuple(listed))
    expected = open_scorer(folder, "onnx-fp32", threads=THREADS).score(answered.pairs)
    return agreement(answered, expected, np.array(found)).tau


HEADER = """\
| server | pairs/s | p50 | p95 | at 0.8 of it: p50 | p95 | tau | failed | MiB | generator |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""
ROW = (
    "| {server} | {pairs_per_s:.1f} | {p50_s:.2f} s | {p95_s:.2f} s | {open_p50_s:.2f} s "
    "| {open_p95_s:.2f} s | {tau:.3f} | {failed:.0f} | {rss_mib:,.0f} | {generator_cores:.3f} |"
)


def try_settings(kept: Kept, names: list[str], sent: list[Request], seconds: float) -> None:
    """Print pairs a second of rivals with each of their settings, by 16 clients."""
    by_name = settings(kept)
    for name in names or by_name:
        for rival in by_name[name]:
            with start(rival, kept.folder / "log") as server:
                target = Target(f"{server.address}{rival.path}")
                load = closed_loop(target, sent, clients=CLIENTS, seconds=seconds)
                options = " ".join(rival.command(server.port)[3:])
            found = f"{summarise(load).pairs_per_s:.1f} pairs/s, {failed(load)} failed"
            print(f"{name}: {found}: {options} {rival.variables}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*", help="such as xopt and fastapi-onnx; all by default")
    parser.add_argument("--kept", type=Path, default=Path("build/rivals"))
    parser.add_argument("--variant", default="onnx-int8")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--quick", action="store_true", help="4 clients, to see that all works")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    given.kept.mkdir(parents=True, exist_ok=True)
    kept = Kept(given.kept.resolve(), ModelFolder.open(given.folder))
    sent = requests(DOCUMENTS, 8) if given.quick else requests(DOCUMENTS)
    clients = 4 if given.quick else CLIENTS
    if given.settings:
        try_settings(kept, given.names, sent, given.seconds)
        return
    by_name = rivals(kept, given.variant)
    servers = [by_name[name]() for name in given.names or by_name]
    rounds: dict[str, list[dict[str, Any]]] = {rival.name: [] for rival in servers}
    for number in range(given.rounds):
        for rival in servers:
            print(f"round {number + 1}: {rival.name}", file=sys.stderr, flush=True)
            found = measured(rival, sent, clients, given.seconds, kept.folder / "log")
            rounds[rival.name].append(found)
    table = []
    for rival in servers:
        with start(rival, kept.folder / "log") as server:
            scores = scores_of(server, rival.path, sent)
        tau = compared(kept.model, sent, scores)
        table.append(row(rival.name, rounds[rival.name], tau))
    print(HEADER)
    for each in table:
        print(ROW.format(**each))
    if given.json:
        result = {"threads": THREADS, "seconds": given.seconds, "rows": table, "rounds": rounds}
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
