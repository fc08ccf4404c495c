"""The text behind each token id, from a checkpoint's tokenizer.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llguidance import LLTokenizer

TOKENIZER_FILE = "tokenizer.json"
_MAX_FILE_BYTES = 256 * 1024 * 1024


class UnusableVocabulary(Exception):
    """The tokenizer is missing, broken, or of a kind whose tokens have no fixed text."""


@dataclass(frozen=True, slots=True)
class VocabularySource:
    """Where a vocabulary comes from. `vocab_size` is the model's, which may be larger than the tokenizer's.

    `eos_token_id` stands for all end-of-sequence ids: a mask allows it where the text is complete.
    """

    directory: Path
    vocab_size: int
    eos_token_id: int

    @property
    def exists(self) -> bool:
        """Whether there is a tokenizer at all."""
        return (self.directory / TOKENIZER_FILE).is_file()

    def load(self) -> LLTokenizer:
        """Read it: a second or so for a large vocabulary. Raises UnusableVocabulary."""
        path = self.directory / TOKENIZER_FILE
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise UnusableVocabulary(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableVocabulary(f"{path} cannot be read: {error}") from None
        if not text.lstrip().startswith("{"):
            raise UnusableVocabulary(f"{path} does not hold a JSON object")
        try:
            own = LLTokenizer(text, eos_token=self.eos_token_id)
            if own.vocab_size >= self.vocab_size:
                return own
            return LLTokenizer(text, n_vocab=self.vocab_size, eos_token=self.eos_token_id)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        # A panic of the library is a BaseException.
        except BaseException as error:
            raise UnusableVocabulary(f"{path}: {str(error).splitlines()[0][:300]}") from None
