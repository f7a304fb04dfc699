"""The samples of some lanes of a plan as encoded bytes: verified ranges of shards, read ahead within a bound.

Every lane has an equal share of the memory. Its blocks are read one after another, each as *waves* of samples that
take at most half of the share: the whole block where it fits, else runs of it in the order of consumption, so that
the bound holds for any block and the order never changes. A wave is read as few large *parts* (neighbouring samples in
one request), several at a time over all lanes, the part that is needed first going first. The digest of every sample
is checked; what does not fit is read again.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hmtl_dist.data.dataset.index import DIGEST_RETRIES, ShardIndex
from hmtl_dist.data.stream.mixing import SampleIndex
from hmtl_dist.data.stream.plan import Block, Plan
from hmtl_dist.errors import UserError

READS_IN_FLIGHT = 4
"""Requests that one reader has under way."""
PART_BYTES = 8 << 20
"""Largest request, but for a single sample that is larger."""
GAP_BYTES = 128 << 10
"""Bytes between two samples that are read along rather than asked for anew: a request costs about as much."""
ALLOCATOR_SHARE = 5
"""One part in so many of the memory allowed is left to the allocator, which cannot use every hole."""
BLOCKS_AHEAD = 1
"""Blocks of a lane that may be read beyond the one being consumed."""

Sample = dict[str, Any]
"""A WebDataset sample: `__key__`, `__url__` (of its shard), `jpg` (encoded bytes, whatever their format), `sample_id`,
`labels` (by name: class number or -1, number or NaN)."""


@dataclass
class _Part:
    """Samples of one shard that are read by one request."""

    turn: int
    """Step, counted from the reader's start, that needs the first sample of its wave."""
    shard: int
    start: int
    length: int
    samples: list[tuple[int, int, int, int]]
    """Number in the lane, offset in the shard, length and digest of each."""
    sample_bytes: int

    @property
    def cost(self) -> int:
        """Bytes held while the part is under way: the answer, its pieces before they are joined, and the samples."""
        return 2 * self.length + self.sample_bytes


@dataclass
class _OpenBlock:
    """What is known of the samples of a block without their bytes, in the order of consumption."""

    ids: list[int]
    keys: list[bytes]
    urls: list[str]
    labels: list[tuple[float, ...]]
    next: int = 0


@dataclass
class _Lane:
    """The state of one lane; every access is under the reader's lock."""

    number: int
    blocks: Iterator[Block]
    opened: deque[_OpenBlock] = field(default_factory=deque[_OpenBlock])
    parts: deque[_Part] = field(default_factory=deque[_Part])
    bytes_of: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """Samples that have arrived, by their number in the lane."""
    held: int = 0
    """Bytes held or promised to parts under way."""
    num_opened: int = 0
    num_consumed: int = 0
    opening: bool = False
    ended: bool = False


class Reader:
    """Reads the samples of some lanes, in the order in which the steps need them.

    Args:
        index: the shards.
        plan: their order.
        lanes: lanes to read.
        start: first epoch and step.
        epochs: epochs to read, None for no end.
        fields: labels to give along.
        lane_bytes: most bytes held for one lane.
    """

    def __init__(
        self,
        index: SampleIndex,
        plan: Plan,
        *,
        lanes: range,
        start: tuple[int, int],
        epochs: int | None,
        fields: tuple[str, ...],
        lane_bytes: int,
    ) -> None:
        self._index = index
        self._plan = plan
        self._start = start
        self._epochs = epochs
        self._fields = fields
        self._lane_bytes = lane_bytes - lane_bytes // ALLOCATOR_SHARE
        self._lanes = [_Lane(number, self._blocks(number)) for number in lanes]
        self._changed = threading.Condition()
        self._in_flight = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._pool = ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="reader")

    @property
    def bytes_read(self) -> int:
        """Bytes read from the storage so far."""
        return sum(part.storage.stats.bytes_read for part in self._index.parts)

    @property
    def retries(self) -> int:
        """Requests repeated so far, after a fault or for a digest that did not match."""
        return sum(part.storage.stats.retries for part in self._index.parts)

    def __iter__(self) -> Iterator[Sample]:
        """Yield sample after sample: step by step, in a step lane by lane.

        Raises:
            UserError: a shard cannot be read, differs from its index, or does not fit into the memory allowed.
        """
        for _, step in self._plan.steps(self._start, self._epochs):
            for lane in self._lanes:
                for _ in range(self._plan.samples_of(lane.number, step)):
                    yield self._take(lane)
                with self._changed:
                    self._dispatch()

    def close(self) -> None:
        """End reading; waits for the requests under way."""
        with self._changed:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _blocks(self, lane: int) -> Iterator[Block]:
        for epoch, step in self._plan.epochs(self._start, self._epochs):
            yield from self._plan.epoch(epoch).lane_blocks(lane, step)

    def _take(self, lane: _Lane) -> Sample:
        with self._changed:
            while lane.num_consumed not in lane.bytes_of:
                if self._failure is not None:
                    raise self._failure
                self._dispatch()
                self._changed.wait()
            encoded = lane.bytes_of.pop(lane.num_consumed)
            lane.held -= len(encoded)
            lane.num_consumed += 1
            block = lane.opened[0]
            place = block.next
            block.next += 1
            if block.next == len(block.ids):
                lane.opened.popleft()
        return {
            "__key__": block.keys[place].decode(),
            "__url__": block.urls[place],
            "jpg": encoded,
            "sample_id": block.ids[place],
            "labels": dict(zip(self._fields, block.labels[place], strict=True)),
        }

    def _dispatch(self) -> None:
        """Start what is needed first and fits, until enough is under way; call it under the lock."""
        while self._in_flight < READS_IN_FLIGHT and self._failure is None and not self._closed:
            chosen: _Lane | None = None
            chosen_turn = 0
            for lane in self._lanes:
                turn = self._next_turn(lane)
                if turn is not None and (chosen is None or turn < chosen_turn):
                    chosen, chosen_turn = lane, turn
            if chosen is None:
                return
            self._in_flight += 1
            if chosen.parts:
                part = chosen.parts.popleft()
                chosen.held += part.cost
                self._pool.submit(self._guarded, self._fetch, chosen, part)
            else:
                chosen.opening = True
                self._pool.submit(self._guarded, self._open_block, chosen)

    def _next_turn(self, lane: _Lane) -> int | None:
        """Return the step that needs what the lane would do next, None if there is nothing or no room for it."""
        if lane.parts:
            part = lane.parts[0]
            return part.turn if lane.held + part.cost <= self._lane_bytes else None
        if lane.opening or lane.ended or len(lane.opened) > BLOCKS_AHEAD:
            return None
        return lane.num_opened // self._plan.per_lane

    def _guarded(self, task: Any, *arguments: Any) -> None:
        """Run a task in a thread of the pool; what it raises is raised again where samples are awaited."""
        try:
            task(*arguments)
        except BaseException as failure:  # noqa: BLE001  # handed to the consumer whatever it is
            with self._changed:
                self._failure = self._failure or failure
        with self._changed:
            self._in_flight -= 1
            self._dispatch()
            self._changed.notify_all()

    def _open_block(self, lane: _Lane) -> None:
        block = next(lane.blocks, None)
        if block is None:
            with self._changed:
                lane.opening, lane.ended = False, True
            return
        shards, rows = self._plan.locate(block.ids)
        count = len(block.ids)
        # Offset, length and digest of each sample; the digest's 64 bits are kept as int64.
        places = np.empty((3, count), dtype=np.int64)
        labels = [np.empty(count, dtype=self._label_type(name)) for name in self._fields]
        keys = np.empty(count, dtype=object)
        urls = np.empty(count, dtype=object)
        for shard in np.unique(shards):
            table = self._index.samples(int(shard))
            here = np.flatnonzero(shards == shard)
            there = rows[here]
            places[:, here] = table.offset[there], table.length[there], table.digest[there].view(np.int64)
            for column, name in zip(labels, self._fields, strict=True):
                column[here] = table.labels[name][there]
            keys[here] = table.key_bytes[there]
            urls[here] = self._index.shard_url(int(shard))
        opened = _OpenBlock(
            ids=block.ids.tolist(),
            keys=keys.tolist(),
            urls=urls.tolist(),
            labels=list(zip(*(column.tolist() for column in labels), strict=True)) if labels else [()] * count,
        )
        self._refuse_too_large(places[1], opened)
        parts = [part for wave in self._waves(places[1]) for part in self._parts(lane.num_opened, wave, shards, places)]
        with self._changed:
            lane.opened.append(opened)
            lane.parts.extend(parts)
            lane.num_opened += count
            lane.opening = False

    def _label_type(self, name: str) -> type[np.generic]:
        return np.int64 if self._index.header.fields[name].kind == "category" else np.float32

    def _refuse_too_large(self, lengths: NDArray[np.int64], opened: _OpenBlock) -> None:
        largest = int(np.argmax(lengths))
        if 4 * lengths[largest] > self._lane_bytes:
            raise UserError(
                f"data.buffer_bytes leaves {self._lane_bytes:,} bytes to a lane, too few for sample "
                f"{opened.keys[largest].decode()} of {opened.urls[largest]} with {lengths[largest]:,}: "
                f"set data.buffer_bytes to at least {5 * int(lengths[largest]):,} times the lanes of a rank"
            )

    def _waves(self, lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield the places of a block's samples in runs of at most half a lane's bytes."""
        ends = np.cumsum(lengths)
        first, before = 0, 0
        while first < len(lengths):
            end = int(np.searchsorted(ends, before + self._lane_bytes // 2, side="right"))
            yield np.arange(first, end)
            first, before = end, int(ends[end - 1])

    def _parts(
        self, num_opened: int, wave: NDArray[np.int64], shards: NDArray[np.int64], places: NDArray[np.int64]
    ) -> Iterator[_Part]:
        """Join neighbouring samples of a wave into requests."""
        turn = (num_opened + int(wave[0])) // self._plan.per_lane
        limit = min(PART_BYTES, self._lane_bytes // 8)
        part: _Part | None = None
        for place in wave[np.lexsort((places[0, wave], shards[wave]))].tolist():
            shard = int(shards[place])
            offset, length, digest = places[:, place].tolist()
            sample = (num_opened + place, offset, length, digest)
            if part is not None and shard == part.shard and offset - part.start - part.length <= GAP_BYTES:
                span = max(part.length, offset + length - part.start)
                if span <= limit:
                    part.length = span
                    part.samples.append(sample)
                    part.sample_bytes += length
                    continue
            if part is not None:
                yield part
            part = _Part(turn, shard, offset, length, [sample], length)
        if part is not None:
            yield part

    def _fetch(self, lane: _Lane, part: _Part) -> None:
        home, shard = self._index.home(part.shard)
        data = memoryview(home.read(shard, part.start, part.length))
        samples: dict[int, bytes] = {}
        for number, offset, length, digest in part.samples:
            begin = offset - part.start
            samples[number] = _verified(bytes(data[begin : begin + length]), home, shard, offset, digest)
        del data
        with self._changed:
            lane.bytes_of.update(samples)
            lane.held -= part.cost - part.sample_bytes


def _verified(encoded: bytes, index: ShardIndex, shard: int, offset: int, digest: int) -> bytes:
    """Return the bytes whose digest is right, read again if these are not."""
    for attempt in range(DIGEST_RETRIES + 1):
        if attempt:
            index.storage.stats.add(retries=1)
            encoded = index.read(shard, offset, len(encoded), again=True)
        if xxhash.xxh3_64_intdigest(encoded) == digest % (1 << 64):
            return encoded
    table = index.samples(shard)
    name = table.key_bytes[int(np.flatnonzero(table.offset == offset)[0])].decode()
    raise UserError(
        f"sample {name} of {index.shard_url(shard)} differs from its index after {DIGEST_RETRIES + 1} reads: "
        f"run `hmtl-dist data verify {index.url}`, then upload or build the shard again"
    )
