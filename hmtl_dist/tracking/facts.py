"""Facts about the code and the machine that belong into the record of a run."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("hmtl-dist", "torch", "torchvision", "timm", "deepspeed", "ray", "mlflow", "webdataset", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python, the system and the packages that decide a run's figures, as `version.NAME`."""
    found = {"version.python": platform.python_version(), "version.system": platform.platform()}
    for package in PACKAGES:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code_tags(folder: Path | None = None) -> dict[str, str]:
    """Return the commit of the checkout that the package lies in and whether it was changed since, as MLflow tags.

    Empty when the package is installed rather than run from a checkout, or there is no git.
    """
    folder = folder or Path(__file__).parents[2]
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return {}
    try:
        commit = _git(git, folder, "rev-parse", "HEAD")
        dirty = bool(_git(git, folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}


def _git(git: str, folder: Path, *args: str) -> str:
    command = [git, "-C", str(folder), *args]
    return subprocess.run(
        command, check=True, capture_output=True, timeout=10, encoding="utf-8", errors="replace"
    ).stdout.strip()
