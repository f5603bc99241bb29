"""The tree of a chat as rows: a branch is indented only where there are several."""

from __future__ import annotations

from exltui.app import figures
from exltui.app.screens.pick import Choice
from exltui.chat import thinking
from exltui.chat.tree import Conversation, Message
from exltui.text import one_line


def branch_choices(conversation: Conversation, cached: dict[str, tuple[int, int]]) -> list[Choice]:
    """Every message once, each below the one that it answers; a dot marks the branch that is read.

    ``cached``: by the last message of a branch, how many of its tokens the engine has still in its cache, and of how many.
    """
    read = {message.id for message in conversation.path()}
    rows: list[Choice] = []
    waiting: list[tuple[Message, str, str]] = _level(conversation, None, "")
    while waiting:
        message, lead, below = waiting.pop()
        text = one_line(thinking.answer(message.text) or message.note or "…", 200)
        who = "you" if message.role == "user" else message.model or message.role
        tokens = f"{figures.count(message.stats.new_tokens)} tok" if message.stats else ""
        here = f"cached {cached[message.id][0]:,} of {cached[message.id][1]:,}" if message.id in cached else ""
        right = " · ".join(part for part in (here, tokens, "not sent" if message.dropped else "", who) if part)
        rows.append(Choice(message.id, f"{lead}{text}", right, "●" if message.id in read else ""))
        waiting.extend(_level(conversation, message.id, below))
    return rows


def _level(conversation: Conversation, parent: str | None, below: str) -> list[tuple[Message, str, str]]:
    """The children of a message, the last one first, each with what stands before it and before those below it."""
    children = conversation.children(parent)
    if len(children) < 2:
        return [(child, below, below) for child in children]
    last = children[-1]
    return [(child, below + ("└ " if child is last else "├ "), below + ("  " if child is last else "│ ")) for child in reversed(children)]
