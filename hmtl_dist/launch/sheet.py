"""Keeping a data set's contact sheet: as a file, and in MLflow beside the runs that were trained on it."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hmtl_dist.config.explain import choices
from hmtl_dist.data.dataset.schema import IndexHeader
from hmtl_dist.data.sheet import contact_sheet
from hmtl_dist.data.storage.local import replace_file
from hmtl_dist.errors import UserError
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.config import TrackingConfig, resolve
from hmtl_dist.tracking.redact import redact
from hmtl_dist.tracking.runs import record_file, run_url


def keep_sheet(
    url: str,
    headers: Sequence[IndexHeader],
    split: str,
    *,
    samples: int,
    seed: int,
    file: Path | None,
    to_mlflow: bool,
) -> str:
    """Draw a contact sheet and keep it.

    Args:
        url: The data set.
        headers: Of its splits.
        split: Which one to draw.
        samples: Most pictures.
        seed: Decides which.
        file: PNG file to write, None for none.
        to_mlflow: Keep it in MLflow too, as a run of its own.

    Returns:
        Where it can be looked at.

    Raises:
        UserError: There is no such split, the file cannot be written, or MLflow does not take it.
    """
    header = next((one for one in headers if one.split == split), None)
    if header is None:
        raise UserError(f"--split: {url} has no split '{split}'; {choices(split, [one.split for one in headers])}")
    if file is not None and file.suffix.lower() != ".png":
        raise UserError(f"--sheet: {file} is no PNG file; name one, such as sheet.png")
    picture = Image.fromarray(contact_sheet(url, split, samples=samples, seed=seed))
    if file is not None:
        replace_file(file, lambda out: picture.save(out, "PNG"))
    if not to_mlflow:
        return str(file)
    recording = resolve(TrackingConfig(required=True))
    params = {"data.url": redact(url), "data.split": split, "data.digest": header.digest, "seed": str(seed)}
    with temporary_folder("sheet") as folder:
        drawn = folder / f"{split}.png"
        picture.save(drawn)
        run_id = record_file(recording, drawn, name=f"{header.dataset}-{split}", params=params, tags={"kind": "data"})
    return f"{file or ''} {run_url(recording, run_id)}".strip()
