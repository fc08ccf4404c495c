"""A checkpoint in the peers' formats, kept in a folder so that the next comparison need not convert again."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import engines
from engines.bench.peers.conversion.bfloat16_checkpoint import write_bfloat16
from engines.bench.peers.conversion.gguf_file import write_gguf
from engines.bench.peers.system import PeerUnavailable
from engines.bench.phase import OnProgress
from engines.checkpoint.checkpoint import Checkpoint

_WRITER_VERSION = "1"  # another one when files written before are no longer right
_CONVERSION_SECONDS = 3600.0
_LAST_WORDS = 300


class ConvertedModels:
    """The converted models of one checkpoint below `folder`, made when they are first asked for."""

    def __init__(self, folder: Path, checkpoint: Path, on_progress: OnProgress) -> None:
        self._checkpoint = checkpoint
        self._folder = folder / f"{checkpoint.resolve().name}-{fingerprint(checkpoint)}"
        self._on_progress = on_progress

    def gguf(self, weight_type: str) -> Path:
        """A GGUF file with linear layers of `weight_type`. Raises PeerUnavailable, OSError."""
        path = self._folder / f"{weight_type}.gguf"
        if not path.exists():
            self._begin(path)
            write_gguf(Checkpoint.open(self._checkpoint), path, weight_type)
        return path

    def bfloat16(self) -> Path:
        """A bfloat16 checkpoint. Raises OSError."""
        path = self._folder / "bfloat16"
        if not path.exists():
            self._begin(path)
            write_bfloat16(Checkpoint.open(self._checkpoint), path)
        return path

    def openvino(self, mode: str, python: Path) -> Path:
        """OpenVINO IR, made by the tools of `python`. Raises PeerUnavailable with their words, OSError."""
        path = self._folder / f"openvino-{mode}"
        if not path.exists():
            source = self.bfloat16()
            self._begin(path)
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=self._folder))
            try:
                _run_openvino(python, source, aside, mode)
                aside.chmod(0o755)
                os.replace(aside, path)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return path

    def _begin(self, path: Path) -> None:
        self._on_progress(f"converting to {path.name}")
        self._folder.mkdir(parents=True, exist_ok=True)


def fingerprint(checkpoint: Path) -> str:
    """Twelve hexadecimal digits that change with the configuration and with the files of weights."""
    digest = hashlib.sha256(_WRITER_VERSION.encode())
    digest.update((checkpoint / "config.json").read_bytes())
    for path in sorted(checkpoint.glob("*.safetensors")):
        facts = path.stat()
        digest.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def _run_openvino(python: Path, source: Path, target: Path, mode: str) -> None:
    with tempfile.TemporaryDirectory(prefix="nybble-worker-") as folder:
        Path(folder, "engines").symlink_to(Path(engines.__file__).parent)
        module = "engines.bench.peers.conversion.openvino_ir"
        try:
            ended = subprocess.run(
                [str(python), "-m", module, str(source), str(target), mode],
                cwd=folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                capture_output=True,
                check=False,
                timeout=_CONVERSION_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerUnavailable(f"conversion to OpenVINO IR cannot be run: {error}") from error
    if ended.returncode != 0:
        said = " ".join(ended.stderr.decode(errors="replace").split())[-_LAST_WORDS:]
        raise PeerUnavailable(f"conversion to OpenVINO IR ended with status {ended.returncode}: {said}")
