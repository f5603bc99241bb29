"""Characters and system prompts as files: what they say, what is wrong with them, and that nothing of a bad one is lost."""

from __future__ import annotations

import base64
import json
import struct
import zlib

import pytest

from exltui.chat.characters import Character, file_of, read_character, read_characters, save_character
from exltui.errors import SettingsError

CARD = {"name": "Ada", "description": "{{char}} is a mathematician.", "personality": "precise", "first_mes": "Good day, {{user}}."}


def png(keyword: bytes, text: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"tEXt", keyword + b"\0" + text) + chunk(b"IEND", b"")


def test_markdown_is_a_system_prompt_with_or_without_a_head(tmp_path):
    (tmp_path / "plain.md").write_text("You are terse.\n")
    (tmp_path / "tutor.md").write_text(
        '+++\nname = "Tutor"\ngreeting = "Hi {{user}}"\n[variables]\nthinking = false\n+++\nYou are {{char}}.\n'
    )
    plain, tutor = read_characters(tmp_path)
    assert (plain.name, plain.system, plain.greeting) == ("plain", "You are terse.", "")
    assert (tutor.name, tutor.variables) == ("Tutor", {"thinking": False})
    assert tutor.named(tutor.system, "Bob") == "You are Tutor."
    assert tutor.named(tutor.greeting, "Bob\\1") == "Hi Bob\\1", "a name is a name, not a pattern"


def test_toml_has_the_same_keys(tmp_path):
    (tmp_path / "pirate.toml").write_text('system = """\nArr,\nmatey."""\ngreeting = "Ahoy"\n')
    (pirate,) = read_characters(tmp_path)
    assert (pirate.name, pirate.system, pirate.greeting) == ("pirate", "Arr,\nmatey.", "Ahoy")


@pytest.mark.parametrize("wrapped", [CARD, {"spec": "chara_card_v2", "data": CARD}], ids=["version 1", "version 2"])
def test_cards_of_other_programs(tmp_path, wrapped):
    (tmp_path / "a.json").write_text(json.dumps(wrapped))
    (tmp_path / "b.png").write_bytes(png(b"chara", base64.b64encode(json.dumps(wrapped).encode())))
    (tmp_path / "c.yaml").write_text(
        "name: Ada\ncontext: |-\n  {{char}} is a mathematician.\n\n  {{char}}'s personality: precise\ngreeting: Good day, {{user}}.\n"
    )
    for each in read_characters(tmp_path):
        assert each.name == "Ada", each.file
        assert each.named(each.system, "Bob") == "Ada is a mathematician.\n\nAda's personality: precise"
        assert each.named(each.greeting, "Bob") == "Good day, Bob."


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.md", b'+++\nname = "x"\ngreeting = 3\n+++\nText', "line 3: greeting must be a text in quotes"),
        ("a.md", b'+++\nname = "x"\nname = \n+++\nText', "line 3"),
        ("a.md", b'+++\nname = "x"\nText', "line 1: the head has no end"),
        ("a.toml", b'\nsystem = "x"\ncolour = "red"', "line 3: colour is not a key"),
        ("a.toml", b"\xff\xfe", "can't decode"),
        ("a.json", b'{"name": "x",\n"description": }', "line 2"),
        ("a.json", b"[]", "line 1: a card is an object"),
        ("a.json", b'{"description": 3}', "description is not a text"),
        ("a.yaml", b"name: x\ncontext: [", "line "),
        ("a.png", b"GIF89a", "it is no PNG"),
        ("a.png", png(b"comment", b"x"), "the picture holds no character"),
        ("a.png", png(b"chara", b"???"), "the character in the picture is damaged"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + b"\xff" * 9, "the picture holds no character"),
    ],
)
def test_a_bad_file_is_told_by_name_and_line(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.md").write_text("Good.")
    by_name = {each.name: each for each in read_characters(tmp_path)}
    assert by_name["good"].problem == ""
    assert by_name[name].problem.startswith(str(tmp_path / name))
    assert told in by_name[name].problem


def test_a_saved_character_is_the_same_when_it_is_read(tmp_path):
    for character in (
        Character("Plain", "You are terse."),
        Character("Tutor", "+++ begins it", "Hi\nthere", {"thinking": "on", "tools": [{"name": "f"}], "level": 3}),
    ):
        file = save_character(file_of(tmp_path, character.name), character)
        again = read_character(file)
        assert (again.name, again.system, again.greeting, again.variables) == (
            character.name, character.system, character.greeting, character.variables,
        )  # fmt: skip


def test_saving_overwrites_no_file_that_cannot_be_read_and_leaves_the_folder_alone(tmp_path):
    bad = tmp_path / "x.md"
    bad.write_text("+++\nhalf written")
    with pytest.raises(SettingsError, match="line 1"):
        save_character(tmp_path / "x.md", Character("x", "new"))
    assert bad.read_text() == "+++\nhalf written"
    for name in ("../x", "", "x.", "a/b", "x\ny"):
        with pytest.raises(SettingsError, match="cannot be the name"):
            file_of(tmp_path, name)
