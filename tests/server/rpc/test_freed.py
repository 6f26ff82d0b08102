"""Requests are freed when they are answered, not when the garbage collector comes by: their tensors may be large."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from server.grpc_settings import TRANSPORTS, GrpcSettings
from server.request import InferRequest
from tests.server.harness import running, write_entry


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_answered_requests_are_gone_without_the_collector(tmp_path: Path, transport: str) -> None:
    write_entry(tmp_path)
    given = triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.zeros((1, 4), np.float32))
    settings = GrpcSettings(port=0, transport=transport)
    with running(tmp_path, grpc=settings) as server, triton.InferenceServerClient(server.url) as client:
        client.infer("m", [given])
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                client.infer("m", [given])
            alive = sum(isinstance(found, InferRequest) for found in gc.get_objects())
        finally:
            gc.enable()
    assert alive <= 2  # the last ones may still be on their way out in another thread
