"""What is wrong with a machine and its servers, and how to mend it: one line a check.

Versions are read from the packages' metadata: nothing heavy is imported, so this works where an import would fail.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from hmtl_dist.config.io import home
from hmtl_dist.errors import UserError
from hmtl_dist.services import ServicesInfo, running

Status = Literal["ok", "warn", "fail"]

TESTED = ("torch", "torchvision", "ray", "deepspeed", "mlflow", "webdataset", "timm")
"""Packages whose behaviour the design rests on: another version than the tested one is worth a warning."""
_GIB = 1 << 30
_TIMEOUT_SECONDS = 3.0
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine(url: str | None = None) -> list[Check]:
    """Look at everything; a check that breaks is itself a failed check.

    Args:
        url: Data set or bucket (`s3://…` or a folder) that should be readable; without it S3 is only reached for.
    """
    try:
        services = running(home())
    except (UserError, OSError) as error:
        services = None
        broken = [Check("services", "fail", str(error), "run: hmtl-dist services stop; hmtl-dist services start")]
    else:
        broken = []
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("compiler", _compiler),
        ("gpu", gpu),
        ("home", lambda: disk("home", home(), fail_gib=1, warn_gib=10)),
        ("shared memory", lambda: disk("shared memory", Path("/dev/shm"), fail_gib=0.06, warn_gib=0.5)),
        ("s3", lambda: s3(os.environ, services, url)),
        ("mlflow", lambda: mlflow(os.environ, services)),
        ("ray", lambda: ray(os.environ)),
    ]
    return broken + [_guarded(name, check) for name, check in checks]


def as_text(checks: list[Check]) -> str:
    """Return one line a check."""
    width = max(len(check.name) for check in checks)
    return "\n".join(
        f"{check.status:<4}  {check.name:<{width}}  {check.detail}" + (f"; {check.remedy}" if check.remedy else "")
        for check in checks
    )


def as_json(checks: list[Check]) -> str:
    """Return the checks as a JSON list."""
    return json.dumps([asdict(check) for check in checks], indent=2)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  # a doctor that falls ill over one finding is no help with the others
        return Check(name, "fail", f"the check broke: {type(error).__name__}: {error}", "please report it")


# --- the machine -------------------------------------------------------------------------------------------------


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Check("python", "ok", version)
    return Check("python", "fail", version, "use Python 3.11 or 3.12")


def tested_versions() -> dict[str, str]:
    """Return the exact versions of the tested set, by package; empty where constraints.txt did not travel along."""
    inside = _PACKAGE / "constraints.txt"
    path = inside if inside.is_file() else _PACKAGE.parent / "constraints.txt"
    if not path.is_file():
        return {}
    pins = (line.split("#")[0].strip().split("==") for line in path.read_text(encoding="utf-8").splitlines())
    return {pin[0]: pin[1] for pin in pins if len(pin) == 2}


def _packages() -> Check:
    installed = {name: version(name) for name in _required()}
    if missing := [name for name, version in installed.items() if version is None]:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", "run: pip install -e '.[local]'")
    tested = tested_versions()
    others = [
        f"{name} {version} (tested {tested[name]})"
        for name, version in installed.items()
        if name in TESTED and name in tested and version != tested[name]
    ]
    if others:
        return Check("packages", "warn", ", ".join(others), "run: pip install -c constraints.txt -e '.[local]'")
    return Check("packages", "ok", ", ".join(f"{name} {installed[name]}" for name in TESTED))


def _required() -> list[str]:
    """Return the names of the packages this one cannot do without."""
    try:
        requirements = metadata.requires("hmtl-dist") or []
    except metadata.PackageNotFoundError:
        return list(TESTED)
    names = [re.match(r"[\w.-]+", requirement) for requirement in requirements if "extra ==" not in requirement]
    return [*TESTED, *(name[0] for name in names if name and name[0] not in TESTED)]


def version(name: str) -> str | None:
    """Return the version of an installed package, without what marks its build."""
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> Check:
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (path := shutil.which(name)):
            return Check("compiler", "ok", path)
    return Check("compiler", "warn", "no C++ compiler, which compiled optimizers and torch.compile need", "install g++")


def gpu() -> Check:
    """Look at the GPUs that the driver knows, and whether torch can use them."""
    program = shutil.which("nvidia-smi")
    names: list[str] = []
    if program is not None:
        query = [program, "--query-gpu=name", "--format=csv,noheader"]
        try:
            done = subprocess.run(
                query, capture_output=True, timeout=20, check=False, encoding="utf-8", errors="replace"
            )
        except subprocess.TimeoutExpired:
            return Check("gpu", "fail", "nvidia-smi does not answer", "restart the driver or the machine")
        if done.returncode != 0:
            reason = " ".join((done.stdout + done.stderr).split())
            return Check("gpu", "fail", f"nvidia-smi: {reason}", "mend the driver")
        names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if not names:
        return Check("gpu", "ok", "none; training runs on the CPU")
    if metadata.version("torch").endswith("+cpu"):
        return Check("gpu", "warn", f"{', '.join(names)}, but torch is a CPU build", "install torch without +cpu")
    return Check("gpu", "ok", ", ".join(names))


def disk(name: str, folder: Path, *, fail_gib: float, warn_gib: float) -> Check:
    """Look at the room of a folder, or of what will hold it, and whether it can be written to."""
    remedy = "free some" + (" or set HMTL_HOME to another folder" if name == "home" else "; in a container: --shm-size")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        return Check(name, "fail", f"{existing} cannot be written to", remedy.replace("free some", "change its rights"))
    free = shutil.disk_usage(existing).free / _GIB
    status: Status = "fail" if free < fail_gib else "warn" if free < warn_gib else "ok"
    return Check(name, status, f"{free:.1f} GiB free in {folder}", "" if status == "ok" else remedy)


# --- the servers -------------------------------------------------------------------------------------------------


def s3(environment: Mapping[str, str], services: ServicesInfo | None, url: str | None = None) -> Check:
    """Look whether object storage answers, and lets the credentials of the environment in where there is a bucket."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if url is None and services is not None and endpoint in (None, "", services.endpoint):
        return _local_s3(services, signed_by_environment=bool(endpoint))
    if url is not None:
        return _readable(url)
    if endpoint:
        try:
            _get(endpoint)
        except (OSError, ValueError) as error:
            remedy = "check AWS_ENDPOINT_URL, or start a local one: hmtl-dist services start"
            return Check("s3", "fail", f"{_bare(endpoint)}: {_reason(error)}", remedy)
        if not _has_credentials(environment):
            return Check(
                "s3", "warn", f"{_bare(endpoint)} answers; no credentials", "set AWS_ACCESS_KEY_ID and …SECRET…"
            )
        return Check("s3", "ok", f"{_bare(endpoint)} answers; to try a bucket: hmtl-dist doctor s3://BUCKET")
    if _has_credentials(environment):
        return Check("s3", "ok", "credentials for AWS; to try a bucket: hmtl-dist doctor s3://BUCKET")
    return Check("s3", "ok", "none set up; for a local one: hmtl-dist services start")


def _local_s3(services: ServicesInfo, *, signed_by_environment: bool) -> Check:
    from hmtl_dist.data.storage import S3Access, S3Storage

    access = S3Access(services.endpoint, services.access_key_id, services.secret_access_key)
    storage = S3Storage(services.bucket_url, None if signed_by_environment else access, _TIMEOUT_SECONDS)
    try:
        storage.exists("doctor")
    except UserError as error:
        return Check("s3", "fail", str(error), 'run: eval "$(hmtl-dist services env)"')
    return Check("s3", "ok", f"{services.endpoint} (local)")


def _readable(url: str) -> Check:
    from hmtl_dist.data.storage import S3Storage, open_storage

    if "://" not in url and not Path(url).is_dir():
        return Check("s3", "fail", f"{url}: no such folder", "check the path, or give s3://BUCKET/PREFIX")
    try:
        storage = S3Storage(url, None, _TIMEOUT_SECONDS) if url.startswith("s3://") else open_storage(url)
        found = next(iter(storage.list()), None)
    except UserError as error:
        return Check("s3", "fail", str(error))
    if found is None:
        return Check("s3", "warn", f"{storage.url} can be read, but is empty", "check its prefix")
    return Check("s3", "ok", f"{storage.url} can be read")


def mlflow(environment: Mapping[str, str], services: ServicesInfo | None) -> Check:
    """Look whether the tracking server answers, or the database of runs can be written."""
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if not uri and services is not None:
        uri = services.tracking_uri
    if not uri:
        return Check("mlflow", "ok", f"no server set; runs go to {home() / 'mlflow.db'}")
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            _get(uri.rstrip("/") + "/health")
        except (OSError, ValueError) as error:
            remedy = "check MLFLOW_TRACKING_URI, or start a local one: hmtl-dist services start"
            return Check("mlflow", "fail", f"{_bare(uri)}: {_reason(error)}", remedy)
        return Check("mlflow", "ok", f"{_bare(uri)} answers")
    if parts.scheme == "sqlite":
        folder = Path(parts.path.removeprefix("/")).parent
        check = disk("mlflow", folder, fail_gib=0.1, warn_gib=1)
        return Check("mlflow", check.status, f"{uri} ({check.detail})", check.remedy)
    if parts.scheme in ("", "file"):
        return Check(
            "mlflow", "fail", f"{uri}: folders are no longer a store of MLflow", "use sqlite:////path/mlflow.db"
        )
    return Check("mlflow", "ok", f"{_bare(uri)} (not tried)")


def ray(environment: Mapping[str, str]) -> Check:
    """Look whether Ray is installed, and whether the cluster that would be joined asks for a token."""
    installed = version("ray")
    if installed is None:
        return Check("ray", "fail", "not installed", "run: pip install -e .")
    address = environment.get("RAY_ADDRESS")
    if not address:
        return Check("ray", "ok", f"{installed}; runs start a Ray of their own")
    mode = environment.get("RAY_AUTH_MODE", "")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(os.path.expanduser(named or "~/.ray/auth_token"))  # noqa: PTH111  # also without a home folder
    has_token = bool(environment.get("RAY_AUTH_TOKEN")) or file.is_file()
    if mode == "token" and not has_token:
        remedy = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        return Check("ray", "fail", f"{installed}; RAY_AUTH_MODE=token, but no token in {file}", remedy)
    if mode not in ("token", "disabled"):
        remedy = "set RAY_AUTH_MODE=token (or disabled, on a network you trust)"
        return Check("ray", "warn", f"{installed}; cluster {address}, RAY_AUTH_MODE is not set", remedy)
    return Check("ray", "ok", f"{installed}; cluster {address}, RAY_AUTH_MODE={mode}")


def _has_credentials(environment: Mapping[str, str]) -> bool:
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        return True
    if any(environment.get(name) for name in ("AWS_PROFILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_FULL_URI")):
        return True
    return Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser().is_file()


def _get(url: str) -> None:
    """Ask a server for anything: an answer below 500 counts, whatever it says."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("not an http:// or https:// URL")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500:
                raise


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause)


def _bare(url: str) -> str:
    """Return a URL without the name and password in it."""
    return re.sub(r"//[^/@]*@", "//", url)
