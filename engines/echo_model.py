"""What the echo engine takes from a checkpoint it does not load: vocabulary, end of sequence, context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from engines.errors import MalformedCheckpoint


class ModelFacts(NamedTuple):
    """What requests are checked against."""

    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int


def read_model_facts(path: Path, defaults: ModelFacts) -> ModelFacts:
    """What `config.json` says; `defaults` for the vocabulary and context where it says nothing.

    Raises MalformedCheckpoint.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MalformedCheckpoint(
            f"{path} cannot be read: {error.strerror}; expected a model's config"
        ) from None
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpoint(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise MalformedCheckpoint(f"{path} holds {type(config).__name__}; expected a JSON object")
    eos = config.get("eos_token_id")
    eos_token_ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    facts = ModelFacts(
        vocab_size=config.get("vocab_size", defaults.vocab_size),
        eos_token_ids=frozenset(_whole(path, "eos_token_id", token_id, 0) for token_id in eos_token_ids),
        max_model_len=config.get("max_position_embeddings", defaults.max_model_len),
    )
    _whole(path, "vocab_size", facts.vocab_size, 1)
    _whole(path, "max_position_embeddings", facts.max_model_len, 1)
    return facts


def _whole(path: Path, name: str, value: object, minimum: int) -> int:
    if type(value) is not int or value < minimum:
        raise MalformedCheckpoint(f"{path}: {name} is {value!r}; expected a whole number >= {minimum}")
    return value
