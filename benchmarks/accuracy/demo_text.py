"""Held-out token ids for the demo models, from the corpus that their trainer generates."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer

from examples.demo_model.corpus.mixture import (
    Conversation,
    conversation,
    held_out_documents,
    held_out_exchanges,
)
from examples.demo_model.packing import encode_item

_HELD_OUT_SEED = 30_000
_PER_TASK = 8
_NUM_CONVERSATIONS = 60
_NUM_DOCUMENTS = 40


def held_out_ids(master: Path, seed: int = _HELD_OUT_SEED) -> list[list[int]]:
    """Questions and documents that no training text holds, and conversations of a seed not trained on.

    Other seeds than the one the methods are compared on give more text of the same kinds.
    """
    tokenizer = Tokenizer.from_file(str(master / "tokenizer.json"))
    questions = [
        Conversation((exchange,), None)
        for exchanges in held_out_exchanges(seed, _PER_TASK).values()
        for exchange in exchanges
    ]
    source = random.Random(seed)
    conversations = [conversation(source) for _ in range(_NUM_CONVERSATIONS)]
    documents = held_out_documents(seed, _NUM_DOCUMENTS)
    items = [*questions, *conversations, *documents]
    return [encode_item(tokenizer, item).token_ids for item in items]
