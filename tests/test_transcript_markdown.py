"""Every Markdown construct as text and looks, wrapped to the cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style

from exltui.app.transcript.body import Body
from exltui.app.transcript.inline import spans
from exltui.app.transcript.palette import PLAIN
from exltui.app.transcript.repaint import changed_cells
from exltui.app.transcript.table import fit_columns
from exltui.app.transcript.wrap import Line, break_text, chop, wrap


def rows(text: str, width: int = 40, *, markdown: bool = True) -> list[Line]:
    body = Body(text, markdown=markdown)
    body.draw(width, PLAIN)
    return body.lines(0, body.height)


def texts(text: str, width: int = 40) -> list[str]:
    return [line.text.rstrip() for line in rows(text, width)]


def looks(line: Line) -> list[tuple[str, str]]:
    """Text and the name of its innermost look; PLAIN carries the names along."""
    return [(segment.text, (segment.style.meta.get("look", "") if segment.style else "")) for segment in line.segments]


# ── inline ──


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", [("plain", "")]),
        ("**b** i", [("b", "strong"), (" i", "")]),
        ("*i*", [("i", "emphasis")]),
        ("~~s~~", [("s", "strike")]),
        ("`c **d**`", [("c **d**", "inline-code")]),
        ("**a `b`**", [("a ", "strong"), ("b", "inline-code")]),
        ("[t](http://x.y)", [("t", "link"), (" (http://x.y)", "target")]),
        ("<http://x.y>", [("http://x.y", "link")]),
        ("![alt](a.png)", [("[image: alt]", ""), (" (a.png)", "target")]),
        ("\\*not\\*", [("*not*", "")]),
        ("a &amp; b", [("a & b", "")]),
        ("<b>html</b>", [("<b>html</b>", "")]),
        ("\\(a_1 * b_1\\) x", [("\\(a_1 * b_1\\)", "math"), (" x", "")]),
        ("$$a_1*b*c$$", [("$$a_1*b*c$$", "math")]),
    ],
)
def test_inline(source: str, expected: list[tuple[str, str]]) -> None:
    merged: list[tuple[str, str]] = []
    for text, look in looks(rows(source)[0]):
        if merged and merged[-1][1] == look:
            merged[-1] = (merged[-1][0] + text, look)
        else:
            merged.append((text, look))
    assert merged == expected


def test_bold_in_a_heading_is_both() -> None:
    assert spans("a **b**") == (("a ", ()), ("b", ("strong",)))
    assert [name for _, name in looks(rows("# a **b**")[0])] == ["heading1", "strong"]


def test_looks_combine() -> None:
    style = type(PLAIN)({"": Style(color="red"), "a": Style(bold=True), "b": Style(color="blue")}).over(("a", "b"))
    assert style.bold
    assert style.color is not None
    assert style.color.name == "blue"


@pytest.mark.parametrize("target", ["javascript:alert(1)", "vbscript:x"])
def test_dangerous_links_are_no_links(target: str) -> None:
    assert all(look != "link" for _, look in looks(rows(f"[t]({target})")[0]))


# ── blocks ──


def test_headings_by_level() -> None:
    lines = rows("# One\n\n## Two\n\n##### Five\n\nSetext\n===\n")
    assert [looks(line)[0] for line in lines if line.segments] == [
        ("One", "heading1"),
        ("Two", "heading2"),
        ("Five", "heading3"),
        ("Setext", "heading1"),
    ]


def test_a_heading_stands_close_to_its_text() -> None:
    assert texts("Before\n# H\n\nAfter\n\nMore") == ["Before", "", "H", "After", "", "More"]


def test_line_breaks_stay() -> None:
    assert texts("Roses are red\nviolets are blue") == ["Roses are red", "violets are blue"]


def test_lists() -> None:
    assert texts("- a\n- b\n  - c\n    - d\n      - e\n* new") == ["• a", "• b", "  ◦ c", "    ▪ d", "      ▪ e", "• new"]
    assert texts("1. a\n2. b\n\n   more\n3. c") == ["1. a", "2. b", "", "   more", "3. c"]
    assert texts("1. a\n1. b\n1. c") == ["1. a", "2. b", "3. c"]
    assert texts("7) a\n8) b") == ["7. a", "8. b"]
    assert texts("1. a\n   - b\n   - c\n2. d") == ["1. a", "   ◦ b", "   ◦ c", "2. d"]
    assert texts("- x\n\n  9. a\n  10. b") == ["• x", "", "   9. a", "  10. b"]


def test_numbers_go_on_after_code_that_interrupts_the_list() -> None:
    assert texts("1. a\n\n```\nx\n```\n\n2. b")[-1] == "2. b"


def test_task_lists() -> None:
    assert texts("- [ ] open\n- [x] done") == ["☐ open", "☑ done"]


def test_blank_lines_between_items_are_as_in_the_source() -> None:
    assert texts("- a\n- b\n\n- c") == ["• a", "• b", "", "• c"]


def test_long_items_hang_under_their_text() -> None:
    assert texts("- one two three four", 10) == ["• one two", "  three", "  four"]
    lines = rows("- one two three four", 10)
    assert [(line.lead, line.join) for line in lines] == [(0, "\n"), (2, " "), (2, " ")]


def test_quotes() -> None:
    assert texts("> a\n> b\n>\n> - c") == ["▎ a", "▎ b", "▎", "▎ • c"]
    assert texts("> > deep") == ["▎ ▎ deep"]


def test_rules() -> None:
    assert texts("a\n\n---\n\nb", 10) == ["a", "", "─" * 10, "", "b"]


def test_tables() -> None:
    source = "| a | b | c |\n|:--|:-:|--:|\n| 1 | 2 | 3 |\n| long | x | 12345 |"
    assert texts(source) == ["a    │ b │     c", "─────┼───┼──────", "1    │ 2 │     3", "long │ x │ 12345"]
    assert looks(rows(source)[0])[0] == ("a", "strong")


def test_a_wide_table_wraps_its_cells() -> None:
    lines = texts("| name | text |\n|--|--|\n| x | some long words in a cell |\n| y | more |", 20)
    assert lines == [
        "name │ text",
        "─────┼──────────────",
        "x    │ some long",
        "     │ words in a",
        "     │ cell",
        "     │",
        "y    │ more",
    ]


def test_a_table_with_too_many_columns_becomes_records() -> None:
    source = "| aa | bb | cc |\n|--|--|--|\n| 1 | 2 | 3 |\n| 4 | 5 | 6 |"
    assert texts(source, 8) == ["aa: 1", "bb: 2", "cc: 3", "────────", "aa: 4", "bb: 5", "cc: 6"]


def test_a_table_with_missing_cells() -> None:
    assert texts("| a | b |\n|--|--|\n| 1 |") == ["a │ b", "──┼──", "1 │"]


@given(st.lists(st.integers(1, 80), min_size=1, max_size=6), st.integers(20, 120))
def test_columns_fit_and_nothing_is_wasted(natural: list[int], room: int) -> None:
    columns = fit_columns(list(natural), room)
    assert all(3 <= given_ or given_ == wanted for given_, wanted in zip(columns, natural, strict=True))
    assert sum(columns) <= max(room, 3 * len(natural))
    if sum(natural) > room and room >= 3 * len(natural):
        assert sum(columns) > room - len(natural), "what the narrow columns leave goes to the wide ones"


def test_code_blocks_have_a_label_a_number_and_their_own_ground() -> None:
    lines = rows("a\n```python title=x\ndef f(): # c\n```\nb", 30)
    assert [line.text.split() for line in lines] == [["a"], [], ["python", "[1]"], ["def", "f():", "#", "c"], [], ["b"]]
    assert [len(line.text) for line in lines[2:4]] == [30, 30], "the ground reaches over the whole width"
    assert [text for text, look in looks(lines[3]) if look == "code-keyword"] == ["def "]
    assert [text for text, look in looks(lines[3]) if look == "code-name"] == ["f"]
    assert [text.strip() for text, look in looks(lines[3]) if look == "code-comment"] == ["# c"]
    assert lines[2].lead < 0, "the label is not copied"


def test_code_blocks_are_counted_through_the_message() -> None:
    text = "\n".join(texts("```\na\n```\n- x\n  ```\n  b\n  ```\n\n~~~\nc\n~~~"))
    assert [f"[{number}]" in text for number in (1, 2, 3, 4)] == [True, True, True, False]


def test_an_open_fence_is_code_already() -> None:
    assert texts("```js\nlet a", 20) == [" js             [1]", " let a"]


def test_a_fence_keeps_what_looks_like_markdown() -> None:
    assert texts("````\n```\n# x\n- y\n````\nz", 20)[1:] == [" ```", " # x", " - y", "", "z"]


def test_long_code_lines_are_cut_and_copied_whole() -> None:
    lines = rows("```\n" + "x" * 25 + "\n```", 12)
    assert [line.text for line in lines[1:]] == [" xxxxxxxxxx ", "↪xxxxxxxxxx ", "↪xxxxx      "]
    assert [line.join for line in lines[1:]] == ["\n", "", ""]


def test_tabs_in_code_are_blanks() -> None:
    assert texts("```\n\tx\n```")[1] == "     x"


def test_indented_code() -> None:
    assert texts("a\n\n    code\n    more", 20) == ["a", "", " code           [1]", " code", " more"]


def test_references_are_shown_as_text() -> None:
    assert texts("see [1]\n\n[1]: http://x.y") == ["see [1]", "", "[1]: http://x.y"]


def test_messages_of_people_are_literal_but_for_fences() -> None:
    lines = [line.text.rstrip() for line in rows("# a\n * b\n```py\nx\n```\nc", 20, markdown=False)]
    assert lines == ["# a", " * b", "", " py             [1]", " x", "", "c"]


# ── hostile text ──


def test_escapes_are_shown() -> None:
    assert texts("a\x1b[31mred\x07") == ["a␛[31mred␇"]
    assert texts("```\n\x1b]0;title\x07\n```")[1] == " ␛]0;title␇"
    assert texts("`\x1b[1m`") == ["␛[1m"]
    assert texts("[\x1b[1m](http://a\x9bb)")[0].isprintable()


@pytest.mark.parametrize("entity", ["&#27;", "&#x9b;", "&#8238;", "&Tab;", "&NewLine;", "&#13;"])
def test_entities_smuggle_nothing(entity: str) -> None:
    lines = texts(f"a{entity}b")
    assert len(lines) == 1
    assert lines[0].isprintable() or "\ufffd" in lines[0]


@given(st.text(max_size=200))
def test_whatever_comes_is_drawn_without_control_characters(text: str) -> None:
    for line in rows(text, 30):
        assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in line.text)


def test_a_table_of_any_length_stays_one() -> None:
    lines = texts("| a | b |\n|--|--|\n" + "| some words | more words |\n" * 600, 60)
    assert len(lines) == 602
    assert lines[-1] == "some words │ more words"


def test_delimiters_that_do_not_end_cost_nothing() -> None:
    assert rows("a | b\n" + "-" * 3000 + "x\nc | d\n", 60)


def test_a_line_without_end_is_cut() -> None:
    lines = rows("word " * 5000, 80)
    assert sum(line.text.count("word") for line in lines) == 5000


def test_deep_nesting_stays_within_reason() -> None:
    """Deeper than anybody writes: nothing is lost, nothing breaks, and every row still fits."""
    stairs = "".join("  " * depth + "- x\n" for depth in range(300))
    for source in ("> " * 50 + "deep", "> " * 500 + "deep", "- " * 300 + "deep", stairs + "deep"):
        lines = rows(source, 40)
        assert "deep" in "".join(line.text for line in lines)


# ── wrapping ──


def test_words_wrap_and_blanks_at_the_cut_go() -> None:
    assert [text[a:b] for text in ["one two  three"] for a, b, _ in break_text(text, 7)] == ["one two", "three"]


def test_wide_signs_wrap_by_cells_and_keep_closing_marks() -> None:
    lines = wrap([("日本語の文章、長い。", Style.null())], 8)
    assert [line.text for line in lines] == ["日本語の", "文章、長", "い。"] or all(line.width <= 8 for line in lines)
    assert not any(line.text[0] in "、。" for line in lines)
    assert all(line.join == "" for line in lines[1:])


def test_joined_and_combining_signs_are_not_torn() -> None:
    family = "👩\u200d👩\u200d👧"
    lines = wrap([(family * 10, Style.null())], 7)
    assert "".join(line.text for line in lines) == family * 10
    assert all(not line.text.startswith("\u200d") and not line.text.endswith("\u200d") for line in lines)
    accents = wrap([("e\u0301" * 30, Style.null())], 10)
    assert all(not line.text.startswith("\u0301") for line in accents)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=120), st.integers(2, 30))
def test_wrapping_loses_nothing_but_blanks(text: str, width: int) -> None:
    lines = wrap([(text[: len(text) // 2], Style(bold=True)), (text[len(text) // 2 :], Style.null())], width)
    assert "".join("".join(line.text for line in lines).split()) == "".join(text.split())


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=80), st.integers(2, 20))
def test_chopping_loses_nothing(text: str, width: int) -> None:
    assert "".join(line.text for line in chop([(text, Style.null())], width)) == text


# ── repaint ──


def line(*parts: tuple[str, bool]) -> Line:
    return Line(tuple(wrap([(text, Style(bold=bold))], 200)[0].segments[0] for text, bold in parts))


@pytest.mark.parametrize(
    ("old", "new", "cells"),
    [
        (line(("abc", False)), line(("abc", False)), None),
        (line(("abc", False)), line(("abcd", False)), (3, 4)),
        (line(("abc", False)), line(("abc", True)), (0, 3)),
        (line(("a", True), ("bcd", False)), line(("a", True), ("bxd", False)), (2, 4)),
        (line(("long text", False)), line(("long", False)), (4, 9)),
        (line(("日本", False)), line(("日本語", False)), (0, 6)),
        (None, line(("ab", False)), (0, 2)),
        (line(("ab", False)), None, (0, 2)),
        (None, None, None),
    ],
)
def test_only_cells_that_differ_are_repainted(old: Line | None, new: Line | None, cells: tuple[int, int] | None) -> None:
    assert changed_cells(old, new) == cells


def test_widths_are_those_of_the_terminal() -> None:
    assert [cell_len(sign) for sign in ("a", "日", "e\u0301", "👩\u200d👩\u200d👧")] == [1, 2, 1, 2]
