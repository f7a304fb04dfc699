"""The stream gives exactly what is planned, whoever loads it, and never hangs."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from webdataset.filters import to_tuple
from webdataset.pipeline import DataPipeline

from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.index import ShardIndex, open_index
from hmtl_dist.data.storage.config import OUTAGE
from hmtl_dist.data.stream.batches import Batch, Stream
from hmtl_dist.data.stream.pipeline import planned_samples
from hmtl_dist.data.stream.plan import PADDING, Plan
from hmtl_dist.data.stream.reader import Reader
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import Crash, Resize, jpeg, make_plan, make_set
from tests.servers import S3Server

CONFIG = DataConfig(url="unused", image_size=32, num_workers=0)
SIZES = [30, 1, 45, 24, 60]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("set")
    return make_set(str(folder / "set"), folder, SIZES)


def kept(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.clone())


def load(index: ShardIndex, plan: Plan, steps: int | None = None, **options: Any) -> list[Batch]:
    config = CONFIG.model_copy(update={"num_workers": options.pop("num_workers", 0)})
    batches: list[Batch] = []
    with Stream(index, plan, Resize(), config, **options) as stream:
        for batch in stream:
            batches.append(kept(batch))
            if len(batches) == steps:
                break
    return batches


def drain(stream: Stream) -> None:
    for _ in stream:
        pass


def values(tensor: Tensor) -> list[Any]:
    return tensor.numpy().tolist()


def arrays(batches: list[Batch]) -> list[NDArray[Any]]:
    """Everything in batches, one array of all of them a column."""
    columns = [
        [b.images for b in batches],
        [b.labels["mood"] for b in batches],
        [b.labels["yaw"] for b in batches],
        [b.weight for b in batches],
        [b.positions for b in batches],
        [b.sample_ids for b in batches],
        [torch.tensor([b.epoch, b.step]) for b in batches],
    ]
    return [torch.stack(column).numpy() for column in columns]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    for one, other in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_hold_the_planned_samples_with_their_pictures_and_labels(index: ShardIndex) -> None:
    plan = make_plan(index)
    batches = load(index, plan, epochs=1)
    assert len(batches) == plan.steps_per_epoch == 6
    for step, batch in enumerate(batches):
        ids = plan.epoch(0).batch_ids(step)
        shift = Resize().draw(0, batch.positions.numpy())[:, 0]
        assert values(batch.sample_ids) == ids.tolist()
        assert values(batch.positions) == list(range(step * 24, step * 24 + 24))
        assert values(batch.labels["mood"]) == [-1 if n % 5 == 4 else n % 3 for n in ids]
        yaw = np.where(ids % 7 == 6, np.nan, ids / 2 + shift).astype(np.float32)
        np.testing.assert_array_equal(batch.labels["yaw"].numpy(), yaw)
        assert values(batch.weight) == [1] * 24
        expected = np.empty((32, 32, 3), dtype=np.uint8)
        for row, n in enumerate(ids.tolist()):
            Resize().picture(jpeg(n), shift[row : row + 1], expected)
            np.testing.assert_array_equal(batch.images[row].numpy(), expected)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_loader_processes_give_the_same_bits_as_none_across_epochs(index: ShardIndex, num_workers: int) -> None:
    plan = make_plan(index)
    assert_same(load(index, plan, 15, num_workers=num_workers), load(index, plan, 15))


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_load_the_global_batch(index: ShardIndex, world_size: int) -> None:
    plan = make_plan(index)
    alone = arrays(load(index, plan, 8))
    ranks = [arrays(load(index, plan, 8, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for column, expected in enumerate(alone[:-1]):
        together = np.concatenate([rank[column] for rank in ranks], axis=1)
        np.testing.assert_array_equal(together, expected)


@pytest.mark.parametrize("start", [(0, 4), (1, 0), (1, 5), (0, 6), (2, 3)])
def test_a_stream_started_in_the_middle_goes_on_as_the_whole_one_does(
    index: ShardIndex, start: tuple[int, int]
) -> None:
    plan = make_plan(index)
    whole = load(index, plan, 20)
    assert_same(load(index, plan, 2, start=start), whole[start[0] * 6 + start[1] :][:2])


def test_starting_in_the_middle_does_not_touch_earlier_shards(tmp_path: Path) -> None:
    index = make_set(str(tmp_path / "set"), tmp_path, [20] * 6)
    plan = make_plan(index, batch_size=4, lanes=1, block=8)
    order = np.concatenate([block.ids for block in plan.epoch(0).lane_blocks(0, 15)])
    for shard in set(range(6)) - set(plan.locate(order)[0].tolist()):
        (tmp_path / "set" / index.names[shard]).unlink()
    batches = load(index, plan, start=(0, 15), epochs=1)
    assert values(torch.cat([batch.sample_ids for batch in batches])) == order.tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_counts_every_sample_once(index: ShardIndex, num_workers: int) -> None:
    plan = make_plan(index, shuffle=False)
    batches = load(index, plan, epochs=1, num_workers=num_workers)
    ids = torch.stack([batch.sample_ids for batch in batches])
    weight = torch.stack([batch.weight for batch in batches])
    assert sorted(values(ids[weight == 1])) == list(range(160))
    assert (ids[weight == 0] == PADDING).all()
    assert (weight[:-1] == 1).all()
    assert batches[-1].labels["mood"][weight[-1] == 0].eq(-1).all()
    assert batches[-1].labels["yaw"][weight[-1] == 0].isnan().all()


def test_only_the_labels_asked_for_are_loaded(index: ShardIndex) -> None:
    config = CONFIG.model_copy(update={"fields": ("yaw",)})
    with Stream(index, make_plan(index), Resize(), config) as stream:
        assert list(next(stream).labels) == ["yaw"]


def test_an_unknown_label_is_refused(index: ShardIndex) -> None:
    with pytest.raises(UserError, match=r"data\.fields: no label 'age' .* mood, yaw"):
        Stream(index, make_plan(index), Resize(), CONFIG.model_copy(update={"fields": ("age",)}))


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_damaged_picture_gives_its_slot_to_its_lane_with_weight_0_and_keeps_its_id(
    tmp_path: Path, num_workers: int
) -> None:
    broken = [3, 4, 9]
    index = make_set(str(tmp_path / "set"), tmp_path, [24], broken=broken)
    plan = make_plan(index, batch_size=8, lanes=2, shuffle=False)
    config = CONFIG.model_copy(update={"max_bad_share": 0.2, "num_workers": num_workers})
    with Stream(index, plan, Resize(), config, epochs=1) as stream:
        batches = [kept(batch) for batch in stream]
        assert [damaged.sample_id for damaged in stream.stats.damaged_samples] == broken
    ids = torch.cat([batch.sample_ids for batch in batches])
    weight = torch.cat([batch.weight for batch in batches])
    assert values(ids[weight == 0]) == broken
    # Lane 0 holds samples 0 … 11, four a step: 3 follows 2, 4 begins its step, 9 follows 8.
    assert torch.equal(batches[0].images[3], batches[0].images[2])
    assert batches[0].labels["mood"][3] == batches[0].labels["mood"][2]
    assert np.unique(batches[1].images[0].numpy()).tolist() == [127]
    assert batches[1].labels["mood"][0] == -1
    assert torch.equal(batches[2].images[1], batches[2].images[0])


def test_too_many_damaged_pictures_stop_the_stream(tmp_path: Path) -> None:
    index = make_set(str(tmp_path / "set"), tmp_path, [24], broken=range(0, 24, 2))
    plan = make_plan(index, batch_size=8, lanes=2)
    config = CONFIG.model_copy(update={"max_bad_share": 0.3})
    with (
        Stream(index, plan, Resize(), config) as stream,
        pytest.raises(UserError, match=r"of 16 pictures cannot be decoded .*data\.max_bad_share=0\.3.*data verify"),
    ):
        drain(stream)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_differs_from_its_index_stops_the_stream_naming_shard_and_sample(
    tmp_path: Path, num_workers: int
) -> None:
    index = make_set(str(tmp_path / "set"), tmp_path, [24])
    shard = tmp_path / "set" / index.names[0]
    data = bytearray(shard.read_bytes())
    data[int(index.samples(0).offset[5]) + 100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"sample 000005 of .*/train/shard-000000\.tar differs from its index"):
        load(index, make_plan(index, batch_size=8, lanes=2), 3, num_workers=num_workers)


def test_bytes_changed_on_the_way_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_set(str(tmp_path / "set"), tmp_path, [48])
    plan = make_plan(index, batch_size=8, lanes=2)
    expected = load(index, plan, 6)
    read = index.storage.read
    flipped = threading.Event()

    def noisy(key: str, *, start: int = 0, length: int | None = None) -> bytes:
        data = read(key, start=start, length=length)
        if key.endswith(".tar") and not flipped.is_set():
            flipped.set()
            data = data[:50] + bytes([data[50] ^ 1]) + data[51:]
        return data

    monkeypatch.setattr(index.storage, "read", noisy)
    before = index.storage.stats.retries
    assert_same(load(index, plan, 6), expected)
    assert flipped.is_set()
    assert index.storage.stats.retries == before + 1


def test_a_missing_shard_is_one_line_also_out_of_a_worker(tmp_path: Path) -> None:
    index = make_set(str(tmp_path / "set"), tmp_path, [24])
    (tmp_path / "set" / index.names[0]).unlink()
    with pytest.raises(UserError, match=r"shard-000000\.tar does not exist"):
        load(index, make_plan(index, batch_size=8, lanes=2), 1, num_workers=1)


def test_a_fault_of_the_program_in_a_worker_shows_its_traceback(index: ShardIndex) -> None:
    config = CONFIG.model_copy(update={"num_workers": 1})
    with (
        Stream(index, make_plan(index), Crash(), config) as stream,
        pytest.raises(RuntimeError, match="ZeroDivisionError: a fault of the program"),
    ):
        next(stream)


def test_a_killed_worker_stops_the_stream_at_once(index: ShardIndex) -> None:
    config = CONFIG.model_copy(update={"num_workers": 2})
    with Stream(index, make_plan(index), Resize(), config) as stream:
        next(stream)
        os.kill(stream.worker_pids[1], signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(UserError, match=r"data-loader process 1 \(pid \d+\) was killed by SIGKILL"):
            drain(stream)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_process_group_ends_no_loader(index: ShardIndex, number: signal.Signals) -> None:
    config = CONFIG.model_copy(update={"num_workers": 2})
    with Stream(index, make_plan(index), Resize(), config) as stream:
        next(stream)
        servers = {psutil.Process(pid).ppid() for pid in stream.worker_pids}
        for pid in (*stream.worker_pids, *servers):
            os.kill(pid, number)
        for _ in range(2 * CONFIG.prefetch_batches + 4):  # beyond what was loaded before
            next(stream)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_closing_leaves_no_process_thread_or_open_file(index: ShardIndex, num_workers: int) -> None:
    me = psutil.Process()
    load(index, make_plan(index), 2, num_workers=num_workers)  # the server of the workers stays, for the next stream
    gc.collect()  # what other tests left must not go in between
    before = (set(me.children(recursive=True)), me.num_fds(), set(threading.enumerate()))
    load(index, make_plan(index), 3, num_workers=num_workers)
    assert (set(me.children(recursive=True)), me.num_fds(), set(threading.enumerate())) == before


def is_alive(process: psutil.Process) -> bool:
    # An orphan that has ended stays a zombie where the system's first process does not collect it.
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def run_script(folder: Path, body: str, *arguments: str, temporary: str = "") -> Generator["subprocess.Popen[str]"]:
    """Run a script without a `__main__` guard, as people write them; it is killed at the end."""
    script = folder / "script.py"
    script.write_text(
        """
import sys, time
from itertools import islice
import psutil
from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.stream.batches import Stream
from tests.data.stream.streaming import Ignore, Resize, make_plan
index = open_index(sys.argv[1], "train")
"""
        + textwrap.dedent(body)
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, str(script), *arguments]
    environment = os.environ | {"PYTHONPATH": root} | ({"TMPDIR": temporary} if temporary else {})
    with subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.nightly
def test_a_script_without_a_main_guard_may_use_workers_which_end_when_it_is_killed(
    index: ShardIndex, tmp_path: Path
) -> None:
    """Nor is anything of theirs left in the folder of temporary files."""
    body = """
        print(__name__, flush=True)
        config = DataConfig(url="unused", image_size=32, num_workers=2)
        stream = Stream(index, make_plan(index), Resize(), config)
        next(stream)
        print(*stream.worker_pids, flush=True)
        time.sleep(60)
    """
    # the path of a socket, which lies in there, must be short
    with tempfile.TemporaryDirectory(prefix="stream-", dir="/tmp") as temporary:
        with run_script(tmp_path, body, index.url, temporary=temporary) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "__main__\n"
            workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
            assert list(Path(temporary).iterdir())
            process.kill()
        assert len(workers) == 2
        deadline = time.monotonic() + 5
        while any(map(is_alive, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not list(Path(temporary).iterdir())


@pytest.mark.nightly
def test_a_rank_holds_no_more_than_its_buffer_however_large_blocks_and_shards_are(
    index: ShardIndex, tmp_path: Path
) -> None:
    """64 lanes over 200 MB in two shards, every block larger than its lane's share of 24 MiB."""
    noise = [np.random.default_rng(n).bytes(24 << 10) for n in range(8)]
    large = make_set(str(tmp_path / "set"), tmp_path, [4096, 4096], pictures={n: noise[n % 8] for n in range(2 * 4096)})
    body = """
        config = DataConfig(url="unused", image_size=16, num_workers=1, buffer_bytes=24 << 20)
        def memory(index, steps):
            plan = make_plan(index, batch_size=64, lanes=64, block=4096)
            with Stream(index, plan, Ignore(), config) as stream:
                worker = psutil.Process(stream.worker_pids[0])
                return max(worker.memory_full_info().uss for _ in islice(stream, steps))
        memory(index, 4)  # the first worker of a fresh installation compiles what it imports, which takes memory too
        print(memory(open_index(sys.argv[2], "train"), 64) - memory(index, 4), flush=True)
    """
    with run_script(tmp_path, body, index.url, large.url) as process:
        assert process.stdout is not None
        grown = int(process.stdout.readline())
    assert 6 << 20 < grown < 24 << 20


def test_a_buffer_too_small_for_a_sample_is_refused(index: ShardIndex) -> None:
    config = CONFIG.model_copy(update={"buffer_bytes": 6 * 3000})
    with (
        Stream(index, make_plan(index), Resize(), config) as stream,
        pytest.raises(UserError, match=r"data\.buffer_bytes leaves 2,400 bytes to a lane.* set data\.buffer_bytes to"),
    ):
        next(stream)


def test_the_order_does_not_depend_on_the_buffer(index: ShardIndex) -> None:
    plan = make_plan(index, block=64)

    def ids(lane_bytes: int) -> list[int]:
        reader = Reader(index, plan, lanes=range(6), start=(0, 1), epochs=2, fields=("mood",), lane_bytes=lane_bytes)
        order = [sample["sample_id"] for sample in reader]
        reader.close()
        return order

    assert ids(9_000) == ids(1 << 20)


def test_samples_are_a_webdataset_pipeline_that_its_stages_compose_with(index: ShardIndex) -> None:
    plan = make_plan(index)
    reader = Reader(index, plan, lanes=range(6), start=(0, 0), epochs=1, fields=("mood",), lane_bytes=1 << 20)
    pipeline = planned_samples(reader)
    stages = DataPipeline(pipeline, to_tuple("__key__", "jpg", "labels"))
    keys = [key for key, _, _ in cast(Iterable[tuple[str, bytes, object]], stages)]
    reader.close()
    assert keys == [f"{n:06d}" for step in range(6) for n in plan.epoch(0).batch_ids(step)]


def test_figures_of_a_stream_add_up_over_its_workers(index: ShardIndex) -> None:
    config = CONFIG.model_copy(update={"num_workers": 2})
    with Stream(index, make_plan(index, shuffle=False), Resize(), config, epochs=1) as stream:
        batches = list(stream)
        pictures = sum(int(index.samples(shard).length.sum()) for shard in range(len(SIZES)))
        assert stream.stats.bytes_read > pictures
        assert stream.stats.samples == 24 * len(batches)
        assert stream.stats.wait_seconds > 0
        assert stream.stats.damaged == stream.stats.retries == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_real_s3_server_gives_the_same_batches_as_a_folder(
    index: ShardIndex, s3_env: S3Server, tmp_path: Path, num_workers: int
) -> None:
    url = f"{s3_env.bucket()}/faces"
    remote = make_set(url, tmp_path, SIZES)
    plan = make_plan(remote)
    assert_same(load(remote, plan, 8, num_workers=num_workers), load(index, plan, 8))


def test_a_server_that_is_down_is_one_line_out_of_a_worker(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch, s3_env: S3Server, tmp_path: Path
) -> None:
    url = f"{s3_env.bucket()}/faces"
    make_set(url, tmp_path, [24])
    remote = open_index(url, "train")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(OUTAGE, "0.5")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 does not answer"):
        load(remote, make_plan(remote, batch_size=8, lanes=2), 1, num_workers=1)


TORCH_IN_LOADERS = """
import sys
from pathlib import Path

from hmtl_dist.augment import AugmentConfig, GeometricTransform
from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.stream.plan import Plan
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.stream.batches import Stream

index = open_index(sys.argv[1], "train")
plan = Plan(index.num_samples, batch_size=8, lanes=2, seed=0, shuffle=True, block=16)
transform = GeometricTransform(AugmentConfig(), 32, {}, 0, train=True)
with Stream(index, plan, transform, DataConfig(url=index.url, image_size=32, num_workers=1)) as stream:
    next(stream)
    (pid,) = stream.worker_pids
    mapped = Path(f"/proc/{pid}/maps").read_text()
    print("cv2" in mapped, "libtorch" in mapped)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what a process has loaded")
def test_loader_processes_do_without_torch(index: ShardIndex) -> None:
    command = [sys.executable, "-c", TORCH_IN_LOADERS, index.url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert said.stdout == "True False\n", said.stdout + said.stderr
