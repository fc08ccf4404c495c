"""One request's way across the seam and back: token ids to the engine, text from what it returns."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from engines.base import Engine
from engines.errors import EngineDead
from engines.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    SequenceTiming,
    TokenLogprob,
    TokenOutput,
)
from service.admission.expiry import until_expired
from service.admission.ticket import Ticket
from service.admission.time_limits import Expired
from service.stop_strings import StopStringMatcher
from service.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A prompt in ids and how to continue it as text. `stop` strings must not be empty.

    `stop` is searched for only in the text of tokens after the first `sampling.min_tokens`. `with_tokens`
    False leaves `TextOutput.tokens` empty, which is cheaper.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    with_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenText:
    """One generated token of the answer.

    `text` is for display (`Tokenizer.token_text`); `text_offset` says where in the answer, in characters, the
    token's text begins (for part of a character: where the character does).
    """

    token_id: int
    text: str
    logprob: TokenLogprob | None
    text_offset: int = 0


# Not frozen although nobody changes it: one is made for every token, and freezing takes five times as long.
@dataclass(slots=True)
class TextOutput:
    """What was added to an answer. The last output, and only that one, has a `finish_reason`.

    `text` is final; the texts concatenate to the whole answer. `token_ids` (`num_new_tokens` of them) are all
    ids generated, in the order and at the time they came: also the end-of-sequence id, and those up to and
    including the one that completed a stop string. `tokens` are those of the answer itself, each exactly
    once, given with or after the beginning of its text and at the latest in the last output. Not among them:
    a hidden special token that ended the sequence, and tokens that lie wholly in a stop string cut off.
    `prompt_logprobs` come once, with the first output. `stop_reason` is the stop string that matched, or the
    id from `stop_token_ids`, or None. `timing` is the engine's, see `TokenOutput`.
    """

    text: str
    num_new_tokens: int
    tokens: tuple[TokenText, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None
    finish_reason: str | None
    stop_reason: str | int | None
    num_cached_tokens: int
    token_ids: tuple[int, ...]
    timing: SequenceTiming | None = None


# The `stop_reason` of an answer that a time limit ended; its `finish_reason` is "length".
CUT_SHORT = "timeout"

NOTHING_IN_TIME = TextOutput(
    text="",
    num_new_tokens=0,
    tokens=(),
    prompt_logprobs=None,
    finish_reason=FinishReason.LENGTH.value,
    stop_reason=CUT_SHORT,
    num_cached_tokens=0,
    token_ids=(),
)


async def generate_text(
    engine: Engine, tokenizer: Tokenizer, request: TextRequest, *, ticket: Ticket | None = None
) -> AsyncGenerator[TextOutput, None]:
    """Generate and yield text; one output for each of the engine's, even if its text is still held back.

    When a stop string is completed the engine's stream is closed, which aborts the sequence, before the last
    output is yielded. When a time limit of the `ticket` passes, the sequence is ended in the same way; if the
    request has generated nothing until then, the limit's error is raised. Closing this generator (or
    cancelling its task) closes the engine's as well.

    Raises what `Engine.generate` raises, and ValueError for an empty stop string.
    """
    assembler = _TextAssembler(tokenizer, request)
    generation = GenerationRequest(
        request_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        sampling=request.sampling,
        priority=request.priority,
    )
    async with aclosing(engine.generate(generation)) as outputs:
        limited = outputs if ticket is None or not ticket.limits.any else until_expired(ticket, outputs)
        try:
            async for output in limited:
                added = assembler.add(output)
                if added.finish_reason is not None:
                    break
                yield added
            else:
                raise EngineDead(
                    f"the engine ended the stream of request {request.request_id!r} without a reason"
                )
        except Expired:
            added = assembler.cut()
    yield added


class _TextAssembler:
    """Turns the token outputs of one sequence into text outputs."""

    def __init__(self, tokenizer: Tokenizer, request: TextRequest) -> None:
        self._tokenizer = tokenizer
        self._sampling = request.sampling
        self._detokenizer = tokenizer.detokenizer(request.prompt_token_ids, request.skip_special_tokens)
        self._matcher = StopStringMatcher(request.stop, request.include_stop_str_in_output)
        self._hidden = tokenizer.special_ids if request.skip_special_tokens else frozenset[int]()
        self._num_tokens = 0
        self._num_characters = 0  # given out, not counting what is held back
        self._pending: deque[TokenText] = deque()
        self._with_tokens = request.with_tokens
        self._is_plain = not (request.with_tokens or request.stop)

    def add(self, output: TokenOutput) -> TextOutput:
        """Take an output in. Without stop strings and token texts a token is but a look-up."""
        token_ids = output.token_ids
        if (
            self._is_plain
            and len(token_ids) == 1
            and output.finish_reason is None
            and output.prompt_logprobs is None
        ):
            text = self._detokenizer.push_token(token_ids[0])
            num_cached_tokens = output.num_cached_tokens
            return TextOutput(text, 1, (), None, None, None, num_cached_tokens, token_ids, output.timing)
        return self._add(output)

    def _add(self, output: TokenOutput) -> TextOutput:
        parts: list[str] = []
        matched: str | None = None
        num_consumed = 0
        for index, token_id in enumerate(output.token_ids):
            matched = self._add_token(token_id, output.logprobs[index] if output.logprobs else None, parts)
            num_consumed += 1
            if matched is not None:
                break
        ended = matched is None and output.finish_reason is not None
        if ended:
            matched = self._end(parts)
        text = "".join(parts)
        self._num_characters += len(text)
        token_ids = output.token_ids[:num_consumed]
        finish_reason: str | None = None
        stop_reason: str | int | None = None
        if matched is not None:
            finish_reason, stop_reason = FinishReason.STOP.value, matched
        elif output.finish_reason is not None:
            finish_reason = output.finish_reason.value
            stop_reason = self._stop_token(output)
        tokens = self._release(ended=ended and matched is None, reason=output.finish_reason)
        return TextOutput(
            text=text,
            num_new_tokens=num_consumed,
            tokens=tokens,
            prompt_logprobs=output.prompt_logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_cached_tokens=output.num_cached_tokens,
            token_ids=token_ids,
            timing=output.timing,
        )

    def cut(self) -> TextOutput:
        """The end of a sequence whose time is up: what was held back, no new tokens."""
        parts: list[str] = []
        self._end(parts)
        tokens = self._release(ended=True, reason=FinishReason.LENGTH)
        return replace(NOTHING_IN_TIME, text="".join(parts), tokens=tokens)

    def _add_token(self, token_id: int, logprob: TokenLogprob | None, parts: list[str]) -> str | None:
        """Take one token; returns the stop string it completes."""
        if self._with_tokens:
            offset = self._detokenizer.num_characters
            self._pending.append(TokenText(token_id, self._tokenizer.token_text(token_id), logprob, offset))
        self._num_tokens += 1
        return self._match(self._detokenizer.push_token(token_id), parts)

    def _match(self, text: str, parts: list[str]) -> str | None:
        if self._num_tokens <= self._sampling.min_tokens:
            parts.append(text)
            return None
        result = self._matcher.push(text)
        parts.append(result.text)
        return result.matched

    def _end(self, parts: list[str]) -> str | None:
        """Give out what is held back; an unfinished character's U+FFFD may still complete a stop string."""
        matched = self._match(self._detokenizer.flush(), parts)
        if matched is None:
            parts.append(self._matcher.flush())
        return matched

    def _stop_token(self, output: TokenOutput) -> int | None:
        if output.finish_reason is not FinishReason.STOP or not output.token_ids:
            return None
        last = output.token_ids[-1]
        return last if last in self._sampling.stop_token_ids else None

    def _release(self, *, ended: bool, reason: FinishReason | None) -> tuple[TokenText, ...]:
        """The pending tokens whose text has begun to be given out; all of them once the sequence ended."""
        if ended:
            released = list(self._pending)
            self._pending.clear()
            if reason is FinishReason.STOP and released and released[-1].token_id in self._hidden:
                released.pop()
            return tuple(released)
        released = []
        while self._pending and self._pending[0].text_offset < self._num_characters:
            released.append(self._pending.popleft())
        return tuple(released)
