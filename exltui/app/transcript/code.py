"""Highlighting code while it arrives: finished lines are settled in small batches and never looked at again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from pygments.lexer import ExtendedRegexLexer, Lexer, RegexLexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Token, _TokenType
from pygments.util import ClassNotFound

BATCH = 10  # lines: a settled line has seen this many lines after it, which is what rules over several lines get to look ahead
_FORCE = 200  # lines that may wait for the end of one long token
_LONG = 2000  # characters: a line longer than this stays plain (expressions of lexers can take quadratic time)
_EMPTY_MATCHES = 50  # in a row, before a lexer counts as stuck

Look = str
CodeLine = tuple[tuple[str, Look], ...]
Stack = tuple[str, ...]
ROOT: Stack = ("root",)

_LOOKS: dict[_TokenType, Look] = {
    Token.Keyword: "code-keyword",
    Token.Operator.Word: "code-keyword",
    Token.Name.Tag: "code-keyword",
    Token.Literal.String: "code-string",
    Token.Literal.Number: "code-number",
    Token.Literal.Date: "code-number",
    Token.Keyword.Constant: "code-number",
    Token.Comment: "code-comment",
    Token.Comment.Preproc: "code-builtin",
    Token.Name.Function: "code-name",
    Token.Name.Class: "code-name",
    Token.Name.Attribute: "code-name",
    Token.Name.Decorator: "code-builtin",
    Token.Name.Builtin: "code-builtin",
    Token.Name.Exception: "code-builtin",
    Token.Name.Variable: "code-builtin",
    Token.Keyword.Type: "code-builtin",
    Token.Error: "code",
    Token.Generic.Heading: "code-name",
    Token.Generic.Subheading: "code-name",
    Token.Generic.Inserted: "code-added",
    Token.Generic.Deleted: "code-removed",
    Token.Generic.Error: "code-wrong",
    Token.Generic.Prompt: "code-comment",
    Token.Generic.Output: "code-comment",
}


@lru_cache(maxsize=512)
def _look(kind: _TokenType) -> Look:
    while kind is not Token:
        if kind in _LOOKS:
            return _LOOKS[kind]
        kind = kind.parent
    return "code"


@lru_cache(maxsize=64)
def find_lexer(language: str) -> Lexer | None:
    """The lexer for the name after a fence; None for an unknown one (nothing is guessed)."""
    try:
        return get_lexer_by_name(language, stripnl=False) if language else None
    except ClassNotFound:
        return None


class Highlighter:
    """The looks of one code block, line by line. What it gives is a function of the text alone, not of how it arrived."""

    def __init__(self, language: str) -> None:
        self._lexer = find_lexer(language.lower())
        self._stack = ROOT
        self._waiting: list[str] = []
        self.settled: list[CodeLine] = []  # these never change again

    def append(self, lines: Sequence[str]) -> None:
        """Take in finished lines, without their newlines."""
        for line in lines:
            self._waiting.append(line)
            if len(self._waiting) >= 2 * BATCH and len(self._waiting) % BATCH == 0:
                self._settle()

    def open_lines(self, partial: str | None = None) -> list[CodeLine]:
        """The lines after the settled ones, as they look now; ``partial`` is a line that has no newline yet."""
        lines = self._waiting if partial is None else [*self._waiting, partial]
        return [line for line, _ in self._lex(lines)]

    def _settle(self) -> None:
        looks = self._lex(self._waiting)
        end = len(self._waiting) - BATCH
        while end > 0 and looks[end - 1][1] is None:
            end -= 1
        if end == 0 and len(self._waiting) >= _FORCE:
            end = len(self._waiting) - BATCH
        if end == 0:
            return
        self.settled += [line for line, _ in looks[:end]]
        self._stack = looks[end - 1][1] or self._stack
        del self._waiting[:end]

    def _lex(self, lines: list[str]) -> list[tuple[CodeLine, Stack | None]]:
        """Each line's looks, and the lexer's states at its end (None where a token goes on into the next line)."""
        if not lines:
            return []
        if self._lexer is None or max(map(len, lines)) > _LONG:
            return [(((line, "code"),) if line else (), ROOT) for line in lines]
        done: list[tuple[CodeLine, Stack | None]] = []
        line: list[tuple[str, Look]] = []
        for kind, value, stack in _tokens(self._lexer, "\n".join(lines) + "\n", self._stack):
            look = _look(kind)
            if "\n" not in value:
                line.append((value, look))
                continue
            first, *rest = value.split("\n")
            blank = not value.strip()
            for number, piece in enumerate(rest):
                if first:
                    line.append((first, look))
                done.append((_merge(line), stack if blank or (number == len(rest) - 1 and not piece) else None))
                line, first = [], piece
            if first:
                line.append((first, look))
        return done[: len(lines)]


def _merge(line: list[tuple[str, Look]]) -> CodeLine:
    """Neighbours of one look as one piece; blanks take the look of what is before them."""
    merged: list[tuple[str, Look]] = []
    for text, look in line:
        if merged and (look == merged[-1][1] or text.isspace()):
            merged[-1] = (merged[-1][0] + text, merged[-1][1])
        else:
            merged.append((text, look))
    return tuple(merged)


def _tokens(lexer: Lexer, text: str, stack: Stack) -> Iterator[tuple[_TokenType, str, Stack]]:
    """Tokens of ``text`` from a given state on, each with the states after it.

    Pygments can start in a given state but does not tell in which one it ended, so its state tables are walked here. Lexers that are
    no such tables (JSON, YAML, consoles) begin each batch anew; they work line by line.
    """
    if not isinstance(lexer, RegexLexer) or isinstance(lexer, ExtendedRegexLexer):
        for _, kind, value in lexer.get_tokens_unprocessed(text):
            yield kind, value, ROOT
        return
    table = lexer._tokens
    states = [state for state in stack if state in table] or list(ROOT)
    at, stuck = 0, 0
    while at < len(text):
        for match_at, action, change in table[states[-1]]:
            match = match_at(text, at)
            if match is None:
                continue
            stuck = stuck + 1 if match.end() == at else 0
            if stuck > _EMPTY_MATCHES:
                continue
            if change is not None:
                _change(states, change)
            if action is not None:
                after = tuple(states)
                if isinstance(action, _TokenType):
                    yield action, match.group(), after
                else:
                    yield from ((kind, value, after) for _, kind, value in action(lexer, match) if value)
            at = match.end()
            break
        else:
            if text[at] == "\n":
                states[:] = ROOT
            yield (Token.Text if text[at] == "\n" else Token.Error), text[at], tuple(states)
            at, stuck = at + 1, 0


def _change(states: list[str], change: str | int | tuple[str | int, ...]) -> None:
    """Apply what a rule says about the stack of states."""
    for step in change if isinstance(change, tuple) else (change,):
        if step == "#pop":
            step = -1
        if isinstance(step, int):
            del states[max(1, len(states) + step) :]
        else:
            states.append(states[-1] if step == "#push" else step)
