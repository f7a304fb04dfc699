"""The consolidated checkpoint: safetensors files and a manifest, written last, that names their digests.

A checkpoint is a folder `step-00000010` of local or S3 storage:

    model.safetensors       parameters and buffers, by the names of `nn.Module.state_dict()`
    optimizer.safetensors   `<parameter name>/<state name>`
    ema.safetensors         averaged parameters and buffers, where EMA is on
    NAME.safetensors        what else must survive, such as `objective`
    manifest.json           format version, counters, size and sha256 of every file, the caller's own entries

A folder without a manifest, or whose bytes do not match it, is not a checkpoint: nothing is ever half restored, and
nothing is ever unpickled.
"""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file  # pyright: ignore[reportUnknownVariableType]  # a bare PathLike
from torch import Tensor

from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import parse_json
from hmtl_dist.data.storage import ObjectMissingError, Storage, open_storage
from hmtl_dist.engine.base import EngineState
from hmtl_dist.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model"
ENGINE_PARTS = (MODEL, "optimizer", "ema")
READ_BYTES = 1 << 20
SCRATCH_PREFIX = "hmtl-checkpoint-"
SHOWN_DAMAGED = 3
"""Most damaged checkpoints that one line names."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class DamagedCheckpointError(UserError):
    """A checkpoint that is not whole, or whose bytes are not those that were written."""


class TornCheckpointError(DamagedCheckpointError):
    """One whose manifest is not there: its writer was killed before the end."""


class _File(Section):
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: str


class _Counters(Section):
    global_step: Annotated[int, Field(ge=0)]
    micro_step: Annotated[int, Field(ge=0)]


class _Manifest(Section):
    model_config = ConfigDict(ser_json_inf_nan="constants")  # figures may be no numbers

    format_version: int
    counters: _Counters
    files: dict[str, _File]
    """Every file of the checkpoint by its part's name."""
    entries: dict[str, Any]
    """The caller's own."""


def save_checkpoint(
    url: str,
    step: int,
    state: EngineState,
    extras: Mapping[str, Mapping[str, Tensor]],
    manifest: Mapping[str, Any],
    *,
    keep_last: int | None = None,
    protected: Collection[str] = (),
    scratch: Path | None = None,
) -> str:
    """Write a checkpoint and return its URL; one process calls it.

    The manifest is written last, so that a process killed at any moment leaves either a whole checkpoint or none.
    Folders of later steps are removed: a run that saves step s has found nothing whole behind it.

    Args:
        url: Folder or `s3://` URL of the run's checkpoints.
        step: Global step, which names the checkpoint.
        state: The engine's consolidated state.
        extras: Further tensors by part; a part may not be named `model`, `optimizer` or `ema`.
        manifest: Entries of the caller's own, as JSON holds them.
        keep_last: Keep so many of the newest checkpoints; None keeps all.
        protected: URLs of checkpoints, such as the best, that are kept however old.
        scratch: Folder for temporary files; the system's own if none is given.

    Raises:
        UserError: The storage refuses, or the folder for temporary files is full.
        ValueError: A part's name is taken.
    """
    if taken := set(extras) & set(ENGINE_PARTS):
        raise ValueError(f"checkpoint parts {sorted(taken)} belong to the engine")
    storage, name = open_storage(url), _folder_name(step)
    parts = {"model": state.model, "optimizer": state.optimizer, "ema": state.ema, **extras}
    storage.delete(f"{name}/{MANIFEST}")  # while files of an older checkpoint of this step are replaced, it is none
    _remove_folder(url, name)
    files: dict[str, _File] = {}
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=scratch) as folder:
        for part, tensors in parts.items():
            path = Path(folder) / f"{part}.safetensors"
            try:
                save_file(_storable(tensors), path)
            except SafetensorError as error:  # how it reports a full disk
                raise UserError(
                    f"cannot write {path} ({error}): free some space there, or set HMTL_HOME to a folder with room"
                ) from error
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[part] = _File(num_bytes=path.stat().st_size, sha256=digest)
            storage.upload(f"{name}/{path.name}", path)
            path.unlink()
    content = _Manifest(
        format_version=FORMAT_VERSION,
        counters=_Counters.model_validate(state.counters),
        files=files,
        entries=dict(manifest),
    ).model_dump(mode="json")
    sealed = {"content": content, "sha256": _seal(content)}
    # in the order given: that of the tasks in a configuration has a meaning
    storage.write(f"{name}/{MANIFEST}", json.dumps(sealed, indent=2).encode())
    if keep_last is not None:
        kept = {checkpoint.rstrip("/").rsplit("/", 1)[-1] for checkpoint in protected}
        for gone in _prune(storage, step, keep_last, kept):
            _remove_folder(url, gone)
    return checkpoint_at(url, step)


def remove_scratch(folder: Path) -> None:
    """Remove the temporary files of checkpoints whose writers were killed."""
    for left in folder.glob(f"{SCRATCH_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def checkpoint_at(url: str, step: int) -> str:
    """Return the URL of the checkpoint of a global step in a run's folder or URL of checkpoints, there or not."""
    return f"{url.rstrip('/')}/{_folder_name(step)}"


def complete_steps(url: str) -> list[int]:
    """Return the global steps of the checkpoints that are written to the end, whole or damaged since, ascending.

    Args:
        url: Folder or `s3://` URL of the run's checkpoints.

    Raises:
        UserError: The storage refuses.
    """
    storage = open_storage(url)
    return sorted(_steps(storage, MANIFEST))


def load_newest(
    url: str, say: Callable[[str], None] = logger.warning
) -> tuple[str, EngineState, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Read the newest checkpoint that is whole, once; None if none was ever written to its end.

    Args:
        url: Folder or `s3://` URL of the run's checkpoints.
        say: Called with a line for each torn or damaged checkpoint that is passed over.

    Returns:
        Its URL, and what `load_checkpoint` returns.

    Raises:
        DamagedCheckpointError: There are some, and none of them is whole.
        UserError: The storage refuses, or the newest checkpoint is of an unknown format.
    """

    def read(name: str) -> tuple[str, EngineState, dict[str, dict[str, Tensor]], dict[str, Any]]:
        checkpoint = f"{url.rstrip('/')}/{name}"
        return (checkpoint, *load_checkpoint(checkpoint))

    return _newest(url, read, say)


def newest_manifest(url: str) -> dict[str, Any] | None:
    """Return the caller's own entries of the newest readable manifest; nothing else is read.

    Args:
        url: Folder or `s3://` URL of the run's checkpoints.

    Returns:
        The entries; None if no checkpoint was ever written to its end.

    Raises:
        DamagedCheckpointError: There are manifests, and none of them can be read.
        UserError: The storage refuses, or the newest checkpoint is of an unknown format.
    """
    storage = open_storage(url)
    return _newest(url, lambda name: _read_manifest(storage, f"{name}/", url).entries, lambda line: None)


def read_manifest(url: str) -> dict[str, Any]:
    """Return the caller's own entries of one checkpoint's manifest; nothing else is read.

    Args:
        url: Folder or `s3://` URL of the checkpoint itself.

    Raises:
        DamagedCheckpointError: It is none, or is damaged.
        UserError: The storage refuses, or it is of an unknown format.
    """
    return _read_manifest(open_storage(url), "", url).entries


def _newest(url: str, read: Callable[[str], T], say: Callable[[str], None]) -> T | None:
    """Read the newest checkpoint that can be read."""
    damaged: list[str] = []
    for name in _newest_first(open_storage(url)):
        try:
            return read(name)
        except DamagedCheckpointError as error:
            say(f"passing over {name}: {error}")
            if not isinstance(error, TornCheckpointError):
                damaged.append(str(error))
    if damaged:
        more = f" (and {len(damaged) - SHOWN_DAMAGED} more)" if len(damaged) > SHOWN_DAMAGED else ""
        raise DamagedCheckpointError(
            f"no checkpoint in {url} is whole: {'; '.join(damaged[:SHOWN_DAMAGED])}{more}; put a copy of its files "
            "back, or begin anew by `train` with --restart"
        )
    return None


def load_checkpoint(url: str) -> tuple[EngineState, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint, comparing every byte with its digest.

    Args:
        url: Folder or `s3://` URL of the checkpoint itself.

    Returns:
        The engine's state, the extras, and the caller's own entries of the manifest.

    Raises:
        DamagedCheckpointError: It is incomplete or damaged.
        UserError: The storage refuses, or the format is unknown.
    """
    storage = open_storage(url)
    manifest = _read_manifest(storage, "", url)
    parts: dict[str, dict[str, Tensor]] = {}
    for part, file in manifest.files.items():
        parts[part] = _read_part(storage, url, part, file)
    if missing := set(ENGINE_PARTS) - set(parts):
        raise DamagedCheckpointError(f"checkpoint {url} is damaged: its manifest names no {', '.join(sorted(missing))}")
    state = EngineState(**{part: parts.pop(part) for part in ENGINE_PARTS}, counters=manifest.counters.model_dump())
    return state, parts, manifest.entries


def load_weights(url: str) -> dict[str, Tensor]:
    """Read the parameters and buffers of a checkpoint alone, compared with their digest.

    Args:
        url: Folder or `s3://` URL of the checkpoint itself.

    Raises:
        DamagedCheckpointError: It is incomplete or damaged.
        UserError: The storage refuses, or the format is unknown.
    """
    storage = open_storage(url)
    manifest = _read_manifest(storage, "", url)
    if MODEL not in manifest.files:
        raise DamagedCheckpointError(f"checkpoint {url} is damaged: its manifest names no {MODEL}")
    return _read_part(storage, url, MODEL, manifest.files[MODEL])


def _read_part(storage: Storage, url: str, part: str, file: _File) -> dict[str, Tensor]:
    key = f"{part}.safetensors"
    try:
        data = storage.read(key)
    except ObjectMissingError as error:
        raise DamagedCheckpointError(f"checkpoint {url} is incomplete: {key} is missing") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DamagedCheckpointError(f"checkpoint {url} is damaged: {key} does not match its digest")
    try:
        return load(data)
    except SafetensorError as error:
        raise DamagedCheckpointError(f"checkpoint {url} is damaged: {key}: {error}") from error


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _newest_first(storage: Storage) -> Iterator[str]:
    """Yield the names of all folders, whole or not."""
    return map(_folder_name, sorted(_steps(storage), reverse=True))


def _remove_folder(url: str, name: str) -> None:
    """Remove the local folder of a checkpoint, with what a killed writer left in it; S3 has no folders."""
    if "://" not in url:
        shutil.rmtree(Path(url) / name, ignore_errors=True)


def _steps(storage: Storage, file: str = "") -> set[int]:
    """Return the steps of all folders, whole or not, or of those that hold a file of this name."""
    found = (re.match(rf"step-(\d{{8,}})/{re.escape(file)}", info.key) for info in storage.list())
    return {int(match[1]) for match in found if match}


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on CPU, contiguous and each with memory of its own, as the format demands."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().to("cpu").contiguous()
        address = stored.untyped_storage().data_ptr()
        if address in seen or stored.untyped_storage().nbytes() != stored.nbytes:
            stored = stored.clone(memory_format=torch.contiguous_format)
        seen.add(stored.untyped_storage().data_ptr())
        own[name] = stored
    return own


def _read_manifest(storage: Storage, folder: str, url: str) -> _Manifest:
    where = f"{url.rstrip('/')}/{folder}".rstrip("/")
    try:
        sealed = parse_json(storage.read(f"{folder}{MANIFEST}"))
    except ObjectMissingError as error:
        raise TornCheckpointError(f"{where} is no checkpoint: it has no {MANIFEST}") from error
    except ValueError as error:
        raise DamagedCheckpointError(f"checkpoint {where} is damaged: {MANIFEST} is no JSON") from error
    try:
        content = sealed["content"]
        if sealed["sha256"] != _seal(content):
            raise DamagedCheckpointError(f"checkpoint {where} is damaged: {MANIFEST} does not match its own digest")
        if content["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"checkpoint {where} has format {content['format_version']}, this program reads {FORMAT_VERSION}; "
                "use the version that wrote it"
            )
        return _Manifest.model_validate(content)
    except (KeyError, TypeError, ValidationError) as error:
        raise DamagedCheckpointError(f"checkpoint {where} is damaged: {MANIFEST} lacks an entry") from error


def _prune(storage: Storage, newest: int, keep_last: int, protected: Collection[str]) -> list[str]:
    """Remove all but the newest `keep_last` checkpoints, the protected ones, and whatever lies behind the newest.

    Returns:
        The names of the folders that were removed.
    """
    by_folder: dict[str, list[str]] = {}
    for info in storage.list():
        by_folder.setdefault(info.key.split("/")[0], []).append(info.key)
    whole = [
        step
        for step in sorted(_steps(storage), reverse=True)
        if step <= newest and f"{_folder_name(step)}/{MANIFEST}" in by_folder[_folder_name(step)]
    ]
    kept = {_folder_name(step) for step in whole[: max(keep_last, 1)]} | set(protected)
    gone = [name for name in map(_folder_name, sorted(_steps(storage))) if name not in kept]
    for name in gone:
        for key in sorted(by_folder[name], key=lambda key: not key.endswith(MANIFEST)):
            storage.delete(key)  # the manifest first: a folder half removed is no checkpoint
    return gone
