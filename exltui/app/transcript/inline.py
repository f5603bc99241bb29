"""Text within a block: emphasis, code, links and maths as styled runs."""

from __future__ import annotations

import re
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from exltui.text import visible

Look = tuple[str, ...]  # names of styles, outermost first
Span = tuple[str, Look]

DEEPEST = 60  # levels of nesting that are parsed
_OPENS = {"strong_open": "strong", "em_open": "emphasis", "s_open": "strike"}
_MATHS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"))


def _maths(state: StateInline, silent: bool) -> bool:
    r"""An inline rule: ``\(..\)``, ``\[..\]`` and ``$$..$$`` are kept letter by letter, so that no emphasis is read into formulas."""
    for start, end in _MATHS:
        if state.src.startswith(start, state.pos):
            stop = state.src.find(end, state.pos + 2)
            if stop < 0 or stop + 2 > state.posMax:
                return False
            if not silent:
                state.push("maths", "", 0).content = state.src[state.pos : stop + 2]
            state.pos = stop + 2
            return True
    return False


def _parser() -> MarkdownIt:
    """CommonMark with tables and strikethrough, without HTML (it is shown) and without references (they act at a distance)."""
    parser = MarkdownIt("commonmark", {"maxNesting": DEEPEST})
    parser.enable(["table", "strikethrough"]).disable(["reference", "html_block", "html_inline"])
    parser.core.ruler.enableOnly(["normalize", "block"])
    parser.inline.ruler.before("escape", "maths", _maths)
    return parser


PARSER = _parser()


@lru_cache(maxsize=2048)
def spans(content: str) -> tuple[Span, ...]:
    """The text of one block as spans; a line break in the source stays one, as people mean it in a chat."""
    tokens: list[Token] = []
    PARSER.inline.parse(content, PARSER, {}, tokens)
    found: list[Span] = []
    looks: list[str] = []
    targets: list[tuple[str, int]] = []
    for token in tokens:
        if token.type in _OPENS:
            looks.append(_OPENS[token.type])
        elif token.type in ("strong_close", "em_close", "s_close"):
            looks.pop()
        elif token.type == "link_open":
            targets.append((str(token.attrs.get("href", "")), len(found)))
            looks.append("link")
        elif token.type == "link_close":
            looks.pop()
            target, start = targets.pop()
            if target not in ("".join(text for text, _ in found[start:]), "mailto:" + "".join(text for text, _ in found[start:])):
                found.append((f" ({_plain(target)})", (*looks, "target")))
        else:
            found.extend(_leaf(token, tuple(looks)))
    return tuple(found)


def _leaf(token: Token, looks: Look) -> list[Span]:
    if token.type in ("softbreak", "hardbreak"):
        return [("\n", looks)]
    if token.type == "code_inline":
        return [(_plain(token.content), (*looks, "inline-code"))]
    if token.type == "maths":
        return [(visible(token.content), (*looks, "math"))]
    if token.type == "image":
        return [(f"[image: {_plain(token.content)}]", looks), (f" ({_plain(str(token.attrs.get('src', '')))})", (*looks, "target"))]
    return [(_plain(token.content), looks)] if token.content else []


def _plain(text: str) -> str:
    """Text that an entity may have smuggled control characters or line breaks into."""
    return visible(text).replace("\n", " ").replace("\t", "    ")


_TICKS = re.compile(r"`+")


def mend(text: str) -> str:
    """Text that is still arriving with its open code and emphasis closed, so that its end does not change the looks of all of it."""
    start = text.rfind("\n\n") + 1
    tail = text[start:].rstrip(" ")
    ticks = ""  # of the code span that is open
    outside: list[str] = []
    at = 0
    for match in _TICKS.finditer(tail):
        if not ticks:
            outside.append(tail[at : match.start()])
            ticks = match.group()
        elif match.group() == ticks:
            ticks, at = "", match.end()
    if ticks:
        return text[:start] + (tail + ticks if not tail.endswith(ticks) else tail.removesuffix(ticks))
    outside.append(tail[at:])
    for mark in ("**", "~~"):
        if "".join(outside).count(mark) % 2:
            tail = tail.removesuffix(mark) if tail.endswith(mark) else tail.removesuffix(mark[0]) + mark
    return text[:start] + tail
