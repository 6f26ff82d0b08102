"""From a version folder to a `Model`: card, configuration, backend, auto-completion, labels; all checks in one place.

Order matters: nothing is opened by a backend before its bytes have been compared with the card.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from protos import autocomplete, card, repository
from protos.model_config import ConfigError, ModelConfig
from protos.repository import Entry
from server import backends, classification, devices, warmup
from server.backends.base import LoadRequest
from server.logs import log
from server.model import Model
from server.settings import Settings

Clock = Callable[[], int]


class EntryLoader:
    """The catalog's loader; called from several threads at once."""

    def __init__(self, settings: Settings, clock: Clock = time.monotonic_ns) -> None:
        self._settings = settings
        self._clock = clock

    def __call__(self, entry: Entry, version: int) -> Model:
        """Raises BackendError, CardError, ConfigError or RepositoryError."""
        began = self._clock()
        config = entry.config
        check_supported(config)
        folder = entry.version_path(version)
        found = card.read(folder)
        if found is not None:
            card.verify(found, folder)
        path = repository.model_file(entry, version)
        backend = backends.get(config.backend or config.platform)
        options = self._settings.backend_options(backend.name)
        warmup_seconds = warmup.seconds(options.get("warmup", warmup.SECONDS))
        instances = devices.place(config, backend, options)
        session = backend.load(LoadRequest(path, config, instances, options, verified=found is not None))
        try:
            complete = autocomplete.complete(
                config,
                session.io,
                default_max_batch_size=self._settings.default_max_batch_size(backend.name),
                auto_complete=self._settings.auto_complete_config,
            )
            labels = classification.read_labels(entry.path, complete)
            model = Model(
                entry.name, version, complete, session, instances, self._clock, self._settings.max_queue_size, labels
            )
            model.warm_up(warmup_seconds)
        except BaseException:
            session.close()
            raise
        seconds = round((self._clock() - began) / 1e9, 3)
        checked = "verified" if found is not None else "none"
        log.info("loaded", model=entry.name, version=version, seconds=seconds, card=checked, instances=len(instances))
        return model


def check_supported(config: ModelConfig) -> None:
    """Refuse what would change answers, warn of what would not. Raises ConfigError."""
    if config.unsupported:
        fields = ", ".join(config.unsupported)
        raise ConfigError(f"model '{config.name}': this server does not support configuration field {fields}")
    for field in config.ignored:
        log.warning("configuration field has no effect here", model=config.name, field=field)
