"""The command line: one parser, and a thin function for each command. Exit status: 0 done, 1 failed, 2 usage, 130 stopped with Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from exltui import paths
from exltui.cli.options import AppOptions as AppOptions
from exltui.cli.parser import build_parser
from exltui.errors import Cancelled, ExltuiError

STOPPED = 130  # what shells say of a program that Ctrl-C ended
NOBODY_READS = 141  # and of one whose reader went away


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Errors become one sentence on standard error, with a hint on the next line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows a question mark
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, Cancelled):
        print("exltui: stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return NOBODY_READS
    except ExltuiError as error:
        print(f"exltui: {error}", file=sys.stderr)
        if error.hint:
            print(f"        {error.hint}", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001  a defect: the user gets a sentence, the log gets the rest
        print(f"exltui: this should not have happened: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"        {_keep(traceback.format_exc())}", file=sys.stderr)
        return 1


def _keep(trace: str) -> str:
    """Append a traceback to the log -> a sentence on where it is."""
    with contextlib.suppress(OSError):
        paths.log_file().parent.mkdir(parents=True, exist_ok=True)
        with paths.log_file().open("a", encoding="utf-8") as log:
            log.write(trace)
        return f"the details are in {paths.log_file()}; please report them"
    return trace
