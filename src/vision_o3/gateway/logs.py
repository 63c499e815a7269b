"""Logging: the gateway's JSON lines on standard output, a command's on its error.

Each line goes through ``Redaction`` when it is finished, the libraries' lines and what
threads die of included: no code that logs has to think of it.
"""

from __future__ import annotations

import logging
import logging.config
import sys
import threading
from collections.abc import Iterable
from typing import Any

import structlog

from vision_o3.gateway.redaction import Redaction, secrets_of
from vision_o3.settings import load_settings

_log = structlog.get_logger(__name__)


class Redacting:
    """The last processor: takes the rendered line, returns it without secrets."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._redact = Redaction(secrets)

    def __call__(self, _logger: object, _method: str, line: str) -> str:
        """Return the line as it may be written."""
        return self._redact(line)


def configure_logging(level: str, secrets: Iterable[str] = ()) -> None:
    """Write every log line of this process, ours and the libraries', as JSON.

    Tracebacks come without the values of local variables, which may be secrets. No line
    shows one of ``secrets``, nor what looks like a secret.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": shared,
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        structlog.processors.JSONRenderer(),
                        Redacting(secrets),
                    ],
                }
            },
            "handlers": {
                "stdout": {
                    "class": "logging.StreamHandler",
                    "stream": "ext://sys.stdout",
                    "formatter": "json",
                }
            },
            "root": {"handlers": ["stdout"], "level": level},
            "loggers": {
                # Their lines repeat ours, or speak of every piece of a form.
                "uvicorn.access": {"handlers": [], "propagate": False},
                "python_multipart": {"level": "ERROR"},
                "alembic": {"level": "WARNING"},
                # At DEBUG they show signatures and session tokens.
                "botocore": {"level": "INFO"},
                "urllib3": {"level": "INFO"},
            },
        }
    )


def log_uncaught() -> None:
    """Log what no code caught, in this process's threads too, as all else is logged."""

    def log_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_type is not SystemExit:
            _log.error("thread.failed", exc_info=arguments.exc_value)

    def log_unraisable(found: sys.UnraisableHookArgs) -> None:
        _log.error("exception.ignored", exc_info=found.exc_value)

    def log_exception(
        kind: type[BaseException], error: BaseException, _traceback: object
    ) -> None:
        if issubclass(kind, Exception):
            _log.critical("process.failed", exc_info=error)

    threading.excepthook = log_thread
    sys.unraisablehook = log_unraisable
    sys.excepthook = log_exception


class _Stderr(logging.Handler):
    """Writes to what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(f"{self.format(record)}\n")


def log_to_stderr() -> None:
    """Write log lines, from INFO up, to standard error: output is for the answer.

    Of libraries from WARNING up. No line shows a secret of the settings.

    Raises:
        ConfigurationError: The settings are not valid.
    """
    redacting = Redacting(secrets_of(load_settings()))
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    rendered: list[Any] = [structlog.processors.JSONRenderer(), redacting]
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    handler = _Stderr(logging.WARNING)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendered,
            ],
        )
    )
    root = logging.getLogger()
    for other in [each for each in root.handlers if isinstance(each, _Stderr)]:
        root.removeHandler(other)
    root.addHandler(handler)
