"""Transformers on the CPU in bfloat16: the model's own forward pass with its key-value cache, greedy."""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM

from engines.bench.peers.workers.worker_loop import WorkerOptions, installed_versions, random_prompts


class Transformers:
    """A bfloat16 checkpoint, eager; without `generate`, which only adds to each step."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        torch.set_num_threads(options.num_threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=torch.bfloat16, attn_implementation="sdpa"
        )

    def versions(self) -> dict[str, str]:
        """Of transformers and torch."""
        return installed_versions("transformers", "torch")

    def prefill(self, num_tokens: int) -> float:
        """One pass over the prompt; logits of the last token only."""
        prompt = self._prompts(1, num_tokens)
        with torch.inference_mode():
            started = time.perf_counter()
            self._model(prompt, use_cache=True, logits_to_keep=1)
            return num_tokens / (time.perf_counter() - started)

    def decode(self, num_streams: int, num_prompt_tokens: int, num_tokens: int) -> float:
        """All streams in one padded batch of equal lengths."""
        with torch.inference_mode():
            given = self._model(
                self._prompts(num_streams, num_prompt_tokens), use_cache=True, logits_to_keep=1
            )
            started = time.perf_counter()
            for _ in range(num_tokens - 1):
                given = self._model(
                    given.logits[:, -1].argmax(-1, keepdim=True),
                    past_key_values=given.past_key_values,
                    use_cache=True,
                )
            return num_streams * (num_tokens - 1) / (time.perf_counter() - started)

    def _prompts(self, num_prompts: int, num_tokens: int) -> torch.Tensor:
        return torch.tensor(random_prompts(num_prompts, num_tokens, self._options.vocab_size))


load = Transformers
"""What a worker serves."""
