"""What the figures were measured on: the host, and the versions of what matters."""

from __future__ import annotations

import importlib.metadata
import subprocess

from tests.load.run import host

PACKAGES = ("demiglace", "onnxruntime", "onnxruntime-gpu", "numpy", "protobuf", "ngh2")


def machine() -> dict[str, str]:
    found = {name: text for name, text in host().items() if name != "host"}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["h2load"] = _first_line("h2load", "--version").removeprefix("h2load ")
    found["commit"] = _first_line("git", "rev-parse", "--short", "HEAD")
    return found


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not there"
    return done.stdout.splitlines()[0]
