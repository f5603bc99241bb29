"""The conversation as one scrolling widget that draws lines: streaming Markdown at a small, measured cost."""

from exltui.app.transcript.entry import Entry
from exltui.app.transcript.view import Transcript

__all__ = ["Entry", "Transcript"]
