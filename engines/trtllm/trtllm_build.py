"""The trtllm-build program: its arguments, its run, and what is known about how it fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.trtllm.errors import BuildRefused, BuildToolFailed
from engines.trtllm.manifest import BuildOptions

PROGRAM = "trtllm-build"
_TAIL_LINES = 20
_SEARCHED_LINES = 400

OnLine = Callable[[str], None]


def build_argv(
    checkpoint_directory: Path, output_directory: Path, options: BuildOptions, *, fp8_context: bool
) -> tuple[str, ...]:
    """The command line; flags that every release from 1.0 to 1.2.x has.

    `fp8_context`: attention may compute its prompt part in FP8, which needs an FP8 KV cache and a quantised
    output projection. Log-probabilities are made from logits, which an engine keeps only when told to.
    """
    argv: tuple[str, ...] = (
        *(PROGRAM, "--checkpoint_dir", str(checkpoint_directory)),
        *("--output_dir", str(output_directory)),
        *("--gemm_plugin", "nvfp4"),
        *("--max_batch_size", str(options.max_batch_size)),
        *("--max_input_len", str(options.max_seq_len)),
        *("--max_seq_len", str(options.max_seq_len)),
        *("--max_num_tokens", str(options.max_num_tokens)),
        *("--max_beam_width", "1"),
        *("--kv_cache_type", "paged"),
        *("--use_paged_context_fmha", "enable"),
        *("--workers", str(options.tensor_parallel)),
        *("--log_level", "info"),
    )
    if fp8_context:
        argv = (*argv, "--use_fp8_context_fmha", "enable")
    if options.logprobs != "none":
        argv = (*argv, "--gather_generation_logits")
    if options.logprobs == "all":
        argv = (*argv, "--gather_context_logits")
    return argv


def require_program() -> Path:
    """Where trtllm-build is. Raises BuildRefused when it is not on the PATH."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise BuildRefused(
            f"{PROGRAM} is not on the PATH; run nybble where TensorRT-LLM 1.0 to 1.2 is installed (its "
            "container nvcr.io/nvidia/tensorrt-llm/release:1.2.1 has it), or use --path pytorch"
        )
    return Path(found)


def run_build(argv: Sequence[str], log: Path, on_line: OnLine = lambda _: None) -> None:
    """Run the program to its end; every line goes to `log` and to `on_line` as it comes.

    Ends the program when this one is interrupted. Raises BuildToolFailed with advice, BuildRefused.
    """
    program = require_program()
    tail: deque[str] = deque(maxlen=_SEARCHED_LINES)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(argv)}\n")
        try:
            process = subprocess.Popen(
                (str(program), *argv[1:]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        except OSError as error:
            raise BuildRefused(f"{program}: cannot be started ({error.strerror})") from error
        with process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    tail.append(line.rstrip())
                    on_line(tail[-1])
            except BaseException:
                process.terminate()
                raise
        exit_code = process.wait()
    if exit_code:
        raise BuildToolFailed(_explain(exit_code, list(tail), log), exit_code=exit_code)


@dataclass(frozen=True, slots=True)
class _KnownFailure:
    pattern: re.Pattern[str]
    advice: str


def _known(expression: str, advice: str) -> _KnownFailure:
    return _KnownFailure(re.compile(expression, re.IGNORECASE), advice)


# Texts of the loader and of CUDA; the first that matches a line near the end decides.
_KNOWN_FAILURES = (
    _known(
        r"out of memory|OutOfMemory|std::bad_alloc|cudaErrorMemoryAllocation",
        "memory ran out: stop other programs, lower --max-batch-size, --max-num-tokens or --max-seq-len, and "
        "on GB10 drop the page cache first (sync; echo 3 > /proc/sys/vm/drop_caches)",
    ),
    _known(r"no space left on device", "the disk is full: make room beside ENGINE_DIR; the build resumes"),
    _known(
        r"no CUDA-capable device|found no NVIDIA driver|CUDA driver version is insufficient|"
        r"invalid device ordinal",
        "no usable GPU: the build runs on the GPU it builds for (docker run --gpus all), with a driver that "
        "the container's CUDA accepts and as many GPUs as --tensor-parallel",
    ),
    _known(
        r"Arch unsupported|unsupported (SM|arch)|no kernel image is available",
        "this release has no FP4 kernel for this GPU: use a newer release, or --path pytorch",
    ),
    _known(
        r"Required but not provided tensors",
        "the release expects tensors that the checkpoint writer does not know: compare with the "
        "official converter (scripts/compare_trtllm_checkpoint.py) and report it",
    ),
    _known(
        r"Encounter error .* for parameter",
        "the release expects other shapes than the checkpoint writer's: compare with the official converter "
        "(scripts/compare_trtllm_checkpoint.py) and report it",
    ),
    _known(
        r"got an unexpected keyword argument|Extra inputs are not permitted",
        "the release does not know a key of config.json: it is outside 1.0 to 1.2.x; use --path pytorch",
    ),
    _known(
        r"unrecognized arguments|invalid choice",
        "the release has other options than 1.0 to 1.2.x: use --path pytorch",
    ),
    _known(
        r"cannot open shared object file",
        "a library of TensorRT-LLM is missing (it needs libopenmpi-dev and CUDA): use its container",
    ),
    _known(
        r"No module named 'tensorrt'",
        "this release has no TensorRT backend any more: use --path pytorch",
    ),
    _known(
        r"AssertionError",
        "a file of weights is missing or the architecture is unknown to the release; see the log",
    ),
)
_SIGNAL_ADVICE = {
    signal.SIGKILL: "killed from outside, most often by the kernel because memory ran out (see dmesg): stop "
    "other programs, or lower --max-batch-size and --max-num-tokens",
    signal.SIGSEGV: "it crashed; try another release, or --path pytorch",
    signal.SIGABRT: "it aborted; the last lines say why",
    signal.SIGTERM: "it was told to end",
    signal.SIGINT: "it was interrupted",
}


def _explain(exit_code: int, lines: list[str], log: Path) -> str:
    number = -exit_code if exit_code < 0 else exit_code - 128
    how = f"exit code {exit_code}"
    advice = next(
        (
            known.advice
            for line in reversed(lines)
            for known in _KNOWN_FAILURES
            if known.pattern.search(line) is not None
        ),
        None,
    )
    if number in {member.value for member in signal.Signals}:
        stopped_by = signal.Signals(number)
        how = f"signal {stopped_by.name}"
        advice = advice or _SIGNAL_ADVICE.get(stopped_by)
    last = " | ".join(line.strip() for line in lines[-_TAIL_LINES:] if line.strip())[-1500:]
    return (
        f"{PROGRAM} ended with {how}: {advice or 'the cause is not one of the known ones'}. "
        f"The log is {log}; its end: {last or '(empty)'}"
    )
