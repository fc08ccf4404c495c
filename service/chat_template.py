"""Chat messages to prompt text, by the checkpoint's own template in transformers' immutable sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.interruption import Interrupter, TookTooLong
from service.tokenizer import Tokenizer

RENDER_DEADLINE_SECONDS = 10.0
MAX_PROMPT_CHARACTERS = 16 * 1024 * 1024

# Arguments of transformers' apply_chat_template that belong to the service, not to `chat_template_kwargs`.
_RESERVED_KWARGS = frozenset({
    "conversation", "messages", "tools", "chat_template", "tokenize", "add_generation_prompt",
    "continue_final_message", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
})  # fmt: skip


class ChatTemplateError(Exception):
    """The messages cannot be made into a prompt. The text is meant for whoever sent them."""


class ChatTemplate:
    """The chat template of one checkpoint. Immutable; `render` may be called from several threads at once.

    A template is code from the checkpoint, run in a sandbox without access to Python, files or the network.
    Guaranteed: loops are interrupted after `deadline_seconds` (a single built-in operation under way is
    waited for), and then `render` raises; a prompt of more than `max_characters` is refused. Not bounded: the
    memory a template uses before that, so a checkpoint from an unknown hand belongs in a container with a
    memory limit.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        deadline_seconds: float = RENDER_DEADLINE_SECONDS,
        max_characters: int = MAX_PROMPT_CHARACTERS,
    ) -> None:
        self._tokenizer = tokenizer
        self._interrupter = Interrupter(deadline_seconds)
        self._max_characters = max_characters

    @classmethod
    def load(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The template that was loaded with `tokenizer`. Having none is an error only when one is needed."""
        return cls(tokenizer)

    @property
    def available(self) -> bool:
        """Whether the checkpoint has a chat template at all."""
        return bool(self._tokenizer.hf_tokenizer.chat_template)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text, to be encoded with `add_special_tokens=False` (the template writes BOS itself).

        Content given as OpenAI text parts is joined by newlines into one string first.
        Raises ChatTemplateError: no template, no messages, a part that is not text, a `template_kwargs` name
        that is not the template's to have, an error raised by or in the template, a limit exceeded.
        """
        if not self.available:
            raise ChatTemplateError(
                "this model has no chat template; send a plain prompt to /v1/completions, or add a "
                "chat_template.jinja to the checkpoint and restart the server"
            )
        if not messages:
            raise ChatTemplateError("`messages` is empty; expected at least one message")
        kwargs = dict(template_kwargs or {})
        if reserved := sorted(_RESERVED_KWARGS.intersection(kwargs)):
            raise ChatTemplateError(
                f"`chat_template_kwargs` must not contain {', '.join(reserved)}; "
                "use the request's own fields for them where it has them"
            )
        conversation = [_with_text_content(message, index) for index, message in enumerate(messages)]

        def render() -> str:
            text: str = self._tokenizer.hf_tokenizer.apply_chat_template(
                conversation,
                tools=None if tools is None else [dict(tool) for tool in tools],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **kwargs,
            )
            return text

        text = _rendered(render, self._interrupter)
        if len(text) > self._max_characters:
            raise ChatTemplateError(
                f"the chat template made a prompt of {len(text)} characters; "
                f"expected at most {self._max_characters}"
            )
        return text


def _with_text_content(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A copy of `message` with text parts joined, since templates of text models expect a string."""
    copy = dict(message)
    content = copy.get("content")
    if isinstance(content, (list, tuple)):
        copy["content"] = "\n".join(_part_text(part, f"messages[{index}].content") for part in content)
    return copy


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return str(part[kind])
    raise ChatTemplateError(
        f"{where} has a part of type {kind!r} that is not text; this model takes text only, "
        'as {"type": "text", "text": "..."}'
    )


def _rendered(function: Callable[[], str], interrupter: Interrupter) -> str:
    """What `function` returns; its errors, and its lasting too long, become ChatTemplateError."""
    try:
        return interrupter.run(function)
    except TookTooLong:
        raise ChatTemplateError(
            f"the chat template did not finish within {interrupter.seconds:g} seconds; "
            "shorten the conversation, or check the checkpoint's chat_template.jinja"
        ) from None
    # A template can fail in any way its data makes it fail: none of them is this server's failure.
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ChatTemplateError(f"the chat template cannot render these messages: {message}") from error
