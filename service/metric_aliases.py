"""The same figures under the names of other servers, for the tools that look for those.

An alias is made from the finished family at scrape time, so it costs nothing while requests run and
cannot disagree with the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

# From the name of a family, as prometheus_client has it (a counter without `_total`), to its aliases.
Aliases = Mapping[str, tuple[str, ...]]

TRTLLM_ALIASES: Aliases = {
    "nybble_num_requests_running": ("trtllm_num_requests_running",),
    "nybble_num_requests_waiting": ("trtllm_num_requests_waiting",),
    "nybble_kv_cache_usage_ratio": ("trtllm_kv_cache_utilization",),
    "nybble_kv_blocks": ("trtllm_kv_cache_max_blocks",),
    "nybble_kv_blocks_used": ("trtllm_kv_cache_used_blocks",),
    "nybble_kv_block_size_tokens": ("trtllm_kv_cache_tokens_per_block",),
    "nybble_max_num_seqs": ("trtllm_max_num_active_requests",),
    "nybble_prompt_tokens": ("trtllm_prompt_tokens",),
    "nybble_cached_prompt_tokens": ("trtllm_prompt_cached_tokens",),
    "nybble_generated_tokens": ("trtllm_generation_tokens",),
    "nybble_sequences_finished": ("trtllm_request_success",),
    "nybble_time_to_first_token_seconds": ("trtllm_time_to_first_token_seconds",),
    "nybble_inter_token_seconds": ("trtllm_time_per_output_token_seconds",),
    "nybble_request_seconds": ("trtllm_e2e_request_latency_seconds",),
    "nybble_request_queue_seconds": ("trtllm_request_queue_time_seconds",),
    "nybble_request_prefill_seconds": ("trtllm_request_prefill_time_seconds",),
    "nybble_request_decode_seconds": ("trtllm_request_decode_time_seconds",),
}

VLLM_ALIASES: Aliases = {
    "nybble_num_requests_running": ("vllm:num_requests_running",),
    "nybble_num_requests_waiting": ("vllm:num_requests_waiting",),
    "nybble_kv_cache_usage_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "nybble_preemptions": ("vllm:num_preemptions",),
    "nybble_prompt_tokens": ("vllm:prompt_tokens", "vllm:prefix_cache_queries"),
    "nybble_cached_prompt_tokens": ("vllm:prefix_cache_hits",),
    "nybble_generated_tokens": ("vllm:generation_tokens",),
    "nybble_sequences_finished": ("vllm:request_success",),
    "nybble_time_to_first_token_seconds": ("vllm:time_to_first_token_seconds",),
    "nybble_inter_token_seconds": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
    ),
    "nybble_request_seconds": ("vllm:e2e_request_latency_seconds",),
    "nybble_request_queue_seconds": ("vllm:request_queue_time_seconds",),
    "nybble_request_prefill_seconds": ("vllm:request_prefill_time_seconds",),
    "nybble_request_decode_seconds": ("vllm:request_decode_time_seconds",),
    "nybble_request_prompt_tokens": ("vllm:request_prompt_tokens",),
    "nybble_request_generated_tokens": ("vllm:request_generation_tokens",),
}

_RENAMED_LABELS = {"reason": "finished_reason"}


def aliased(families: Iterable[Metric], aliases: Aliases, model_name: str) -> Iterator[Metric]:
    """The aliases of `families`, with the label `model_name`."""
    for family in families:
        for alias in aliases.get(family.name, ()):
            renamed = Metric(alias, f"The same as {family.name}.", family.type)
            for sample in family.samples:
                labels = {_RENAMED_LABELS.get(label, label): value for label, value in sample.labels.items()}
                name = alias + sample.name[len(family.name) :]
                renamed.add_sample(name, {"model_name": model_name, **labels}, sample.value)
            yield renamed


def vllm_cache_config(families: Iterable[Metric], model_name: str) -> Iterator[Metric]:
    """`vllm:cache_config_info`, whose labels are two of our gauges; nothing before the model is loaded."""
    values = {family.name: family.samples[0].value for family in families if family.samples}
    if "nybble_kv_blocks" in values:
        info = GaugeMetricFamily(
            "vllm:cache_config_info",
            "The KV cache's shape; always 1.",
            labels=("block_size", "model_name", "num_gpu_blocks"),
        )
        block_size, num_blocks = values["nybble_kv_block_size_tokens"], values["nybble_kv_blocks"]
        info.add_metric((f"{block_size:.0f}", model_name, f"{num_blocks:.0f}"), 1)
        yield info
