"""Putting the app together from the settings, the command line and the folders."""

from __future__ import annotations

import gc
import logging
import sys
from typing import TYPE_CHECKING

from exltui import paths, settings
from exltui.app.app import ExltuiApp
from exltui.app.library import Library
from exltui.app.pages import KeptPages
from exltui.app.parts import Parts
from exltui.app.records import Records
from exltui.app.themes import find_themes
from exltui.client import Client
from exltui.errors import ExltuiError, SettingsError, StoreError

if TYPE_CHECKING:
    from exltui.cli.options import AppOptions


def assemble(options: AppOptions) -> Parts:
    """Everything the app uses. What is wrong with settings and themes becomes a notice; the app starts all the same."""
    themes, broken = find_themes(paths.themes_dir(), paths.user_themes_dir())
    notices: list[ExltuiError] = [*options.problems, *broken]
    names = [theme.name for theme in themes]
    if options.theme not in names:
        notices.append(SettingsError(f"There is no theme {options.theme!r}.", f"There are {', '.join(names)}."))
    records = Records(paths.sessions_file())
    client = Client()
    parts = Parts(
        client=client,
        records=records,
        library=Library(options.models_dirs),
        themes=themes,
        theme=options.theme if options.theme in names else "dark",
        keymap=options.settings.keys,
        sampling=options.sampling,
        you=options.settings.you,
        system=options.settings.system,
        max_new_tokens=options.settings.max_new_tokens,
        titles=options.settings.titles,
        signs=options.settings.signs,
        models_dirs=options.settings.models_dirs,
        options=options.load,
        model=options.model,
        start_model=options.settings.model,
        session=options.session,
        notices=notices,
        remember=settings.remember,
        kept_pages=options.settings.kept_pages,
        settled=settle_memory,
    )
    parts.client = KeptPages(client, records.pages_file, lambda: parts.kept_pages)
    return parts


def settle_memory() -> None:
    """Take what is there now out of the garbage collector's sight: it stays to the end, and to look through it takes 50 ms and more, on
    every thread and in the middle of a reply. Called before a model is loaded: what belongs to that must go when it is unloaded.
    """
    gc.collect()
    gc.freeze()


def start_app(options: AppOptions) -> int:
    """Open the app and stay until it is left. The exit status."""
    log = paths.log_file()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(filename=log, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    except OSError:  # a log that cannot be written must not keep anybody from chatting
        logging.basicConfig(handlers=[logging.NullHandler()])
    if options.linear:
        from exltui.app.linear import LinearChat

        return LinearChat(assemble(options), input, _say).run()
    app = ExltuiApp(assemble(options))
    try:
        app.run()
    finally:
        app.leave()
    if app.unsaved:
        raise StoreError(f"{paths.sessions_file()}: what changed last could not be saved", "make room on its disk")
    return app.return_code or 0


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
