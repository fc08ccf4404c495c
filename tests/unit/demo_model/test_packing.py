"""Training rows of the demo models: text as the chat template writes it, items whole and side by side."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from examples.demo_model.corpus.exchange import chat_text
from examples.demo_model.corpus.mixture import Conversation, training_items
from examples.demo_model.packing import PROMPT_WEIGHT, Item, encode_item, pack, to_batch, training_batches
from examples.demo_model.tokenizer import BOS_ID, CONTEXT_SIZE, END_INST_ID, EOS_ID, INST_ID, train_tokenizer

SHIPPED = Path(__file__).parents[3] / "examples" / "demo_model" / "checkpoints" / "mistral-mxfp4"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


def test_the_shipped_tokenizer_is_the_one_the_corpus_gives(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(0).to_str() == tokenizer.to_str()


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("127 + 4096", add_special_tokens=False)
    assert [token for token in encoding.tokens if any(character.isdigit() for character in token)] == list(
        "1274096"
    )


@pytest.mark.parametrize(
    "text", ["What time is it?", "  two  spaces\n\ttab", "日本語 und Ærø 😀\x00", "12 34", ""]
)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_items_are_encoded_as_the_whole_text_is(tokenizer: Tokenizer) -> None:
    for item in itertools.islice(training_items(1), 200):
        if isinstance(item, Conversation):
            turns = [(turn.question, turn.answer) for turn in item.turns]
            text = chat_text(turns, item.system)
        else:
            text = f"<s>{item}</s>"
        encoded = encode_item(tokenizer, item)
        assert encoded.token_ids == tokenizer.encode(text, add_special_tokens=False).ids
        assert len(encoded.weights) == len(encoded.token_ids)
        assert encoded.token_ids[0] == BOS_ID
        assert encoded.token_ids[-1] == EOS_ID


def test_questions_count_little_and_answers_fully(tokenizer: Tokenizer) -> None:
    item = next(item for item in training_items(1) if isinstance(item, Conversation) and len(item.turns) == 2)
    encoded = encode_item(tokenizer, item)
    in_question = False
    for token_id, weight in list(zip(encoded.token_ids, encoded.weights, strict=True))[1:]:
        in_question = in_question or token_id == INST_ID
        assert weight == (PROMPT_WEIGHT if in_question else 1.0)
        in_question = in_question and token_id != END_INST_ID
    assert encoded.weights[0] == 0


def test_packing_keeps_every_item_whole() -> None:
    items = [Item([size] * size, [1.0] * size) for size in (5, 3, 7, 2, 8, 1, 11)]
    rows = pack(items, 10)
    assert [[len(item.token_ids) for item in row] for row in rows] == [[8, 2], [7, 3], [5, 1]]
    batch = to_batch(rows, 10)
    assert batch.token_ids.tolist()[2] == [5, 5, 5, 5, 5, 1, EOS_ID, EOS_ID, EOS_ID, EOS_ID]
    assert batch.segments.tolist()[2] == [0, 0, 0, 0, 0, 1, -1, -1, -1, -1]
    assert batch.weights.tolist()[2] == [1.0] * 6 + [0.0] * 4


def test_batches_are_full_and_the_same_each_time(tokenizer: Tokenizer) -> None:
    def first_batches() -> list[tuple[tuple[int, ...], bytes]]:
        batches = training_batches(tokenizer, 5, tokens=2048, length=256, long_every=3)
        return [(batch.token_ids.shape, batch.token_ids.tobytes()) for batch in itertools.islice(batches, 6)]

    batches = first_batches()
    assert batches == first_batches()
    rows, long_rows = (8, 256), (2, CONTEXT_SIZE)
    assert [shape for shape, _ in batches] == [rows, rows, long_rows, rows, rows, rows]
    batch = next(training_batches(tokenizer, 5, tokens=2048, length=256, long_every=99))
    assert (batch.segments >= 0).mean() > 0.97
