"""Make the small demo checkpoint: `python -m examples.demo_model.make_demo DIR`.

A complete Hugging Face directory of the Mistral architecture in the compressed-tensors mxfp4-pack-quantized
layout, made in a few seconds without a network. Its weights are random numbers: it answers GIBBERISH. It is
there for tests and measurements of the service; `make serve` serves a trained one. The same seed gives the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from engines.checkpoint.safetensors_writer import write_safetensors
from examples.demo_model import recipe

RECIPE_VERSION = 1
FILES = (
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip

_HERE = Path(__file__).parent


class DemoError(Exception):
    """The demo checkpoint cannot be made where it was asked for."""


def make_demo(directory: Path, *, seed: int = 0) -> bool:
    """Make the checkpoint at `directory`; returns False when it is already there, complete and of this seed.

    It is written beside its place and renamed, so that a half-made one never bears its name. An older or
    broken demo there is replaced; anything else is left alone and DemoError raised.
    """
    if is_complete(directory, seed=seed):
        return False
    if directory.exists() and not _is_ours(directory):
        raise DemoError(
            f"{directory} exists and is not a demo checkpoint; choose another directory or remove it first"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        aside.chmod(0o755)
        _write_files(aside, seed)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def is_complete(directory: Path, *, seed: int = 0) -> bool:
    """Whether `directory` holds every file of the demo checkpoint that this recipe and seed make."""
    readme = directory / "README.md"
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size for name in FILES
    ) and readme.read_text(encoding="utf-8") == _readme(seed)


def _is_ours(directory: Path) -> bool:
    """An empty directory, or one whose README is that of some demo checkpoint."""
    if not directory.is_dir():
        return False
    readme = directory / "README.md"
    title = _readme(0).splitlines()[0]
    if readme.is_file():
        return readme.read_text(encoding="utf-8", errors="replace").startswith(title)
    return not any(directory.iterdir())


def _write_files(directory: Path, seed: int) -> None:
    tokenizer = recipe.train_tokenizer((_HERE / "corpus.txt").read_text(encoding="utf-8").splitlines())
    tokenizer.save(str(directory / "tokenizer.json"))
    shutil.copyfile(_HERE / "chat_template.jinja", directory / "chat_template.jinja")
    _write_json(directory / "tokenizer_config.json", recipe.tokenizer_config())
    _write_json(directory / "config.json", recipe.model_config())
    _write_json(
        directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "use_cache": True}
    )
    _write_weights(directory / "model.safetensors", recipe.random_weights(seed))
    (directory / "README.md").write_text(_readme(seed), encoding="utf-8")


def _readme(seed: int) -> str:
    return (
        "# Nybble's demo checkpoint\n\n"
        f"Made by examples/demo_model/make_demo.py, recipe {RECIPE_VERSION}, seed {seed}. A small Mistral\n"
        "model in the compressed-tensors MXFP4 layout. Its weights are random numbers, never trained:\n"
        "whatever it is asked, it answers gibberish. It shows that the service works, no more.\n"
    )


def _write_weights(path: Path, tensors: recipe.Tensors) -> None:
    entries = [
        (name, dtype, array.shape, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        for name, (dtype, array) in tensors.items()
    ]
    write_safetensors(path, entries, {"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.make_demo", description=__doc__)
    parser.add_argument("directory", type=Path, help="where to make the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")
    options = parser.parse_args(arguments)
    try:
        made = make_demo(options.directory, seed=options.seed)
    except (DemoError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    if made:
        print(f"made the demo checkpoint in {options.directory} (random weights: it answers gibberish)")
    else:
        print(f"the demo checkpoint in {options.directory} is there already")


if __name__ == "__main__":
    main()
