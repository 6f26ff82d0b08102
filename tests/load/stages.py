"""Where the time of a request went, purely: what a server counted over one level, against what the client saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from tests.load.loops import Sample
from tests.load.result import Stages

NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server has counted of one model since it started: requests answered without an error, and the nanoseconds
    that these spent, as ModelStatistics tells them. Every request of a batch is charged the whole batch's compute."""

    requests: int
    total: int
    queue: int
    compute_input: int
    compute_infer: int
    compute_output: int


Told = Counts | str
"""Or why the server tells none."""


def between(before: Told, after: Told, samples: Sequence[Sample]) -> tuple[Stages | None, str | None]:
    """The average request of `samples`, which are all that were sent between the two; and what there is to say against
    these figures, or why there are none."""
    for told in (before, after):
        if isinstance(told, str):
            return None, told
    assert isinstance(before, Counts)
    assert isinstance(after, Counts)
    took = [sample.done - sample.sent for sample in samples if sample.error is None]
    requests, total, queue, collate, compute, split = (
        late - early for early, late in zip(astuple(before), astuple(after), strict=True)
    )
    if requests < 0 or total < 0:
        return None, "the server began to count anew: the model was loaded again"
    if not requests or not took:
        return None, f"the server counted {requests} answers and the client {len(took)}: there is nothing to divide"
    seen, within = sum(took) / len(took), total / requests
    differ = None
    if requests != len(took):
        differ = f"the server counted {requests} answers and the client {len(took)}: others use the model too"
    if within > seen:
        return None, f"{differ or 'the server counted more time than the client'}, and its requests took longer"
    parts = (queue, collate, compute, split, total - queue - collate - compute - split)
    each = (*(part / requests for part in parts), seen - within)
    return Stages(*(part / NS_PER_MS for part in each)), differ
