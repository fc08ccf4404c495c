"""Small tokenizers of every kind the service reads, written as the files a checkpoint would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = ("the", "capital", "of", "France", "is", "Paris", "wörld", "naïve")
BASIC_SPECIALS = ("<unk>", "<s>", "</s>")


def write_tokenizer(
    directory: Path,
    backend: Tokenizer,
    *,
    chat_template: str | None = None,
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    tokenizer_class: str = "PreTrainedTokenizerFast",
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": tokenizer_class, "bos_token": bos, "eos_token": eos}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def _special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that build each word from its characters, left to right."""
    merges = {(word[:end], word[end]): None for word in words for end in range(1, len(word))}
    return list(merges)


def _bpe(characters: list[str], words: list[str], specials: tuple[str, ...], **options: Any) -> models.BPE:
    merges = _merges(words)
    entries = dict.fromkeys([*specials, *characters, *("".join(pair) for pair in merges)])
    return models.BPE({token: index for index, token in enumerate(entries)}, merges, **options)


def byte_level(specials: tuple[str, ...] = BASIC_SPECIALS) -> Tokenizer:
    """GPT-2's scheme, as Mistral Nemo and Llama 3 have it; also two added tokens that are no byte strings."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    scheme = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [pair[0] for word in WORDS for pair in scheme.pre_tokenize_str(" " + word)]
    tokenizer = Tokenizer(_bpe(alphabet, words, specials))
    tokenizer.pre_tokenizer = scheme
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_special(*specials))
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False), AddedToken("✓done", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{specials[1]} $A", special_tokens=[(specials[1], 1)]
    )
    return tokenizer


def llama3() -> Tokenizer:
    """Byte-level BPE behind a splitting regular expression, with a block of reserved special tokens."""
    reserved = tuple(f"<|reserved_special_token_{index}|>" for index in range(200))
    named = ("<|unk|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
    tokenizer = byte_level((*named, "<|eot_id|>", *reserved))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _sentencepiece_model() -> models.BPE:
    letters = sorted({character for word in WORDS for character in word})
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"▁{word}" for word in WORDS]
    return _bpe(
        [*byte_tokens, "▁", *letters, "▁▁"], words, BASIC_SPECIALS,
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip


def sentencepiece(*, strips: bool = True) -> Tokenizer:
    """Llama 2's and Mistral 7B's scheme: a space before the text, byte fallback; Gemma's without `strips`."""
    tokenizer = Tokenizer(_sentencepiece_model())
    prepend = [normalizers.Prepend("▁")] if strips else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if strips else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(_special(*BASIC_SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace() -> Tokenizer:
    """SentencePiece as older conversions write it: a Metaspace decoder."""
    tokenizer = Tokenizer(_sentencepiece_model())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(_special(*BASIC_SPECIALS))
    return tokenizer


def words_without_decoder() -> Tokenizer:
    """Whole words and no decoder: the library joins them by spaces."""
    entries = [*BASIC_SPECIALS, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(entries)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(_special(*BASIC_SPECIALS))
    return tokenizer


KINDS = {
    "byte_level": byte_level,
    "llama3": llama3,
    "sentencepiece": sentencepiece,
    "gemma": lambda: sentencepiece(strips=False),
    "metaspace": metaspace,
    "words": words_without_decoder,
}


def write_kind(directory: Path, kind: str, *, chat_template: str | None = None) -> Path:
    bos, eos = ("<|begin_of_text|>", "<|eot_id|>") if kind == "llama3" else ("<s>", "</s>")
    return write_tokenizer(directory / kind, KINDS[kind](), chat_template=chat_template, bos=bos, eos=eos)
