"""Texts and JSON lines to token ids, and what is said about bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.errors import InvalidRequest, MalformedCheckpoint
from engines.evaluate.documents import (
    Document,
    TextEncoder,
    read_documents,
    read_samples,
    read_shared_documents,
)


@pytest.fixture(scope="module")
def encoder(golden: Path) -> TextEncoder:
    return TextEncoder(golden / "base-mistral")


def read(path: Path, encoder: TextEncoder) -> list[Document]:
    return list(read_documents(path, encoder))


def test_a_plain_text_is_one_document(tmp_path: Path, encoder: TextEncoder) -> None:
    path = tmp_path / "held-out.txt"
    path.write_text("Hello.\n\nHello again.\n")
    (document,) = read(path, encoder)
    assert document == Document("held-out.txt", encoder.encode("Hello.\n\nHello again.\n"))
    assert "".join(encoder.token_text(token) or "" for token in document.token_ids).endswith("again.\n")


def test_lines_of_all_three_kinds(tmp_path: Path, encoder: TextEncoder) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = tmp_path / "mixed.jsonl"
    lines = [{"text": "Hello", "id": 7}, {"messages": messages}, {"input_ids": [5, 6, 7]}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    text, chat, ids = read(path, encoder)
    assert text == Document("mixed.jsonl, line 1", encoder.encode("Hello"))
    assert chat == Document("mixed.jsonl, line 3", encoder.encode_messages(messages))
    assert ids == Document("mixed.jsonl, line 5", (5, 6, 7))
    shown = "".join(encoder.token_text(token) or "" for token in chat.token_ids)
    assert shown == "<s>[INST] Hi [/INST] Hello</s>"  # one BOS, the template's


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 2: is not valid JSON"),
        ("[1]", "line 2: expected an object with exactly one of"),
        ("{}", "got none of them"),
        ('{"text": "a", "input_ids": [1]}', "got text, input_ids"),
        ('{"text": 3}', "line 2: text is 3"),
        ('{"text": "ab\\ud800"}', "line 2: the text has half of a surrogate pair at character 2"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "line 2: the text has half"),
        ('{"messages": "hi"}', "line 2: messages is 'hi'"),
        ('{"messages": [{"role": "user"}]}', "line 2: the chat template refuses"),
        ('{"input_ids": [1, true]}', "line 2: input_ids is [1, True]"),
        ('{"input_ids": "1 2"}', "line 2: input_ids is '1 2'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, encoder: TextEncoder, line: str, text: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"input_ids": [1]}\n' + line + "\n")
    with pytest.raises(InvalidRequest) as caught:
        read(path, encoder)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("empty.txt", b"", "is empty"),
        ("empty.jsonl", b"\n\n", "holds no line"),
        ("latin.txt", b"caf\xe9", "is not UTF-8"),
        ("latin.jsonl", b'{"text": "caf\xe9"}', "is not UTF-8"),
    ],
)
def test_a_bad_file_is_named(
    tmp_path: Path, encoder: TextEncoder, name: str, content: bytes, text: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=rf"{name}.*{text}"):
        read(tmp_path / name, encoder)


def test_no_file_and_no_regular_file(tmp_path: Path, encoder: TextEncoder) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read(tmp_path / "absent.txt", encoder)
    with pytest.raises(InvalidRequest, match="not a regular file"):
        read(tmp_path, encoder)


def test_input_ids_need_no_tokenizer(tmp_path: Path) -> None:
    encoder = TextEncoder(tmp_path)
    path = tmp_path / "lines.jsonl"
    path.write_text('{"input_ids": [3, 4]}\n')
    assert read(path, encoder)[0].token_ids == (3, 4)
    assert encoder.token_text(3) is None
    path.write_text('{"text": "a"}\n')
    with pytest.raises(MalformedCheckpoint, match=r"no tokenizer\.json.*input_ids"):
        read(path, encoder)


def test_a_conversation_asks_for_no_answer(golden: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((golden / "base-mistral" / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if add_generation_prompt %}answer:{% endif %}"
    )
    encoder = TextEncoder(tmp_path)
    ids = encoder.encode_messages([{"role": "user", "content": "Hi"}])
    assert "".join(encoder.token_text(token) or "" for token in ids) == "Hi"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(InvalidRequest, match="no chat template"):
        TextEncoder(tmp_path).encode_messages([{"role": "user", "content": "Hi"}])


def test_samples_are_cut_and_counted(tmp_path: Path, encoder: TextEncoder) -> None:
    path = tmp_path / "samples.json"  # whatever its name
    path.write_text("".join(f'{{"input_ids": [{n}, 8, 9]}}\n' for n in (1, 2, 3)) + '{"input_ids": []}')

    def read(num_samples: int, vocab_size: int = 320) -> list[tuple[int, ...]]:
        return read_samples(path, encoder, num_samples=num_samples, max_length=2, vocab_size=vocab_size)

    assert read(2) == [(1, 8), (2, 8)]
    assert len(read(3, vocab_size=9)) == 3  # the 9s are cut off
    with pytest.raises(InvalidRequest, match="line 4: gives no tokens"):
        read(4)
    with pytest.raises(InvalidRequest, match="line 1: token id 8 is outside"):
        read(1, vocab_size=8)


def test_a_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MalformedCheckpoint, match="cannot load the tokenizer"):
        TextEncoder(tmp_path).encode("a")


def test_two_models_share_documents_when_their_tokenizers_agree(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Hello, hello.")
    a, none = TextEncoder(golden / "base-mistral"), TextEncoder(tmp_path)
    (expected,) = read(path, a)
    for other in (TextEncoder(golden / "mistral-mxfp4-ct"), none):
        assert list(read_shared_documents(path, a, other)) == [expected]
    assert list(read_shared_documents(path, none, a)) == [expected]
    tokenizer = json.loads((golden / "base-mistral" / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((golden / "base-mistral" / name).read_text())
    with pytest.raises(InvalidRequest, match=r"text\.txt.*different tokens"):
        list(read_shared_documents(path, a, TextEncoder(tmp_path)))
