"""All tensors of a checkpoint directory, whether they lie in one file or in shards with an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.safetensors_file import SafetensorsFile, TensorInfo
from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_INDEX_LIMIT_BYTES = 100_000_000


class TensorDirectory(Mapping[str, TensorInfo]):
    """Maps every tensor name of a checkpoint to its place; `view` gives its read-only array."""

    def __init__(self, directory: Path) -> None:
        """Open `model.safetensors`, or the shards named by its index. Raises CheckpointError."""
        self.directory = directory
        self._files: dict[str, SafetensorsFile] = {}
        if (directory / SINGLE_FILE).exists():
            file = SafetensorsFile(directory / SINGLE_FILE)
            self._files = dict.fromkeys(file.tensors, file)
        elif (directory / INDEX_FILE).exists():
            self._files = _open_shards(directory)
        else:
            raise _no_weights(directory)

    def __getitem__(self, name: str) -> TensorInfo:
        return self._files[name].tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def view(self, name: str) -> NDArray[Any]:
        """The tensor `name` as `SafetensorsFile.view` gives it. Raises KeyError."""
        return self._files[name].view(name)

    def release_pages(self) -> None:
        """Let go of the files' pages in memory, after a part of a large model has been read through."""
        for file in {id(file): file for file in self._files.values()}.values():
            file.release_pages()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The weight files, in the order of their names."""
        return tuple(sorted({file.path for file in self._files.values()}))


def _open_shards(directory: Path) -> dict[str, SafetensorsFile]:
    index_path = directory / INDEX_FILE
    weight_map = read_json_object(index_path, _INDEX_LIMIT_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedCheckpoint(
            f"{index_path}: has no weight_map; expected tensor names mapped to file names"
        )
    opened: dict[str, SafetensorsFile] = {}
    placed: dict[str, SafetensorsFile] = {}
    for name, shard in weight_map.items():
        if not _is_plain_file_name(shard):
            raise MalformedCheckpoint(
                f"{index_path}: tensor {name!r} is said to be in {shard!r:.200}; expected the plain name of "
                "a .safetensors file in the same directory"
            )
        if shard not in opened:
            opened[shard] = SafetensorsFile(directory / shard)
        if name not in opened[shard].tensors:
            raise MalformedCheckpoint(f"{index_path}: tensor {name!r} is listed in {shard} but absent there")
        placed[name] = opened[shard]
    return placed


def _is_plain_file_name(shard: object) -> bool:
    return (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and shard.isprintable()
        and "\\" not in shard
        and len(shard) <= 255
        and PurePosixPath(shard).name == shard
    )


def _no_weights(directory: Path) -> Exception:
    message = f"{directory}: has neither {SINGLE_FILE} nor {INDEX_FILE}"
    for pattern in ("*.gguf", "pytorch_model*.bin", "consolidated*", "*.pt", "*.safetensors"):
        other = next(iter(sorted(directory.glob(pattern))), None)
        if other is not None:
            return UnsupportedCheckpoint(
                f"{message}, but {other.name}; expected a Hugging Face checkpoint saved as safetensors"
            )
    return MalformedCheckpoint(
        f"{message}; expected a Hugging Face checkpoint directory (download complete?)"
    )
