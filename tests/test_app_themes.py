"""Themes: those that ship are complete and readable, and a broken one is named with its key."""

from __future__ import annotations

import pytest
from textual.color import Color

from exltui import paths
from exltui.app.themes import find_themes, read_theme
from exltui.errors import SettingsError

SHIPPED, PROBLEMS = find_themes(paths.themes_dir())


def test_three_themes_ship_without_a_problem():
    assert not PROBLEMS
    assert {theme.name for theme in SHIPPED} >= {"dark", "light", "high-contrast"}


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.1."""
    parts = [part / 255 for part in Color.parse(colour).rgb]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", SHIPPED, ids=lambda theme: theme.name)
def test_text_of_every_colour_can_be_read_on_the_ground(theme):
    # WCAG 2.1: 4.5:1 is level AA for text, 7:1 is level AAA
    least = 7.0 if theme.name == "high-contrast" else 4.5
    for name in ("foreground", "primary", "secondary", "accent", "success", "warning", "error"):
        for ground in ("background", "surface"):
            ratio = contrast(getattr(theme, name), getattr(theme, ground))
            assert ratio >= least, f"{name} on {ground}: {ratio:.1f}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("primary = ", "Invalid value"),
        ('name = "x"', "primary is missing"),
        ('primary = "#12"', "primary is not a colour"),
        ("primary = 5", "primary is not a colour"),
        ('primary = "#123456"\nprimery = "#123456"', "primery is not a key"),
        ('primary = "#123456"\ndark = "yes"', "dark must be true or false"),
        ('primary = "#123456"\ntext_alpha = "x"', "text_alpha must be a number"),
        ('primary = "#123456"\n[variables]\nborder = "#zz"', "variables.border is not a colour"),
        ('primary = "#123456"\n[variables]\nborder = 1', "variables.border must be a text"),
    ],
)
def test_a_broken_theme_names_file_and_key(tmp_path, text, what):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_theme(path)
    assert what in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_a_theme_of_the_user_replaces_one_that_ships_and_a_broken_one_spoils_nothing(tmp_path):
    (tmp_path / "a.toml").write_text('name = "dark"\nprimary = "#ff0000"')
    (tmp_path / "b.toml").write_text("nonsense")
    themes, problems = find_themes(paths.themes_dir(), tmp_path, tmp_path / "missing")
    assert {theme.name: theme.primary for theme in themes}["dark"] == "#ff0000"
    assert len(problems) == 1
