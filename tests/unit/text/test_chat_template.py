"""Chat templates: what they render, what they refuse, and that a hostile one is stopped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from service.chat_template import ChatTemplate, ChatTemplateError
from service.tokenizer import Tokenizer
from tests.support.tokenizer_kinds import write_kind

MISTRAL = """{{ bos_token }}{% for turn in messages %}
{%- if (turn.role == 'user') != (loop.index0 is even) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if turn.role == 'user' %}{{ '[INST] ' + turn.content + ' [/INST]' }}
{%- else %}{{ turn.content + eos_token }}{% endif %}
{%- endfor %}"""
LOOP_BOMB = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


@pytest.fixture
def make(tmp_path: Path):
    def load(source: str | None, **limits: Any) -> ChatTemplate:
        directory = write_kind(tmp_path, "byte_level", chat_template=source)
        return ChatTemplate(Tokenizer.load(directory), **limits)

    return load


def test_golden_template(golden: Path) -> None:
    template = ChatTemplate.load(Tokenizer.load(golden / "mistral-mxfp4-ct"))
    assert template.available
    assert template.render([USER, ASSISTANT, USER]) == "<s>[INST] Hi [/INST] Hello</s>[INST] Hi [/INST]"


def test_template_in_a_file_of_its_own(tmp_path: Path) -> None:
    directory = write_kind(tmp_path, "byte_level")
    (directory / "chat_template.jinja").write_text(MISTRAL)
    template = ChatTemplate.load(Tokenizer.load(directory))
    assert template.render([USER]) == "<s>[INST] Hi [/INST]"


@pytest.mark.parametrize("messages", [[USER, USER], [ASSISTANT], [{"role": "system", "content": "x"}, USER]])
def test_roles_out_of_order(make, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(
        ChatTemplateError,
        match=r"these messages: Conversation roles must alternate user/assistant/user/assistant/\.\.\.$",
    ):
        make(MISTRAL).render(messages)


def test_rendered_prompt_is_encoded_with_one_bos(make) -> None:
    template = make(MISTRAL)
    ids = template._tokenizer.encode(template.render([USER]), add_special_tokens=False)
    assert ids.count(1) == 1
    assert ids[0] == 1


def test_text_parts_are_joined_and_the_request_is_left_alone(make) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert make(MISTRAL).render([message]) == "<s>[INST] a\nb [/INST]"
    assert message["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def test_control_characters_of_jinja_in_a_message_are_text(make) -> None:
    message = {"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}
    assert make(MISTRAL).render([message]) == "<s>[INST] {{ 7 * 7 }}{% raw %} [/INST]"


@pytest.mark.parametrize(
    ("part", "kind"),
    [({"type": "image_url", "image_url": {"url": "x"}}, "image_url"), ({"type": "text"}, "text"), (3, "int")],
)
def test_parts_that_are_not_text_are_refused(make, part: Any, kind: str) -> None:
    with pytest.raises(ChatTemplateError, match=rf"messages\[1\]\.content has a part of type '{kind}'"):
        make(MISTRAL).render([USER, {"role": "assistant", "content": [part]}])


def test_no_template(make) -> None:
    template = make(None)
    assert not template.available
    with pytest.raises(ChatTemplateError, match=r"/v1/completions.*chat_template\.jinja"):
        template.render([USER])


def test_no_messages(make) -> None:
    with pytest.raises(ChatTemplateError, match="`messages` is empty"):
        make(MISTRAL).render([])


def test_message_without_content(make) -> None:
    with pytest.raises(ChatTemplateError, match="content"):
        make(MISTRAL).render([{"role": "user"}])


def test_broken_template(make) -> None:
    with pytest.raises(ChatTemplateError, match="unexpected '}'"):
        make("{{ messages }").render([USER])


def test_template_variables(make) -> None:
    template = make("{{ 'thinking' if enable_thinking else 'direct' }}{{ '|>' if add_generation_prompt }}")
    assert template.render([USER]) == "direct|>"
    assert template.render([USER], template_kwargs={"enable_thinking": True}) == "thinking|>"
    assert template.render([USER], add_generation_prompt=False) == "direct"


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "messages", "continue_final_message"])
def test_reserved_variables_are_refused(make, name: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"`chat_template_kwargs` must not contain {name}"):
        make(MISTRAL).render([USER], template_kwargs={name: "x"})


@pytest.mark.parametrize("name", ["self", "conversations"])
def test_variables_that_collide_further_down_are_refused(make, name: str) -> None:
    with pytest.raises(ChatTemplateError, match=name):
        make(MISTRAL).render([USER], template_kwargs={name: "x"})


def test_continue_final_message(make) -> None:
    template = make(MISTRAL)
    prompt = template.render([USER, ASSISTANT], add_generation_prompt=False, continue_final_message=True)
    assert prompt == "<s>[INST] Hi [/INST]Hello"
    with pytest.raises(ChatTemplateError, match="not compatible"):
        template.render([USER, ASSISTANT], add_generation_prompt=True, continue_final_message=True)


def test_tools_reach_the_template(make) -> None:
    tool = {"type": "function", "function": {"name": "find"}}
    assert make("{{ tools[0].function.name if tools }}").render([USER], tools=[tool]) == "find"
    assert make("{{ tools[0].function.name if tools }}").render([USER]) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}{{ cycler.__init__.__globals__.os.popen('true') }}",
        "{{ messages.append(1) }}",
    ],
)
def test_the_sandbox_holds(make, source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"unsafe|undefined"):
        make(source).render([USER])


def test_a_loop_without_end_is_stopped_at_the_deadline(make) -> None:
    template = make(LOOP_BOMB, deadline_seconds=0.2)
    begin = monotonic()
    with pytest.raises(ChatTemplateError, match=r"did not finish within 0\.2 seconds"):
        template.render([USER])
    assert monotonic() - begin < 5
    with pytest.raises(ChatTemplateError, match=r"did not finish within 0\.2 seconds"):
        template.render([USER])


def test_too_large_a_range_is_refused(make) -> None:
    with pytest.raises(ChatTemplateError, match="Range too big"):
        make("{% for i in range(10**9) %}{% endfor %}").render([USER])


def test_too_large_a_prompt_is_refused(make) -> None:
    with pytest.raises(ChatTemplateError, match="a prompt of 1000 characters; expected at most 999"):
        make("{{ 'x' * 1000 }}", max_characters=999).render([USER])


def test_rendering_from_many_threads(make) -> None:
    template = make(MISTRAL)
    conversations = [[{"role": "user", "content": str(number)}] for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        prompts = list(pool.map(template.render, conversations))
    assert prompts == [f"<s>[INST] {number} [/INST]" for number in range(100)]
