"""The load on a server that `xopt bench --serve` measures: its options and its tables."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from xopt.cli import options
from xopt.cli.extras import needs_extra
from xopt.cli.output import Output

if TYPE_CHECKING:
    from xopt.runtime.bench.load import SizeSummary
    from xopt.runtime.bench.served import Served, ServedLoad, Server
    from xopt.runtime.data.candidates import Candidates
    from xopt.runtime.folder import ModelFolder

__all__ = ["Asked", "load_options", "print_served", "run_served"]

HERE = "here"  # the value of --serve where it has none
LOAD_OPTIONS = ("sizes", "clients", "rate", "seconds", "p95")
# What the bench inside Daft is asked for.
OTHERS = ("strategies", "device", "pairs", "repeat", "peers", "explain")
OF_SERVER = ("variants", "threads")

Asked = dict[str, Any]  # what `run_served` needs of the options


def _sizes(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    """Read numbers of documents, with commas between them."""
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{value!r} are no numbers of documents; give some as in 1,10,100")
    return tuple(dict.fromkeys(sizes))


_OPTIONS = (
    click.option(
        "--serve",
        is_flag=False,
        flag_value=HERE,
        metavar="[URL]",
        help="Instead put load on `xopt serve` of each --variant, by default the recommended one, "
        "or on the reranking server at URL. Put it behind DIR. XOPT_API_KEY may hold its key.",
    ),
    click.option(
        "--sizes",
        callback=_sizes,
        metavar="N,N",
        default="1,10,100",
        help="With --serve: documents a request. Each size has as many requests.",
    ),
    click.option(
        "--clients",
        type=options.AT_LEAST_1,
        metavar="N",
        default=16,
        help="With --serve: so many clients at once find the highest rate.",
    ),
    click.option(
        "--rate",
        type=options.Number(0, min_open=True),
        metavar="R",
        help="With --serve: requests that arrive a second.  "
        "[default: half of the highest rate, and 0.8 of it]",
    ),
    click.option(
        "--seconds",
        type=options.Number(0, min_open=True),
        metavar="S",
        default=10,
        help="With --serve: how long each load lasts, after a second of warm-up.",
    ),
    click.option(
        "--p95",
        type=options.Number(0, min_open=True),
        metavar="MS",
        help="With --serve: find the highest rate at which 95 % of the requests take at most MS "
        "milliseconds.",
    ),
)


def load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --serve and its options; the command gets `asked`: Asked, None without --serve."""

    @functools.wraps(command)
    def with_load(serve: str | None, **arguments: Any) -> Any:
        load = {name: arguments.pop(name) for name in LOAD_OPTIONS}
        if serve is None:
            options.refuse(LOAD_OPTIONS, "goes with --serve")
            return command(asked=None, **arguments)
        options.refuse(OTHERS, "is for the bench inside Daft, and --serve runs another one")
        if serve != HERE:
            options.refuse(OF_SERVER, "is up to the server at the address that --serve names")
        if load["rate"] and load["p95"]:
            raise click.UsageError("--p95 looks for a rate, and --rate gives it; leave one out")
        return command(asked={"serve": serve, **load}, **arguments)

    for option in reversed(_OPTIONS):
        with_load = option(with_load)
    return with_load


def run_served(
    asked: Asked,
    model: ModelFolder,
    candidates: Candidates,
    variants: Sequence[str],
    threads: int | None,
) -> Served:
    """Put the load on the servers that the options ask for."""
    from xopt.runtime.scoring.default import default_variant

    with needs_extra("xopt bench --serve", "load"):
        from xopt.runtime.bench.served import LoadSettings, bench_server, bench_variants
    settings = LoadSettings(
        sizes=asked["sizes"],
        clients=asked["clients"],
        seconds=asked["seconds"],
        rate=asked["rate"],
        p95_s=asked["p95"] / 1000 if asked["p95"] else None,
    )
    if asked["serve"] != HERE:
        return bench_server(asked["serve"], candidates, settings)
    variants = variants or [default_variant(model, "cpu")]
    return bench_variants(model, candidates, variants, settings, threads=threads)


def print_served(output: Output, result: Served) -> None:
    """Print how many requests each server answered, and in which time."""
    loads = []
    sizes = []
    for server in result.served:
        for load in server.loads:
            loads.append(_load_row(server, load))
            found = load.summary
            parts = [found.all_sizes] if len(found.sizes) > 1 else []
            sizes += [_size_row(server, load, each) for each in [*parts, *found.sizes]]
    title = (
        f"requests over HTTP of {result.data}, {result.settings.seconds:g} s each load, "
        f"{result.cores} cores, which the load shares with a server of this machine"
    )
    output.table(title, loads)
    output.table("how long a request took from when it was to be sent, if it was answered", sizes)
    for server in result.served:
        output.line(_finding(server, result.settings.p95_s))


def _load_row(server: Server, load: ServedLoad) -> dict[str, str]:
    found = load.summary
    bare = server.bare_pairs_per_s if load.rate is None else None
    return {
        "server": server.name,
        "arrivals/s": _arrivals(load),
        "answered/s": f"{found.requests_per_s:.1f}",
        "pairs/s": f"{found.pairs_per_s:.1f}",
        "of bare scorer": f"{found.pairs_per_s / bare:.0%}" if bare else "",
        "requests": str(found.sent),
        "refused": str(found.refused),
        "timed out": str(found.timed_out),
        "cancelled": str(found.cancelled),
        "failed": str(found.failed),
        "sent late p99 ms": _ms(found.late_p99_s),
        "load's cores": f"{found.generator_cores:.2f}",
    }


def _size_row(server: Server, load: ServedLoad, size: SizeSummary) -> dict[str, str]:
    return {
        "server": server.name,
        "arrivals/s": _arrivals(load),
        "documents": str(size.documents or "all sizes"),
        "answered": f"{size.answered} of {size.sent}",
        "p50 ms": _ms(size.p50_s),
        "p95 ms": _ms(size.p95_s),
        "p99 ms": _ms(size.p99_s),
    }


def _arrivals(load: ServedLoad) -> str:
    return "on each answer" if load.rate is None else f"{load.rate:.1f}"


def _ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{1000 * seconds:,.1f}"


def _finding(server: Server, p95_s: float | None) -> str:
    """Say how many requests a server can take."""
    if p95_s is None:
        last = server.loads[-1]
        p95 = _ms(last.summary.all_sizes.p95_s)
        if not p95:
            return f"{server.name}: no request was answered at {_arrivals(last)} a second."
        return f"{server.name}: {_arrivals(last)} requests a second with p95 of {p95} ms."
    if server.best_rate is None:
        lowest = min(load.rate for load in server.loads if load.rate is not None)
        return f"{server.name}: p95 is over {_ms(p95_s)} ms at {lowest:.1f} requests a second, too."
    return (
        f"{server.name}: {server.best_rate:.1f} requests a second with p95 under {_ms(p95_s)} ms."
    )
