"""The settings file as a form: every setting that it can hold, used at once where that can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual.content import Content

from exltui import paths
from exltui.app.actions import BY_ID
from exltui.app.fields import FIELDS, Field, replaced
from exltui.app.forms import as_values, load_rows, parser, shown, typed_row
from exltui.app.keymap import places
from exltui.app.keys import check_keymap, keys_name
from exltui.app.screens.form import FormScreen, Row
from exltui.protocol import LoadOptions
from exltui.settings import Settings

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

SAMPLING, KEYS = "sampling.", "keys."  # what the names of such rows begin with


def settings_form(app: ExltuiApp) -> FormScreen:
    """The form. What is changed is used at once where that can be, and is in the file."""
    return SettingsForm(app).screen()


class SettingsForm:
    """Makes the rows and takes what is changed in them."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self._keys = {id: keys for _, id, keys in places()}

    def screen(self) -> FormScreen:
        app, parts = self._app, self._app.parts
        rows = [
            *self._app_rows(),
            *load_rows(app.observed.host.devices if app.observed.host else (), app.desk.drafts(None)),
            *(_sampler_row(field) for field in FIELDS),
            *(_key_row(id, keys) for id, keys in self._keys.items()),
        ]
        defaults = {**as_values(Settings()), **as_values(LoadOptions())}
        defaults |= {SAMPLING + field.name: getattr(app.main.sampler.defaults, field.name) for field in FIELDS}
        defaults |= {KEYS + id: keys for id, keys in self._keys.items()}
        values = {**as_values(parts.options), "theme": app.theme, "signs": parts.signs, "titles": parts.titles, "system": parts.system}
        values |= {"model": parts.start_model, "max_new_tokens": parts.max_new_tokens, "models_dirs": parts.models_dirs}
        values |= {"kept_pages": parts.kept_pages, "you": parts.you}
        values |= {SAMPLING + field.name: getattr(app.dialogue.sampling, field.name) for field in FIELDS}
        values |= {KEYS + id: parts.keymap.get(id, keys) for id, keys in self._keys.items()}
        file = Content.styled(str(paths.settings_file()), "$text-disabled")
        return FormScreen("Settings", rows, values, defaults, changed=self._changed, about=lambda _: [file])

    def _app_rows(self) -> list[Row]:
        themes = tuple(theme.name for theme in self._app.parts.themes)
        signs = "Signs for lines and marks: what the terminal can, or plain ASCII. From the next start."
        folders = "Folders with models beside exltui's own, with commas. From the next start."
        return [
            Row("theme", "theme", "How the app looks; Ctrl+P Theme shows them live.", "App", themes),
            Row("signs", "signs", signs, "App", ("auto", "unicode", "ascii")),
            typed_row("titles", bool, "Whether the model gives chats their titles while it is idle.", "App"),
            Row("models_dirs", "models folders", folders, "App", parse=parser("models folders", tuple[str, ...]), show=shown),
            Row("model", "model", "Name or path of the model to load at the start; empty: the last one.", "App"),
            Row("system", "system prompt", "The system prompt of a new chat.", "Chats"),
            Row("you", "your name", "Stands above your messages, and is what characters call you.", "Chats"),
            typed_row(
                "kept_pages", float, "GB on the disk for keys and values of chats, which go on without being read again; 0: none.", "Chats"
            ),
            typed_row("max_new_tokens", int, "Longest reply in tokens; empty: until the context is full.", "Chats"),
        ]

    def _changed(self, key: str, value: Any) -> None:
        app, parts = self._app, self._app.parts
        if key == "theme":
            app.theme = value
        elif key.startswith(SAMPLING):
            app.main.sampler.take(replaced(app.dialogue.sampling, key.removeprefix(SAMPLING), value))
        elif key.startswith(KEYS):
            self._give_key(key.removeprefix(KEYS), value)
        elif hasattr(LoadOptions(), key):
            parts.options = dataclasses.replace(parts.options, **{key: value})
            app.remember("load", parts.options)
        else:
            setattr(parts, "start_model" if key == "model" else key, value)
            app.dialogue.max_new_tokens, app.dialogue.system, app.dialogue.you = parts.max_new_tokens, parts.system, parts.you
            app.remember(key, value)

    def _give_key(self, id: str, keys: str) -> None:
        """Another key for an action, at once; a conflict is told and left to the person."""
        keymap = self._app.parts.keymap
        if keys == self._keys[id]:
            keymap.pop(id, None)
        else:
            keymap[id] = keys
        self._app.set_keymap(keymap)
        self._app.remember("keys", dict(keymap))
        for problem in check_keymap(keymap, places()):
            self._app.fail(problem)


def _sampler_row(field: Field) -> Row:
    help = f"{field.setting.help} {field.range()}"
    choices: Sequence[Any] = (False, True) if field.setting.kind == "switch" else ()
    return Row(SAMPLING + field.name, field.label, help, "Sampler", tuple(choices), parse=field.parse, show=field.text)


def _key_row(id: str, keys: str) -> Row:
    action = BY_ID.get(id)
    label = f"{id}" if action is None else f"{id} · {action.label}"
    return Row(KEYS + id, label, f"Keys with commas, for example ctrl+n,f6. The app's own: {keys_name(keys) or 'none'}.", "Keys")
