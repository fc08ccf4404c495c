"""What the finished engine has to answer: a few prompts, continued greedily by the CPU engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engines.base import EngineOptions
from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu.engine import CpuEngine
from engines.evaluate.documents import TextEncoder
from engines.host_memory import available_memory_bytes
from engines.request import GenerationRequest, SamplingParams, TokenLogprob
from engines.trtllm.manifest import Canary

NUM_TOKENS = 8
_MAX_PROMPT_TOKENS = 24
_MEMORY_FACTOR = 1.5  # of the weights on disk: repacked weights, the KV cache, workspaces
_TEXTS = (
    "The capital of France is",
    "One, two, three, four, five,",
    "Water freezes at zero degrees and boils at",
    "def add(a, b):\n    return",
    "The days of the week are Monday, Tuesday,",
    "A short letter to a friend begins with",
)


def why_no_canaries(checkpoint: Checkpoint) -> str | None:
    """Why the CPU engine cannot answer for this checkpoint on this machine; None when it can."""
    needed = _MEMORY_FACTOR * sum(path.stat().st_size for path in checkpoint.tensors.paths)
    available = available_memory_bytes()
    if available < needed:
        return (
            f"no canaries: the CPU engine would need about {needed / 1e9:.1f} GB of memory and "
            f"{available / 1e9:.1f} GB are available"
        )
    return None


def make_canaries(directory: Path, num_canaries: int, max_seq_len: int) -> tuple[Canary, ...]:
    """Greedy answers of the checkpoint in `directory`, activations quantised as it declares.

    Fewer than asked when the context is too short. Raises what the CPU engine raises.
    """
    checkpoint = Checkpoint.open(directory)
    limit = min(max_seq_len, checkpoint.config.max_position_embeddings)
    if limit < NUM_TOKENS + 2:
        return ()
    prompts = [
        prompt[: min(_MAX_PROMPT_TOKENS, limit - NUM_TOKENS)]
        for prompt in _prompts(directory, checkpoint.config.vocab_size, num_canaries)
    ]
    return asyncio.run(_answers(directory, prompts))


def _prompts(directory: Path, vocab_size: int, num_prompts: int) -> list[tuple[int, ...]]:
    """Texts through the checkpoint's tokenizer; without one, ids spread over the vocabulary."""
    encoder = TextEncoder(directory)
    if encoder.available:
        encoded = [encoder.encode(text) for text in _TEXTS[:num_prompts]]
        usable = [ids for ids in encoded if ids and max(ids) < vocab_size]
        if len(usable) == min(num_prompts, len(_TEXTS)):
            return usable
    return [
        tuple((7919 * (index + 1) + 31 * position * position) % vocab_size for position in range(12))
        for index in range(num_prompts)
    ]


async def _answers(directory: Path, prompts: list[tuple[int, ...]]) -> tuple[Canary, ...]:
    options = EngineOptions(
        checkpoint=directory, max_model_len=_MAX_PROMPT_TOKENS + NUM_TOKENS, max_num_seqs=1
    )
    engine = CpuEngine(options)
    try:
        await engine.start()
        return tuple([await _answer(engine, index, prompt) for index, prompt in enumerate(prompts)])
    finally:
        await engine.close()


async def _answer(engine: CpuEngine, index: int, prompt: tuple[int, ...]) -> Canary:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True, num_logprobs=2)
    entries: list[TokenLogprob] = []
    async for output in engine.generate(GenerationRequest(f"canary-{index}", prompt, sampling)):
        entries.extend(output.logprobs or ())
    return Canary(
        prompt_token_ids=prompt,
        token_ids=tuple(entry.token_id for entry in entries),
        logprobs=tuple(entry.logprob for entry in entries),
        margins=tuple(entry.top[0][1] - entry.top[1][1] if len(entry.top) > 1 else 0.0 for entry in entries),
    )
