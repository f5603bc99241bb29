"""Which messages of a long chat go to the model: the system prompt and as many of the last turns as the context holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from exltui.errors import ContextError

Turn = dict[str, str]
_BLOCK = 4  # turns
_LONG = 8  # characters for each token of the context: a chat of more is not even tried whole


@dataclass(frozen=True, slots=True)
class Fitted:
    """The messages that go in, the places of those that were left out, and the prompt that they make."""

    messages: tuple[Turn, ...]
    left_out: tuple[int, ...]
    prompt: str
    prompt_tokens: int

    @property
    def dropped(self) -> int:
        """How many messages were left out."""
        return len(self.left_out)


def fit(
    messages: Sequence[Turn],
    render: Callable[[Sequence[Turn]], str],
    count_tokens: Callable[[str], int],
    context: int,
    reserve: int,
    pinned: Collection[int] = (),
) -> Fitted:
    """``messages`` without as many of the oldest turns as is needed to leave ``reserve`` tokens of the ``context`` for the reply.

    A turn is a message of the user with what answers it. The system prompt, the last turn, and turns with a message whose place is in
    ``pinned`` always stay. ``reserve`` is at most half of the context. Where there is a choice, turns go in blocks of four, so that the
    beginning of the prompt stays the same for some turns and the engine finds it in its cache. Raises ContextError if what must stay is
    too long.
    """
    room = context - min(reserve, context // 2)
    first = 1 if messages and messages[0]["role"] == "system" else 0
    turns = _turns(messages, first)
    stays = [any(place in pinned for place in turn) for turn in turns]

    def attempt(dropped: int) -> Fitted:
        left_out = tuple(place for turn, stay in zip(turns[:dropped], stays, strict=False) if not stay for place in turn)
        gone = set(left_out)
        kept = tuple(message for place, message in enumerate(messages) if place not in gone)
        prompt = render(kept)
        return Fitted(kept, left_out, prompt, count_tokens(prompt))

    if sum(len(message["content"]) for message in messages) <= _LONG * context:
        whole = attempt(0)
        if whole.prompt_tokens <= room:
            return whole
    best = _longest(attempt, len(turns), room)
    if best is None:
        raise _too_long(attempt(max(len(turns) - 1, 0)).prompt_tokens, context, context - room, bool(first) or any(stays))
    dropped, fitted = best
    block = -(-dropped // _BLOCK) * _BLOCK
    return attempt(block) if block > dropped and len(turns) - block >= _BLOCK else fitted


def alternating(messages: Sequence[Turn]) -> list[Turn]:
    """``messages`` with those of one role in a row as one, as templates insist: a question without an answer and the next, for example."""
    found: list[Turn] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"]:
            found[-1] = {**message, "content": f"{found[-1]['content']}\n\n{message['content']}"}
        else:
            found.append(message)
    return found


def _turns(messages: Sequence[Turn], first: int) -> list[list[int]]:
    """The places of ``messages`` from ``first`` on, cut before every message of the user."""
    turns: list[list[int]] = []
    for place in range(first, len(messages)):
        if messages[place]["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(place)
    return turns


def _longest(attempt: Callable[[int], Fitted], turns: int, room: int) -> tuple[int, Fitted] | None:
    """The fewest turns to drop so that the rest fits, with that rest; ``None`` if not even the last turn fits.

    Goes from the end in doubling steps, then bisects: the work depends on the context, not on the length of the chat.
    """
    kept, reach = 0, 1
    best: tuple[int, Fitted] | None = None
    while kept < reach <= turns:
        fitted = attempt(turns - reach)
        if fitted.prompt_tokens > room:
            break
        kept, best = reach, (turns - reach, fitted)
        reach = min(2 * reach, turns)
    low, high = kept + 1, reach - 1
    while low <= high:
        middle = (low + high) // 2
        fitted = attempt(turns - middle)
        if fitted.prompt_tokens <= room:
            best, low = (turns - middle, fitted), middle + 1
        else:
            high = middle - 1
    return best


def _too_long(tokens: int, context: int, reserve: int, company: bool) -> ContextError:
    what = "the last message with the system prompt and what is pinned" if company else "the last message"
    return ContextError(
        f"{what} is {tokens:,} tokens long; the context holds {context:,}, of which {reserve:,} are kept for the reply",
        "edit or drop that message, or load the model with a longer context",
    )
