"""`xopt serve`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xopt.cli import options

if TYPE_CHECKING:
    from xopt.runtime.errors import BadInput
    from xopt.runtime.folder import ModelFolder

__all__ = ["lacks_extra", "serve"]


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
    type=options.Number(0, 3600, min_open=True),
    default=60,
    help="Seconds that a request may take. Its header X-Request-Timeout may ask for less.",
)
@click.option(
    "--longest-wait",
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
@options.threads
@options.trust
def serve(
    model: ModelFolder,
    variant: str | None,
    host: str,
    port: int,
    api_key: str | None,
    api_key_file: Path | None,
    root_path: str,
    deadline: float,
    longest_wait: float,
    max_body_mib: int,
    refuse_cut: bool,
    threads: int | None,
) -> None:
    """Rerank over HTTP, for every client of a reranker.

    Answers Cohere, Jina, vLLM, infinity, TEI, llama.cpp, Voyage, Xinference, Weaviate and
    OpenVINO Model Server on one port, each in its own shape. /docs describes the requests,
    /ready and /metrics the server. SIGTERM ends it when all requests are answered.
    """
    try:
        from xopt.runtime.serve import Settings, app
        from xopt.runtime.serve.server import bound
        from xopt.runtime.serve.server import serve as run
    except ModuleNotFoundError as error:
        raise lacks_extra("xopt serve", error) from error
    settings = Settings(
        api_keys=read_keys(api_key, api_key_file),
        root_path=root_path,
        deadline_s=deadline,
        longest_wait_s=longest_wait,
        most_bytes=max_body_mib << 20,
        refuse_cut=refuse_cut,
    )
    with bound(host, port) as place:
        application = app(model, variant, threads=threads, settings=settings)
        code = run(application, place)
    click.get_current_context().exit(code)


def lacks_extra(command: str, error: ModuleNotFoundError) -> BadInput:
    """Return what to raise where the extra `serve` is not installed."""
    from xopt.runtime.errors import BadInput

    return BadInput(
        f"{command}: lacks {str(error.name).partition('.')[0]}; it needs the extra serve "
        "(pip install 'xopt-rerank[serve]')"
    )


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
