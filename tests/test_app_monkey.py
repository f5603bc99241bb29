"""Random keys, pastes and sizes: nothing may raise, and what was sent stays. ``python tests/monkey.py`` does it with 20,000 keys."""

from __future__ import annotations

import pytest
from monkey import play


@pytest.mark.parametrize("seed", [7, 11])
async def test_random_keys_pastes_and_sizes_raise_nothing_and_lose_nothing(seed):
    monkey = await play(400, seed)
    assert monkey.pressed >= 400
    assert monkey.sent
