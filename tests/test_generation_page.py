"""Every example of docs/generation.md runs, in the order of the page, with the real starter model."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "generation.md"


def test_the_examples_run(starter_model: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 9
    names: dict = {}
    for block in blocks:
        exec(block.replace("models/smollm2-135m", str(starter_model)), names)
    assert names["done"].stats.accepted_drafts > 0
    assert "blue" not in names["done"].text
