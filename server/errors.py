"""What can go wrong with a request or a model, in the server's own words. Wire codes are `rpc/status.py`'s business.

ServerError
├── InvalidRequest       the request contradicts the model or itself
├── NotFound             no such model or version
├── Unavailable          there, but not now: not ready, queue full, timed out in the queue, shutting down
│   └── Stopping         this version of the model is being closed; its successor may take the request
├── AlreadyExists
├── Unsupported          asked for what this server does not do
├── Cancelled            the client went away
├── DeadlineExceeded     the client's deadline passed before the batch was formed
├── ResourceExhausted    larger than a limit of this server
└── Internal             the model or the server failed
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of all; never raised itself."""


class InvalidRequest(ServerError): ...


class NotFound(ServerError): ...


class Unavailable(ServerError): ...


class Stopping(Unavailable): ...


class AlreadyExists(ServerError): ...


class Unsupported(ServerError): ...


class Cancelled(ServerError): ...


class DeadlineExceeded(ServerError): ...


class ResourceExhausted(ServerError): ...


class Internal(ServerError): ...
