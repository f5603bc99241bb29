"""Prompt formats by name, for models that come without a chat template. Data, and the ten lines that read it.

The strings are those of the model families' own templates; where those differ from what older programs send (a beginning-of-text
token on every turn, a newline before the end of the system prompt), the family's own are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Format:
    """How turns are written; ``{}`` is the text of one.

    ``begin`` stands once at the front. Without ``system``, the system prompt goes through ``system_in_user`` to the front of the
    first message of the user. ``opening`` is where the model goes on. ``stops`` end a reply. ``mark`` is a token by which a
    vocabulary shows that its model was trained so. ``strip``: take white space off the ends of every text.
    """

    name: str
    user: str
    assistant: str
    opening: str
    system: str = ""
    system_in_user: str = "{}\n\n"
    begin: str = ""
    stops: tuple[str, ...] = ()
    mark: str = ""
    strip: bool = False

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """The prompt for ``messages`` (``{"role", "content"}``), open for the reply."""
        parts, prefix = [self.begin], ""
        for message in messages:
            text = message["content"].strip() if self.strip else message["content"]
            if message["role"] == "system":
                if self.system:
                    parts.append(self.system.replace("{}", text))
                else:
                    prefix = self.system_in_user.replace("{}", text)
            elif message["role"] == "user":
                parts.append(self.user.replace("{}", prefix + text))
                prefix = ""
            else:
                parts.append(self.assistant.replace("{}", text))
        return "".join(parts) + self.opening


_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
_TURN = "<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>{}<|END_OF_TURN_TOKEN|>"
# The more telling a mark is, the earlier: <|end|> is in many vocabularies.
FORMATS = {
    form.name: form
    for form in (
        Format(
            "chatml",
            system="<|im_start|>system\n{}<|im_end|>\n",
            user="<|im_start|>user\n{}<|im_end|>\n",
            assistant="<|im_start|>assistant\n{}<|im_end|>\n",
            opening="<|im_start|>assistant\n",
            stops=("<|im_end|>",),
            mark="<|im_start|>",
        ),
        Format(
            "llama3",
            begin="<|begin_of_text|>",
            system=_HEADER.replace("{role}", "system") + "{}<|eot_id|>",
            user=_HEADER.replace("{role}", "user") + "{}<|eot_id|>",
            assistant=_HEADER.replace("{role}", "assistant") + "{}<|eot_id|>",
            opening=_HEADER.replace("{role}", "assistant"),
            stops=("<|eot_id|>",),
            mark="<|start_header_id|>",
            strip=True,
        ),
        Format(
            "gemma",
            begin="<bos>",
            user="<start_of_turn>user\n{}<end_of_turn>\n",
            assistant="<start_of_turn>model\n{}<end_of_turn>\n",
            opening="<start_of_turn>model\n",
            stops=("<end_of_turn>",),
            mark="<start_of_turn>",
            strip=True,
        ),
        Format(
            "mistral",
            begin="<s>",
            user="[INST] {} [/INST]",
            assistant=" {}</s>",
            opening="",
            stops=("</s>",),
            mark="[INST]",
        ),
        Format(
            "cohere",
            begin="<BOS_TOKEN>",
            system=_TURN.replace("{role}", "SYSTEM"),
            user=_TURN.replace("{role}", "USER"),
            assistant=_TURN.replace("{role}", "CHATBOT"),
            opening="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            stops=("<|END_OF_TURN_TOKEN|>",),
            mark="<|CHATBOT_TOKEN|>",
        ),
        Format(
            "granite3",
            system="<|start_of_role|>system<|end_of_role|>{}<|end_of_text|>\n",
            user="<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n",
            assistant="<|start_of_role|>assistant<|end_of_role|>{}<|end_of_text|>\n",
            opening="<|start_of_role|>assistant<|end_of_role|>",
            stops=("<|end_of_text|>",),
            mark="<|start_of_role|>",
        ),
        Format(
            "glm",
            begin="[gMASK]<sop>",
            system="<|system|>\n{}",
            user="<|user|>\n{}",
            assistant="<|assistant|>\n{}",
            opening="<|assistant|>\n",
            stops=("<|user|>", "<|endoftext|>"),
            mark="[gMASK]",
        ),
        Format(
            "phi3",
            system="<|system|>\n{}<|end|>\n",
            user="<|user|>\n{}<|end|>\n",
            assistant="<|assistant|>\n{}<|end|>\n",
            opening="<|assistant|>\n",
            stops=("<|end|>", "<|user|>"),
            mark="<|end|>",
        ),
        Format(
            "zephyr",
            system="<|system|>\n{}</s>\n",
            user="<|user|>\n{}</s>\n",
            assistant="<|assistant|>\n{}</s>\n",
            opening="<|assistant|>\n",
            stops=("</s>", "<|user|>"),
            mark="<|assistant|>",
        ),
        Format(
            "llama2",
            user="<s>[INST] {} [/INST]",
            assistant=" {} </s>",
            opening="",
            system_in_user="<<SYS>>\n{}\n<</SYS>>\n\n",
            stops=("</s>",),
            strip=True,
        ),
        Format(
            "deepseek",
            begin="<｜begin▁of▁sentence｜>",
            system="{}\n",
            user="### Instruction:\n{}\n",
            assistant="### Response:\n{}\n<|EOT|>\n",
            opening="### Response:\n",
            stops=("<|EOT|>", "### Instruction"),
        ),
        Format(
            "solar",
            begin="<s>",
            system="### System:\n{}\n\n",
            user="### User:\n{}\n\n",
            assistant="### Assistant:\n{}\n\n",
            opening="### Assistant:\n",
            stops=("</s>", "\n### User"),
        ),
        Format(
            "openchat",
            begin="<s>",
            system="{}<|end_of_turn|>",
            user="GPT4 Correct User: {}<|end_of_turn|>",
            assistant="GPT4 Correct Assistant: {}<|end_of_turn|>",
            opening="GPT4 Correct Assistant:",
            stops=("<|end_of_turn|>", "<|endoftext|>", "GPT4 Correct User:"),
        ),
        Format(
            "nous",
            begin="<s>",
            system="{}\n\n",
            user="USER:\n{}\n\n",
            assistant="ASSISTANT:\n{}</s>",
            opening="ASSISTANT:\n",
            stops=("</s>", "\nUSER:"),
        ),
        Format(
            "granite",
            system="System:\n{}\n\n",
            user="Question:\n{}\n\n",
            assistant="Answer:\n{}\n\n",
            opening="Answer:\n",
            stops=("\n\nQuestion:",),
        ),
        Format(
            "raw",
            system="{}\n",
            user="User: {}\n",
            assistant="Assistant: {}\n",
            opening="Assistant:",
            stops=("\nUser:", "\nUSER:", "\nuser:"),
        ),
        Format("text", system="{}\n\n", user="{}", assistant="{}", opening=""),  # nothing but the words: to write on, as in a notebook
        Format(
            "plain",
            system="{}\n\n",
            user="User: {}\n",
            assistant="Assistant: {}\n",
            opening="Assistant:",
            stops=("\nUser:",),
        ),
    )
}


# Those that are others under a name that people know, or but for one thing.
FORMATS |= {
    "codellama": replace(FORMATS["llama2"], name="codellama"),
    "tinyllama": replace(FORMATS["chatml"], name="tinyllama", mark=""),
    "qwq": replace(FORMATS["chatml"], name="qwq", mark="", opening="<|im_start|>assistant\n<think>\n"),
}


def guess(has_token: Callable[[str], bool]) -> Format:
    """The format whose mark is in a vocabulary; ``plain`` if there is none."""
    return next((form for form in FORMATS.values() if form.mark and has_token(form.mark)), FORMATS["plain"])
