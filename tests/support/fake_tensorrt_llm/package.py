"""The modules, and how they come into and out of sys.modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

from transformers.utils import is_torch_available

from tests.support.fake_tensorrt_llm.arguments import config_classes
from tests.support.fake_tensorrt_llm.behaviour import Behaviour
from tests.support.fake_tensorrt_llm.guided_decoding import guided_decoding_class
from tests.support.fake_tensorrt_llm.llm import llm_class
from tests.support.fake_tensorrt_llm.releases import Release
from tests.support.fake_tensorrt_llm.results import CppExecutorError, RequestError
from tests.support.fake_tensorrt_llm.sampling_params import sampling_params_class
from tests.support.fake_tensorrt_llm.torch_module import torch_module

VERSIONS = ("1.0.0", "1.1.0", "1.2.1", "1.3.0rc13", "1.3.0rc26", "1.4.0rc1")


@contextmanager
def installed(version: str) -> Iterator[Behaviour]:
    """While it is open, `import tensorrt_llm` and `import torch` find the fake ones."""
    # The tokenizers' library looks for torch once and remembers; it must not find this one.
    assert not is_torch_available()
    behaviour = Behaviour()
    modules = build(version, behaviour)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield behaviour
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def build(version: str, behaviour: Behaviour) -> dict[str, ModuleType]:
    """The package of that release, by module name."""
    release = Release(version)
    classes = config_classes(release)
    guided = guided_decoding_class()
    sampling = sampling_params_class(release, guided)
    llm = llm_class(release, classes["TorchLlmArgs"], sampling, behaviour)
    modules = {
        "torch": torch_module(),
        "tensorrt_llm": _module("tensorrt_llm", __version__=version, LLM=llm, SamplingParams=sampling),
        "tensorrt_llm.llmapi": _module(
            "tensorrt_llm.llmapi", LLM=llm, SamplingParams=sampling, GuidedDecodingParams=guided, **classes
        ),
        "tensorrt_llm.executor": _module("tensorrt_llm.executor", CppExecutorError=CppExecutorError),
        "tensorrt_llm.executor.utils": _module("tensorrt_llm.executor.utils", RequestError=RequestError),
    }
    if "TrtLlmArgs" in classes:
        tensorrt_llm = llm_class(release, classes["TrtLlmArgs"], sampling, behaviour)
        tensorrt_llm.is_tensorrt = True
        modules["tensorrt_llm._tensorrt_engine"] = _module("tensorrt_llm._tensorrt_engine", LLM=tensorrt_llm)
    return modules


def _module(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(members)
    return module
