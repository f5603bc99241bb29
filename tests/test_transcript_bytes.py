"""The bytes that a streamed reply sends to a real (pseudo-)terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_bytes_per_token_in_a_pseudo_terminal() -> None:
    """At 300 tokens a second, 15 frames a second: 56 bytes a token when this was written, keys typed meanwhile included.

    The bound does not depend on the machine's speed: a slower one draws fewer frames and sends fewer bytes.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / "transcript.py"), "--size", "80x24", "--rate", "300", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["tokens"] > 1300
    assert 10 < report["bytes_per_token"] < 90
