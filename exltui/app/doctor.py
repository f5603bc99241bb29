"""The template doctor: what a chat becomes for the model, with its special tokens, and whether that is sound."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from exltui.app import figures
from exltui.app.screens.sheet import heading
from exltui.chat import thinking
from exltui.chat.template import OPENING, ChatTemplate, Template
from exltui.errors import TemplateError
from exltui.text import one_line, visible
from exltui.tokenizer import Tokenizer

LONGEST = 20_000  # characters of the prompt that are shown, from its end
SPECIAL = "bold $accent"


def examine(prompt: str, tokenizer: Tokenizer, template: Template, texts: tuple[str, ...] = ()) -> Content:
    """A page about this prompt, which was made of messages with these ``texts``."""
    ids = tokenizer.encode(prompt)
    special = specials(ids, tokenizer)
    findings = [*check(prompt, ids, tokenizer, template), *check_texts(prompt, texts, sorted({tokenizer.piece(id) for id in special}))]
    lines = [
        Content.assemble(("template  ", "$text-muted"), template.name),
        Content.assemble(("tokens    ", "$text-muted"), figures.count(len(ids)), f", of them {len(special)} special"),
        Content(""),
        heading("Findings"),
        *(Content.assemble(("  ! ", "bold $warning"), text) for text in findings),
        *([] if findings else [Content.styled("  Nothing is wrong.", "$success")]),
        Content(""),
        heading("The prompt"),
    ]
    marks = sorted({tokenizer.piece(id) for id in special})
    return Content("\n").join([*lines, highlighted(visible(prompt[-LONGEST:]), marks)])


def check(prompt: str, ids: list[int], tokenizer: Tokenizer, template: Template) -> list[str]:
    """What is wrong with a prompt, a sentence each."""
    found = [template.note] if template.note else []
    bos = tokenizer.bos_id
    if bos is not None and ids[:2] == [bos, bos]:
        found.append("The prompt begins with the beginning-of-text token twice.")
    if bos is not None and tokenizer.adds_bos and ids[:1] != [bos]:
        found.append("The tokenizer asks for a beginning-of-text token, and the template writes none.")
    if isinstance(template, ChatTemplate):
        turn = [{"role": "user", "content": "x"}]
        try:
            if template.render(turn) == template.render(turn, add_generation_prompt=False):
                found.append("The template has no generation prompt: the model may go on with your message instead of answering it.")
        except TemplateError as error:
            found.append(str(error))
    if not template.takes_system:
        found.append("The template takes no system prompt; it goes to the front of the first message.")
    if OPENING in prompt and not template.takes_opening:
        found.append(f"The template wants the first word to be yours: “{OPENING}” stands before a chat that begins with a reply.")
    if (open_mark := unclosed(prompt)) and not thinking.opened(prompt):
        found.append(f"A thought is left open: {open_mark} without its end.")
    if tokenizer.decode(ids, special=True) != prompt:
        found.append("Decoding the tokens does not give the same text again.")
    return found


def check_texts(prompt: str, texts: Sequence[str], marks: Sequence[str]) -> list[str]:
    """What became of the messages: ``marks`` are the special tokens of the prompt."""
    found = []
    for number, text in enumerate(texts, 1):
        where = f"Message {number} (“{one_line(text, 40)}”)"
        if inside := [mark for mark in marks if mark in text]:
            found.append(f"{where} holds {', '.join(inside)}: the model takes that for the template's own.")
        if text.strip() not in prompt:
            found.append(f"{where} does not come out of the template as it was written.")
    return found


def unclosed(prompt: str) -> str:
    """The first mark of thoughts that is opened more often than closed in a prompt, or ""."""
    return next((start for start, end in thinking.TAGS if prompt.count(start) > prompt.count(end)), "")


def specials(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Those of ``ids`` that are special tokens: they are no text."""
    special = {id for id in set(ids) if not tokenizer.decode([id]) and tokenizer.piece(id)}
    return [id for id in ids if id in special]


def highlighted(text: str, marks: list[str]) -> Content:
    """``text`` with every one of ``marks`` in another colour."""
    content = Content(text)
    for mark in marks:
        start = text.find(mark)
        while mark and start >= 0:
            content = content.stylize(SPECIAL, start, start + len(mark))
            start = text.find(mark, start + len(mark))
    return content
