"""Compare two TensorRT-LLM checkpoints: names, dtypes, shapes, every byte, and config.json.

For whoever has the container: make one with TensorRT-LLM's own converter and one with ours, from the same
Hugging Face NVFP4 directory, and run

    python scripts/compare_trtllm_checkpoint.py OFFICIAL OURS

Tensors that only the official converter writes are listed but are no fault (it stores buffers, too); anything
else that differs is, and the exit status is 1. docs/tensorrt-llm-build.md has the commands.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.errors import CheckpointError

# The official converter leaves these at its defaults; the layers do not read them.
_HARMLESS_KEYS = frozenset({"quantization.group_size", "quantization.exclude_modules", "producer"})


def main() -> None:
    """Entry point; prints one JSON object."""
    parser = argparse.ArgumentParser(description="Compare two TensorRT-LLM checkpoints.")
    parser.add_argument("official", type=Path, metavar="OFFICIAL")
    parser.add_argument("ours", type=Path, metavar="OURS")
    arguments = parser.parse_args()
    try:
        report = compare(arguments.official, arguments.ours)
    except CheckpointError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["equal"] else 1)


def compare(official: Path, ours: Path) -> dict[str, Any]:
    """equal, num_equal_tensors, config [differences], ranks {file: {only_official, only_ours, different}}."""
    names = sorted({path.name for place in (official, ours) for path in place.glob("rank*.safetensors")})
    ranks, num_equal = {}, 0
    for name in names:
        ranks[name] = _compare_rank(official / name, ours / name)
        num_equal += ranks[name].pop("num_equal")
    config = list(
        _config_differences(
            read_json_object(official / "config.json"), read_json_object(ours / "config.json")
        )
    )
    faults = [difference for difference in config if not difference["harmless"]]
    tensors_agree = not any(
        rank["only_ours"] or rank["different"] or rank["missing"] for rank in ranks.values()
    )
    return {
        "equal": bool(names) and tensors_agree and not faults,
        "num_equal_tensors": num_equal,
        "config": config,
        "ranks": ranks,
    }


def _compare_rank(official: Path, ours: Path) -> dict[str, Any]:
    absent = [path.parent.name for path in (official, ours) if not path.exists()]
    if absent:
        return {"missing": absent, "only_official": [], "only_ours": [], "different": [], "num_equal": 0}
    theirs, mine = SafetensorsFile(official), SafetensorsFile(ours)
    common = sorted(set(theirs.tensors) & set(mine.tensors))
    different = [found for name in common if (found := _difference(theirs, mine, name)) is not None]
    return {
        "missing": [],
        "only_official": sorted(set(theirs.tensors) - set(mine.tensors)),
        "only_ours": sorted(set(mine.tensors) - set(theirs.tensors)),
        "different": different,
        "num_equal": len(common) - len(different),
    }


def _difference(theirs: SafetensorsFile, mine: SafetensorsFile, name: str) -> dict[str, Any] | None:
    one, other = theirs.tensors[name], mine.tensors[name]
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return {
            "tensor": name,
            "official": f"{one.dtype} {list(one.shape)}",
            "ours": f"{other.dtype} {list(other.shape)}",
        }
    a = np.ascontiguousarray(theirs.view(name)).reshape(-1).view(np.uint8)
    b = np.ascontiguousarray(mine.view(name)).reshape(-1).view(np.uint8)
    unequal = np.flatnonzero(a != b)
    if not unequal.size:
        return None
    first = int(unequal[0])
    return {
        "tensor": name,
        "num_bytes_different": int(unequal.size),
        "num_bytes": a.size,
        "first_offset": first,
        "official": int(a[first]),
        "ours": int(b[first]),
    }


def _config_differences(official: Any, ours: Any, where: str = "") -> Iterator[dict[str, Any]]:
    """Keys of ours whose values differ; keys that only the official one has are its defaults, harmless."""
    for key in sorted({*official, *ours}):
        name = f"{where}{key}"
        one, other = official.get(key), ours.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _config_differences(one, other, f"{name}.")
        elif one != other:
            harmless = name in _HARMLESS_KEYS or key not in ours
            yield {"key": name, "official": one, "ours": other, "harmless": harmless}


if __name__ == "__main__":
    main()
