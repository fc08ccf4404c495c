"""Training rows: whole conversations and documents packed side by side, each seeing only itself."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from examples.demo_model.corpus.mixture import Conversation, long_conversation, training_items
from examples.demo_model.tokenizer import BOS_ID, CONTEXT_SIZE, EOS_ID

PROMPT_WEIGHT = 0.1  # what the user says counts a little, so that whole conversations have a fair perplexity

_ITEMS_PER_SHARD = 2_000


@dataclass(frozen=True, slots=True)
class Item:
    """Token ids of one conversation or document, and the weight of each as a target."""

    token_ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of equal length. token_ids int64 [rows, length]; weights float32 [rows, length], 0 for padding;
    segments int64 [rows, length], the number of the item within the row (attention stays inside an item)."""

    token_ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    segments: NDArray[np.int64]


def encode_item(tokenizer: Tokenizer, item: Conversation | str) -> Item:
    """Token ids as the chat template gives them; answers and documents have weight 1."""
    if isinstance(item, str):
        pieces = [(tokenizer.encode(item, add_special_tokens=False).ids, 1.0), ([EOS_ID], 1.0)]
    else:
        pieces = []
        for index, turn in enumerate(item.turns):
            instructions = f"{item.system}\n\n" if item.system is not None and index == 0 else ""
            prompt = f"[INST] {instructions}{turn.question} [/INST]"
            pieces.append((tokenizer.encode(prompt, add_special_tokens=False).ids, PROMPT_WEIGHT))
            pieces.append((tokenizer.encode(f" {turn.answer}</s>", add_special_tokens=False).ids, 1.0))
    token_ids, weights = [BOS_ID], [0.0]
    for ids, weight in pieces:
        token_ids += ids
        weights += [weight] * len(ids)
    return Item(token_ids, weights)


def pack(items: list[Item], length: int) -> list[list[Item]]:
    """Items put into rows of at most `length` tokens, longest first, each where it leaves the least room.

    Items longer than a row are left out.
    """
    rows: list[list[Item]] = []
    room_of: list[int] = []
    for item in sorted(items, key=lambda item: -len(item.token_ids)):
        size = len(item.token_ids)
        if size > length:
            continue
        fitting = [index for index, room in enumerate(room_of) if room >= size]
        if fitting:
            best = min(fitting, key=room_of.__getitem__)
            rows[best].append(item)
            room_of[best] -= size
        else:
            rows.append([item])
            room_of.append(length - size)
    return rows


def to_batch(rows: list[list[Item]], length: int) -> Batch:
    """Rows of items as arrays, padded with end-of-sequence tokens of weight 0 in a segment of their own."""
    batch = Batch(
        np.full((len(rows), length), EOS_ID, np.int64),
        np.zeros((len(rows), length), np.float32),
        np.full((len(rows), length), -1, np.int64),
    )
    for row, items in enumerate(rows):
        start = 0
        for number, item in enumerate(items):
            end = start + len(item.token_ids)
            batch.token_ids[row, start:end] = item.token_ids
            batch.weights[row, start:end] = item.weights
            batch.segments[row, start:end] = number
            start = end
    return batch


def training_batches(
    tokenizer: Tokenizer, seed: int, *, tokens: int, length: int, long_every: int
) -> Iterator[Batch]:
    """An endless stream of batches of `tokens` tokens in rows of `length`.

    Every `long_every`-th batch holds long conversations in rows of the whole context instead.
    """
    items = training_items(seed)
    order = random.Random(f"order {seed}")
    number = 0
    while True:
        shard = [encode_item(tokenizer, item) for item in itertools.islice(items, _ITEMS_PER_SHARD)]
        rows = pack(shard, length)
        order.shuffle(rows)
        size = tokens // length
        for start in range(0, len(rows) - size + 1, size):
            number += 1
            if number % long_every == 0:
                yield _long_batch(tokenizer, order, tokens // CONTEXT_SIZE)
            yield to_batch(rows[start : start + size], length)


def _long_batch(tokenizer: Tokenizer, source: random.Random, num_rows: int) -> Batch:
    rows: list[list[Item]] = []
    while len(rows) < num_rows:
        item = encode_item(tokenizer, long_conversation(source, source.randint(16, 28)))
        cut = CONTEXT_SIZE
        rows.append([Item(item.token_ids[:cut], item.weights[:cut])])
    return to_batch(rows, CONTEXT_SIZE)
