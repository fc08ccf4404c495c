"""`build_manifest.json`: what an engine directory was made of, for which machine, and what it has to answer.

TensorRT-LLM's own config.json names neither the GPU's architecture nor TensorRT's version, so an engine from
another machine would be found out only when it fails, or worse, when it does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from packaging.version import InvalidVersion, Version
from pydantic import TypeAdapter, ValidationError

from engines.checkpoint.file_digest import file_digest
from engines.checkpoint.json_file import read_json_object
from engines.errors import MalformedCheckpoint
from engines.trtllm.errors import StaleEngine
from engines.trtllm.launch import ALONE, Launch
from engines.trtllm.machine import Machine

MANIFEST_FILE = "build_manifest.json"
MANIFEST_VERSION = 1
_REHASHED_LIMIT_BYTES = 1 << 20  # larger files are compared by size only when an engine is loaded


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The limits and layout an engine was made with. `max_seq_len` counts prompt and generated tokens,
    `max_num_tokens` the tokens of one step; `kv_cache_dtype` is "bfloat16" or "fp8".

    `logprobs` concerns TensorRT engines: "none", those of "generated" tokens, or "all", the prompt's too.
    """

    tensor_parallel: int
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    kv_cache_dtype: str
    logprobs: str = "none"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of the engine directory; `name` is relative to it."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt and the CPU engine's greedy answer to it.

    `logprobs[i]` is the natural logarithm of the probability of `token_ids[i]`, and `margins[i]` how far the
    runner-up lies below it: where the margin is small, another order of summation may choose the other one.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`path` is "engine" (TensorRT, trtllm-build) or "pytorch" (the directory is a Hugging Face checkpoint).
    `source_fingerprint` changes with the sizes and times of the source's files, `source_digest` with content.

    `target` and `target_sm`: what it was made for; `machine`: where it was made. `argv`: trtllm-build's for
    "engine", trtllm-serve's for "pytorch". `build_key`: the digest of everything the result depends on.
    """

    manifest_version: int
    nybble_version: str
    created_at: str
    path: Literal["engine", "pytorch"]
    build_key: str
    source: str
    source_digest: str
    source_layout: str
    target: str
    target_sm: int
    tensorrt_llm_version: str
    machine: Machine
    options: BuildOptions
    argv: tuple[str, ...]
    files: tuple[FileRecord, ...]
    canaries: tuple[Canary, ...]
    notes: tuple[str, ...] = ()
    source_fingerprint: str = ""


_ADAPTER = TypeAdapter(Manifest)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write it beside its place and rename: whole or absent. OSError as the file system does."""
    path = directory / MANIFEST_FILE
    aside = path.with_name(f".{MANIFEST_FILE}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def has_manifest(directory: Path) -> bool:
    """Whether `directory` was made by `nybble build`."""
    return (directory / MANIFEST_FILE).is_file()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an engine directory. Raises MalformedCheckpoint when it is absent or makes no sense."""
    path = directory / MANIFEST_FILE
    raw = read_json_object(path)
    if raw.get("manifest_version") != MANIFEST_VERSION:
        raise MalformedCheckpoint(
            f"{path}: manifest_version is {raw.get('manifest_version')!r:.50}; this nybble reads "
            f"{MANIFEST_VERSION}; build the engine again"
        )
    try:
        manifest = _ADAPTER.validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MalformedCheckpoint(f"{path}: {where}: {first['msg']} (got {first['input']!r:.100})") from None
    for record in manifest.files:
        if Path(record.name).is_absolute() or ".." in Path(record.name).parts:
            raise MalformedCheckpoint(f"{path}: {record.name!r:.200} is no name within the directory")
    for canary in manifest.canaries:
        if not len(canary.token_ids) == len(canary.logprobs) == len(canary.margins):
            raise MalformedCheckpoint(f"{path}: a canary's token_ids, logprobs and margins differ in length")
    return manifest


def load_for(directory: Path, machine: Machine, launch: Launch = ALONE) -> Manifest:
    """The manifest, once it is sure that `machine` may load it. Raises StaleEngine, CheckpointError."""
    manifest = read_manifest(directory)
    reasons = stale_reasons(manifest, directory, machine, launch)
    if reasons:
        advice = f"Build it again on this machine: nybble build {manifest.source} ENGINE_DIR"
        if not machine.gpus:
            advice = f"Serve it where such a GPU is, or here: nybble serve {manifest.source} --engine cpu"
        raise StaleEngine(f"{directory}: cannot be loaded here: {'; '.join(reasons)}. {advice}")
    return manifest


def stale_reasons(
    manifest: Manifest, directory: Path, machine: Machine, launch: Launch = ALONE
) -> tuple[str, ...]:
    """Why the engine in `directory` must not be loaded on `machine`; empty when it may.

    Small files are hashed again, large ones compared by size; `verify_files` hashes all.
    """
    return (
        *changed_files(manifest, directory),
        *_foreign_gpu(manifest, machine, launch),
        *_foreign_release(manifest, machine),
    )


def changed_files(manifest: Manifest, directory: Path) -> tuple[str, ...]:
    """What is wrong with the files, by size, and for small ones by digest; empty when nothing is."""
    return tuple(_changed_files(manifest, directory, limit_bytes=_REHASHED_LIMIT_BYTES))


def verify_files(manifest: Manifest, directory: Path) -> tuple[str, ...]:
    """What is wrong with the files, every byte read; empty when nothing is."""
    return tuple(_changed_files(manifest, directory, limit_bytes=None))


def record_files(directory: Path, names: Sequence[str]) -> tuple[FileRecord, ...]:
    """Size and digest of each file, in the order of `names`."""
    return tuple(
        FileRecord(name, (directory / name).stat().st_size, file_digest(directory / name)) for name in names
    )


def _changed_files(manifest: Manifest, directory: Path, *, limit_bytes: int | None) -> list[str]:
    reasons = []
    for record in manifest.files:
        path = directory / record.name
        if not path.is_file():
            reasons.append(f"{record.name} is missing")
            continue
        size = path.stat().st_size
        if size != record.num_bytes:
            reasons.append(f"{record.name} has {size} bytes, the build wrote {record.num_bytes}")
        elif (limit_bytes is None or size <= limit_bytes) and file_digest(path) != record.sha256:
            reasons.append(f"{record.name} is not the file the build wrote (its digest differs)")
    return reasons


def _foreign_gpu(manifest: Manifest, machine: Machine, launch: Launch) -> list[str]:
    if not machine.gpus:
        return [f"it needs a GPU of SM {manifest.target_sm} and this machine shows none (nvidia-smi)"]
    needed = manifest.options.tensor_parallel
    if len(machine.gpus) < needed and not launch.is_multi_node:
        return [f"it was split over {needed} GPUs and this machine has {len(machine.gpus)}"]
    return [
        f"it was made for {manifest.target} (SM {manifest.target_sm}) and GPU {index} is {gpu.name} "
        f"(SM {gpu.sm})"
        for index, gpu in enumerate(machine.gpus[:needed])
        if gpu.sm != manifest.target_sm
    ]


def _foreign_release(manifest: Manifest, machine: Machine) -> list[str]:
    built, running = manifest.tensorrt_llm_version, machine.tensorrt_llm_version
    if running is None:
        return [f"tensorrt-llm is not installed (it was made for {built})"]
    if manifest.path == "pytorch":
        return _foreign_options(built, running)
    reasons = []
    if running != built:
        reasons.append(f"it was built by TensorRT-LLM {built} and {running} is installed")
    for what, before, now in (
        ("TensorRT", manifest.machine.tensorrt_version, machine.tensorrt_version),
        ("CUDA", _major(manifest.machine.cuda_version), _major(machine.cuda_version)),
    ):
        if before is not None and now != before:
            reasons.append(f"it was built with {what} {before} and {now or 'none'} is installed")
    return reasons


def _foreign_options(planned: str, running: str) -> list[str]:
    """A checkpoint is portable; its options hold from the release they were written for upwards (a later one
    has the fixes that an earlier one had to be steered around) and within one major release."""
    try:
        before, now = Version(planned), Version(running)
    except InvalidVersion as error:
        return [f"a version cannot be understood: {error}"]
    if now < before or now.major != before.major:
        return [f"its options were written for TensorRT-LLM {planned} and {running} is installed"]
    return []


def _major(version: str | None) -> str | None:
    return None if version is None else version.partition(".")[0]
