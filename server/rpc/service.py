"""The handlers of `inference.GRPCInferenceService`. They know no transport: bytes in, bytes out, and a small `Call`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version as library_version

from protos.wire import METHODS, service
from server.catalog import Catalog
from server.errors import InvalidRequest, ServerError, Stopping, Unavailable, Unsupported
from server.logs import log
from server.model import Model
from server.request import InferRequest, Result
from server.rpc import codec, describe, reflection
from server.rpc.call import Answer, Buffer, Call, Deferred, Quick, Refused, Routes, Slow
from server.rpc.codec import parse
from server.rpc.health import Health
from server.rpc.infer_requests import InferRequests

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."
EXTENSIONS = (
    "classification", "model_repository", "schedule_policy", "model_configuration", "binary_tensor_data", "parameters",
    "statistics",
)  # fmt: skip
"""Of Triton's list, the ones that work here."""


class Service:
    """One object behind all transports. `draining` is set once, when the server begins to shut down."""

    def __init__(self, catalog: Catalog, server_id: str, clock: Callable[[], int]) -> None:
        self._catalog = catalog
        self._id = server_id
        self._clock = clock
        self.draining = False
        self.health = Health(lambda: self.ready)
        self._requests = InferRequests(catalog)
        self._held: set[Model] = set()
        """Models that have been given requests since the last `release`."""

    def routes(self) -> Routes:
        """Every RPC of the protocol by its path, and those of health and reflection."""
        known: Routes = {
            "ServerLive": Quick(self._server_live),
            "ServerReady": Quick(self._server_ready),
            "ServerMetadata": Quick(self._server_metadata),
            "ModelReady": Quick(self._model_ready),
            "ModelMetadata": Quick(self._model_metadata),
            "ModelConfig": Quick(self._model_config),
            "ModelStatistics": Quick(self._model_statistics),
            "ModelInfer": Deferred(self._infer),
            "RepositoryIndex": Slow(self._repository_index),
            "RepositoryModelLoad": Slow(self._load),
            "RepositoryModelUnload": Slow(self._unload),
        }
        missing = {name: Refused(Unsupported(f"{name} is not supported by this server")) for name in METHODS}
        own = {method.path: (missing | known)[name] for name, method in METHODS.items()}
        return own | self.health.routes() | reflection.routes()

    @property
    def ready(self) -> bool:
        return not self.draining and self._catalog.ready

    def begin_drain(self) -> None:
        """Refuse inferences from now on, and be not ready."""
        self.draining = True
        self.health.refresh()

    def release(self) -> None:
        """What has been submitted may be batched now: a transport calls this when nothing more is there to be read.

        Quick models may be run within this call.
        """
        while self._held:
            self._held.pop().release()

    # --- the server ---

    def _server_live(self, body: Buffer) -> bytes:
        parse(service.ServerLiveRequest, body)
        return service.ServerLiveResponse(live=True).SerializeToString()

    def _server_ready(self, body: Buffer) -> bytes:
        parse(service.ServerReadyRequest, body)
        return service.ServerReadyResponse(ready=self.ready).SerializeToString()

    def _server_metadata(self, body: Buffer) -> bytes:
        parse(service.ServerMetadataRequest, body)
        return service.ServerMetadataResponse(
            name=self._id, version=library_version("demiglace"), extensions=EXTENSIONS
        ).SerializeToString()

    # --- models ---

    def _model_ready(self, body: Buffer) -> bytes:
        request = parse(service.ModelReadyRequest, body)
        ready = not self.draining and self._catalog.is_ready(request.name, request.version)
        return service.ModelReadyResponse(ready=ready).SerializeToString()

    def _model_metadata(self, body: Buffer) -> bytes:
        request = parse(service.ModelMetadataRequest, body)
        model = self._catalog.model(request.name, request.version)
        return describe.metadata(model, self._catalog.versions(request.name)).SerializeToString()

    def _model_config(self, body: Buffer) -> bytes:
        request = parse(service.ModelConfigRequest, body)
        return describe.config(self._catalog.model(request.name, request.version)).SerializeToString()

    def _model_statistics(self, body: Buffer) -> bytes:
        """Of one version, all versions of a name, or everything."""
        request = parse(service.ModelStatisticsRequest, body)
        if not request.name:
            models = self._catalog.models()
        elif request.version:
            models = (self._catalog.model(request.name, request.version),)
        else:
            self._catalog.model(request.name)  # raises where there is none
            models = tuple(model for model in self._catalog.models() if model.name == request.name)
        return describe.statistics(models).SerializeToString()

    # --- the repository ---

    def _repository_index(self, body: Buffer) -> bytes:
        request = parse(service.RepositoryIndexRequest, body)
        _no_repository_name(request.repository_name)
        return describe.index(self._catalog.index(request.ready)).SerializeToString()

    def _load(self, body: Buffer) -> bytes:
        request = parse(service.RepositoryModelLoadRequest, body)
        _no_repository_name(request.repository_name)
        config = None
        for key, value in request.parameters.items():
            if key.startswith("file:"):
                raise Unsupported("load parameter 'file:<path>' is not supported: this server takes no uploads")
            if key != "config":
                raise InvalidRequest(f"unrecognized load parameter '{key}'.")
            config = _parameter(value, "load", key, "string_param")
        self._catalog.load(request.model_name, config)
        return service.RepositoryModelLoadResponse().SerializeToString()

    def _unload(self, body: Buffer) -> bytes:
        request = parse(service.RepositoryModelUnloadRequest, body)
        _no_repository_name(request.repository_name)
        for key, value in request.parameters.items():
            if key != "unload_dependents":
                raise InvalidRequest(f"unrecognized unload parameter '{key}'.")
            _parameter(value, "unload", key, "bool_param")  # no model here depends on another
        self._catalog.unload(request.model_name)
        return service.RepositoryModelUnloadResponse().SerializeToString()

    # --- inference ---

    def _infer(self, body: Buffer, call: Call) -> None:
        arrived = self._clock()
        try:
            if self.draining:
                raise Unavailable(SHUTTING_DOWN)
            request, model, version = self._requests.read(body)
        except ServerError as error:
            if log.is_verbose:
                log.verbose("request refused", bytes=len(body), error=error)
            call.complete(partial(_raise, error))
            return
        request.arrived_ns = arrived
        request.deadline_ns = call.deadline_ns
        _Inference(self._catalog, call, request, version).submit(model, hold=True)
        # after it: another thread's release in between would forget the model and leave the request waiting; that of
        # whoever took this call comes soon
        self._held.add(model)


class _Inference:
    """A request on its way through the core, with what happens to it there."""

    __slots__ = ("_call", "_catalog", "_model", "_request", "_result", "_retried", "_version")

    def __init__(self, catalog: Catalog, call: Call, request: InferRequest, version: str) -> None:
        self._catalog = catalog
        self._call = call
        self._request = request
        self._version = version
        self._retried = False

    def submit(self, model: Model, hold: bool) -> None:
        self._model = model
        self._call.on_cancel(self._cancel)
        model.submit(self._request, self._done, hold)

    def _cancel(self) -> None:
        self._model.cancel(self._request)

    def _done(self, request: InferRequest, result: Result) -> None:
        if isinstance(result, ServerError):
            # a reload may close the model between the look-up and the run; the client must not notice
            successor = self._successor() if isinstance(result, Stopping) else None
            if successor is not None:
                self._retried = True
                self.submit(successor, hold=False)  # nobody would release it
                return
            if log.is_verbose:
                log.verbose("request failed", model=request.model, id=request.id, error=result)
        self._result = result
        self._call.complete(self._answer)

    def _answer(self) -> Answer:
        result = self._result
        if isinstance(result, ServerError):
            raise result
        return codec.encode(self._model.name, self._model.version, self._request.id, result)

    def _successor(self) -> Model | None:
        if self._retried:
            return None
        try:
            found = self._catalog.model(self._model.name, self._version)
        except ServerError:  # unloaded for good: the answer it gave stands
            return None
        return found if found is not self._model else None


def _raise(error: ServerError) -> bytes:
    raise error


def _no_repository_name(name: str) -> None:
    if name:
        raise Unsupported("'repository_name' specification is not supported")


def _parameter(value: service.ModelRepositoryParameter, verb: str, key: str, expected: str) -> str:
    if value.WhichOneof("parameter_choice") != expected:
        raise InvalidRequest(f"invalid value type for {verb} parameter '{key}', expected {expected}.")
    return str(getattr(value, expected))
