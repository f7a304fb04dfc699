"""Run the benchmarks that the README quotes, one after another; their figures go to one JSON file.

    make bench
    python -m benchmarks --only peers batched

Each module is a command of its own too, with settings of its own (`python -m benchmarks.peers --help`). What it prints
is shown as it comes; its last line of JSON is kept with a description of the machine. A benchmark that fails does not
keep the others from running, and makes the exit code 1.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import describe

PEERS = Path("build/peers")
COMMANDS = {
    "peers": ("peers", "--peers", str(PEERS)),
    "peers_decoding": ("peers", "--peers", str(PEERS), "--decoder", "torchvision"),
    "trainers": ("trainers",),
    "whole_run": ("whole_run",),
    "whole_run_alone": ("whole_run", "--num-workers", "1"),
    "engine": ("engine",),
    "recipe_cost": (
        "recipe_cost",
        "affectnet_sl_b0",
        "affectnet_puzzling_b0",
        "affectnet_puzzling_b0 tasks.puzzling.supervise=clean",
        "affectnet_puzzling_b0 tasks.puzzling.supervise=both",
        "affectnet_inpainting_b0",
        *("--image-size", "128", "--steps", "5"),
    ),
    "batched": ("batched",),
    "index_size": ("index_size",),
    "start_up": ("start_up",),
    "gpu": ("gpu",),
}
"""Name, module and arguments; the longest first. `peers` takes about 25 minutes each time."""


def main() -> int:
    """Run the chosen ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    machine = describe()
    print(machine)
    figures: dict[str, object] = {}
    failed: list[str] = []
    for name in options.only:
        if COMMANDS[name][0] == "peers" and not PEERS.exists():
            print(f"\n{name}: skipped; pip install --target {PEERS} --no-deps -r benchmarks/peers.txt")
            continue
        print(f"\n== {name}", flush=True)
        begun = time.monotonic()
        last = run(COMMANDS[name])
        if last is None:
            failed.append(name)
        else:
            figures[name] = last
        print(f"== {name}: {time.monotonic() - begun:.0f} s", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1))
    print(f"\nfigures in {options.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run(command: tuple[str, ...]) -> object:
    """Run a benchmark, showing what it prints but the last line, which is JSON; None where it fails."""
    module, *arguments = command
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found = ""
    for line in process.stdout or ():
        if line.startswith("{"):
            found = line
        else:
            print(line, end="", flush=True)
    return None if process.wait() or not found else json.loads(found)


if __name__ == "__main__":
    sys.exit(main())
