"""`xopt report`"""

from __future__ import annotations

from pathlib import Path

import click

from xopt.cli.output import Output, json_option

__all__ = ["report"]


@click.command()
@click.argument("results", metavar="RESULTS.json...", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o",
    "--out",
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="The page: .html, self-contained, or .md, for a pull request.",
)
@click.option(
    "--baseline",
    metavar="OLD.json",
    help="An earlier result: what has changed, and what is within the noise.",
)
@json_option
def report(results: tuple[str, ...], out: str, baseline: str | None, json_file: str | None) -> None:
    """Write results as a page that people can look at.

    RESULTS.json is what `xopt optimize`, `bench` or `validate` wrote with --json; several make
    one page.
    """
    from xopt.optimize.report.page import compare, read_results, render
    from xopt.runtime.errors import BadInput
    from xopt.runtime.files import write_text

    output, page = Output(json_file), Path(out)
    if page.suffix not in {".html", ".md"}:
        raise BadInput(f"{out}: unknown kind {page.suffix!r}; give a .html or a .md file")
    found = read_results([Path(file) for file in results])
    before = read_results([Path(baseline)]) if baseline else None
    write_text(page, render(found, before, markdown=page.suffix == ".md"))
    output.json({"report": page, "changes": compare(before, found) if before else []})
    output.line(f"{page}: written")
