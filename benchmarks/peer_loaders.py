# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportAttributeAccessIssue=false
"""The loaders that `benchmarks.peers` compares, each as its documentation has it, the decoding apart.

LitData reads by boto3, as it does without obstore: with it, it takes no plain HTTP. MosaicML Streaming is installed
past its own pins (numpy below 2.2). It is helped twice, or it would wait a minute at times and read wrong bytes: what
killed processes have left in shared memory is removed, as its manual has it, and its S3 client is closed before the
loader's processes are forked, which else share one connection.
"""

import importlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.local_s3 import IDENTITY
from hmtl_dist.augment import AugmentConfig, GeometricTransform
from hmtl_dist.data.config import CacheConfig, DataConfig
from hmtl_dist.data.dataset.index import ShardIndex, open_index
from hmtl_dist.data.stream.batches import Stream, preload_workers
from hmtl_dist.data.stream.plan import Plan

URL = "s3://bench/faces"
Batches = Iterator[tuple[Any, NDArray[np.int64]]]
"""Pictures uint8 `[B, size, size, 3]` and their numbers `[B]`; ends with the epoch."""


@dataclass(frozen=True)
class Task:
    """What one loader does in one process."""

    name: str
    folder: str
    """Of its own, on the local disk: empty at first."""
    files: str
    """Folder with the pictures as files."""
    image_size: int
    batch_size: int
    num_workers: int
    decoder: str = "ours"
    """What the peers decode by: `ours`, or `torchvision`."""
    buffer_bytes: int | None = None
    """Ours: most encoded bytes held; None for the default."""
    stop_after: int = 0
    """Batches of the first epoch after which the state is written and the process waits to be killed; 0 for never."""
    resume: bool = False
    """Go on from the state in the folder and read this epoch to its end."""
    rank: int = 0
    world_size: int = 1
    """Processes that share the epoch; `batch_size` is that of all of them."""
    port: int = 0
    """Where they meet."""

    @property
    def rank_batch_size(self) -> int:
        """Pictures of a batch of this process."""
        return self.batch_size // self.world_size


class Decoder:
    """Turns encoded pictures into arrays, alike for every loader; made once in each process."""

    def __init__(self, image_size: int, count: int) -> None:
        import cv2

        cv2.setNumThreads(0)
        self._size = image_size
        self._transform = transform_of(image_size)
        self._params = self._transform.draw(0, np.arange(count))

    def __call__(self, encoded: bytes, number: int) -> NDArray[np.uint8]:
        """Decode and transform a picture into `[size, size, 3]`."""
        out: NDArray[np.uint8] = np.empty((self._size, self._size, 3), np.uint8)
        self._transform.picture(encoded, self._params[number], out)
        return out


class TorchvisionDecoder:
    """What one would write for the same changes: Pillow, and torchvision's transforms, each drawn and applied alone.

    Not torchvision's `decode_jpeg`: its operators do not load beside a build of torch for the CPU alone.
    """

    def __init__(self, image_size: int) -> None:
        from hmtl_dist.model.backbone import import_timm

        import_timm()  # torchvision beside a CPU build of torch
        from torchvision.transforms import v2

        chosen = AugmentConfig(preset="strong")
        self._transforms = v2.Compose(
            [
                v2.RandomRotation([-chosen.rotation, chosen.rotation], v2.InterpolationMode.BILINEAR),
                v2.RandomResizedCrop(image_size, (chosen.crop_min**2, chosen.crop_max**2), (1.0, 1.0)),
                v2.RandomHorizontalFlip(chosen.flip),
            ]
        )

    def __call__(self, encoded: bytes, number: int) -> NDArray[np.uint8]:
        """Decode and transform a picture into `[size, size, 3]`."""
        from PIL import Image

        return np.asarray(self._transforms(Image.open(io.BytesIO(encoded)).convert("RGB")))


def transform_of(image_size: int) -> GeometricTransform:
    """Return the transform of all loaders."""
    return GeometricTransform(AugmentConfig(preset="strong"), image_size, {}, seed=0, train=True)


@cache
def decoder(kind: str, image_size: int, count: int) -> Callable[[bytes, int], NDArray[np.uint8]]:
    """Return this process's decoder."""
    return Decoder(image_size, count) if kind == "ours" else TorchvisionDecoder(image_size)


@cache
def numbers() -> dict[str, int]:
    """Return the number of every picture of the benchmark's data set by its key, read once in a process."""
    return numbers_of(open_index(URL, "train"))


def numbers_of(index: ShardIndex) -> dict[str, int]:
    """Return the number of every picture by its key in the shards."""
    firsts = np.cumsum([0, *index.num_samples[:-1]]).tolist()
    tables = ((first, index.samples(shard).key.tolist()) for shard, first in enumerate(firsts))
    return {key: first + row for first, keys in tables for row, key in enumerate(keys)}


@cache
def s3_client() -> Any:
    """Return a client that signs."""
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def signed(name: str, url: str = URL) -> str:
    """Return an address of a shard of a data set that needs no credentials, as curl takes it."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    address = s3_client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": f"{prefix}/{name}"})
    return f"pipe:curl -s '{address}'"


class Ours:
    """This project's stream, without or with its cache."""

    package = "hmtl_dist"

    def __init__(self, task: Task, *, cached: bool = False) -> None:
        self._index = open_index(URL, "train")
        cached_in = CacheConfig(folder=f"{task.folder}/cache", max_bytes=1 << 40) if cached else None
        config = DataConfig(url=URL, image_size=task.image_size, num_workers=task.num_workers, cache=cached_in)
        if task.buffer_bytes:
            config = config.model_copy(update={"buffer_bytes": task.buffer_bytes})
        self._plan = Plan(self._index.num_samples, batch_size=task.batch_size, lanes=8, seed=0, shuffle=True, block=128)
        self._transform, self._config = transform_of(task.image_size), config
        self._stream: Stream | None = None
        self._cursor, self._ranks = (0, 0), (task.rank, task.world_size)

    def epoch(self) -> Batches:
        """Yield the rest of an epoch."""
        if self._stream is None:
            self._stream = Stream(
                self._index,
                self._plan,
                self._transform,
                self._config,
                rank=self._ranks[0],
                world_size=self._ranks[1],
                start=self._cursor,
            ).__enter__()
        for step in range(self._cursor[1], self._plan.steps_per_epoch):
            batch = next(self._stream)
            self._cursor = (batch.epoch, step + 1)
            yield batch.images, batch.sample_ids.numpy()
        self._cursor = (self._cursor[0] + 1, 0)

    def state(self) -> Any:
        """Return what `restore` takes."""
        return self._cursor

    def restore(self, state: Any) -> None:
        """Go on from where a state was taken."""
        self._cursor = tuple(state)


class Peer:
    """A peer's own loader of (pictures, numbers)."""

    package = "torch"
    """What is imported before the clock starts."""
    _loader: Any

    def epoch(self) -> Batches:
        """Yield the rest of an epoch."""
        for images, numbers in self._loader:
            yield images, np.asarray(numbers)

    def state(self) -> Any:
        """Return what `restore` takes."""
        return self._loader.state_dict()

    def restore(self, state: Any) -> None:
        """Go on from where a state was taken."""
        self._loader.load_state_dict(state)


class WebDatasetLoader(Peer):
    """WebDataset's documented recipe: shards of a list shuffled, a buffer, batches in the workers, WebLoader."""

    package = "webdataset"

    def __init__(self, task: Task) -> None:
        import webdataset

        index, number_of, make = open_index(URL, "train"), numbers(), decoder
        kind, size, count = task.decoder, task.image_size, len(number_of)

        def decode(sample: tuple[bytes, str]) -> tuple[NDArray[np.uint8], int]:
            number = number_of[sample[1]]
            return make(kind, size, count)(sample[0], number), number

        urls = [signed(name) for name in index.names]
        data = (
            webdataset.WebDataset(urls, shardshuffle=len(urls))
            .shuffle(1000)
            .to_tuple("jpg", "__key__")
            .map(decode)
            .batched(task.batch_size)
        )
        self._loader = webdataset.WebLoader(
            data, batch_size=None, num_workers=task.num_workers, persistent_workers=True
        )


class Streaming(Peer):
    """MosaicML Streaming: shards kept on the local disk, StreamingDataLoader."""

    package = "streaming"

    def __init__(self, task: Task) -> None:
        from streaming import StreamingDataLoader, StreamingDataset

        kind, size, count = task.decoder, task.image_size, open_index(URL, "train").header.num_samples
        make = decoder

        class Faces(StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                return make(kind, size, count)(sample["picture"], sample["number"]), sample["number"]

        data = Faces(remote="s3://bench/mds", local=f"{task.folder}/mds", shuffle=True, batch_size=task.rank_batch_size)
        for stream in data.streams:
            stream._downloader.clean_up()
        self._loader = StreamingDataLoader(data, batch_size=task.rank_batch_size, num_workers=task.num_workers)


class Lit(Peer):
    """LitData: chunks kept on the local disk, StreamingDataLoader."""

    package = "litdata"

    def __init__(self, task: Task) -> None:
        import litdata

        kind, size, count = task.decoder, task.image_size, open_index(URL, "train").header.num_samples
        make = decoder

        class Faces(litdata.StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                return make(kind, size, count)(sample["picture"], sample["number"]), sample["number"]

        data = Faces(
            input_dir="s3://bench/litdata",
            cache_dir=f"{task.folder}/litdata",
            shuffle=True,
            storage_options={
                "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
                "aws_access_key_id": IDENTITY.access_key_id,
                "aws_secret_access_key": IDENTITY.secret_access_key,
            },
        )
        self._loader = litdata.StreamingDataLoader(
            data, batch_size=task.rank_batch_size, num_workers=task.num_workers, drop_last=False
        )


class RayData(Peer):
    """Ray Data: `read_webdataset` with shuffled files, pictures decoded in batches, a local shuffle buffer."""

    package = "ray.data"

    def __init__(self, task: Task) -> None:
        import pyarrow.fs
        import ray

        index, number_of, make = open_index(URL, "train"), numbers(), decoder
        kind, size, count = task.decoder, task.image_size, len(number_of)

        def decode(rows: dict[str, Any]) -> dict[str, Any]:
            its = np.array([number_of[str(key)] for key in rows["__key__"]])
            one = make(kind, size, count)
            pairs = zip(rows["jpg"], its.tolist(), strict=True)
            return {"picture": np.stack([one(encoded, number) for encoded, number in pairs]), "number": its}

        address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
        files = pyarrow.fs.S3FileSystem(
            endpoint_override=address,
            scheme="http",
            access_key=IDENTITY.access_key_id,
            secret_key=IDENTITY.secret_access_key,
            region="us-east-1",
        )
        paths = [f"{URL.removeprefix('s3://')}/{name}" for name in index.names]
        rows: Any = ray.data.read_webdataset(paths, filesystem=files, shuffle="files", decoder=None, suffixes=["jpg"])
        self._rows: Any = rows.map_batches(decode, batch_format="numpy", batch_size=task.batch_size)
        self._batch_size = task.batch_size

    def epoch(self) -> Batches:
        """Yield an epoch."""
        for rows in self._rows.iter_batches(
            batch_size=self._batch_size, batch_format="numpy", prefetch_batches=2, local_shuffle_buffer_size=1000
        ):
            yield rows["picture"], rows["number"]


class Files(Peer):
    """torch's DataLoader over files of the local disk: no S3 at all."""

    def __init__(self, task: Task) -> None:
        from torch.utils.data import DataLoader, Dataset

        paths = sorted(Path(task.files).iterdir())
        kind, size, make = task.decoder, task.image_size, decoder

        class Faces(Dataset[Any]):
            def __len__(self) -> int:
                return len(paths)

            def __getitem__(self, at: int) -> Any:
                return make(kind, size, len(paths))(paths[at].read_bytes(), at), at

        self._loader = DataLoader(
            Faces(), task.batch_size, shuffle=True, num_workers=task.num_workers, persistent_workers=True
        )


LOADERS: dict[str, Callable[[Task], Any]] = {
    "ours": Ours,
    "ours, cached": lambda task: Ours(task, cached=True),
    "webdataset": WebDatasetLoader,
    "streaming": Streaming,
    "litdata": Lit,
    "ray data": RayData,
    "files": Files,
}


def set_up(task: Task) -> None:
    """Do what does not count: imports, a process group where there is one, Ray."""
    from hmtl_dist.model.backbone import import_timm

    import_timm()  # torchvision beside a CPU build of torch: some peers import it
    importlib.import_module("torchvision.transforms.v2")
    importlib.import_module(getattr(LOADERS[task.name], "package", "hmtl_dist"))
    if LOADERS[task.name] in (WebDatasetLoader, RayData):
        numbers()  # only the benchmark asks for them
    if task.world_size > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo")
    if task.name == "streaming":  # what a killed process left: the next one would read amiss; all ranks together
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
    if task.name.startswith("ours"):  # its processes are forks of a server of their own: that has its imports too
        preload_workers([URL], [GeometricTransform.__module__])
        nothing = multiprocessing.get_context("forkserver").Process(target=int)
        nothing.start()
        nothing.join()
    if LOADERS[task.name] is RayData:
        import ray

        ray.init(
            address="local",
            num_cpus=task.num_workers,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=f"{task.folder}/r",
        )
