"""Two replies to one prompt, side by side, each with a sampler, adapters and a system prompt of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exltui.app.dialogue import Variant
from exltui.app.screens.form import FormScreen, Row
from exltui.chat.characters import Character
from exltui.errors import SamplingError

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

NOW, NONE = "as now", "none"


class CompareDesk:
    """Asks what A and B are to be, and has both written in one batch."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self._values: dict[str, Any] = {}  # what was chosen last, for the next time
        self._systems: dict[str, str] = {}  # the person's own system prompts

    def compare(self, names: str) -> None:
        """``A B``: two sampler presets; "": the form."""
        presets = self._app.presets.all
        if not names:
            self._app.characters.read(self._form)
            return
        wanted = names.split()
        if len(wanted) != 2 or any(name not in presets for name in wanted):
            hint = f"There are {', '.join(name for name in presets if ' ' not in name)}."
            self._app.tell("Name two presets: /compare precise creative.", hint, error=True)
            return
        self._app.messages.side_by_side([Variant(name, presets[name]) for name in wanted])

    def _form(self, characters: list[Character]) -> None:
        samplers = (NOW, *self._app.presets.all)
        self._systems = {each.name: each.named(each.system, self._app.parts.you or "User") for each in characters if not each.problem}
        systems = (NOW, NONE, *self._systems)
        adapters = self._adapter_choices()
        rows: list[Row] = []
        for side in ("A", "B"):
            rows += [
                Row(f"{side}.sampler", "sampler", "The settings of the pane, or a preset.", side, samplers),
                Row(f"{side}.lora", "LoRA", "Which adapters act, and how strongly; /lora loads others.", side, adapters),
                Row(f"{side}.system", "system prompt", "The chat's own, none, or one of your own (/characters).", side, systems),
            ]
        defaults = {row.key: NOW for row in rows}
        kept = {row.key: self._values[row.key] for row in rows if self._values.get(row.key) in row.choices}

        def take(values: dict[str, Any] | None) -> None:
            if values is not None:
                self._values = values
                self._write(values)

        form = FormScreen("A and B, one prompt", rows, {**defaults, **kept}, defaults, done="Write both replies")
        self._app.push_screen(form, take)

    def _adapter_choices(self) -> tuple[str, ...]:
        loaded = self._app.observed.adapters
        scaled = [f"{name}:{scale:g}" for name, each in loaded.items() for scale in dict.fromkeys((each.scale, 1.0, 0.5))]
        return (NOW, NONE, *scaled) if loaded else (NOW,)

    def _write(self, values: dict[str, Any]) -> None:
        try:
            variants = [self._variant(side, values) for side in ("A", "B")]
        except SamplingError as error:
            self._app.fail(error)
            return
        self._app.messages.side_by_side(variants)

    def _variant(self, side: str, values: dict[str, Any]) -> Variant:
        sampler, lora, system = (values[f"{side}.{what}"] for what in ("sampler", "lora", "system"))
        told = [f"{what} {value}" for what, value in (("sampler", sampler), ("LoRA", lora), ("system", system)) if value != NOW]
        name, _, scale = lora.rpartition(":")
        return Variant(
            " · ".join([side, *told]),
            self._app.dialogue.sampling if sampler == NOW else self._app.presets.all[sampler],
            None if lora == NOW else () if lora == NONE else ((name, float(scale)),),
            None if system == NOW else self._systems.get(system, ""),
        )
