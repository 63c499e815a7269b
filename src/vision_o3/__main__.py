"""The program ``vision-o3``: the device's commands and the gateway's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vision_o3.gateway.arguments import add_commands
from vision_o3.sdk import cli

if TYPE_CHECKING:
    from typing import Optional, Sequence


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command; return its exit code."""
    parser, subparsers = cli.build_parser()
    add_commands(subparsers)
    return cli.run(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
