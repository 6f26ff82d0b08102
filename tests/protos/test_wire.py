"""Our messages are Triton's, field by field, and live beside tritonclient's in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from tritonclient.grpc import model_config_pb2 as their_config
from tritonclient.grpc import service_pb2 as their_service

from protos import generate, wire

PAIRS = [(wire.config.DESCRIPTOR, their_config.DESCRIPTOR), (wire.service.DESCRIPTOR, their_service.DESCRIPTOR)]


def enum_facts(enum: EnumDescriptor) -> dict[str, object]:
    return {"name": enum.full_name, "values": [(value.name, value.number) for value in enum.values]}


def field_facts(field: FieldDescriptor) -> dict[str, object]:
    return {
        "name": field.full_name,
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "presence": field.has_presence,
        "packed": field.is_packed,
        "json": field.json_name,
        "message": field.message_type and field.message_type.full_name,
        "enum": field.enum_type and field.enum_type.full_name,
        "oneof": field.containing_oneof and field.containing_oneof.full_name,
        "default": field.default_value if not field.is_repeated else None,
        "deprecated": field.GetOptions().deprecated,
    }


def message_facts(message: Descriptor) -> dict[str, object]:
    return {
        "name": message.full_name,
        "fields": [field_facts(field) for field in sorted(message.fields, key=lambda f: f.number)],
        "oneofs": [(oneof.name, [field.name for field in oneof.fields]) for oneof in message.oneofs],
        "nested": sorted((message_facts(nested) for nested in message.nested_types), key=lambda m: str(m["name"])),
        "enums": [enum_facts(enum) for enum in message.enum_types],
        "map": message.GetOptions().map_entry,
    }


def file_facts(file: FileDescriptor) -> dict[str, object]:
    services = {
        name: [
            (rpc.name, rpc.input_type.full_name, rpc.output_type.full_name, rpc.client_streaming, rpc.server_streaming)
            for rpc in service.methods
        ]
        for name, service in file.services_by_name.items()
    }
    return {
        "name": file.name,
        "package": file.package,
        "imports": [dependency.name for dependency in file.dependencies],
        "messages": {name: message_facts(message) for name, message in file.message_types_by_name.items()},
        "enums": {name: enum_facts(enum) for name, enum in file.enum_types_by_name.items()},
        "services": services,
    }


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["config", "service"])
def test_every_descriptor_equals_tritonclients(ours: FileDescriptor, theirs: FileDescriptor) -> None:
    mine, reference = file_facts(ours), file_facts(theirs)
    assert reference["messages"]
    for part, value in reference.items():
        assert mine[part] == value, part


def test_our_classes_are_not_tritonclients() -> None:
    assert wire.service.ModelInferRequest is not their_service.ModelInferRequest
    assert wire.service.DESCRIPTOR.pool is wire.POOL


@pytest.mark.parametrize("first", ["from protos import wire", "import tritonclient.grpc"])
def test_both_packages_share_a_process_in_either_import_order(first: str) -> None:
    program = f"""
{first}
import tritonclient.grpc.service_pb2 as theirs
from protos import wire
sent = theirs.ModelInferRequest(model_name="m", raw_input_contents=[b"x"])
got = wire.service.ModelInferRequest.FromString(sent.SerializeToString())
assert (got.model_name, list(got.raw_input_contents)) == ("m", [b"x"])
assert theirs.ModelInferRequest.FromString(got.SerializeToString()) == sent
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_generated_modules_are_what_the_proto_files_say() -> None:
    for name, text in generate.render().items():
        assert (generate.HERE / name).read_text() == text, f"{name} is stale: run `make proto`"


def test_the_method_table_lists_all_twenty_rpcs() -> None:
    assert len(wire.METHODS) == 20
    assert [m.name for m in wire.METHODS.values() if m.streaming] == ["ModelStreamInfer"]
    infer = wire.METHODS["ModelInfer"]
    assert infer.request is wire.service.ModelInferRequest
    assert infer.response is wire.service.ModelInferResponse
    assert infer.path == "/inference.GRPCInferenceService/ModelInfer"


def test_a_config_inside_a_response_is_the_class_of_the_config_module() -> None:
    assert type(wire.service.ModelConfigResponse().config) is wire.config.ModelConfig


def test_the_reflection_pool_also_takes_files_of_others() -> None:
    from grpc_health.v1 import health_pb2

    pool = wire.reflection_pool(health_pb2.DESCRIPTOR)
    for symbol in (wire.SERVICE, "grpc.health.v1.Health"):
        assert pool.FindFileContainingSymbol(symbol)
