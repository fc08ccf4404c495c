"""What each release of TensorRT-LLM can do, of the things that differ between them.

The public class and method names are the same from 1.0 on; what its samplers do is not. A field that a
release takes without acting on it is treated as missing: a request that asks for it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from packaging.version import InvalidVersion, Version

from engines.errors import StartFailed

OLDEST = Version("1.0.0")
NEWEST_LINE = (1, 4)
LAST_WITH_TENSORRT_ENGINES = Version("1.3.0rc20")
_MAX_NUM_LOGPROBS = 20  # what OpenAI's API allows


@dataclass(frozen=True, slots=True)
class Features:
    """What one release offers to the engine.

    `priority`: generate_async takes one (0 to 1, more is sooner). `streaming_logprobs`: log-probabilities
    come with the tokens they belong to, not only at the end. `max_num_logprobs` 0: the sampled token's only.
    `cache_salt`: a prompt can be kept from the prefix cache. `tensorrt_engines`: directories made by
    trtllm-build can be loaded.

    `advice` says how to get the log-probabilities that are missing. `prompt_logits`: those of a prompt are
    made here, from the runtime's logits, because its own need not contain the prompt's tokens.
    """

    version: Version
    priority: bool
    logprobs: bool
    streaming_logprobs: bool
    max_num_logprobs: int
    prompt_logprobs: bool
    penalties: bool
    min_p: bool
    cache_salt: bool
    tensorrt_engines: bool
    prompt_logits: bool = False
    advice: str = "leave it out"


def features_of(version: str) -> Features:
    """The features of the release called `version`. Raises StartFailed for one that is not supported.

    Sources: the release notes of 1.2.0 (streaming log-probabilities), pull requests 6097 (1.0: the sampled
    token's log-probability) and 7580 (1.2: log-probabilities of prompts), the sampling page of the
    documentation of 1.0, 1.2, 1.3.0rc24 and 1.3.0rc26 (penalties are listed for 1.0's sampler and again
    from 1.3.0rc24 on, not between), and the signatures of generate_async.
    """
    try:
        parsed = Version(version)
    except InvalidVersion:
        raise StartFailed(
            f"TensorRT-LLM calls itself {version!r}, which is no version; expected {supported_range()}"
        ) from None
    if parsed < OLDEST or parsed.release[:2] > NEWEST_LINE:
        raise StartFailed(
            f"TensorRT-LLM {version} is not supported; expected {supported_range()}. "
            "Install another one, for instance `pip install tensorrt-llm==1.2.1`"
        )
    is_1_0 = parsed.release[:2] == (1, 0)
    since_1_2 = parsed.release[:2] >= (1, 2)
    return Features(
        version=parsed,
        priority=parsed > LAST_WITH_TENSORRT_ENGINES,
        logprobs=True,
        streaming_logprobs=since_1_2,
        max_num_logprobs=_MAX_NUM_LOGPROBS if since_1_2 else 0,
        prompt_logprobs=since_1_2,
        penalties=is_1_0 or parsed >= Version("1.3.0rc24"),
        min_p=is_1_0 or since_1_2,
        cache_salt=since_1_2,
        tensorrt_engines=parsed <= LAST_WITH_TENSORRT_ENGINES,
    )


def supported_range() -> str:
    """The supported releases in words."""
    return f"{OLDEST} to {'.'.join(map(str, NEWEST_LINE))}"


def features_of_tensorrt_engine(features: Features, logprobs: str, *, prefix_caching: bool) -> Features:
    """What is left, and what comes back, when an engine made by trtllm-build is served.

    Its sampler is the C++ one, which has all penalties. Log-probabilities are made of logits, which it keeps
    as `logprobs` of its BuildOptions says, and come at the end: that they can be streamed is not known. For
    a prompt's, all of it has to be computed: found in the prefix cache it would have no logits.
    """
    advice = (
        "leave it out, or have the engine keep the logits they are made from: nybble build --logprobs all"
    )
    if logprobs == "all" and prefix_caching and not features.cache_salt:
        advice = "leave it out, or start with --no-prefix-caching"
    has_logprobs = logprobs != "none"
    return replace(
        features,
        logprobs=has_logprobs,
        streaming_logprobs=False,
        max_num_logprobs=features.max_num_logprobs if has_logprobs else 0,
        prompt_logprobs=logprobs == "all" and (features.cache_salt or not prefix_caching),
        penalties=True,
        min_p=True,
        prompt_logits=True,
        advice=advice,
    )
