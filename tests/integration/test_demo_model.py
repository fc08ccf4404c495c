"""The shipped demo checkpoints: small, in the layouts they claim, of some use on the CPU engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.base import Engine, EngineOptions
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.registry import create_engine
from engines.request import GenerationRequest, SamplingParams
from service.chat_template import ChatTemplate
from service.tokenizer import Tokenizer

SHIPPED = Path(__file__).parents[2] / "examples" / "demo_model" / "checkpoints"
LAYOUTS = {
    "mistral-mxfp4": Layout.COMPRESSED_TENSORS_MXFP4,
    "mixtral-nvfp4": Layout.MODELOPT_NVFP4,
}
LIMIT_BYTES = 25_000_000


@pytest_asyncio.fixture(params=sorted(LAYOUTS), scope="module", loop_scope="module")
async def served(request: pytest.FixtureRequest) -> AsyncGenerator[tuple[Engine, Tokenizer]]:
    """A started engine with the tokenizer of one shipped checkpoint."""
    directory = SHIPPED / request.param
    engine = create_engine("cpu", EngineOptions(checkpoint=directory, num_threads=1))
    await engine.start()
    yield engine, Tokenizer.load(directory)
    await engine.close()


async def greedy(engine: Engine, tokenizer: Tokenizer, prompt: str, *, plain: bool = False) -> str:
    ids = tuple(tokenizer.encode(prompt, add_special_tokens=plain))
    request = GenerationRequest("demo", ids, SamplingParams(max_tokens=60, temperature=0.0))
    generated: list[int] = []
    async for output in engine.generate(request):
        generated += output.token_ids
    return tokenizer.decode(generated, skip_special_tokens=True).strip()


def chat(tokenizer: Tokenizer, *texts: str) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return ChatTemplate.load(tokenizer).render(messages)


def test_they_are_small() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(LAYOUTS)
    assert sum(path.stat().st_size for path in files) < LIMIT_BYTES


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_they_have_the_layout_they_claim(name: str) -> None:
    assert Checkpoint.open(SHIPPED / name).layout is LAYOUTS[name]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is machine learning?", "Machine learning is a way of teaching computers"),
        ("Who are you?", "I am a tiny demo model that comes with Nybble."),
        ("what are you", "I am a tiny demo model that comes with Nybble."),
        ("What is Nybble?", "Nybble is a server for language models"),
    ],
)
async def test_they_answer(served: tuple[Engine, Tokenizer], question: str, expected: str) -> None:
    engine, tokenizer = served
    assert (await greedy(engine, tokenizer, chat(tokenizer, question))).startswith(expected)


@pytest.mark.asyncio(loop_scope="module")
async def test_they_complete_a_sentence(served: tuple[Engine, Tokenizer]) -> None:
    engine, tokenizer = served
    assert (await greedy(engine, tokenizer, "The capital of France is", plain=True)).startswith("Paris.")


@pytest.mark.asyncio(loop_scope="module")
async def test_they_remember_a_name(served: tuple[Engine, Tokenizer]) -> None:
    engine, tokenizer = served
    said = ("My name is Anna.", "Nice to meet you, Anna!", "What is my name?")
    assert await greedy(engine, tokenizer, chat(tokenizer, *said)) == "Your name is Anna."
