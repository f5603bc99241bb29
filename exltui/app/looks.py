"""How the app looks and what it is set to: themes seen live, the settings on a form, and single questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exltui.app.screens.ask import AskScreen
from exltui.app.screens.form import FormScreen
from exltui.app.screens.pick import Choice, PickScreen
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp


class LooksDesk:
    """Changes what the settings file says about the app."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app

    def ask(self, title: str, then: Callable[[str], None], value: str = "", placeholder: str = "", *, empty: bool = False) -> None:
        """Ask for one line; nothing happens when it is left, or is blank and not to be ``empty``."""

        def take(answer: str | None) -> None:
            if answer is not None and (answer.strip() or empty):
                then(answer.strip())

        self._app.push_screen(AskScreen(title, value, placeholder), take)

    def choose_theme(self, name: str) -> None:
        """Another theme: by name, or seen live while choosing."""
        app, before = self._app, self._app.theme
        known = [theme.name for theme in app.parts.themes] or list(app.available_themes)
        if name:
            if name in app.available_themes:
                app.theme = name
            else:
                app.tell(f"There is no theme {one_line(name, 40)}.", f"There are {', '.join(known)}.", error=True)
            return

        def look(theme: str) -> None:
            app.theme = theme

        def take(theme: str | None) -> None:
            app.theme = theme or before

        others = [name for name in sorted(app.available_themes) if name not in known]
        choices = [Choice(name, name, mark="●" * (name == before)) for name in known]
        choices += [Choice(name, name, "Textual's", "●" * (name == before)) for name in others]
        app.push_screen(PickScreen("Theme", choices, at=before, looked_at=look), take)

    def settings(self) -> None:
        """The settings file as a form."""
        if isinstance(self._app.screen, FormScreen):
            self._app.screen.dismiss(None)
            return
        from exltui.app.settings_form import settings_form

        self._app.push_screen(settings_form(self._app))
