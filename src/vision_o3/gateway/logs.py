"""Logging: the gateway's JSON lines on standard output, a command's on its error."""

from __future__ import annotations

import logging
import logging.config
import sys
from typing import Any

import structlog


def configure_logging(level: str) -> None:
    """Write every log line of this process, ours and the libraries', as JSON.

    Tracebacks come without the values of local variables, which may be secrets.
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


def log_to_stderr() -> None:
    """Write log lines, from INFO up, to standard error: output is for the answer."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
