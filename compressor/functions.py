"""Find the Python function that a recipe names as `module:function`, and call it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.errors import JobError, RecipeError
from compressor.fields import Where, suggest


def resolve(spec: str, where: Where) -> Callable[..., Any]:
    """The function; its module is looked for among the installed ones, in the working directory, beside the recipe.

    Raises RecipeError when there is none, or when importing the module fails.
    """
    name, _, attribute = spec.partition(":")
    for folder in (Path.cwd(), where.file.parent):
        # Last, so that a file beside a recipe cannot take the place of an installed module.
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    module = _module(name, spec, where)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise where.fail(spec, f"a function of {module.__file__ or name}{suggest(attribute, names)}")
    return function  # type: ignore[no-any-return]


def _module(name: str, spec: str, where: Where) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise where.fail(spec, f"in a module that can be imported; there is no module {error.name}") from error
        raise where.fail(
            spec, f"in a module that can be imported; {name} needs {error.name}, which is not installed"
        ) from error
    except JobError:
        raise
    except Exception as error:
        raise where.fail(spec, f"in a module that can be imported; {name} raised {one_line(error)}") from error


def call(function: Callable[..., Any], spec: str, where: Where, /, *args: Any, **kwargs: Any) -> Any:
    """The function's answer. Raises RecipeError when it does not take the arguments or raises itself."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = None  # some built-in callables have none
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise where.fail(
                spec, f"a function that takes {_shape(args, kwargs)}; {spec}{signature}: {error}"
            ) from error
    try:
        return function(*args, **kwargs)
    except JobError:
        raise
    except Exception as error:
        raise raised(error, spec, where) from error


def raised(error: BaseException, spec: str, where: Where) -> RecipeError:
    """What the user's function raised, in one line that says where it did."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return where.fault(f"{spec} raised {one_line(error)}{place}")


_RUNTIME = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\) ?(const )?")
"""What onnxruntime puts around its reasons: a code, a place in its sources, a C++ signature."""


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = _RUNTIME.sub("", " ".join(lines[:3]))
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def source_file(spec: str) -> Path | None:
    """The file of the function's module where it has one; imports it."""
    file = getattr(importlib.import_module(spec.partition(":")[0]), "__file__", None)
    return Path(file) if file else None


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return ", ".join([*(["…"] * len(args)), *(f"{name}=" for name in kwargs)]) or "no arguments"
