"""Messages of the embedded broker reach everybody while other clients come and go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from typing import Any

import aiomqtt
import pytest

from labrig.remote.embedded import EmbeddedSettings, embedded_broker
from labrig.remote.embedded_subscriptions import Subscriptions

MESSAGES, VISITORS, WAIT_S = 200, 6, 5.0


def test_subscriptions_are_gone_through_as_they_were() -> None:
    kept: Subscriptions[int] = Subscriptions({"a": [1], "b": [2]})
    for topic in kept:
        kept[topic + topic] = []
    assert sorted(kept) == ["a", "aa", "b", "bb"]
    for topic, subscribers in kept.items():
        assert topic in {"a", "aa", "b", "bb"}
        kept["a"].clear()
        kept.pop("bb", None)
        kept["c"] = [3]
        assert subscribers in ([1], [2], [])
    assert kept["a"] == []
    assert "bb" not in kept


async def errors_and_losses(monkeypatch: pytest.MonkeyPatch, subscriptions: type[dict[str, Any]]) -> tuple[int, int]:
    """What goes wrong, and how many messages are lost, while others subscribe to topics of their own and leave."""
    monkeypatch.setattr("labrig.remote.embedded.Subscriptions", subscriptions)
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: errors.append(told))
    async with embedded_broker(EmbeddedSettings(port=0), "labrig/1/lab/bench", "the-rig") as broker:
        host, port = broker.address.host, broker.address.port
        done = asyncio.Event()

        async def visit(number: int) -> None:
            async with aiomqtt.Client(host, port) as client:
                for visit in itertools.count():
                    if done.is_set():
                        return
                    await client.subscribe(f"visitor/{number}/{visit}")
                    await client.unsubscribe(f"visitor/{number}/{visit}")

        async def listen(topic_filter: str, listening: asyncio.Event) -> int:
            seen: set[object] = set()
            async with aiomqtt.Client(host, port) as client:
                await client.subscribe(topic_filter, qos=1)
                listening.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WAIT_S):
                        async for message in client.messages:
                            seen.add(message.payload)
                            if len(seen) == MESSAGES:
                                break
            return MESSAGES - len(seen)

        visitors = [asyncio.create_task(visit(number)) for number in range(VISITORS)]
        ready = [(topic_filter, asyncio.Event()) for topic_filter in ("news", "news/#", "+")]
        listeners = [asyncio.create_task(listen(*one)) for one in ready]
        for _, listening in ready:
            await listening.wait()
        async with aiomqtt.Client(host, port) as client:
            for number in range(MESSAGES):
                await client.publish("news", str(number), qos=1)
        lost = sum([await one for one in listeners])
        done.set()
        await asyncio.gather(*visitors)
    gc.collect()  # a task whose error nobody has asked for says so when it goes
    return len(errors), lost


async def test_no_message_is_lost_while_clients_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await errors_and_losses(monkeypatch, Subscriptions) == (0, 0)


@pytest.mark.nightly
async def test_amqtt_by_itself_loses_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    # When this fails amqtt has mended it, and `embedded_subscriptions` can go.
    errors, lost = await errors_and_losses(monkeypatch, dict)
    assert errors > 0
    assert lost > 0
