"""Goodput of a training that is killed again and again: useful steps' time over wall time.

A step is useful if it stands in the record at the end; one that was taken again after a kill counts once. The first
start, all restarts and their imports, evaluations and checkpoints count as wall time only.

    python -m benchmarks.goodput --minutes 30 --kill-every 180
"""

import argparse
import json
import statistics
from typing import cast

from benchmarks.endurance import Endured, Recipe, Torment, endure
from tests.faults.chaos import Victim


def report(found: Endured) -> None:
    """Print the goodput and where the rest of the time went."""
    print(
        f"{found.steps} steps of {found.step_seconds:.2f} s in {found.wall_seconds / 60:.1f} min, "
        f"{len(found.kills)} kills, {found.starts} starts of the command"
    )
    print(f"goodput {found.goodput:.1%}")
    by_victim: dict[str, list[float]] = {}
    for victim, seconds, _ in found.kills:
        by_victim.setdefault(victim, []).append(seconds)
    for victim, seconds in sorted(by_victim.items()):
        print(
            f"  {victim}: {len(seconds)} kills, to the next new step {min(seconds):.0f} to {max(seconds):.0f} s, "
            f"median {statistics.median(seconds):.0f}"
        )
    print(f"  steps taken again: {sum(again for _, _, again in found.kills)}")
    lost = sum(seconds for _, seconds, _ in found.kills)
    rest = found.wall_seconds - found.useful_seconds - lost
    print(f"  after kills {lost / found.wall_seconds:.1%} of the time, start, evaluation and the like {rest:.0f} s")


def parser(description: str) -> argparse.ArgumentParser:
    """Make a parser with what all endurance runs take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=30.0)
    made.add_argument("--kill-every", type=float, default=180.0, help="seconds")
    made.add_argument("--victims", default="worker,workers,driver", help="of worker, workers, driver, s3, mlflow")
    made.add_argument("--fault-rate", type=float, default=0.0, help="share of the requests to S3 that are broken")
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--image-size", type=int, default=64)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--checkpoint-every-steps", type=int, default=20)
    made.add_argument("--seed", type=int, default=0)
    return made


def run(arguments: argparse.Namespace) -> Endured:
    """Run what a parsed command line asks for."""
    victims = cast("list[Victim]", arguments.victims.split(","))
    torment = Torment(arguments.minutes, arguments.kill_every, victims, arguments.fault_rate, arguments.seed)
    recipe = Recipe(arguments.backbone, arguments.image_size, arguments.batch_size, arguments.checkpoint_every_steps)
    return endure(torment, recipe)


def main() -> None:
    """Run the benchmark and print figures and one line of JSON."""
    arguments = parser(__doc__ or "").parse_args()
    found = run(arguments)
    report(found)
    print(json.dumps({"arguments": vars(arguments), "goodput": found.goodput, "kills": found.kills}))


if __name__ == "__main__":
    main()
