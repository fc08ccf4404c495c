"""Loading tokenizers, encoding, and what single tokens are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from service.token_pieces import UnsupportedDecoder, token_pieces
from service.tokenizer import Tokenizer, TokenizerError
from tests.support.tokenizer_kinds import sentencepiece, write_kind, write_tokenizer

TEXT = "the capital of France is Paris"


def test_round_trip(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT, add_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT


def test_special_tokens_are_added_only_when_asked(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["golden"]
    bare = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.encode(TEXT, add_special_tokens=True) == [1, *bare]
    assert 1 not in bare


def test_facts_of_the_golden_tokenizer(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["golden"]
    assert tokenizer.vocab_size == 320
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.chat_template is not None
    assert "[INST]" in tokenizer.chat_template


def test_facts_of_a_llama3_tokenizer(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama3"]
    assert len(tokenizer.special_ids) == 206
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == {5}
    assert tokenizer.chat_template is None
    ids = tokenizer.encode("<|start_header_id|>Paris<|eot_id|>", add_special_tokens=False)
    assert (ids[0], ids[-1]) == (3, 5)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Paris"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|start_header_id|>Paris<|eot_id|>"


@pytest.mark.parametrize(
    ("kind", "token", "data", "text"),
    [
        ("byte_level", "Ġthe", b" the", " the"),
        ("byte_level", "ð", b"\xf0", r"bytes:\xf0"),
        ("byte_level", "</s>", b"</s>", "</s>"),
        ("byte_level", "<tool call>", b"<tool call>", "<tool call>"),
        ("byte_level", "✓done", "✓done".encode(), "✓done"),
        ("sentencepiece", "▁the", b" the", " the"),
        ("sentencepiece", "<0xF0>", b"\xf0", r"bytes:\xf0"),
        ("sentencepiece", "<0x0A>", b"\n", "\n"),
        ("sentencepiece", "ö", "ö".encode(), "ö"),
        ("metaspace", "▁the", b" the", " the"),
    ],
)
def test_token_bytes_and_text(
    tokenizers: dict[str, Tokenizer], kind: str, token: str, data: bytes, text: str
) -> None:
    tokenizer = tokenizers[kind]
    token_id = tokenizer.hf_tokenizer.backend_tokenizer.token_to_id(token)
    assert tokenizer.token_bytes(token_id) == data
    assert tokenizer.token_text(token_id) == text


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**70])
def test_unknown_ids_have_no_text(tokenizer: Tokenizer, token_id: int) -> None:
    assert tokenizer.token_bytes(token_id) == b""
    assert tokenizer.token_text(token_id) == ""
    assert tokenizer.decode([token_id], skip_special_tokens=False) == ""


def test_llama_tokenizer_class_is_read_alike(tmp_path: Path) -> None:
    """transformers rebuilds this class's decoder itself instead of taking that of tokenizer.json."""
    directory = write_tokenizer(tmp_path / "llama", sentencepiece(), tokenizer_class="LlamaTokenizerFast")
    tokenizer = Tokenizer.load(directory)
    ids = tokenizer.encode(TEXT + " 😀", add_special_tokens=True)
    assert ids[0] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT + " 😀"


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    backend = sentencepiece()
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "cut", backend))
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=True), skip_special_tokens=True) == TEXT
    assert len(tokenizer.encode(TEXT, add_special_tokens=True)) < 64


def test_encoding_from_many_threads(tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode(TEXT, add_special_tokens=True)
    with ThreadPoolExecutor(8) as pool:
        for flag in (True, False) * 100:
            pool.submit(tokenizer.encode, TEXT, add_special_tokens=flag)
        results = list(pool.map(lambda _: tokenizer.encode(TEXT, add_special_tokens=True), range(200)))
    assert all(ids == expected for ids in results)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json in .*save_pretrained"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe", b'{"model": {"type": "Magic"}}'])
def test_broken_tokenizer_file(tmp_path: Path, content: bytes) -> None:
    directory = write_kind(tmp_path, "byte_level")
    (directory / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match="cannot load the tokenizer in"):
        Tokenizer.load(directory)


def test_broken_configuration_file(tmp_path: Path) -> None:
    directory = write_kind(tmp_path, "byte_level")
    (directory / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot load the tokenizer in"):
        Tokenizer.load(directory)


def test_code_of_the_checkpoint_is_not_run(tmp_path: Path) -> None:
    directory = write_kind(tmp_path, "byte_level")
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="cannot load the tokenizer in"):
        Tokenizer.load(directory)
    assert not (tmp_path / "ran").exists()


def test_unsupported_decoder_is_named(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, "<unk>"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json: the decoder step 'WordPiece'.*expected ByteLevel"
    ):
        Tokenizer.load(write_tokenizer(tmp_path / "wordpiece", backend))


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "Fuse"}, {"type": "ByteFallback"}],
        [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 1}],
        [{"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        [{"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "}],
        [{"type": "ByteLevel"}, {"type": "Fuse"}],
    ],
)
def test_decoder_steps_out_of_order_are_refused(steps: list[dict[str, object]]) -> None:
    with pytest.raises(UnsupportedDecoder, match="not supported there"):
        token_pieces({"type": "Sequence", "decoders": steps})


def test_a_decoder_in_a_sequence_of_its_own() -> None:
    pieces = token_pieces({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]})
    assert pieces.middle("Ġa") == b" a"


def test_loading_prints_nothing_and_imports_no_torch(golden: Path, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(golden / "mistral-mxfp4-ct", directory)
    code = (
        "import sys; from pathlib import Path; from service.tokenizer import Tokenizer\n"
        f"Tokenizer.load(Path({str(directory)!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    # Loading a tokenizer in this process has set the switch; the other process starts without it.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRANSFORMERS")}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
