"""tensorrt_llm.LLM: the constructor, which refuses a lot, and the methods the engine uses."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tests.support.fake_tensorrt_llm.behaviour import Behaviour
from tests.support.fake_tensorrt_llm.executor import Executor, Sequence
from tests.support.fake_tensorrt_llm.guided_decoding import read_vocabulary
from tests.support.fake_tensorrt_llm.releases import Release
from tests.support.fake_tensorrt_llm.results import RequestError, RequestOutput
from tests.support.fake_tensorrt_llm.sampling_params import check_torch_sampler
from tests.support.fake_tensorrt_llm.torch_module import OutOfMemoryError
from tests.support.fake_tensorrt_llm.workers import join_workers


class IterationResult:
    """Async iterator over the steps' figures; it ends when none has come for `timeout` seconds."""

    def __init__(self, queue: asyncio.Queue[dict[str, Any]], timeout: float | None) -> None:
        self._queue = queue
        self._timeout = timeout

    def __aiter__(self) -> IterationResult:
        return self

    async def __anext__(self) -> dict[str, Any]:
        try:
            return await asyncio.wait_for(self._queue.get(), self._timeout)
        except asyncio.TimeoutError:
            raise StopAsyncIteration from None


def llm_class(release: Release, arguments_class: type, sampling_class: type, behaviour: Behaviour) -> type:
    """The class of this release, with its `generate_async`."""

    class LLM(_Base):
        _release = release
        _arguments_class = arguments_class
        _sampling_class = sampling_class
        _behaviour = behaviour

    # The release decides which arguments there are: an unknown one is Python's own TypeError.
    if release.is_new:
        LLM.generate_async = _generate_async_with_priority
        LLM._check_health = lambda self: not behaviour.is_rank_lost
    elif release.is_since_1_2:
        LLM.generate_async = _generate_async_1_2
    else:
        LLM.generate_async = _generate_async_1_0
    return LLM


class _Base:
    _release: Release
    _arguments_class: type
    _sampling_class: type
    _behaviour: Behaviour

    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs")}
        given.pop("__class__", None)
        try:
            self.args = self._arguments_class(**given, **kwargs)
        except ValidationError as error:
            raise ValueError(f"bad arguments for LLM: {error}") from None
        if skip_tokenizer_init is (self.args.guided_decoding_backend is not None):
            raise AssertionError("the engine needs a tokenizer for guided decoding, and for nothing else")
        join_workers(self.args, self._behaviour)
        assert self._behaviour.may_load.wait(30)
        if self._behaviour.is_out_of_memory:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 1.75 GiB.")
        config = json.loads((Path(model) / "config.json").read_text())
        if ("pretrained_config" in config) != hasattr(self, "is_tensorrt"):
            raise ValueError(f"{model} is not what this class loads")
        kv_cache_dtype = getattr(self.args.kv_cache_config, "dtype", "auto")
        if kv_cache_dtype not in ("auto", "fp8", "nvfp4"):
            raise ValueError(f"overriding KV cache quantization with an invalid type {kv_cache_dtype!r}")
        self._max_seq_len = self.args.max_seq_len or config["build_config"]["max_seq_len"]
        self._build_config = config.get("build_config", {})
        config = config.get("pretrained_config", config)
        self._vocab_size = config["vocab_size"]
        self._executor = Executor(self.args, self._vocab_size, self._release, self._behaviour)
        if self.args.guided_decoding_backend is not None:
            self._executor.vocabulary = read_vocabulary(Path(model), self._vocab_size)
        self._ids = itertools.count(1)
        self._is_shut_down = False
        self._behaviour.llms.append(self)

    def get_stats_async(self, timeout: float | None = 2) -> IterationResult:
        return IterationResult(self._executor.stats, timeout)

    def shutdown(self) -> None:
        if self._behaviour.ignores_shutdown:
            threading.Event().wait()
        self._is_shut_down = True
        self._executor.stop()

    def _submit(
        self, inputs: Any, params: Any, streaming: bool, cache_salt: str | None = None
    ) -> RequestOutput:
        asyncio.get_running_loop()  # RuntimeError outside of one
        if self._is_shut_down:
            raise RuntimeError("LLM is shutting down")
        self._check(inputs, params, streaming)
        self._behaviour.received.append((list(inputs), params, streaming))
        if self._behaviour.refused_token in inputs:
            raise RequestError("the prompt is refused")
        result = RequestOutput(next(self._ids), list(inputs), params, streaming)
        self._behaviour.results.append(result)
        self._executor.submit(Sequence(result, params, list(inputs), is_cached=cache_salt is None))
        return result

    def _check(self, inputs: Any, params: Any, streaming: bool) -> None:
        if not isinstance(inputs, list) or not inputs or any(type(token) is not int for token in inputs):
            raise TypeError("inputs must be a list of int here")
        if not isinstance(params, self._sampling_class):
            raise TypeError(f"sampling_params must be SamplingParams, got {type(params)}")
        if type(streaming) is not bool:
            raise TypeError("streaming must be a bool")
        if params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        ids = [*inputs, *(params.stop_token_ids or ())]
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise ValueError("a token id is outside the vocabulary")
        if params.guided_decoding is not None and self.args.guided_decoding_backend is None:
            raise ValueError("guided decoding needs guided_decoding_backend")
        if params.embedding_bias is not None and params.embedding_bias.shape != (self._vocab_size,):
            raise ValueError(f"embedding_bias has shape {params.embedding_bias.shape}")
        if len(inputs) > self.args.max_num_tokens and not self.args.enable_chunked_prefill:
            raise ValueError("prompt length should not exceed max_num_tokens")
        if hasattr(self, "is_tensorrt"):
            self._check_logits(params, streaming)
        else:
            check_torch_sampler(params, self._release)
        if len(inputs) + params.max_tokens > self._max_seq_len:
            raise ValueError("prompt and max_tokens exceed max_seq_len: the real one would not notice")
        if self._executor.num_blocks * self._executor.tokens_per_block < len(inputs) + params.max_tokens:
            raise ValueError("the request can never fit the KV cache")

    def _check_logits(self, params: Any, streaming: bool) -> None:
        """What an engine may be asked for: it has the logits that it was told to keep, twice."""
        if params.logprobs is not None:
            if not (
                self.args.gather_generation_logits and self._build_config.get("gather_generation_logits")
            ):
                raise ValueError("logprobs requires gather_generation_logits=True")
            if streaming:
                raise ValueError("that these can be streamed is not known")
        if params.prompt_logprobs is not None:
            raise ValueError("the entries of an engine need not contain the prompt's tokens")
        if params.return_context_logits and not self._build_config.get("gather_context_logits"):
            raise ValueError("return_context_logits requires gather_context_logits in the build")


def _generate_async_1_0(
    self: Any,
    inputs: Any,
    sampling_params: Any = None,
    lora_request: Any = None,
    prompt_adapter_request: Any = None,
    streaming: bool = False,
    kv_cache_retention_config: Any = None,
    disaggregated_params: Any = None,
    _postproc_params: Any = None,
) -> RequestOutput:
    return self._submit(inputs, sampling_params, streaming)


def _generate_async_1_2(
    self: Any,
    inputs: Any,
    sampling_params: Any = None,
    lora_request: Any = None,
    prompt_adapter_request: Any = None,
    streaming: bool = False,
    kv_cache_retention_config: Any = None,
    disaggregated_params: Any = None,
    _postproc_params: Any = None,
    scheduling_params: Any = None,
    cache_salt: str | None = None,
) -> RequestOutput:
    return self._submit(inputs, sampling_params, streaming, cache_salt)


def _generate_async_with_priority(
    self: Any,
    inputs: Any,
    sampling_params: Any = None,
    lora_request: Any = None,
    prompt_adapter_request: Any = None,
    streaming: bool = False,
    kv_cache_retention_config: Any = None,
    disaggregated_params: Any = None,
    _postproc_params: Any = None,
    scheduling_params: Any = None,
    cache_salt: str | None = None,
    trace_headers: Any = None,
    conversation_params: Any = None,
    priority: float = 0.5,
) -> RequestOutput:
    if type(priority) is not float or not 0.0 <= priority <= 1.0:
        raise ValueError(f"priority is {priority!r}; expected 0 to 1")
    return self._submit(inputs, sampling_params, streaming, cache_salt)
