"""`reproduce`: a table of rows and seeds."""

from typing import TYPE_CHECKING, Annotated

import typer

from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hmtl_dist.console import Console
    from hmtl_dist.reproduce.reproduce import Request
    from hmtl_dist.reproduce.results import Result
    from hmtl_dist.reproduce.runner import Listener, Planned

app = typer.Typer()


@app.command()
def reproduce(
    suite: Annotated[
        str,
        typer.Argument(
            help="Suite: paper, pretraining, head_pose, gender, synthetic, synthetic_long, faces_small, or a YAML file."
        ),
    ],
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0-5; six are the least that can reach p < 0.05.")] = "0-5",
    only: Annotated[
        list[str] | None, typer.Option(help="Row to run, with those it depends on; may be given again.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE over every recipe; may be given again.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=URL of one of the suite's data sets; may be given again.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of this table and its runs; the suite's if empty.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run, and what it needs.")] = False,
) -> None:
    """Run a suite of recipes over several seeds and write its table; the same command again goes on."""
    import re
    from pathlib import Path

    from hmtl_dist.console import Console
    from hmtl_dist.reproduce.reproduce import Request
    from hmtl_dist.reproduce.suite import NAME, load_suite, parse_seeds, with_urls

    chosen = name or Path(suite).stem
    if not re.match(NAME, chosen):
        raise UserError(f"--name: given '{chosen}', allowed up to 40 letters, digits, '_' and '-'")
    found = with_urls(load_suite(suite), _pairs(data or ()))
    request = Request(found, chosen, parse_seeds(seeds), only or (), settings or (), jobs)
    with Console() as console:
        if dry_run:
            _tell_plan(request, console)
            return
        code = _run(request, console)
    if code:
        raise typer.Exit(code)


def _run(request: "Request", console: "Console") -> int:
    """Run it, tell how, and return the exit code: 1 where runs failed, 130 where it was stopped."""
    from hmtl_dist.reproduce.reproduce import reproduce as run
    from hmtl_dist.reproduce.table import as_text

    total = len(request.jobs())
    with console.progress("reproduce", total) as bar:
        reproduced = run(request, say=console.say, listen=_listener(console, bar.update, total, request.parallel))
    console.say(as_text(reproduced.lines))
    console.say("table " + "  ".join(str(path) for path in reproduced.files))
    for failure in reproduced.failures:
        console.warn(f"{failure.run} failed: {failure.error}")
    if reproduced.stopped:
        console.say("stopped; the same command again goes on")
        return 130
    return 1 if reproduced.failures else 0


def _listener(console: "Console", update: "Callable[..., None]", total: int, parallel: int) -> "Listener":
    """Return a listener that shows a line a run, and estimates the time left by what its row's runs took."""
    seconds: dict[str, list[float]] = {}
    counted = 0

    def listen(plan: "Planned", result: "Result", skipped: bool) -> None:
        nonlocal counted
        counted += 1
        if result.status == "FINISHED":
            seconds.setdefault(result.row, []).append(result.seconds)
        if not skipped:
            console.say(f"[{counted}/{total}] {plan.job.run}: {_word(result)}")
        known = [value for values in seconds.values() for value in values]
        left = (total - counted) * sum(known) / len(known) / parallel if known else None
        update(counted, eta_seconds=left)

    return listen


def _word(result: "Result") -> str:
    from hmtl_dist.progress import duration

    if result.status == "FAILED":
        return f"failed: {result.error}"
    if result.status == "STOPPED":
        return "stopped, goes on next time"
    accuracies = [f"{key.removeprefix('eval/')} {value:.4f}" for key, value in result.metrics.items() if _tells(key)]
    return "  ".join([*accuracies, duration(result.seconds)])


def _tells(key: str) -> bool:
    return key.startswith("eval/") and "/group/" not in key and key.endswith(("/accuracy", "/mae"))


def _tell_plan(request: "Request", console: "Console") -> None:
    from hmtl_dist.reproduce.reproduce import needs
    from hmtl_dist.reproduce.runner import check
    from hmtl_dist.reproduce.table import aligned

    planned = check(request.jobs())
    table: list[list[str]] = [["row", "paper", "against", "recipe", "title"]]
    needed: dict[str, list[str]] = {}
    for name in dict.fromkeys(plan.job.row for plan in planned):
        row = request.suite.rows[name]
        recipe = row.recipe or f"probe of {row.probe.row if row.probe else ''}"
        paper = "" if row.paper is None else f"{row.paper:.2f}"
        table.append([name, paper, row.baseline or "", recipe, row.title])
        needed.setdefault(needs(request.suite, name), []).append(name)
    console.say(request.suite.title)
    console.say(aligned(table))
    for need, rows in needed.items():
        console.say(f"{', '.join(rows)}: {need or 'what their recipe names'}")
    console.say(f"{len(planned)} runs: seeds {', '.join(map(str, request.seeds))}; results in {request.folder}")


def _pairs(given: "Sequence[str]") -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, url = text.partition("=")
        if not equals or not url:
            raise UserError(f"--data: given '{text}', allowed NAME=URL")
        pairs[name] = url
    return pairs
