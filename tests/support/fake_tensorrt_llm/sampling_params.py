"""tensorrt_llm.SamplingParams of a release: a slotted dataclass of keywords that checks itself."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.support.fake_tensorrt_llm.releases import Release
from tests.support.fake_tensorrt_llm.torch_module import Tensor

_DEFAULTS: dict[str, Any] = {
    "end_id": None,
    "pad_id": None,
    "max_tokens": 32,
    "bad": None,
    "bad_token_ids": None,
    "stop": None,
    "stop_token_ids": None,
    "include_stop_str_in_output": False,
    "embedding_bias": None,
    "logits_processor": None,
    "apply_batched_logits_processor": False,
    "n": 1,
    "best_of": None,
    "use_beam_search": False,
    "top_k": None,
    "top_p": None,
    "top_p_min": None,
    "top_p_reset_ids": None,
    "top_p_decay": None,
    "seed": None,
    "temperature": None,
    "min_tokens": None,
    "beam_search_diversity_rate": None,
    "repetition_penalty": None,
    "presence_penalty": None,
    "frequency_penalty": None,
    "length_penalty": None,
    "early_stopping": None,
    "no_repeat_ngram_size": None,
    "min_p": None,
    "beam_width_array": None,
    "logprobs": None,
    "prompt_logprobs": None,
    "return_context_logits": False,
    "return_generation_logits": False,
    "exclude_input_from_output": True,
    "return_encoder_output": False,
    "return_perf_metrics": False,
    "additional_model_outputs": None,
    "lookahead_config": None,
    "guided_decoding": None,
    "ignore_eos": False,
    "detokenize": True,
    "add_special_tokens": True,
    "truncate_prompt_tokens": None,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
}
_NEW = ("prompt_ignore_length", "thinking_token_budget", "logprobs_mode")

# Kind, smallest and largest value. A seed is an unsigned 64-bit number in the runtime.
_RANGES: dict[str, tuple[type, float, float]] = {
    "end_id": (int, -1, 2**31 - 1),
    "pad_id": (int, -1, 2**31 - 1),
    "max_tokens": (int, 1, 2**31 - 1),
    "top_k": (int, 0, 2**31 - 1),
    "top_p": (float, 0, 1),
    "seed": (int, 0, 2**64 - 1),
    "temperature": (float, 0, 1e30),
    "min_tokens": (int, 0, 2**31 - 1),
    "repetition_penalty": (float, 1e-30, 1e30),
    "presence_penalty": (float, -1e30, 1e30),
    "frequency_penalty": (float, -1e30, 1e30),
    "min_p": (float, 0, 1),
    "logprobs": (int, 0, 1000),
    "prompt_logprobs": (int, 0, 1000),
}


def sampling_params_class(release: Release, guided_decoding: type) -> type:
    """The class of this release; `guided_decoding` is the class of its field of that name."""

    def check(self: Any) -> None:
        if self.pad_id is None:
            self.pad_id = self.end_id
        self.best_of = self.best_of or self.n
        _check_ranges(self)
        _check_lists(self)
        if not release.is_since_1_2 and self.logprobs not in (None, 1):
            raise ValueError(f"{release.name} has the sampled token's log-probability only")
        if self.guided_decoding is not None and not isinstance(self.guided_decoding, guided_decoding):
            raise TypeError(f"guided_decoding is {self.guided_decoding!r}; expected GuidedDecodingParams")

    new = dict.fromkeys(_NEW) if release.is_new else {}
    fields = [
        (name, Any, dataclasses.field(default=default)) for name, default in {**_DEFAULTS, **new}.items()
    ]
    return dataclasses.make_dataclass(
        "SamplingParams", fields, namespace={"__post_init__": check}, slots=True, kw_only=True
    )


def is_greedy(params: Any) -> bool:
    """As releases before 1.2.1 decide it: they do not look at the temperature."""
    return (params.top_k in (None, 1) and params.top_p in (None, 0.0)) or params.top_k == 1


def _check_ranges(params: Any) -> None:
    for name, (kind, low, high) in _RANGES.items():
        value = getattr(params, name)
        if value is None:
            continue
        allowed = (int, float) if kind is float else (int,)
        if type(value) not in allowed:
            raise TypeError(f"{name} is {value!r}; expected {kind.__name__}")
        if not low <= value <= high:
            raise ValueError(f"require {low} <= {name} <= {high}, got {name}={value}")


def _check_lists(params: Any) -> None:
    ids = params.stop_token_ids
    if ids is not None and (not isinstance(ids, list) or not ids or any(type(i) is not int for i in ids)):
        raise TypeError(f"stop_token_ids is {ids!r}; expected a list of int")
    bias = params.embedding_bias
    if bias is not None and (not isinstance(bias, Tensor) or bias.dtype != "float32"):
        raise TypeError("embedding_bias has to be a float32 tensor")
    for name in ("bad", "stop", "logits_processor", "lookahead_config"):
        if getattr(params, name) is not None:
            raise ValueError(f"{name} needs a tokenizer or is not for this engine")
    if params.n != 1 or params.best_of != 1 or params.use_beam_search:
        raise ValueError("one sequence for each request")


def check_torch_sampler(params: Any, release: Release) -> None:
    """A field that the sampler of the release's PyTorch backend would ignore is an error here."""
    if not release.has_penalties:
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            if getattr(params, name) is not None:
                raise ValueError(f"{name} is ignored by {release.name}")
    if params.min_p is not None and not release.has_min_p:
        raise ValueError(f"min_p is ignored by {release.name}")
    if params.prompt_logprobs is not None and not release.is_since_1_2:
        raise ValueError(f"{release.name} has no log-probabilities of prompts")
    if params.return_context_logits or params.return_generation_logits:
        raise ValueError("this backend is asked for log-probabilities, not for logits")
