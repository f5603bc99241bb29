"""What the keys and commands do to messages: the one under the cursor, or else the last one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported

from exltui.app.details import details
from exltui.app.dialogue import Variant
from exltui.app.editor import edit_text, page_text
from exltui.app.outline import branch_choices
from exltui.app.screens.ask import AskScreen
from exltui.app.screens.candidates import CandidatesScreen
from exltui.app.screens.pick import Choice, PickScreen
from exltui.app.screens.sheet import SheetScreen
from exltui.app.textfile import read_text
from exltui.app.transcript.caret import HINT
from exltui.app.widgets.prompt import PromptBox
from exltui.chat import thinking
from exltui.errors import ExltuiError
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp
    from exltui.app.dialogue import Dialogue

LARGEST_FILE = 2_000_000  # bytes of a text file that is put into the prompt
MOST_CANDIDATES = 8
AS_PERSON = 300  # tokens of what the model writes for the person


class MessageDesk:
    """Acts on the chat on the screen."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app

    @property
    def _dialogue(self) -> Dialogue:
        return self._app.dialogue

    @property
    def _id(self) -> str | None:
        """The message under the cursor."""
        return self._app.main.talk.current

    def _some(self) -> str | None:
        """The message under the cursor, or else the last one; says so if there is none."""
        id = self._id or self._dialogue.conversation.head
        if id is None:
            self._app.tell("There is no message yet.")
        return id

    # ── going about ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def move(self, step: int) -> None:
        self._app.to_main()
        self._app.main.talk.focus()
        self._app.main.talk.move_cursor(step)

    def sibling(self, step: int) -> None:
        """Show another version of the message under the cursor, or of the last fork."""
        id = self._id
        version = self._dialogue.revision.step_sibling(id, step)
        if version is None:
            self._app.tell("There is no other version here." if self._dialogue.writing is None else "A reply is being written.")
        elif id is not None:
            self._app.main.talk.select(version)

    def outline(self) -> None:
        """All branches as a tree."""
        conversation = self._dialogue.conversation
        if not len(conversation):
            self._app.tell("There is no message yet.")
            return

        def go(id: str | None) -> None:
            if id is not None and self._dialogue.may_change():
                self._dialogue.revision.go_to(id)
                self._app.main.talk.select(id)

        screen = PickScreen("Branches", branch_choices(conversation, {}), at=conversation.head or "")
        self._app.push_screen(screen, go)
        self._app.branches.cached(conversation, lambda cached: screen.replace(branch_choices(conversation, cached)))

    def find(self, words: str) -> None:
        """Messages of this branch that hold the words."""

        def go(id: str | None) -> None:
            if id is not None:
                self._app.main.talk.focus()
                self._app.main.talk.select(id)

        path = self._dialogue.conversation.path()
        names = {entry.id: entry.name for entry in self._dialogue.entries()}
        choices = [Choice(m.id, one_line(line, 300), names[m.id]) for m in path for line in m.text.splitlines() if line.strip()]
        self._app.push_screen(PickScreen("Find in this chat", choices[-20_000:], value=words), go)

    def history(self) -> None:
        """Earlier prompts of all chats."""

        def put(text: str | None) -> None:
            if text is not None:
                self._app.main.prompt.put(text)
                self._app.main.prompt.focus()

        def show(prompts: list[str]) -> None:
            choices = [Choice(text, one_line(text[:400], 300)) for text in prompts]
            self._app.push_screen(PickScreen("Earlier prompts", choices, value=self._app.main.prompt.text.partition("\n")[0][:60]), put)

        self._app.work_aside(self._app.parts.records.prompts, show, self._app.fail)

    # ── reading and copying ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def copy(self, number: str = "") -> None:
        """Copy a message, or one of its code blocks by number."""
        id, block = self._some(), int(number) if number.isdecimal() else self._app.main.talk.take_digit()
        if id is None:
            return
        if block is None:
            self._app.copy(thinking.answer(self._dialogue.conversation[id].text))
            return
        blocks = self._app.main.talk.code_blocks(id)
        if 0 < block <= len(blocks):
            self._app.copy(blocks[block - 1])
        else:
            self._app.tell(f"This message has {len(blocks) or 'no'} code block{'' if len(blocks) == 1 else 's'}.")

    def select_text(self) -> None:
        """Put a caret into the text, with which a part of it can be selected and copied."""
        if (id := self._some()) is not None:
            talk = self._app.main.talk
            self._app.to_main()
            talk.focus()
            talk.select(id)
            talk.call_after_refresh(lambda: talk.caret.begin(talk.first_row(id) + 1))
            self._app.tell(HINT)

    def fold(self) -> None:
        id = self._some()
        if id is not None and not self._app.main.talk.fold(id):
            self._app.tell("This message has no thoughts.")

    def page(self) -> None:
        """Read a message in $PAGER."""
        if (id := self._some()) is not None:
            text = self._dialogue.conversation[id].text
            self._outside(lambda: page_text(text))

    def details(self) -> None:
        """What a message was written with."""
        if (id := self._some()) is not None:
            text = details(self._dialogue.conversation[id], self._dialogue.conversation)
            self._app.push_screen(SheetScreen("Message", text))

    def inspect(self) -> None:
        """The tokens of a reply."""
        if (id := self._some()) is not None:
            self._app.microscope.inspect(id)

    def edit_outside(self) -> None:
        """Write the prompt, or a new version of the message under the cursor, in $EDITOR."""
        id = self._id if self._app.main.talk.has_focus else None
        self._app.to_main()
        if id is not None and id in self._dialogue.conversation:
            self._edit_message(id)
        else:
            prompt = self._app.main.prompt
            prompt.call_later(self._edit_prompt, prompt)  # behind the keys that still wait to be typed into it

    def _edit_message(self, id: str) -> None:
        if not self._dialogue.may_change():
            return
        before = self._dialogue.conversation[id].text
        text = self._outside(lambda: edit_text(before))
        if text is not None and text != before:
            self._dialogue.revision.replace(id, text)

    def _edit_prompt(self, prompt: PromptBox) -> None:
        text = self._outside(lambda: edit_text(prompt.full_text))
        if text is not None:
            prompt.put(text)
            prompt.focus()

    def outside_text(self, text: str, suffix: str) -> str | None:
        """What the person makes of ``text`` in $EDITOR."""
        return self._outside(lambda: edit_text(text, suffix))

    def _outside(self, run: Callable[[], str | None]) -> str | None:
        """Give the terminal to another program; what it leaves, or None."""
        try:
            with self._app.suspend():
                try:
                    return run()
                except ExltuiError as error:  # Textual takes the terminal back only where its block ends well
                    self._app.call_later(self._app.fail, error)
        except SuspendNotSupported:
            self._app.tell("This terminal cannot be given to another program.", error=True)
        finally:
            self._app.refresh()
        return None

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def edit(self) -> None:
        self._app.to_main()
        if self._dialogue.revision.edit(self._id):
            self._app.main.prompt.focus()
            self._app.show_purpose()

    def system(self, text: str) -> None:
        """The system prompt: set it, or have it in the prompt to change it."""
        if text:
            self._dialogue.revision.set_system(text)
        else:
            self._write("system")

    def note(self) -> None:
        self._write("note")

    def _write(self, what: str) -> None:
        self._app.to_main()
        self._dialogue.revision.write(what)
        self._app.main.prompt.focus()
        self._app.show_purpose()

    def regenerate(self) -> None:
        self._dialogue.regenerate(self._id)
        self._app.main.talk.follow()

    def go_on(self, tokens: str = "") -> None:
        """Have the last reply go on, by so many tokens if they are given."""
        if tokens and not (tokens.isdecimal() and int(tokens) > 0):
            self._app.tell(f"{one_line(tokens, 40)} is no number of tokens: /continue 20.", error=True)
            return
        self._dialogue.go_on(int(tokens) if tokens else None)
        self._app.main.talk.follow()

    def impersonate(self) -> None:
        """Have the model write what the person could say next, into the prompt."""
        app, conversation = self._app, self._dialogue.conversation
        order = app.context.order()
        if order is None or conversation.head is None or conversation[conversation.head].role != "assistant":
            app.tell("No model is loaded." if order is None else "There is no reply yet that you could answer.")
        elif self._dialogue.may_change():
            app.tell("The model writes your next message.")
            asked = replace(order, max_new_tokens=min(order.max_new_tokens or AS_PERSON, AS_PERSON))
            app.errands.write_as_person(asked, app.main.prompt.take_in, app.fail)

    def prefill(self, text: str) -> None:
        """How the next reply begins."""

        def begin(start: str | None) -> None:
            if start is not None:
                self._dialogue.start = start
                self._app.tell(
                    f"The next reply begins with “{one_line(start, 60)}”." if start else "The next reply begins as the model likes."
                )

        if text:
            begin(text)
        else:
            self._app.push_screen(AskScreen("How the next reply begins", self._dialogue.start), begin)

    def candidates(self, text: str) -> None:
        """Several replies side by side."""
        number = int(text) if text.isdecimal() else 3
        if not 2 <= number <= MOST_CANDIDATES:
            self._app.tell(f"From 2 to {MOST_CANDIDATES} replies can be written at once.", error=True)
            return
        self.side_by_side([Variant(f"{place + 1} of {number}", self._dialogue.sampling) for place in range(number)])

    def side_by_side(self, variants: list[Variant]) -> None:
        """One reply for each variant, in columns; the one that is chosen is read on."""
        if self._app.observed.loaded is None:
            self._app.tell("No model is loaded.", "Ctrl+L loads one.")
            return
        ids = self._dialogue.candidates(self._id, variants)
        if not ids:
            return
        columns = [(each.name, self._dialogue.entry(self._dialogue.conversation[id])) for id, each in zip(ids, variants, strict=True)]

        def chosen(id: str | None) -> None:
            self._app.view.columns = None
            if id is not None:  # what is still being written goes on, the others beside it
                self._dialogue.revision.go_to(id)

        screen = CandidatesScreen(columns, self._dialogue.stop)
        self._app.view.columns = screen
        self._app.push_screen(screen, chosen)

    def attach(self, name: str) -> None:
        """Put a text file into the prompt."""

        def read() -> str:
            path, text = read_text(name, LARGEST_FILE, "Name a text file, or paste the part that matters.")
            fence = "````" if "```" in text else "```"
            return f"{path.name}:\n{fence}{path.suffix[1:]}\n{text.rstrip()}\n{fence}\n"

        if not name:
            self._app.tell("Say which file: /file PATH.")
            return
        self._app.work_aside(read, self._app.main.prompt.take_in, self._app.fail)

    # ── taking out, keeping in ───────────────────────────────────────────────────────────────────────────────────────────────────

    def delete(self) -> None:
        self._dialogue.revision.delete(self._id)

    def undo(self) -> None:
        self._dialogue.revision.undo()

    def pin(self) -> None:
        """Have the message always go to the model, or as long as there is room."""
        if (id := self._some()) is not None:
            self._dialogue.revision.mark(id, pinned=not self._dialogue.conversation[id].pinned)

    def drop(self) -> None:
        """Have the message never go to the model, or as long as there is room."""
        if (id := self._some()) is not None:
            self._dialogue.revision.mark(id, dropped=not self._dialogue.conversation[id].dropped)
