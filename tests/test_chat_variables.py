"""What a template is told besides the messages, and what it reads."""

from __future__ import annotations

import json

import pytest

from exltui.chat.template import OPENING, ChatTemplate, NamedTemplate
from exltui.chat.variables import from_table, others, parse_tools, parse_value, set_other, template_values, to_table, tool_names
from exltui.errors import SettingsError

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
TEMPLATE = """{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if not date_string is defined %}{% set date_string = "26 Jul 2024" %}{% endif %}{{ date_string }}
{%- if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}
{%- set ns = namespace(last=0) %}{%- for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}
{{- level | default("none") }}{{ bos_token }}{{ strftime_now("%Y") }}"""
ALTERNATING = """{% for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '[' ~ m.role ~ ']' ~ m.content }}{% endfor %}"""
USER = [{"role": "user", "content": "Hi"}]


def test_a_template_says_which_variables_it_reads():
    template = ChatTemplate(TEMPLATE, {"bos_token": "<s>"})
    assert template.variables == {"tools", "date_string", "enable_thinking", "level"}
    assert ChatTemplate("{{ messages }}{{ strftime_now('%Y') }}").variables == {"date_string"}
    assert NamedTemplate("chatml").variables == frozenset()


def test_what_a_chat_says_comes_out_of_the_template():
    template = ChatTemplate(TEMPLATE, {"bos_token": "<s>"})
    options = {"thinking": "off", "date": "2026-11-25", "tools": json.dumps([TOOL]), "variables": '{"level": 3}'}
    text = template.prompt(USER, **template_values(options))
    assert '"name": "weather"' in text
    assert "25 Nov 2026/no_think[user]Hi3<s>2026" in text
    plain = template.prompt(USER, **template_values({}))
    assert "26 Jul 2024[user]Hinone<s>" in plain


def test_a_character_says_them_as_a_table_and_a_chat_gives_it_back():
    table = {"thinking": "off", "date": "2026-11-25", "tools": [TOOL], "level": 3}
    options = from_table(table)
    assert to_table(options) == table
    assert from_table({"enable_thinking": True}) == {"thinking": "on"}
    assert tool_names(options["tools"]) == "weather"


def test_other_variables_are_set_and_taken_out_by_name():
    once = set_other({}, "level", parse_value("3"))
    assert others({"variables": once}) == {"level": 3}
    assert set_other({"variables": once}, "level", None) == ""
    assert parse_value("plain words") == "plain words"
    assert others({"variables": "no JSON"}) == {}


@pytest.mark.parametrize("text", ["{", "3", '["x"]'])
def test_tools_that_are_none_are_refused_in_a_sentence(text):
    with pytest.raises(SettingsError, match="tools: "):
        parse_tools(text)


def test_a_template_that_wants_the_person_to_begin_gets_a_word_before_a_first_reply():
    talk = [{"role": "assistant", "content": "Ahoy."}, *USER]
    strict = ChatTemplate(ALTERNATING)
    assert not strict.takes_opening
    assert strict.prompt(talk).split() == f"[user]{OPENING}[assistant]Ahoy.[user]Hi".split()
    free = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert free.takes_opening
    assert free.prompt(talk) == "[assistant]Ahoy.[user]Hi"
