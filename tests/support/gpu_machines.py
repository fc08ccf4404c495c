"""Machines that no test runs on."""

from __future__ import annotations

from engines.trtllm.machine import Gpu, Machine

B200 = Machine(gpus=(Gpu("NVIDIA B200", 100, 180 << 30),) * 2, tensorrt_llm_version="1.4.0rc1")
GB10 = Machine(gpus=(Gpu("NVIDIA GB10", 121, None),), tensorrt_llm_version="1.4.0rc1")
H100 = Machine(gpus=(Gpu("NVIDIA H100", 90, 80 << 30),), tensorrt_llm_version="1.4.0rc1")
NO_GPU = Machine()
