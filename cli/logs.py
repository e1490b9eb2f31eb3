"""The log as JSON, for programs that collect it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from xopt.cli.errors import OptionFormatter
from xopt.runtime.errors import BadInput

__all__ = ["JsonFormatter", "logged_as_json"]


class JsonFormatter(OptionFormatter):
    """Formats a record as a JSON object on one line; its `fields` are keys of the object."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": self.with_options(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


@contextmanager
def logged_as_json() -> Iterator[None]:
    """Log in JSON, also what libraries and Python warn of, and an error that ends the command."""
    logger = logging.getLogger("xopt")
    handler = logging.StreamHandler(sys.stderr)
    formatter = logger.handlers[0].formatter
    assert isinstance(formatter, OptionFormatter)
    handler.setFormatter(JsonFormatter(formatter.commands))
    logger.handlers = [handler]
    root = logging.getLogger()
    before = root.handlers
    root.handlers = [handler]
    logging.captureWarnings(True)
    try:
        yield
    except BadInput as error:
        logger.error(" ".join(str(error).split()))
        raise SystemExit(2) from error
    finally:
        logging.captureWarnings(False)
        root.handlers = before
