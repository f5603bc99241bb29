"""The variables of a chat's template, on a form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from textual.content import Content

from exltui.app.screens.form import FormScreen, Row
from exltui.app.textfile import read_text
from exltui.chat.template import Template
from exltui.chat.variables import DATE, OWN, THINKING, TOOLS, others, parse_date, parse_tools, parse_value, set_other, tool_names

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

LARGEST = 1_000_000  # bytes of a file with tools


class VariableDesk:
    """Shows which variables the template reads, and keeps their values with the chat."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app

    def open(self) -> None:
        """The form."""
        order = self._app.context.order()
        if order is None:
            self._app.tell("No model is loaded.", "Its template says which variables there are.")
            return
        self._app.work_aside(lambda: self._app.preparer.template(order), self._show, self._app.fail)

    def _show(self, template: Template) -> None:
        options = self._app.dialogue.conversation.options
        rows = variable_rows(template.variables)
        if not rows:
            self._app.tell(f"The template ({template.name}) reads nothing but the messages.", "/format chooses another one.")
            return
        values: dict[str, Any] = {key: options.get(key, "") for key in ("date", "tools")}
        values |= {"thinking": options.get("thinking", "auto")} | {f"var.{name}": value for name, value in others(options).items()}
        about = [Content.styled(f"template: {template.name} · kept with this chat", "$text-disabled")]
        defaults = {"thinking": "auto", "date": "", "tools": ""}
        self._app.push_screen(FormScreen("Template variables", rows, values, defaults, changed=self._changed, about=lambda _: about))

    def _changed(self, key: str, value: Any) -> None:
        revision, options = self._app.dialogue.revision, self._app.dialogue.conversation.options
        if key.startswith("var."):
            revision.set_option("variables", set_other(options, key.removeprefix("var."), value))
        else:
            revision.set_option(key, "" if value == "auto" else value)
        self._app.context.changed()


def variable_rows(names: frozenset[str]) -> list[Row]:
    """One row for each thing that a template with these variables can be told."""
    rows: list[Row] = []
    if names & THINKING:
        rows.append(
            Row("thinking", "thinking", "Whether the model is to think; auto: as the template likes.", choices=("auto", "on", "off"))
        )
    if DATE in names:
        rows.append(
            Row("date", "date", "The day that the model is told, as 2026-11-25; empty: what the template says itself.", parse=_date)
        )
    if names & TOOLS:
        rows.append(Row("tools", "tools", TOOLS_HELP, parse=read_tools, show=tool_names, typed=str))
    for name in sorted(names - OWN):
        rows.append(Row(f"var.{name}", name, VALUE_HELP, "Others that this template reads", parse=parse_value, show=_json))
    return rows


TOOLS_HELP = "Tools that the model may call: the path of a JSON file, or the JSON itself."
VALUE_HELP = "JSON (true, 3, a list) or plain text; empty: the template's own default."


def read_tools(text: str) -> str:
    """Tools as JSON, from JSON or from the file that has them. Raises SettingsError."""
    if not text.lstrip().startswith(("[", "{")):
        _, text = read_text(text, LARGEST, "Name a JSON file, or write the JSON itself.")
    return json.dumps(parse_tools(text), ensure_ascii=False)


def _date(text: str) -> str:
    return parse_date(text).isoformat()


def _json(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
