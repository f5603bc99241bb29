"""Sampler presets, and words that are to be likelier or not to be at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exltui.app.fields import BY_NAME, changed, replaced
from exltui.app.screens.order import OrderScreen
from exltui.app.screens.pick import Choice, PickScreen
from exltui.chat.bias import parse_bias
from exltui.errors import SamplingError, SettingsError
from exltui.protocol import Sampling
from exltui.sampling import stages
from exltui.settings import delete_preset, preset_names, read_preset, save_preset
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp


def difference(sampling: Sampling, other: Sampling) -> str:
    """What changes from ``sampling`` to ``other``, in a line."""
    names = sorted(changed(other, sampling), key=list(BY_NAME).index)
    parts = [f"{BY_NAME[n].label} {BY_NAME[n].text(getattr(sampling, n))} → {BY_NAME[n].text(getattr(other, n))}" for n in names]
    return " · ".join(parts) or "the same as now"


class PresetDesk:
    """Applies and keeps settings. Those of a person are in the settings file."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self._own = app.parts.sampling is not None  # whether the settings are the person's, and not what the model's files recommend
        self._model: Sampling | None = None  # what they recommend

    @property
    def all(self) -> dict[str, Sampling]:
        """The presets by name: exltui's defaults, what the model's files recommend, those that ship, the person's own."""
        model = {"model": self._model} if self._model is not None else {}
        return {"default": Sampling(), **model, **self._app.parts.presets}

    def name_of(self, sampling: Sampling) -> str:
        """The preset that these settings are, or ""."""
        return next((name for name, preset in reversed(self.all.items()) if preset == sampling), "")

    def recommend(self, sampling: Sampling | None) -> None:
        """Another model is being loaded: what its files recommend holds, unless the person has settings of their own."""
        self._model = sampling
        default = sampling or Sampling()
        pane, before = self._app.main.sampler, self._app.dialogue.sampling
        pane.defaults = default
        if not self._own and before != default:
            self._app.dialogue.sampling = default
            pane.take(default)
            self._app.tell(f"The sampler is set as the model's files recommend: {difference(before, default)}.", "What you change stays.")
        self.show_name()

    def changed(self, sampling: Sampling) -> None:
        """The pane shows other settings. What differs from the model's is the person's own, and is kept."""
        self._app.dialogue.sampling = sampling
        self._own = sampling != self._app.main.sampler.defaults
        self._app.remember("sampling", sampling if self._own else None)
        self.show_name()

    def show_name(self) -> None:
        """Say below the pane whose settings these are."""
        sampling = self._app.dialogue.sampling
        if self._model is not None and sampling == self._model:
            name = "as the model's files say"
        elif sampling == Sampling():
            name = ""
        else:
            name = self.name_of(sampling) or "your own"
        self._app.main.sampler.border_subtitle = name

    def choose(self, name: str) -> None:
        """Apply a preset by name, or show them all with what each would change."""
        if name:
            self._apply(name)
            return
        now = self._app.dialogue.sampling

        def take(key: str | None) -> None:
            if key is not None and key.startswith("delete:"):
                self._delete(key.removeprefix("delete:"))
            elif key is not None:
                self._apply(key)

        choices = [
            Choice(name, name, {"default": "exltui", "model": "its files"}.get(name, ""), "●" * (preset == now), difference(now, preset))
            for name, preset in self.all.items()
        ]
        at = self.name_of(now)
        self._app.push_screen(PickScreen("Sampler presets", choices, at=at, keys={"delete": "delete"}), take)

    def _apply(self, name: str) -> None:
        preset = self.all.get(name)
        if preset is None:
            self._app.tell(f"There is no preset {one_line(name, 40)}.", f"There are {', '.join(self.all)}.", error=True)
            return
        before = self._app.dialogue.sampling
        self._app.main.sampler.take(preset)
        self._app.tell(f"{name}: {difference(before, preset)}")

    def _delete(self, name: str) -> None:
        def gone(was: bool) -> None:
            self._app.tell(f"Deleted {name}." if was else "Only your own presets can be deleted.")
            self.read()

        self._app.work_aside(lambda: delete_preset(name), gone, self._app.fail)

    def read(self) -> None:
        """Read the presets' files."""

        def take(found: tuple[dict[str, Sampling], list[SettingsError]]) -> None:
            presets, problems = found
            self._app.parts.presets = presets
            self.show_name()
            for problem in problems:
                self._app.fail(problem)

        self._app.work_aside(read_presets, take, self._app.fail)

    def save(self, name: str) -> None:
        """Keep the settings of the pane under a name."""

        def keep(text: str) -> None:
            sampling = self._app.dialogue.sampling
            self._app.work_aside(lambda: save_preset(text, sampling), saved, self._app.fail)

        def saved(file: Path) -> None:
            self._app.tell(f"Saved as {file}.")
            self.read()

        if name:
            keep(name)
        else:
            self._app.looks.ask("Name of the preset", keep)

    def order(self) -> None:
        """Put the sampler's stages into another order."""
        sampling = self._app.dialogue.sampling

        def take(order: str | None) -> None:
            if order is not None:
                self._app.main.sampler.take(replaced(self._app.dialogue.sampling, "order", order))

        self._app.push_screen(OrderScreen(stages(sampling)), take)

    def set_value(self, text: str) -> None:
        """One setting by name: ``top_k 40``."""
        name, _, value = text.strip().partition(" ")
        field = BY_NAME.get(name) or next((field for field in BY_NAME.values() if field.label == name), None)
        if field is None:
            self._app.tell(f"There is no sampler setting {one_line(name, 40) or '…'}.", f"There are {', '.join(BY_NAME)}.", error=True)
            return
        try:
            sampling = replaced(self._app.dialogue.sampling, field.name, field.parse(value))
        except SamplingError as error:
            self._app.fail(error)
        else:
            self._app.main.sampler.take(sampling)
            self._app.tell(f"{field.label}: {field.text(getattr(sampling, field.name))}")

    def bias(self, text: str) -> None:
        """Words with what is added to their scores; ``ban`` for never."""

        def take(answer: str | None) -> None:
            if answer is not None:
                try:
                    parse_bias(answer)
                except SamplingError as error:
                    self._app.fail(error)
                    return
                self._app.dialogue.revision.set_option("bias", answer.strip())
                self._app.tell(f"Bias: {one_line(answer, 80)}" if answer.strip() else "No bias.")

        now = self._app.dialogue.conversation.options.get("bias", "")
        if text:
            take("" if text == "off" else text)
        else:
            self._app.looks.ask("Bias and bans of this chat", take, now, 'delve=ban, moon=+2, " however"=-3', empty=True)


def read_presets() -> tuple[dict[str, Sampling], list[SettingsError]]:
    """All presets that can be read, and what is wrong with the others."""
    found: dict[str, Sampling] = {}
    problems: list[SettingsError] = []
    for name in preset_names():
        try:
            found[name] = read_preset(name)
        except SettingsError as error:
            problems.append(error)
    return found, problems
