"""The full-screen app. ``run`` opens it; nothing here imports Textual before that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exltui.cli.options import AppOptions


def run(options: AppOptions) -> int:
    """Open the app and stay until it is left. The exit status."""
    from exltui.app.start import start_app

    return start_app(options)
