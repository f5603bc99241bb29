"""The large tensors of a checkpoint on their way to a GPU: threads read them into pinned memory, from which they are copied while others
are read. What consumes them asks for them in about the order in which they were announced.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exltui.checkpoint import TensorInfo
from exltui.errors import CheckpointError

CHUNK = 8 << 20  # bytes read at a time
THREADS = 8
AHEAD = 1 << 30  # bytes that lie on the GPU and were not asked for yet, at most
LEAST = 1 << 18  # a smaller tensor is not worth the trouble


@dataclass(slots=True)
class _Part:
    """A tensor in chunks: its bytes on the GPU, how many chunks are not copied yet, and what tells that those that are have arrived."""

    info: TensorInfo
    chunks: int
    left: int
    data: Tensor | None = None
    arrived: list[torch.cuda.Event] = field(default_factory=list)


class Staging:
    """Reads ``infos`` in their order. Use ``reading``."""

    def __init__(self, infos: Iterable[TensorInfo], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        chosen = [info for info in infos if info.nbytes >= LEAST]
        counts = [-(-info.nbytes // CHUNK) for info in chosen]
        self._parts = {info.name: _Part(info, count, count) for info, count in zip(chosen, counts, strict=True)}
        self._queue = deque((self._parts[info.name], i) for info, count in zip(chosen, counts, strict=True) for i in range(count))
        self._change = threading.Condition()
        self._ahead = 0
        self._wanted = False  # a tensor that is waited for may lie further ahead than AHEAD
        self._problem: Exception | None = None
        self._threads = [threading.Thread(target=self._run, name="exltui-read", daemon=True) for _ in range(min(THREADS, len(self._queue)))]

    def take(self, info: TensorInfo, dtype: torch.dtype) -> Tensor | None:
        """The tensor on the GPU, or None if it is not among those that are read. Each is given once.

        Raises what went wrong in the threads: CheckpointError for a file, or what torch says when memory runs out.
        """
        with self._change:
            part = self._parts.pop(info.name, None)
            if part is None:
                return None
            self._wanted = True
            self._change.notify_all()
            self._change.wait_for(lambda: not part.left or self._problem is not None)
            self._wanted = False
            if self._problem is not None:
                raise self._problem
            self._ahead -= info.nbytes
            self._change.notify_all()
        assert part.data is not None
        stream = torch.cuda.current_stream(self._device)
        for event in part.arrived:
            stream.wait_event(event)
        part.data.record_stream(stream)
        return part.data.view(dtype).view(info.shape)

    def _next(self) -> tuple[_Part, int] | None:
        """The next chunk to read; None when there is none left."""
        with self._change:
            self._change.wait_for(lambda: not self._queue or self._ahead < AHEAD or self._wanted)
            if not self._queue:
                return None
            part, index = self._queue.popleft()
            if part.data is None:
                with torch.cuda.stream(self._stream):  # its memory was last used there, or is waited for
                    part.data = torch.empty(part.info.nbytes, dtype=torch.uint8, device=self._device)
                self._ahead += part.info.nbytes
            return part, index

    def _run(self) -> None:
        try:
            with torch.cuda.device(self._device), contextlib.ExitStack() as opened:
                self._copy(opened)
        except Exception as error:  # noqa: BLE001  whatever it is, the thread that waits has to hear of it
            with self._change:
                self._problem = self._problem or error
                self._queue.clear()
                self._change.notify_all()

    def _copy(self, opened: contextlib.ExitStack) -> None:
        buffers = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        free = [torch.cuda.Event(), torch.cuda.Event()]
        files: dict[str, int] = {}
        turn = 0
        while (found := self._next()) is not None:
            part, index = found
            info, turn = part.info, 1 - turn
            path = str(info.file)
            if path not in files:
                files[path] = os.open(path, os.O_RDONLY)
                opened.callback(os.close, files[path])
            start, buffer = index * CHUNK, buffers[turn]
            count = min(CHUNK, info.nbytes - start)
            free[turn].synchronize()
            try:
                _read(files[path], memoryview(buffer.numpy().data)[:count], info.offset + start)
            except OSError as error:
                raise CheckpointError(f"{info.file.name}: cannot be read: {error}", "check the disk; download the model again") from error
            assert part.data is not None
            with torch.cuda.stream(self._stream):
                part.data[start : start + count].copy_(buffer[:count], non_blocking=True)
                free[turn].record()
                arrived = torch.cuda.Event()
                arrived.record()
            with self._change:
                part.arrived.append(arrived)
                part.left -= 1
                self._change.notify_all()
        for event in free:
            event.synchronize()  # the buffers go back

    @contextlib.contextmanager
    def reading(self) -> Iterator[Staging]:
        """Read within the block; what was not taken by its end is let go."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            with self._change:
                self._queue.clear()
                self._change.notify_all()
            for thread in self._threads:
                thread.join()
            self._parts.clear()
            torch.cuda.empty_cache()  # what was read and repacked has another stream's memory


def _read(file: int, target: memoryview, offset: int) -> None:
    """Fill ``target``. Raises OSError where the file ends before."""
    while len(target):
        count = os.preadv(file, [target], offset)
        if not count:
            raise OSError("the file is shorter than its header says")
        target, offset = target[count:], offset + count
