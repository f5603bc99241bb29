"""The person's own system prompts and characters: chosen for a chat, saved from one, written in $EDITOR, deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltui.app.screens.pick import Choice, PickScreen
from exltui.chat.characters import Character, file_of, read_character, read_characters, save_character, write_file
from exltui.chat.variables import from_table, to_table
from exltui.errors import SettingsError
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

KEYS = {"ctrl+n": "new chat", "ctrl+e": "edit", "delete": "delete", "ctrl+z": "undo"}
NONE, SAVE, NEW = "=none", "=save", "=new"
EXAMPLE = """+++
greeting = "Hello {{user}}, I am {{char}}."
+++
You are {{char}}.
"""


class CharacterDesk:
    """Reads the folder each time that it is looked at: its files may have been written by other programs."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self._before: list[tuple[Path, bytes | None]] = []  # what files held before they were changed, the last one last

    @property
    def folder(self) -> Path:
        return self._app.parts.characters_dir

    def read(self, then: Callable[[list[Character]], None]) -> None:
        """``then`` gets all characters; files that cannot be read are told."""

        def take(found: list[Character]) -> None:
            for each in found:
                if each.problem:
                    self._app.tell(each.problem, "/characters, then Ctrl+E opens it in $EDITOR.", error=True)
            then(found)

        self._app.work_aside(lambda: read_characters(self.folder), take, self._app.fail)

    # ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def choose(self, name: str) -> None:
        """Begin this chat with a character by its name, or show them all."""
        if name:
            self._find(name, self._apply)
        else:
            self.read(self._show)

    def _show(self, characters: list[Character]) -> None:
        conversation = self._app.dialogue.conversation
        now = conversation.options.get("character", "")
        by_file = {str(each.file): each for each in characters}

        def take(key: str | None) -> None:
            what, _, file = key.partition(":") if key is not None and key.partition(":")[0] in KEYS else ("", "", key or "")
            if what == "ctrl+z":
                self.undo()
            elif file == NONE:
                self._apply(None)
            elif file == SAVE:
                self.save("")
            elif file == NEW:
                self._new()
            elif (chosen := by_file.get(file)) is not None:
                {"ctrl+n": self._begin, "ctrl+e": self._edit, "delete": self._delete}.get(what, self._apply)(chosen)

        choices = [
            Choice(file, each.name, _kind(each), "!" if each.problem else "●" * (each.name == now), each.problem or each.system)
            for file, each in by_file.items()
        ]
        choices.append(Choice(NONE, "no character and no system prompt", mark="●" * (not now and not conversation.system)))
        choices += [Choice(SAVE, "save this chat's system prompt under a name", about=conversation.system)] if conversation.system else []
        choices.append(Choice(NEW, "write a new one in $EDITOR", about=f"Files lie in {self.folder}."))
        at = next((file for file, each in by_file.items() if each.name == now), "")
        self._app.push_screen(PickScreen("System prompts and characters", choices, at=at, keys=KEYS), take)

    def _find(self, name: str, then: Callable[[Character], None]) -> None:
        """Hand on the character of this name, or say which there are."""

        def look(characters: list[Character]) -> None:
            wanted = name.lower()
            fitting = [each for each in characters if wanted in (each.name.lower(), each.file.stem.lower() if each.file else "")]
            if fitting:
                then(fitting[0])
            else:
                hint = f"There are {', '.join(each.name for each in characters)}." if characters else "/save-character keeps this chat's."
                self._app.tell(f"There is no character {one_line(name, 40)}.", hint, error=True)

        self.read(look)

    def _begin(self, character: Character) -> None:
        """An empty chat with the character."""
        self._app.new_chat()
        self._apply(character)

    def _apply(self, character: Character | None) -> None:
        """Give this chat the character; its first message only where there is none yet."""
        dialogue = self._app.dialogue
        if character is not None and character.problem:
            self._app.tell(character.problem, "/characters, then Ctrl+E opens it in $EDITOR.", error=True)
            return
        if not dialogue.may_change():
            return
        try:
            options = from_table(character.variables) if character is not None else {}
        except SettingsError as error:
            where = character.file if character is not None else ""
            self._app.fail(SettingsError(f"{where}: {error}", error.hint))
            return
        you = self._app.parts.you or "User"
        dialogue.take_character(
            character.name if character is not None else "",
            character.named(character.system, you) if character is not None else "",
            character.named(character.greeting, you) if character is not None else "",
            options,
        )
        if character is None:
            self._app.tell("No character and no system prompt.")
        elif character.greeting and len(dialogue.conversation) > 1:
            self._app.tell(f"{character.name}: the next reply is asked for with it.", "Its first message begins only a new chat: Ctrl+N.")
        else:
            self._app.tell(f"{character.name}: the next reply is asked for with it.")
        self._app.context.changed()

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, name: str) -> None:
        """Keep this chat's system prompt, first message and variables as a character."""
        conversation = self._app.dialogue.conversation
        path = conversation.path()
        greeting = path[0].text if path and path[0].role == "assistant" else ""
        if not conversation.system and not greeting:
            self._app.tell("This chat has neither a system prompt nor a first message of a character.", "/system TEXT sets one.")
            return

        def keep(text: str) -> None:
            character = Character(text.strip(), conversation.system, greeting, to_table(conversation.options))
            if (file := self._file(text)) is not None:
                self._change(lambda: save_character(file, character), file, saved)

        def saved(file: Path) -> None:
            conversation.options["character"] = file.stem
            self._app.parts.records.save(conversation)
            self._app.dialogue.show()
            self._app.tell(f"Saved as {file}.")

        if name:
            keep(name)
        else:
            self._app.looks.ask("Name of this character or system prompt", keep, conversation.options.get("character", ""))

    def edit(self, name: str) -> None:
        """Write a character's file in $EDITOR."""
        if name:
            self._find(name, self._edit)
        else:
            self.read(self._show)

    def _edit(self, character: Character) -> None:
        if character.file is not None and character.file.suffix.lower() in (".md", ".toml", ".json", ".yaml", ".yml"):
            self._write_outside(character.file)
        else:
            self._app.tell("A picture cannot be edited as text.", "Apply it, then /save-character keeps it as text.")

    def _new(self) -> None:
        def write(name: str) -> None:
            if (file := self._file(name)) is not None:
                self._write_outside(file)

        self._app.looks.ask("Name of the new character", write)

    def _file(self, name: str) -> Path | None:
        """The file of a new character; what can be no name is told."""
        try:
            return file_of(self.folder, name)
        except SettingsError as error:
            self._app.fail(error)
            return None

    def _write_outside(self, file: Path) -> None:
        """Have the person change the file; what they saved is kept even if it cannot be read."""
        try:
            before = file.read_text(encoding="utf-8") if file.exists() else EXAMPLE
        except (OSError, UnicodeDecodeError) as error:
            self._app.fail(SettingsError(f"{file} cannot be read: {error}", "look at it with another program"))
            return
        text = self._app.messages.outside_text(before, file.suffix)
        if text is None or (text == before.removesuffix("\n") and file.exists()):
            return

        def put() -> str:
            write_file(file, f"{text}\n".encode())
            return read_character(file).name

        self._change(put, file, lambda name: self._app.tell(f"{name} is saved as {file}."))

    def delete(self, name: str) -> None:
        """Take a character's file away; ``undo`` brings it back."""
        if name:
            self._find(name, self._delete)
        else:
            self.read(self._show)

    def _delete(self, character: Character) -> None:
        if (file := character.file) is not None:
            self._change(
                lambda: write_file(file, None),
                file,
                lambda _: self._app.tell(f"Deleted {character.name}.", "/characters, then Ctrl+Z brings it back."),
            )

    def undo(self) -> None:
        """Have the file that was changed last hold what it held before."""
        if not self._before:
            self._app.tell("There is nothing to bring back.")
            return
        file, data = self._before.pop()
        self._app.work_aside(
            lambda: write_file(file, data),
            lambda _: self._app.tell(f"{file.stem} is as it was." if data is not None else f"{file.name} is gone again."),
            self._app.fail,
        )

    def _change(self, change: Callable[[], Any], file: Path, then: Callable[[Any], None]) -> None:
        """Change ``file`` beside the screen and remember what it held."""

        def run() -> Any:
            before = file.read_bytes() if file.is_file() else None
            try:
                return change()
            finally:
                if (file.read_bytes() if file.is_file() else None) != before:
                    self._before.append((file, before))

        self._app.work_aside(run, then, self._app.fail)


def _kind(character: Character) -> str:
    """What it has besides a system prompt."""
    if character.problem:
        return "cannot be read"
    parts = ("begins the chat" * bool(character.greeting), ", ".join(character.variables))
    return " · ".join(part for part in parts if part)
