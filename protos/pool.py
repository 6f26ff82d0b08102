"""The descriptor pool of our own messages.

Triton's clients register files and messages of the same names in protobuf's default pool, which refuses a second
definition. Ours live here, so that both can be imported in one process, in either order. Only generated modules call
`load`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

POOL = descriptor_pool.DescriptorPool()


def load(name: str, serialized: bytes) -> tuple[FileDescriptor, dict[str, Any]]:
    """Add one serialised FileDescriptorProto; returns its descriptor and what its module offers by name."""
    POOL.AddSerializedFile(serialized)
    file = POOL.FindFileByName(name)
    offered: dict[str, Any] = {
        name: message_factory.GetMessageClass(message) for name, message in file.message_types_by_name.items()
    }
    for name, enum in file.enum_types_by_name.items():
        offered[name] = EnumTypeWrapper(enum)
        offered.update((value.name, value.number) for value in enum.values)
    return file, offered
