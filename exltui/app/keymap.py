"""Every key that can be given to something else, and where it works."""

from __future__ import annotations

from textual.binding import Binding
from textual.dom import DOMNode

from exltui.app.actions import APP_ACTIONS, MESSAGE_ACTIONS
from exltui.app.panes.sampler import SamplerPane
from exltui.app.panes.sessions import SessionList
from exltui.app.screens.adapters import AdapterScreen
from exltui.app.screens.ask import AskScreen
from exltui.app.screens.candidates import CandidatesScreen
from exltui.app.screens.context import ContextScreen
from exltui.app.screens.form import FormScreen
from exltui.app.screens.inspect import InspectScreen
from exltui.app.screens.loader import LoaderScreen, ModelList
from exltui.app.screens.microscope import MicroscopeScreen
from exltui.app.screens.order import OrderScreen
from exltui.app.screens.pick import PickScreen

OWNERS: tuple[type[DOMNode], ...] = (
    SamplerPane,
    SessionList,
    ModelList,
    LoaderScreen,
    PickScreen,
    AskScreen,
    FormScreen,
    ContextScreen,
    OrderScreen,
    InspectScreen,
    MicroscopeScreen,
    AdapterScreen,
    CandidatesScreen,
)


def places() -> list[tuple[str, str, str]]:
    """(place, id, keys) of every key with a name; the place "" is everywhere."""
    found = [("", action.id, action.keys) for action in APP_ACTIONS]
    found += [("transcript", action.id, action.keys) for action in MESSAGE_ACTIONS]
    for owner in OWNERS:
        bindings = (binding for binding in owner.BINDINGS if isinstance(binding, Binding) and binding.id)
        found += [(owner.__name__, str(binding.id), binding.key) for binding in bindings]
    return found
