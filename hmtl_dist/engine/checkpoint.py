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
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file  # pyright: ignore[reportUnknownVariableType]  # a bare PathLike
from torch import Tensor

from hmtl_dist.config.base import Section
from hmtl_dist.data.storage import ObjectMissingError, Storage, open_storage
from hmtl_dist.engine.base import EngineState
from hmtl_dist.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ENGINE_PARTS = ("model", "optimizer", "ema")
READ_BYTES = 1 << 20

logger = logging.getLogger(__name__)


class DamagedCheckpointError(UserError):
    """A checkpoint that is not whole, or whose bytes are not those that were written."""


class _File(Section):
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: str


class _Manifest(Section):
    format_version: int
    counters: dict[str, int]
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

    Raises:
        UserError: The storage refuses, or the temporary folder is full.
        ValueError: A part's name is taken.
    """
    if taken := set(extras) & set(ENGINE_PARTS):
        raise ValueError(f"checkpoint parts {sorted(taken)} belong to the engine")
    storage, name = open_storage(url), _folder_name(step)
    parts = {"model": state.model, "optimizer": state.optimizer, "ema": state.ema, **extras}
    storage.delete(f"{name}/{MANIFEST}")  # while files of an older checkpoint of this step are replaced, it is none
    files: dict[str, _File] = {}
    with tempfile.TemporaryDirectory(prefix="hmtl-checkpoint-") as scratch:
        for part, tensors in parts.items():
            path = Path(scratch) / f"{part}.safetensors"
            try:
                save_file(_storable(tensors), path)
            except SafetensorError as error:  # how it reports a full disk
                raise UserError(
                    f"cannot write {path} ({error}): free some space there, or set TMPDIR to a folder with room"
                ) from error
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[part] = _File(num_bytes=path.stat().st_size, sha256=digest)
            storage.upload(f"{name}/{path.name}", path)
            path.unlink()
    content = _Manifest(
        format_version=FORMAT_VERSION, counters=state.counters, files=files, entries=dict(manifest)
    ).model_dump(mode="json")
    sealed = {"content": content, "sha256": _seal(content)}
    storage.write(f"{name}/{MANIFEST}", json.dumps(sealed, indent=2, sort_keys=True).encode())
    if keep_last is not None:
        _prune(storage, step, keep_last, {checkpoint.rstrip("/").rsplit("/", 1)[-1] for checkpoint in protected})
    return f"{url.rstrip('/')}/{name}"


def latest_checkpoint(url: str) -> str | None:
    """Return the URL of the newest checkpoint that is whole, None if there is none.

    Every byte is compared with its digest; a torn or damaged checkpoint is passed over with a warning in the log.

    Args:
        url: Folder or `s3://` URL of the run's checkpoints.

    Raises:
        UserError: The storage refuses, or the newest checkpoint is of an unknown format.
    """
    storage = open_storage(url)
    for step in sorted(_steps(storage), reverse=True):
        name = _folder_name(step)
        try:
            for part, file in _read_manifest(storage, f"{name}/", url).files.items():
                _verify(storage, f"{name}/{part}.safetensors", file)
        except (DamagedCheckpointError, ObjectMissingError) as error:
            logger.warning("passing over checkpoint %s: %s", name, error)
            continue
        return f"{url.rstrip('/')}/{name}"
    return None


def newest_manifest(url: str) -> dict[str, Any] | None:
    """Return the caller's own entries of the newest readable manifest, None if there is none; nothing else is read.

    Args:
        url: Folder or `s3://` URL of the run's checkpoints.

    Raises:
        UserError: The storage refuses, or the newest checkpoint is of an unknown format.
    """
    storage = open_storage(url)
    for step in sorted(_steps(storage), reverse=True):
        try:
            return _read_manifest(storage, f"{_folder_name(step)}/", url).entries
        except DamagedCheckpointError:
            continue
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
        key = f"{part}.safetensors"
        try:
            data = storage.read(key)
        except ObjectMissingError as error:
            raise DamagedCheckpointError(f"checkpoint {url} is incomplete: {key} is missing") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise DamagedCheckpointError(f"checkpoint {url} is damaged: {key} does not match its digest")
        try:
            parts[part] = load(data)
        except SafetensorError as error:
            raise DamagedCheckpointError(f"checkpoint {url} is damaged: {key}: {error}") from error
    state = EngineState(**{part: parts.pop(part) for part in ENGINE_PARTS}, counters=manifest.counters)
    return state, parts, manifest.entries


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(storage: Storage) -> set[int]:
    """Return the steps of all folders, whole or not."""
    found = (re.match(r"step-(\d{8,})/", info.key) for info in storage.list())
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
        sealed = json.loads(storage.read(f"{folder}{MANIFEST}"))
    except ObjectMissingError as error:
        raise DamagedCheckpointError(f"{where} is no checkpoint: it has no {MANIFEST}") from error
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


def _verify(storage: Storage, key: str, file: _File) -> None:
    if storage.stat(key).size != file.num_bytes:
        raise DamagedCheckpointError(f"{key} has not the size its manifest says")
    digest = hashlib.sha256()
    with storage.open_read(key) as stream:
        while chunk := stream.read(READ_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        raise DamagedCheckpointError(f"{key} does not match its digest")


def _prune(storage: Storage, newest: int, keep_last: int, protected: Collection[str]) -> None:
    """Remove all but the newest `keep_last` checkpoints, the protected ones, and whatever lies behind the newest."""
    by_folder: dict[str, list[str]] = {}
    for info in storage.list():
        by_folder.setdefault(info.key.split("/")[0], []).append(info.key)
    whole = [
        step
        for step in sorted(_steps(storage), reverse=True)
        if step <= newest and f"{_folder_name(step)}/{MANIFEST}" in by_folder[_folder_name(step)]
    ]
    kept = {_folder_name(step) for step in whole[: max(keep_last, 1)]} | set(protected)
    for step in _steps(storage):
        name = _folder_name(step)
        if name not in kept:
            for key in sorted(by_folder[name], key=lambda key: not key.endswith(MANIFEST)):
                storage.delete(key)  # the manifest first: a folder half removed is no checkpoint
