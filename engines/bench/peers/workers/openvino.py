"""OpenVINO GenAI's continuous batching on the CPU plug-in, stepped in this process."""

from __future__ import annotations

import time

import numpy as np
import openvino
import openvino_genai

from engines.bench.peers.workers.whole_requests import WholeRequests
from engines.bench.peers.workers.worker_loop import WorkerOptions, installed_versions

_CACHE_GIGABYTES = 1


class OpenVino(WholeRequests):
    """An IR with compressed weights; threads are the plug-in's own and pinned by it."""

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(options)
        self._num_requests = 0
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GIGABYTES
        scheduler.max_num_batched_tokens = max(1024, options.max_model_len)
        scheduler.max_num_seqs = options.max_num_seqs
        scheduler.dynamic_split_fuse = False
        scheduler.enable_prefix_caching = False
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.num_threads,
            "ENABLE_CPU_PINNING": True,
            **options.settings,
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            options.model, scheduler, "CPU", properties, {}
        )

    def versions(self) -> dict[str, str]:
        """Of the runtime, GenAI and the compressor."""
        return installed_versions("openvino", "openvino-genai", "nncf")

    def _run(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        handles = []
        for prompt in prompts:
            self._num_requests += 1
            ids = openvino.Tensor(np.array([prompt], np.int64))
            handles.append(self._pipeline.add_request(self._num_requests, ids, config))
        moments: list[list[float]] = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter()
            for handle, seen in zip(handles, moments, strict=True):
                while handle.can_read():
                    seen.extend(now for output in handle.read().values() for _ in output.generated_ids)
        return moments


load = OpenVino
"""What a worker serves."""
