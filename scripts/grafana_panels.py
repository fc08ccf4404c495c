"""What the Grafana dashboard shows: rows of panels, each with its queries."""

from __future__ import annotations

from dataclasses import dataclass, field

_ONE = 'instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` maps a legend to its PromQL; `unit` is Grafana's name of one; `kind` timeseries or stat."""

    title: str
    unit: str
    queries: dict[str, str]
    description: str = ""
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    maximum: float | None = None
    thresholds: tuple[tuple[float | None, str], ...] = field(default=((None, "green"),))


def _quantiles(metric: str, *quantiles: float) -> dict[str, str]:
    return {
        f"p{100 * quantile:g}": f"histogram_quantile({quantile}, sum by (le) "
        f"(rate({metric}_bucket{{{_ONE}}}[$__rate_interval])))"
        for quantile in quantiles
    }


def _rate(metric: str, by: str = "", more: str = "") -> str:
    grouping = f"sum by ({by})" if by else "sum"
    return f"{grouping} (rate({metric}{{{_ONE}{more}}}[$__rate_interval]))"


def _ratio(above: str, below: str, by: str = "") -> str:
    return f"{_rate(above, by)} / {_rate(below, by)}"


def _sum(metric: str) -> str:
    return f"sum({metric}{{{_ONE}}})"


ROWS: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        Panel(
            "Ready",
            "none",
            {"ready": f"sum(nybble_ready{{{_ONE}}})"},
            "Processes that take requests.",
            kind="stat",
            width=4,
            thresholds=((None, "red"), (1, "green")),
        ),
        Panel(
            "Requests",
            "reqps",
            {"": _rate("nybble_http_requests_total", more=', route=~"/v1/.*"')},
            kind="stat",
            width=4,
        ),
        Panel(
            "Generated",
            "none",
            {"tokens/s": _rate("nybble_generated_tokens_total")},
            "Tokens a second.",
            kind="stat",
            width=4,
        ),
        Panel(
            "First token, p95",
            "s",
            {"": next(iter(_quantiles("nybble_time_to_first_token_seconds", 0.95).values()))},
            kind="stat",
            width=4,
        ),
        Panel(
            "KV cache",
            "percentunit",
            {"": f"avg(nybble_kv_cache_usage_ratio{{{_ONE}}})"},
            kind="stat",
            width=4,
            maximum=1,
            thresholds=((None, "green"), (0.8, "orange"), (0.95, "red")),
        ),
        Panel(
            "Model loaded in", "s", {"": f"max(nybble_model_load_seconds{{{_ONE}}})"}, kind="stat", width=4
        ),
    ),
    "Requests": (
        Panel(
            "Answers by status",
            "reqps",
            {"{{status}}": _rate("nybble_http_requests_total", "status", ', route!~"/health/.*|/metrics"')},
            stacked=True,
        ),
        Panel(
            "Answers by route",
            "reqps",
            {"{{route}}": _rate("nybble_http_requests_total", "route", ', route=~"/v1/.*"')},
            stacked=True,
        ),
        Panel(
            "Refused and abandoned",
            "reqps",
            {
                "{{reason}}": _rate("nybble_requests_rejected_total", "reason") + " > 0",
                "client hung up": _rate("nybble_requests_cancelled_total"),
            },
            "Requests answered with an error, and requests whose client went away.",
        ),
    ),
    "Latency": (
        Panel(
            "First token",
            "s",
            _quantiles("nybble_time_to_first_token_seconds", 0.5, 0.9, 0.99),
            "From arrival to a sequence's first token, queue included.",
        ),
        Panel("Between tokens", "s", _quantiles("nybble_inter_token_seconds", 0.5, 0.9, 0.99)),
        Panel("Whole sequence", "s", _quantiles("nybble_request_seconds", 0.5, 0.9, 0.99)),
        Panel(
            "Where the time goes, mean",
            "s",
            {
                part: _ratio(f"nybble_request_{part}_seconds_sum", f"nybble_request_{part}_seconds_count")
                for part in ("preparation", "queue", "prefill", "decode")
            },
            "Template and tokenizer, waiting, prompt, answer.",
            stacked=True,
        ),
        Panel(
            "Queue",
            "s",
            _quantiles("nybble_request_queue_seconds", 0.5, 0.9, 0.99),
            "From submission until a sequence's first step.",
        ),
        Panel("Event loop wakes late", "s", _quantiles("nybble_event_loop_lag_seconds", 0.5, 0.99)),
    ),
    "Tokens": (
        Panel(
            "Tokens a second",
            "none",
            {
                "prompt": _rate("nybble_prompt_tokens_total"),
                "generated": _rate("nybble_generated_tokens_total"),
            },
        ),
        Panel(
            "Prompt tokens found in the prefix cache",
            "percentunit",
            {"share": _ratio("nybble_cached_prompt_tokens_total", "nybble_prompt_tokens_total")},
            maximum=1,
        ),
        Panel(
            "Length of a sequence",
            "none",
            {
                **{
                    f"prompt {name}": query
                    for name, query in _quantiles("nybble_request_prompt_tokens", 0.5, 0.95).items()
                },
                **{
                    f"answer {name}": query
                    for name, query in _quantiles("nybble_request_generated_tokens", 0.5, 0.95).items()
                },
            },
            "Tokens.",
        ),
    ),
    "Engine": (
        Panel(
            "Sequences",
            "none",
            {
                "running": _sum("nybble_num_requests_running"),
                "waiting": _sum("nybble_num_requests_waiting"),
                "at most": _sum("nybble_max_num_seqs"),
            },
        ),
        Panel(
            "KV cache",
            "percentunit",
            {"{{instance}}": f"nybble_kv_cache_usage_ratio{{{_ONE}}}"},
            "Share of blocks that live sequences hold.",
            maximum=1,
        ),
        Panel(
            "Preemptions and ends",
            "ops",
            {
                "preempted": _rate("nybble_preemptions_total"),
                "{{reason}}": _rate("nybble_sequences_finished_total", "reason"),
            },
        ),
        Panel(
            "Steps a second",
            "ops",
            {"{{kind}}": _rate("nybble_engine_step_seconds_count", "kind")},
            stacked=True,
        ),
        Panel(
            "Time of a step, mean",
            "s",
            {
                "{{kind}}": _ratio(
                    "nybble_engine_step_seconds_sum", "nybble_engine_step_seconds_count", "kind"
                )
            },
        ),
        Panel(
            "Tokens of a step",
            "none",
            {"tokens": _ratio("nybble_generated_tokens_total", "nybble_engine_steps_total")},
            "Generated tokens for each step: the batch that decodes.",
        ),
    ),
    "Keys": (
        Panel(
            "Requests by key", "reqps", {"{{key}}": _rate("nybble_key_requests_total", "key")}, stacked=True
        ),
        Panel(
            "Tokens by key", "none", {"{{key}}": _rate("nybble_key_tokens_total", "key")}, "Tokens a second."
        ),
        Panel(
            "Over the key's limits",
            "reqps",
            {"{{key}}": _rate("nybble_key_rejected_requests_total", "key")},
        ),
    ),
    "Process": (
        Panel(
            "CPU",
            "none",
            {"{{instance}}": f'rate(process_cpu_seconds_total{{job=~"$job", {_ONE}}}[$__rate_interval])'},
            "Cores in use.",
        ),
        Panel("Memory", "bytes", {"{{instance}}": f'process_resident_memory_bytes{{job=~"$job", {_ONE}}}'}),
        Panel(
            "Open HTTP requests",
            "none",
            {
                "being answered": _sum("nybble_http_requests_in_progress"),
                "sequences admitted": _sum("nybble_sequences_in_flight"),
            },
        ),
    ),
}
