"""What is wrong with a Ray cluster, and how to mend it: one line a check, for all of its nodes.

A small job asks every node; what the answers mean is judged here. So only the dashboard has to be reachable.
"""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from hmtl_dist import doctor
from hmtl_dist.config.io import home
from hmtl_dist.doctor import TESTED, Check, Status
from hmtl_dist.errors import UserError

_MARK = "HMTL-NODES "
_PATIENCE_SECONDS = 120.0
_READ_BYTES, _READ_SECONDS = 64 << 20, 5.0
"""Reading to measure the speed ends at either."""
_SLOW_MB = 20.0
"""A worker on a CPU reads a few megabytes a second, one with a GPU tens."""
_CLOCK_WARN, _CLOCK_FAIL = 5.0, 300.0
"""Seconds; S3 refuses signatures that are 15 minutes off."""

Facts = dict[str, Any]


def examine(address: str, url: str | None) -> list[Check]:
    """Look at a cluster from outside; without an answer of its nodes what is known before is all there is.

    Args:
        address: Of the dashboard, as `launch.submit.find_address` returns it.
        url: Data set or bucket that every node should read.

    Raises:
        UserError: The cluster does not answer, or not to us.
    """
    from hmtl_dist.launch import submit

    submit.check_cluster(address)
    version = metadata.version("ray")
    checks = [Check("cluster", "ok", f"{address}, Ray {version} as here"), _token(address)]
    words = ["doctor", "--every-node", *([url] if url else [])]
    output: list[str] = []
    ended = submit.Job(address, submit.send(address, words, {})).follow(output.append)
    line = next((line for line in "".join(output).splitlines() if line.startswith(_MARK)), None)
    if line is None:
        last = next((text for text in reversed("".join(output).splitlines()) if text.strip()), "it printed nothing")
        remedy = "install this package's dependencies on the nodes: pip install -c constraints.txt ."
        return [*checks, Check("nodes", "fail", f"{ended.said}: {last.strip()[:200]}", remedy)]
    return checks + judge(cast("list[Facts]", json.loads(line.removeprefix(_MARK))))


def _token(address: str) -> Check:
    """See whether the cluster runs the code of anybody who asks."""
    from hmtl_dist.launch.submit import lets_in

    if lets_in(address, token=None):
        remedy = "start its nodes with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE"
        return Check("token", "fail", "not asked for: whoever reaches the cluster runs code on it", remedy)
    return Check("token", "ok", "asked for, and ours is taken")


# --- on the nodes ------------------------------------------------------------------------------------------------


def report(url: str | None) -> str:
    """Ask every node, as the job that `examine` sends, and return the line it waits for."""
    from hmtl_dist.launch.ray_nodes import ask_every_node

    answers = ask_every_node(partial(look, url), patience_seconds=_PATIENCE_SECONDS)
    facts: list[Facts] = [
        {"node": one.node, "gpus": one.gpus, "clock": one.clock_seconds, "error": one.error, **(one.said or {})}
        for one in answers
    ]
    return _MARK + json.dumps(facts)


def look(url: str | None) -> Facts:
    """Look at the machine that this runs on."""
    checks = [
        doctor.gpu(),
        doctor.disk("home", home(), fail_gib=1, warn_gib=10),
        doctor.disk("shared memory", Path("/dev/shm"), fail_gib=0.06, warn_gib=0.5),
        _guarded("s3", lambda: _reads(url) if url else doctor.s3(os.environ, None)),
        _guarded("mlflow", _records),
    ]
    versions = {"python": platform.python_version(), **{name: doctor.version(name) or "missing" for name in TESTED}}
    return {"versions": versions, "processor": _processor(), "checks": [asdict(check) for check in checks]}


def _guarded(name: str, check: Any) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  # one check that breaks must not hide the others
        return Check(name, "fail", f"{type(error).__name__}: {error}"[:200], "please report it")


def _reads(url: str) -> Check:
    """Read some of a data set, or what there is, and say how fast."""
    from hmtl_dist.data.storage import open_storage

    remedy = "give the nodes a key that may read it: AWS_SHARED_CREDENTIALS_FILE, or an instance role"
    try:
        storage = open_storage(url)
        objects = [info for info, _ in zip(storage.list(), range(1000), strict=False)]
        if not objects:
            return Check("s3", "warn", f"{url} can be read, but is empty", "check its prefix")
        begin, read = time.monotonic(), 0
        for info in sorted(objects, key=lambda info: -info.size):
            read += len(storage.read(info.key, start=0, length=min(info.size, _READ_BYTES - read)))
            seconds = time.monotonic() - begin
            if read >= _READ_BYTES or seconds > _READ_SECONDS:
                break
    except UserError as error:
        return Check("s3", "fail", str(error), remedy)
    speed = read / max(time.monotonic() - begin, 1e-6) / 1e6
    slow = speed < _SLOW_MB and read > 1 << 20  # of little, most of the time is the way there and back
    advice = "put the cluster into the region of the bucket" if slow else ""
    return Check("s3", "warn" if slow else "ok", f"{speed:,.0f} MB/s over {read / 1e6:,.1f} MB", advice)


def _records() -> Check:
    """See whether MLflow answers, and lets this machine in."""
    check = doctor.mlflow(os.environ, None)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if check.status == "fail" or not uri.startswith("http"):
        if not uri:
            return Check("mlflow", "warn", "MLFLOW_TRACKING_URI is not set", "set it for the nodes, or tracking.uri")
        return check
    from hmtl_dist.tracking.config import TrackingConfig
    from hmtl_dist.tracking.sink import MlflowSink

    if MlflowSink(TrackingConfig(timeout_seconds=5.0)).answers():
        return check
    remedy = "give the nodes ~/.mlflow/credentials, and the server their name for it in --allowed-hosts"
    return Check("mlflow", "fail", f"{check.detail}, but does not let us in", remedy)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


# --- what it means -----------------------------------------------------------------------------------------------


def judge(nodes: list[Facts]) -> list[Check]:
    """Turn what the nodes said into one line a check: one for all that are alike, one for each that is not."""
    silent = [Check("nodes", "fail", f"{one['node']}: {one['error']}", "look at it") for one in nodes if one["error"]]
    heard = [one for one in nodes if not one["error"]]
    head = Check("nodes", "ok" if heard else "fail", f"{len(heard)} of {len(nodes)} answered")
    if not heard:
        return [head, *silent]
    return [head, *silent, *_versions(heard), *_processors(heard), *_gpus(heard), *_clocks(heard), *_own(heard)]


def _versions(nodes: list[Facts]) -> Iterator[Check]:
    told = [(one["node"], cast("dict[str, str]", one["versions"])) for one in nodes]
    tested = doctor.tested_versions()
    usual = {name: Counter(versions[name] for _, versions in told).most_common(1)[0][0] for name in told[0][1]}
    wanted = usual | {name: tested[name] for name in TESTED if name in tested and name in usual}
    different = False
    for node, versions in told:
        others = [f"{name} {value} (not {wanted[name]})" for name, value in versions.items() if value != wanted[name]]
        if others:
            different = True
            alike = all(versions == other for _, other in told)
            status: Status = "warn" if alike else "fail"
            remedy = "give all nodes one image, or: pip install -c constraints.txt ."
            yield Check("versions", status, f"{node}: {', '.join(others)}", remedy)
    if not different:
        yield Check("versions", "ok", ", ".join(f"{name} {value}" for name, value in usual.items()))


def _processors(nodes: list[Facts]) -> Iterator[Check]:
    kinds = Counter(str(one["processor"]) for one in nodes)
    text = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    if len(kinds) == 1:
        yield Check("processors", "ok", text)
    else:
        yield Check("processors", "warn", text, "runs repeat to the bit only on machines of one type")


def _gpus(nodes: list[Facts]) -> Iterator[Check]:
    counted = sum(float(one["gpus"]) for one in nodes)
    wrong = False
    for one in nodes:
        check = next(check for check in one["checks"] if check["name"] == "gpu")
        seen = 0 if check["detail"].startswith("none") else check["detail"].count(",") + 1
        if check["status"] != "ok":
            wrong = True
            yield Check("gpu", check["status"], f"{one['node']}: {check['detail']}", check["remedy"])
        elif seen != one["gpus"]:
            wrong = True
            detail = f"{one['node']}: Ray counts {one['gpus']:g} GPUs, the driver {seen}"
            yield Check("gpu", "fail", detail, "start the node with --num-gpus, or its container with the GPUs")
    if not wrong:
        yield Check("gpu", "ok", f"{counted:g} in all; training runs on the " + ("GPU" if counted else "CPU"))


def _clocks(nodes: list[Facts]) -> Iterator[Check]:
    worst = max(abs(float(one["clock"] or 0)) for one in nodes)
    if worst <= _CLOCK_WARN:
        yield Check("clocks", "ok", f"at most {worst:.2f} s apart from the head's")
        return
    for one in nodes:
        ahead = float(one["clock"] or 0)
        if abs(ahead) > _CLOCK_WARN:
            status: Status = "fail" if abs(ahead) > _CLOCK_FAIL else "warn"
            direction = "ahead of" if ahead > 0 else "behind"
            yield Check(
                "clocks", status, f"{one['node']}: {abs(ahead):.0f} s {direction} the head's", "run a time service"
            )


def _own(nodes: list[Facts]) -> Iterator[Check]:
    """Tell the checks that each node has made of itself."""
    for name in ("home", "shared memory", "s3", "mlflow"):
        found: list[tuple[str, Mapping[str, str]]] = [
            (one["node"], check) for one in nodes for check in one["checks"] if check["name"] == name
        ]
        if all(check["status"] == "ok" for _, check in found):
            details = list(dict.fromkeys(check["detail"] for _, check in found))
            yield Check(name, "ok", f"all {len(found)}: {'; '.join(details)}")
            continue
        for node, check in found:
            if check["status"] != "ok":
                yield Check(name, cast("Status", check["status"]), f"{node}: {check['detail']}", check["remedy"])
