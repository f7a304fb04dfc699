# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""The loop that one would write by hand: DDP under torchrun, WebDataset's recipe, timm, one supervised task.

`benchmarks.trainers` runs it beside `hmtl-dist train`. It reads the same shards with the same decoder, makes the same
batches (their share of a rank), and takes the same steps with the same optimizer; it has no evaluation, checkpoint,
tracking or resume. It runs until it is ended; rank 0 writes the time of every tenth step to a file.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
import webdataset
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peer_loaders import numbers_of, signed
from hmtl_dist.augment import AugmentConfig, GeometricTransform
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.model.backbone import import_timm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REPORT_STEPS = 10


def main() -> None:
    """Train as one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True, help="over all ranks")
    parser.add_argument("--num-workers", type=int, required=True)
    parser.add_argument("--times", type=Path, required=True, help="file for the times of steps")
    options = parser.parse_args()
    timm = import_timm()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    classes = open_index(os.environ["HMTL_BENCH_URL"], "train").header.fields["expression"].classes or ()
    network: nn.Module = timm.create_model(options.model, num_classes=len(classes))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model = DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100_000)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    for step, (pictures, labels) in enumerate(batches(options, ranks, classes), start=1):
        images = ((pictures.permute(0, 3, 1, 2).float() / 255) - mean) / std
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % REPORT_STEPS == 0:
            loss.item()
            if dist.get_rank() == 0:
                with options.times.open("a") as file:
                    file.write(f"{json.dumps([step, time.time()])}\n")


def batches(options: argparse.Namespace, ranks: int, classes: tuple[str, ...]) -> Any:
    """Return a rank's batches without end: shards by rank and worker, a shuffle buffer, decoding in the workers."""
    url, size = os.environ["HMTL_BENCH_URL"], options.image_size
    index = open_index(url, "train")
    numbers = numbers_of(index)
    transform = GeometricTransform(AugmentConfig(preset="none"), size, {}, seed=0, train=True)
    params = transform.draw(0, torch.arange(len(numbers)).numpy())

    def decode(sample: tuple[bytes, bytes, str]) -> tuple[NDArray[Any], int]:
        cv2.setNumThreads(0)
        out = np.empty((size, size, 3), np.uint8)
        transform.picture(sample[0], params[numbers[sample[2]]], out)
        return out, classes.index(json.loads(sample[1])["expression"])

    data = (
        webdataset.WebDataset(
            [signed(name, url) for name in index.names],
            resampled=True,  # else ranks with fewer samples would end before the others, which then hang
            nodesplitter=webdataset.split_by_node,
        )
        .shuffle(1000)
        .to_tuple("jpg", "json", "__key__")
        .map(decode)
        .batched(options.batch_size // ranks)
    )
    return webdataset.WebLoader(data, batch_size=None, num_workers=options.num_workers)


if __name__ == "__main__":
    main()
