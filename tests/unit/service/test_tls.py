"""The server's certificate: what is refused, what is taken while the server runs."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from service.metrics import ServiceMetrics
from service.settings import ServiceSettings
from service.tls import ServerTls, TlsError
from tests.support.certificates import make_pair

GAUGE = "nybble_tls_certificate_expiry_timestamp_seconds"


def server_tls(
    certificate: Path, key: Path | None = None, **fields: object
) -> tuple[ServerTls, ServiceMetrics]:
    settings = ServiceSettings.model_validate(
        {"checkpoint": "m", "tls_cert_file": certificate, "tls_key_file": key, **fields}
    )
    metrics = ServiceMetrics("m")
    return ServerTls(settings, metrics), metrics


def expiry(metrics: ServiceMetrics) -> float:
    (sample,) = [
        sample for family in metrics.registry.collect() if family.name == GAUGE for sample in family.samples
    ]
    assert sample.labels == {"subject": "CN=nybble-test"}
    return sample.value


def test_the_expiry_is_told(tmp_path: Path) -> None:
    pair = make_pair()
    tls, metrics = server_tls(*pair.write(tmp_path))
    assert tls.certificate.not_after == pair.certificate.not_valid_after_utc
    assert expiry(metrics) == pair.certificate.not_valid_after_utc.timestamp()


def test_certificate_and_key_may_be_in_one_file(tmp_path: Path) -> None:
    pair = make_pair()
    both = tmp_path / "both.pem"
    both.write_bytes(pair.certificate_pem + pair.key_pem())
    server_tls(both)


def test_an_expired_certificate_is_refused_with_its_date(tmp_path: Path) -> None:
    pair = make_pair(valid_from=-timedelta(days=9), valid_for=-timedelta(days=2))
    date = pair.certificate.not_valid_after_utc.strftime("%Y-%m-%d")
    with pytest.raises(TlsError, match=f"expired on {date}"):
        server_tls(*pair.write(tmp_path))


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (None, b"", "cannot be read: No such file"),
        (b"nonsense", b"", "holds no certificate"),
        (b"good", None, "cannot be used together"),
        (b"good", b"nonsense", "cannot be used together"),
        (b"good", b"other", "cannot be used together"),
        (b"good", b"encrypted", "is encrypted"),
    ],
)
def test_files_that_cannot_be_served(
    tmp_path: Path, certificate: bytes | None, key: bytes | None, message: str
) -> None:
    pair = make_pair()
    contents = {
        b"good": pair.certificate_pem,
        b"other": make_pair().key_pem(),
        b"encrypted": pair.key_pem(b"x"),
    }
    files = (tmp_path / "tls.crt", tmp_path / "tls.key")
    for path, content in zip(files, (certificate, key), strict=True):
        if content is not None:
            path.write_bytes(contents.get(content, content))
    with pytest.raises(TlsError, match=message):
        server_tls(*files)


def test_a_new_pair_is_taken(tmp_path: Path) -> None:
    tls, metrics = server_tls(*make_pair().write(tmp_path))
    new = make_pair(valid_for=timedelta(days=300))
    tls.watch()
    new.write(tmp_path)
    tls.watch()
    assert tls.certificate.not_after == new.certificate.not_valid_after_utc
    assert expiry(metrics) == new.certificate.not_valid_after_utc.timestamp()


def test_half_a_new_pair_is_not_taken_until_the_other_half_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = make_pair(), make_pair(valid_for=timedelta(days=300))
    certificate, key = old.write(tmp_path)
    tls, _ = server_tls(certificate, key)
    certificate.write_bytes(new.certificate_pem)
    tls.watch()
    assert "the old one stays" in caplog.text
    assert tls.certificate.not_after == old.certificate.not_valid_after_utc
    key.write_bytes(new.key_pem())
    tls.watch()
    assert tls.certificate.not_after == new.certificate.not_valid_after_utc


def test_an_expiry_to_come_and_one_that_came_are_told_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tls, _ = server_tls(*make_pair(valid_for=timedelta(days=10)).write(tmp_path))
    now = datetime.now(timezone.utc)
    for hours in (0, 1, 23):
        tls.watch(now + timedelta(hours=hours))
    assert len(caplog.records) == 1
    assert "expires on" in caplog.text
    tls.watch(now + timedelta(hours=24))
    assert len(caplog.records) == 2
    tls.watch(now + timedelta(days=11))
    assert "expired on" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.ERROR


def test_one_that_is_not_valid_yet_is_served_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls, _ = server_tls(*make_pair(valid_from=timedelta(days=1)).write(tmp_path))
    tls.watch()
    assert "is valid from" in caplog.text
