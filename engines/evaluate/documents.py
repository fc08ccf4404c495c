"""Texts for measuring and calibrating: a plain text file, or JSON lines of text, messages or input_ids."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engines.checkpoint.json_file import require_regular_file
from engines.errors import CheckpointError, InvalidRequest, MalformedCheckpoint
from engines.fast_tokenizer import TOKENIZER_FILE, TokenizerUnusable, load_fast_tokenizer

_FIELDS = ("text", "messages", "input_ids")
_TEXT_LIMIT_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Document:
    """One text as token ids. `source` says where it comes from, e.g. "held-out.jsonl, line 3"."""

    source: str
    token_ids: tuple[int, ...]


class TextEncoder:
    """Texts and conversations to token ids, with the tokenizer and chat template of one checkpoint.

    The files are read when the first text needs them: input_ids need no tokenizer.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tokenizer: Any = None

    @property
    def available(self) -> bool:
        """Whether the checkpoint has a tokenizer at all."""
        return (self._directory / TOKENIZER_FILE).is_file()

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text, with what the tokenizer puts around one (BOS).

        Raises MalformedCheckpoint for the tokenizer, InvalidRequest for a text that is no Unicode.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_messages(self, messages: Sequence[Any]) -> tuple[int, ...]:
        """The ids of a whole conversation under the chat template, which writes BOS itself.

        Raises InvalidRequest when the template is missing or refuses the messages.
        """
        tokenizer = self._load()
        if not tokenizer.chat_template:
            raise InvalidRequest(
                f"{self._directory}: has no chat template, which `messages` need; use lines with `text`"
            )
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        # A template is a program of the checkpoint's author and can raise anything.
        except Exception as error:
            raise InvalidRequest(f"the chat template refuses the messages: {_one_line(error)}") from error
        return self._encode(text, add_special_tokens=False)

    def token_text(self, token_id: int) -> str | None:
        """A token's text for display; None when the checkpoint has no usable tokenizer."""
        try:
            return str(self._load().backend_tokenizer.decode([token_id], skip_special_tokens=False))
        except CheckpointError:
            return None

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the text has half of a surrogate pair at character {error.start}, which is no Unicode"
            ) from None
        encoding = self._load().backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def _load(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(self._directory)
        return self._tokenizer


def read_documents(path: Path, encoder: TextEncoder) -> Iterator[Document]:
    """The documents of `path`: each line of a .jsonl file is one, any other file is one as a whole.

    A line is an object with exactly one of `text`, `messages` and `input_ids`; other fields are ignored.
    Raises InvalidRequest naming the line, when the iterator reaches it.
    """
    if path.suffix == ".jsonl":
        yield from _read_lines(path, encoder)
        return
    _require_readable(path, _TEXT_LIMIT_BYTES)
    yield Document(path.name, encoder.encode(_read_text(path)))


def read_samples(
    path: Path, encoder: TextEncoder, *, num_samples: int, max_length: int, vocab_size: int
) -> list[tuple[int, ...]]:
    """The first `num_samples` lines of a JSON lines file for calibration, each cut to `max_length` ids.

    Raises InvalidRequest naming the line, also for one without tokens and for an id outside the vocabulary.
    """
    samples = []
    for document in islice(_read_lines(path, encoder), num_samples):
        if not document.token_ids:
            raise InvalidRequest(f"{document.source}: gives no tokens; expected at least one")
        cut = Document(document.source, document.token_ids[:max_length])
        check_token_ids([cut], vocab_size)
        samples.append(cut.token_ids)
    return samples


def _read_lines(path: Path, encoder: TextEncoder) -> Iterator[Document]:
    _require_readable(path)
    num_documents = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    num_documents += 1
                    yield _parse_line(f"{path.name}, line {number}", line, encoder)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    if num_documents == 0:
        raise InvalidRequest(f"{path}: holds no line; expected JSON objects with text, messages or input_ids")


def read_shared_documents(path: Path, a: TextEncoder, b: TextEncoder) -> Iterator[Document]:
    """The documents of `path` for two models whose tokenizers have to agree; one tokenizer is enough.

    Raises InvalidRequest, besides as `read_documents` does, where they make different tokens of a text.
    """
    if not (a.available and b.available):
        yield from read_documents(path, a if a.available else b)
        return
    for by_a, by_b in zip(read_documents(path, a), read_documents(path, b), strict=True):
        if by_a.token_ids != by_b.token_ids:
            raise InvalidRequest(
                f"{by_a.source}: the two checkpoints' tokenizers make different tokens of it; only models "
                "over the same tokens can be compared"
            )
        yield by_a


def check_token_ids(documents: Sequence[Document], vocab_size: int) -> None:
    """Raise InvalidRequest, naming the document, for an id outside the vocabulary."""
    for document in documents:
        wrong = next((token_id for token_id in document.token_ids if not 0 <= token_id < vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"{document.source}: token id {wrong} is outside the model's vocabulary of {vocab_size}; "
                "was the text made into tokens for another model?"
            )


def _require_readable(path: Path, limit_bytes: int | None = None) -> None:
    try:
        size = require_regular_file(path)
    except MalformedCheckpoint as error:
        raise InvalidRequest(str(error).replace("; is the download complete?", "")) from None
    if limit_bytes is not None and size > limit_bytes:
        raise InvalidRequest(f"{path}: has {size} bytes; split a text of more than {limit_bytes}")
    if not os.access(path, os.R_OK):
        raise InvalidRequest(f"{path}: may not be read; check its permissions")


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    if not text:
        raise InvalidRequest(f"{path}: is empty; expected text")
    return text


def _not_utf8(path: Path, error: UnicodeDecodeError) -> InvalidRequest:
    return InvalidRequest(f"{path}: is not UTF-8 ({error.reason}); expected a text file")


def _parse_line(source: str, line: str, encoder: TextEncoder) -> Document:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{source}: is not valid JSON: {error}") from None
    present = [name for name in _FIELDS if isinstance(value, dict) and name in value]
    if len(present) != 1:
        raise InvalidRequest(
            f"{source}: expected an object with exactly one of text, messages and input_ids; "
            f"got {', '.join(present) or 'none of them'}"
        )
    field = value[present[0]]
    if present[0] == "text":
        if not isinstance(field, str):
            raise InvalidRequest(f"{source}: text is {field!r:.60}; expected a string")
        return Document(source, _with_source(source, encoder.encode, field))
    if present[0] == "messages":
        if not isinstance(field, list) or not all(isinstance(message, dict) for message in field):
            raise InvalidRequest(f"{source}: messages is {field!r:.60}; expected a list of objects")
        return Document(source, _with_source(source, encoder.encode_messages, field))
    if not isinstance(field, list) or not all(type(token_id) is int for token_id in field):
        raise InvalidRequest(f"{source}: input_ids is {field!r:.60}; expected a list of token ids")
    return Document(source, tuple(field))


def _with_source(source: str, encode: Callable[[Any], tuple[int, ...]], value: Any) -> tuple[int, ...]:
    try:
        return encode(value)
    except InvalidRequest as error:
        raise InvalidRequest(f"{source}: {error}") from error


def _load_tokenizer(directory: Path) -> Any:
    try:
        tokenizer = load_fast_tokenizer(directory)
    except TokenizerUnusable as error:
        raise MalformedCheckpoint(
            f"{directory}: {error}; add the model's tokenizer files, or use JSON lines with input_ids"
        ) from error
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
