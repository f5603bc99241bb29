"""When each model was used last: a small JSON file beside the models. One that cannot be read or written is done without."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from exltui import paths

MOST = 500  # models that are remembered


def last_uses(file: Path | None = None) -> dict[str, float]:
    """Seconds since 1970 by the model's directory."""
    try:
        values = json.loads((file or paths.usage_file()).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {str(path): float(when) for path, when in values.items() if isinstance(when, (int, float)) and not isinstance(when, bool)}


def note_use(directory: Path, when: float, file: Path | None = None) -> None:
    """The model in ``directory`` was loaded at ``when``."""
    file = file or paths.usage_file()
    uses = {**last_uses(file), str(directory): when}
    kept = dict(sorted(uses.items(), key=lambda item: -item[1])[:MOST])
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        new.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        new.replace(file)
