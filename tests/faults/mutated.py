"""Inputs of every kind, how each is spoilt, and what reading the spoilt one may give.

Each kind makes a whole input in a folder once, as bytes by file. A spoilt copy is read as the program reads it; what
comes out instead of a `UserError` is held against what the whole one gave.
"""

import hashlib
import io
import json
import math
import os
import random
import re
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
import yaml

from hmtl_dist.config.io import describe, load_tree, to_dict
from hmtl_dist.data.catalog.folder import FolderAdapter
from hmtl_dist.data.catalog.registry import open_data_set
from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.adapter import Adapter, Rejected
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.dataset.foreign import index_shards
from hmtl_dist.data.dataset.index import open_dataset, open_index
from hmtl_dist.data.dataset.labels import parse_labels
from hmtl_dist.data.dataset.schema import IndexHeader
from hmtl_dist.data.dataset.tables import decode_table, encode_table
from hmtl_dist.data.dataset.verify import verify
from hmtl_dist.data.dataset.writing import write_dataset
from hmtl_dist.data.storage import open_storage
from hmtl_dist.data.stream.batches import Stream
from hmtl_dist.engine.base import Engine, EngineState
from hmtl_dist.engine.checkpoint import load_newest, newest_manifest, save_checkpoint
from hmtl_dist.launch.record import load_run
from hmtl_dist.reproduce.suite import SUITES, load_suite
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.jsonl import Journal, read_events
from hmtl_dist.train.base import RankContext, RunContext
from hmtl_dist.train.saving import Saver, check_changes
from tests.data.catalog.fabricate import TREES, affectnet_2021
from tests.data.stream.streaming import Resize, jpeg, make_plan, make_set
from tests.e2e.drawn import tree
from tests.faults.mutate import spoil_bytes, spoil_columns, spoil_tree
from tests.train import toy

Files = dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    make: Callable[[Path], None]
    """Writes a whole one into a folder."""
    spoil: Callable[[Files, random.Random], Files]
    """Returns the files that are another, given all."""
    read: Callable[[Path], Any]
    """Reads it as the program does; raises a `UserError` where it cannot."""
    allows: Callable[[Any, Any], bool]
    """Whether what was read is right, given what the whole input gives."""


def one_file(pick: Callable[[str], bool]) -> Callable[[Files, random.Random], Files]:
    """Spoil the bytes of one of some files."""

    def spoil(files: Files, draw: random.Random) -> Files:
        name = draw.choice(sorted(name for name in files if pick(name) and files[name]))
        return {name: spoil_bytes(files[name], draw)}

    return spoil


def equal(found: Any, whole: Any) -> bool:
    return found == whole


def anything(found: Any, whole: Any) -> bool:
    """For what is checked while it is read."""
    return True


# --- configurations -----------------------------------------------------------------------------------------------


def make_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree("somewhere"), sort_keys=False))


def spoil_yaml(files: Files, draw: random.Random) -> Files:
    ((name, data),) = files.items()
    if draw.random() < 0.5:
        return {name: spoil_bytes(data, draw)}
    return {name: yaml.safe_dump(spoil_tree(yaml.safe_load(data), draw), sort_keys=False).encode()}


def read_recipe(folder: Path) -> RunConfig:
    return load_tree(RunConfig, str(folder / "recipe.yaml"))


def means_itself(found: RunConfig, _: object) -> bool:
    """No recipe of another meaning is wrong in itself; but what is run must be what is shown and stored."""
    shown = yaml.safe_load(describe(found))
    stored = json.loads(json.dumps(to_dict(found), allow_nan=False))
    return RunConfig.model_validate(stored) == found and set(shown) == set(stored)


def make_suite(folder: Path) -> None:
    (folder / "suite.yaml").write_bytes((SUITES / "synthetic.yaml").read_bytes())


def make_record(folder: Path) -> None:
    config = RunConfig.model_validate({"name": "run"} | tree("somewhere"))
    record = {"config": to_dict(config), "run_id": "0" * 32}
    (folder / "run.json").write_text(json.dumps(record, indent=2))


def spoil_json(files: Files, draw: random.Random) -> Files:
    ((name, data),) = files.items()
    if draw.random() < 0.5:
        return {name: spoil_bytes(data, draw)}
    return {name: json.dumps(spoil_tree(json.loads(data), draw)).encode()}


def make_journal(folder: Path) -> None:
    journal = Journal(folder, "0" * 32)
    for step in range(1, 9):
        journal.metrics({"train/loss/total": 1 / step}, step)
    journal.damaged(8, sample_id=3, key="000003", shard="somewhere", reason="no picture")
    journal.close("KILLED")


def read_journal(folder: Path) -> tuple[list[bytes], list[Any]]:
    """The lines of a journal, and the events that are found in them."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1]
    before = [event for event, _ in read_events(path)]
    again = Journal(folder, "0" * 32)
    again.metrics({"train/loss/total": 0.5}, 9)
    again.close("FINISHED")
    after = [event for event, _ in read_events(path)]
    assert repr(after[: len(before)]) == repr(before), "going on with a damaged journal loses events"
    assert (after[-2]["step"], after[-1]["status"]) == (9, "FINISHED")
    return lines, before


def keeps_whole_lines(found: tuple[list[bytes], list[Any]], whole: tuple[list[bytes], list[Any]]) -> bool:
    """A damaged line may be lost, and no other."""
    return all(json.loads(line) in found[1] for line in found[0] if line in whole[0])


# --- data sets ----------------------------------------------------------------------------------------------------

SIZES = (9, 7, 8)
CONFIG = DataConfig(url="unused", image_size=16, num_workers=0, max_bad_share=0.1)


def make_shards(folder: Path) -> None:
    make_set(str(folder), folder, SIZES, side=24, group=lambda number: f"p{number % 5}")
    write_dataset(open_storage(str(folder)), "test", ["train"])
    (folder / "shard.tar").unlink()


@dataclass(frozen=True)
class Streamed:
    """What a data set gives to a training, and what `data verify` says of it."""

    samples: frozenset[tuple[Any, ...]]
    """Id, labels and digest of the picture's pixels."""
    count: int
    announced: int
    """Samples that the index speaks of."""
    sound: bool


def read_shards(folder: Path) -> Streamed:
    open_dataset(str(folder))
    index = open_index(str(folder), "train")
    samples: list[tuple[Any, ...]] = []
    plan = make_plan(index, batch_size=6, lanes=2, shuffle=False, block=8)
    with Stream(index, plan, Resize(), CONFIG, epochs=1) as stream:
        for batch in stream:
            for row in range(len(batch.images)):
                labels = tuple((name, repr(float(column[row]))) for name, column in sorted(batch.labels.items()))
                digest = hashlib.sha256(batch.images[row].numpy().tobytes()).hexdigest()
                samples.append((int(batch.sample_ids[row]), labels, digest, float(batch.weight[row])))
    sound = verify([str(folder)]).is_sound
    return Streamed(frozenset(samples), len(samples), index.header.num_samples, sound)


def same_samples_or_reported(found: Streamed, whole: Streamed) -> bool:
    """What is trained on is untouched; damage that it does not meet is found by `data verify`."""
    return (found.samples, found.count, found.announced) == (whole.samples, whole.count, whole.announced)


def same_samples_and_reported(found: Streamed, whole: Streamed) -> bool:
    return same_samples_or_reported(found, whole) and not found.sound


def spoil_sealed_index(files: Files, draw: random.Random) -> Files:
    """A wrong index whose digests fit: what a faulty or malicious program would write."""
    header = json.loads(files["train/index.json"])
    shards = decode_table(files["train/shards.npz"])
    changed: Files = {}
    kind = draw.choice(("header", "shards", "table", "table"))
    if kind == "header":
        header = spoil_tree(header, draw)
    elif kind == "shards":
        shards = spoil_columns(shards, draw)
    else:
        number = draw.randrange(len(SIZES))
        name = f"train/shard-{number:06d}.npz"
        changed[name] = encode_table(spoil_columns(decode_table(files[name]), draw))
        digests = shards["table_sha256"].copy()
        digests[number] = list(hashlib.sha256(changed[name]).digest())
        shards["table_sha256"] = digests
    changed["train/shards.npz"] = encode_table(shards)
    changed["train/index.json"] = json.dumps(header).encode()
    try:
        header = IndexHeader.model_validate_json(changed["train/index.json"]).sealed(changed["train/shards.npz"])
        changed["train/index.json"] = header.model_dump_json().encode()
    except ValueError:
        pass  # no header at all: left unsealed
    return changed


def counts_agree(found: Streamed, whole: Streamed) -> bool:
    """Labels may be others, as nothing tells; but no sample is lost or invented, and no picture another."""
    pictures = {sample[2] for sample in whole.samples}
    return (
        found.announced == whole.announced
        and found.count == whole.count
        and {sample[0] for sample in found.samples} == {sample[0] for sample in whole.samples}
        and all(sample[2] in pictures or "yaw" in str(sample[1]) for sample in found.samples)
    )


def make_foreign(folder: Path) -> None:
    labels = [{"mood": "glad" if number % 2 else "calm", "age": number} for number in range(8)]
    write_foreign(folder, [json.dumps(one).encode() for one in labels])


def write_foreign(folder: Path, labels: Sequence[bytes], name: bytes = b"%06d") -> None:
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        for number, entries in enumerate(labels):
            for suffix, data in (("jpg", jpeg(number, 24)), ("json", entries)):
                info = tarfile.TarInfo(f"{os.fsdecode(name % number)}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def spoil_foreign(files: Files, draw: random.Random) -> Files:
    """The bytes of the tar, or what is in it."""
    ((name, data),) = files.items()
    if draw.random() < 0.5:
        return {name: spoil_bytes(data, draw)}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [cast("IO[bytes]", tar.extractfile(info)).read() for info in tar if info.name.endswith(".json")]
    number = draw.randrange(len(members))
    if draw.random() < 0.7:
        members[number] = json.dumps(spoil_tree(json.loads(members[number]), draw)).encode()
    else:
        members[number] = spoil_bytes(members[number], draw)
    with tempfile.TemporaryDirectory() as folder:
        write_foreign(Path(folder), members, draw.choice((b"%06d", b"%06d", b"\xe9%d", b"../%d", b"a b/%d")))
        return {name: (Path(folder) / name).read_bytes()}


def read_foreign(folder: Path) -> tuple[int, int]:
    """Samples that are indexed, and pictures in all, those that have become unreadable too."""
    report = index_shards(str(folder))
    index = open_index(str(folder), "train")
    count = sum(len(index.samples(shard)) for shard in range(len(index)))
    assert count == report.headers["train"].num_samples
    keys = {str(key) for shard in range(len(index)) for key in index.samples(shard).key}
    assert len(keys) == count, "a sample stands twice in the index"
    return count, count + report.without_picture


def as_many(found: tuple[int, int], whole: tuple[int, int]) -> bool:
    return found[0] == whole[0] or found[1] >= whole[1]


# --- checkpoints --------------------------------------------------------------------------------------------------


def state_of(step: int) -> EngineState:
    weight = torch.arange(12.0).view(4, 3) / 7 + step
    return EngineState(
        model={"weight": weight, "count": torch.tensor(step)},
        optimizer={"weight/exp_avg": weight / 3},
        counters={"global_step": step, "micro_step": step},
    )


NEWEST = "step-00000006"


def make_checkpoints(folder: Path) -> None:
    for step in (3, 6):
        extras = {"objective": {"history": torch.tensor([1.0 * step])}}
        save_checkpoint(str(folder), step, state_of(step), extras, {"config": {"name": "x"}, "metrics": {"a": 1.0}})


def in_newest(name: str) -> bool:
    return name.startswith(NEWEST)


def read_checkpoints(folder: Path) -> tuple[str, str] | None:
    """The newest that is whole, and a digest of all that is in it."""
    found = load_newest(str(folder))
    if found is None:
        return None
    url, state, extras, manifest = found
    text = hashlib.sha256(json.dumps([state.counters, manifest], sort_keys=True).encode())
    for part in (state.model, state.optimizer, state.ema, *extras.values()):
        for name, tensor in sorted(part.items()):
            text.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            text.update(tensor.numpy().tobytes())
    return url.rpartition("/")[2], text.hexdigest()


def whole_or_the_one_before(found: Any, whole: Any) -> bool:
    """The untouched newest one, or the one before."""
    return found is not None and (found == whole or found[0] == "step-00000003")


def spoil_sealed_checkpoint(files: Files, draw: random.Random) -> Files:
    """A checkpoint whose digests fit what is wrong in it."""
    newest = f"checkpoints/{NEWEST}"
    name = f"{newest}/manifest.json"
    content = json.loads(files[name])["content"]
    changed: Files = {}
    if draw.random() < 0.5:
        content = spoil_tree(content, draw)
    else:
        part = draw.choice(sorted(content["files"]))
        key = f"{newest}/{part}.safetensors"
        data = bytearray(files[key])
        if draw.random() < 0.4:  # the length of the header
            data[:8] = draw.choice((b"\xff" * 8, (1 << 40).to_bytes(8, "little"), bytes(8), b"\x01" + bytes(7)))
            changed[key] = bytes(data)
        else:
            changed[key] = spoil_bytes(bytes(data), draw)
        content["files"][part] = {
            "num_bytes": len(changed[key]),
            "sha256": hashlib.sha256(changed[key]).hexdigest(),
        }
    seal = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    changed[name] = json.dumps({"content": content, "sha256": seal}).encode()
    return changed


def make_run(folder: Path) -> None:
    for step in (3, 6):
        engine, saver = trainer(folder)
        engine.global_step = engine.micro_step = step
        saver.save(step, {"eval/mood/accuracy": 0.5})
        saver.saved()


def trainer(folder: Path) -> tuple[Engine, Saver]:
    objective, engine = toy.build(toy.config())
    header = IndexHeader(
        dataset="toy",
        split="train",
        fields=toy.FIELDS,
        num_samples=8,
        num_shards=1,
        num_bytes=8,
        label_counts={},
        digest="digest of the data",
    )
    rank_context = RankContext(0, 1, 0, "cpu", folder / "scratch", RunContext(str(folder)))
    return engine, Saver(toy.config(), rank_context, engine, objective, data=header)


def read_run(folder: Path) -> tuple[str, int, list[str]]:
    """Where a run goes on, and the names and shapes of what it goes on with."""
    manifest = newest_manifest(f"{folder}/checkpoints")
    if manifest is not None:
        check_changes(manifest, toy.config())
    engine, saver = trainer(folder)
    restored = saver.restore()
    assert restored is not None
    assert restored.skipped >= 0
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in engine.state().model.items()]
    return restored.checkpoint.rpartition("/")[2], engine.global_step, shapes


def fits_the_model(found: tuple[str, int, list[str]], whole: tuple[str, int, list[str]]) -> bool:
    return found[0] in (NEWEST, "step-00000003") and found[1] >= 0 and found[2] == whole[2]


# --- label files --------------------------------------------------------------------------------------------------

ROWS = 12


def make_table(folder: Path) -> None:
    lines = ["file,subject,mood,age"]
    for number in range(ROWS):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, 24))
        lines.append(f"{number}.jpg,p{number % 4},{'glad' if number % 2 else 'calm'},{20 + number}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def read_table(folder: Path) -> tuple[int, int, int]:
    """Rows of the file, samples named or rejected, samples in the shards or rejected."""
    lines = re.split(rb"\r\n|\r|\n", (folder / "labels.csv").read_bytes())
    rows = sum(map(bool, lines[1:]))
    adapter = FolderAdapter(
        str(folder),
        folder / "labels.csv",
        file_column="file",
        specs=parse_labels(["mood", "age:number:years"]),
        group="subject",
    )
    named = sum(1 for _ in adapter.refs())
    report = build(adapter, str(folder / "out"), BuildSettings(dataset="x", splits={"train": 1.0}))
    stored = sum(header.num_samples for header in report.headers.values())
    return rows, named, stored + len(report.rejected)


def counts_its_rows(found: tuple[int, int, int], whole: Any) -> bool:
    """Every row of the file has become a sample or is listed as left out."""
    return found[0] == found[1] == found[2]


def labelled(name: str) -> Kind:
    """The label files of a published set."""

    def fabricate(folder: Path) -> None:
        (affectnet_2021(folder, 6, 4) if name == "affectnet-2021" else TREES[name](folder))

    def read(folder: Path) -> Mapping[str, int]:
        return census(open_data_set(name.removesuffix("-2021"), folder))

    def spoil(files: Files, draw: random.Random) -> Files:
        texts = [file for file in files if not file.endswith((".jpg", ".png")) and files[file]]
        if texts:
            return one_file(lambda file: file in texts)(files, draw)
        return {file + draw.choice(("x", "\udcff", "_2")): files[file] for file in [draw.choice(sorted(files))]}

    return Kind(fabricate, spoil, read, anything)


def census(adapter: Adapter) -> dict[str, int]:
    """Goes through all that an adapter names, checking labels, and counts samples and rejected ones."""
    counts = {"samples": 0, "rejected": 0}
    for ref in adapter.refs():
        if isinstance(ref, Rejected):
            assert ref.reason
            counts["rejected"] += 1
            continue
        counts["samples"] += 1
        for label, value in ref.labels.items():
            classes = adapter.fields[label].classes
            if classes:
                assert value is None or value in classes, (label, value)
            else:
                assert value is None or math.isfinite(cast("float", value)), (label, value)
        assert not adapter.splits or ref.split in adapter.splits
        assert ref.box is None or all(map(math.isfinite, (ref.box.left, ref.box.top, ref.box.width, ref.box.height)))
    return counts


KINDS: dict[str, Kind] = {
    "recipe": Kind(make_recipe, spoil_yaml, read_recipe, means_itself),
    "suite": Kind(make_suite, spoil_yaml, lambda folder: load_suite(str(folder / "suite.yaml")), anything),
    "record of a run": Kind(make_record, spoil_json, lambda folder: load_run(str(folder)), means_itself),
    "journal": Kind(make_journal, one_file(lambda _: True), read_journal, keeps_whole_lines),
    "index": Kind(make_shards, one_file(lambda name: not name.endswith(".tar")), read_shards, same_samples_or_reported),
    "index that is sealed": Kind(make_shards, spoil_sealed_index, read_shards, counts_agree),
    "shard": Kind(make_shards, one_file(lambda name: name.endswith(".tar")), read_shards, same_samples_and_reported),
    "foreign shard": Kind(make_foreign, spoil_foreign, read_foreign, as_many),
    "checkpoint": Kind(make_checkpoints, one_file(in_newest), read_checkpoints, whole_or_the_one_before),
    "checkpoint that is sealed": Kind(make_run, spoil_sealed_checkpoint, read_run, fits_the_model),
    "table of labels": Kind(make_table, one_file(lambda name: name == "labels.csv"), read_table, counts_its_rows),
    **{f"labels of {name}": labelled(name) for name in (*TREES, "affectnet-2021")},
}
