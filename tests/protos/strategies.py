"""Configurations and cards for property tests: every field, within the rules."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from protos.card import Card, Latency, Metric, Step
from protos.datatypes import DATATYPES
from protos.model_config import DynamicBatching, InstanceGroup, ModelConfig, QueuePolicy, TensorSpec, VersionPolicy

# all that UTF-8 can hold: surrogates cannot be written to a file
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
visible = st.characters(categories=["L", "N", "P", "S"], exclude_characters="/\\")
names = st.text(visible, min_size=1, max_size=12).filter(lambda name: not name.startswith("."))
dims = st.lists(st.one_of(st.just(-1), st.integers(1, 2**40)), min_size=1, max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, output: bool, batches: bool) -> tuple[TensorSpec, ...]:
    found = []
    for name in draw(st.lists(texts.filter(bool), unique=True, max_size=3)):
        shape = draw(dims)
        reshape: tuple[int, ...] | None = draw(st.sampled_from([None, (1, *shape), (*shape, 1)]))
        if batches and draw(st.booleans()):
            shape, reshape = (1,), ()
        found.append(
            TensorSpec(
                name=name,
                datatype=draw(st.sampled_from(DATATYPES)),
                dims=shape,
                reshape=reshape,
                optional=not output and draw(st.booleans()),
                label_filename=draw(st.sampled_from(["", "labels.txt", "more/labels.txt"])) if output else "",
            )
        )
    return tuple(found)


def policies(delay: bool) -> st.SearchStrategy[QueuePolicy]:
    return st.builds(
        QueuePolicy,
        timeout_action=st.sampled_from(["REJECT", "DELAY"] if delay else ["REJECT"]),
        default_timeout_microseconds=st.integers(0, 2**64 - 1),
        allow_timeout_override=st.booleans(),
        max_queue_size=st.integers(0, 2**32 - 1),
    )


@st.composite
def batching(draw: st.DrawFn, max_batch_size: int) -> DynamicBatching:
    ordered = draw(st.booleans())
    levels = draw(st.integers(0, 1 if ordered else 5))
    sizes = st.lists(st.integers(1, max_batch_size), max_size=3) if max_batch_size else st.just([])
    level_policies = st.dictionaries(st.integers(1, levels), policies(not ordered)) if levels else st.just({})
    return DynamicBatching(
        preferred_batch_size=tuple(draw(sizes)),
        max_queue_delay_microseconds=draw(st.integers(0, 2**64 - 1)),
        preserve_ordering=ordered,
        priority_levels=levels,
        default_priority_level=draw(st.integers(1, levels)) if levels else 0,
        default_queue_policy=draw(policies(not ordered)),
        priority_queue_policy=draw(level_policies),
    )


versions = st.one_of(
    st.builds(VersionPolicy, latest=st.integers(1, 2**32 - 1)),
    st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=3).map(lambda v: VersionPolicy(specific=tuple(v))),
    st.just(VersionPolicy(all=True)),
)
groups = st.one_of(
    st.builds(InstanceGroup, kind=st.sampled_from(["KIND_CPU", "KIND_MODEL"]), count=st.integers(0, 100), name=texts),
    st.builds(
        InstanceGroup,
        kind=st.sampled_from(["KIND_AUTO", "KIND_GPU"]),
        count=st.integers(0, 40),
        gpus=st.lists(st.integers(0, 2**31 - 1), unique=True, max_size=4).map(tuple),
        name=texts,
    ),
)
platforms = st.sampled_from(
    [("", ""), ("onnxruntime_onnx", ""), ("torch_aoti", "pytorch"), ("", "python"), ("", "mine"), ("x", "mine")]
)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    max_batch_size = draw(st.sampled_from([0, 1, 8, 2**31 - 1]))
    platform, backend = draw(platforms)
    return ModelConfig(
        name=draw(st.one_of(st.just(""), names)),
        max_batch_size=max_batch_size,
        inputs=draw(tensors(False, max_batch_size > 0)),
        outputs=draw(tensors(True, max_batch_size > 0)),
        platform=platform,
        backend=backend,
        version_policy=draw(versions),
        instance_groups=tuple(draw(st.lists(groups, max_size=3))),
        dynamic_batching=draw(st.one_of(st.none(), batching(max_batch_size))),
        default_model_filename=draw(st.sampled_from(["", "model.onnx", "net/best.onnx"])),
        parameters=draw(st.dictionaries(texts, texts, max_size=3)),
        graph_level=draw(st.sampled_from([None, -1, 0, 1, 2])),
        metric_tags=draw(st.dictionaries(texts, texts, max_size=3)),
    )


numbers = st.floats(allow_nan=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(texts, json_values, max_size=3)
shapes = st.dictionaries(texts, st.lists(st.integers(1, 512), max_size=3).map(tuple), max_size=2)
cards = st.builds(
    Card,
    model=names,
    version=st.integers(1, 2**63 - 1),
    created=texts,
    trail=st.lists(st.builds(Step, texts, objects, numbers, objects), max_size=2).map(tuple),
    metrics=st.lists(
        st.builds(Metric, texts, numbers, st.one_of(numbers, st.just(math.inf)), st.booleans(), texts, st.integers(0)),
        max_size=2,
    ).map(tuple),
    output_error=st.dictionaries(texts, st.dictionaries(texts, numbers, max_size=2), max_size=2),
    baseline_bytes=st.integers(0, 2**50),
    bytes=st.integers(0, 2**50),
    latency=st.lists(
        st.builds(Latency, st.integers(1, 64), shapes, numbers, numbers, numbers, numbers), max_size=2
    ).map(tuple),
    host=objects,
    files=st.dictionaries(names, st.text("0123456789abcdef", min_size=64, max_size=64), max_size=2),
    inputs_sha256=st.dictionaries(texts, texts, max_size=2),
    libraries=st.dictionaries(texts, texts, max_size=2),
    budget=st.dictionaries(texts, numbers, max_size=2),
)
