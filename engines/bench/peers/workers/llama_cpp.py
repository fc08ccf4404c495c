"""llama.cpp through llama-cpp-python's low-level calls, as its own llama-bench uses them.

No sampling: after each step the logits are there and the next tokens are random.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp

from engines.bench.peers.workers.worker_loop import WorkerOptions, installed_versions, random_prompts

_MICRO_BATCH = 512
_CONTEXT_STEP = 256  # a sequence's part of the KV cache is padded to this
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


class LlamaCpp:
    """A GGUF file and one context for each number of streams: a context's cache is cut into equal parts."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        llama_cpp.llama_backend_init()
        # Weights are mapped and repacked for this processor: both are the defaults.
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(options.model.encode(), params)
        if self._model is None:
            raise RuntimeError(f"llama.cpp cannot load {options.model}")
        self._contexts: dict[int, Any] = {}
        self._batch = llama_cpp.llama_batch_init(
            max(options.max_model_len, _MICRO_BATCH), 0, options.max_num_seqs
        )

    def versions(self) -> dict[str, str]:
        """llama-cpp-python's, and what its build found in the processor."""
        features = llama_cpp.llama_print_system_info().decode()
        return installed_versions("llama-cpp-python") | {"system_info": features.strip()}

    def prefill(self, num_tokens: int) -> float:
        """The prompt in one micro-batch, as far as one holds it; logits of the last token only."""
        context = self._empty_context(1)
        prompt = random_prompts(1, num_tokens, self._options.vocab_size)
        started = time.perf_counter()
        self._decode(context, prompt, 0)
        return num_tokens / (time.perf_counter() - started)

    def decode(self, num_streams: int, num_prompt_tokens: int, num_tokens: int) -> float:
        """One token of each stream a step, all in one batch."""
        context = self._empty_context(num_streams)
        self._decode(context, random_prompts(num_streams, num_prompt_tokens, self._options.vocab_size), 0)
        steps = [random_prompts(num_streams, 1, self._options.vocab_size) for _ in range(num_tokens - 1)]
        started = time.perf_counter()
        for index, step in enumerate(steps):
            self._decode(context, step, num_prompt_tokens + index)
        return num_streams * len(steps) / (time.perf_counter() - started)

    def _empty_context(self, num_streams: int) -> Any:
        context = self._contexts.get(num_streams)
        if context is None:
            context = self._contexts[num_streams] = self._new_context(num_streams)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        return context

    def _new_context(self, num_streams: int) -> Any:
        length = -(-self._options.max_model_len // _CONTEXT_STEP) * _CONTEXT_STEP
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_streams * length
        params.n_batch = params.n_ubatch = _MICRO_BATCH
        params.n_seq_max = num_streams
        params.n_threads = params.n_threads_batch = self._options.num_threads
        params.flash_attn_type = _FLASH_ATTENTION[self._options.settings.get("flash_attention", "auto")]
        context = llama_cpp.llama_init_from_model(self._model, params)
        if context is None:
            raise RuntimeError(f"llama.cpp makes no context of {num_streams} sequences of {length} tokens")
        return context

    def _decode(self, context: Any, tokens: list[list[int]], position: int) -> None:
        """Feed each sequence its tokens from `position` on, in batches; wait for the last ones' logits."""
        rows = [
            (token, position + index, sequence, index == len(part) - 1)
            for sequence, part in enumerate(tokens)
            for index, token in enumerate(part)
        ]
        for begin in range(0, len(rows), _MICRO_BATCH):
            part = rows[begin : begin + _MICRO_BATCH]
            batch = self._batch
            batch.n_tokens = len(part)
            for row, (token, at, sequence, wants_logits) in enumerate(part):
                batch.token[row] = token
                batch.pos[row] = at
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence
                batch.logits[row] = wants_logits
            if status := llama_cpp.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode gave {status} for {len(part)} tokens")
        llama_cpp.llama_synchronize(context)


load = LlamaCpp
"""What a worker serves."""
