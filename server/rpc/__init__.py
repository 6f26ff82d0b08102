"""The gRPC face: the only folder of the server that imports grpc.

`service` has the handlers and knows no transport, `codec` and `describe` turn messages into the core's types and back,
`grpcio` is the transport.
"""
