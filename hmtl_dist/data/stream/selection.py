"""What is trained and evaluated on: chosen samples of one set, or of several, and how often an epoch draws each.

A whole set, or a mix of whole sets, needs its index alone. A subset, folds and balancing depend on labels and groups,
which lie in the shards' side tables: opening then reads all of these once (about 60 bytes a sample, no picture), and
each process keeps one byte a sample afterwards.

Shape legend: N samples of all sets, K pools, S shards.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.index import SampleTable, ShardIndex, open_index
from hmtl_dist.data.dataset.schema import Field, IndexHeader
from hmtl_dist.data.dataset.split import apportion
from hmtl_dist.data.storage.cache import ShardCache
from hmtl_dist.data.stream.mixing import MixedIndex, SampleIndex, aligned, united_fields
from hmtl_dist.data.stream.tape import Pools
from hmtl_dist.errors import UserError

READS_IN_FLIGHT = 8
"""Side tables that are read at once."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """One set's part in an epoch."""

    dataset: str
    url: str
    split: str
    digest: str
    shards: int
    samples: int
    """Samples of the split."""
    chosen: int
    """Those that may be drawn."""
    draws: int
    """Draws of them in an epoch, before what does not fill a batch is left over."""


@dataclass(frozen=True)
class Selection:
    """An index and what is drawn from it."""

    index: SampleIndex
    header: IndexHeader
    """The index's, with `label_counts` as an epoch draws the classes."""
    pools: Pools | None
    """None draws every sample once."""
    sources: tuple[Source, ...]

    @property
    def num_draws(self) -> int:
        """Draws of an epoch, over all sets."""
        return sum(source.draws for source in self.sources)


def open_training(config: DataConfig) -> Selection:
    """Open what a configuration trains on.

    Raises:
        UserError: a set cannot be read, sets do not fit together, a label is not there, or nothing would be chosen.
    """
    cache = _cache_of(config)
    parts = [
        open_index(config.url, config.train_split, cache),
        *(open_index(mixed.url, mixed.split, cache) for mixed in config.mix),
    ]
    index: SampleIndex = parts[0]
    if config.mix:
        only = None if config.fields is None else [*config.fields, *_labels_of(config)]
        index = MixedIndex(parts, united_fields(parts, only))
    chosen = None if config.subset == 1 and config.folds is None else _training_mask(config, parts[0])
    draws = [len_of(parts[0]) if chosen is None else int(chosen.sum())]
    for part, mixed in zip(parts[1:], config.mix, strict=True):
        draws.append(len_of(part) if mixed.ratio is None else max(1, round(mixed.ratio * draws[0])))
    sources = _sources(parts, draws, chosen)
    if chosen is None and config.balance is None:
        return _whole_sets(index, parts, sources)
    return _drawn(config, index, parts, sources, chosen)


def open_evaluation(config: DataConfig, fields: dict[str, Field] | None = None) -> Selection:
    """Open what a configuration evaluates on: `eval_split` of `eval_url` or `url`, whole, or a fold of `train_split`.

    Args:
        config: the section `data`.
        fields: labels to give, as they are trained on; those of the set when None.

    Raises:
        UserError: as `open_training`.
    """
    if config.folds is None:
        index = open_index(config.eval_url or config.url, config.eval_split, _cache_of(config))
    else:
        index = open_index(config.url, config.train_split, _cache_of(config))
    pools, chosen = None, None
    if config.folds is not None:
        chosen = _folds(config, index) == config.fold
        pools = _pools(index, [int(chosen.sum())], np.where(chosen, 0, 1).astype(np.uint8))
    drawn = len_of(index) if chosen is None else int(chosen.sum())
    seen = index if fields is None else aligned(index, fields)
    return Selection(seen, seen.header, pools, _sources([index], [drawn], chosen))


def _cache_of(config: DataConfig) -> ShardCache | None:
    cache = config.cache
    return None if cache is None else ShardCache(Path(cache.folder).expanduser().absolute(), cache.max_bytes)


def len_of(index: SampleIndex) -> int:
    """Samples of an index."""
    return index.header.num_samples


def _labels_of(config: DataConfig) -> list[str]:
    return [name for name in (config.stratify_by, config.balance) if name is not None]


def _sources(parts: Sequence[ShardIndex], draws: Sequence[int], chosen: Mask | None) -> tuple[Source, ...]:
    sources: list[Source] = []
    for number, (part, drawn) in enumerate(zip(parts, draws, strict=True)):
        header = part.header
        kept = int(chosen.sum()) if number == 0 and chosen is not None else header.num_samples
        sources.append(
            Source(header.dataset, part.url, header.split, header.digest, len(part), header.num_samples, kept, drawn)
        )
    return tuple(sources)


# --- which samples ------------------------------------------------------------------------------------------------


def _training_mask(config: DataConfig, index: ShardIndex) -> Mask:
    """Samples of the first set that are trained on [n]: all folds but one, and of those the subset."""
    mask = np.ones(len_of(index), dtype=np.bool_) if config.folds is None else _folds(config, index) != config.fold
    if config.subset == 1:
        return mask
    groups, codes = _groups_and_codes(index, config.stratify_by)
    shares = (config.subset, 1 - config.subset)
    mask[mask] = apportion(groups[mask], codes[mask], shares, config.subset_seed) == 0
    if not mask.any():
        raise UserError(
            f"data.subset={config.subset:g}: not one of the {len(np.unique(groups)):,} groups of {index.url} is that "
            "small; set a larger data.subset"
        )
    return mask


def _folds(config: DataConfig, index: ShardIndex) -> NDArray[np.uint8]:
    """Fold of each sample of the first set [n]."""
    folds = config.folds or 1
    groups, codes = _groups_and_codes(index, config.stratify_by)
    found = apportion(groups, codes, [1 / folds] * folds, config.fold_seed)
    if len(np.unique(found)) < folds:
        raise UserError(
            f"data.folds={folds}: {index.url} has only {len(np.unique(groups)):,} groups in {index.header.split}; set "
            "data.folds to that or less"
        )
    if np.isin(groups[found == config.fold], groups[found != config.fold]).any():
        raise RuntimeError(f"a group of {index.url} is on both sides of fold {config.fold}")
    return found


def _groups_and_codes(index: SampleIndex, label: str | None) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash of each sample's group and its class [n]; a sample of no group has its own, without a label one class."""
    if label is not None:
        _check_category("data.stratify_by", label, index.header.fields)
    total = len_of(index)
    groups = np.empty(total, dtype=np.uint64)
    codes = np.zeros(total, dtype=np.int64)
    for rows, table in _tables(index):
        groups[rows] = _group_hashes(table)
        if label is not None:
            codes[rows] = table.labels[label]
    return groups, codes


def groups_of(index: SampleIndex) -> NDArray[np.uint64]:
    """Read a hash of each sample's group, `[N]` by global id; a sample of no group has its own."""
    return _groups_and_codes(index, None)[0]


def _group_hashes(table: SampleTable) -> NDArray[np.uint64]:
    names = table.key_bytes if table.group_bytes is None else table.group_bytes
    distinct, member = np.unique(names, return_inverse=True)
    hashes = np.array([xxhash.xxh3_64_intdigest(name) for name in distinct.tolist()], dtype=np.uint64)[member]
    if table.group_bytes is not None:
        # Another seed for keys: a sample without a group is never in the group that bears its key's name.
        for row in np.flatnonzero(table.group_bytes == b"").tolist():
            hashes[row] = xxhash.xxh3_64_intdigest(table.key_bytes[row], 1)
    return hashes


def _tables(index: SampleIndex) -> Iterable[tuple[slice, SampleTable]]:
    """Yield the global ids of each shard's samples and its side table, several being read ahead."""
    ends = np.cumsum(index.num_samples).tolist()
    shards = [shard for shard, size in enumerate(index.num_samples.tolist()) if size]
    with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="selection") as pool:
        for first in range(0, len(shards), 8 * READS_IN_FLIGHT):
            some = shards[first : first + 8 * READS_IN_FLIGHT]
            for shard, table in zip(some, pool.map(index.samples, some), strict=True):
                yield slice(ends[shard] - len(table), ends[shard]), table


# --- how often ----------------------------------------------------------------------------------------------------


def _whole_sets(index: SampleIndex, parts: Sequence[ShardIndex], sources: tuple[Source, ...]) -> Selection:
    """Draw from sets that are each one pool; their side tables need not be read."""
    if len(parts) == 1:
        return Selection(index, index.header, None, sources)
    counts = np.zeros((len(parts), len(index.num_samples)), dtype=np.int64)
    end = 0
    for number, part in enumerate(parts):
        counts[number, end : end + len(part)] = part.num_samples
        end += len(part)
    pools = Pools(tuple(source.draws for source in sources), counts)
    totals = {name: np.zeros(len(found)) for name, found in index.header.label_counts.items()}
    for part, source in zip(parts, sources, strict=True):
        for name, found in MixedIndex([part], index.header.fields).header.label_counts.items():
            totals[name] += np.array(found) * (source.draws / source.samples)
    return Selection(index, _with_counts(index.header, totals), pools, sources)


def _drawn(
    config: DataConfig,
    index: SampleIndex,
    parts: Sequence[ShardIndex],
    sources: tuple[Source, ...],
    chosen: Mask | None,
) -> Selection:
    """Draw from parts or classes of sets, which share shards."""
    fields = index.header.fields
    if config.balance is not None:
        _check_category("data.balance", config.balance, fields)
    categories = [name for name, field in fields.items() if field.kind == "category"]
    codes = {name: np.empty(len_of(index), dtype=np.int32) for name in categories}
    for rows, table in _tables(index):
        for name, column in codes.items():
            column[rows] = table.labels[name]

    strata: list[tuple[int, NDArray[np.int64]]] = []  # draws and samples of each pool
    start = 0
    for part, source in zip(parts, sources, strict=True):
        ids = np.arange(start, start + source.samples)
        if chosen is not None and start == 0:
            ids = ids[chosen]
        start += source.samples
        if config.balance in part.header.fields:
            strata += _balanced(ids, codes[config.balance][ids], source.draws)
        else:
            strata.append((source.draws, ids))
    pool_of = np.full(len_of(index), len(strata), dtype=np.min_scalar_type(len(strata)))
    totals = {name: np.zeros(len(fields[name].classes)) for name in categories}
    for pool, (drawn, ids) in enumerate(strata):
        pool_of[ids] = pool
        for name, column in codes.items():
            found = np.bincount(column[ids] + 1, minlength=len(totals[name]) + 1)[1:]
            totals[name] += found * (drawn / len(ids))
    pools = _pools(index, [drawn for drawn, _ in strata], pool_of)
    return Selection(index, _with_counts(index.header, totals), pools, sources)


def _balanced(ids: NDArray[np.int64], codes: NDArray[np.int32], draws: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Cut a set's samples by class: classes get equal draws, samples without a label keep their share of them."""
    classes, numbers = np.unique(codes, return_counts=True)
    missing = int(numbers[classes == -1].sum())
    unlabelled = round(draws * missing / len(ids))
    known = classes[classes >= 0].tolist()
    each, more = divmod(draws - unlabelled, max(1, len(known)))
    strata = [(unlabelled, ids[codes == -1])]
    strata += [(each + int(place < more), ids[codes == label]) for place, label in enumerate(known)]
    return [(drawn, members) for drawn, members in strata if drawn]


def _pools(index: SampleIndex, draws: Sequence[int], pool_of: NDArray[np.unsignedinteger[Any]]) -> Pools:
    """Count the pools' samples in each shard."""
    bounds = np.concatenate(([0], np.cumsum(index.num_samples)))
    counts = np.empty((len(draws), len(bounds) - 1), dtype=np.int64)
    for pool in range(len(draws)):
        before = np.concatenate(([0], np.cumsum(pool_of == pool)))
        counts[pool] = np.diff(before[bounds])
    return Pools(tuple(draws), counts, pool_of)


def _with_counts(header: IndexHeader, totals: dict[str, NDArray[np.float64]]) -> IndexHeader:
    counts = {name: [round(count) for count in found.tolist()] for name, found in totals.items()}
    return header.model_copy(update={"label_counts": counts})


def _check_category(key: str, label: str, fields: dict[str, Field]) -> None:
    categories = [name for name, field in fields.items() if field.kind == "category"]
    if label not in categories:
        raise UserError(f"{key}: no category label {label!r}; there are {', '.join(categories) or 'none'}")
