"""TLS of the gRPC port: which files, and what a transport makes of them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. With `mutual` a client has to show a certificate that `root` vouches for."""

    certificate: Path
    key: Path
    root: Path | None = None
    mutual: bool = False

    def context(self) -> ssl.SSLContext:
        """Raises OSError naming the file that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise OSError(f"TLS: {self.certificate} with key {self.key} cannot be used: {_why(error)}") from None
        if self.root is not None:
            try:
                context.load_verify_locations(self.root)
            except (OSError, ssl.SSLError) as error:
                raise OSError(f"TLS: {self.root} cannot be used: {_why(error)}") from None
        if self.mutual:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not a PEM file of the right kind"
    return getattr(error, "strerror", None) or str(error)
