"""The server's certificate: read, judged, served, and exchanged while the server runs."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509

from service.metrics import ServiceMetrics
from service.settings import ServiceSettings

log = logging.getLogger("nybble.tls")

_WARN_BEFORE = timedelta(days=14)
_WARN_EVERY = timedelta(days=1)


class TlsError(Exception):
    """A certificate or key cannot be served."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What matters of a certificate to its server."""

    subject: str
    not_before: datetime
    not_after: datetime


def read_certificate(path: Path) -> Certificate:
    """The first certificate of a PEM file, which is the server's own. Raises TlsError."""
    try:
        first = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except OSError as error:
        raise TlsError(f"the certificate {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise TlsError(f"{path} holds no certificate in PEM form: {error}") from None
    return Certificate(first.subject.rfc4514_string(), first.not_valid_before_utc, first.not_valid_after_utc)


class ServerTls:
    """The files of the settings as an SSL context that follows them.

    A certificate that has expired is refused at the start, when somebody looks; one that expires later, or
    is replaced by one that cannot be used, goes on being served, with errors in the log.
    """

    def __init__(self, settings: ServiceSettings, metrics: ServiceMetrics) -> None:
        """Raises TlsError."""
        assert settings.tls_cert_file is not None
        self.cert_file = settings.tls_cert_file
        self.key_file = settings.tls_key_file or settings.tls_cert_file
        self.client_ca_file = settings.tls_client_ca_file
        self._metrics = metrics
        self._warned: datetime | None = None
        self._seen = self._signature()
        self.certificate = self._check()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(self.context)
        self._take(self.certificate)

    def watch(self, now: datetime | None = None) -> None:
        """Take new files into service, and remind of an expiry; to be called every few seconds."""
        seen = self._signature()
        if seen != self._seen:
            self._seen = seen
            self._reload()
        now = now or datetime.now(timezone.utc)
        if self._warned is None or abs(now - self._warned) >= _WARN_EVERY:
            self._remind(now)

    def _reload(self) -> None:
        try:
            certificate = self._check()
            # Tried on a context of its own first: half of a new pair must not get into the one that serves.
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load(self.context)
        except TlsError as error:
            log.error("the new certificate is not taken, the old one stays: %s", error)
            return
        self._take(certificate)
        log.info("new certificate for %s, valid until %s", certificate.subject, certificate.not_after)

    def _take(self, certificate: Certificate) -> None:
        self.certificate = certificate
        self._warned = None
        gauge = self._metrics.tls_certificate_expiry_timestamp_seconds
        gauge.clear()
        gauge.labels(certificate.subject).set(certificate.not_after.timestamp())

    def _check(self) -> Certificate:
        certificate = read_certificate(self.cert_file)
        now = datetime.now(timezone.utc)
        if certificate.not_after <= now:
            raise TlsError(
                f"the certificate {self.cert_file} expired on {certificate.not_after:%Y-%m-%d %H:%M} UTC; "
                "no client would accept it: renew it"
            )
        return certificate

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.cert_file, self.key_file, self._refuse_passphrase)
            if self.client_ca_file is not None:
                context.load_verify_locations(self.client_ca_file)
                context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, OSError) as error:
            files = ", ".join(str(path) for path in self._files())
            raise TlsError(f"{files} cannot be used together: {error}") from None

    def _refuse_passphrase(self) -> str:
        """Without it OpenSSL would ask for one on the terminal."""
        raise TlsError(f"the private key {self.key_file} is encrypted; give one without a passphrase")

    def _remind(self, now: datetime) -> None:
        self._warned = now
        certificate = self.certificate
        left = certificate.not_after - now
        if left <= timedelta(0):
            log.error("the certificate of %s expired on %s", certificate.subject, certificate.not_after)
        elif left < _WARN_BEFORE:
            log.warning("the certificate of %s expires on %s", certificate.subject, certificate.not_after)
        if certificate.not_before > now:
            log.warning(
                "the certificate of %s is valid from %s only", certificate.subject, certificate.not_before
            )

    def _files(self) -> tuple[Path, ...]:
        files = (self.cert_file, self.key_file, self.client_ca_file)
        return tuple(dict.fromkeys(path for path in files if path is not None))

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Changes when a file does; links are followed, as mounted secrets are exchanged by moving one."""
        signature: list[tuple[int, int, int] | None] = []
        for path in self._files():
            try:
                status = path.stat()
            except OSError:
                signature.append(None)
            else:
                signature.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(signature)
