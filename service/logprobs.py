"""Log-probabilities in the API's two shapes: one entry a token for chat, parallel lists for completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from engines.request import TokenLogprob
from service.generation import TokenText
from service.tokenizer import Tokenizer

# JSON has no infinity; this is what other servers send for a token that cannot happen.
_LOWEST = -9999.0


def chat_entries(tokens: Sequence[TokenText], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Entries for `logprobs.content`; see `service.protocol.chat.TokenLogprobEntry`."""
    entries = []
    for token in tokens:
        if token.logprob is None:
            continue
        entry = _chat_entry(token.token_id, token.logprob.logprob, tokenizer)
        entry["top_logprobs"] = [_chat_entry(other, value, tokenizer) for other, value in token.logprob.top]
        entries.append(entry)
    return entries


def _chat_entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


class CompletionLists:
    """The parallel lists of a completion's log-probabilities; see `service.protocol.completions`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[str] = []
        self._token_logprobs: list[float | None] = []
        self._top_logprobs: list[dict[str, float] | None] = []
        self._text_offset: list[int] = []

    def add_prompt(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], offsets: Sequence[int]
    ) -> None:
        """Add an echoed prompt. Its first token has no log-probability, since nothing precedes it."""
        for token_id, logprob, offset in zip(token_ids, logprobs, offsets, strict=True):
            self._add(token_id, logprob, offset)

    def add_tokens(self, tokens: Sequence[TokenText], base_offset: int) -> None:
        """Add generated tokens; `base_offset` is where the generated text begins."""
        for token in tokens:
            self._add(token.token_id, token.logprob, base_offset + token.text_offset)

    def take(self) -> dict[str, Any]:
        """The lists so far; they are empty afterwards."""
        lists = {
            "tokens": self._tokens,
            "token_logprobs": self._token_logprobs,
            "top_logprobs": self._top_logprobs,
            "text_offset": self._text_offset,
        }
        self._tokens, self._token_logprobs, self._top_logprobs, self._text_offset = [], [], [], []
        return lists

    def _add(self, token_id: int, logprob: TokenLogprob | None, offset: int) -> None:
        text = self._tokenizer.token_text(token_id)
        self._tokens.append(text)
        self._text_offset.append(offset)
        if logprob is None:
            self._token_logprobs.append(None)
            self._top_logprobs.append(None)
            return
        self._token_logprobs.append(finite(logprob.logprob))
        # Two ids may have the same text: the likelier keeps the key.
        top: dict[str, float] = {}
        for other, value in (*logprob.top, (token_id, logprob.logprob)):
            top.setdefault(self._tokenizer.token_text(other), finite(value))
        self._top_logprobs.append(top)


def finite(logprob: float) -> float:
    """The value itself, or -9999.0 for what JSON cannot say."""
    return logprob if math.isfinite(logprob) else _LOWEST
