"""A model's inputs and outputs: read from an ONNX file, found by running a torch module, and proven after each pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from compressor.artifact import Artifact, Axis, Kind, Tensor
from compressor.errors import JobError, PassError, RecipeError
from compressor.fields import Where
from compressor.functions import one_line
from compressor.passes import onnx_files, probe
from protos.datatypes import BY_NUMPY, BY_ONNX_CODE

Array = np.ndarray[Any, Any]
BATCH = "batch"
Declared = tuple[str, int, tuple[int | str, ...]]
"""Name, ONNX element type, and dimensions; a free one is its name."""


def describe(tensor: Tensor) -> str:
    """As `input_ids INT64 [batch, sequence]`."""
    dims = ", ".join(dim.name if isinstance(dim, Axis) else str(dim) for dim in tensor.shape)
    return f"{tensor.name} {tensor.datatype.name} [{dims}]"


def batched(artifact: Artifact) -> bool:
    """Whether the first dimension of every input and output is the free batch."""
    return all(
        tensor.shape and isinstance(tensor.shape[0], Axis) and tensor.shape[0].name == BATCH
        for tensor in (*artifact.inputs, *artifact.outputs)
    )


def of_onnx(path: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of an ONNX file, with their axes.

    The first dimension is the batch where it is free in every input and output, whatever it is called: the rule by
    which Triton completes a configuration (onnxruntime_backend: src/onnxruntime.cc).
    """
    graph = onnx_files.read_structure(path).graph
    weights = {weight.name for weight in graph.initializer}
    ins = [_declared(value, path, {}) for value in graph.input if value.name not in weights]
    shapes = {value.name: value.shape for value in probe.session(path).get_outputs()}
    outs = [_declared(value, path, shapes) for value in graph.output]
    free = bool(ins) and all(shape and not isinstance(shape[0], int) for _, _, shape in (*ins, *outs))
    firsts = {shape[0] for _, _, shape in (*ins, *outs)} if free else set()

    def tensor(name: str, code: int, shape: tuple[int | str, ...]) -> Tensor:
        dims = [dim if isinstance(dim, int) else Axis(BATCH if dim in firsts else dim) for dim in shape]
        return Tensor(name, BY_ONNX_CODE[code], tuple(dims))

    return tuple(tensor(*row) for row in ins), tuple(tensor(*row) for row in outs)


def proven(path: Path) -> Artifact:
    """The artifact of an ONNX file, run once. Raises RecipeError where it does not run as it declares itself.

    Files often give sizes that must agree different names (`ids [batch, seq]`, `mask [batch, seq_1]`). Where the model
    does not run with all of them different, free dimensions at the same place in all inputs are taken to be one.
    """
    inputs, outputs = of_onnx(path)
    free = Artifact(Kind.ONNX, inputs, outputs, path=path)
    tied = _tied(free)
    for artifact in dict.fromkeys((free, tied)):
        try:
            ensure(artifact, artifact, Kind.ONNX, str(path))
        except PassError as error:
            failed = error
        else:
            return artifact
    raise RecipeError(f"{failed}; it was given made-up inputs of the shapes that it declares") from failed


def _tied(artifact: Artifact) -> Artifact:
    """Free dimensions at the same place in all inputs under the name of the first."""
    names: dict[str, str] = {}
    at: dict[int, str] = {}
    for tensor in artifact.inputs:
        for i, dim in enumerate(tensor.shape):
            if isinstance(dim, Axis):
                names.setdefault(dim.name, at.setdefault(i, dim.name))

    def renamed(tensor: Tensor) -> Tensor:
        dims = [Axis(names.get(dim.name, dim.name)) if isinstance(dim, Axis) else dim for dim in tensor.shape]
        return Tensor(tensor.name, tensor.datatype, tuple(dims))

    return artifact.became(inputs=tuple(map(renamed, artifact.inputs)), outputs=tuple(map(renamed, artifact.outputs)))


def _declared(value: onnx.ValueInfoProto, path: Path, inferred: Mapping[str, Sequence[Any]]) -> Declared:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise RecipeError(f"{path}: {value.name} is a {kind or 'value without a type'}; only tensors can be served")
    tensor = value.type.tensor_type
    if tensor.elem_type not in BY_ONNX_CODE:
        known = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise RecipeError(f"{path}: {value.name} has element type {known}, which the protocol does not have")
    if tensor.HasField("shape"):
        dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    elif inferred.get(value.name):
        dims = [dim or "" for dim in inferred[value.name]]
    else:
        raise RecipeError(f"{path}: {value.name} has no shape; declare one (onnx.shape_inference can)")
    return (
        value.name,
        tensor.elem_type,
        tuple(
            dim if (isinstance(dim, int) and dim >= 0) or (isinstance(dim, str) and dim) else f"{value.name}_{i}"
            for i, dim in enumerate(dims)
        ),
    )


def of_module(
    module: torch.nn.Module, inputs: Sequence[Tensor], names: tuple[str, ...], where: Where
) -> tuple[Tensor, ...]:
    """What a module returns: run once, then once more per free axis with that axis longer, to see what follows it."""
    base = probe.sizes(inputs, 0)
    try:
        first = run_module(module, _inputs(inputs, base))
        longer = {}
        for axis in axes(inputs).values():
            step = 1 if axis.maximum is None or base[axis.name] < axis.maximum else -1
            if base[axis.name] + step >= axis.minimum:
                other = {**base, axis.name: base[axis.name] + step}
                longer[axis.name] = run_module(module, _inputs(inputs, other))
    except Exception as error:
        raise RecipeError(
            f"{where.file}: source: the model does not run on its declared inputs "
            f"({', '.join(describe(tensor) for tensor in inputs)}): {one_line(error)}"
        ) from error
    names = names or (("output",) if len(first) == 1 else tuple(f"output_{i}" for i in range(len(first))))
    if len(names) != len(first) or len(set(names)) != len(names) or {tensor.name for tensor in inputs} & set(names):
        raise where.fail(
            list(names), f"{len(first)} different names (the model gives so many), none of them an input's"
        )
    return tuple(
        _output(name, array, base, {axis: other[i] for axis, other in longer.items()}, where)
        for i, (name, array) in enumerate(zip(names, first, strict=True))
    )


def axes(tensors: Sequence[Tensor]) -> dict[str, Axis]:
    """The free dimensions, by name, in order of appearance."""
    return {dim.name: dim for tensor in tensors for dim in tensor.shape if isinstance(dim, Axis)}


def run_module(module: torch.nn.Module, arrays: Mapping[str, Array]) -> tuple[Array, ...]:
    with torch.no_grad():
        answer = module(*(torch.from_numpy(array) for array in arrays.values()))
    answers = answer if isinstance(answer, (tuple, list)) else (answer,)
    return tuple(tensor.numpy() for tensor in answers)


def _inputs(tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> dict[str, Array]:
    return probe.random_inputs(tensors, sizes, {}, np.random.default_rng(0))


def _output(name: str, array: Array, base: Mapping[str, int], longer: Mapping[str, Array], where: Where) -> Tensor:
    """A dimension is fixed where no axis moves it, the axis itself where it is as long, else an axis of its own."""
    if array.dtype not in BY_NUMPY:
        raise where.fault(f"output {name} has element type {array.dtype}, which the protocol does not have")
    dims: list[int | Axis] = []
    for i, size in enumerate(array.shape):
        movers = [axis for axis, other in longer.items() if other.ndim != array.ndim or other.shape[i] != size]
        alike = len(movers) == 1 and size == base[movers[0]]
        dims.append(size if not movers else Axis(movers[0] if alike else f"{name}_{i}"))
    return Tensor(name, BY_NUMPY[array.dtype], tuple(dims))


def ensure(before: Artifact, after: Artifact, expected: Kind, who: str) -> None:
    """What every pass promises: kind, inputs and outputs as declared, the model loads and runs. Raises PassError."""
    if after.kind is not expected:
        raise PassError(f"{who}: gave {after.kind.value}, declares {expected.value}")
    if (after.path is not None) != (expected is Kind.ONNX) or (after.module is not None) != (expected is Kind.TORCH):
        raise PassError(f"{who}: an artifact of kind {expected.value} has its module or its path, as the kind says")
    if (after.inputs, after.outputs) != (before.inputs, before.outputs):
        raise PassError(f"{who}: changed the declared inputs or outputs")
    if any(tensor.datatype.name == "BYTES" for tensor in after.inputs):
        return  # text that a model accepts cannot be made up
    sizes = probe.sizes(after.inputs, 0)
    try:
        answers = _answers(after, _inputs(after.inputs, sizes), who)
    except JobError as error:
        raise PassError(f"{who}: {error}") from error
    except Exception as error:
        raise PassError(f"{who}: the model does not run: {one_line(error)}") from error
    if len(answers) != len(after.outputs):
        raise PassError(f"{who}: gives {len(answers)} outputs, declared are {len(after.outputs)}")
    for tensor, array in zip(after.outputs, answers, strict=True):
        dims = [sizes.get(dim.name, -1) if isinstance(dim, Axis) else dim for dim in tensor.shape]
        fits = len(dims) == array.ndim and all(d in (-1, n) for d, n in zip(dims, array.shape, strict=True))
        if not fits or (tensor.datatype.name != "BYTES" and array.dtype != tensor.datatype.numpy):
            found = f"{array.dtype} {list(array.shape)}"
            raise PassError(f"{who}: output {tensor.name} is {found}, declared is {describe(tensor)}")


def _answers(artifact: Artifact, arrays: Mapping[str, Array], who: str) -> Sequence[Array]:
    if artifact.module is not None:
        return run_module(artifact.module, arrays)
    assert artifact.path is not None
    live = probe.session(artifact.path)
    for declared, found in ((artifact.inputs, live.get_inputs()), (artifact.outputs, live.get_outputs())):
        wanted, there = sorted(tensor.name for tensor in declared), sorted(value.name for value in found)
        if wanted != there:
            raise PassError(f"the file has {', '.join(there)}, declared are {', '.join(wanted)}")
    fed = {value.name for value in live.get_inputs()}
    answers: Sequence[Array] = live.run(
        [tensor.name for tensor in artifact.outputs], {name: array for name, array in arrays.items() if name in fed}
    )
    return answers
