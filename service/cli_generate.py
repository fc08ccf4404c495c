"""`nybble generate`: one answer without a server, written as it comes."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import orjson
import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from engines.base import EngineOptions
from engines.errors import PromptTooLong
from engines.registry import create_engine
from engines.request import SamplingParams
from service.chat_template import ChatTemplate
from service.generation import TextOutput, TextRequest, generate_text
from service.tokenizer import Tokenizer


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(generate)


def generate(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a Hugging Face checkpoint.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    chat: Annotated[str | None, typer.Option(help="A user's message, put through the chat template.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="[the rest of the context]")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 switches it off.")] = 0,
    min_p: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    seed: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A stop string; may be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    engine: Annotated[str, typer.Option(help="auto, cpu or echo.")] = "auto",
    activations: Annotated[str, typer.Option(help="checkpoint or bf16.")] = "checkpoint",
    numerics: Annotated[str, typer.Option(help="fast or reference.")] = "fast",
    max_model_len: Annotated[int | None, typer.Option(min=1, help="[the model's]")] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, bfloat16 or fp8.")] = "auto",
    kv_cache_memory: Annotated[str | None, typer.Option(help="For example 4GiB.")] = None,
    num_threads: Annotated[int, typer.Option(min=0, help="0 means all physical cores.")] = 0,
) -> None:
    """Print one answer, without a server."""
    if (prompt is None) == (chat is None):
        raise typer.BadParameter("give either --prompt or --chat")
    if any(not text for text in stop or ()):
        raise typer.BadParameter("--stop is empty; expected at least one character")
    if not checkpoint.is_dir():
        raise typer.BadParameter(f"{checkpoint} is not a folder; expected that of a Hugging Face checkpoint")
    options = EngineOptions(
        checkpoint=checkpoint,
        activations=_one_of("--activations", activations, "checkpoint", "bf16"),
        numerics=_one_of("--numerics", numerics, "fast", "reference"),
        max_model_len=max_model_len,
        kv_cache_dtype=_one_of("--kv-cache-dtype", kv_cache_dtype, "auto", "bfloat16", "fp8"),
        kv_cache_memory_bytes=_size(kv_cache_memory),
        max_num_seqs=1,
        num_threads=num_threads,
    )
    sampling = SamplingParams(
        max_tokens=max_tokens or 0,
        temperature=0.0 if top_p == 0 else temperature,
        top_p=top_p or 1.0,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        ignore_eos=ignore_eos,
    )
    job = _Job(
        engine=engine,
        options=options,
        checkpoint=checkpoint,
        text=chat if chat is not None else prompt or "",
        is_chat=chat is not None,
        sampling=sampling,
        stop=tuple(stop or ()),
    )
    asyncio.run(_run(job, as_json=as_json))


@dataclass(frozen=True, slots=True)
class _Job:
    """What to generate. `sampling.max_tokens` 0 stands for the rest of the context."""

    engine: str
    options: EngineOptions
    checkpoint: Path
    text: str
    is_chat: bool
    sampling: SamplingParams
    stop: tuple[str, ...]


async def _run(job: _Job, *, as_json: bool) -> None:
    tokenizer = Tokenizer.load(job.checkpoint)
    token_ids = _token_ids(job, tokenizer)
    engine = create_engine(job.engine, job.options)
    try:
        await engine.start()
        room = engine.info.max_model_len - len(token_ids)
        if room < max(job.sampling.max_tokens, 1):
            raise PromptTooLong(
                f"the prompt has {len(token_ids)} tokens, {job.sampling.max_tokens or 'some'} shall follow; "
                f"the context holds {engine.info.max_model_len}. Shorten the prompt or lower --max-tokens"
            )
        request = TextRequest(
            request_id=uuid.uuid4().hex,
            prompt_token_ids=token_ids,
            sampling=replace(job.sampling, max_tokens=job.sampling.max_tokens or room),
            stop=job.stop,
        )
        await _print_answer(generate_text(engine, tokenizer, request), len(token_ids), as_json=as_json)
    finally:
        await engine.close()


def _token_ids(job: _Job, tokenizer: Tokenizer) -> tuple[int, ...]:
    prompt = job.text
    if job.is_chat:
        prompt = ChatTemplate.load(tokenizer).render([{"role": "user", "content": job.text}])
    return tuple(tokenizer.encode(prompt, add_special_tokens=not job.is_chat))


async def _print_answer(
    outputs: AsyncGenerator[TextOutput, None], num_prompt_tokens: int, *, as_json: bool
) -> None:
    parts: list[str] = []
    generated: list[int] = []
    last: TextOutput | None = None
    async with aclosing(outputs):
        async for output in outputs:
            parts.append(output.text)
            generated.extend(output.token_ids)
            last = output
            if not as_json:
                _write(output.text)
    if not as_json:
        _write("\n")
        return
    answer = {
        "text": "".join(parts),
        "token_ids": generated,
        "finish_reason": None if last is None else last.finish_reason,
        "stop_reason": None if last is None else last.stop_reason,
        "num_prompt_tokens": num_prompt_tokens,
        "num_generated_tokens": len(generated),
    }
    _write(orjson.dumps(answer).decode() + "\n")


def _write(text: str) -> None:
    # The terminal's encoding may not know every character a model does.
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.buffer.flush()


def _one_of(option: str, value: str, *allowed: str) -> str:
    if value not in allowed:
        raise typer.BadParameter(f"{option} is {value!r}; expected one of: {', '.join(allowed)}")
    return value


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is no size; expected a number and a unit, as in 4GiB") from None
