"""One answer that several callers wait for: made once, in a task of its own, read by each at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TypeVar

LARGEST = 4 * 1024 * 1024  # bytes kept for who comes late; past that nobody may join
WINDOW = 64 * 1024  # bytes that the answer may be ahead of its quickest reader

Head = TypeVar("Head")


class Flight:
    """`work` calls `begin` once, then `write`; when it returns the answer is whole, when it raises every reader
    gets that, behind the bytes that came before. The last reader who leaves before the end cancels it."""

    def __init__(self, work: Callable[[Flight], Awaitable[None]], *, limit: int = LARGEST) -> None:
        self._limit = limit
        self._head: object = None
        self._chunks: list[bytes] = []
        self._dropped = 0  # chunks that everybody has read, past the limit
        self._size = 0
        self._error: BaseException | None = None
        self._over = False
        self._readers: dict[Reader, None] = {}  # in the order in which they came
        self._taken = False  # somebody has the head
        self._moved = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run(work))

    @property
    def joinable(self) -> bool:
        return not self._over and self._size <= self._limit and not self._dropped and not self.task.done()

    def join(self) -> Reader:
        return Reader(self)

    async def begin(self, head: object) -> None:
        self._head = head
        self._wake()

    async def write(self, data: bytes) -> None:
        """Waits while the readers are behind: the quickest one, or past the limit the slowest."""
        self._chunks.append(data)
        self._size += len(data)
        self._wake()
        while self._ahead() > WINDOW:
            self._moved.clear()
            await self._moved.wait()

    async def _run(self, work: Callable[[Flight], Awaitable[None]]) -> None:
        try:
            await work(self)
        except asyncio.CancelledError as error:
            self._error = error
        except Exception as error:  # it is every reader's
            self._error = error
        finally:
            self._over = True
            self._wake()

    def _ahead(self) -> int:
        """Bytes written that count as not read yet."""
        if not self._readers:
            return 0
        read = [reader.read for reader in self._readers]
        late = self._size > self._limit
        if late:
            self._drop(min(reader.at for reader in self._readers))
        return self._size - (min(read) if late else max(read))

    def _drop(self, upto: int) -> None:
        gone = upto - self._dropped
        if gone > 0:
            del self._chunks[:gone]
            self._dropped = upto

    def _wake(self) -> None:
        self._moved.set()
        for reader in self._readers:
            reader.more.set()

    def _left(self, reader: Reader) -> None:
        self._readers.pop(reader, None)
        self._moved.set()
        if not self._readers and not self._over:
            self.task.cancel()


class Reader:
    """One caller's view: `async with flight.join() as reader`."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self.at = 0  # chunks read
        self.read = 0  # bytes read
        self.more = asyncio.Event()
        self.first = False  # of all, to have the head: who began the flight, unless that one is gone
        flight._readers[self] = None

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flight._left(self)

    async def head(self) -> object:
        while self._flight._head is None:
            self._raise()
            await self._wait()
        self.first = not self._flight._taken
        self._flight._taken = True
        return self._flight._head

    async def __aiter__(self) -> AsyncIterator[bytes]:
        flight = self._flight
        while True:
            while self.at - flight._dropped < len(flight._chunks):
                data = flight._chunks[self.at - flight._dropped]
                self.at += 1
                yield data
                self.read += len(data)
                flight._moved.set()
            if flight._over:
                self._raise()
                return
            await self._wait()

    def _raise(self) -> None:
        error = self._flight._error
        if isinstance(error, asyncio.CancelledError):
            raise ConnectionResetError("the shared call was given up")
        if error is not None:
            raise error

    async def _wait(self) -> None:
        if not self._flight._over:
            self.more.clear()
            await self.more.wait()


class Flights:
    """Those under way, by key."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def get(self, key: bytes) -> Flight | None:
        flight = self._flights.get(key)
        return flight if flight is not None and flight.joinable else None

    def start(self, key: bytes, work: Callable[[Flight], Awaitable[None]]) -> Flight:
        flight = self._flights[key] = Flight(work)

        def gone(_: asyncio.Task[None]) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]

        flight.task.add_done_callback(gone)
        return flight

    async def close(self) -> None:
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
