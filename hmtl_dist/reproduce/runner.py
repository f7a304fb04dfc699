"""Runs the jobs of a suite, each in a process of its own, so many at a time.

every job's configuration is checked before the first one starts
a finished one is skipped; the same name makes a begun one go on
a failing one is recorded, and the others go on
Ctrl-C or SIGTERM: every run is asked to stop in order, and saves
"""

import ctypes
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hmtl_dist.config.base import may_change
from hmtl_dist.config.dialect import one_line
from hmtl_dist.config.io import flatten, load_tree
from hmtl_dist.errors import UserError
from hmtl_dist.launch.signals import StopRequest
from hmtl_dist.reproduce.results import Result, Store, changed
from hmtl_dist.reproduce.suite import Job
from hmtl_dist.run_config import RunConfig

POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Planned:
    """A job whose configuration is known to be sound."""

    job: Job
    settings: dict[str, str]
    """What decides its outcome."""
    batch_size: int


@dataclass
class Running:
    """A job's process."""

    planned: Planned
    process: subprocess.Popen[bytes]
    output: Path
    before: float
    """Seconds that its earlier parts took."""
    started: float = field(default_factory=time.monotonic)


Listener = Callable[[Planned, Result, bool], None]
"""Told of every job that ended or was skipped, and whether it was skipped."""


def check(jobs: Sequence[Job]) -> list[Planned]:
    """Resolve every job's configuration.

    Raises:
        UserError: One of them is not sound.
    """
    planned: list[Planned] = []
    for job in jobs:
        if job.probe is not None:
            settings = {key: str(value) for key, value in job.probe.model_dump(mode="json").items()}
            planned.append(Planned(job, settings | {"overrides": " ".join(job.overrides), "after": str(job.after)}, 0))
            continue
        try:
            config = load_tree(RunConfig, job.recipe, job.overrides)
        except UserError as error:
            raise UserError(f"row {job.row}: {error}") from error
        settings = {key: value for key, value in flatten(config).items() if not may_change(RunConfig, key)}
        planned.append(Planned(job, settings | {"after": str(job.after)}, config.data.batch_size))
    return planned


def run_jobs(
    planned: Sequence[Planned],
    store: Store,
    commands: Callable[[Job, Mapping[str, Result]], list[str]],
    *,
    parallel: int,
    lock: int,
    listen: Listener,
) -> tuple[dict[str, Result], bool]:
    """Run what is not finished yet.

    Args:
        planned: The jobs, what others begin from before them.
        store: Where results are kept.
        commands: The command of a job, given the results by run name.
        parallel: Processes at a time.
        lock: Descriptor of the suite's lock, which every process keeps open.
        listen: Told of every job that ended or was skipped.

    Returns:
        The results by run name, and whether somebody asked to stop.

    Raises:
        UserError: A finished run was done with other settings.
    """
    results: dict[str, Result] = {}
    waiting: list[Planned] = []
    for plan in planned:
        known = store.read(plan.job.run)
        if known is not None and known.status == "FINISHED":
            if difference := changed(known.settings, plan.settings):
                raise UserError(f"{plan.job.run} was done with {difference}; give this suite another --name")
            results[plan.job.run] = known
            listen(plan, known, True)
        else:
            waiting.append(plan)
    running: list[Running] = []
    told = False
    with StopRequest() as stop:
        try:
            while running or (waiting and not stop.requested):
                if stop.requested and not told:
                    told = True
                    for one in running:
                        one.process.send_signal(signal.SIGINT)
                for plan in _ready(waiting, results) if not stop.requested else ():
                    if blocked := _blocked(plan, results):
                        waiting.remove(plan)
                        results[plan.job.run] = blocked
                        listen(plan, blocked, False)
                    elif len(running) < parallel:
                        waiting.remove(plan)
                        running.append(_start(plan, store, commands(plan.job, results), lock))
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    result = _ended(one)
                    store.write(result)
                    results[result.run] = result
                    listen(one.planned, result, False)
                time.sleep(POLL_SECONDS)
        finally:
            for one in running:  # only after a second Ctrl-C, or a fault here
                one.process.kill()
                one.process.wait()
        return results, stop.requested


def train_command(job: Job, results: Mapping[str, Result], tags: Mapping[str, str]) -> list[str]:
    """Return the command that trains a job; it begins from the run before it, if there is one."""
    overrides = list(job.overrides)
    if job.after is not None:
        overrides.append("model.init_from=" + one_line(results[job.after].folder))
    if tags:
        noted = dict(tags) | {"row": job.row, "seed": str(job.seed)}
        overrides.append("tracking.tags=" + one_line(noted))
    return [sys.executable, "-m", "hmtl_dist", "train", job.recipe, *overrides, "--json"]


def probe_command(job: Job, results: Mapping[str, Result], urls: Mapping[str, str]) -> list[str]:
    """Return the command that learns a head on the frozen features of the run before a job."""
    probe = job.probe
    if probe is None or job.after is None:
        raise ValueError(f"{job.run} is no probe of a run")
    options = {
        "data": urls[probe.data],
        "label": probe.label,
        "head": probe.head,
        "folds": probe.folds,
        "seed": job.seed,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "hmtl_dist", "probe", results[job.after].folder, *words, "--json"]


def _ready(waiting: Sequence[Planned], results: Mapping[str, Result]) -> list[Planned]:
    return [plan for plan in waiting if plan.job.after is None or plan.job.after in results]


def _blocked(plan: Planned, results: Mapping[str, Result]) -> Result | None:
    """Return the failure of a job whose predecessor did not finish."""
    job = plan.job
    if job.after is None or results[job.after].status == "FINISHED":
        return None
    error = f"{job.after}, which it begins from, did not finish"
    return Result(run=job.run, row=job.row, seed=job.seed, status="FAILED", settings=plan.settings, error=error)


def _start(plan: Planned, store: Store, command: list[str], lock: int) -> Running:
    known = store.read(plan.job.run)
    output = store.log(plan.job.run)
    with output.open("wb") as file, output.with_suffix(".err").open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=errors,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which passes it on once
            pass_fds=(lock,),
            preexec_fn=_stop_with_parent,  # noqa: PLW1509  # this process has no other threads
        )
    return Running(plan, process, output, known.seconds if known else 0.0)


def _stop_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent dies: nobody would collect the run's result."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _ended(one: Running) -> Result:
    """Read how a process ended: its last line is JSON, or its error output has the reason in its first one."""
    job = one.planned.job
    seconds = one.before + time.monotonic() - one.started
    answer = _answer(one.output)
    status = str(answer.get("status", "FAILED"))
    if one.process.returncode not in (0, 130) or status not in ("FINISHED", "STOPPED"):
        status, answer = "FAILED", {}
    return Result.model_validate(
        {
            "run": job.run,
            "row": job.row,
            "seed": job.seed,
            "status": status,
            "settings": one.planned.settings,
            "metrics": answer.get("metrics", {}),
            "images": int(answer.get("global_step", 0)) * one.planned.batch_size,
            "seconds": seconds,
            "samples_per_second": answer.get("samples_per_second", 0.0),
            "cost": answer.get("cost", {}).get("run", 0.0),
            "folder": answer.get("folder", ""),
            "run_id": answer.get("run_id"),
            "error": "" if status != "FAILED" else _reason(one),
        }
    )


def _answer(output: Path) -> dict[str, Any]:
    lines = output.read_text(errors="replace", encoding="utf-8").strip().splitlines()
    try:
        answer: object = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}


def _reason(one: Running) -> str:
    errors = one.output.with_suffix(".err")
    lines = [line.strip() for line in errors.read_text(errors="replace", encoding="utf-8").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = told[0] if told else (lines[-1] if lines else "no word of why")
    code = one.process.returncode
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{reason} ({how}; {errors})"
