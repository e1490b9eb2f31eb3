"""`xopt serve` beside other servers of the same model, each with its best settings.

    python docs/measure/serve_rivals.py DIR [NAME...] [--kept FOLDER] [--variant V]
        [--seconds N] [--rounds N] [--json FILE]

The servers take turns, each on 2 threads. Clients ask for 20 documents of the demo data: 16 and 64
of them in a closed loop, then arrivals at 0.8 of the best rate. How well a server ranks is the
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from clients import environment
from servers import HOST, Server, free_port, started, xopt_serve
from serving import CLIENTS, DOCUMENTS, PATIENT, THREADS, requests

from xopt.optimize.peers import make_peers
from xopt.optimize.quantize import detect_target
from xopt.runtime import open_scorer
from xopt.runtime.bench.load import Request, Target, closed_loop, open_loop, summarise
from xopt.runtime.data.agreement import agreement
from xopt.runtime.data.candidates import Candidates, Row, demo_candidates
from xopt.runtime.folder import MANIFEST, ModelFolder

HERE = Path(__file__).parent
OPEN_SHARE = 0.8
INFINITY = (
    # The last ones with what it imports.
    "infinity-emb[server,torch,optimum]==0.0.78 torch==2.13.0 sentence-transformers<4 "
    "transformers<4.50 optimum<1.25 click<8.2"
)


@dataclass(frozen=True)
class Rival:
    """How a server is started, and where it answers.

    command: makes its command of a port.
    tried: other settings of it, as further arguments or variables.
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
    command = [python, "-m", "infinity_emb", "v2", "--model-id", str(folder), "--engine", engine]
    command += ["--device", "cpu", "--batch-size", str(batch), "--served-model-name", "default"]
    variables = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return Rival(
        f"infinity, {engine}",
        lambda port: [*command, *more, "--host", HOST, "--port", str(port)],
        variables={**variables, "INFINITY_QUEUE_SIZE": "100000"},
    )


def fastapi(kept: Kept, backend: str, batch: int, at_once: int) -> Rival:
    """FastAPI around sentence-transformers, with its INT8 files."""
    openvino = "openvino/openvino_model_qint8_quantized.xml"
    files = {"onnx": kept.onnx_int8(), "openvino": openvino}
    python = kept.python("fastapi", "fastapi")
    command = [python, "-m", "uvicorn", "rival_server:app", "--app-dir", str(HERE)]
    variables = {"MODEL": str(kept.peers()), "BACKEND": backend, "FILE": files[backend]}
    return Rival(
        f"FastAPI, sentence-transformers, {backend}",
        lambda port: [*command, "--host", HOST, "--port", str(port), "--log-level", "warning"],
        variables={**variables, "BATCH": str(batch), "AT_ONCE": str(at_once)},
    )


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
        "infinity-torch": lambda: infinity(kept, "torch", 32),
        "infinity-onnx": lambda: infinity(kept, "optimum", 32),
        "fastapi-onnx": lambda: fastapi(kept, "onnx", 8, 1),
        "fastapi-openvino": lambda: fastapi(kept, "openvino", 8, 1),
    }


def settings(kept: Kept) -> list[Rival]:
    """Return each rival with the settings to choose from."""
    found = []
    for batch in (8, 32, 64):
        found.append(named(infinity(kept, "torch", batch), f"batches of {batch}"))
        found.append(named(infinity(kept, "optimum", batch), f"batches of {batch}"))
    int8 = infinity(kept, "torch", 32, "--dtype", "int8")
    found.append(named(int8, "batches of 32, int8"))
    for backend in ("onnx", "openvino"):
        for batch in (1, 8, 32):
            for at_once in (1, 2, 16):
                rival = fastapi(kept, backend, batch, at_once)
                found.append(named(rival, f"batches of {batch}, {at_once} at once"))
    return found


def named(rival: Rival, setting: str) -> Rival:
    return replace(rival, name=f"{rival.name}: {setting}")


def start(rival: Rival, log: Path) -> Any:
    """Start a server on the threads that all have."""
    port = free_port()
    variables = {"OMP_NUM_THREADS": str(THREADS), **rival.variables}
    return started(rival.command(port), port, log, rival.ready, **variables)


def scores_of(server: Server, path: str, sent: list[Request]) -> np.ndarray:
    """Return the scores of all documents in the order in which they are sent."""
    connection = http.client.HTTPConnection(HOST, server.port)
    scores = []
    for request in sent:
        connection.request("POST", path, request.body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
        if response.status != 200:
            sys.exit(f"{path}: {response.status} {content}")
        by_index = {each["index"]: each["relevance_score"] for each in content["results"]}
        scores += [by_index[index] for index in range(request.documents)]
    return np.array(scores)


def measured(rival: Rival, sent: list[Request], seconds: float, log: Path) -> dict[str, Any]:
    """Measure a server once: its scores, both closed loops, and the open one."""
    with start(rival, log) as server:
        target = Target(f"{server.address}{rival.path}")
        found: dict[str, Any] = {"scores": scores_of(server, rival.path, sent).tolist()}
        for clients in CLIENTS:
            load = closed_loop(
                target, sent, clients=clients, seconds=seconds, warm_up_s=seconds / 3
            )
            found[f"closed {clients}"] = figures(load)
        best = max(found[f"closed {clients}"]["pairs_per_s"] for clients in CLIENTS)
        rate = OPEN_SHARE * best / DOCUMENTS
        load = open_loop(target, sent, rate=rate, seconds=seconds, warm_up_s=seconds / 3)
        found["open"] = figures(load)
        found["rss_mib"] = server.rss_bytes() >> 20
    return found


def figures(load: Any) -> dict[str, float]:
    summary = summarise(load)
    if summary.answered < summary.sent:
        print(f"  {summary.sent - summary.answered} of {summary.sent} requests have no answer")
    return {
        "pairs_per_s": summary.pairs_per_s,
        "p50_s": summary.all_sizes.p50_s,
        "p95_s": summary.all_sizes.p95_s,
        "generator_cores": summary.generator_cores,
    }


def rows(name: str, rounds: list[dict[str, Any]], tau: float) -> dict[str, Any]:
    """Return a server's row: medians over the rounds."""

    def median(loop: str, figure: str) -> float:
        return statistics.median(each[loop][figure] for each in rounds)

    best = max(CLIENTS, key=lambda clients: median(f"closed {clients}", "pairs_per_s"))
    return {
        "server": name,
        "clients": best,
        "pairs_per_s": median(f"closed {best}", "pairs_per_s"),
        "p50_s": median(f"closed {best}", "p50_s"),
        "p95_s": median(f"closed {best}", "p95_s"),
        "open_p50_s": median("open", "p50_s"),
        "open_p95_s": median("open", "p95_s"),
        "tau": tau,
        "rss_mib": median_of(rounds, "rss_mib"),
        "generator_cores": median(f"closed {best}", "generator_cores"),
    }


def median_of(rounds: list[dict[str, Any]], figure: str) -> float:
    return statistics.median(each[figure] for each in rounds)


def compared(folder: ModelFolder, sent: list[Request], scores: list[float]) -> float:
    """Return the mean tau-b of a server's rankings with FP32's."""
    pairs = [pair for request in sent for pair in request.pairs]
    listed = []
    for number, (query, text) in enumerate(pairs):
        listed.append(Row(str(number // DOCUMENTS), query, str(number), text))
    expected = open_scorer(folder, "onnx-fp32", threads=THREADS).score(pairs)
    served = Candidates("served", tuple(listed))
    return agreement(served, expected, np.array(scores)).tau


HEADER = """\
| server | clients | pairs/s | p50 | p95 | at 0.8 of it: p50 | p95 | tau | MiB | generator |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""
ROW = (
    "| {server} | {clients} | {pairs_per_s:.1f} | {p50_s:.2f} s | {p95_s:.2f} s | {open_p50_s:.2f} s "
    "| {open_p95_s:.2f} s | {tau:.3f} | {rss_mib:,.0f} | {generator_cores:.3f} |"
)


def try_settings(kept: Kept, sent: list[Request], seconds: float) -> None:
    """Print pairs a second of each rival with each of its settings, by 16 clients."""
    for rival in settings(kept):
        with start(rival, kept.folder / "log") as server:
            target = Target(f"{server.address}{rival.path}")
            load = closed_loop(target, sent, clients=16, seconds=seconds, warm_up_s=seconds / 3)
            print(f"{rival.name}: {summarise(load).pairs_per_s:.1f} pairs/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*", help="such as xopt and fastapi-onnx; all by default")
    parser.add_argument("--kept", type=Path, default=Path("build/rivals"))
    parser.add_argument("--variant", default="onnx-int8")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    given.kept.mkdir(parents=True, exist_ok=True)
    kept = Kept(given.kept.resolve(), ModelFolder.open(given.folder))
    sent = requests(DOCUMENTS)
    if given.settings:
        try_settings(kept, sent, given.seconds)
        return
    by_name = rivals(kept, given.variant)
    servers = [by_name[name]() for name in given.names or by_name]
    rounds: dict[str, list[dict[str, Any]]] = {rival.name: [] for rival in servers}
    for number in range(given.rounds):
        for rival in servers:
            print(f"round {number + 1}: {rival.name}", file=sys.stderr, flush=True)
            found = measured(rival, sent, given.seconds, kept.folder / "log")
            rounds[rival.name].append(found)
    table = []
    for name, each in rounds.items():
        tau = compared(kept.model, sent, each[0].pop("scores"))
        table.append(rows(name, each, tau))
    print(HEADER)
    for row in table:
        print(ROW.format(**row))
    if given.json:
        result = {"threads": THREADS, "seconds": given.seconds, "rows": table, "rounds": rounds}
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
