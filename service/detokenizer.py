"""Token ids to text while they are generated: every character is given out once, when it is final."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Protocol

from service.token_pieces import TokenPieces


class PieceSource(Protocol):
    """Where an `IncrementalDetokenizer` looks tokens up (a `Tokenizer`)."""

    @property
    def pieces(self) -> TokenPieces:
        """The rule for pieces."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids left out under `skip_special_tokens`."""

    @property
    def whole_texts(self) -> Mapping[int, str | None]:
        """For every id: its text in the middle of another, None where its bytes are no whole characters."""

    def piece(self, token_id: int, *, first: bool = False) -> bytes | None:
        """The bytes of a token, None for an id the tokenizer does not know."""


class IncrementalDetokenizer:
    """The text of one growing sequence of token ids. Not shared between sequences or threads.

    Guarantee: however the ids are divided into `push` calls, the texts returned, followed by that of
    `flush`, concatenate to what one call would have given. At most three bytes are ever held back, so a token
    costs the same after a million others, and a run of invalid bytes comes out as it goes in (as U+FFFD).

    `starts_text` is True when nothing visible precedes the ids. Only then is the space dropped that
    SentencePiece puts in front of a text's first word; a continuation keeps it ("... is" + " Paris").
    """

    def __init__(self, source: PieceSource, *, skip_special_tokens: bool, starts_text: bool) -> None:
        pieces = source.pieces
        self._source = source
        self._hidden = source.special_ids if skip_special_tokens else frozenset[int]()
        self._first = starts_text
        self._stripped = pieces.stripped
        self._num_strippable = pieces.num_stripped if starts_text else 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors=pieces.utf8_errors)
        self._num_characters = 0
        self._whole_texts = source.whole_texts
        self._is_between_characters = False  # in mid-text, no byte held back

    @property
    def num_characters(self) -> int:
        """How many characters have been returned so far, that is where the next token's text begins."""
        return self._num_characters

    def push(self, ids: Sequence[int]) -> str:
        """Add ids and return the text that became final. Ids the tokenizer does not know add nothing."""
        parts: list[bytes] = []
        for token_id in ids:
            if token_id in self._hidden:
                continue
            piece = self._source.piece(token_id, first=self._first)
            if piece is None:
                continue
            self._first = False
            parts.append(self._strip(piece) if self._num_strippable else piece)
        return self._decode(b"".join(parts), final=False)

    def push_token(self, token_id: int) -> str:
        """The same as `push((token_id,))`; most tokens are whole characters, and looked up."""
        if self._is_between_characters:
            text = "" if token_id in self._hidden else self._whole_texts[token_id]
            if text is not None:
                self._num_characters += len(text)
                return text
        return self.push((token_id,))

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for a character that was never completed, else nothing."""
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, *, final: bool) -> str:
        text = self._utf8.decode(data, final)
        in_text = not self._first and not self._num_strippable
        self._is_between_characters = in_text and not self._utf8.getstate()[0]
        self._num_characters += len(text)
        return text

    def _strip(self, piece: bytes) -> bytes:
        while self._num_strippable and piece.startswith(self._stripped):
            piece = piece[len(self._stripped) :]
            self._num_strippable -= 1
        if piece:
            self._num_strippable = 0
        return piece
