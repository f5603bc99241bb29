"""How many threads are worth having."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM = Path("/sys/devices/system/cpu")


def physical_cores(system: Path = SYSTEM) -> int:
    """Cores that this process may run on; threads that share a core count once. Where the system does not say, all processors count."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    try:
        return len({(system / f"cpu{index}" / "topology" / "thread_siblings_list").read_text() for index in allowed})
    except OSError:
        return len(allowed)
