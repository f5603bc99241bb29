"""One message in full: when it was written, with what, and what that took."""

from __future__ import annotations

from datetime import datetime

from textual.content import Content

from exltui.app import figures
from exltui.app.fields import BY_NAME, COMMON, changed
from exltui.app.screens.sheet import heading, row
from exltui.chat.tree import Conversation, Message
from exltui.protocol import Sampling, Stats
from exltui.text import visible

WIDTH = 16  # cells of the names


def details(message: Message, conversation: Conversation) -> Content:
    """A page about ``message``; what is not known of it is left out."""
    versions = conversation.siblings(message.id)
    at = datetime.fromtimestamp(message.created).strftime("%Y-%m-%d %H:%M:%S")
    lines = [
        _row("role", message.role),
        _row("written", at),
        *_told("model", message.model),
        *_told("version", f"{versions.index(message) + 1} of {len(versions)}" if len(versions) > 1 else ""),
        *_told("state", "" if message.state == "done" else f"{message.state} {message.note}".strip()),
        *_told("goes to the model", "always" if message.pinned else "never" if message.dropped else ""),
    ]
    if message.role == "assistant":
        lines += [Content(""), heading("Asked with"), *_asked(message, conversation)]
        lines += [Content(""), heading("Took"), *_took(message.stats)] if message.stats is not None else []
    return Content("\n").join(lines)


def _asked(message: Message, conversation: Conversation) -> list[Content]:
    sampling = message.sampling
    names = [*COMMON, *sorted(changed(sampling, Sampling()) - set(COMMON))] if sampling is not None else []
    own = "" if "system none" in message.asked else conversation.system
    return [
        *_told("as", message.asked),
        *[_row(BY_NAME[name].label, BY_NAME[name].text(getattr(sampling, name))) for name in names],
        _row("LoRA adapters", message.adapters or "none"),
        _row("system prompt", visible(message.system or own) or "none"),
    ]


def _took(stats: Stats) -> list[Content]:
    seconds = stats.decode_seconds
    rate = stats.new_tokens / seconds if seconds > 0 and stats.new_tokens > 1 else None
    drafts = stats.accepted_drafts + stats.rejected_drafts
    return [
        _row("prompt", f"{figures.count(stats.prompt_tokens)} tokens, {figures.count(stats.cached_tokens)} of them cached"),
        _row("reply", f"{figures.count(stats.new_tokens)} tokens in {figures.duration(seconds)}, {figures.rate(rate)} a second"),
        *_told("drafts", f"{figures.count(stats.accepted_drafts)} of {figures.count(drafts)} foreseen" if drafts else ""),
        _row("ended by", stats.stop_reason.replace("_", " ")),
        _row("seed", str(stats.seed)),
    ]


def _told(name: str, text: str) -> list[Content]:
    return [_row(name, text)] if text else []


def _row(name: str, text: str) -> Content:
    return row(name, text, WIDTH)
