"""Our own gRPC transport over HTTP/2. Importing it needs ngh2 and epoll."""

from server.rpc.http2.transport import Http2Transport

__all__ = ["Http2Transport"]
