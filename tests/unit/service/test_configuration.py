"""Flag before environment before file before default, and every mistake named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.configuration import (
    Configuration,
    ConfigurationError,
    MissingSetting,
    closest_setting,
    load_configuration,
)

FILE = """
checkpoint = "/models/file"
port = 9000
max_num_seqs = 7
kv_cache_memory_bytes = "4GiB"
served_model_names = ["a", "org/a"]
health_port = "off"
otlp_endpoint = "http://me:hunter2@collector:4318"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nybble.toml"
    path.write_text(FILE)
    return path


def shown(configuration: Configuration) -> dict[str, tuple[object, str]]:
    return {name: (value, source) for name, value, source in configuration.shown()}


def test_the_layers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_PORT", "9001")
    monkeypatch.setenv("NYBBLE_MAX_NUM_SEQS", "8")
    configuration = load_configuration({"port": 9002}, file)
    settings = configuration.settings
    assert settings.port == 9002
    assert settings.max_num_seqs == 8
    assert settings.checkpoint == Path("/models/file")
    assert settings.kv_cache_memory_bytes == 4 * 2**30
    assert settings.model_names == ("a", "org/a")
    assert settings.health_port == "off"
    assert settings.block_size == 16
    told = shown(configuration)
    assert told["port"] == (9002, "flag")
    assert told["max_num_seqs"] == (8, "NYBBLE_MAX_NUM_SEQS")
    assert told["checkpoint"] == ("/models/file", str(file))
    assert told["block_size"] == (16, "")


def test_a_flag_without_a_setting_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="no such settings: no_such"):
        load_configuration({"checkpoint": "m", "no_such": None}, None)


def test_secrets_are_masked(file: Path) -> None:
    configuration = load_configuration({}, file)
    assert shown(configuration)["otlp_endpoint"][0] == "http://***@collector:4318"
    assert "hunter2" not in configuration.as_toml()


def test_what_is_printed_can_be_read_again(file: Path, tmp_path: Path) -> None:
    first = load_configuration({"otlp_endpoint": "http://collector"}, file)
    again = tmp_path / "again.toml"
    again.write_text(first.as_toml())
    assert load_configuration({}, again).settings == first.settings
    assert "# block_size = 16\n" in first.as_toml()
    assert "# max_model_len is not set\n" in first.as_toml()
    assert "port = 9000  # " in first.as_toml()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_num_seq = 1", "unknown key 'max_num_seq'; did you mean 'max_num_seqs'"),
        ("stall-timeout = 1", "did you mean 'stall_timeout_seconds'"),
        ("xyzzy = 1", "--print-config"),
        ("[server]\nport = 1", "unknown key 'server'"),
        ("[port]\nx = 1", "port is a table"),
        ("port = ", "is not TOML"),
        ("port = '\udcff'", "is not TOML"),
        ("port = 70000", r"port: .*less than or equal to 65535.* \(from .*bad.toml\)"),
        ("cors_origins = ['https://x/path']", "https://x/path' is no origin"),
        ("tls_key_file = 'k'", "tls_cert_file is not"),
        ("checkpoint = 1", "checkpoint"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=message):
        load_configuration({} if "checkpoint" in text else {"checkpoint": "m"}, path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.toml cannot be read: No such file"):
        load_configuration({"checkpoint": "m"}, tmp_path / "absent.toml")


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_MAX_NUM_SEQS", "many")
    with pytest.raises(ConfigurationError, match=r"max_num_seqs: .* \(from NYBBLE_MAX_NUM_SEQS\)"):
        load_configuration({"checkpoint": "m"}, None)


def test_no_checkpoint_at_all() -> None:
    with pytest.raises(MissingSetting, match="as DIR, as NYBBLE_CHECKPOINT or in the file"):
        load_configuration({}, None)


def test_variables_that_set_nothing_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_MAX_NUM_SEQ", "1")
    monkeypatch.setenv("NYBBLE_CONFIG", "elsewhere")
    assert load_configuration({"checkpoint": "m"}, None).unknown_variables == ("NYBBLE_MAX_NUM_SEQ",)
    assert closest_setting("MAX_NUM_SEQ") == "max_num_seqs"


@pytest.mark.parametrize("value", ["0", "8001", 8001, "off"])
def test_health_ports(value: object) -> None:
    settings = load_configuration({"checkpoint": "m", "health_port": value}, None).settings
    assert str(settings.health_port) == str(value)


@pytest.mark.parametrize("value", ["on", "-1", "65536"])
def test_no_health_ports(value: str) -> None:
    with pytest.raises(ConfigurationError, match="health_port"):
        load_configuration({"checkpoint": "m", "health_port": value}, None)
