"""GuidedDecodingParams, and the executor's use of it with the llguidance backend."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

_FIELDS: dict[str, Any] = {
    "json": None,
    "regex": None,
    "grammar": None,
    "json_object": False,
    "structural_tag": None,
}
BACKENDS = ("xgrammar", "llguidance")


def guided_decoding_class() -> type:
    """The class, the same in all releases: exactly one field has to be set."""

    def check(self: Any) -> None:
        given = [name for name, default in _FIELDS.items() if getattr(self, name) not in (None, default)]
        if len(given) != 1:
            raise ValueError(f"exactly one of {list(_FIELDS)} has to be set; got {given}")
        if given[0] != "json_object" and not isinstance(getattr(self, given[0]), str):
            raise TypeError(f"{given[0]} has to be a str here")

    fields = [(name, Any, dataclasses.field(default=default)) for name, default in _FIELDS.items()]
    return dataclasses.make_dataclass(
        "GuidedDecodingParams", fields, namespace={"__post_init__": check}, slots=True, kw_only=True
    )


class Guide:
    """What one sequence may continue with."""

    def __init__(self, params: Any, vocabulary: LLTokenizer, vocab_size: int) -> None:
        if params.json is not None:
            grammar = LLMatcher.grammar_from_json_schema(params.json)
        elif params.regex is not None:
            grammar = LLMatcher.grammar_from_regex(params.regex)
        else:
            assert params.grammar is not None, "json_object and structural_tag are not for this engine"
            grammar = LLMatcher.grammar_from_lark(params.grammar)
        self._matcher = LLMatcher(vocabulary, grammar, log_level=0)
        # The real executor would fail all that run with it.
        assert not self._matcher.is_error(), f"the runtime was given {self._matcher.get_error()}"
        self._vocab_size = vocab_size

    def mask(self) -> NDArray[np.bool_]:
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[: self._vocab_size]
        return np.pad(bits, (0, self._vocab_size - bits.size)).astype(np.bool_)

    def take(self, token_id: int) -> None:
        assert self._matcher.consume_token(token_id), self._matcher.get_error()


def read_vocabulary(model: Path, vocab_size: int) -> LLTokenizer:
    """The tokenizer of the model's directory."""
    text = (model / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = LLTokenizer(text)
    return LLTokenizer(text, n_vocab=max(vocab_size, tokenizer.vocab_size))
