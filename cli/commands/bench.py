"""`xopt bench`"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xopt.cli.cascade_tables import print_cascaded
from xopt.cli.options import (
    data_options,
    device_option,
    folder_argument,
    threads_option,
    trust_option,
    variant_option,
)
from xopt.cli.output import Output, json_option
from xopt.cli.tables import print_bench, print_explained, print_rival

if TYPE_CHECKING:
    from xopt.runtime.data.candidates import Candidates

__all__ = ["bench"]

log = logging.getLogger(__name__)


@click.command()
@folder_argument
@variant_option
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    help="row (a pair a call), default (sentence-transformers' defaults), batch (64), concurrent (batch 64, "
    "max_concurrency 4), batch-8, batch-1, planned (xopt's plan) or cascade (the one in DIR); repeat for more.  "
    "[default: all there are but batch-8 and batch-1]",
)
@device_option
@data_options
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Score the first so many pairs.",
)
@threads_option
@click.option(
    "--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Interleaved rounds."
)
@click.option(
    "--peers",
    is_flag=True,
    help="Also what you would run instead: sentence-transformers' ONNX export, its INT8, its bfloat16 where the "
    "processor has it, OpenVINO's INT8 where nncf is installed, and CTranslate2's where that is; each with "
    "batches of 32 and with the best of 32, 8 and 1.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Also where the time went, what held each case back, and what to change.",
)
@trust_option
@json_option
def bench(
    folder: str,
    variants: tuple[str, ...],
    strategies: tuple[str, ...],
    device: str,
    read: Callable[..., Candidates],
    pairs: int,
    threads: int | None,
    repeat: int,
    peers: bool,
    explain: bool,
    trust_remote_code: bool,
    json_file: str | None,
) -> None:
    """Time variants inside a Daft batch UDF.

    Each variant under each strategy runs in fresh processes, interleaved round by round, beside
    the baseline torch-fp32/default. Speed is the ratio to it. CPU is that of the whole process
    tree; the column beside it shows what a monitor of the parent process alone would see.
    """
    from xopt.runtime.bench.bench import Case
    from xopt.runtime.bench.bench import bench as run
    from xopt.runtime.bench.rivals import fastest_rival, rivals
    from xopt.runtime.bench.strategy import SMALL_BATCHES, STRATEGIES
    from xopt.runtime.cascade.cascade import Cascade
    from xopt.runtime.errors import BadInput
    from xopt.runtime.folder import ModelFolder
    from xopt.runtime.scoring.variants import variants_on

    if peers and device != "cpu":
        raise click.UsageError(
            "--peers is for a CPU; on a GPU compare with the torch variants under the strategies default and batch"
        )
    output = Output(json_file)
    model = ModelFolder.open(folder, trust_remote_code)
    asked, own = "cascade" in strategies, None
    if asked or (model.manifest.cascade and not strategies):
        try:
            own = Cascade.of(model)
        except BadInput as error:
            if asked:
                raise
            log.warning("bench: without the cascade (%s)", error)
    column = own.certificate.column if own else None
    candidates = read(first=column if asked else None)
    fitting = variants_on(model, device)
    # A cascade that goes by a column of scores runs where it is asked for: other data need not
    # have one.
    usual = [
        s
        for s in STRATEGIES
        if s not in SMALL_BATCHES and (s != "cascade" or (own and column is None))
    ]
    cases = [Case(v, s) for v, s in itertools.product(variants or fitting, strategies or usual)]
    if not strategies or not variants:  # of what was not asked for, what there is
        scores = str(model.manifest.cascade.get("variant", ""))
        cases = [case for case in cases if case.strategy != "cascade" or case.variant == scores]
    with tempfile.TemporaryDirectory(prefix="xopt-peers-") as scratch:
        made, theirs = None, []
        if peers:
            from xopt.optimize.peers import make_peers
            from xopt.optimize.quantize import detect_target

            made = make_peers(model, candidates, detect_target(), Path(scratch) / "model")
            torch = [variant for variant in fitting if model.variant(variant).backend == "torch"]
            theirs = rivals(model, candidates, made, torch, threads)
        part = candidates.head(pairs)
        if any(case.strategy == "cascade" for case in cases):
            part = candidates.whole(pairs)
        result = run(
            model,
            part,
            [*cases, *theirs],
            threads=threads,
            repeat=repeat,
            device=device,
            peers=made,
            profiled=explain,
        )
    output.json(result)
    print_bench(output, result)
    if theirs:
        print_rival(output, *fastest_rival(result, theirs))
    print_cascaded(output, result)
    if explain:
        print_explained(output, result)
