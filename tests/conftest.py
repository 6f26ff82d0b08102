"""Shared by all tests: GPU tests are skipped where there is no GPU; children can be interrupted."""

from __future__ import annotations

import shutil
import signal

import pytest


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored; children inherit that, and never see an interruption.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("nvidia-smi"):
        return
    no_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)
