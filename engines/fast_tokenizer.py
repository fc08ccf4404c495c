"""Loading a checkpoint's tokenizer with transformers: no network, no code of its own, one kind of error.

Shared by the service and the offline commands, so that both read the same files the same way.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from engines.errors import EngineError

TOKENIZER_FILE = "tokenizer.json"
MAX_FILE_BYTES = 256 * 1024 * 1024
_CONFIG_FILE = "tokenizer_config.json"
# What transformers 5 writes for a tokenizer that tokenizer.json describes completely; unknown to 4.
_GENERIC_CLASS = "TokenizersBackend"


class TokenizerUnusable(EngineError):
    """The tokenizer's files are absent, damaged, or of a kind that has no fast form."""


def load_fast_tokenizer(directory: Path) -> Any:
    """The transformers tokenizer of `directory` (a PreTrainedTokenizerFast). Raises TokenizerUnusable."""
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        raise TokenizerUnusable(
            f"no {TOKENIZER_FILE} in {directory}; text needs one (save the model's tokenizer there with "
            "transformers' save_pretrained)"
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise TokenizerUnusable(f"{path} has {path.stat().st_size} bytes; expected at most {MAX_FILE_BYTES}")
    # transformers prints an advisory about PyTorch on import; this is its own switch for that.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind: Any = PreTrainedTokenizerFast if _is_generic(directory) else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    # Whatever the files hold, the answer is one kind of error; a Rust panic comes as a BaseException.
    except BaseException as error:
        raise TokenizerUnusable(f"cannot load the tokenizer in {directory}: {_one_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerUnusable(
            f"the tokenizer in {directory} is a {type(tokenizer).__name__}, which has no fast form; expected "
            f"one described by {TOKENIZER_FILE}"
        )
    return tokenizer


def _is_generic(directory: Path) -> bool:
    """Whether the configuration names the class that only transformers 5 has; anything odd is left to it."""
    path = directory / _CONFIG_FILE
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return False
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("tokenizer_class") == _GENERIC_CLASS


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
