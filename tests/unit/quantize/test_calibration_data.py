"""Samples as token ids, and the line that is at fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engines.quantize.calibration_data import read_samples
from engines.quantize.errors import CalibrationError
from engines.quantize.options import CalibrationOptions

VOCAB_SIZE = 320


def read(tmp_path: Path, golden: Path, *lines: object, **options: int) -> list[list[int]]:
    file = tmp_path / "samples.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_samples(CalibrationOptions(file, **options), golden / "base-mistral", VOCAB_SIZE)


def test_ids_text_and_empty_lines(tmp_path, golden):
    tokenizer = Tokenizer.from_file(str(golden / "base-mistral" / "tokenizer.json"))
    samples = read(tmp_path, golden, {"input_ids": [5, 6, 7]}, "", {"text": "the cat sat"})
    assert samples == [[5, 6, 7], tokenizer.encode("the cat sat").ids]


def test_messages_go_through_the_chat_template(tmp_path, golden):
    tokenizer = Tokenizer.from_file(str(golden / "base-mistral" / "tokenizer.json"))
    (ids,) = read(tmp_path, golden, {"messages": [{"role": "user", "content": "hello"}]})
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    assert "hello" in decoded
    assert decoded != "hello"


def test_number_and_length_are_bounded(tmp_path, golden):
    lines = [{"input_ids": [n + 1] * 50} for n in range(5)]
    assert read(tmp_path, golden, *lines, num_samples=2, max_length=3) == [[1] * 3, [2] * 3]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: holds a JSON list"),
        ({"prompt": "x"}, r"line 2: has the keys \['prompt'\]"),
        ({"text": "x", "input_ids": [1]}, "line 2: has input_ids and text"),
        ({"text": 5}, "line 2: text is a int"),
        ({"input_ids": [1, True]}, "line 2: input_ids is"),
        ({"input_ids": []}, "line 2: gives no tokens"),
        ({"input_ids": [320]}, "token id 320 is outside the model's vocabulary of 320"),
        ({"messages": "hello"}, "line 2: the model's chat template refuses"),
    ],
)
def test_a_bad_line_is_named(tmp_path, golden, line, words):
    with pytest.raises(CalibrationError, match=words):
        read(tmp_path, golden, {"input_ids": [1]}, line)


def test_files_that_hold_nothing_or_are_not_there(tmp_path, golden):
    with pytest.raises(CalibrationError, match="holds no samples"):
        read(tmp_path, golden, "", "")
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_samples(CalibrationOptions(tmp_path / "absent"), golden / "base-mistral", VOCAB_SIZE)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="not UTF-8"):
        read_samples(CalibrationOptions(tmp_path / "binary"), golden / "base-mistral", VOCAB_SIZE)


def test_text_needs_a_tokenizer(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text('{"text": "x"}')
    with pytest.raises(CalibrationError, match=r"tokenizer\.json: is absent"):
        read_samples(CalibrationOptions(file), tmp_path, VOCAB_SIZE)
