# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportAttributeAccessIssue=false
"""Our loader beside what a user would pick instead: the same pictures, S3 server, batch and cores.

    pip install --target build/peers --no-deps -r benchmarks/peers.txt
    python -m benchmarks.peers --peers build/peers --samples 20000 --rounds 5

Every loader runs in a process of its own, in turn, round after round; ratios are taken within a round. All decode by
our own transform, so that only fetching, shuffling and handing over differ; with `--decoder torchvision` the peers
decode as one would without us, by Pillow and torchvision's transforms. `cold` is the first epoch, `warm` the
second: loaders that keep what they have read on the local disk need not fetch again. The first batch counts from the
loader's construction, imports (and Ray's start) apart. `bytes` is what came over loopback in the first epoch over the
size of the pictures (meaningful on a machine that does nothing else). `mixing` is from how many stretches of
consecutive pictures, as long as one of our shards, a batch comes.

Then each loader that has a state is stopped by SIGKILL in mid-epoch, and started again from the state that it gave
after its last batch, as one process and as two: `missing` and `doubled` are pictures of that epoch that were then
never seen, or twice. Processor time is that of processes as looked at every half second: what lives shorter, such as
the end of webdataset's `curl`, is not in it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.loader import draw_faces
from benchmarks.local_s3 import local_s3
from benchmarks.machine import describe, spread
from benchmarks.peak import Peak
from benchmarks.peer_loaders import LOADERS, URL, Task, set_up
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.storage import open_storage
from hmtl_dist.services.process import free_ports

EPOCHS = 2
PATIENCE_SECONDS = 600
"""How long a loader may take for its epochs."""
HAVE_STATE = ("ours", "streaming", "litdata")


# --- in the process of a loader -----------------------------------------------------------------------------------


def work(task: Task) -> dict[str, Any]:
    """Read the epochs and return the figures, or the numbers of the pictures that were seen."""
    set_up(task)
    state = Path(task.folder) / "state.json"
    begun = time.perf_counter()
    loader = LOADERS[task.name](task)
    if task.resume:
        loader.restore(json.loads(state.read_text()))
    first, seen = 0.0, list[int]()
    if task.stop_after or task.resume:
        for step, (_, numbers) in enumerate(loader.epoch(), start=1):
            first = first or time.perf_counter() - begun
            seen += numbers.tolist()
            if step == task.stop_after:
                state.write_text(json.dumps(loader.state()))
                new = Path(task.folder) / "seen.new"
                new.write_text(json.dumps(seen))
                new.rename(new.with_suffix(".json"))
                time.sleep(3600)
        return {"seen": seen, "first": first}
    figures: dict[str, Any] = {"rates": [], "cpu": []}
    stretches: list[int] = []
    stretch = int(open_index(URL, "train").num_samples[0])
    pss = Peak()
    for epoch in range(EPOCHS):
        epoch_begun, cpu = time.perf_counter(), pss.cpu_seconds()
        received = psutil.net_io_counters(pernic=True)["lo"].bytes_recv
        count = 0
        for images, numbers in loader.epoch():
            if tuple(images.shape[1:]) != (task.image_size, task.image_size, 3):
                raise ValueError(f"{task.name} gives {tuple(images.shape)}")
            first = first or time.perf_counter() - begun
            count += len(numbers)
            stretches.append(len(np.unique(numbers // stretch)))
        pss.sample()
        figures["rates"].append(count / (time.perf_counter() - epoch_begun))
        figures["cpu"].append((pss.cpu_seconds() - cpu) / count * 1000)
        if epoch == 0:
            figures["received"] = psutil.net_io_counters(pernic=True)["lo"].bytes_recv - received
    return figures | {"first": first, "pss": pss.most, "mixing": statistics.median(stretches)}


# --- around it ----------------------------------------------------------------------------------------------------


def prepare(folder: Path, options: argparse.Namespace) -> int:
    """Write the pictures in every loader's own form; return their bytes."""
    draw_faces(URL, options)
    index = open_index(URL, "train")
    (folder / "files").mkdir()
    total = number = 0
    for shard in range(len(index)):
        table, tar = index.samples(shard), index.storage.read(index.names[shard])
        for offset, length in zip(table.offset.tolist(), table.length.tolist(), strict=True):
            (folder / "files" / f"{number:08}.jpg").write_bytes(tar[offset : offset + length])
            number, total = number + 1, total + length
    for form in ("mds", "litdata"):
        convert = [sys.executable, "-m", "benchmarks.peers", "--write", form, str(folder)]
        subprocess.run(convert, check=True, env=environment(options), stdout=subprocess.DEVNULL)
        storage = open_storage(f"s3://bench/{form}")
        for path in (folder / form).iterdir():
            storage.upload(path.name, path)
    return total


def write(form: str, folder: Path) -> None:
    """Write the files in a peer's form, about 16 MB a shard."""
    from hmtl_dist.model.backbone import import_timm

    import_timm()
    paths = sorted((folder / "files").iterdir())
    if form == "mds":
        from streaming import MDSWriter

        with MDSWriter(
            out=str(folder / form), columns={"picture": "bytes", "number": "int"}, size_limit=16 << 20
        ) as to:
            for number, path in enumerate(paths):
                to.write({"picture": path.read_bytes(), "number": number})
    else:
        import litdata

        litdata.optimize(
            sample_of, list(enumerate(map(str, paths))), str(folder / form), chunk_bytes=16 << 20, num_workers=1
        )


def sample_of(one: tuple[int, str]) -> dict[str, Any]:
    """Return LitData's sample of a file."""
    return {"picture": Path(one[1]).read_bytes(), "number": one[0]}


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return a loader's environment: the peers on its path, one thread of mathematics a process."""
    path = os.pathsep.join(filter(None, (os.getcwd(), options.peers, os.environ.get("PYTHONPATH", ""))))  # noqa: PTH109
    endpoint = {"S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    return os.environ | endpoint | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def launch(task: Task, options: argparse.Namespace) -> "subprocess.Popen[str]":
    """Start a loader's process, as one of the ranks that share an epoch where there are several."""
    command = [sys.executable, "-m", "benchmarks.peers", "--work", json.dumps(asdict(task))]
    ranks = {"RANK": task.rank, "LOCAL_RANK": task.rank, "WORLD_SIZE": task.world_size}
    ranks |= {"LOCAL_WORLD_SIZE": task.world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": task.port}
    its = environment(options) | {name: str(value) for name, value in ranks.items() if task.world_size > 1}
    with errors_of(task).open("w") as errors:
        return subprocess.Popen(command, env=its, stdout=subprocess.PIPE, stderr=errors, text=True)


def errors_of(task: Task) -> Path:
    """Return where a loader's process complains."""
    return Path(task.folder) / f"stderr-{task.rank}.txt"


def finish(task: Task, process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a loader's process and read its figures."""
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    if process.returncode:
        raise RuntimeError(errors_of(task).read_text()[-2000:])
    return dict(json.loads(said.splitlines()[-1]))


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a loader's process and all that it has started."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for one in children:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def resumed(task: Task, options: argparse.Namespace, count: int, world_size: int) -> dict[str, Any]:
    """Kill a loader in mid-epoch, start it again from its state; count what was missed and what was doubled."""
    half = count // task.batch_size // 2
    whole = count // task.batch_size * task.batch_size if task.name.startswith("ours") else count  # the plan's epoch
    process = launch(replace(task, stop_after=half), options)
    seen = Path(task.folder) / "seen.json"
    while not seen.exists():
        if process.poll() is not None:
            finish(task, process)
        time.sleep(0.2)
    kill(process)
    numbers = Counter(json.loads(seen.read_text()))
    again = replace(task, resume=True, world_size=world_size, port=free_ports(1)[0])
    ranks = [replace(again, rank=rank) for rank in range(world_size)]
    first = 0.0
    processes = [launch(one, options) for one in ranks]
    try:
        for one, its in zip(ranks, processes, strict=True):
            figures = finish(one, its)
            numbers.update(figures["seen"])
            first = max(first, figures["first"])
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"refused": str(error).strip().splitlines()[-1][:200]}
    finally:
        for its in processes:
            kill(its)
    return {
        "missing": whole - len(numbers),
        "doubled": sum(times - 1 for times in numbers.values()),
        "first": round(first, 2),
    }


def main() -> None:
    """Measure and print."""
    options = parse()
    if options.work:
        print(json.dumps(work(Task(**json.loads(options.work)))))
        return
    if options.write:
        write(options.write[0], Path(options.write[1]))
        return
    with tempfile.TemporaryDirectory(prefix="b-") as name:  # short: Ray's sockets lie in it
        folder = Path(name)
        with local_s3(folder):
            compare(folder, options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Run the rounds and the kills, and print a table."""
    size = prepare(folder, options)
    count = open_index(URL, "train").header.num_samples
    print(describe())
    print(f"{count:,} pictures, {size / 1e6:.0f} MB, {options.num_workers} loader processes")

    def task(loader: str) -> Task:
        own = tempfile.mkdtemp(dir=folder, prefix="t")
        shape = (options.image_size, options.batch_size, options.num_workers)
        return Task(loader, own, f"{folder}/files", *shape, options.decoder, options.buffer_bytes)

    found: dict[str, list[dict[str, Any]]] = {loader: [] for loader in options.loaders}
    for number in range(options.rounds):
        for loader in options.loaders:
            one = task(loader)
            figures = finish(one, launch(one, options))
            shutil.rmtree(one.folder)
            found[loader].append(figures)
            print(f"round {number}: {loader} {json.dumps(figures)}", flush=True)
    columns = ("loader", "cold", "warm", "ours / it, cold: min, median, max", "warm", "CPU s a 1,000, cold", "warm")
    columns += ("first batch", "PSS", "bytes", "mixing")
    print("\n| " + " | ".join(columns) + " |\n" + len(columns) * "|---" + "|")
    for loader, rounds in found.items():
        print(f"| {loader} | " + " | ".join(row_of(rounds, found["ours"], size)) + " |")
    resumes = {
        f"{loader}, killed in mid-epoch, then {world_size} process(es)": resumed(
            task(loader), options, count, world_size
        )
        for loader in HAVE_STATE
        if loader in options.loaders and options.decoder == "ours"
        for world_size in (1, 2)
    }
    for name, figures in resumes.items():
        print(f"{name}: {figures}")
    print(json.dumps({"arguments": vars(options), "rounds": found, "resumed": resumes}))


def row_of(rounds: list[dict[str, Any]], ours: list[dict[str, Any]], size: int) -> list[str]:
    """Return a loader's cells."""

    def middle(key: str, epoch: int | None = None) -> float:
        return statistics.median(one[key] if epoch is None else one[key][epoch] for one in rounds)

    ratios = [[its["rates"][e] / one["rates"][e] for its, one in zip(ours, rounds, strict=True)] for e in range(EPOCHS)]
    return [
        *(f"{middle('rates', epoch):,.0f}/s" for epoch in range(EPOCHS)),
        *map(spread, ratios),
        *(f"{middle('cpu', epoch):.2f}" for epoch in range(EPOCHS)),
        f"{middle('first'):.2f} s",
        f"{middle('pss') / 1e6:,.0f} MB",
        f"{middle('received') / size:.2f}",
        f"{middle('mixing'):.0f}",
    ]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="build/peers", help="folder with the peers' packages")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--picture-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoder", choices=("ours", "torchvision"), default="ours", help="the peers'")
    parser.add_argument("--buffer-bytes", type=int, help="ours: most encoded bytes held; the default if not given")
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=list(LOADERS), help="`ours` among them")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "ours" not in options.loaders:
        parser.error("--loaders: `ours` must be among them, which the others are compared with")
    return options


if __name__ == "__main__":
    main()
