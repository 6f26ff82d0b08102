"""gRPC server reflection, so that grpcurl and its like need no .proto files.

grpcio-reflection's own servicer is not used, because it is bound to grpcio and to v1alpha; v1 has the same messages
under another name, and current clients ask for it first.
"""

from __future__ import annotations

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from protos.wire import SERVICE, reflection_pool
from server.errors import InvalidRequest
from server.rpc import health
from server.rpc.call import Buffer, OnMessage, Routes, Stream, StreamCall

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
PATHS = tuple(f"/{service}/ServerReflectionInfo" for service in SERVICES)
_POOL = reflection_pool(health.FILE, reflection_pb2.DESCRIPTOR)
_NOT_FOUND = 5


def routes() -> Routes:
    return dict.fromkeys(PATHS, Stream(answer))


def answer(call: StreamCall) -> OnMessage:
    """One ServerReflectionResponse per request."""

    def on_message(body: Buffer | None) -> None:
        if body is None:
            call.end()
            return
        try:
            call.send(_reply(body))
        except InvalidRequest as error:
            call.end(error)

    return on_message


def _reply(body: Buffer) -> bytes:
    try:
        request = reflection_pb2.ServerReflectionRequest.FromString(body)
    except (DecodeError, UnicodeDecodeError):
        raise InvalidRequest("request is not a valid grpc.reflection ServerReflectionRequest message") from None
    response = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
    asked = request.WhichOneof("message_request")
    try:
        if asked == "list_services":
            names = sorted((SERVICE, health.SERVICE, *SERVICES))
            response.list_services_response.service.extend(reflection_pb2.ServiceResponse(name=n) for n in names)
        elif asked == "file_by_filename":
            _add(response, _POOL.FindFileByName(request.file_by_filename))
        elif asked == "file_containing_symbol":
            _add(response, _POOL.FindFileContainingSymbol(request.file_containing_symbol))
        elif asked == "all_extension_numbers_of_type":
            name = request.all_extension_numbers_of_type
            _POOL.FindMessageTypeByName(name)
            response.all_extension_numbers_response.base_type_name = name  # the protocol has no extensions
        else:
            raise KeyError(asked)
    except KeyError:
        response.error_response.error_code = _NOT_FOUND
        response.error_response.error_message = "not found"
    data: bytes = response.SerializeToString()
    return data


def _add(response: reflection_pb2.ServerReflectionResponse, file: FileDescriptor) -> None:
    """The file and all it imports."""
    pending, seen = [file], {file.name}
    while pending:
        found = pending.pop()
        proto = FileDescriptorProto()
        found.CopyToProto(proto)
        response.file_descriptor_response.file_descriptor_proto.append(proto.SerializeToString())
        for needed in found.dependencies:
            if needed.name not in seen:
                seen.add(needed.name)
                pending.append(needed)
