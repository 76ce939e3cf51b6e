"""What the clients of the embedded broker have subscribed to, safe to go through while clients come and go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

Subscriber = TypeVar("Subscriber")


class Subscriptions(dict[str, list[Subscriber]]):
    """Subscribers by topic filter, gone through as they were at the beginning.

    amqtt awaits while it goes through them. A client that subscribes or leaves meanwhile would end that with
    `dictionary changed size during iteration`, and a message would not reach those that come after it.
    """

    def __iter__(self) -> Iterator[str]:
        return iter([*super().__iter__()])

    def items(self) -> list[tuple[str, list[Subscriber]]]:  # type: ignore[override]  # of what they were, not a view
        """The filters with their subscribers, copied."""
        return [(topic_filter, [*subscribers]) for topic_filter, subscribers in super().items()]
