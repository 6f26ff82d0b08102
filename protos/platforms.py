"""Which backend runs which model file: one table, and the rules that fill in backend, platform and file name.

Source: core src/model_config_utils.cc AutoCompleteBackendFields, src/constants.h.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from protos.model_config import ConfigError, ModelConfig


@dataclass(frozen=True, slots=True)
class Platform:
    """A kind of model file. `platform` is what `config.pbtxt` may say in place of `backend`."""

    backend: str
    platform: str
    filename: str


PLATFORMS: tuple[Platform, ...] = (
    Platform("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    Platform("tensorrt", "tensorrt_plan", "model.plan"),
    Platform("openvino", "", "model.xml"),
    Platform("pytorch", "pytorch_libtorch", "model.pt"),
    Platform("pytorch", "torch_aoti", "model.pt2"),
    Platform("python", "", "model.py"),
    Platform("fake", "", "model.fake"),
)
"""In the order in which Triton looks for files; the first row of a backend is its default."""


def find(config: ModelConfig, present: Collection[str] = ()) -> Platform | None:
    """The row for a configuration: by platform, backend, `default_model_filename`, then by the files `present`.

    None where nothing tells. Raises ConfigError for a platform that is unknown or does not belong to the backend.
    """
    if config.platform == "ensemble":
        return None
    if config.platform:
        row = next((p for p in PLATFORMS if p.platform == config.platform), None)
        if row is not None and config.backend in ("", row.backend):
            return row
        known = [p for p in PLATFORMS if p.backend == config.backend]
        if not config.backend or any(p.platform for p in known):
            allowed = ", ".join(p.platform for p in known or PLATFORMS if p.platform)
            backend = f" of backend '{config.backend}'" if config.backend else ""
            raise ConfigError(f"platform: '{config.platform}' is none{backend}; known: {allowed}")
        return known[0] if known else None
    if config.backend:
        rows = [p for p in PLATFORMS if p.backend == config.backend]
        return next((p for p in rows if p.filename == config.default_model_filename), rows[0] if rows else None)
    names = {config.default_model_filename} if config.default_model_filename else set(present)
    return next((p for p in PLATFORMS if p.filename in names), None)


def derive(config: ModelConfig, present: Collection[str] = ()) -> ModelConfig:
    """`config` with backend and platform filled in where the file names tell. Raises ConfigError as `find` does."""
    row = find(config, present)
    if row is None:
        return config
    return replace(config, backend=config.backend or row.backend, platform=config.platform or row.platform)


def model_filename(config: ModelConfig, present: Collection[str] = ()) -> str:
    """The file in a version folder that is the model; empty where nothing tells."""
    if config.default_model_filename:
        return config.default_model_filename
    row = find(config, present)
    return row.filename if row else ""
