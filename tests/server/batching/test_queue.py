"""The queue's rules one by one; `test_queue_properties.py` has them all at once against a second implementation."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

from protos.model_config import DynamicBatching, QueuePolicy
from server.batching.padding import Bucket
from server.batching.queue import Queue
from server.errors import Cancelled, DeadlineExceeded, InvalidRequest, Unavailable
from server.request import InferRequest
from tests.server.core import MS, waiting


def pushed(queue: Queue, *requests: InferRequest, at: int = 0) -> tuple[InferRequest, ...]:
    for request in requests:
        queue.push(request, at)
    return requests


def test_all_that_wait_go_at_once_when_there_is_no_delay() -> None:
    queue = Queue(8, DynamicBatching())
    requests = pushed(queue, *(waiting(2) for _ in range(3)))
    taken = queue.take(0)
    assert taken.batch == requests
    assert taken.rows == 6
    assert len(queue) == 0


def test_a_batch_stops_before_the_request_that_would_exceed_the_limit() -> None:
    queue = Queue(8, DynamicBatching())
    first, second, third = pushed(queue, waiting(5), waiting(4), waiting(1))
    assert queue.take(0).batch == (first,), "the third would fit, but it may not overtake the second"
    assert queue.take(0).batch == (second, third)


def test_a_request_of_another_group_closes_the_batch() -> None:
    queue = Queue(8, DynamicBatching(max_queue_delay_microseconds=1000))
    first, second, third = pushed(queue, waiting(group=(4,)), waiting(group=(5,)), waiting(group=(4,)))
    assert queue.take(0).batch == (first,), "closed, so there is nothing to wait for"
    assert queue.take(0).batch == (second,)
    assert queue.take(0).batch == ()
    assert queue.take(1 * MS).batch == (third,)


def test_without_dynamic_batching_each_request_is_its_own_batch() -> None:
    queue = Queue(8, None)
    first, second = pushed(queue, waiting(3), waiting(3))
    assert queue.take(0).batch == (first,)
    assert queue.take(0).batch == (second,)


def test_a_model_without_batch_dimension_gets_one_request_at_a_time() -> None:
    queue = Queue(0, DynamicBatching())
    first, _ = pushed(queue, waiting(), waiting())
    assert queue.take(0).batch == (first,)


def test_a_request_with_more_rows_than_a_batch_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="9 rows exceed the 8"):
        Queue(8, DynamicBatching()).push(waiting(9), 0)


def test_a_batch_waits_until_its_oldest_request_has_waited_for_the_delay() -> None:
    queue = Queue(8, DynamicBatching(max_queue_delay_microseconds=5000))
    (first,) = pushed(queue, waiting(), at=1 * MS)
    (second,) = pushed(queue, waiting(), at=4 * MS)
    early = queue.take(5 * MS)
    assert early.batch == ()
    assert early.wake_at_ns == 6 * MS
    assert queue.take(6 * MS).batch == (first, second)


def test_the_oldest_counts_even_if_a_higher_level_goes_before_it() -> None:
    batching = DynamicBatching(max_queue_delay_microseconds=5000, priority_levels=2, default_priority_level=2)
    queue = Queue(8, batching)
    (old,) = pushed(queue, waiting(priority=2), at=0)
    (high,) = pushed(queue, waiting(priority=1), at=4 * MS)
    assert queue.take(5 * MS - 1).wake_at_ns == 5 * MS
    assert queue.take(5 * MS).batch == (high, old)


def test_a_full_batch_does_not_wait() -> None:
    queue = Queue(4, DynamicBatching(max_queue_delay_microseconds=5000))
    requests = pushed(queue, *(waiting() for _ in range(5)))
    assert queue.take(0).batch == requests[:4]
    assert queue.take(0).wake_at_ns == 5 * MS


def test_the_largest_preferred_size_goes_at_once() -> None:
    queue = Queue(16, DynamicBatching(preferred_batch_size=(2, 4), max_queue_delay_microseconds=5000))
    requests = pushed(queue, *(waiting() for _ in range(5)))
    assert queue.take(0).batch == requests[:4]
    assert queue.take(0).batch == ()
    assert queue.take(5 * MS).batch == requests[4:]


def test_a_preferred_size_that_the_rows_step_over_is_not_waited_for() -> None:
    queue = Queue(8, DynamicBatching(preferred_batch_size=(4,), max_queue_delay_microseconds=5000))
    requests = pushed(queue, waiting(3), waiting(3))
    assert queue.take(0).batch == requests


def test_what_is_there_goes_when_no_preferred_size_can_be_formed_and_there_is_no_delay() -> None:
    queue = Queue(8, DynamicBatching(preferred_batch_size=(8,)))
    requests = pushed(queue, *(waiting() for _ in range(3)))
    assert queue.take(0).batch == requests


def test_higher_priority_goes_first_and_arrival_order_holds_within_a_level() -> None:
    queue = Queue(8, DynamicBatching(priority_levels=2, default_priority_level=2))
    low, high, low2, high2 = pushed(queue, *(waiting(priority=p) for p in (2, 1, 2, 1)))
    assert queue.take(0).batch == (high, high2, low, low2)


@pytest.mark.parametrize("priority", [0, 3, 2**40])
def test_priority_zero_and_priorities_beyond_the_levels_are_the_default(priority: int) -> None:
    queue = Queue(1, DynamicBatching(priority_levels=2, default_priority_level=2))
    second, odd, first = pushed(queue, waiting(priority=2), waiting(priority=priority), waiting(priority=1))
    assert [queue.take(0).batch[0] for _ in range(3)] == [first, second, odd]


def test_a_full_queue_refuses_with_the_text_of_triton() -> None:
    queue = Queue(8, DynamicBatching(default_queue_policy=QueuePolicy(max_queue_size=1)), max_queue_size=100)
    pushed(queue, waiting())
    with pytest.raises(Unavailable, match=r"\[request id: r7\] Exceeds maximum queue size"):
        queue.push(waiting(id="r7"), 0)


def test_the_bound_of_the_server_holds_where_the_policy_names_none() -> None:
    queue = Queue(8, DynamicBatching(), max_queue_size=2)
    pushed(queue, waiting(), waiting())
    with pytest.raises(Unavailable):
        queue.push(waiting(), 0)


def test_a_flood_of_low_priority_leaves_room_for_high() -> None:
    queue = Queue(8, DynamicBatching(priority_levels=2, default_priority_level=2), max_queue_size=1)
    pushed(queue, waiting(priority=2))
    with pytest.raises(Unavailable):
        queue.push(waiting(priority=2), 0)
    (high,) = pushed(queue, waiting(priority=1))
    assert queue.take(0).batch[0] is high


def test_levels_have_policies_of_their_own() -> None:
    policies = {1: QueuePolicy(max_queue_size=1)}
    queue = Queue(8, DynamicBatching(priority_levels=2, default_priority_level=2, priority_queue_policy=policies))
    pushed(queue, waiting(priority=1), waiting(priority=2), waiting(priority=2))
    with pytest.raises(Unavailable):
        queue.push(waiting(priority=1), 0)


def test_a_request_whose_timeout_has_passed_is_rejected_and_never_runs() -> None:
    queue = Queue(8, DynamicBatching(default_queue_policy=QueuePolicy(default_timeout_microseconds=1000)))
    (late,) = pushed(queue, waiting(), at=0)
    (fresh,) = pushed(queue, waiting(), at=1 * MS - 1)
    taken = queue.take(1 * MS)
    assert taken.batch == (fresh,)
    ((request, error),) = taken.dropped
    assert request is late
    assert isinstance(error, Unavailable)
    assert str(error) == "[request id: <id_unknown>] Request timeout expired"


def test_delay_lets_an_overdue_request_run_after_those_in_time() -> None:
    policy = QueuePolicy(timeout_action="DELAY", default_timeout_microseconds=1000)
    queue = Queue(1, DynamicBatching(default_queue_policy=policy))
    (late,) = pushed(queue, waiting(), at=0)
    (fresh,) = pushed(queue, waiting(), at=1 * MS)
    assert queue.take(1 * MS).batch == (fresh,)
    (fresher,) = pushed(queue, waiting(), at=1 * MS)
    assert queue.take(1 * MS).batch == (fresher,)
    assert queue.take(1 * MS).batch == (late,)


@pytest.mark.parametrize(
    ("override", "own_us", "default_us", "expires_ms"),
    [(True, 1000, 2000, 1), (True, 3000, 2000, 2), (False, 1000, 2000, 2), (True, 1000, 0, 1), (True, 0, 2000, 2)],
)
def test_a_requests_own_timeout_counts_only_where_allowed_and_smaller(
    override: bool, own_us: int, default_us: int, expires_ms: int
) -> None:
    policy = QueuePolicy(default_timeout_microseconds=default_us, allow_timeout_override=override)
    queue = Queue(8, DynamicBatching(default_queue_policy=policy, max_queue_delay_microseconds=10_000))
    pushed(queue, waiting(timeout_us=own_us))
    assert queue.take(0).wake_at_ns == expires_ms * MS
    assert not queue.take(expires_ms * MS - 1).dropped
    assert len(queue.take(expires_ms * MS).dropped) == 1


def test_a_clients_deadline_takes_its_request_out_before_it_costs_compute() -> None:
    queue = Queue(8, DynamicBatching())
    late, fresh = pushed(queue, waiting(deadline_ns=5), waiting(deadline_ns=6))
    taken = queue.take(5)
    assert taken.batch == (fresh,)
    assert [(r, type(e)) for r, e in taken.dropped] == [(late, DeadlineExceeded)]


def test_the_earlier_of_deadline_and_timeout_counts() -> None:
    policy = QueuePolicy(default_timeout_microseconds=10)
    queue = Queue(8, DynamicBatching(default_queue_policy=policy, max_queue_delay_microseconds=1000))
    pushed(queue, waiting(deadline_ns=5000), waiting(deadline_ns=50_000))
    assert [type(error) for _, error in queue.expire(9999)] == [DeadlineExceeded]
    assert [type(error) for _, error in queue.expire(10_000)] == [Unavailable]


def test_a_deadline_still_counts_for_a_delayed_request() -> None:
    policy = QueuePolicy(timeout_action="DELAY", default_timeout_microseconds=1)
    queue = Queue(8, DynamicBatching(default_queue_policy=policy))
    (request,) = pushed(queue, waiting(deadline_ns=5000))
    assert not queue.expire(1000)
    assert [r for r, _ in queue.take(5000).dropped] == [request]


def test_a_cancelled_request_is_dropped_when_its_turn_comes() -> None:
    queue = Queue(8, DynamicBatching())
    gone, there = pushed(queue, waiting(), waiting())
    gone.cancelled = True
    taken = queue.take(0)
    assert taken.batch == (there,)
    assert [(r, type(e)) for r, e in taken.dropped] == [(gone, Cancelled)]


def test_a_removed_request_is_gone_and_can_be_removed_once() -> None:
    queue = Queue(8, DynamicBatching())
    first, second = pushed(queue, waiting(), waiting())
    assert queue.remove(first)
    assert not queue.remove(first)
    assert queue.take(0).batch == (second,)
    assert not queue.remove(second)


def test_an_empty_queue_has_nothing_to_wake_for() -> None:
    taken = Queue(8, DynamicBatching(max_queue_delay_microseconds=5)).take(0)
    assert taken.batch == ()
    assert taken.wake_at_ns is None


def test_clear_gives_back_all_in_order() -> None:
    queue = Queue(8, DynamicBatching(priority_levels=2, default_priority_level=2))
    low, high = pushed(queue, waiting(priority=2, deadline_ns=9), waiting(priority=1))
    assert queue.clear() == (high, low)
    assert len(queue) == 0
    assert queue.take(100).dropped == ()


def test_a_push_that_cannot_change_the_outcome_says_so() -> None:
    queue = Queue(4, DynamicBatching(max_queue_delay_microseconds=1000))
    grown = [queue.push(waiting(), 0) for _ in range(4)]
    assert grown == [True, False, False, True], "the first sets the alarm, the last completes the batch"


def test_the_expiry_heap_keeps_no_request_that_has_left() -> None:
    queue = Queue(1, DynamicBatching(default_queue_policy=QueuePolicy(default_timeout_microseconds=10**9)))

    class Traced(InferRequest):  # the slotted base has no weak references
        pass

    references = []
    for _ in range(500):
        request = Traced("m", ())
        references.append(weakref.ref(request))
        queue.push(request, 0)
        queue.take(0)
        del request
    gc.collect()
    assert not any(reference() for reference in references)
    assert len(queue._timers) <= 70, "swept as it grows"


def test_the_repr_shows_who_waits() -> None:
    queue = Queue(8, DynamicBatching())
    pushed(queue, waiting(2), waiting())
    assert repr(queue) == "<Queue 2 waiting, 3 rows; level 0: 2 + 0 delayed>"


SHORT, LONG = Bucket([(8,)]), Bucket([(16,)])


def test_a_bucket_is_gathered_from_wherever_its_requests_stand() -> None:
    queue = Queue(3, DynamicBatching())
    requests = pushed(queue, *(waiting(group=SHORT if i % 3 else LONG) for i in range(9)))
    long = requests[::3]
    assert queue.take(0).batch == long
    short = [request for request in requests if request not in long]
    assert queue.take(0).batch == tuple(short[:3])
    assert queue.take(0).batch == tuple(short[3:])


def test_the_first_in_order_is_in_the_next_batch_however_many_others_there_are() -> None:
    queue = Queue(4, DynamicBatching(preferred_batch_size=(4,)))
    first, *_ = pushed(queue, waiting(group=LONG), *(waiting(group=SHORT) for _ in range(20)))
    assert queue.take(0).batch == (first,)


def test_within_a_bucket_nobody_is_overtaken_by_one_that_would_fit() -> None:
    queue = Queue(4, DynamicBatching())
    first, _, large, _ = pushed(
        queue, waiting(2, SHORT), waiting(1, LONG), waiting(3, SHORT), waiting(1, SHORT)
    )  # fmt: skip
    assert queue.take(0).batch == (first,)
    assert queue.take(0).batch[0].group == LONG
    assert queue.take(0).batch[0] is large


def test_a_batch_of_a_bucket_does_not_wait_while_others_do() -> None:
    queue = Queue(4, DynamicBatching(max_queue_delay_microseconds=1000))
    (first,) = pushed(queue, waiting(group=SHORT))
    assert queue.take(0).batch == ()
    assert queue.push(other := waiting(group=LONG), 0)
    assert queue.take(0).batch == (first,)
    assert queue.take(0).batch == ()
    assert queue.take(1 * MS).batch == (other,)


def test_priority_goes_before_the_bucket_and_mates_come_from_all_levels() -> None:
    queue = Queue(8, DynamicBatching(priority_levels=2, default_priority_level=2))
    short, long, high = pushed(
        queue, waiting(group=SHORT), waiting(group=LONG), waiting(group=LONG, priority=1)
    )  # fmt: skip
    assert queue.take(0).batch == (high, long)
    assert queue.take(0).batch == (short,)


def test_with_preserve_ordering_a_bucket_is_gathered_from_neighbours_only() -> None:
    queue = Queue(8, DynamicBatching(preserve_ordering=True))
    a, b, c, d = pushed(queue, *(waiting(group=group) for group in (SHORT, SHORT, LONG, SHORT)))
    assert [queue.take(0).batch for _ in range(3)] == [(a, b), (c,), (d,)]


def test_cancelled_and_expired_requests_leave_their_bucket_too() -> None:
    queue = Queue(8, DynamicBatching())
    first, gone, late, last = pushed(
        queue, waiting(group=SHORT), waiting(group=SHORT), waiting(group=SHORT, deadline_ns=5), waiting(group=SHORT)
    )
    first.cancelled = gone.cancelled = True
    taken = queue.take(5)
    assert taken.batch == (last,)
    assert {request: type(error) for request, error in taken.dropped} == {
        first: Cancelled,
        gone: Cancelled,
        late: DeadlineExceeded,
    }
    assert len(queue) == 0


def test_a_bucket_lives_no_longer_than_its_requests() -> None:
    """Clients choose the shapes."""
    queue = Queue(8, DynamicBatching())
    bucket = Bucket([(8,)])
    before = sys.getrefcount(bucket)
    pushed(queue, *(waiting(group=bucket) for _ in range(9)))
    pushed(queue, waiting(group=LONG))
    while queue.take(0).batch:
        pass
    assert sys.getrefcount(bucket) == before
