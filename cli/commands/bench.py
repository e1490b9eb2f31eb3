"""`xopt bench`"""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from xopt.cli import options
from xopt.cli.output import Output, interval_text, json_option
from xopt.cli.served import Asked, load_options, print_served, run_served

if TYPE_CHECKING:
    from xopt.runtime.bench.bench import Bench, Case, Measured
    from xopt.runtime.bench.ceilings import Ceilings
    from xopt.runtime.bench.explain import Explained
    from xopt.runtime.cascade.cascade import Cascade
    from xopt.runtime.data.candidates import Candidates
    from xopt.runtime.folder import ModelFolder

__all__ = ["bench", "print_bench", "print_cascaded", "print_explained", "print_rival"]

EXAMPLES = """\b
Examples:
  xopt bench models/minilm --explain --json bench.json
  xopt bench models/minilm --variant onnx-int8 --strategy planned --peers
  xopt bench models/minilm --serve --p95 200
"""

log = logging.getLogger(__name__)

MIB = 1 << 20


@click.command(epilog=EXAMPLES)
@options.model_folder
@options.variants
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    metavar="NAME",
    help="`row` scores a pair per call. `default` has sentence-transformers' defaults. `batch` has "
    "batches of 64, `concurrent` 4 processes of them, `batch-8` and `batch-1` smaller ones. "
    "`planned` is xopt's plan, `cascade` the one in DIR. Repeat the option for more.  "
    "[default: all but batch-8 and batch-1]",
)
@options.device
@options.data
@click.option(
    "--pairs",
    type=options.AT_LEAST_1,
    metavar="N",
    default=500,
    help="Score the first pairs, this many.",
)
@options.threads
@click.option(
    "--repeat", type=options.AT_LEAST_1, metavar="N", default=3, help="Interleaved rounds."
)
@click.option(
    "--peers",
    is_flag=True,
    help="Also time what you would run instead: sentence-transformers' ONNX export, its INT8, and "
    "torch in bfloat16 if the processor has it. With the extra `peers`, also OpenVINO's INT8 and "
    "CTranslate2's.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Also show where the time went, what held each case back, and what to change.",
)
@load_options
@options.trust
@json_option
def bench(
    model: ModelFolder,
    variants: tuple[str, ...],
    strategies: tuple[str, ...],
    device: str,
    read: options.ReadCandidates,
    pairs: int,
    threads: int | None,
    repeat: int,
    peers: bool,
    explain: bool,
    asked: Asked | None,
    output: Output,
) -> None:
    """Time variants inside a Daft batch UDF, or a server under load.

    Each variant under each strategy is a case. It runs in fresh processes, interleaved with the
    others round by round. Speed is the ratio to the baseline, torch-fp32/default. CPU is that of
    the whole process tree. The column beside it has what a monitor of the parent process sees.

    With --serve clients send requests over HTTP. First each sends its next one when it has an
    answer, which finds the highest rate. Then requests arrive at random, at rates below it.
    """
    from xopt.runtime.bench.rivals import fastest_rival
    from xopt.runtime.scoring.variants import variants_on

    if asked is not None:
        served = run_served(asked, model, read(), variants, threads)
        output.json(served)
        print_served(output, served)
        return
    if peers and device != "cpu":
        raise click.UsageError(
            "--peers is for a CPU; on a GPU compare with the torch variants "
            "under the strategies default and batch"
        )
    cascade = _cascade_to_time(model, strategies)
    candidates = read(first=cascade.certificate.column if cascade else None)
    cases = _cases(variants, strategies, variants_on(model, device), cascade)
    timed = candidates.head(pairs)
    if any(case.strategy == "cascade" for case in cases):
        timed = candidates.whole(pairs)
    settings = {"threads": threads, "repeat": repeat, "device": device, "profiled": explain}
    result, peer_cases = _timed(model, candidates, timed, cases, peers, settings)
    output.json(result)
    print_bench(output, result)
    if peer_cases:
        print_rival(output, *fastest_rival(result, peer_cases))
    print_cascaded(output, result)
    if explain:
        print_explained(output, result)


def _timed(
    model: ModelFolder,
    candidates: Candidates,
    timed: Candidates,
    cases: list[Case],
    peers: bool,
    settings: dict[str, Any],
) -> tuple[Bench, list[Case]]:
    """Time cases, and those of other tools where they are asked for; return these, too."""
    from xopt.runtime.bench.bench import bench as run

    if not peers:
        return run(model, timed, cases, **settings), []
    with tempfile.TemporaryDirectory(prefix="xopt-peers-") as scratch:
        threads = settings["threads"]
        folder, peer_cases = _peers(model, candidates, threads, Path(scratch))
        return run(model, timed, [*cases, *peer_cases], peers=folder, **settings), peer_cases


def _cascade_to_time(model: ModelFolder, strategies: Sequence[str]) -> Cascade | None:
    """Return the cascade of the model folder if it takes part."""
    from xopt.runtime.cascade.cascade import Cascade
    from xopt.runtime.errors import BadInput

    if strategies:
        return Cascade.of(model) if "cascade" in strategies else None
    if not model.manifest.cascade:
        return None
    try:
        cascade = Cascade.of(model)
    except BadInput as error:
        log.warning("bench: without the cascade (%s)", error)
        return None
    # one that needs a column of scores runs only on request: other data may lack the column
    return cascade if cascade.certificate.column is None else None


def _cases(
    variants: Sequence[str],
    strategies: Sequence[str],
    fitting: Sequence[str],
    cascade: Cascade | None,
) -> list[Case]:
    """Return the cases that the options ask for; all that fit for what they leave open."""
    from xopt.runtime.bench.bench import Case
    from xopt.runtime.bench.strategy import SMALL_BATCHES, STRATEGIES

    all_named = bool(variants and strategies)
    if not strategies:
        strategies = [name for name in STRATEGIES if name not in SMALL_BATCHES]
        if cascade is None:
            strategies.remove("cascade")
    cases = []
    for variant, strategy in itertools.product(variants or fitting, strategies):
        # a cascade runs with the variant that it was certified with
        fits = strategy != "cascade" or (cascade is not None and variant == cascade.variant)
        if fits or all_named:
            cases.append(Case(variant, strategy))
    return cases


def _peers(
    model: ModelFolder,
    candidates: Candidates,
    threads: int | None,
    scratch: Path,
) -> tuple[ModelFolder, list[Case]]:
    """Make what a user would run instead on a CPU; return its folder and its cases."""
    from xopt.optimize.peers import make_peers
    from xopt.optimize.quantize import detect_target
    from xopt.runtime.bench.rivals import rivals
    from xopt.runtime.scoring.variants import variants_on

    folder = make_peers(model, candidates, detect_target(), scratch / "model")
    fitting = variants_on(model, "cpu")
    torch_variants = [name for name in fitting if model.variant(name).backend == "torch"]
    return folder, rivals(model, candidates, folder, torch_variants, threads)


def print_bench(output: Output, bench: Bench) -> None:
    rounds = len(bench.measured[0].rounds)
    title = (
        f"Daft batch UDF on {bench.device}: {bench.pairs} pairs of {bench.data}, "
        f"mean {bench.tokens / bench.pairs:.0f} tokens, {bench.threads} threads each, "
        f"{rounds} interleaved rounds"
    )
    output.table(title, [_case_row(measured, bench.cores) for measured in bench.measured])
    once = [str(measured.case) for measured in bench.measured if len(measured.rounds) < rounds]
    if once:
        output.line(f"In the first round alone, and not tuned: {', '.join(once)}")
        output.line("")


def _case_row(measured: Measured, cores: int) -> dict[str, str]:
    mean_cpu = 100 * measured.mean_cores / cores
    peak_cpu = 100 * measured.peak_cores / cores
    agreement = measured.agreement
    return {
        "variant/strategy": str(measured.case),
        "speed": f"{measured.ratio:.2f} x",
        "pairs/s": f"{measured.pairs_per_s:.1f}",
        "tokens/s": f"{measured.tokens_per_s:,.0f}",
        "call p50 / p95 ms": f"{1000 * measured.p50_s:,.0f} / {1000 * measured.p95_s:,.0f}",
        "load s": f"{measured.load_s:.1f}",
        "peak MiB": f"{measured.peak_bytes / MIB:,.0f}",
        "CPU mean / peak": f"{mean_cpu:.0f} / {peak_cpu:.0f} %",
        "cores": f"{measured.mean_cores:.2f}",
        "CPU seen in parent": f"{100 * measured.root_mean_cores / cores:.1f} %",
        "tau-b": _share_text(agreement.tau) if agreement else "",
        "top-10": _share_text(agreement.top10) if agreement else "",
    }


def _share_text(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.3f}"


def print_rival(output: Output, rival: Measured, ours: Measured | None) -> None:
    """Print the fastest peer, and how much faster the fastest case is that agrees no less."""
    agreed = f" with tau-b {rival.agreement.tau:.3f}" if rival.agreement else ""
    output.line(f"The fastest peer is {rival.case}, {rival.ratio:.2f} x{agreed}.")
    if ours and ours.agreement:
        times = ours.pairs_per_s / rival.pairs_per_s
        output.line(
            f"{ours.case} is {times:.2f} times as fast as it, with tau-b {ours.agreement.tau:.3f}."
        )
    output.line("")


def print_cascaded(output: Output, bench: Bench) -> None:
    """Print what each cascade scored and lost, and its speed against scoring everything."""
    from xopt.optimize.judge.statistics import interval

    planned = {}
    for measured in bench.measured:
        if measured.case.strategy == "planned":
            planned[measured.case.variant] = measured.pairs_per_s
    for measured in bench.measured:
        cascaded = measured.cascaded
        if cascaded is None:
            continue
        text = f"{measured.case}: {100 * cascaded.share:.0f} % of the pairs scored"
        variant = measured.case.variant
        if variant in planned:
            text += f", {measured.pairs_per_s / planned[variant]:.2f} times {variant}/planned"
        loss = interval(np.array(cascaded.losses))
        text += f"; loss against FP32 {interval_text(loss, digits=4)} on {loss.queries} queries"
        if cascaded.seen:
            text += f", {cascaded.seen} of which made the cascade"
        output.line(f"{text}.")


def print_explained(output: Output, bench: Bench) -> None:
    """Print where each case's time went, what held it back, and what to change."""
    from xopt.runtime.bench.explain import outlook

    if bench.ceilings is None:
        _print_gpu_time(output, bench)
        return
    explained = {
        measured.case: measured.explained for measured in bench.measured if measured.explained
    }
    _print_time(output, bench.ceilings, explained)
    _print_kinds(output, {case: each for case, each in explained.items() if each.kinds})
    speeds = {str(measured.case): measured.ratio for measured in bench.measured}
    for case, each in explained.items():
        findings = [(finding.name, finding.gain) for finding in each.findings]
        hope = outlook(str(case), findings, speeds)
        output.line(f"{case}: {each.bottleneck.advice} {hope}".rstrip())


def _print_time(output: Output, ceilings: Ceilings, explained: dict[Case, Explained]) -> None:
    """Print the shares of each case's time, and its forwards beside the machine's ceilings."""
    from xopt.runtime.bench.explain import STAGES

    rows = []
    for case, each in explained.items():
        total_s = each.split.total_s
        row = {"variant/strategy": str(case), "s": f"{total_s:.1f}"}
        for stage, column in STAGES.items():
            row[column] = f"{getattr(each.split, stage) / total_s:.0%}"
        row["GFLOP/s"] = "" if each.gflops is None else f"{each.gflops:.0f}"
        row["of ceiling"] = "" if each.of_ceiling is None else f"{each.of_ceiling:.0%}"
        row["held back by"] = each.bottleneck.name
        rows.append(row)
    bf16 = f", BF16 {ceilings.bf16_gflops:.0f}" if ceilings.bf16_gflops else ""
    title = (
        f"where the time went; ceilings of {ceilings.threads} threads: "
        f"FP32 {ceilings.fp32_gflops:.0f} GFLOP/s{bf16}, INT8 {ceilings.int8_gflops:.0f} GOP/s, "
        f"memory {ceilings.memory_gbs:.0f} GB/s"
    )
    output.table(title, rows)


def _print_kinds(output: Output, explained: dict[Case, Explained]) -> None:
    """Print the shares of a forward's time by kind of operation."""
    if not explained:
        return
    kinds = list(dict.fromkeys(kind for each in explained.values() for kind in each.kinds))
    rows = []
    for case, each in explained.items():
        row = {"variant/strategy": str(case)}
        for kind in kinds:
            row[kind] = f"{each.kinds.get(kind, 0.0):.0%}"
        reached = each.products_of_ceiling
        row["products, of ceiling"] = "" if reached is None else f"{reached:.0%}"
        rows.append(row)
    output.table(
        "a forward of one caller by kind of operation, as the runtimes' profilers tell; "
        "what a runtime joins to a product counts as one",
        rows,
    )


def _print_gpu_time(output: Output, bench: Bench) -> None:
    rows = []
    for measured in bench.measured:
        if measured.case.strategy != "planned":
            continue
        by_time = sorted(measured.rounds, key=lambda round_: round_.wall_s)
        median = by_time[len(by_time) // 2]
        stages = median.stages
        idle = max(0.0, 1 - (stages.copy_s + stages.forward_s) / median.wall_s)
        row = {
            "variant/strategy": str(measured.case),
            "wall s": f"{median.wall_s:.2f}",
            "tokenising s": f"{stages.encode_s:.2f}",
            "copies s": f"{stages.copy_s:.2f}",
            "forwards s": f"{stages.forward_s:.2f}",
            "GPU idle": f"{idle:.0%}",
        }
        rows.append(row)
    output.table(
        "where the time went: tokenising runs on the host beside the GPU, copies and forwards by "
        "the GPU's own clock",
        rows,
    )
