"""`xopt report`"""

from __future__ import annotations

from pathlib import Path

import click

from xopt.cli.output import Output, json_option

__all__ = ["report"]

EXAMPLES = """\b
Examples:
  xopt report bench.json -o report.html
  xopt report bench.json --baseline old.json -o report.md
"""


@click.command(epilog=EXAMPLES)
@click.argument("results", metavar="RESULTS.json...", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o",
    "--out",
    default="report.html",
    metavar="FILE",
    help="The page to write: self-contained .html, or .md for a pull request.",
)
@click.option(
    "--baseline",
    metavar="OLD.json",
    help="An earlier result. The page shows what has changed, and what is within the noise.",
)
@json_option
def report(results: tuple[str, ...], out: str, baseline: str | None, output: Output) -> None:
    """Write results as a page for people to read.

    RESULTS.json is what `xopt optimize`, `bench` or `validate` wrote with --json. Several results
    make one page.
    """
    from xopt.optimize.report.page import compare, read_results, render
    from xopt.runtime.errors import BadInput
    from xopt.runtime.files import write_text

    page = Path(out)
    if page.suffix not in {".html", ".md"}:
        raise BadInput(f"{out}: unknown kind {page.suffix!r}; give a .html or a .md file")
    after = read_results([Path(file) for file in results])
    before = read_results([Path(baseline)]) if baseline else None
    write_text(page, render(after, before, markdown=page.suffix == ".md"))
    changes = compare(before, after) if before else []
    output.json({"report": page, "changes": changes})
    output.line(f"{page}: written")
