"""Models, statistics and index rows as the protocol's messages."""

from __future__ import annotations

from collections.abc import Iterable

from protos import config_text
from protos.model_config import ModelConfig, TensorSpec
from protos.wire import service
from server.model import Model
from server.states import Row
from server.statistics import Duration, ModelStatistics

_Tensor = service.ModelMetadataResponse.TensorMetadata


def metadata(model: Model, versions: Iterable[int]) -> service.ModelMetadataResponse:
    """Shapes as clients send them: with the batch dimension, as -1, where the model batches."""
    config = model.config
    return service.ModelMetadataResponse(
        name=model.name,
        versions=[str(version) for version in versions],
        platform=config.platform or config.backend,
        inputs=[_tensor(config, spec) for spec in config.inputs],
        outputs=[_tensor(config, spec) for spec in config.outputs],
    )


def _tensor(config: ModelConfig, spec: TensorSpec) -> service.ModelMetadataResponse.TensorMetadata:
    batch = (-1,) if config.max_batch_size > 0 and not spec.is_shape_tensor else ()
    return _Tensor(name=spec.name, datatype=spec.datatype.name, shape=(*batch, *spec.dims))


def config(model: Model) -> service.ModelConfigResponse:
    """The whole configuration, auto-completed."""
    response = service.ModelConfigResponse()
    response.config.CopyFrom(config_text.to_message(model.config))
    return response


def statistics(models: Iterable[Model]) -> service.ModelStatisticsResponse:
    return service.ModelStatisticsResponse(model_stats=[_statistics(m, m.statistics()) for m in models])


def _statistics(model: Model, stats: ModelStatistics) -> service.ModelStatistics:
    return service.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=stats.last_inference_ms,
        inference_count=stats.inference_count,
        execution_count=stats.execution_count,
        inference_stats=service.InferStatistics(
            success=_duration(stats.success),
            fail=_duration(stats.fail),
            queue=_duration(stats.queue),
            compute_input=_duration(stats.compute_input),
            compute_infer=_duration(stats.compute_infer),
            compute_output=_duration(stats.compute_output),
            cache_hit=_duration(stats.cache_hit),
            cache_miss=_duration(stats.cache_miss),
        ),
        batch_stats=[
            service.InferBatchStatistics(
                batch_size=batch.batch_size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for batch in stats.batches
        ],
    )


def _duration(duration: Duration) -> service.StatisticDuration:
    return service.StatisticDuration(count=duration.count, ns=duration.ns)


def index(rows: Iterable[Row]) -> service.RepositoryIndexResponse:
    return service.RepositoryIndexResponse(
        models=[
            service.RepositoryIndexResponse.ModelIndex(
                name=row.name, version=row.version, state=row.state, reason=row.reason
            )
            for row in rows
        ]
    )
