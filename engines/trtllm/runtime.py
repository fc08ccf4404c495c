"""The installed TensorRT-LLM, imported as late as possible: its names, its version, its errors."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import MissingExtra, StartFailed
from engines.request import Grammar
from engines.trtllm.guided_decoding import guided_decoding_params
from engines.trtllm.versions import Features, features_of

PACKAGE = "tensorrt_llm"
INSTALL_COMMAND = (
    'pip install "nybble[tensorrt-llm]" (the wheels are in NVIDIA\'s package index), or use the container '
    "nvcr.io/nvidia/tensorrt-llm/release"
)
# Newer releases report usage to NVIDIA unless they are told not to. Worker processes inherit these.
_NO_TELEMETRY = {"TRTLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class Runtime:
    """The imported package. `llm_class` makes models; `request_error` concerns one request only."""

    features: Features
    llm_class: Any
    sampling_class: Any
    llmapi: ModuleType
    torch: ModuleType
    request_error: type[BaseException]
    llm_argument_names: frozenset[str] | None

    def accepts(self, argument: str) -> bool:
        """Whether `LLM(argument=...)` is known to this release."""
        return self.llm_argument_names is None or argument in self.llm_argument_names

    def config_takes(self, class_name: str, argument: str) -> bool:
        """Whether the class of `tensorrt_llm.llmapi` knows the argument in this release."""
        known = field_names(getattr(self.llmapi, class_name, None))
        return known is None or argument in known

    def config(self, class_name: str, arguments: Mapping[str, object]) -> Any:
        """An object of `tensorrt_llm.llmapi`, from the arguments it knows; None when it has no such class."""
        config_class = getattr(self.llmapi, class_name, None)
        if config_class is None:
            return None
        known = field_names(config_class)
        return config_class(
            **{name: value for name, value in arguments.items() if known is None or name in known}
        )

    def tensorrt_engine_class(self) -> Any:
        """The class that loads engines made by trtllm-build. Raises StartFailed where it is gone."""
        if self.features.tensorrt_engines:
            with contextlib.suppress(ImportError, AttributeError):
                return import_module(f"{PACKAGE}._tensorrt_engine").LLM
        raise StartFailed(
            f"TensorRT-LLM {self.features.version} loads no engines made by trtllm-build; build again with "
            "it (`nybble build`), or install the release the engine was built with"
        )

    def sampling_params(self, arguments: Mapping[str, object], bias: NDArray[np.float32] | None) -> Any:
        """`tensorrt_llm.SamplingParams`; `bias` is float32 [vocab_size], added to the logits."""
        values = dict(arguments)
        grammar = values.get("guided_decoding")
        if isinstance(grammar, Grammar):
            values["guided_decoding"] = guided_decoding_params(grammar, self.llmapi)
        if bias is not None:
            values["embedding_bias"] = self.torch.from_numpy(bias)
        return self.sampling_class(**values)


def is_installed() -> bool:
    """Whether the package can be imported; nothing is imported to find out."""
    try:
        return find_spec(PACKAGE) is not None
    except (ImportError, ValueError):
        return False


def load_runtime() -> Runtime:
    """Import TensorRT-LLM with its telemetry switched off. Slow: it imports torch and loads CUDA libraries.

    Raises MissingExtra when it is not installed, StartFailed when it cannot be imported or is not supported.
    """
    if not is_installed():
        raise MissingExtra(
            f"the engine 'trtllm' needs the package tensorrt-llm, which is not installed; {INSTALL_COMMAND}"
        )
    os.environ.update(_NO_TELEMETRY)
    try:
        package = import_module(PACKAGE)
        llmapi = import_module(f"{PACKAGE}.llmapi")
        torch = import_module("torch")
        request_error = import_module(f"{PACKAGE}.executor.utils").RequestError
    except (ImportError, OSError, AttributeError) as error:
        raise StartFailed(
            f"tensorrt-llm is installed but cannot be imported ({type(error).__name__}: {error}); "
            "check that its CUDA, MPI and torch are those it was built for"
        ) from error
    features = features_of(str(package.__version__))
    has_priority = "priority" in inspect.signature(package.LLM.generate_async).parameters
    arguments_class = getattr(llmapi, "TorchLlmArgs", None)
    return Runtime(
        features=dataclasses.replace(features, priority=features.priority and has_priority),
        llm_class=package.LLM,
        sampling_class=package.SamplingParams,
        llmapi=llmapi,
        torch=torch,
        request_error=request_error,
        llm_argument_names=None if arguments_class is None else field_names(arguments_class),
    )


def field_names(config_class: Any) -> frozenset[str] | None:
    """The fields of a pydantic model or dataclass; None for any other class."""
    fields = getattr(config_class, "model_fields", None)
    if fields is not None:
        return frozenset(fields)
    if dataclasses.is_dataclass(config_class):
        return frozenset(field.name for field in dataclasses.fields(config_class))
    return None
