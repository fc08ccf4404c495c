"""Random damage to checkpoints: they open, or are refused with a CheckpointError; nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.errors import CheckpointError, MalformedCheckpoint
from tests.support.checkpoint_edits import copy_checkpoint, raw_safetensors

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=6,
)
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_opens_or_is_refused(directory: Path) -> None:
    """Anything but success and CheckpointError fails the test."""
    try:
        Checkpoint.open(directory)
    except CheckpointError as error:
        str(error).encode()  # a message has to be printable, whatever the file holds


@QUICK
@given(data=st.data())
def test_flipped_header_bytes(golden: Path, tmp_path: Path, data: st.DataObject) -> None:
    copy = copy_checkpoint(golden / "mistral-nvfp4-ct", tmp_path)
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    assert_opens_or_is_refused(copy)


@QUICK
@given(content=st.binary(max_size=200))
def test_random_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(MalformedCheckpoint):
        SafetensorsFile(path)


@QUICK
@given(
    entries=st.dictionaries(
        st.text(max_size=8),
        JSON_VALUES
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["U8", "F32", "BF16"]),
                "shape": JSON_VALUES,
                "data_offsets": JSON_VALUES,
            }
        ),
    )
)
def test_random_headers(tmp_path: Path, entries: dict[str, Any]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(json.dumps(entries).encode()))
    try:
        SafetensorsFile(path)
    except CheckpointError as error:
        str(error).encode()


@QUICK
@given(data=st.data(), value=JSON_VALUES)
@pytest.mark.parametrize("name", ["mistral-nvfp4-ct", "mixtral-nvfp4-modelopt"])
def test_any_config_value_replaced(
    golden: Path, tmp_path: Path, name: str, data: st.DataObject, value: Any
) -> None:
    """Walk to a random place in a random configuration file and put anything there."""
    copy = copy_checkpoint(golden / name, tmp_path)
    path = copy / data.draw(
        st.sampled_from(["config.json", "generation_config.json", "hf_quant_config.json"])
    )
    if not path.exists():
        return
    document = json.loads(path.read_text())
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    path.write_text(json.dumps(document))
    assert_opens_or_is_refused(copy)
