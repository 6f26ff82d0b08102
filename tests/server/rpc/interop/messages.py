"""The messages of gRPC's interop tests: names and field numbers of its `grpc.testing` package, in a pool of their own.

Only the fields that the cases use; built from a table, since a dozen messages need no generated module.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "grpc.testing"
_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "string": FieldDescriptorProto.TYPE_STRING,
}
_MESSAGES: dict[str, tuple[tuple[int, str, str], ...]] = {
    "Empty": (),
    "BoolValue": ((1, "value", "bool"),),
    "Payload": ((2, "body", "bytes"),),
    "EchoStatus": ((1, "code", "int32"), (2, "message", "string")),
    "SimpleRequest": (
        (2, "response_size", "int32"),
        (3, "payload", "Payload"),
        (6, "response_compressed", "BoolValue"),
        (7, "response_status", "EchoStatus"),
        (8, "expect_compressed", "BoolValue"),
    ),
    "SimpleResponse": ((1, "payload", "Payload"),),
    "StreamingInputCallRequest": ((1, "payload", "Payload"),),
    "StreamingInputCallResponse": ((1, "aggregated_payload_size", "int32"),),
    "ResponseParameters": ((1, "size", "int32"),),
    "StreamingOutputCallRequest": (
        (2, "response_parameters", "repeated ResponseParameters"),
        (3, "payload", "Payload"),
        (7, "response_status", "EchoStatus"),
    ),
    "StreamingOutputCallResponse": ((1, "payload", "Payload"),),
}


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="grpc/testing/messages.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            repeated, _, plain = kind.rpartition(" ")
            found = message.field.add(name=field, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
            if repeated:
                found.label = FieldDescriptorProto.LABEL_REPEATED
            if plain in _SCALARS:
                found.type = _SCALARS[plain]
            else:
                found.type, found.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{plain}"
    return file


_pool = DescriptorPool()
_pool.AddSerializedFile(_file().SerializeToString())
_of: dict[str, Any] = {name: GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES}

Empty: Any = _of["Empty"]
BoolValue: Any = _of["BoolValue"]
Payload: Any = _of["Payload"]
EchoStatus: Any = _of["EchoStatus"]
SimpleRequest: Any = _of["SimpleRequest"]
SimpleResponse: Any = _of["SimpleResponse"]
StreamingInputCallRequest: Any = _of["StreamingInputCallRequest"]
StreamingInputCallResponse: Any = _of["StreamingInputCallResponse"]
ResponseParameters: Any = _of["ResponseParameters"]
StreamingOutputCallRequest: Any = _of["StreamingOutputCallRequest"]
StreamingOutputCallResponse: Any = _of["StreamingOutputCallResponse"]
