"""The app: it paints first, starts the engine's thread then, and puts every event where it is shown."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from textual import on
from textual.app import App, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Input, TextArea

from exltui import paths, protocol
from exltui.app.chats import ChatDesk
from exltui.app.clipboard import copy_with_tool, describe
from exltui.app.desk import ModelDesk
from exltui.app.dialogue import Dialogue
from exltui.app.editor import edit_text
from exltui.app.keys import ALL, APP_ACTIONS, check_keymap
from exltui.app.observed import Observed
from exltui.app.palette import Actions
from exltui.app.panes.conversation import Talk
from exltui.app.panes.sampler import SamplerPane
from exltui.app.panes.sessions import SessionsPane
from exltui.app.parts import Parts
from exltui.app.screens.help import HelpScreen, binding_rows, place_name
from exltui.app.screens.loader import LoaderScreen
from exltui.app.screens.main import MainScreen
from exltui.app.view import ScreenView
from exltui.app.widgets.prompt import PromptBox
from exltui.errors import ExltuiError
from exltui.protocol import Sampling

log = logging.getLogger(__name__)

FRAME = 0.1  # seconds between two looks at the engine's events while something is going on
PULSE = 1.0  # and while nothing is
QUIET = 0.5  # seconds without a change before settings are written
TWICE = 1.0  # seconds within which a second Ctrl+C quits


class ExltuiApp(App[None]):
    """Wires the panes to the dialogue, the models and the engine."""

    TITLE = "exltui"
    CSS_PATH = "exltui.tcss"
    COMMANDS: ClassVar = {Actions}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(action.binding() for action in APP_ACTIONS if action.keys),
        Binding("question_mark", "help", "Help", show=False),
    ]

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (90, "-medium"), (130, "-wide")]  # columns: classes of every screen
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # rows
        self.parts = parts
        self.observed = Observed(parts.clock)
        self._interrupted_at = -TWICE
        self._left = False
        self._chats_open = False
        self._draft: str | None = None  # what stands in the prompt and is not saved yet
        self._unsaved: dict[str, Any] = {}
        self._saver: Timer | None = None
        self._saver_lock = threading.Lock()
        for theme in parts.themes:
            self.register_theme(theme)
        self.theme = parts.theme if parts.theme in self.available_themes else "textual-dark"
        self.main = MainScreen(self.observed, parts.sampling, Sampling(), parts.now)
        self.dialogue = Dialogue(parts.client, self.observed, ScreenView(self), parts.records, self.work_aside, parts.preparer)
        self.dialogue.sampling = parts.sampling
        self.chats = ChatDesk(self)
        self.desk = ModelDesk(self)

    # ── start and end ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def get_default_screen(self) -> Screen:
        return self.main

    def get_css_variables(self) -> dict[str, str]:
        """As Textual makes them, with muted text as a colour of its own: in rendered text "auto" has no ground to contrast with."""
        variables = super().get_css_variables()
        strong, ground = Color.parse(variables["foreground"]), Color.parse(variables["background"])
        for name, share in (("text-muted", 0.62), ("text-disabled", 0.4)):
            if variables.get(name, "auto").startswith("auto"):
                variables[name] = ground.blend(strong, share).hex
        return variables

    def on_mount(self) -> None:
        self._frame = self.set_interval(FRAME, self.pump, pause=True)
        self._pulse = self.set_interval(PULSE, self.pump)
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        """What waits for the first paint: the engine's thread, the database, the models folders."""
        self.parts.client.start()
        try:
            check_keymap(self.parts.keymap, {action.id for action in ALL})
            self.set_keymap(self.parts.keymap)
        except ExltuiError as error:
            self.parts.notices.append(error)
        for notice in self.parts.notices:
            self.tell(str(notice), notice.hint, error=True)
        self.parts.records.on_problem = self._saving
        self.work_aside(self.parts.records.open, self._opened, self.fail)
        self.desk.start()
        self.watch(self, "theme", lambda theme: self.remember("theme", theme), init=False)
        self.pump()

    def _opened(self, last: str | None) -> None:
        """The database is open: show the chat that was asked for, or else the last one."""
        if warning := self.parts.records.warning:
            self.tell(warning, error=True)
        wanted = self.parts.session or last
        if wanted and not len(self.dialogue.conversation):
            self.dialogue.open(wanted, keep_prompt=bool(self.main.prompt.text))
        self._chats_open = True
        self.chats.refresh()

    def _saving(self, problem: ExltuiError | None) -> None:
        """Called on the writer's thread when saving begins to fail and when it works again."""
        if problem is None:
            self.call_later(self.tell, "All chats are saved again.")
        else:
            self.call_later(self.fail, problem)

    def on_unmount(self) -> None:
        self.leave()

    def leave(self) -> None:
        """Save everything and end the engine. Also called after a crash, when nothing else may have run."""
        if self._left:
            return
        self._left = True
        with contextlib.suppress(ExltuiError):  # there is no screen left to say it on
            self._save_settings()
        self._keep_draft()
        self.dialogue.close()
        self.parts.records.close()
        self.parts.client.close()

    def remember(self, key: str, value: Any) -> None:
        """Keep a setting for the next start. Written when the keys have been quiet for a moment."""
        self._unsaved[key] = value
        if self._saver is not None:
            self._saver.stop()
        self._saver = self.set_timer(QUIET, lambda: self.work_aside(self._save_settings, lambda _: None, self.fail))

    def _save_settings(self) -> None:
        with self._saver_lock:
            while self._unsaved:
                self.parts.remember(*self._unsaved.popitem())

    # ── the engine's events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def pump(self) -> None:
        """Take what the engine said since the last time and show it; look more often while something is going on."""
        met = False
        for event in coalesced(self.parts.client.poll()):
            self.observed.apply(event)
            self.dialogue.handle(event)
            self.desk.handle(event)
            met = met or isinstance(event, protocol.Meter)
        self.draw_status()
        if met and self.main.query("#devices"):
            self.main.devices.show()
        self._keep_draft()
        self.desk.tick()
        if self.observed.busy or self.dialogue.busy or self.desk.busy:
            self._frame.resume()
        else:
            self._frame.pause()

    def draw_status(self) -> None:
        """Bring the status line up to date."""
        if self.main.query("#status"):  # not yet, or no longer, at the very start and end
            self.main.status.show(self.observed, self.hints())

    def on_descendant_focus(self) -> None:
        """Other keys matter where the focus is now."""
        self.draw_status()

    def hints(self) -> tuple[tuple[str, str], ...]:
        """The keys that matter now, for the right end of the status line."""
        if self.dialogue.writing is not None:
            return (("Esc", "stop"), ("F1", "help"))
        if self.dialogue.editing:
            return (("Enter", "send as a new version"), ("Esc", "leave it"))
        if self.main.in_drawer:
            return (("Esc", "back"), ("F1", "help"))
        return (("F1", "help"), ("^P", "menu"), ("^L", "models"), ("^Q", "quit"))

    def work_aside(self, job: Callable[[], Any], then: Callable[[Any], None], failed: Callable[[ExltuiError], None]) -> None:
        """Run ``job`` in a thread of its own and then one of the others on the screen's thread, if there still is a screen."""

        def deliver(receive: Callable[[Any], None], value: Any) -> None:
            if self.is_running:
                receive(value)

        def run() -> None:
            try:
                result = job()
            except ExltuiError as error:
                self.call_later(deliver, failed, error)
            except Exception as error:
                log.exception("work beside the screen failed")
                self.call_later(deliver, failed, ExltuiError(f"This did not work: {error}", f"Details are in {paths.log_file()}."))
            else:
                self.call_later(deliver, then, result)

        self.run_worker(run, thread=True)
        self._frame.resume()

    # ── words for the person ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def tell(self, text: str, hint: str = "", *, error: bool = False) -> None:
        """A short notice over the corner of the screen."""
        self.notify(f"{text}\n{hint}" if hint else text, severity="error" if error else "information", markup=False)

    def fail(self, error: ExltuiError) -> None:
        """Say what went wrong and what to do."""
        self.tell(str(error), error.hint, error=True)

    # ── the prompt and the messages ──────────────────────────────────────────────────────────────────────────────────────────────

    @on(TextArea.Changed, "#prompt")
    def _typed(self) -> None:
        self._draft = self.main.prompt.full_text

    def _keep_draft(self) -> None:
        """Save what is typed and not sent, once in a pulse at most."""
        if self._draft is not None and self._chats_open:  # before that, nobody knows yet which chat it belongs to
            draft, self._draft = self._draft, None
            self.dialogue.keep_draft(draft)

    @on(PromptBox.Submitted)
    def _submitted(self, event: PromptBox.Submitted) -> None:
        self.dialogue.send(event.text)
        self.main.talk.follow()
        self.pump()

    @on(Talk.Wanted)
    def _wanted(self, event: Talk.Wanted) -> None:
        if event.what == "copy":
            self.copy_message(event.id, event.block)
        elif event.what == "regenerate":
            self.dialogue.regenerate(event.id)
        elif event.what == "edit":
            self.action_edit_message(event.id)
        elif event.what == "delete":
            self.dialogue.delete(event.id)
        elif event.what == "undo":
            self.dialogue.undo()
        else:
            self._step_sibling(event.id, 1 if event.what == "next" else -1)
        self.pump()

    def copy_message(self, id: str | None, block: int | None) -> None:
        """Copy a message (without ``id`` the last one) or one of its code blocks."""
        path = self.dialogue.conversation.path()
        id = id or (path[-1].id if path else None)
        if id is None or id not in self.dialogue.conversation:
            return
        if block is None:
            self.copy(self.dialogue.conversation[id].text)
            return
        blocks = self.main.talk.code_blocks(id)
        if block <= len(blocks):
            self.copy(blocks[block - 1])
        else:
            self.tell(f"This message has {len(blocks) or 'no'} code block{'' if len(blocks) == 1 else 's'}.")

    def copy(self, text: str) -> None:
        """Put ``text`` where the person can paste it from, and say which way it went."""
        self.copy_to_clipboard(text)
        self.work_aside(lambda: copy_with_tool(text), lambda tool: self.tell(describe(text, tool)), self.fail)

    def action_edit_message(self, id: str | None = None) -> None:
        self.dialogue.edit(id)
        if self.dialogue.editing:
            self.main.prompt.focus()

    def action_regenerate(self) -> None:
        self.dialogue.regenerate(None)
        self.pump()

    def action_message(self, step: int) -> None:
        self.main.talk.focus()
        self.main.talk.move_cursor(step)

    def action_sibling(self, step: int) -> None:
        self._step_sibling(self.main.talk.current, step)

    def _step_sibling(self, id: str | None, step: int) -> None:
        version = self.dialogue.step_sibling(id, step)
        if version is None:
            self.tell("There is no other version of this message." if self.dialogue.writing is None else "A reply is being written.")
        elif id is not None:
            self.main.talk.select(version)

    def action_new_chat(self) -> None:
        self.to_main()
        self.main.close_drawers()
        self.dialogue.new_chat()
        self.pump()

    def action_editor(self) -> None:
        """Write the prompt in $EDITOR."""
        self.to_main()
        self.main.prompt.call_later(self._edit_prompt)  # behind the keys that still wait to be typed into it

    def _edit_prompt(self) -> None:
        prompt = self.main.prompt
        try:
            with self.suspend():
                text = edit_text(prompt.full_text)
        except SuspendNotSupported:
            self.tell("This terminal cannot be given to an editor.", error=True)
        except ExltuiError as error:
            self.fail(error)
        else:
            prompt.put(text)
            prompt.focus()
        self.refresh()

    # ── chats ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(SessionsPane.Opened)
    def _open_chat(self, event: SessionsPane.Opened) -> None:
        self.main.close_drawers()
        self.dialogue.open(event.id)

    @on(SessionsPane.New)
    def _new_chat(self) -> None:
        self.action_new_chat()

    @on(SessionsPane.Searched)
    def _search(self) -> None:
        self.chats.refresh()

    @on(SessionsPane.Renamed)
    def _rename(self, event: SessionsPane.Renamed) -> None:
        self.chats.rename(event.id, event.title)

    @on(SessionsPane.Deleted)
    def _delete_chat(self, event: SessionsPane.Deleted) -> None:
        self.chats.delete(event.id)

    @on(SessionsPane.Undone)
    def _undelete_chat(self) -> None:
        self.chats.undelete()

    # ── panes, models, help ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def to_main(self) -> None:
        """Close whatever covers the main screen."""
        while self.screen is not self.main and len(self.screen_stack) > 1:
            self.pop_screen()

    def action_pane(self, name: str) -> None:
        self.to_main()
        self.main.show_pane(name)
        self.pump()

    @on(SamplerPane.Changed)
    def _sampler_changed(self, event: SamplerPane.Changed) -> None:
        self.dialogue.sampling = event.sampling
        self.remember("sampling", event.sampling)

    def action_loader(self) -> None:
        if isinstance(self.screen, LoaderScreen):
            self.screen.dismiss()
        else:
            self.to_main()
            self.desk.open()

    def action_unload(self) -> None:
        self.desk.unload()

    def action_help(self) -> None:
        if isinstance(self.screen, HelpScreen):
            self.screen.dismiss()
            return
        self.push_screen(HelpScreen(place_name(self.screen), binding_rows(self.screen)))

    def action_escape(self) -> None:
        """Esc: close what is open, else stop the reply, else go back to the prompt."""
        if self.screen is not self.main:
            return
        if self.main.in_drawer:
            self.main.close_drawers()
        elif self.dialogue.stop():
            pass
        elif self.dialogue.editing:
            self.dialogue.stop_editing()
            self.main.prompt.put("")
        else:
            self.main.talk.select(None)
            self.main.prompt.focus()
        self.pump()

    def action_interrupt(self) -> None:
        """Ctrl+C: copy what is selected, else stop the reply, else quit on the second press."""
        now = self.parts.clock()
        focused = self.focused
        selected = self.screen.get_selected_text() or (focused.selected_text if isinstance(focused, (TextArea, Input)) else "")
        if selected:
            self.copy(selected)
        elif now - self._interrupted_at < TWICE:
            self.exit()
        elif not self.dialogue.stop():
            self.tell("Ctrl+C again quits.", "A reply that is being written is saved.")
        self._interrupted_at = now


def coalesced(events: list[protocol.Event]) -> list[protocol.Event]:
    """The same events with neighbouring texts of one job joined: one repaint instead of several."""
    joined: list[protocol.Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, protocol.Text) and isinstance(last, protocol.Text) and last.id == event.id:
            joined[-1] = protocol.Text(event.id, last.text + event.text, last.tokens + event.tokens)
        else:
            joined.append(event)
    return joined
