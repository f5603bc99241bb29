"""What a chat tells its template besides the messages: the switch for thinking, a date, tools, and whatever else the template reads.

In the chat's options all of it is text: ``thinking`` ("on", "off"), ``date`` (2026-11-25), ``tools`` (a JSON list), and ``variables``, a
JSON object with the others.
"""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from exltui.errors import SettingsError

THINKING = {"enable_thinking", "thinking"}  # what templates call the switch
TOOLS = {"tools", "custom_tools"}
DATE = "date_string"
OWN = THINKING | TOOLS | {DATE}  # what has an option of its own


def template_values(options: dict[str, str]) -> dict[str, Any]:
    """The variables of the template, from a chat's options. Templates that know a name use it, others do not notice."""
    values: dict[str, Any] = dict(others(options))
    if options.get("thinking") in ("on", "off"):
        values["enable_thinking"] = values["thinking"] = options["thinking"] == "on"
    if options.get("date"):
        day = parse_date(options["date"])
        values[DATE] = day.strftime("%d %b %Y")  # as Llama's template writes its own
        values["strftime_now"] = day.strftime
    if options.get("tools"):
        values["tools"] = parse_tools(options["tools"])
    return values


def others(options: dict[str, str]) -> dict[str, Any]:
    """The variables that have no option of their own, by name."""
    try:
        found = json.loads(options.get("variables") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def set_other(options: dict[str, str], name: str, value: Any) -> str:
    """The option ``variables`` with one of them changed; None takes it out."""
    found = {**others(options), name: value}
    kept = {key: value for key, value in found.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False) if kept else ""


def parse_date(text: str) -> date:
    """A day. Raises SettingsError."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"date: {text!r} is no day", "write it as 2026-11-25") from None


def parse_tools(text: str) -> list[Any]:
    """The tools in a JSON text: a list of objects, or one object. Raises SettingsError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"tools: no JSON: {error}", "give a list of tools, as the model's maker describes them") from error
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise SettingsError("tools: not a list of objects", "give a list of tools, as the model's maker describes them")
    return found


def tool_names(text: str) -> str:
    """The tools in a few words."""
    tools = parse_tools(text) if text else []
    inner = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]
    return ", ".join(str(tool.get("name", "…")) for tool in inner)


def parse_value(text: str) -> Any:
    """What somebody typed for a variable: JSON where it is some (true, 3, "text", a list), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def from_table(values: dict[str, Any]) -> dict[str, str]:
    """A chat's options from a character's variables. Raises SettingsError."""
    options: dict[str, str] = {}
    rest = dict(values)
    for name in sorted(THINKING & set(rest)):
        switch = rest.pop(name)
        options["thinking"] = switch if switch in ("on", "off") else "on" if switch else "off"
    for name in ("date", DATE):
        if name in rest:
            options["date"] = parse_date(str(rest.pop(name))).isoformat()
    for name in sorted(TOOLS & set(rest)):
        options["tools"] = json.dumps(parse_tools(json.dumps(rest.pop(name))), ensure_ascii=False)
    if rest:
        options["variables"] = json.dumps(rest, ensure_ascii=False, default=str)
    return options


def to_table(options: dict[str, str]) -> dict[str, Any]:
    """A character's variables from a chat's options."""
    own: dict[str, Any] = {name: options[name] for name in ("thinking", "date") if options.get(name)}
    tools = {"tools": parse_tools(options["tools"])} if options.get("tools") else {}
    return {**own, **tools, **others(options)}
