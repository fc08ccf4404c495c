"""What the client sent, made into token ids: templates, tokenizer, checks against the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.chat_template import ChatTemplateError
from service.errors import BadRequest, ContextLengthExceeded
from service.protocol.chat import ChatCompletionRequest, ChatMessage
from service.protocol.completions import CompletionRequest
from service.state import LoadedModel

# No vocabulary has tokens that stand for more characters than this on average over a whole prompt.
_MAX_CHARACTERS_PER_TOKEN = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for the engine. `text` is what the client wrote, None if it sent ids."""

    token_ids: tuple[int, ...]
    text: str | None


def chat_prompt(model: LoadedModel, body: ChatCompletionRequest) -> Prompt:
    """Render the messages and tokenise them. Blocks: call it in a text thread.

    Raises ChatTemplateError, BadRequest.
    """
    if model.chat_template is None:
        raise ChatTemplateError(
            "this model has no chat template; send a plain prompt to /v1/completions instead"
        )
    kwargs = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", body.reasoning_effort)
    continuing = bool(body.continue_final_message)
    text = model.chat_template.render(
        [_template_message(message) for message in body.messages],
        add_generation_prompt=not continuing
        if body.add_generation_prompt is None
        else body.add_generation_prompt,
        continue_final_message=continuing,
        template_kwargs=kwargs,
    )
    return _tokenize(model, text, add_special_tokens=False, param="messages")


def completion_prompts(model: LoadedModel, body: CompletionRequest) -> list[Prompt]:
    """The prompts of a plain completion, one or many. Blocks: call it in a text thread.

    Raises BadRequest.
    """
    return [_prompt(model, item) for item in split_prompts(body.prompt)]


def split_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The separate prompts of the four forms the wire knows."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[token_id for token_id in prompt if isinstance(token_id, int)]]
    return [item for item in prompt if not isinstance(item, int)]


def _prompt(model: LoadedModel, item: str | list[int]) -> Prompt:
    if isinstance(item, str):
        return _tokenize(model, item, add_special_tokens=True, param="prompt")
    for token_id in item:
        if token_id >= model.info.vocab_size:
            raise BadRequest(
                f"Token id {token_id} is outside the vocabulary (ids 0 to {model.info.vocab_size - 1}).",
                param="prompt",
            )
    return Prompt(_non_empty(item, "prompt"), None)


def _tokenize(model: LoadedModel, text: str, *, add_special_tokens: bool, param: str) -> Prompt:
    check_unicode(text, param)
    if len(text) > (model.info.max_model_len + 1) * _MAX_CHARACTERS_PER_TOKEN:
        raise ContextLengthExceeded(
            f"This model's context holds {model.info.max_model_len} tokens; "
            f"a prompt of {len(text)} characters cannot fit.",
            param=param,
        )
    return Prompt(
        _non_empty(model.tokenizer.encode(text, add_special_tokens=add_special_tokens), param), text
    )


def check_unicode(text: str, param: str) -> None:
    """Raises BadRequest for a text that JSON can carry but Unicode does not know: half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"The text has half of a surrogate pair at character {error.start}; it is no valid Unicode.",
            param=param,
        ) from None


def _non_empty(token_ids: Sequence[int], param: str) -> tuple[int, ...]:
    if not token_ids:
        raise BadRequest("The prompt is empty; expected at least one token.", param=param)
    return tuple(token_ids)


def _template_message(message: ChatMessage) -> dict[str, Any]:
    """The message as templates expect it: they know "system", not OpenAI's newer name "developer"."""
    fields = message.model_dump(exclude_unset=True)
    fields.setdefault("content", None)
    if message.role == "developer":
        fields["role"] = "system"
    return fields
