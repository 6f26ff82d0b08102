"""From a recipe's `[source]` to the artifact that the passes start from.

A factory is a function that returns `(module, inputs)`. `inputs` is a dict, in the order of the module's arguments,
from input name to either an example tensor, whose first dimension is the batch and whose others are fixed, or a
`compressor.artifact.Tensor` that says which dimensions are free:

    def build(width: int = 64):                          # [source] factory = "my_model:build", arguments = {width = 64}
        return Net(width), {"image": torch.zeros(1, 1, 28, 28)}

    def build():
        tokens = Tensor("tokens", BY_NAME["INT64"], (Axis("batch"), Axis("sequence", maximum=512)))
        return Net(), {"tokens": tokens}

What the module returns is found by running it: one tensor, or a tuple. `outputs` in the recipe names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from compressor import functions, interface, onnx_file
from compressor.artifact import Artifact, Axis, Kind, Tensor
from compressor.errors import RecipeError
from compressor.fields import Where, show
from compressor.job import Job, Source
from compressor.wrappers import WRAPPERS, Wrapper
from protos.datatypes import BY_NUMPY

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


def kind(source: Source) -> Kind:
    """What `load` will give, known before anything is loaded."""
    return Kind.ONNX if source.onnx is not None else Kind.TORCH


def load(job: Job) -> Artifact:
    """The untouched model. Raises RecipeError when it cannot be had or is not what the recipe says."""
    source, where = job.source, Where(job.recipe, "source")
    if source.onnx is not None:
        return interface.proven(source.onnx)
    torch.manual_seed(job.seed)
    if source.huggingface is not None:
        wrapper = WRAPPERS[str(source.wrapper)]
        if source.inputs:
            wrapper = dataclasses.replace(wrapper, inputs=source.inputs)
        place = where.at("huggingface")
        module, inputs = _huggingface(folder(source.huggingface, place), wrapper, place)
        names: tuple[str, ...] = wrapper.outputs
    else:
        module, inputs = _factory(source, where)
        names = source.outputs
    module.eval().requires_grad_(False)
    outputs = interface.of_module(module, inputs, names, where.at("outputs"))
    return Artifact(Kind.TORCH, inputs, outputs, module=module)


def fingerprint(job: Job) -> str:
    """SHA-256 of what `load` would read: the same as long as the model is. For a factory that is its module's own file,
    not what it imports."""
    source, where = job.source, Where(job.recipe, "source")
    if source.onnx is not None:
        return onnx_file.sha256(source.onnx)
    parts: list[Any] = [job.seed]
    if source.huggingface is not None:
        place = folder(source.huggingface, where.at("huggingface"))
        kept = [path for path in place.iterdir() if path.suffix == ".safetensors" or path.name == "config.json"]
        parts += [source.wrapper, source.inputs, {path.name: onnx_file.file_sha256(path) for path in sorted(kept)}]
    else:
        functions.resolve(str(source.factory), where.at("factory"))
        file = functions.source_file(str(source.factory))
        parts += [
            source.factory,
            source.arguments,
            source.outputs,
            onnx_file.file_sha256(file) if file else None,
            onnx_file.file_sha256(source.state) if source.state else None,
        ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def filled(job: Job) -> dict[str, int]:
    """What the source itself says that inputs are padded with, by input."""
    source = job.source
    if source.huggingface is None:
        return {}
    config = folder(source.huggingface, Where(job.recipe, "source.huggingface")) / "config.json"
    token = json.loads(config.read_text(encoding="utf-8")).get("pad_token_id")
    return {"input_ids": token} if isinstance(token, int) else {}


def folder(spec: str, where: Where) -> Path:
    """The folder of a Hugging Face model: in an installed package, on disk, or fetched from the hub."""
    if spec.startswith("package:"):
        found = package_folder(spec.removeprefix("package:"), where)
    else:
        found = (where.file.parent / Path(spec).expanduser()).resolve()
        if not found.exists() and not spec.startswith((".", "/", "~")) and HUB_NAME.fullmatch(spec):
            found = _from_hub(spec, where)
    if not (found / "config.json").is_file():
        raise where.fail(
            spec, f"a folder with a config.json ({found} has none), a hub name or package:<module>/<folder>"
        )
    return found


def package_folder(spec: str, where: Where) -> Path:
    """`<module>/<folder>` inside an installed package, found without running any of its code."""
    module, _, inside = spec.partition("/")
    parts = PurePosixPath(inside)
    if not module.isidentifier() or ".." in parts.parts or parts.is_absolute():
        raise where.fail(f"package:{spec}", '"package:<module>/<folder>", the folder inside the package')
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise where.fail(f"package:{spec}", f"in an installed package; {module} is not installed")
    return Path(next(iter(found.submodule_search_locations))) / parts


def _from_hub(name: str, where: Where) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:
        text = f"{type(error).__name__}" if not str(error) else functions.one_line(error)
        raise RecipeError(
            f"{where.file}: {where.path} = {show(name)}: no such folder, and not to be had from the hub ({text}); "
            f"without a network give a folder or package:<module>/<folder>"
        ) from error


def _huggingface(path: Path, wrapper: Wrapper, where: Where) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = getattr(transformers, wrapper.architecture).from_pretrained(
            str(path),
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
        inputs = wrapper.tensors(model.config)
    except Exception as error:
        raise where.fail(
            str(path), f"a model that {wrapper.architecture} loads from safetensors: {functions.one_line(error)}"
        ) from error
    # Heads that the folder has no weights for would be random. The pooler is no part of any answer we give.
    missing = sorted(key for key in info["missing_keys"] if "pooler." not in key)
    if missing:
        raise where.fail(
            str(path), f"a model with weights for {wrapper.name}; it has none for {', '.join(missing[:3])}"
        )
    return Wrapped(model, wrapper), inputs


class Wrapped(torch.nn.Module):
    """A Hugging Face model behind a plain signature: tensors in by position, a tuple of tensors out."""

    def __init__(self, model: torch.nn.Module, wrapper: Wrapper) -> None:
        super().__init__()
        self.model = model
        self._names = wrapper.inputs
        self._answer = wrapper.answer

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(self._names, inputs, strict=True))
        return self._answer(self.model(**named, return_dict=True), named)


def _factory(source: Source, where: Where) -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
    spec, place = str(source.factory), where.at("factory")
    made = functions.call(functions.resolve(spec, place), spec, place, **source.arguments)
    if not (
        isinstance(made, tuple)
        and len(made) == 2
        and isinstance(made[0], torch.nn.Module)
        and isinstance(made[1], Mapping)
        and made[1]
    ):
        raise place.fail(spec, "a function that returns (torch module, {input name: example tensor or Tensor})")
    module, inputs = made
    if source.state is not None:
        load_state(module, source.state, where.at("state"))
    return module, tuple(_input(name, value, spec, place) for name, value in inputs.items())


def _input(name: Any, value: Any, spec: str, where: Where) -> Tensor:
    if isinstance(value, Tensor) and value.name == name:
        return value
    if isinstance(value, torch.Tensor) and value.ndim >= 1:
        datatype = BY_NUMPY.get(value.numpy().dtype)
        if datatype is not None:
            return Tensor(str(name), datatype, (Axis("batch"), *value.shape[1:]))
    raise where.fail(
        spec,
        f"a function whose inputs are example tensors, batch first, or Tensor specs of that name; "
        f"{name!r} is a {type(value).__name__}",
    )


def load_state(module: torch.nn.Module, file: Path, where: Where) -> None:
    """Fill a module from a state dict on disk; formats that can run code are not read."""
    try:
        if file.suffix == ".safetensors":
            import safetensors.torch

            state = safetensors.torch.load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise where.fail(str(file), f"a state dict of plain tensors: {functions.one_line(error)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise where.fail(str(file), "a state dict: parameter names to tensors")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise where.fail(str(file), f"a state dict that fits the module: {functions.one_line(error)}") from error
