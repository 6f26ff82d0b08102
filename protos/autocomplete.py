"""What a configuration leaves out, filled in from the model file itself; and a full one checked against it. Pure.

Rules are Triton's: onnxruntime_backend src/onnxruntime.cc AutoCompleteConfig, AutoCompleteMaxBatch, AutoCompleteIO,
ValidateInputs, ValidateOutputs; src/onnxruntime_utils.cc CompareDimsSupported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from protos import platforms
from protos.config_check import validate
from protos.model_config import ConfigError, DynamicBatching, ModelConfig, ModelIO, TensorInfo, TensorSpec


def complete(
    config: ModelConfig, io: ModelIO, default_max_batch_size: int = 4, auto_complete: bool = True
) -> ModelConfig:
    """`config` with everything that can be read off the model, checked against it.

    Inputs and outputs that are missing come from `io`; then also max_batch_size (0 becomes the default where every
    tensor has a free first dimension) and an empty dynamic_batching. A configuration that names both is only checked.
    `auto_complete=False` (`--disable-auto-complete-config`) refuses one that does not. A tensor without dimensions
    is declared as `dims: [ 1 ]`; whoever feeds the model looks at `io` for that.

    Raises ConfigError.
    """
    config = platforms.derive(config)
    config = replace(config, default_model_filename=platforms.model_filename(config))
    if not (config.inputs and config.outputs):
        if not auto_complete:
            missing = "output" if config.inputs else "input"
            raise ConfigError(f"model '{config.name}': {missing}: is missing, and auto-completion is switched off")
        config = _fill(config, io, default_max_batch_size)
    validate(config, f"model '{config.name}'")
    _compare(config, io)
    return config


def supports_batching(io: ModelIO) -> bool:
    """Whether every tensor has a first dimension and it is free."""
    return all(info.shape[:1] == (-1,) for info in (*io.inputs, *io.outputs))


def _fill(config: ModelConfig, io: ModelIO, default_max_batch_size: int) -> ModelConfig:
    if supports_batching(io):
        max_batch_size = config.max_batch_size or max(default_max_batch_size, 0)
        scheduled = config.dynamic_batching is not None or "sequence_batching" in config.unsupported
        batching = DynamicBatching() if max_batch_size > 1 and not scheduled else config.dynamic_batching
        config = replace(config, max_batch_size=max_batch_size, dynamic_batching=batching)
    elif config.max_batch_size:
        raise ConfigError(
            f"autofill failed for model '{config.name}': model does not support batching while non-zero"
            " max_batch_size is specified"
        )
    batches = config.max_batch_size > 0
    return replace(
        config,
        inputs=config.inputs or tuple(_spec(info, batches) for info in io.inputs),
        outputs=config.outputs or tuple(_spec(info, batches) for info in io.outputs),
    )


def _spec(info: TensorInfo, batches: bool) -> TensorSpec:
    dims = info.shape[1:] if batches else info.shape
    # dims may not be empty; an empty reshape says so, but is not allowed without batching
    return TensorSpec(info.name, info.datatype, dims or (1,), reshape=() if batches and not dims else None)


def _compare(config: ModelConfig, io: ModelIO) -> None:
    declared = {spec.name for spec in config.inputs}
    for info in io.inputs:
        if info.name not in declared:
            raise ConfigError(
                f"unable to load model '{config.name}', configuration expects {len(config.inputs)} inputs, model"
                f" provides {len(io.inputs)}: input '{info.name}' is not declared"
            )
    _compare_side(config, "input", config.inputs, io.inputs)
    _compare_side(config, "output", config.outputs, io.outputs)
    for spec in config.inputs:
        if spec.optional and config.max_batch_size:
            raise ConfigError(
                f"model '{config.name}', input '{spec.name}': optional is not allowed with max_batch_size > 0"
            )


def _compare_side(config: ModelConfig, side: str, specs: Iterable[TensorSpec], infos: Iterable[TensorInfo]) -> None:
    known = {info.name: info for info in infos}
    for spec in specs:
        info = known.get(spec.name)
        if info is None:
            allowed = ", ".join(sorted(known))
            raise ConfigError(
                f"unable to load model '{config.name}', unexpected inference {side} '{spec.name}', allowed {side}s"
                f" are: {allowed}"
            )
        if info.datatype != spec.datatype:
            raise ConfigError(
                f"unable to load model '{config.name}', configuration expects datatype {spec.datatype.config} for"
                f" {side} '{spec.name}', model provides {info.datatype.config}"
            )
        _compare_shape(config, spec, info, exact=side == "output")


def _compare_shape(config: ModelConfig, spec: TensorSpec, info: TensorInfo, exact: bool) -> None:
    """`exact`: a free dimension of the model must be declared free. Inputs may be narrowed, outputs may not."""
    at = f"model '{config.name}', tensor '{spec.name}'"
    dims = spec.dims if spec.reshape is None else spec.reshape
    if not info.shape:
        if any(dim != 1 for dim in dims):
            raise ConfigError(f"{at}: the model has no dimensions here, dims may hold only 1, got {list(dims)}")
        return
    if config.max_batch_size and info.shape[0] != -1:
        raise ConfigError(
            f"{at}: for the model to support batching the shape should have at least 1 dimension and the first"
            f" dimension must be -1; but shape expected by the model is {list(info.shape)}"
        )
    full = (-1, *dims) if config.max_batch_size else dims
    same = len(full) == len(info.shape) and all(
        model == given or (model == -1 and not exact) for model, given in zip(info.shape, full, strict=True)
    )
    if not same:
        note = " (the batch dimension, because max_batch_size > 0, then dims)" if config.max_batch_size else ""
        raise ConfigError(
            f"{at}: the model expects {len(info.shape)} dimensions (shape {list(info.shape)}) but the model"
            f" configuration specifies {len(full)} dimensions (shape {list(full)}){note}"
        )
