"""The demo models' own tokenizer: byte-level BPE, single digits, Mistral-style special tokens."""

from __future__ import annotations

import itertools
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from examples.demo_model.corpus.mixture import training_items

VOCAB_SIZE = 2048
CONTEXT_SIZE = 1024
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
UNKNOWN_ID, BOS_ID, EOS_ID, INST_ID, END_INST_ID = range(5)

_NUM_SAMPLES = 30_000


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """Learn the merges from the first items of the training corpus. Deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=[
            # the chat template writes a space before [/INST], which is no part of the message
            AddedToken(token, special=True, normalized=False, lstrip=token == "[/INST]")
            for token in SPECIAL_TOKENS
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample_texts(seed), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens; expected {VOCAB_SIZE}")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
    )
    return tokenizer


def _sample_texts(seed: int) -> list[str]:
    texts: list[str] = []
    for item in itertools.islice(training_items(seed), _NUM_SAMPLES):
        if isinstance(item, str):
            texts.append(item)
        else:
            # a leading space, because that is how the chat template sets a message off
            texts += [f" {text}" for turn in item.turns for text in (turn.question, turn.answer)]
    return texts


def tokenizer_config() -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    return {
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": CONTEXT_SIZE,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
