"""Calibration samples: JSON lines with `text`, `messages` or `input_ids`, as lists of token ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from engines.fast_tokenizer import TokenizerUnusable, load_fast_tokenizer
from engines.quantize.errors import CalibrationError
from engines.quantize.options import CalibrationOptions

_KINDS = ("input_ids", "text", "messages")


def read_samples(options: CalibrationOptions, model_directory: Path, vocab_size: int) -> list[list[int]]:
    """The first `num_samples` samples of the file, each cut to `max_length` ids.

    Text goes through the model's own tokenizer.json, messages through its chat template. Empty lines are
    skipped. Raises CalibrationError, naming the line, for anything else.
    """
    tokenizers = _Tokenizers(model_directory)
    samples: list[list[int]] = []
    for number, line in _lines(options.file):
        if len(samples) == options.num_samples:
            break
        where = f"{options.file}, line {number}"
        ids = _token_ids(where, _parse(where, line), tokenizers)[: options.max_length]
        if not ids:
            raise CalibrationError(f"{where}: gives no tokens; expected at least one")
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise CalibrationError(
                f"{where}: token id {wrong} is outside the model's vocabulary of {vocab_size}; "
                "was the file made for another model?"
            )
        samples.append(ids)
    if not samples:
        raise CalibrationError(f"{options.file}: holds no samples; expected one JSON object a line")
    return samples


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise CalibrationError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _parse(where: str, line: str) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{where}: is not JSON: {error}") from None
    if not isinstance(sample, dict):
        raise CalibrationError(f"{where}: holds a JSON {type(sample).__name__}; expected an object")
    return sample


def _token_ids(where: str, sample: dict[str, Any], tokenizers: _Tokenizers) -> list[int]:
    kinds = [kind for kind in _KINDS if kind in sample]
    if len(kinds) != 1:
        raise CalibrationError(
            f"{where}: has {' and '.join(kinds) or f'the keys {sorted(sample)!r:.100}'}; "
            f"expected exactly one of {', '.join(_KINDS)}"
        )
    value = sample[kinds[0]]
    if kinds[0] == "input_ids":
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise CalibrationError(f"{where}: input_ids is {value!r:.100}; expected a list of integers")
        return list(value)
    if kinds[0] == "text":
        if not isinstance(value, str):
            raise CalibrationError(f"{where}: text is a {type(value).__name__}; expected a string")
        return tokenizers.text(value)
    try:
        return tokenizers.messages(value)
    except CalibrationError:
        raise
    except Exception as error:  # a chat template is a program and may raise anything
        raise CalibrationError(f"{where}: the model's chat template refuses the messages: {error}") from None


class _Tokenizers:
    """The model's tokenizer and its chat template, loaded when first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def text(self, text: str) -> list[int]:
        return list(self._encode_text(text))

    def messages(self, messages: Any) -> list[int]:
        return list(self._encode_messages(messages))

    @cached_property
    def _encode_text(self) -> Callable[[str], list[int]]:
        from tokenizers import Tokenizer

        path = self._directory / "tokenizer.json"
        if not path.exists():
            raise CalibrationError(f"{path}: is absent, and text needs it; give samples as input_ids")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CalibrationError(f"{path}: is no tokenizer ({error})") from None
        tokenizer.no_truncation()
        return lambda text: tokenizer.encode(text).ids

    @cached_property
    def _encode_messages(self) -> Callable[[Any], list[int]]:
        try:
            tokenizer = load_fast_tokenizer(self._directory)
        except TokenizerUnusable as error:
            raise CalibrationError(f"{error}; give samples as input_ids") from None
        if not tokenizer.chat_template:
            raise CalibrationError(
                f"{self._directory}: has no chat template, and messages need one; "
                "give samples as text or input_ids"
            )

        def encode(messages: Any) -> list[int]:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        return encode
