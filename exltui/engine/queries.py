"""Questions to a session that call no model: what was likely, what a sampler would make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exltui.errors import ModelError
from exltui.protocol import Answer, Explained, Inspect, Inspected, Peek, Peeked, Query

if TYPE_CHECKING:
    from exltui.engine.session import Session


def answer(session: Session | None, query: Query) -> Answer:
    """The event that answers ``query``. Raises ModelError or SamplingError."""
    if session is None:
        raise ModelError("no model is loaded", "load one first")
    if isinstance(query, Peek):
        return Peeked(query.id, tuple(session.generator.known(prompt) for prompt in query.prompts))
    kept = session.generator.kept
    if isinstance(query, Inspect):
        return Inspected(query.id, query.job, kept.scores(query.job, query.top))
    return Explained(query.id, query.job, query.position, *kept.explain(query.job, query.position, query.sampling, query.top))
