"""What the server needs of the protocol: message classes, the table of RPCs, and descriptors for reflection.

`service.ModelInferRequest`, `config.ModelConfig` and so on are ordinary protobuf classes, typed by the `.pyi` files
beside the generated modules. The table holds what a generic gRPC handler needs; this module knows no gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from protos import grpc_service_pb2 as service
from protos import model_config_pb2 as config
from protos.pool import POOL

__all__ = ["FILES", "METHODS", "POOL", "SERVICE", "Method", "config", "reflection_pool", "service"]

SERVICE = "inference.GRPCInferenceService"
FILES: tuple[FileDescriptor, ...] = (config.DESCRIPTOR, service.DESCRIPTOR)
"""In order of dependency."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of the service."""

    name: str
    request: type[Message]
    response: type[Message]
    streaming: bool
    """Both sides stream; the service has no RPC that streams on one side only."""

    @property
    def path(self) -> str:
        """The HTTP/2 `:path`."""
        return f"/{SERVICE}/{self.name}"


def _methods() -> dict[str, Method]:
    methods = service.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    message = message_factory.GetMessageClass
    return {
        rpc.name: Method(rpc.name, message(rpc.input_type), message(rpc.output_type), rpc.client_streaming)
        for rpc in methods
    }


METHODS: dict[str, Method] = _methods()
"""All 20, by name, in the order of the .proto file."""


def reflection_pool(*others: FileDescriptor) -> DescriptorPool:
    """A pool holding our files and `others` (health …; given after what they import), for a reflection service."""
    pool = DescriptorPool()
    for file in (*FILES, *others):
        copy = FileDescriptorProto()
        file.CopyToProto(copy)
        pool.Add(copy)
    return pool
