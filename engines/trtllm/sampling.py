"""From a request to the fields of `tensorrt_llm.SamplingParams`, in the form each release accepts.

What a release would ignore or compute otherwise is refused with UnsupportedParameter, never dropped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engines.errors import PromptTooLong, UnsupportedParameter
from engines.request import GenerationRequest, SamplingParams
from engines.trtllm.llm_arguments import Limits
from engines.trtllm.model_facts import ModelFacts
from engines.trtllm.versions import Features

# Added to the logit of a token that must not be chosen; far below any logit, finite in every format but FP16.
_BAN = -1e9
_SEED_BITS = 63
# float32 logits of a prompt pass through this process, a row of the vocabulary's size for each token.
MAX_PROMPT_LOGITS_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Phase:
    """One call of generate_async. `arguments` are SamplingParams' but `embedding_bias`, which is float32
    [vocab_size] in `bias`, or None."""

    prompt_token_ids: tuple[int, ...]
    arguments: Mapping[str, object]
    bias: NDArray[np.float32] | None
    max_tokens: int


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How a request is run, in one phase or two.

    The runtime's own min_tokens holds back one id, `end_id`. When there are more stop tokens than that, the
    first `min_tokens` tokens are generated with all of them banned, and the rest by a second call whose
    prompt is the first one's and what it generated (the prefix cache has it).

    `is_streamed` False: the release has what was asked for only at the end. `discards_token`: the prompt is
    only to be scored, and the runtime generates at least one token. `reads_prompt_logits`: its
    log-probabilities are made here, from logits.
    """

    request: GenerationRequest
    stop_token_ids: frozenset[int]
    max_tokens: int
    num_forced_tokens: int
    is_streamed: bool
    discards_token: bool
    reads_prompt_logits: bool
    seed: int | None
    vocab_size: int

    def first(self) -> Phase:
        """The phase the request begins with."""
        prompt = self.request.prompt_token_ids
        if self.num_forced_tokens:
            return self._phase(prompt, self.num_forced_tokens, frozenset(), banned=self.stop_token_ids)
        return self._phase(prompt, max(self.max_tokens, 1), self.stop_token_ids)

    def second(self, generated: tuple[int, ...]) -> Phase | None:
        """What comes after the forced tokens; None when they were all."""
        remaining = self.max_tokens - len(generated)
        if not self.num_forced_tokens or remaining < 1:
            return None
        later = replace(
            self,
            request=replace(
                self.request, sampling=replace(self.request.sampling, num_prompt_logprobs=None, min_tokens=0)
            ),
            num_forced_tokens=0,
            seed=None if self.seed is None else (self.seed + 1) % 2**_SEED_BITS,
        )
        return later._phase(self.request.prompt_token_ids + generated, remaining, self.stop_token_ids)

    def _phase(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        stop_token_ids: frozenset[int],
        *,
        banned: frozenset[int] = frozenset(),
    ) -> Phase:
        sampling = self.request.sampling
        arguments: dict[str, object] = {
            "max_tokens": max_tokens,
            "detokenize": False,
            # Otherwise the id that ended the sequence is cut off again.
            "include_stop_str_in_output": True,
            **_stop_arguments(
                stop_token_ids, min_tokens=0 if self.num_forced_tokens else sampling.min_tokens
            ),
            **_choice_arguments(sampling, self.seed),
        }
        for name, value, default in (
            ("presence_penalty", sampling.presence_penalty, 0.0),
            ("frequency_penalty", sampling.frequency_penalty, 0.0),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ):
            if value != default:
                arguments[name] = value
        if sampling.grammar is not None:
            arguments["guided_decoding"] = sampling.grammar  # the runtime's own object is made of it last
        # 0 means "none" in older releases and "the sampled token's" in newer ones; 1 always includes that.
        if sampling.num_logprobs is not None:
            arguments["logprobs"] = max(sampling.num_logprobs, 1)
        if sampling.num_prompt_logprobs is not None:
            if self.reads_prompt_logits:
                arguments["return_context_logits"] = True
            else:
                arguments["prompt_logprobs"] = max(sampling.num_prompt_logprobs, 1)
        return Phase(prompt, arguments, _bias(sampling, banned, self.vocab_size), max_tokens)


def plan_sampling(
    request: GenerationRequest, facts: ModelFacts, limits: Limits, features: Features
) -> SamplingPlan:
    """How to run a request that `check_request` has accepted.

    Raises UnsupportedParameter for what the release cannot do, PromptTooLong for a prompt to be scored that
    leaves no room for the token the runtime insists on.
    """
    sampling = request.sampling
    check_support(sampling, features)
    num_prompt_tokens = len(request.prompt_token_ids)
    _check_grammar(sampling)
    _check_prompt_logits(request, facts, features)
    if sampling.max_tokens == 0 and num_prompt_tokens + 1 > limits.max_seq_len:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens and fills the context; TensorRT-LLM needs room for "
            f"one more to score it, so at most {limits.max_seq_len - 1} tokens can be scored",
            param="prompt",
        )
    stop = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else facts.eos_token_ids)
    max_tokens = min(sampling.max_tokens, limits.max_model_len - num_prompt_tokens)
    # The runtime's own min_tokens serves when there is just the one id it knows.
    forced = min(sampling.min_tokens, max_tokens) if len(stop) > 1 else 0
    if forced and (sampling.presence_penalty or sampling.frequency_penalty):
        raise UnsupportedParameter(
            "min_tokens together with several stop tokens and with presence_penalty or frequency_penalty "
            "cannot be done by TensorRT-LLM; leave one of them out",
            param="min_tokens",
        )
    wants_logprobs = sampling.num_logprobs is not None
    return SamplingPlan(
        request=request,
        stop_token_ids=stop,
        max_tokens=max_tokens,
        num_forced_tokens=forced,
        is_streamed=sampling.num_prompt_logprobs is None
        and (features.streaming_logprobs or not wants_logprobs),
        discards_token=sampling.max_tokens == 0,
        reads_prompt_logits=features.prompt_logits,
        seed=_seed(sampling),
        vocab_size=facts.vocab_size,
    )


def check_support(sampling: SamplingParams, features: Features) -> None:
    """Raises UnsupportedParameter for what the release, as it serves the model, would ignore or refuse."""
    asked = (
        ("presence_penalty", features.penalties, sampling.presence_penalty != 0),
        ("frequency_penalty", features.penalties, sampling.frequency_penalty != 0),
        ("repetition_penalty", features.penalties, sampling.repetition_penalty != 1),
        ("min_p", features.min_p, sampling.min_p != 0),
        ("logprobs", features.logprobs, sampling.num_logprobs is not None),
        ("prompt_logprobs", features.prompt_logprobs, sampling.num_prompt_logprobs is not None),
    )
    for param, is_supported, is_asked in asked:
        if is_asked and not is_supported:
            raise UnsupportedParameter(
                f"{param} cannot be had from TensorRT-LLM {features.version} as it serves this model; "
                f"{features.advice if 'logprobs' in param else 'leave it out'}",
                param=param,
            )


def _check_grammar(sampling: SamplingParams) -> None:
    if sampling.grammar is not None and sampling.min_tokens:
        raise UnsupportedParameter(
            f"min_tokens is {sampling.min_tokens}, but TensorRT-LLM would hold back the end of a text that "
            "the grammar says is complete; leave one of them out",
            param="min_tokens",
        )


def _check_prompt_logits(request: GenerationRequest, facts: ModelFacts, features: Features) -> None:
    if request.sampling.num_prompt_logprobs is None or not features.prompt_logits:
        return
    limit = MAX_PROMPT_LOGITS_BYTES // (facts.vocab_size * 4)
    if len(request.prompt_token_ids) > limit:
        raise PromptTooLong(
            f"the prompt has {len(request.prompt_token_ids):,} tokens; log-probabilities of a TensorRT "
            f"engine are made of {facts.vocab_size:,} logits for each; it can score at most {limit:,}",
            param="prompt",
        )


def _stop_arguments(stop_token_ids: frozenset[int], *, min_tokens: int) -> dict[str, object]:
    """`end_id` must be given because the runtime has no tokenizer to take it from; -1 is no token."""
    if not stop_token_ids:
        return {"end_id": -1, "pad_id": -1, "ignore_eos": True}
    end_id, *others = sorted(stop_token_ids)
    arguments: dict[str, object] = {"end_id": end_id, "pad_id": end_id}
    if others:
        arguments["stop_token_ids"] = others
    if min_tokens:
        arguments["min_tokens"] = min_tokens
    return arguments


def _choice_arguments(sampling: SamplingParams, seed: int | None) -> dict[str, object]:
    """Greedy is top_k 1, which every release takes for it; older ones do not look at the temperature.

    top_p is always given when sampling: with neither top_k nor top_p a release decodes greedily.
    """
    if sampling.temperature == 0:
        return {"top_k": 1}
    arguments: dict[str, object] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    if sampling.top_k:
        arguments["top_k"] = sampling.top_k
    if sampling.min_p:
        arguments["min_p"] = sampling.min_p
    return arguments


def _seed(sampling: SamplingParams) -> int | None:
    """The runtime's seed is unsigned, and the same for all requests that name none."""
    if sampling.temperature == 0:
        return None
    if sampling.seed is None:
        return random.getrandbits(_SEED_BITS)
    return sampling.seed & ((1 << _SEED_BITS) - 1)


def _bias(sampling: SamplingParams, banned: frozenset[int], vocab_size: int) -> NDArray[np.float32] | None:
    if not sampling.logit_bias and not banned:
        return None
    bias = np.zeros(vocab_size, np.float32)
    for token_id, value in sampling.logit_bias.items():
        bias[token_id] = value
    bias[list(banned)] = _BAN
    return bias
