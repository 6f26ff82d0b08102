"""Certificates for the tests of TLS, made by the openssl program: an authority, a server, a client, and a stranger."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = shutil.which("openssl")
NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path

    def read(self) -> tuple[bytes, bytes]:
        """Key and certificate, in grpcio's order."""
        return self.key.read_bytes(), self.certificate.read_bytes()


@dataclass(frozen=True)
class Certificates:
    authority: Pair
    server: Pair
    client: Pair
    stranger: Pair
    """Vouched for by nobody."""


def make(folder: Path) -> Certificates:
    authority = _pair(folder, "authority", None)
    return Certificates(
        authority,
        _pair(folder, "server", authority),
        _pair(folder, "client", authority),
        _pair(folder, "stranger", None),
    )


def _pair(folder: Path, name: str, authority: Pair | None) -> Pair:
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    command = [
        OPENSSL or "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", f"/CN={name}", "-days", "2", "-keyout", str(pair.key), "-out", str(pair.certificate),
    ]  # fmt: skip
    if authority is not None:
        command += ["-CA", str(authority.certificate), "-CAkey", str(authority.key), "-addext", NAMES]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True)
    return pair
