"""The app: it paints first, starts the engine's thread then, and puts every event where it is shown."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from textual import events, on
from textual.app import App
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.command import CommandPalette
from textual.dom import DOMNode
from textual.driver import Driver
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, OptionList, TextArea

from exltui import paths, protocol
from exltui.app.actions import APP_ACTIONS, BY_ID, COMMANDS, DO
from exltui.app.adapters import AdapterDesk
from exltui.app.branches import BranchDesk
from exltui.app.characters import CharacterDesk
from exltui.app.chats import ChatDesk
from exltui.app.clipboard import copy_with_tool, describe, to_file, too_long
from exltui.app.compare import CompareDesk
from exltui.app.context import ContextDesk
from exltui.app.desk import ModelDesk
from exltui.app.dialogue import Dialogue
from exltui.app.errands import Errands
from exltui.app.keymap import places
from exltui.app.keys import Action, check_keymap
from exltui.app.link import PlainSigns, WatchedFile, hung_up, wants_plain_signs, watched
from exltui.app.looks import LooksDesk
from exltui.app.messages import MessageDesk
from exltui.app.microscope import MicroscopeDesk
from exltui.app.observed import Observed, coalesced
from exltui.app.palette import Actions, Palette
from exltui.app.panes.conversation import Talk
from exltui.app.panes.sampler import SamplerPane
from exltui.app.panes.sessions import SessionsPane
from exltui.app.parts import Parts
from exltui.app.pastes import take_pastes_whole
from exltui.app.presets import PresetDesk
from exltui.app.queries import Queries
from exltui.app.revision import TITLES
from exltui.app.screens.help import binding_rows, help_text, place_name
from exltui.app.screens.main import MainScreen
from exltui.app.screens.pick import PickScreen
from exltui.app.screens.sheet import SheetScreen
from exltui.app.variables import VariableDesk
from exltui.app.view import ScreenView
from exltui.app.widgets.prompt import PromptBox
from exltui.errors import ExltuiError
from exltui.protocol import Sampling

log = logging.getLogger(__name__)

FRAME = 0.1  # seconds between two looks at the engine's events while something is going on
PULSE = 1.0  # and while nothing is
ALONE = 2.0  # and between two looks whether the terminal is still there
ERROR_SECONDS = 15  # that a notice of something wrong stays
QUIET = 0.5  # seconds without a change before settings are written
TWICE = 1.0  # seconds within which a second Ctrl+C quits


class ExltuiApp(App[None]):
    """Wires the panes to the dialogue, the models and the engine."""

    TITLE = "exltui"
    CSS_PATH = "exltui.tcss"
    COMMANDS: ClassVar = {Actions}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(action.binding() for action in APP_ACTIONS if action.keys),
        Binding("question_mark", "do('app.help')", "Help", show=False),
    ]

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (90, "-medium"), (130, "-wide")]  # columns: classes of every screen
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # rows
        self.parts = parts
        self.observed = Observed(parts.clock)
        self._interrupted_at = -TWICE
        self._status_at = 0.0  # when the figures were drawn last
        self.unsaved = False  # whether something could not be written before the end
        self._left = False
        self.chats_open = False
        self._draft: str | None = None  # what stands in the prompt and is not saved yet
        self._unsaved: dict[str, Any] = {}
        self._saver: Timer | None = None
        self._saver_lock = threading.Lock()
        self._link: WatchedFile | None = None
        self._met = False  # there are figures of devices that were not drawn yet
        if wants_plain_signs(parts.signs):
            self._filters.append(PlainSigns())
        for theme in parts.themes:
            self.register_theme(theme)
        self.theme = parts.theme if parts.theme in self.available_themes else "textual-dark"
        self.main = MainScreen(self.observed, parts.sampling or Sampling(), parts.now, lambda: self._link)
        self.view, self.preparer = ScreenView(self), parts.preparer
        self.dialogue = Dialogue(parts.client, self.observed, self.view, parts.records, self.work_aside, parts.preparer)
        self.dialogue.sampling, self.dialogue.max_new_tokens = parts.sampling or Sampling(), parts.max_new_tokens
        self.dialogue.system = self.dialogue.conversation.system = parts.system
        self.dialogue.you = parts.you
        self.errands = Errands(parts.client, self.work_aside, parts.preparer)
        self.queries = Queries(parts.client, self.wake)
        self.microscope: MicroscopeDesk = MicroscopeDesk(self)
        self.adapters: AdapterDesk = AdapterDesk(self)
        self.branches: BranchDesk = BranchDesk(self)
        self.compare: CompareDesk = CompareDesk(self)
        self.chats: ChatDesk = ChatDesk(self)
        self.desk: ModelDesk = ModelDesk(self)
        self.messages: MessageDesk = MessageDesk(self)
        self.context: ContextDesk = ContextDesk(self)
        self.characters: CharacterDesk = CharacterDesk(self)
        self.variables: VariableDesk = VariableDesk(self)
        self.presets: PresetDesk = PresetDesk(self)
        self.looks: LooksDesk = LooksDesk(self)

    # ── start and end ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def get_driver_class(self) -> type[Driver]:
        take_pastes_whole(super().get_driver_class())
        return watched(super().get_driver_class(), lambda file: setattr(self, "_link", file))

    @property
    def clogged(self) -> bool:
        """Whether the terminal has not taken yet what was sent to it: a further frame would only wait behind that, and a key's echo too."""
        return self._link is not None and self._link.waiting

    def on_terminal_supports_synchronized_output(self) -> None:
        """The terminal has answered a question: see ``WatchedFile``."""
        if self._link is not None:
            self._link.answered()

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
        self.set_interval(ALONE, self._leave_if_alone)
        self.call_after_refresh(self._start)

    def _leave_if_alone(self) -> None:
        """Nobody can read what is written without a terminal, nor quit: what is saved stays, and the memory goes back."""
        if isinstance(fileno := getattr(self._driver, "fileno", None), int) and hung_up(fileno):
            self.exit(return_code=1)

    def _start(self) -> None:
        """What waits for the first paint: the engine's thread, the database, the models folders."""
        self.parts.client.start()
        self.parts.notices += check_keymap(self.parts.keymap, places())
        self.set_keymap(self.parts.keymap)
        for notice in self.parts.notices:
            self.tell(str(notice), notice.hint, error=True)
        self.parts.records.on_problem = self._saving
        self.work_aside(self.parts.records.open, self._opened, self.fail)
        self.desk.start()
        self.presets.read()
        self.watch(self, "theme", lambda theme: self.remember("theme", theme), init=False)
        self.pump()

    def _opened(self, last: str | None) -> None:
        """The database is open: show the chat that was asked for, or else the last one."""
        if warning := self.parts.records.warning:
            self.tell(warning, error=True)
        wanted = self.parts.session or last
        if wanted and not len(self.dialogue.conversation):
            self.dialogue.open(wanted, keep_prompt=bool(self.main.prompt.text))
        self.chats_open = True
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
        self.unsaved = not self.parts.records.close()
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
        for event in coalesced(self.parts.client.poll()):
            self.observed.apply(event)
            self.dialogue.handle(event)
            self.errands.handle(event)
            self.queries.handle(event)
            self.desk.handle(event)
            if isinstance(event, protocol.HostUp):
                self.parts.settled()
            self.adapters.handle(event)
            self._met = self._met or isinstance(event, protocol.Meter)
        if not self.clogged and not (self._link is not None and self._link.slow and self.parts.clock() - self._status_at < PULSE):
            self._status_at = self.parts.clock()  # on a slow line the figures leave room for the words
            self.draw_status()
            if self._met and self.main.query("#devices"):
                self._met = False
                self.main.devices.show()
        self._keep_draft()
        self.chats.title_when_idle()
        self.desk.tick()
        if self.observed.busy or self.dialogue.busy or self.desk.busy or self.errands.busy or self.queries.busy or self.adapters.busy:
            self._frame.resume()
        else:
            self._frame.pause()

    def wake(self) -> None:
        """Look at the engine's events often until nothing is waited for any more."""
        self._frame.resume()

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
        if self.dialogue.revision.what:
            return (("Enter", "take it"), ("Esc", "leave it"))
        if self.main.in_drawer:
            return (("Esc", "back"), ("F1", "help"))
        if self.dialogue.failed:
            return (("/edit", "change it"), ("/regenerate", "try again"), ("F1", "help"))
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
        shown = f"{text}\n{hint}" if hint else text
        if error:
            self.notify(shown, severity="error", timeout=ERROR_SECONDS, markup=False)
        else:
            self.notify(shown, markup=False)

    def fail(self, error: ExltuiError) -> None:
        """Say what went wrong and what to do."""
        self.tell(str(error), error.hint, error=True)

    # ── the prompt ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(TextArea.Changed, "#prompt")
    def _typed(self) -> None:
        if self.main.query("#prompt"):  # no longer at the very end, when this may still be under way
            self._draft = self.main.prompt.full_text
            self.context.changed()

    def _keep_draft(self) -> None:
        """Save what is typed and not sent, once in a pulse at most."""
        if self._draft is not None and self.chats_open:  # before that, nobody knows yet which chat it belongs to
            draft, self._draft = self._draft, None
            self.dialogue.keep_draft(draft)

    @on(PromptBox.Submitted)
    def _submitted(self, event: PromptBox.Submitted) -> None:
        if not self.dialogue.revision.what and self._command(event.text):
            return
        self.errands.stop()
        self.dialogue.send(event.text)
        self.show_purpose()
        self.main.talk.follow()
        self.pump()

    def _command(self, text: str) -> bool:
        """Run a slash command; False if it is none."""
        name, _, rest = text.removeprefix("/").partition(" ")
        if not text.startswith("/") or "\n" in text or not name.replace("-", "").isalpha():
            return False
        action = COMMANDS.get(name)
        if action is None:
            self.main.prompt.put(text)
            self.tell(f"There is no command /{name}.", "/help lists them; a blank before the slash sends it as it is.", error=True)
        else:
            self.perform(action, rest.strip())
        return True

    def perform(self, action: Action, argument: str = "") -> None:
        """Do what a key, the palette or a slash command asks for."""
        DO[action.id](self, argument)
        if self.is_running:
            self.pump()

    def action_do(self, id: str) -> None:
        """The key of an action was pressed."""
        self.perform(BY_ID[id])

    def action_chat(self, what: str) -> None:
        """A key of the list of chats was pressed."""
        self.chats.act(what)

    def show_purpose(self) -> None:
        """Say what the prompt is used for."""
        self.main.conversation.show_purpose(TITLES.get(self.dialogue.revision.what, ""))
        self.draw_status()

    def copy(self, text: str) -> None:
        """Put ``text`` where the person can paste it from, and say which way it went."""

        def give() -> str:
            if tool := copy_with_tool(text):
                return describe(text, tool)
            return f"Too long for the terminal's clipboard; written to {to_file(text)}." if too_long(text) else describe(text, "")

        if not too_long(text):
            self.copy_to_clipboard(text)
        self.work_aside(give, self.tell, self.fail)

    def new_chat(self) -> None:
        self.to_main()
        self.main.close_drawers()
        self.dialogue.new_chat()
        self.show_purpose()
        self.main.prompt.focus()

    def action_command_palette(self) -> None:
        if not isinstance(self.screen, CommandPalette):
            self.push_screen(Palette())

    def pop_screen(self) -> AwaitComplete:
        """Close what is on top, and end what it was at; the main screen stays."""
        if len(self.screen_stack) < 2:
            return AwaitComplete.nothing()
        self.workers.cancel_node(self.screen)
        return super().pop_screen()

    async def on_event(self, event: events.Event) -> None:
        """As Textual's. A slash on a message begins a command: the prompt has the focus before the next key of the packet is handed out.
        The keys of a list to choose from come before the app's own.
        """
        if isinstance(event, events.Key) and isinstance(self.screen, PickScreen) and self.screen.take(event.key):
            return
        if isinstance(event, events.Key) and event.key == "slash" and self.focused is not None and self.focused is self._talk_at_rest():
            self.screen.set_focus(self.main.prompt)
        await super().on_event(event)

    def _talk_at_rest(self) -> Widget | None:
        """The conversation, unless its keys select text."""
        return None if self.screen is not self.main or self.main.talk.caret.active else self.main.talk

    async def run_action(
        self, action: Any, default_namespace: DOMNode | None = None, namespaces: Mapping[str, DOMNode] | None = None
    ) -> bool:
        """Do what a key asks for, unless the screen that had it was closed by the key before, or is not there yet: keys come in packets."""
        if isinstance(default_namespace, Widget):
            screen = next((node for node in default_namespace.ancestors_with_self if isinstance(node, Screen)), None)
            if screen is None or screen not in self.screen_stack or not screen.is_mounted:
                return False
            lists = default_namespace.query(OptionList).nodes if isinstance(default_namespace, CommandPalette) else [default_namespace]
            if any(isinstance(node, OptionList) and not node.size for node in lists):  # Textual's list has no lines before it is laid out
                return False
        return await super().run_action(action, default_namespace, namespaces)

    # ── panes, models, help ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @on(SessionsPane.Opened)
    def _open_chat(self, event: SessionsPane.Opened) -> None:
        self.main.close_drawers()
        self.dialogue.open(event.id)
        self.show_purpose()

    @on(SessionsPane.Searched)
    def _search(self) -> None:
        self.chats.refresh()

    @on(SessionsPane.Renamed)
    def _rename(self, event: SessionsPane.Renamed) -> None:
        self.chats.rename(event.id, event.title)

    def to_main(self) -> None:
        """Close whatever covers the main screen."""
        while self.screen is not self.main and len(self.screen_stack) > 1:
            self.pop_screen()

    def show_pane(self, name: str) -> None:
        self.to_main()
        self.main.show_pane(name)

    @on(SamplerPane.Changed)
    def _sampler_changed(self, event: SamplerPane.Changed) -> None:
        self.presets.changed(event.sampling)

    @on(Talk.Taken)
    def _taken(self, event: Talk.Taken) -> None:
        if event.text:
            self.copy(event.text)

    @on(SamplerPane.OrderWanted)
    def _order_wanted(self) -> None:
        self.presets.order()

    def help(self) -> None:
        """The keys of what has the focus, and all others."""
        place = place_name(self.screen)
        text = help_text(place, binding_rows(self.screen), APP_ACTIONS, self.parts.keymap)
        self.push_screen(SheetScreen(f"Help · {place}", text))

    def escape(self) -> None:
        """Esc: close what is open, else stop the reply, else go back to the prompt."""
        if self.screen is not self.main:
            return
        if self.main.in_drawer:
            self.main.close_drawers()
        elif self.dialogue.stop():
            pass
        elif self.dialogue.revision.what:
            self.dialogue.revision.leave()
            self.show_purpose()
        else:
            self.main.talk.select(None)
            self.main.prompt.focus()

    def interrupt(self) -> None:
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
