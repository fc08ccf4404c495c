"""Text to token ids and back, for the tokenizer of one checkpoint. All use of transformers starts here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from engines.fast_tokenizer import TokenizerUnusable, load_fast_tokenizer
from service.detokenizer import IncrementalDetokenizer
from service.token_pieces import TokenPieces, UnsupportedDecoder, token_pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


class TokenizerError(Exception):
    """The tokenizer files of a checkpoint are missing, broken, or of a kind that cannot be served."""


class Tokenizer:
    """The tokenizer of a checkpoint. Immutable once loaded; every method may be called from any thread.

    Encoding releases the interpreter lock, so callers run it in a thread pool. Truncation and padding are
    switched off at load and never touched again: changing them while another thread encodes would fail.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        """Wrap a transformers fast tokenizer. Use `load`."""
        backend: Backend = hf_tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        self.hf_tokenizer = hf_tokenizer
        self._backend = backend
        decoder = orjson.loads(backend.to_str()).get("decoder")
        try:
            self._pieces = token_pieces(decoder)
        except UnsupportedDecoder as error:
            raise TokenizerError(f"tokenizer.json: {error}") from None
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self._middle: dict[int, bytes | None] = {}
        self._whole_texts = _WholeTexts(self.piece)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Load the tokenizer files in `directory`: no network, no code from the checkpoint.

        Raises TokenizerError.
        """
        try:
            return cls(load_fast_tokenizer(directory))
        except TokenizerUnusable as error:
            raise TokenizerError(str(error)) from error

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of `text`; `add_special_tokens` adds what the tokenizer adds around a text (BOS)."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole sequence of ids. Ids the tokenizer does not know add nothing.

        As transformers' `decode` without its clean-up of spaces, with one difference: in a run of
        SentencePiece byte tokens only the bytes that are invalid become U+FFFD, not the valid characters
        beside them too.
        """
        detokenizer = IncrementalDetokenizer(self, skip_special_tokens=skip_special_tokens, starts_text=True)
        return detokenizer.push(ids) + detokenizer.flush()

    def decode_with_offsets(self, ids: Sequence[int], *, skip_special_tokens: bool) -> tuple[str, list[int]]:
        """The text of `ids` as `decode` gives it, and where in it (in characters) each token's text begins.

        A token that begins or ends inside a character counts as beginning where that character does.
        """
        detokenizer = IncrementalDetokenizer(self, skip_special_tokens=skip_special_tokens, starts_text=True)
        parts: list[str] = []
        offsets: list[int] = []
        for token_id in ids:
            offsets.append(detokenizer.num_characters)
            parts.append(detokenizer.push((token_id,)))
        parts.append(detokenizer.flush())
        return "".join(parts), offsets

    def detokenizer(
        self, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> IncrementalDetokenizer:
        """A detokenizer for what follows `prompt_ids`.

        Its text is that of the continuation: what decoding prompt and continuation together would add to the
        prompt's text. So the first word's leading space is kept whenever the prompt has visible text.
        """
        hidden = self._special_ids if skip_special_tokens else frozenset[int]()
        visible = any(token_id not in hidden and self.piece(token_id) is not None for token_id in prompt_ids)
        return IncrementalDetokenizer(self, skip_special_tokens=skip_special_tokens, starts_text=not visible)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes a token adds in the middle of a text; empty for an unknown id."""
        return self.piece(token_id) or b""

    def token_text(self, token_id: int) -> str:
        r"""A token's text for display in log-probabilities; a part of a character reads `bytes:\xf0\x9f`."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def piece(self, token_id: int, *, first: bool = False) -> bytes | None:
        """A token's bytes, in the middle of a text or as its first token; None for an unknown id."""
        if not 0 <= token_id < self._vocab_size:
            return None
        if not first and token_id in self._middle:
            return self._middle[token_id]
        token: str | None = self._backend.id_to_token(token_id)
        if first:
            return None if token is None else self._pieces.first(token)
        piece = self._middle[token_id] = None if token is None else self._pieces.middle(token)
        return piece

    @property
    def whole_texts(self) -> Mapping[int, str | None]:
        """For every id: its text in the middle of another, None where its bytes are no whole characters."""
        return self._whole_texts

    @property
    def pieces(self) -> TokenPieces:
        """How this tokenizer's tokens turn into bytes."""
        return self._pieces

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return self._vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a sequence, if there is one."""
        return _optional_int(self.hf_tokenizer.bos_token_id)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokenizer's own end-of-sequence id; the engine may know more (`EngineInfo.eos_token_ids`)."""
        eos = _optional_int(self.hf_tokenizer.eos_token_id)
        return frozenset() if eos is None else frozenset((eos,))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, left out of a text under `skip_special_tokens`."""
        return self._special_ids

    @property
    def chat_template(self) -> str | None:
        """The source of the default chat template, if the checkpoint has one."""
        template = self.hf_tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        return None if template is None else str(template)


class _WholeTexts(dict[int, "str | None"]):
    """Filled as ids are asked for; an id the tokenizer does not know has no text."""

    def __init__(self, piece: Callable[[int], bytes | None]) -> None:
        super().__init__()
        self._piece = piece

    def __missing__(self, token_id: int) -> str | None:
        try:
            text = (self._piece(token_id) or b"").decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)
