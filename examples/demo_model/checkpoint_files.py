"""The small files of a checkpoint directory: configuration, tokenizer, chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from examples.demo_model.tokenizer import BOS_ID, EOS_ID, tokenizer_config

SIDE_FILES = ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json")

_TEMPLATE = Path(__file__).parent / "chat_template.jinja"


def write_side_files(directory: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Write everything but the weights."""
    tokenizer.save(str(directory / "tokenizer.json"))
    shutil.copyfile(_TEMPLATE, directory / "chat_template.jinja")
    write_json(directory / "tokenizer_config.json", tokenizer_config())
    write_json(directory / "config.json", config)
    generation = {"bos_token_id": BOS_ID, "do_sample": False, "eos_token_id": EOS_ID, "use_cache": True}
    write_json(directory / "generation_config.json", generation)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON with two spaces of indentation, keys in order."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
