"""The demo checkpoint: the same bytes each time, complete, readable by everything that reads checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from engines.base import EngineOptions
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.fp4 import bfloat16, mxfp4
from engines.registry import create_engine
from engines.request import SamplingParams
from examples.demo_model import recipe
from examples.demo_model.make_demo import FILES, DemoError, is_complete, main, make_demo
from service.chat_template import ChatTemplate, ChatTemplateError
from service.generation import TextRequest, generate_text
from service.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "models" / "mistral-mxfp4"
    assert make_demo(directory)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_another_process_makes_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1234", "RAYON_NUM_THREADS": "3"}
    command = [sys.executable, "-m", "examples.demo_model.make_demo", str(tmp_path / "again")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gibberish" in done.stdout
    assert contents(tmp_path / "again") == contents(demo)
    assert sorted(contents(demo)) == sorted(FILES)


def test_another_seed_makes_other_weights(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "other", seed=1)
    other, first = contents(tmp_path / "other"), contents(demo)
    assert {name for name in FILES if other[name] != first[name]} == {"README.md", "model.safetensors"}


def test_a_complete_one_is_left_alone(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / "model.safetensors").stat().st_mtime_ns
    main([str(demo)])
    assert "is there already" in capsys.readouterr().out
    assert (demo / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in demo.parent.iterdir()] == [demo.name]


def test_an_incomplete_one_is_made_anew(demo: Path, tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    make_demo(directory)
    (directory / "model.safetensors").unlink()
    assert not is_complete(directory)
    assert make_demo(directory)
    assert contents(directory) == contents(demo)


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int) -> recipe.Tensors:
        raise OSError("disk full")

    monkeypatch.setattr(recipe, "random_weights", fail)
    with pytest.raises(OSError, match="disk full"):
        make_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_anything_else_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DemoError, match="is not a demo checkpoint; choose another directory"):
        make_demo(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path)])
    assert capsys.readouterr().err.startswith("error: ")
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_weights_are_those_of_the_recipe(demo: Path) -> None:
    checkpoint = Checkpoint.open(demo)
    assert checkpoint.layout is Layout.COMPRESSED_TENSORS_MXFP4
    tensors = recipe.random_weights(0)
    with safe_open(demo / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tensors)
        packed = file.get_tensor("model.layers.3.mlp.down_proj.weight_packed")
        scale = file.get_tensor("model.layers.3.mlp.down_proj.weight_scale")
    values = mxfp4.dequantize(packed, scale)
    assert values.shape == (recipe.HIDDEN_SIZE, recipe.INTERMEDIATE_SIZE)
    assert values.std() == pytest.approx(recipe.INTERMEDIATE_SIZE**-0.5, rel=0.05)
    norm = bfloat16.decode(tensors["model.norm.weight"][1])
    np.testing.assert_array_equal(norm, np.ones(recipe.HIDDEN_SIZE, np.float32))


@pytest.mark.parametrize("text", ["What time is it?", "  two  spaces\n\ttab", "日本語 und Ærø 😀\x00", ""])
def test_tokenizer_round_trip(demo: Path, text: str) -> None:
    tokenizer = Tokenizer.load(demo)
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.vocab_size == recipe.VOCAB_SIZE


def test_tokenizer_knows_words(demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    ids = tokenizer.encode(" the capital of France is Paris", add_special_tokens=False)
    assert len(ids) <= 8


def test_chat_template(demo: Path) -> None:
    template = ChatTemplate.load(Tokenizer.load(demo))
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    answer = {"role": "assistant", "content": "Hello"}
    assert template.render([user]) == "<s>[INST] Hi [/INST]"
    assert template.render([system, user, answer, user]) == (
        "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Hi [/INST]"
    )
    for messages, message in [
        ([user, user], "Conversation roles must alternate user/assistant"),
        ([answer], "Conversation roles must alternate user/assistant"),
        ([user, system], "Only user and assistant messages"),
        ([system], "must be followed by a user message"),
    ]:
        with pytest.raises(ChatTemplateError, match=message):
            template.render(messages)


async def test_text_through_an_engine(demo: Path) -> None:
    """The echo engine says the prompt again, so the text that comes back is known."""
    tokenizer = Tokenizer.load(demo)
    prompt = tuple(tokenizer.encode("Paris is the capital of France 😀 END of it", add_special_tokens=False))
    engine = create_engine("echo", EngineOptions(checkpoint=demo))
    await engine.start()
    try:
        request = TextRequest(
            "r", prompt, SamplingParams(max_tokens=len(prompt), temperature=0), stop=(" END",)
        )
        outputs = [output async for output in generate_text(engine, tokenizer, request)]
        assert "".join(output.text for output in outputs) == "Paris is the capital of France 😀"
        assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", " END")
        assert engine.stats().num_running == 0
    finally:
        await engine.close()
