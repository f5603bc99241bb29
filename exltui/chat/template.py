"""From a conversation to the text that a model was trained to continue: its own chat template, or a format by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from exltui.chat.formats import FORMATS, guess
from exltui.chat.sandbox import ERRORS, RefusedError, compile_template, variables_of
from exltui.errors import TemplateError
from exltui.text import one_line
from exltui.tokenizer import Tokenizer

Turns = Sequence[dict[str, str]]
GIVEN = {"messages", "add_generation_prompt"}  # what every template gets
OPENING = "Begin."  # the person's first words where a template wants some and the chat begins with a reply
_PROBE = "exltui looks for this sentence."


class Template(Protocol):
    """What makes a prompt of a conversation.

    ``note`` says in a sentence what the user should know about it, or is empty. Without ``takes_system`` a system prompt goes to the
    front of the first message; without ``takes_opening`` a first message of the model stands behind ``OPENING``. ``variables`` are the
    names that it reads besides the messages.
    """

    @property
    def name(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def stop_strings(self) -> tuple[str, ...]: ...
    @property
    def takes_system(self) -> bool: ...
    @property
    def takes_opening(self) -> bool: ...
    @property
    def variables(self) -> frozenset[str]: ...
    def prompt(self, messages: Turns, **variables: Any) -> str: ...


class ChatTemplate:
    """A model's own template. ``special_tokens`` are its variables ``bos_token`` and so on."""

    name = "the model's own"
    note = ""
    stop_strings: tuple[str, ...] = ()  # the model's own end tokens do it

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None) -> None:
        self.source = source
        self._special = special_tokens or {}
        self._compiled: Callable[[dict[str, Any]], str] = compile_template(source)
        self._takes: dict[str, bool] = {}
        self.variables = variables_of(source) - GIVEN - set(self._special)
        if "strftime_now" in source:
            self.variables |= {"date_string"}

    def render(self, messages: Turns, *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The template's text for exactly these messages. Raises TemplateError if it refuses them or fails."""
        values = {"tools": None, "documents": None, **self._special, **variables}
        copies = [dict(message) for message in messages]
        try:
            return self._compiled({**values, "messages": copies, "add_generation_prompt": add_generation_prompt})
        except RefusedError as error:
            hint = "choose another prompt format by name, or start a new chat"
            raise TemplateError(f"the model's chat template refuses this conversation: {one_line(str(error), 200)}", hint) from error
        except ERRORS as error:
            reason = one_line(str(error), 200) or type(error).__name__
            hint = f"choose a prompt format by name: {', '.join(FORMATS)}"
            raise TemplateError(f"the model's chat template fails: {reason}", hint) from error

    @property
    def takes_system(self) -> bool:
        """Whether a system prompt comes out of the template. Some refuse it, some leave it out without a word."""
        return self._survives("system")

    @property
    def takes_opening(self) -> bool:
        """Whether a reply as the first message comes out of the template. Many insist that the person begins."""
        return self._survives("assistant")

    def _survives(self, role: str) -> bool:
        """Whether the words of a first message of this role come out, with one of the person behind it."""
        if role not in self._takes:
            try:
                self._takes[role] = _PROBE in self.render([{"role": role, "content": _PROBE}, {"role": "user", "content": "x"}])
            except TemplateError:
                self._takes[role] = False
        return self._takes[role]

    def prompt(self, messages: Turns, **variables: Any) -> str:
        """The prompt for ``messages``, open for the reply. ``variables``: what the template may ask for by name.

        A system prompt that the template does not take begins the first message; before a first reply that it does not take stands
        ``OPENING``.
        """
        first = 1 if messages and messages[0]["role"] == "system" else 0
        if len(messages) > first and messages[first]["role"] == "assistant" and not self.takes_opening:
            messages = [*messages[:first], {"role": "user", "content": OPENING}, *messages[first:]]
        if messages and messages[0]["role"] == "system" and not self.takes_system:
            system, *rest = messages
            if rest and rest[0]["role"] == "user":
                rest[0] = {"role": "user", "content": f"{system['content']}\n\n{rest[0]['content']}"}
            messages = rest or [{"role": "user", "content": system["content"]}]
        return self.render(messages, **variables)


class NamedTemplate:
    """One of ``FORMATS``. ``begin`` stands at the front in the place of the format's own beginning."""

    def __init__(self, name: str, note: str = "", begin: str = "") -> None:
        if name not in FORMATS:
            raise TemplateError(f"there is no prompt format {name}", f"choose one of: {', '.join(FORMATS)}")
        self._format = replace(FORMATS[name], begin=begin) if begin else FORMATS[name]
        self.name = name
        self.note = note
        self.stop_strings = self._format.stops
        self.takes_system = bool(self._format.system)
        self.takes_opening = True
        self.variables: frozenset[str] = frozenset()

    def prompt(self, messages: Turns, **_: Any) -> str:
        return self._format.prompt(list(messages))


def load_template(tokenizer: Tokenizer, name: str = "") -> Template:
    """The template for a model: the format ``name`` if one is given, else the model's own, else the one that its vocabulary suggests.

    Raises TemplateError if there is no format of that name or the model's own template does not compile.
    """
    if name == "text":  # every model's text begins as that model's does
        return NamedTemplate(name, begin=tokenizer.piece(tokenizer.bos_id) if tokenizer.adds_bos and tokenizer.bos_id is not None else "")
    if name:
        return NamedTemplate(name)
    source = tokenizer.template_source
    if source.strip():
        return ChatTemplate(source, special_tokens(tokenizer.directory))
    form = guess(lambda token: tokenizer.id(token) is not None)
    reason = f"its vocabulary has {form.mark}" if form.mark else "it may not be made for conversation"
    return NamedTemplate(form.name, f"This model has no chat template; the format {form.name} is used ({reason}).")


def special_tokens(directory: Path) -> dict[str, str]:
    """The texts of ``bos_token``, ``eos_token`` and the like, which templates write by name."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):  # the second, newer one wins
        try:
            values = json.loads((directory / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for key, value in values.items() if isinstance(values, dict) else ():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found
