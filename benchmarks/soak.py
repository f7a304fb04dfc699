"""A long run through kills and faults: does memory grow, and is anything left at the end?

Every ten seconds the proportional set size and open handles of every process are taken. For processes that live long
enough the slope of their memory is told; at the end, whatever is left of processes, shared memory and temporary files.

    python -m benchmarks.soak --minutes 120 --kill-every 300 --fault-rate 0.05 --victims worker
"""

import json
from collections.abc import Sequence

from benchmarks.endurance import Endured, Sample, slope_per_hour
from benchmarks.goodput import parser, report, run

MIB = 1 << 20


def report_leaks(found: Endured, warm_up: float, least: float) -> None:
    """Print slopes and what is left.

    Args:
        found: What was seen.
        warm_up: Seconds of a process's life that are left out.
        least: Seconds that a process must have been watched after them.
    """
    print(f"requests to S3: {found.requests}, of which {found.hits} met a fault")
    print(f"{'process':>22} {'watched':>9} {'PSS first':>10} {'last':>8} {'slope':>14} {'handles':>12}")
    for name, samples in sorted(found.processes.items()):
        kept = [sample for sample in samples if sample.seconds >= samples[0].seconds + warm_up]
        if len(kept) > 2 and kept[-1].seconds - kept[0].seconds >= least:
            print(f"{name:>22} {_line(kept)}")
    for kind, names in found.left.items():
        print(f"left of {kind}: {', '.join(names) or 'nothing'}")


def _line(samples: Sequence[Sample]) -> str:
    first, last = samples[0], samples[-1]
    return (
        f"{(last.seconds - first.seconds) / 60:5.1f} min {first.pss / MIB:6.0f} MiB {last.pss / MIB:4.0f} MiB "
        f"{slope_per_hour(samples) / MIB:+6.1f} MiB/h {first.handles:5d} {last.handles:5d}"
    )


def main() -> None:
    """Run the soak and print figures and one line of JSON."""
    made = parser(__doc__ or "")
    made.add_argument("--warm-up", type=float, default=120.0, help="seconds of a process's life that are left out")
    made.add_argument("--least", type=float, default=120.0, help="seconds that a process must be watched after them")
    arguments = made.parse_args()
    found = run(arguments)
    report(found)
    report_leaks(found, arguments.warm_up, arguments.least)
    print(json.dumps({"arguments": vars(arguments), "goodput": found.goodput, "left": found.left}))


if __name__ == "__main__":
    main()
