from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.graph_memo import GraphMemo
from helpers.once import once
from helpers.same_process import same_process
from helpers.texts import shortened
from helpers.tiny import make_tiny
from hypothesis import settings

from xopt.cli.main import cli
from xopt.optimize.cascade.certify import Certified, certify
from xopt.optimize.export import export
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime.bench.bench import Bench, Case, bench
from xopt.runtime.bench.strategy import STRATEGIES
from xopt.runtime.bench.worker import started
from xopt.runtime.data.candidates import Candidates, demo_candidates
from xopt.runtime.folder import ModelFolder

# Those over 20 s are named at the end of a run. A slow machine takes three times as long.
MOST_S = 60
MEMO = pytest.StashKey[GraphMemo]()
Report = pytest.TestReport

# machines are slow at times: no test asserts a time
settings.register_profile("xopt", deadline=None)
settings.load_profile("xopt")
os.environ["DAFT_PROGRESS_BAR"] = "0"
# rerankers imports it where it is installed, and it would ask the network for prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Report, Report]:
    """A test that takes long is marked so, or `make test` would grow until nobody runs it."""
    report = yield
    memo = item.config.stash.get(MEMO, None)
    # is paid once, and the next test has it for nothing
    exporting_s = memo.taken_s() if memo else 0.0
    took_s = call.duration - exporting_s
    slow = item.get_closest_marker("slow")
    if call.when == "call" and report.passed and slow is None and took_s > MOST_S:
        report.outcome = "failed"
        report.longrepr = f"took {took_s:.0f} s, over {MOST_S}: make it quicker, or mark it slow"
    return report


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell's background jobs ignore it, and so would all that a test starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logs_reach_the_tests() -> Iterator[None]:
    """Undo what the command line does to the log, which is the whole process's."""
    yield
    logger = logging.getLogger("xopt")
    logger.handlers = []
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def what_takes_long_is_done_once(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Graphs that torch exported before are read from disk, and the bench runs its cases in this
    process.

    Tests of the bench's own processes ask for `fresh_processes`.
    """
    cache = getattr(pytestconfig, "cache", None)  # -p no:cacheprovider
    memo = GraphMemo(cache.mkdir("graphs") if cache else tmp_path_factory.mktemp("graphs"))
    memo.forget()
    pytestconfig.stash[MEMO] = memo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.onnx.export", memo)
        patch.setattr("xopt.runtime.bench.bench.started", same_process)
        yield


@pytest.fixture
def fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench starts a process for each case, as it does for users."""
    monkeypatch.setattr("xopt.runtime.bench.bench.started", started)


@pytest.fixture(scope="session")
def calibration() -> Candidates:
    """Queries of the demo data that are none of `docs`: no verdict counts what has calibrated."""
    return demo_candidates(queries=24, depth=6).between(8, 24)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, calibration: Candidates) -> ModelFolder:
    """The demo model, exported and quantised: trained weights, for where behaviour is at stake.
    Not to be changed.
    """

    def make(place: Path) -> ModelFolder:
        return quantize(
            export("demo", place / "demo-xopt"), recipe_for(detect_target()), calibration
        )

    return once(tmp_path_factory, "demo", make)


@pytest.fixture
def demo_copy(demo: ModelFolder, tmp_path: Path) -> ModelFolder:
    """The demo model in a folder of the test's own, to change and to damage."""
    return ModelFolder.open(shutil.copytree(demo.path, tmp_path / "demo-xopt"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, calibration: Candidates) -> ModelFolder:
    """A tiny random BERT, exported and quantised. Not to be changed."""

    def make(place: Path) -> ModelFolder:
        made = export(str(make_tiny(place / "bert")), place / "bert-xopt")
        return quantize(made, recipe_for(detect_target()), calibration)

    return once(tmp_path_factory, "tiny", make)


@pytest.fixture
def tiny_copy(tiny: ModelFolder, tmp_path: Path) -> ModelFolder:
    """A tiny model folder of the test's own, to change and to damage."""
    return ModelFolder.open(shutil.copytree(tiny.path, tmp_path / "tiny-xopt"))


@pytest.fixture(scope="session")
def queries() -> Candidates:
    return demo_candidates(queries=56, depth=25).between(24, 56)


@pytest.fixture(scope="session")
def unseen() -> Candidates:
    return demo_candidates(queries=72, depth=25).between(56, 72)


@pytest.fixture(scope="session")
def certified(
    tiny: ModelFolder, queries: Candidates, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelFolder, Certified]:
    """The tiny model with a cascade that orders by features. Not to be changed."""

    def make(place: Path) -> tuple[ModelFolder, Certified]:
        path = shutil.copytree(tiny.path, place / "tiny-xopt")
        # the features take longer than so small a model
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("xopt.optimize.cascade.certify.LEAST_SAVED", -99.0)
            found = certify(
                ModelFolder.open(path),
                queries,
                "onnx-int8",
                first="learned",
                max_loss=0.5,
                confidence=0.8,
            )
        return ModelFolder.open(path), found

    return once(tmp_path_factory, "certified", make)


@pytest.fixture(scope="session")
def docs() -> Candidates:
    """A few queries of the demo data, of short texts."""
    return shortened(demo_candidates(queries=8, depth=12), 500)


@pytest.fixture(scope="session")
def benched(tmp_path_factory: pytest.TempPathFactory, tiny: ModelFolder, docs: Candidates) -> Bench:
    """A bench of the tiny model under every strategy that runs in one process."""
    strategies = [s for s in STRATEGIES.values() if not s.by_query and s.workers is None]
    cases = [Case("torch-fp32", strategy.name) for strategy in strategies] + [
        Case("onnx-int8", "planned")
    ]
    return once(tmp_path_factory, "benched", lambda _: bench(tiny, docs, cases, repeat=1))


@pytest.fixture
def xopt() -> Callable[..., Result]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return run
