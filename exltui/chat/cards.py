"""Character cards of other programs: JSON and PNG of TavernAI and SillyTavern (versions 1 to 3), YAML of text-generation-webui.

Each function gives the keys ``name``, ``system`` and ``greeting``, and raises ValueError that names the line where there is one.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"
CHUNKS = (b"ccv3", b"chara")  # the newer one first
# What programs before version 1 of the card called the same things.
OLDER = {
    "char_name": "name", "char_persona": "description", "char_greeting": "first_mes", "world_scenario": "scenario",
    "example_dialogue": "mes_example",
}  # fmt: skip


def read_json_card(data: bytes) -> dict[str, Any]:
    """A card as JSON."""
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    if isinstance(values, dict) and isinstance(values.get("data"), dict):
        values = values["data"]
    if not isinstance(values, dict):
        raise ValueError("line 1: a card is an object")
    return _character({OLDER.get(str(key), str(key)): value for key, value in values.items()})


def read_png_card(data: bytes) -> dict[str, Any]:
    """A card within a picture: its text chunk ``ccv3`` or ``chara``, which is JSON in base 64."""
    if not data.startswith(PNG):
        raise ValueError("it is no PNG")
    texts = dict(_texts(data))
    chunk = next((texts[name] for name in CHUNKS if name in texts), None)
    if chunk is None:
        raise ValueError("the picture holds no character")
    try:
        return read_json_card(base64.b64decode(chunk, validate=True))
    except binascii.Error as error:
        raise ValueError(f"the character in the picture is damaged: {error}") from error


def _texts(data: bytes) -> list[tuple[bytes, bytes]]:
    """Keyword and text of every tEXt chunk. https://www.w3.org/TR/png/#11tEXt"""
    found, at = [], len(PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"tEXt":
            keyword, _, text = data[at + 8 : at + 8 + length].partition(b"\0")
            found.append((keyword, text))
        at += 12 + length
    return found


def read_yaml_card(data: bytes) -> dict[str, Any]:
    """A character as YAML: ``name``, ``context``, ``greeting``."""
    import yaml

    try:
        values = yaml.safe_load(data.decode("utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise ValueError(f"line {line}: {error.problem or 'it is no YAML'}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"line 1: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("line 1: a character is a table of name, context and greeting")
    renamed = {"context": "description", "greeting": "first_mes", "bot": "name"}
    return _character({renamed.get(str(key), str(key)): value for key, value in values.items()})


def _character(card: dict[str, Any]) -> dict[str, Any]:
    """Our keys from a card's."""
    for key in ("name", "system_prompt", "description", "personality", "scenario", "mes_example", "first_mes"):
        if not isinstance(card.get(key) or "", str):
            raise ValueError(f"{key} is not a text")
    told = [
        ("system_prompt", ""),
        ("description", ""),
        ("personality", "{{char}}'s personality: "),
        ("scenario", "Scenario: "),
        ("mes_example", "How {{char}} talks:\n"),
    ]
    parts = [f"{before}{text.strip()}" for key, before in told if (text := card.get(key) or "").strip()]
    if not parts and not card.get("first_mes"):
        raise ValueError("it holds no character: neither a description nor a first message")
    return {"name": card.get("name") or "", "system": "\n\n".join(parts), "greeting": card.get("first_mes") or ""}
