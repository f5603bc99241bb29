"""Chat templates: the same text as transformers', no way out of the sandbox, no way to hang or fill the memory; and the named formats."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from exltui.chat import sandbox
from exltui.chat.formats import FORMATS, guess
from exltui.chat.template import ChatTemplate, NamedTemplate, load_template, special_tokens
from exltui.errors import TemplateError
from exltui.tokenizer import Tokenizer

# The styles that the model families write their templates in; not any model's own.
STYLES = {
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "headers": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" ~ system_message ~ "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "inst": """{%- if messages[0]["role"] == "system" %}
  {%- set system_message = messages[0]["content"] %}
  {%- set loop_messages = messages[1:] %}
{%- else %}
  {%- set loop_messages = messages %}
{%- endif %}
{{ bos_token }}
{% for message in loop_messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Roles must alternate user/assistant/user/assistant') }}
  {% endif %}
  {%- if message["role"] == "user" %}
    {%- if loop.last and system_message is defined %}
      {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
    {%- else %}
      {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- endif %}
  {%- elif message["role"] == "assistant" %}
    {{- " " + message["content"].strip() + eos_token }}
  {%- endif %}
{% endfor %}""",
    "no system": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    "silent about system": """{% for message in messages if message.role != 'system' %}<|{{ message.role }}|>
{{ message.content }}<|end|>
{% endfor %}<|assistant|>
""",
    "namespace, tools, backwards": """{%- set ns = namespace(last=-1, text='') %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last == -1 and message.role == "user" %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- for message in messages %}
    {%- if '</think>' in message.content %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}
        {%- set content = message.content %}
    {%- endif %}
    {{- loop.index0 ~ (' last ' if loop.index0 == ns.last else ' ') ~ content ~ '\\n' }}
{%- endfor %}
{{ messages | map(attribute='role') | join(',') | upper }} {{ {'a': '<é>'} | tojson }} {{ messages | selectattr('role', 'equalto', 'user')
| list | length }}""",
    "macros, loop controls, generation": """{% macro turn(role, text='') -%}
<{{ role }}>{{ text }}{{ caller() if caller else '' }}</{{ role }}>
{%- endmacro %}
{% for m in messages %}
    {% if m.content == 'skip' %}{% continue %}{% endif %}
    {% if m.content == 'halt' %}{% break %}{% endif %}
    {% generation %}
    {{ turn(m.role, m.content) }}
    {% endgeneration %}
    {% call turn('x') %}inner{% endcall %}
{% endfor %}
{{ "%s-%05.1f" | format("a", 2) }} {{ '{:>4}'.format(7) }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ [1] + [2] }} {{ 'ab' * 3 }}""",
}
CHATS = {
    "one": [{"role": "user", "content": "Hello  there\n"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi <b>&amp;</b> {{ 1 }} é"}],
    "long": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nanswer "},
        {"role": "user", "content": "skip"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "halt"},
    ],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **SPECIAL)


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("style", STYLES)
def test_same_as_transformers(reference: PreTrainedTokenizerFast, style: str, chat: str, generation: bool):
    template = ChatTemplate(STYLES[style], SPECIAL)
    try:
        expected = reference.apply_chat_template(CHATS[chat], chat_template=STYLES[style], tokenize=False, add_generation_prompt=generation)
    except sandbox.ERRORS as error:
        with pytest.raises(TemplateError, match=str(error)):
            template.render(CHATS[chat], add_generation_prompt=generation)
    else:
        assert template.render(CHATS[chat], add_generation_prompt=generation) == expected


def test_the_starter_models_own(starter_model: Path):
    reference = AutoTokenizer.from_pretrained(starter_model)
    template = load_template(Tokenizer(starter_model))
    assert (template.note, template.stop_strings) == ("", ())
    for chat in CHATS.values():
        assert template.prompt(chat) == reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def test_a_refusal_is_a_sentence():
    with pytest.raises(TemplateError, match="refuses this conversation: Roles must alternate") as caught:
        ChatTemplate(STYLES["inst"], SPECIAL).render(CHATS["two users"])
    assert caught.value.hint


@pytest.mark.parametrize("style", ["no system", "silent about system"])
def test_a_system_prompt_that_a_template_does_not_take_begins_the_first_message(style: str):
    template = ChatTemplate(STYLES[style], SPECIAL)
    assert not template.takes_system
    text = template.prompt(CHATS["system"])
    assert text.index("Be brief.") < text.index("Hi <b>")
    assert text.count("user") == 1
    assert "Be brief." in template.prompt(CHATS["system"][:1])


def test_a_template_that_takes_it_gets_it():
    template = ChatTemplate(STYLES["chatml"], SPECIAL)
    assert template.takes_system
    assert "system\n Be brief. <|im_end|>" in template.prompt(CHATS["system"])


def test_the_current_time_is_there():
    year = ChatTemplate("{{ strftime_now('%Y') }}").render(CHATS["one"])
    assert year == time.strftime("%Y")


@pytest.mark.parametrize("source", ["{% for %}", "{{ 1", "{% endif %}", "{% include 'x' %}{% bad %}", "{{ x | nofilter }}"])
def test_a_template_that_does_not_compile_is_a_sentence(source: str):
    with pytest.raises(TemplateError, match="does not compile") as caught:
        ChatTemplate(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content }}",
        "{{ 'a' + 1 }}",
        "{% include 'x' %}",
        "{{ raise_exception() }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_that_fails_is_a_sentence(source: str):
    with pytest.raises(TemplateError, match="fails") as caught:
        ChatTemplate(source).render(CHATS["one"])
    assert "\n" not in str(caught.value) and "chatml" in caught.value.hint


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ strftime_now.__globals__ }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ namespace.__init__.__globals__['sys'] }}",
        "{{ raise_exception.__code__.co_consts }}",
    ],
)
def test_there_is_no_way_out_of_the_sandbox(source: str):
    chat = [{"role": "user", "content": "x"}]
    try:
        text = ChatTemplate(source).render(chat)
    except TemplateError:
        text = ""
    assert text.strip() == "" and chat == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% for i in range(9) %}{{ m(n) if n else '' }}{% endfor %}{% endmacro %}{% for i in range(99999) %}"
        "{% for j in range(99999) %}{{ m(0) }}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**12 }}",
        "{{ 10**12 * 'x' }}",
        "{{ [1] * 99999999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'x'.center(10**11) }}",
        "{{ 'x' | center(10**11) }}",
        "{{ 'x' | indent(10**11) }}",
        "{{ '%*d' % (10**11, 1) }}",
        "{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set environment = 1 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ range(10**9) | list | length }}",
    ],
)
def test_hostile_templates_end_soon(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.2)
    begin = time.monotonic()
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(CHATS["one"])
    assert time.monotonic() - begin < 2  # 0.2 s, and what one step may take on a busy machine


def test_a_template_of_absurd_length_is_refused():
    with pytest.raises(TemplateError, match="characters long"):
        ChatTemplate("x" * (sandbox.MAX_SOURCE + 1))


def test_a_long_chat_is_quick():
    chat = [{"role": ("user", "assistant")[i % 2], "content": "word " * 50} for i in range(2000)]
    template = ChatTemplate(STYLES["headers"], SPECIAL)
    template.render(chat[:1])
    begin = time.monotonic()
    assert template.render(chat).count("word") == 100_000
    assert time.monotonic() - begin < 1  # some 20 ms alone on a core


# ── where templates come from ──


def model(directory: Path, *, config: dict | None = None, jinja: str = "", tokens: tuple[str, ...] = ()) -> Tokenizer:
    directory.mkdir(exist_ok=True)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.add_special_tokens(list(tokens))
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config or {}))
    if jinja:
        (directory / "chat_template.jinja").write_text(jinja)
    return Tokenizer(directory)


def test_the_file_wins_over_the_config(tmp_path: Path):
    template = load_template(model(tmp_path / "m", config={"chat_template": "config"}, jinja="file"))
    assert template.prompt(CHATS["one"]) == "file"


def test_the_list_form_gives_the_default_one(tmp_path: Path):
    listed = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default {{ bos_token }}"}]
    config = {"chat_template": listed, "bos_token": {"content": "<b>", "lstrip": False}}
    assert load_template(model(tmp_path / "m", config=config)).prompt(CHATS["one"]) == "default <b>"


def test_special_tokens_of_both_files(tmp_path: Path):
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<old>", "eos_token": {"content": "<e>"}, "list_tokens": ["a"]}')
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<new>", "pad_token": null, "add_bos_token": true}')
    assert special_tokens(tmp_path) == {"bos_token": "<new>", "eos_token": "<e>"}
    (tmp_path / "tokenizer_config.json").write_text("[broken")
    assert special_tokens(tmp_path)["bos_token"] == "<old>"


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (("<|im_start|>", "<|im_end|>"), "chatml"),
        (("<|start_header_id|>", "<|eot_id|>"), "llama3"),
        (("<start_of_turn>",), "gemma"),
        (("[INST]",), "mistral"),
        (("<|end|>", "<|user|>", "<|assistant|>"), "phi3"),
        ((), "plain"),
    ],
)
def test_without_a_template_the_vocabulary_decides(tmp_path: Path, tokens: tuple[str, ...], name: str):
    template = load_template(model(tmp_path / "m", tokens=tokens))
    assert template.name == name
    assert name in template.note and "no chat template" in template.note


def test_a_format_by_name(tmp_path: Path):
    tokenizer = model(tmp_path / "m", jinja="own")
    template = load_template(tokenizer, "zephyr")
    assert (template.name, template.note, template.stop_strings) == ("zephyr", "", ("</s>", "<|user|>"))
    assert template.takes_system and not load_template(tokenizer, "gemma").takes_system
    with pytest.raises(TemplateError, match="no prompt format nonsense") as caught:
        load_template(tokenizer, "nonsense")
    assert "chatml" in caught.value.hint


# ── the named formats ──


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("<|im_start|>", "chatml"), ("<|CHATBOT_TOKEN|>", "cohere"), ("<|start_of_role|>", "granite3"),
        ("<|assistant|>", "zephyr"), ("[INST]", "mistral"), ("", "plain"),
    ],
)  # fmt: skip
def test_a_format_is_guessed_by_the_vocabulary(token: str, name: str):
    assert guess(lambda mark: mark == token).name == name


def test_glm_is_not_taken_for_zephyr_whose_mark_it_has_too():
    assert guess(lambda mark: mark in ("[gMASK]", "<|assistant|>")).name == "glm"


DIALOGUE = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2 {}"},
]
EXPECTED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2 {}<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "U1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "U2 {}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
    "<start_of_turn>user\nU2 {}<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s>[INST] S\n\nU1 [/INST] A1</s>[INST] U2 {} [/INST]",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nU1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nU2 {}<|end|>\n<|assistant|>\n",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\nA1</s>\n<|user|>\nU2 {}</s>\n<|assistant|>\n",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s><s>[INST] U2 {} [/INST]",
    "codellama": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s><s>[INST] U2 {} [/INST]",
    "tinyllama": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2 {}<|im_end|>\n<|im_start|>assistant\n",
    "qwq": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2 {}<|im_end|>\n<|im_start|>assistant\n<think>\n",
    "cohere": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>U1<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A1<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>U2 {}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "granite3": "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U1<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>A1<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>U2 {}<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
    "glm": "[gMASK]<sop><|system|>\nS<|user|>\nU1<|assistant|>\nA1<|user|>\nU2 {}<|assistant|>\n",
    "deepseek": "<｜begin▁of▁sentence｜>S\n### Instruction:\nU1\n### Response:\nA1\n<|EOT|>\n### Instruction:\nU2 {}\n### Response:\n",
    "solar": "<s>### System:\nS\n\n### User:\nU1\n\n### Assistant:\nA1\n\n### User:\nU2 {}\n\n### Assistant:\n",
    "openchat": "<s>S<|end_of_turn|>GPT4 Correct User: U1<|end_of_turn|>GPT4 Correct Assistant: A1<|end_of_turn|>"
    "GPT4 Correct User: U2 {}<|end_of_turn|>GPT4 Correct Assistant:",
    "nous": "<s>S\n\nUSER:\nU1\n\nASSISTANT:\nA1</s>USER:\nU2 {}\n\nASSISTANT:\n",
    "granite": "System:\nS\n\nQuestion:\nU1\n\nAnswer:\nA1\n\nQuestion:\nU2 {}\n\nAnswer:\n",
    "raw": "S\nUser: U1\nAssistant: A1\nUser: U2 {}\nAssistant:",
    "text": "S\n\nU1A1U2 {}",
    "plain": "S\n\nUser: U1\nAssistant: A1\nUser: U2 {}\nAssistant:",
}


@pytest.mark.parametrize("name", FORMATS)
def test_named_formats(name: str):
    assert NamedTemplate(name).prompt(DIALOGUE) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"qwq"}))  # which opens thoughts that are not sent again
def test_an_earlier_conversation_is_the_beginning_of_the_later_one(name: str):
    """What the engine has in its cache after a reply is used for the next question."""
    first = NamedTemplate(name).prompt(DIALOGUE[:2])
    assert NamedTemplate(name).prompt(DIALOGUE).startswith(first)
