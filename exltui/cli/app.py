"""``exltui`` without a command: the full-screen app."""

from __future__ import annotations

import argparse
import sys

from exltui.cli.options import app_options


def run(options: argparse.Namespace) -> int:
    """Open the app; without a terminal say so and return 2."""
    if not options.linear and not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # Textual draws on the last
        print("exltui: the app needs a terminal; exltui --linear and exltui generate work without one (exltui --help)", file=sys.stderr)
        return 2
    from exltui import app

    return app.run(app_options(options))
