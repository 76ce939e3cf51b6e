"""Viewers of a live page, who read all they get: `python -m benchmarks.live_viewers URL COUNT`, until input ends."""

from __future__ import annotations

import asyncio
import sys

import aiohttp


async def watch(url: str, count: int) -> None:
    """Says `ready` when all have their first message, and reads on until standard input ends."""
    headers = {"Origin": url.rstrip("/")}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        viewers = [await session.ws_connect(url + "live", headers=headers) for _ in range(count)]
        for viewer in viewers:
            await viewer.receive()
        readers = [asyncio.create_task(_read(viewer)) for viewer in viewers]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)


async def _read(viewer: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in viewer:
        pass


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], int(sys.argv[2])))
