"""Which messages of a long chat go to the model: the system prompt and as many of the last turns as the context holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exltui.errors import ContextError

Turn = dict[str, str]
_BLOCK = 4  # turns
_LONG = 8  # characters for each token of the context: a chat of more is not even tried whole


@dataclass(frozen=True, slots=True)
class Fitted:
    """The messages that go in, how many were left out, and the prompt that they make."""

    messages: tuple[Turn, ...]
    dropped: int  # messages left out, the oldest ones after the system prompt
    prompt: str
    prompt_tokens: int


def fit(
    messages: Sequence[Turn],
    render: Callable[[Sequence[Turn]], str],
    count_tokens: Callable[[str], int],
    context: int,
    reserve: int,
) -> Fitted:
    """``messages`` without as many of the oldest turns as is needed to leave ``reserve`` tokens of the ``context`` for the reply.

    A turn is a message of the user with what answers it. The system prompt and the last turn always stay. ``reserve`` is at most
    half of the context. Where there is a choice, turns go in blocks of four, so that the beginning of the prompt stays the same for
    some turns and the engine finds it in its cache. Raises ContextError if the last turn alone is too long.
    """
    room = context - min(reserve, context // 2)
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = _turns(messages[len(system) :])

    def attempt(dropped: int) -> Fitted:
        kept = (*system, *(message for turn in turns[dropped:] for message in turn))
        prompt = render(kept)
        return Fitted(kept, len(messages) - len(kept), prompt, count_tokens(prompt))

    if sum(len(message["content"]) for message in messages) <= _LONG * context:
        whole = attempt(0)
        if whole.prompt_tokens <= room:
            return whole
    best = _longest(attempt, len(turns), room)
    if best is None:
        raise _too_long(attempt(max(len(turns) - 1, 0)).prompt_tokens, context, context - room, bool(system))
    dropped, fitted = best
    block = -(-dropped // _BLOCK) * _BLOCK
    return attempt(block) if block > dropped and len(turns) - block >= _BLOCK else fitted


def _turns(messages: Sequence[Turn]) -> list[list[Turn]]:
    """``messages`` cut before every message of the user."""
    turns: list[list[Turn]] = []
    for message in messages:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
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


def _too_long(tokens: int, context: int, reserve: int, system: bool) -> ContextError:
    what = "the last message with the system prompt" if system else "the last message"
    return ContextError(
        f"{what} is {tokens:,} tokens long; the context holds {context:,}, of which {reserve:,} are kept for the reply",
        "shorten it, or load the model with a longer context",
    )
