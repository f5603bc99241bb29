"""A chat as Markdown or as a page of HTML, to read and to share, and as JSON, whole and readable by ``from_json`` again."""

from __future__ import annotations

import dataclasses
import html
import json
from typing import Any, TypeVar

from exltui.chat import thinking
from exltui.chat.tree import ROLES, STATES, Conversation, Header, Message, new_id
from exltui.errors import ExltuiError
from exltui.protocol import Sampling, Stats

FORMAT = "exltui-chat"
VERSION = 1
_T = TypeVar("_T", Stats, Sampling)


def to_markdown(conversation: Conversation) -> str:
    """The branch that is read, as Markdown: a heading, the system prompt as a quotation, and every message below the name of its role.

    Texts stand as they are: a model's Markdown stays Markdown. An open code fence is closed, so that the next message is not code.
    """
    parts = [f"# {conversation.title or 'Chat'}"]
    if conversation.system.strip():
        parts.append("\n".join(f"> {line}".rstrip() for line in conversation.system.strip().splitlines()))
    for message in conversation.path():
        name = message.model or message.role if message.role == "assistant" else message.role
        text = _without_marks(message)
        if fence := _open_fence(text):
            text += f"\n{fence}"
        parts.append(f"## {name}")
        parts.extend([text] if text else [])
        parts.extend([f"*{message.note}*"] if message.note else [])
    return "\n\n".join(parts) + "\n"


def _without_marks(message: Message) -> str:
    """A message's text, with its thoughts as a quotation."""
    parts = thinking.split(message.text)
    if parts.thought is None:
        return message.text.strip()
    quoted = "\n".join(f"> {line}".rstrip() for line in parts.thought.splitlines())
    return f"{quoted}\n\n{parts.answer.strip()}".strip()


_STYLE = """body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 system-ui, sans-serif; color: #1c2430; }
section { border-left: 3px solid #c8d2e0; padding: .1rem 1rem; margin: 1.2rem 0; } section.user { border-color: #4a7fd0; }
h2 { font-size: .85rem; color: #5a6678; margin: .4rem 0; } pre { background: #f1f4f8; padding: .7rem; overflow-x: auto; }
code { font-family: ui-monospace, monospace; font-size: .92em; } details { color: #5a6678; } .note { font-style: italic; color: #5a6678; }
table { border-collapse: collapse; } td, th { border: 1px solid #c8d2e0; padding: .2rem .6rem; }
@media (prefers-color-scheme: dark) { body { background: #11151b; color: #d5dbe5; } pre { background: #1b222c; } }"""


def to_html(conversation: Conversation) -> str:
    """The branch that is read, as one page that loads nothing. HTML in the texts is shown, not used."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    title = html.escape(conversation.title or "Chat")
    parts = [f"<h1>{title}</h1>"]
    if conversation.system.strip():
        parts.append(f'<section class="system"><h2>system</h2>{parser.render(conversation.system)}</section>')
    for message in conversation.path():
        name = html.escape(message.model or message.role if message.role == "assistant" else message.role)
        split = thinking.split(message.text)
        thought = f"<details><summary>thoughts</summary>{parser.render(split.thought)}</details>" if split.thought else ""
        note = f'<p class="note">{html.escape(message.note)}</p>' if message.note else ""
        parts.append(f'<section class="{message.role}"><h2>{name}</h2>{thought}{parser.render(split.answer)}{note}</section>')
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def to_json(conversation: Conversation) -> str:
    """All branches with everything that is known about them."""
    header = {**dataclasses.asdict(conversation.header), "choices": dict(conversation.choices), "options": dict(conversation.options)}
    messages = [dataclasses.asdict(message) for message in conversation]
    return json.dumps({"format": FORMAT, "version": VERSION, **header, "messages": messages}, ensure_ascii=False, indent=2) + "\n"


def from_json(text: str) -> Conversation:
    """The chat that ``to_json`` wrote, under new ids: it may stand beside the one that it was made from.

    Raises ExltuiError with one sentence if the text is not an exported chat.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise _refusal(f"it is not JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise _refusal(f'"format" is not "{FORMAT}"')
    if values.get("version") != VERSION:
        raise _refusal(f"its version is {values.get('version')!r}; this exltui reads {VERSION}")
    listed = values.get("messages")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise _refusal('"messages" is not a list of objects')
    ids: dict[str, str] = {}
    messages = [_message(entry, number, ids) for number, entry in enumerate(listed)]
    choices = values.get("choices") or {}
    if not isinstance(choices, dict):
        raise _refusal('"choices" is not an object')
    options = values.get("options") or {}
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise _refusal('"options" is not an object of texts')
    header = Header(
        new_id(),
        _text(values, "title", "the chat"),
        _text(values, "system", "the chat"),
        _text(values, "model", "the chat"),
        _number(values, "created", "the chat"),
        ids.get(str(values.get("head"))),
        # "" stands for the place of the first messages
        tuple((ids.get(k, ""), ids[v]) for k, v in choices.items() if (not k or k in ids) and isinstance(v, str) and v in ids),
        tuple((str(key), _text(options, key, "the chat's options")) for key in options),
    )
    return Conversation.of(header, messages)


def _message(entry: dict[str, Any], number: int, ids: dict[str, str]) -> Message:
    """One message under a new id, which goes into ``ids``. Its parent must have come before it."""
    where = f"message {number + 1}"
    old, parent, role, state = (entry.get(key) for key in ("id", "parent", "role", "state"))
    if not isinstance(old, str) or old in ids:
        raise _refusal(f'{where}: "id" is missing or used twice')
    if parent is not None and parent not in ids:
        raise _refusal(f'{where}: "parent" is no message before it')
    if role not in ROLES or state not in STATES:
        raise _refusal(f'{where}: "role" is none of {", ".join(ROLES)}, or "state" none of {", ".join(STATES)}')
    ids[old] = new_id()
    return Message(
        ids[old],
        None if parent is None else ids[parent],
        role,
        _text(entry, "text", where),
        _number(entry, "created", where),
        number,
        "stopped" if state == "streaming" else state,
        _text(entry, "model", where),
        _text(entry, "note", where),
        _figures(Stats, entry.get("stats"), where),
        _figures(Sampling, entry.get("sampling"), where),
        int(_number(entry, "thought_tokens", where)),
        _number(entry, "thought_seconds", where),
        entry.get("pinned") is True,
        entry.get("dropped") is True,
        _text(entry, "asked", where),
        _text(entry, "adapters", where),
        _text(entry, "system", where),
    )


def _text(values: dict[str, Any], key: str, where: str) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise _refusal(f'{where}: "{key}" is not a text')
    return value.encode("utf-8", "replace").decode("utf-8")


def _number(values: dict[str, Any], key: str, where: str) -> float:
    value = values.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refusal(f'{where}: "{key}" is not a number')
    return float(value)


def _figures(cls: type[_T], values: object, where: str) -> _T | None:
    """The dataclass with the fields in ``values``; those that it does not have are left out."""
    if values is None:
        return None
    names = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(values, dict):
        raise _refusal(f"{where}: its {cls.__name__.lower()} are not an object")
    try:
        return cls(**{key: value for key, value in values.items() if key in names})
    except TypeError as error:
        raise _refusal(f"{where}: its {cls.__name__.lower()} are incomplete") from error


def _open_fence(text: str) -> str:
    """The marks that would close the fenced block of code within which ``text`` ends, or ``""``."""
    fence = ""
    for line in text.splitlines():
        start = line.strip()
        if fence:
            if start.startswith(fence) and not start.strip(fence[0]):
                fence = ""
        elif start.startswith(("```", "~~~")):
            fence = start[: len(start) - len(start.lstrip(start[0]))]
    return fence


WRITERS = {"md": to_markdown, "html": to_html, "json": to_json}  # by the ending of the file's name


def _refusal(reason: str) -> ExltuiError:
    return ExltuiError(f"this is no exported chat: {reason}", "choose a .json file that exltui has exported")
