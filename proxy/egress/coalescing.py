"""One answer that several callers wait for: made once, in a task of its own, read by each at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TypeVar

MAX_KEPT = 4 * 1024 * 1024  # bytes kept for who comes late; past that nobody may join
MAX_UNREAD = 64 * 1024  # bytes that the answer may be ahead of its quickest reader

Head = TypeVar("Head")


class SharedCall:
    """An answer under way, which any number of callers read.

    `work` calls `write_head` once, then `write`. When it returns, the answer is whole; if it raises, every reader gets
    the exception, behind the bytes that came before. The last reader who leaves before the end cancels it.

    Attributes:
        task: the one in which `work` runs.
    """

    def __init__(self, work: Callable[[SharedCall], Awaitable[None]], *, limit: int = MAX_KEPT) -> None:
        self._limit = limit
        self._head: object = None
        self._chunks: list[bytes] = []
        self._dropped = 0  # chunks that everybody has read, past the limit
        self._size = 0
        self._error: BaseException | None = None
        self._ended = False
        self._readers: dict[SharedCallReader, None] = {}  # in the order in which they came
        self._head_read = False  # somebody has the head
        self._moved = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run(work))

    @property
    def joinable(self) -> bool:
        """Whether one that comes now can still read all of it."""
        return not self._ended and self._size <= self._limit and not self._dropped and not self.task.done()

    def join(self) -> SharedCallReader:
        """A new reader, from the answer's beginning; only if the call is `joinable`."""
        return SharedCallReader(self)

    async def write_head(self, head: object) -> None:
        self._head = head
        self._wake_readers()

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Waits while the readers are behind: the quickest one, or past the limit the slowest."""
        self._chunks.append(data)
        self._size += len(data)
        self._wake_readers()
        # The app's backpressure reaches the upstream this way, and memory stays bounded.
        while self._unread_bytes() > MAX_UNREAD:
            self._moved.clear()
            await self._moved.wait()

    async def _run(self, work: Callable[[SharedCall], Awaitable[None]]) -> None:
        try:
            await work(self)
        except asyncio.CancelledError as error:
            self._error = error
        except Exception as error:
            # Every reader raises it; raised here as well, it would be logged as nobody's.
            self._error = error
        finally:
            self._ended = True
            self._wake_readers()

    def _unread_bytes(self) -> int:
        """Bytes written that count as not read yet."""
        # Before the first has joined nobody is behind.
        if not self._readers:
            return 0
        read = [reader.bytes_read for reader in self._readers]
        late = self._size > self._limit
        # Nobody can join any more, so what all have read is not needed, and the slowest sets the pace.
        if late:
            self._drop_chunks(min(reader.chunks_read for reader in self._readers))
        return self._size - (min(read) if late else max(read))

    def _drop_chunks(self, upto: int) -> None:
        gone = upto - self._dropped
        if gone > 0:
            del self._chunks[:gone]
            self._dropped = upto

    def _wake_readers(self) -> None:
        self._moved.set()
        for reader in self._readers:
            reader.more.set()

    def _remove_reader(self, reader: SharedCallReader) -> None:
        self._readers.pop(reader, None)
        self._moved.set()
        # An answer that nobody waits for is not worth its price.
        if not self._readers and not self._ended:
            self.task.cancel()


class SharedCallReader:
    """One caller's view of a shared call: `async with shared_call.join() as reader`.

    Attributes:
        chunks_read: how many chunks it was given.
        bytes_read: how many bytes its caller is done with.
        more: set if there may be more to read.
        is_first: whether it was the first to have the head: the one that is told of the price.
    """

    def __init__(self, shared_call: SharedCall) -> None:
        self._call = shared_call
        self.chunks_read = 0
        self.bytes_read = 0
        self.more = asyncio.Event()
        self.is_first = False  # usually who began the call, unless that one is gone
        shared_call._readers[self] = None

    async def __aenter__(self) -> SharedCallReader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call._remove_reader(self)

    async def read_head(self) -> object:
        """Wait for the head. Raises what the call failed with, if it has none."""
        while self._call._head is None:
            self._raise_error()
            await self._wait()
        self.is_first = not self._call._head_read
        self._call._head_read = True
        return self._call._head

    async def __aiter__(self) -> AsyncIterator[bytes]:
        shared_call = self._call
        while True:
            while self.chunks_read - shared_call._dropped < len(shared_call._chunks):
                data = shared_call._chunks[self.chunks_read - shared_call._dropped]
                self.chunks_read += 1
                yield data
                # Counted when the caller comes back for more: its app has taken these now.
                self.bytes_read += len(data)
                shared_call._moved.set()
            if shared_call._ended:
                self._raise_error()
                return
            await self._wait()

    def _raise_error(self) -> None:
        error = self._call._error
        if isinstance(error, asyncio.CancelledError):
            raise ConnectionResetError("the shared call was given up")
        if error is not None:
            raise error

    async def _wait(self) -> None:
        if not self._call._ended:
            # Nothing was awaited since the caller looked, so no wake-up is lost here.
            self.more.clear()
            await self.more.wait()


class SharedCalls:
    """The shared calls under way, by the key of their question."""

    def __init__(self) -> None:
        self._calls: dict[bytes, SharedCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, key: bytes) -> SharedCall | None:
        shared_call = self._calls.get(key)
        return shared_call if shared_call is not None and shared_call.joinable else None

    def start(self, key: bytes, work: Callable[[SharedCall], Awaitable[None]]) -> SharedCall:
        """Begin a shared call, which others find by its key until it is over."""
        shared_call = self._calls[key] = SharedCall(work)

        def gone(_: asyncio.Task[None]) -> None:
            # Another may have its key by now: one that nobody could join any more was followed by a new one.
            if self._calls.get(key) is shared_call:
                del self._calls[key]

        shared_call.task.add_done_callback(gone)
        return shared_call

    async def close(self) -> None:
        """Cancel all that are under way, and wait until they have ended."""
        tasks = [shared_call.task for shared_call in self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
