"""What every benchmark says of the machine and of its ratios."""

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

import psutil

PACKAGES = ("torch", "timm", "ray", "deepspeed", "webdataset", "mlflow", "mosaicml-streaming", "litdata")


def describe() -> str:
    """Return the processor, cores, memory, load and versions in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    python = platform.python_version()
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, load {load:.1f}; Python {python}, {packages()}"


def packages() -> str:
    """Return the versions of what is compared, as far as it is installed."""
    known = {one.name: one.version for one in distributions(path=[*sys.path, "build/peers"])}
    return ", ".join(f"{package} {known[package]}" for package in PACKAGES if package in known)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the least, the median and the largest of the figures of paired repeats."""
    return ", ".join(f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
