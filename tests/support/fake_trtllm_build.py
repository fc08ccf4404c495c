#!/usr/bin/env python3
"""A stand-in for trtllm-build, as strict as its published options: unknown ones end with status 2.

It loads the checkpoint as TensorRT-LLM's loader does (names, shapes, ranks), and writes an engine directory.
FAKE_TRTLLM_BUILD in the environment makes it fail: "crash:<code>:<text>", "kill:<signal>", "half" (writes
half an engine and is killed), "forget" (writes no engine), "wrong" (another batch size).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

VERSION = os.environ.get("FAKE_TRTLLM_VERSION", "1.2.1")
CONFIG_KEYS = {"moe": {"num_experts", "top_k", "normalization_mode", "tp_mode"}}
CONFIG_KEYS["mapping"] = {
    "world_size", "gpus_per_node", "cp_size", "tp_size", "pp_size", "moe_tp_size", "moe_ep_size",
}  # fmt: skip
CONFIG_KEYS["quantization"] = {
    "quant_algo", "kv_cache_quant_algo", "group_size", "smoothquant_val", "clamp_val", "use_meta_recipe",
    "has_zero_point", "pre_quant_scale", "exclude_modules",
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("trtllm-build", allow_abbrev=False)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("engine_outputs"))
    gemm = ["auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"]
    parser.add_argument("--gemm_plugin", choices=gemm)
    for name in (
        "max_batch_size",
        "max_input_len",
        "max_seq_len",
        "max_num_tokens",
        "max_beam_width",
        "workers",
    ):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--kv_cache_type", choices=["continuous", "paged", "disabled"])
    for name in ("use_paged_context_fmha", "use_fp8_context_fmha"):
        parser.add_argument(f"--{name}", choices=["enable", "disable"])
    for name in ("gather_generation_logits", "gather_context_logits"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--log_level")
    return parser.parse_args()


def load(directory: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((directory / "config.json").read_text())
    for section, known in CONFIG_KEYS.items():
        for key in config.get(section) or {}:
            if key not in known:
                raise TypeError(f"__init__() got an unexpected keyword argument '{key}'")
    for rank in range(config["mapping"]["world_size"]):
        path = directory / f"rank{rank}.safetensors"
        assert path.is_file()
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        missing = {"transformer.layers.0.attention.qkv.weight", "lm_head.weight"} - set(header)
        if missing:
            raise RuntimeError(f"Required but not provided tensors:{missing}")
    return config


def main() -> None:
    options = parse()
    print("[TensorRT-LLM] TensorRT-LLM version:", VERSION, flush=True)
    mode, *rest = os.environ.get("FAKE_TRTLLM_BUILD", "").split(":", 2)
    config = load(options.checkpoint_dir)
    print("[TRT-LLM] [I] Building engine", flush=True)
    if mode == "crash":
        print(rest[1], file=sys.stderr, flush=True)
        sys.exit(int(rest[0]))
    if mode == "kill":
        os.kill(os.getpid(), getattr(signal, rest[0]))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    build_config = {
        name: getattr(options, name)
        for name in (
            "max_batch_size",
            "max_seq_len",
            "max_num_tokens",
            "gather_generation_logits",
            "gather_context_logits",
        )
    }
    if mode == "wrong":
        build_config["max_batch_size"] += 1
    document = {"version": VERSION, "pretrained_config": config, "build_config": build_config}
    (options.output_dir / "config.json").write_text(json.dumps(document))
    for rank in range(config["mapping"]["world_size"]):
        if mode != "forget":
            (options.output_dir / f"rank{rank}.engine").write_bytes(b"engine")
        if mode == "half":
            os.kill(os.getpid(), signal.SIGKILL)
    print("[TRT-LLM] [I] Total time of building all engines: 00:00:01", flush=True)


if __name__ == "__main__":
    main()
