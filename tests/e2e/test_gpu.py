"""The same server on an NVIDIA GPU: the device comes from `instance_group`, the answers are the CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.bench.tiny import CONFIG, write_tiny
from tests.children import started_server

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def answer(root: Path, kind: str, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:  # type: ignore[type-arg]
    (root / "tiny" / "config.pbtxt").write_text(CONFIG.replace("KIND_CPU", kind))
    with started_server(root) as child, triton.InferenceServerClient(child.url) as client:
        given = triton.InferInput("image", list(rows.shape), "FP32").set_data_from_numpy(rows)
        return client.infer("tiny", [given]).as_numpy("score"), child.lines


@pytest.mark.parametrize("kind", ["KIND_GPU", "KIND_AUTO"])
def test_instance_group_puts_a_model_on_the_gpu_with_the_same_answers(tmp_path: Path, kind: str) -> None:
    write_tiny(tmp_path)
    rows = np.random.default_rng(0).standard_normal((8, 784), np.float32)
    on_cpu, _ = answer(tmp_path, "KIND_CPU", rows)
    on_gpu, lines = answer(tmp_path, kind, rows)
    assert any("tiny" in line and "GPU 0" in line for line in lines), lines
    # TF32 matrix products keep ten bits of the mantissa
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=2e-2, atol=0.5)
