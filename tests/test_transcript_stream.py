"""A reply drawn while it arrives ends up exactly as one drawn whole, and every repaint along the way is right."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exltui.app.transcript import fence
from exltui.app.transcript.body import Body
from exltui.app.transcript.code import Highlighter, find_lexer
from exltui.app.transcript.inline import PARSER, mend, spans
from exltui.app.transcript.palette import PLAIN
from exltui.app.transcript.scan import Scanner

ANSWER = (Path(__file__).parent / "data" / "answer.md").read_text(encoding="utf-8")

# Fragments out of which Markdown's decisions are made, so that random texts hit the places where one line changes another.
FRAGMENTS = st.sampled_from(
    [
        *(
            "a",
            "word ",
            "**",
            "*",
            "_",
            "`",
            "```",
            "```py\n",
            "~~~",
            "\n",
            "\n\n",
            "- ",
            "1. ",
            "2) ",
            "+ ",
            "* ",
            "  ",
            "    ",
            "> ",
        ),
        *("# ", "---\n", "===\n", "|", "a | b\n", "--|--\n", "[x](y)", "[a]: b\n", "<b>", "&amp;", "\\", "\t", "\r\n", "\x1b[1m"),
        *("日本", "e\u0301", "👩\u200d👧", "x = 1  # c\n", '"""'),
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=40).map("".join)


def drawn(body: Body) -> list[str]:
    return [repr(line) for line in body.lines(0, body.height)]


def whole(text: str, width: int = 40) -> list[str]:
    body = Body(text)
    body.draw(width, PLAIN)
    return drawn(body)


def stream(chunks: list[str], width: int = 40) -> list[str]:
    """Draw chunk by chunk, apply every reported change to a copy, and check the copy against the drawing."""
    body = Body("", closed=False)
    body.draw(width, PLAIN)
    screen: list[str] = []
    for number in range(len(chunks) + 1):
        if number < len(chunks):
            body.push(chunks[number])
        else:
            body.close()
        change = body.update()
        assert screen[change.first :] == [repr(line) for line in change.old], "a repaint starts from lines that are not on the screen"
        screen[change.first :] = [repr(line) for line in change.new]
        assert screen == drawn(body)
    return screen


def split(text: str, cuts: list[int]) -> list[str]:
    at = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(at)]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, st.lists(st.integers(0, 200), max_size=12))
def test_any_split_of_any_text_draws_the_same_lines(text: str, cuts: list[int]) -> None:
    assert stream(split(text, cuts)) == whole(text)


@pytest.mark.parametrize("size", [1, 3, 17, 400])
def test_a_long_answer_draws_the_same_in_portions_of(size: int) -> None:
    text = ANSWER[:3000] if size == 1 else ANSWER
    assert stream([text[at : at + size] for at in range(0, len(text), size)], 100) == whole(text, 100)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_no_line_is_wider_than_the_room(text: str) -> None:
    body = Body(text)
    body.draw(40, PLAIN)
    assert all(line.width <= 40 for line in body.lines(0, body.height)), text


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 200), max_size=12))
def test_pieces_do_not_depend_on_the_portions(text: str, cuts: list[int]) -> None:
    one, many = Scanner(), Scanner()
    one.push(text)
    for part in split(text, cuts):
        many.push(part)
        many.preview()
    one.close()
    many.close()
    assert one.pieces == many.pieces


def test_pieces_together_parse_as_the_whole_text_does() -> None:
    """Cutting changes nothing that CommonMark says about a usual answer: the leaves are the same in the same order."""
    scanner = Scanner()
    scanner.push(ANSWER)
    scanner.close()
    by_piece: list[tuple[str, str]] = []
    for piece in scanner.pieces:
        if piece.kind == "fence":
            by_piece.append(("fence", "\n".join(piece.lines) + "\n"))
        else:
            by_piece += [(token.type, token.content) for token in PARSER.parse("\n".join(piece.lines)) if token.nesting == 0]
    assert by_piece == [(token.type, token.content) for token in PARSER.parse(ANSWER) if token.nesting == 0]
    assert len(scanner.pieces) >= 30, "the answer is cut finely"


def test_the_open_piece_stays_small() -> None:
    """What is drawn again with each frame is the last item of a list, not the list."""
    body = Body("", closed=False)
    body.draw(60, PLAIN)
    sizes = []
    for number in range(300):
        body.push(f"- item **{number}** with some words\n")
        sizes.append(len(body.update().new))
    assert max(sizes) <= 3


def test_an_open_fence_of_2000_lines_redraws_few_of_them() -> None:
    body = Body("```python\n", closed=False)
    body.draw(60, PLAIN)
    most = 0
    for number in range(2000):
        body.push(f"value_{number} = compute({number})  # note\n")
        most = max(most, len(body.update().new))
    assert body.height == 2001
    assert most <= 25, "settled lines are not drawn again"


def test_code_within_a_list_item_is_not_highlighted_anew_with_each_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [0]
    draw = fence.draw_code_line
    monkeypatch.setattr(fence, "draw_code_line", lambda *given: drawn.__setitem__(0, drawn[0] + 1) or draw(*given))
    body = Body("1. Do:\n   ```python\n", closed=False)
    body.draw(60, PLAIN)
    for number in range(300):
        body.push(f"   value_{number} = compute({number})\n")
        body.update()
    assert body.height == 303
    assert drawn[0] < 300 * 25


def test_highlighting_is_a_function_of_the_text_alone() -> None:
    source = Path(__file__).read_text(encoding="utf-8").split("\n")
    one, many = Highlighter("python"), Highlighter("python")
    one.append(source)
    for line in source:
        many.append([line])
        many.open_lines("half a line")
    assert one.settled == many.settled
    assert one.open_lines() == many.open_lines()
    assert ["".join(text for text, _ in line) for line in [*one.settled, *one.open_lines()]] == source


@pytest.mark.parametrize(
    "language", ["python", "c", "cpp", "javascript", "rust", "go", "bash", "html", "json", "yaml", "sql", "diff", "toml"]
)
def test_highlighting_by_batches_keeps_the_text_and_most_looks(language: str) -> None:
    """Restarting in the middle is not allowed to lose a character, nor to colour differently than one pass over everything."""
    samples = {
        "python": 'class A:\n    """Doc\n    more."""\n\n    def f(self):\n        return """a\n  b""" + f"{1}"\n\n',
        "c": "/* a\n * b */\n#include <x.h>\nint main(void) {\n    if (a < 1) { return 'c'; }\n}\n",
        "javascript": "const a = `x\n ${b}`;\nfunction f() { return /re/g.test('x'); } // c\n",
        "html": "<div class='a'>\n<script>\nlet a = 1;\n</script>\n</div>\n",
        "json": '{"a": [1, true,\n "x"], "b": null}\n',
        "yaml": "a:\n  - b: 1\n  - 'c'\n",
        "bash": 'for i in a b; do\n  echo "$i" # c\ndone\n',
    }
    source = (samples.get(language, 'let x = 1;\nfn main() { return "a"; }\n-- c\n+added\n-gone\n') * 12).split("\n")
    highlighter = Highlighter(language)
    highlighter.append(source)
    lines = [*highlighter.settled, *highlighter.open_lines()]
    assert highlighter.settled, "something was settled"
    assert ["".join(text for text, _ in line) for line in lines] == source
    period = len(source) // 12
    assert lines[: period * 6][period:] == lines[period : period * 6]
    if language in ("python", "c", "javascript", "bash"):
        assert lines[period : 2 * period] == lines[8 * period : 9 * period], "the same code looks the same further down"


def test_a_language_that_nobody_knows_stays_plain() -> None:
    assert find_lexer("no-such-language") is None
    highlighter = Highlighter("no-such-language")
    highlighter.append(["def f(): pass"])
    assert highlighter.open_lines() == [(("def f(): pass", "code"),)]


def test_one_enormous_line_does_not_reach_the_lexer() -> None:
    highlighter = Highlighter("python")
    highlighter.append(["x" * 5000, "def f(): pass"])
    assert highlighter.open_lines()[0] == (("x" * 5000, "code"),)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a **bold", "a **bold**"), ("a **bold*", "a **bold**"), ("a **", "a "), ("a `co", "a `co`"), ("a `", "a "),
        ("a **b** c", "a **b** c"), ("`a**` b", "`a**` b"), ("~~go", "~~go~~"), ("``a`b", "``a`b``"), ("**x\n\n`y", "**x\n\n`y`"),
    ],
)  # fmt: skip
def test_open_marks_are_closed_while_text_arrives(text: str, mended: str) -> None:
    assert mend(text) == mended


def test_bold_text_is_bold_before_its_end_has_come() -> None:
    assert spans(mend("so **this is")) == (("so ", ()), ("this is", ("strong",)))
