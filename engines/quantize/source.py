"""The unquantised checkpoint a run reads, and proof that it stays the same meanwhile."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.file_digest import file_digest
from engines.errors import UnsupportedCheckpoint
from engines.quantize.errors import SourceChanged

# What a server or client needs besides weights and config.json.
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model*",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
)


class Source:
    """An open source checkpoint and the digests of all files that the output depends on."""

    def __init__(self, directory: Path) -> None:
        """Open and digest `directory`.

        Raises CheckpointError for files that cannot be used, UnsupportedCheckpoint for a quantised one.
        """
        self.directory = directory
        self.checkpoint = Checkpoint.open(directory)
        if self.checkpoint.quantization is not None:
            raise UnsupportedCheckpoint(
                f"{directory}: is quantised already ({self.checkpoint.layout.value}); expected a BF16, FP16 "
                "or FP32 checkpoint (`nybble convert` rewrites quantised ones)"
            )
        self.copied = _matching(directory)
        self._files = [directory / "config.json", *self.copied, *self.checkpoint.tensors.paths]
        self._identity = {path: _identity(path) for path in self._files}
        with ThreadPoolExecutor(max_workers=4) as pool:
            digests = list(pool.map(file_digest, self._files))
        self.digests = {
            str(path.relative_to(directory)): digest
            for path, digest in zip(self._files, digests, strict=True)
        }

    def require_unchanged(self) -> None:
        """Raise SourceChanged when a file was replaced or written to since it was opened."""
        for path, before in self._identity.items():
            try:
                now = _identity(path)
            except OSError:
                now = None
            if now != before:
                raise SourceChanged(
                    f"{path}: has changed while it was being quantised, so the result would be of no model; "
                    "start again once the source is at rest"
                )

    def copy_companions(self, target: Path) -> None:
        """Copy tokenizer, template and generation files."""
        for path in self.copied:
            copy = target / path.relative_to(self.directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _matching(directory: Path) -> list[Path]:
    found = {path for pattern in _COPIED for path in directory.glob(pattern) if path.is_file()}
    return sorted(found)


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
