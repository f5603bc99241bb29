"""Frozen dataclasses of plain values from what JSON made of them."""

from __future__ import annotations

import dataclasses
import types
import typing


def build(cls: type, fields: dict) -> typing.Any:
    """``cls`` from its fields as JSON gives them. Raises TypeError for wrong names."""
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(hints[key], value) if key in hints else value for key, value in fields.items()})


def _value(hint: typing.Any, value: typing.Any) -> typing.Any:
    """``value`` as parsed from JSON, with dictionaries turned back into dataclasses and lists into tuples as ``hint`` says."""
    if value is None:
        return None
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return _value(next(a for a in typing.get_args(hint) if a is not type(None)), value)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value)
    if typing.get_origin(hint) is tuple:
        return tuple(_value(typing.get_args(hint)[0], item) for item in value)
    return value
