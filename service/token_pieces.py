"""What each token contributes to the text, as bytes, read from the `decoder` of a tokenizer.json.

Working in bytes makes decoding incremental and exact: a text is the concatenation of its tokens' pieces,
and UTF-8 is decoded over the seams. Covered are the decoders of generative models (byte-level BPE;
SentencePiece with or without byte fallback; Metaspace; none at all); any other is refused by name.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Piece = Callable[[str], bytes]

REPLACE_SUBPARTS = "replace"
REPLACE_EACH_BYTE = "nybble_replace_each_byte"


class UnsupportedDecoder(Exception):
    """The tokenizer's decoder is of a kind whose text cannot be assembled token by token."""


@dataclass(frozen=True, slots=True)
class TokenPieces:
    """How a token's string turns into bytes.

    `middle` is a token's piece anywhere but at the start of a text; `first` is that of a text's first token.
    From the start of a text up to `num_stripped` bytes equal to `stripped` are dropped.
    `utf8_errors` is what becomes of invalid bytes, in the words of `codecs`.
    """

    middle: Piece
    first: Piece
    stripped: bytes = b" "
    num_stripped: int = 0
    utf8_errors: str = REPLACE_SUBPARTS


def token_pieces(decoder: Mapping[str, Any] | None) -> TokenPieces:
    """The rule that a tokenizer.json `decoder` object (None when there is none) stands for.

    Raises UnsupportedDecoder.
    """
    if decoder is None:
        # Without a decoder the library joins tokens by a space.
        return TokenPieces(middle=_after_space, first=_after_space, num_stripped=1)
    kind = decoder.get("type")
    if kind == "ByteLevel":
        return TokenPieces(middle=_byte_level, first=_byte_level)
    if kind == "Metaspace":
        return _metaspace(decoder)
    steps = _flatten(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds in (["ByteLevel"], ["Metaspace"]):
        return token_pieces(steps[0])
    return _sentencepiece(steps)


def _flatten(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder.get("decoders", ()) for step in _flatten(part)]


def _byte_level_alphabet() -> dict[str, int]:
    """The byte each character of a byte-level vocabulary stands for (GPT-2's map: printable bytes are
    themselves, the others are the characters from U+0100 on, in order)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHARACTER = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:  # an added token such as "<tool call>", kept as it is written
        return token.encode()


def _after_space(token: str) -> bytes:
    return b" " + token.encode()


def _metaspace(decoder: Mapping[str, Any]) -> TokenPieces:
    mark = str(decoder.get("replacement", "▁"))

    def middle(token: str) -> bytes:
        return token.replace(mark, " ").encode()

    def first(token: str) -> bytes:
        return token.replace(mark, "").encode()

    never = decoder.get("prepend_scheme", "always") == "never"
    return TokenPieces(middle=middle, first=middle if never else first)


def _sentencepiece(steps: Sequence[Mapping[str, Any]]) -> TokenPieces:
    """Replace, ByteFallback and Fuse in that order, each optional, then a Strip of the fused text's start."""
    replacements: list[tuple[str, str]] = []
    byte_fallback = fused = False
    stripped, num_stripped = b" ", 0
    for step in steps:
        kind = step.get("type")
        if kind == "Replace" and not (byte_fallback or fused) and "String" in step.get("pattern", {}):
            replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "ByteFallback" and not fused:
            byte_fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and not num_stripped and _strips_start_only(step):
            stripped, num_stripped = step["content"].encode(), int(step["start"])
        else:
            names = " -> ".join(str(other.get("type")) for other in steps)
            raise UnsupportedDecoder(
                f"the decoder step {kind!r} in {names} is not supported there; expected ByteLevel, "
                "Metaspace, or Replace, ByteFallback, Fuse, Strip(start) in that order"
            )

    def piece(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        if byte_fallback and (byte := _fallback_byte(token)) is not None:
            return bytes([byte])
        return token.encode()

    errors = REPLACE_EACH_BYTE if byte_fallback else REPLACE_SUBPARTS
    return TokenPieces(piece, piece, stripped=stripped, num_stripped=num_stripped, utf8_errors=errors)


def _strips_start_only(step: Mapping[str, Any]) -> bool:
    content = step.get("content", "")
    return len(content) == 1 and content.isascii() and step.get("stop", 0) == 0


def _fallback_byte(token: str) -> int | None:
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """A codecs error handler: one U+FFFD per invalid byte, as the ByteFallback decoder writes them."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(REPLACE_EACH_BYTE, _replace_each_byte)
