"""Seconds and memory of opening an index, planning an epoch and streaming, over the number of samples.

    python -m benchmarks.index_size

One drawn shard of 1,000 pictures is listed as often as needed: its files are linked, so that a set of 10^6 samples
takes the room of one shard. Of 10^9 samples, in 10^6 shards, only the index is made. Every size is looked at in
processes of its own, in turn, round after round; imports do not count. Streaming reads 200 batches of 64 with two
loader processes from a folder; its memory is the peak of the proportional set size (PSS) of all processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.loader import draw_faces
from benchmarks.machine import describe, spread
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.dataset.tables import encode_table
from hmtl_dist.data.stream.plan import Plan

SIZES = (10**3, 10**4, 10**5, 10**6, 10**9)
STREAMED = 10**6
"""Largest set that is streamed."""
STEPS = 200


def main() -> None:
    """Measure and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--look", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look(options.look)))
        return
    with tempfile.TemporaryDirectory(prefix="b-") as name:
        folder = Path(name)
        draw_faces(f"{folder}/one", argparse.Namespace(samples=1000, picture_size=256))
        for size in SIZES:
            multiply(folder / "one", folder / str(size), size // 1000, linked=size <= STREAMED)
        found: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
        for _ in range(options.rounds):
            for size, rounds in found.items():
                command = [sys.executable, "-m", "benchmarks.index_size", "--look", f"{folder}/{size}"]
                rounds.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(describe())
    print("\n| samples | opening, s | planning, s | memory of both, MB | streaming, MB PSS |\n" + 5 * "|---" + "|")
    for size, rounds in found.items():
        cells = (("open", 3), ("plan", 3), ("memory", 0), ("stream", 0))
        print(
            f"| {size:,} | "
            + " | ".join(cell([one.get(key) for one in rounds], digits) for key, digits in cells)
            + " |"
        )
    print(json.dumps({"arguments": vars(options), "rounds": found}))


def cell(values: list[float | None], digits: int) -> str:
    """Return the spread of figures, if there are some."""
    known = [value for value in values if value is not None]
    return spread(known, digits) if known else "not streamed"


def multiply(one: Path, many: Path, shards: int, *, linked: bool) -> None:
    """List the only shard of a set as often as wanted, its files linked."""
    index = open_index(str(one), "train")
    (table,) = [dict(np.load(file)) for file in [one / "train" / "shards.npz"]]
    names = np.array([b"train/shard-%06d.tar" % number for number in range(shards)])
    encoded = encode_table({key: np.repeat(value, shards, axis=0) for key, value in table.items()} | {"name": names})
    counts = {name: [shards * count for count in its] for name, its in index.header.label_counts.items()}
    header = index.header.model_copy(
        update={
            "num_samples": 1000 * shards,
            "num_shards": shards,
            "num_bytes": shards * index.header.num_bytes,
            "label_counts": counts,
        }
    )
    (many / "train").mkdir(parents=True)
    (many / "dataset.json").write_bytes((one / "dataset.json").read_bytes())
    (many / "train" / "shards.npz").write_bytes(encoded)
    (many / "train" / "index.json").write_text(header.sealed(encoded).model_dump_json())
    for file in (one / "train").glob("shard-000000*") if linked else ():
        for number in range(shards):
            (many / "train" / file.name.replace("000000", f"{number:06}", 1)).hardlink_to(file)


def look(url: str) -> dict[str, float]:
    """Open, plan, and stream what is not too large."""
    before = high_water()
    begun = time.perf_counter()
    index = open_index(url, "train")
    opened = time.perf_counter()
    plan = Plan(index.num_samples, batch_size=64, lanes=8, seed=0, shuffle=True, block=256)
    plan.epoch(0).batch_ids(0)
    plan.epoch(1).batch_ids(plan.steps_per_epoch - 1)
    planned = time.perf_counter()
    figures = {"open": opened - begun, "plan": planned - opened, "memory": high_water() - before}
    if index.header.num_samples > STREAMED:
        return figures
    from benchmarks.peak import Peak
    from hmtl_dist.augment import AugmentConfig, GeometricTransform
    from hmtl_dist.data.config import DataConfig
    from hmtl_dist.data.stream.batches import Stream

    transform = GeometricTransform(AugmentConfig(preset="strong"), 224, {}, 0, train=True)
    config = DataConfig(url=url, image_size=224, num_workers=2)
    peak = Peak()
    with Stream(index, plan, transform, config) as stream:
        for _ in range(STEPS):
            next(stream)
        peak.sample()
    return figures | {"stream": peak.most / 1e6}


def high_water() -> float:
    """Return the most memory that this process has held so far, MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
