"""torch → ONNX by the dynamo exporter, proven against the torch model at other sizes than it was traced with."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir
import onnx_ir.passes.common as ir_passes
import torch

from compressor.artifact import Artifact, Axis, Kind
from compressor.errors import PassError, RecipeError
from compressor.passes import onnx_files, probe
from compressor.passes.base import Context, Outcome
from compressor.passes.quiet import quiet


@dataclass(frozen=True, slots=True)
class ExportOnnx:
    """Axes of the artifact become free dimensions of the same name. The module is called with the artifact's inputs by
    position, and gives its outputs in the artifact's order (a tensor, a tuple, a list or a mapping of tensors)."""

    name: ClassVar[str] = "export_onnx"
    takes: ClassVar[Kind] = Kind.TORCH
    gives: ClassVar[Kind] = Kind.ONNX
    needs_calibration: ClassVar[bool] = False

    opset: int | None = field(default=None, metadata={"minimum": 18, "maximum": 25})
    """None is the exporter's own choice, 20 in torch 2.13."""
    tolerance: float = field(default=1e-3, metadata={"minimum": 0.0})
    """Largest difference to the torch model's outputs, as a share of the largest magnitude of the output."""

    def requires(self, artifact: Artifact, context: Context) -> None:
        for tensor in (*artifact.inputs, *artifact.outputs):
            for axis in tensor.shape:
                if isinstance(axis, Axis) and not axis.name.isidentifier():
                    raise RecipeError(f"export_onnx: axis {axis.name!r} of {tensor.name!r} must be an identifier")

    def apply(self, artifact: Artifact, context: Context) -> Outcome:
        assert artifact.module is not None
        context.progress(0, 2, "export")
        with _evaluating(artifact.module) as module:
            model = self._export(artifact, module, context.seed)
            path = _save(model, context.folder / "model.onnx")
            context.progress(1, 2, "check against torch")
            worst = self._check(artifact, module, path, context.seed)
        context.progress(2, 2, "check against torch")
        effect = {
            "nodes": model.graph.num_nodes(),
            "opset": model.opset_imports.get("", 0),
            "bytes": onnx_files.size(path),
            "largest difference to torch": worst.max_abs,
        }
        return Outcome(artifact.became(kind=Kind.ONNX, module=None, path=path), effect)

    def ensures(self, before: Artifact, after: Artifact, context: Context) -> None:
        assert after.path is not None
        model = onnx_files.read_structure(after.path)
        names = [value.name for value in model.graph.output]
        if names != [tensor.name for tensor in after.outputs]:
            raise PassError(f"export_onnx: the file's outputs are {names}")

    def _export(self, artifact: Artifact, module: torch.nn.Module, seed: int) -> onnx_ir.Model:
        at = probe.sizes(artifact.inputs, 0)
        feeds = probe.random_inputs(artifact.inputs, at, {}, np.random.default_rng(seed))
        args = _arguments(artifact, feeds, module)
        expected = _call(module, args, artifact)
        with quiet():
            try:
                program = torch.onnx.export(
                    module,
                    args,
                    dynamo=True,
                    verbose=False,
                    opset_version=self.opset,
                    input_names=[t.name for t in artifact.inputs],
                    dynamic_shapes=_dynamic_shapes(artifact, module, at),
                )
            except Exception as error:  # noqa: BLE001  any class may come out of the tracer; the reason is told
                raise RecipeError(f"export_onnx: the model does not export: {reason(error)}") from None
        assert program is not None
        model = program.model
        if len(model.graph.outputs) != len(expected):
            raise PassError(
                f"export_onnx: the exported graph has {len(model.graph.outputs)} outputs, "
                f"the model gives {len(expected)}"
            )
        _name_values(model, artifact)
        ir_passes.ClearMetadataAndDocStringPass()(model)
        return model

    def _check(self, artifact: Artifact, module: torch.nn.Module, path: Path, seed: int) -> probe.Distance:
        run = probe.session(path)
        bounds = probe.rows(onnx_files.read_structure(path))
        names = [tensor.name for tensor in artifact.outputs]
        worst = probe.Distance("", 0.0, 0.0)
        for variant in (0, 1, 2):
            at = probe.sizes(artifact.inputs, variant)
            feeds = probe.random_inputs(artifact.inputs, at, bounds, np.random.default_rng([seed, variant]))
            answer = _call(module, _arguments(artifact, feeds, module), artifact)
            fed = {value.name: feeds[value.name] for value in run.get_inputs()}
            got = probe.run(run, names, fed, "export_onnx: the exported model")
            found = probe.distance(names, [_array(value) for value in answer], got)
            if found.relative > self.tolerance:
                raise PassError(
                    f"export_onnx: output {found.output!r} differs from the torch model's by "
                    f"{found.relative:.2g} of its largest magnitude at sizes {at}, allowed is "
                    f"{self.tolerance:g}"
                )
            worst = max(worst, found, key=lambda d: d.relative)
        return worst


def reason(error: BaseException) -> str:
    """The innermost cause in one line; the exporter wraps it in pages of advice."""
    while (inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    details = [line.removeprefix("- ") for line in lines[1:] if line.startswith("- ")]
    return " ".join([lines[0].split(" For more information")[0], *details[:2]])[:500]


def _array(value: torch.Tensor) -> np.ndarray[Any, Any]:
    value = value.detach().cpu()
    return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()


def _arguments(artifact: Artifact, feeds: probe.Arrays, module: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    # BF16 has no numpy type that torch knows: FP32 holds every value of it
    return tuple(
        torch.from_numpy(feeds[t.name].astype(np.float32)).to(torch.bfloat16).to(device)
        if t.datatype.name == "BF16"
        else torch.from_numpy(feeds[t.name]).to(device)
        for t in artifact.inputs
    )


def _call(module: torch.nn.Module, args: tuple[torch.Tensor, ...], artifact: Artifact) -> list[torch.Tensor]:
    try:
        answer = module(*args)
    except Exception as error:  # noqa: BLE001  the user's own code runs here
        shapes = ", ".join(f"{t.name} {tuple(arg.shape)}" for t, arg in zip(artifact.inputs, args, strict=True))
        raise RecipeError(
            f"export_onnx: the model fails on random inputs ({shapes}): {type(error).__name__}: {probe.one_line(error)}"
        ) from None
    return _flatten(answer, artifact)


def _flatten(answer: Any, artifact: Artifact) -> list[torch.Tensor]:
    names = [tensor.name for tensor in artifact.outputs]
    if isinstance(answer, torch.Tensor):
        values = [answer]
    elif isinstance(answer, Mapping):
        values = [value for value in answer.values() if value is not None]
        if list(answer)[: len(names)] != names and set(names) <= set(answer):
            raise RecipeError(
                f"export_onnx: the model gives its outputs as {', '.join(answer)}, the recipe names them "
                f"as {', '.join(names)}: the order must be the same"
            )
    else:
        values = list(answer)
    if len(values) != len(names) or not all(isinstance(value, torch.Tensor) for value in values):
        raise RecipeError(
            f"export_onnx: the model gives {len(values)} outputs of types "
            f"{', '.join(type(v).__name__ for v in values)}; expected are {len(names)} tensors "
            f"({', '.join(names)})"
        )
    return values


def _dynamic_shapes(artifact: Artifact, module: torch.nn.Module, at: Mapping[str, int]) -> tuple[Any, ...] | None:
    dims: dict[str, Any] = {}
    shapes: list[dict[int, Any]] = []
    for tensor in artifact.inputs:
        shape = {}
        for index, axis in enumerate(tensor.shape):
            if isinstance(axis, Axis) and axis.maximum != axis.minimum:
                shape[index] = dims.setdefault(
                    axis.name, torch.export.Dim(axis.name, min=axis.minimum, max=axis.maximum)
                )
        shapes.append(shape)
    if not dims:
        return None
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return (tuple(shapes),) if kinds and kinds[0] is inspect.Parameter.VAR_POSITIONAL else tuple(shapes)


def _name_values(model: onnx_ir.Model, artifact: Artifact) -> None:
    """Give inputs, outputs and free dimensions the artifact's names.

    An output that is an input, a weight or another output gets a node of its own (the exporter aliases them), and an
    inner value that has an interface name by chance is renamed: onnxruntime resolves by name, and would serve it.
    """
    graph = model.graph
    if [value.name for value in graph.inputs] != [tensor.name for tensor in artifact.inputs]:
        raise PassError(
            f"export_onnx: the exported graph takes {[v.name for v in graph.inputs]}, expected are "
            f"{[t.name for t in artifact.inputs]}"
        )
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or any(value is other for other in graph.outputs[:index]):
            node = onnx_ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
    names = {tensor.name for tensor in (*artifact.inputs, *artifact.outputs)}
    interface = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            if id(value) not in interface and value.name in names:
                value.name = f"{value.name}.inner"
    for name in [name for name in graph.initializers if name in names]:
        stored = graph.initializers.pop(name)
        stored.name = f"{name}.inner"
        graph.initializers.add(stored)
    for value, tensor in zip(graph.outputs, artifact.outputs, strict=True):
        value.name = tensor.name
        value.shape = onnx_ir.Shape([axis.name if isinstance(axis, Axis) else axis for axis in tensor.shape])
    for value, tensor in zip(graph.inputs, artifact.inputs, strict=True):
        value.shape = onnx_ir.Shape([axis.name if isinstance(axis, Axis) else axis for axis in tensor.shape])


def _save(model: onnx_ir.Model, path: Path) -> Path:
    stored = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in stored if tensor is not None)
    external = f"{path.name}.data" if weights > onnx_files.SINGLE_FILE_MAX else None
    onnx_ir.save(model, path, external_data=external)
    return path


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """In evaluation mode and without gradients; every submodule's training flag is put back afterwards."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part, flag in flags:
            part.training = flag
