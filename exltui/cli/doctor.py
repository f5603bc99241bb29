"""``exltui doctor``: the findings of checks.py, as lines or as JSON. The exit status is 1 if something is wrong."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from exltui.cli.checks import Finding, examine
from exltui.cli.options import model_folders
from exltui.cli.output import ProgressLine, print_json
from exltui.errors import SettingsError
from exltui.settings import Settings
from exltui.text import one_line

SIGNS = {"ok": "ok", "slow": "hint", "wrong": "WRONG"}


def run(options: argparse.Namespace) -> int:
    """Look at everything; with --ops also print the op table."""
    try:
        folders = model_folders(options)
    except SettingsError:  # it is one of the findings
        folders = model_folders(options, Settings())
    findings = []
    line = ProgressLine()
    for finding in examine(folders, lambda done, total: line("building the kernels", done, total, "files")):
        line.end()
        findings.append(finding)
        if not options.json:
            _print(finding)
    rows = op_rows() if options.ops else []
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if options.json:
        report: dict[str, Any] = {"ok": not wrong, "findings": [asdict(finding) for finding in findings]}
        print_json({**report, "ops": rows} if options.ops else report)
    else:
        _print_ops(rows)
        hints = sum(finding.state == "slow" for finding in findings)
        if wrong or hints:
            print(f"\n{len(wrong)} wrong, {hints} could be better")
        else:
            print("\nall is well")
    return 1 if wrong else 0


def _print(finding: Finding) -> None:
    print(f"{SIGNS[finding.state]:<6} {finding.check:<13} {one_line(finding.found)}")
    if finding.fix:
        print(f"{'':<6} {'':<13} -> {finding.fix}")
    sys.stdout.flush()


def op_rows() -> list[dict[str, Any]]:
    """The op table: name, signature, tolerance, and the devices that have a kernel."""
    from exltui.engine.ops.table import OPS

    return [{"name": op.name, "signature": op.signature, "nmse": op.nmse, "kernels": sorted(op.impls)} for op in OPS.values()]


def _print_ops(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    print(f"\n{'operation':<16} {'kernels':<12} {'nmse':<8} signature")
    for row in rows:
        print(f"{row['name']:<16} {', '.join(row['kernels']) or 'reference':<12} {row['nmse']:<8.0e} {row['signature']}")
