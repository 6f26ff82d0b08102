"""What is known of each model version: its state, why it is in it, and which moves between states exist."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """As the repository index names them."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


MOVES: dict[State, frozenset[State]] = {
    State.UNKNOWN: frozenset({State.LOADING, State.UNAVAILABLE}),
    State.LOADING: frozenset({State.READY, State.UNAVAILABLE}),
    State.READY: frozenset({State.READY, State.UNLOADING}),  # to itself: replaced by a reload, or a reload failed
    State.UNLOADING: frozenset({State.UNAVAILABLE, State.LOADING}),
    State.UNAVAILABLE: frozenset({State.LOADING, State.UNAVAILABLE}),
}

UNLOADED = "unloaded"
"""Triton's reason after an unload; such a version does not count against readiness."""


@dataclass(frozen=True, slots=True)
class Status:
    state: State = State.UNKNOWN
    reason: str = ""

    def to(self, state: State, reason: str = "") -> Status:
        """The status after a move that MOVES allows."""
        if state not in MOVES[self.state]:
            raise RuntimeError(f"no move from {self.state.value} to {state.value}")
        return Status(state, reason)

    @property
    def counts_as_ready(self) -> bool:
        """Whether strict readiness is content with it."""
        return self.state is State.READY or (
            self.state in (State.UNAVAILABLE, State.UNLOADING) and self.reason == UNLOADED
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the repository index; an entry that was never loaded has neither version nor state."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""
