"""`xopt serve`"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from xopt.cli import options
from xopt.cli.extras import needs_extra
from xopt.cli.logs import logged_as_json

if TYPE_CHECKING:
    from xopt.runtime.folder import ModelFolder

__all__ = ["serve"]


@click.command()
@options.model_folder
@click.option("--variant", help="A variant of DIR.  [default: the recommended one, else onnx-fp32]")
@click.option("--host", default="127.0.0.1", help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 for any free one.")
@click.option(
    "--api-key",
    envvar="XOPT_API_KEY",
    help="The key that clients send as `Authorization: Bearer KEY`. Other users of this machine "
    "see an option, so better set the variable XOPT_API_KEY, or give --api-key-file.  "
    "[default: no key is asked for]",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with a key a line. Any of them will do.",
)
@click.option(
    "--root-path",
    default="",
    help="A prefix of all paths, such as /rerankers, that a proxy leaves on.  [default: none]",
    show_default=False,
)
@click.option(
    "--deadline",
    "deadline_s",
    type=options.Number(0, 3600, min_open=True),
    default=60,
    help="Seconds that a request may take. Its header X-Request-Timeout may ask for less.",
)
@click.option(
    "--longest-wait",
    "longest_wait_s",
    type=options.Number(0, 3600, min_open=True),
    default=20,
    help="Refuse a request (429) if the work before it takes more seconds than this.",
)
@click.option(
    "--max-body-mib",
    type=options.AT_LEAST_1,
    default=64,
    help="The largest body to read, also when it is unpacked.",
)
@click.option(
    "--refuse-cut",
    is_flag=True,
    help="Answer 422 where a client sends `truncate: false` and a document is too long. "
    "Otherwise it is cut, and the reply says so.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="A site whose pages may ask from a browser, such as `https://example.com`, or `*` for "
    "all. Give it once a site.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How to log on standard error. In JSON there is a line for each request, too, which "
    "never has its texts.",
)
@click.option(
    "--otel",
    type=click.Choice(["numbers", "texts"]),
    help="Send a span of each request by OpenTelemetry to where the variables `OTEL_*` say: with "
    "its numbers alone, or with its texts, too. Needs the extra otel.  [default: send nothing]",
)
@options.threads
@options.trust
def serve(
    model: ModelFolder,
    variant: str | None,
    host: str,
    port: int,
    api_key: str | None,
    api_key_file: Path | None,
    max_body_mib: int,
    log_format: str,
    otel: Literal["numbers", "texts"] | None,
    threads: int | None,
    **others: Any,
) -> None:
    """Rerank over HTTP, for every client of a reranker.

    Answers Cohere, Jina, vLLM, infinity, TEI, llama.cpp, Voyage, Xinference, Weaviate and
    OpenVINO Model Server on one port, each in its own shape. /docs describes the requests,
    /ready and /metrics the server. SIGTERM ends it when all requests are answered.
    """
    with ExitStack() as around:
        if log_format == "json":
            around.enter_context(logged_as_json())
        with needs_extra("xopt serve", "serve"):
            from xopt.runtime.serve import Settings, app
            from xopt.runtime.serve.server import bound
            from xopt.runtime.serve.server import serve as run
        if otel:
            with needs_extra("xopt serve", "otel"):
                around.enter_context(_exported_spans())
        settings = Settings(
            api_keys=read_keys(api_key, api_key_file),
            most_bytes=max_body_mib << 20,
            log_requests=log_format == "json",
            spans=otel,
            **others,
        )
        place = around.enter_context(bound(host, port))
        code = run(app(model, variant, threads=threads, settings=settings), place)
    click.get_current_context().exit(code)


def _exported_spans() -> AbstractContextManager[None]:
    from xopt.runtime.serve.tracing import exported

    return exported()


def read_keys(api_key: str | None, api_key_file: Path | None) -> tuple[str, ...]:
    """Return the keys of an option and of a file, which may be empty."""
    from xopt.runtime.errors import BadInput

    keys = [api_key] if api_key else []
    if api_key_file is not None:
        try:
            lines = api_key_file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"--api-key-file {api_key_file}: cannot be read ({error})") from error
        if not lines:
            raise BadInput(f"--api-key-file {api_key_file}: is empty; write a key a line into it")
        keys += lines
    return tuple(keys)
