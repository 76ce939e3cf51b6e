"""Which requests of a lease were seen, and what they were answered: nothing is carried out twice."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum


class Seen(Enum):
    """What is known of a request that came before."""

    RUNNING = "it is being carried out"
    FORGOTTEN = "it was carried out; its answer is not kept any more"


class Answered:
    """A bounded memory of the requests of one lease, by their numbers.

    That a number was seen is remembered for the last `numbers` of them, and whatever is older counts as seen; answers
    are kept as far as their bytes allow, the latest always.

    Args:
        numbers: How many numbers are remembered.
        most_answers: How many answers are kept.
        most_bytes: How many bytes of answers are kept.
    """

    def __init__(self, numbers: int = 4096, most_answers: int = 64, most_bytes: int = 32 * 2**20) -> None:
        self._numbers = numbers
        self._most_answers = most_answers
        self._most_bytes = most_bytes
        self._seen: set[int] = set()
        self._highest = -1
        self._answers: OrderedDict[int, bytes] = OrderedDict()
        self._running: set[int] = set()
        self._bytes = 0

    def begin(self, number: int) -> bytes | Seen | None:
        """Notes a request that came.

        Returns:
            None when it is new and has to be carried out; else the answer that it was given, or why there is none.
        """
        if number in self._answers:
            return self._answers[number]
        if number in self._running:
            return Seen.RUNNING
        if number in self._seen or number <= self._highest - self._numbers:
            return Seen.FORGOTTEN
        self._highest = max(self._highest, number)
        self._seen.add(number)
        self._running.add(number)
        if len(self._seen) > 2 * self._numbers:
            self._seen = {one for one in self._seen if one > self._highest - self._numbers}
        return None

    def forget(self, number: int) -> None:
        """Takes back a request that was not taken on, so that it may come again."""
        self._running.discard(number)
        self._seen.discard(number)

    def end(self, number: int, answer: bytes) -> None:
        """Keeps the answer to a request."""
        self._running.discard(number)
        self._answers[number] = answer
        self._bytes += len(answer)
        while len(self._answers) > 1 and (len(self._answers) > self._most_answers or self._bytes > self._most_bytes):
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= len(oldest)
