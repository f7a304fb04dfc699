"""`submit`: another command, run as a job on a Ray cluster."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from hmtl_dist.console import Console
    from hmtl_dist.launch.submit import Job

app = typer.Typer()

COMMANDS = ("train", "resume", "evaluate", "tune", "reproduce", "probe")
"""What makes sense on a cluster."""


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Command to run there ({', '.join(COMMANDS)}) with its arguments and options.", metavar="COMMAND..."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="The head's dashboard, such as http://head:8265; RAY_ADDRESS if empty.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show what the job prints and end as it ends, or only send it.")
    ] = True,
    follow: Annotated[
        str | None, typer.Option("--follow", help="Show what a job prints that was sent before.", metavar="ID")
    ] = None,
    stop: Annotated[
        str | None, typer.Option("--stop", help="Stop a job in order, with a checkpoint.", metavar="ID")
    ] = None,
) -> None:
    """Run a command on a Ray cluster: only code is sent, its output is shown, its exit code is returned."""
    from hmtl_dist.console import Console
    from hmtl_dist.launch import submit as jobs

    if sum(bool(one) for one in (words, follow, stop)) != 1:
        raise UserError("give one of: a command such as `train demo`, --follow ID, --stop ID")
    sent = checked(context, words) if words else None
    where = jobs.find_address(address, os.environ)
    with Console() as console:
        if sent is None:
            jobs.check_cluster(where)
            job_id = follow or stop or ""
        else:
            job_id = jobs.send(where, *sent)
            console.say(f"job {job_id} sent to {where}")
            if not wait:
                console.say(f"to follow it: hmtl-dist submit --address={where} --follow {job_id}")
                return
        job = jobs.Job(where, job_id)
        if stop:
            console.say(f"job {stop} is {'asked to stop' if job.stop() else 'over already'}")
            return
        code = _follow(console, job, f"hmtl-dist submit --address={where}", job_id)
    if code:
        raise typer.Exit(code)


def checked(context: typer.Context, words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Read a command line as its command will, and find the user's own files that it names.

    Returns:
        The command line as the job gets it, and the text of the files by the names that it calls them by.
    """
    from hmtl_dist.config.dialect import read_yaml
    from hmtl_dist.config.io import check_tree, find_source, read_recipe
    from hmtl_dist.launch.package import packed_name
    from hmtl_dist.run_config import RunConfig

    root = context.find_root()
    group: Any = root.command
    if words[0] not in COMMANDS:
        raise UserError(f"submit: given '{words[0]}', allowed {', '.join(COMMANDS)}")
    command = group.get_command(root, words[0])
    given: dict[str, Any] = command.make_context(words[0], words[1:], parent=root).params
    trees: dict[str, Any] = {}
    if recipe := given.get("recipe"):
        tree = read_recipe(RunConfig, recipe)
        check_tree(RunConfig, tree, given.get("overrides") or ())
        trees[recipe] = tree  # with all that it inherits: one file
    if space := given.get("space"):
        from hmtl_dist.tune.space import load_space

        load_space(space, given.get("settings") or ())
        trees[space] = read_yaml(find_source("tune_spaces", space))
    if suite := given.get("suite"):
        trees |= _suite(suite)
    own = {source: tree for source, tree in trees.items() if source.endswith((".yaml", ".yml")) or "/" in source}
    names = {source: packed_name(source) for source in own}
    files = {names[source]: _as_yaml(tree) for source, tree in own.items()}
    if len(files) < len(own):
        raise UserError(f"two of {', '.join(own)} have the same name; rename one")
    return [names.get(word, word) for word in words], files


def _suite(source: str) -> dict[str, Any]:
    """Read a suite, and the recipes of the user's own that its rows name."""
    from pathlib import Path

    from hmtl_dist.config.dialect import read_yaml
    from hmtl_dist.config.io import read_recipe
    from hmtl_dist.launch.package import packed_name
    from hmtl_dist.reproduce.suite import load_suite
    from hmtl_dist.run_config import RunConfig

    suite = load_suite(source)
    if not source.endswith((".yaml", ".yml")):
        return {}
    trees: dict[str, Any] = {source: read_yaml(Path(source))}
    for name, row in suite.rows.items():
        if row.recipe and row.recipe.endswith((".yaml", ".yml")):
            if packed_name(row.recipe) != row.recipe:
                raise UserError(f"{source}: rows.{name}.recipe: given '{row.recipe}', allowed a path below this folder")
            trees[row.recipe] = read_recipe(RunConfig, row.recipe)
    return trees


def _as_yaml(tree: Any) -> str:
    from hmtl_dist.config.dialect import one_line

    return f"{one_line(tree)}\n"


def _follow(console: "Console", job: "Job", command: str, job_id: str) -> int:
    """Show what a job prints and return its exit code; on Ctrl-C ask whether it shall go on."""
    asked = False
    while True:
        try:
            ended = job.follow(console.pass_on)
        except KeyboardInterrupt:
            if not asked and _wants_stop(console):
                asked = job.stop()
                console.say("the job is asked to stop in order, with a checkpoint; Ctrl-C again detaches")
                continue
            console.say(f"detached; job {job_id} goes on" + (" stopping" if asked else ""))
            console.say(f"to follow it: {command} --follow {job_id}")
            if not asked:
                console.say(f"to stop it:   {command} --stop {job_id}")
            return 130
        console.say(ended.said)
        return ended.code


def _wants_stop(console: "Console") -> bool:
    """Ask whether to stop the job; without a terminal, or at another Ctrl-C, it goes on."""
    if not (console.is_terminal and sys.stdin.isatty()):
        return False
    try:
        return console.ask("\nstop the job (s), or detach and let it go on (d)? [d] ").strip().lower().startswith("s")
    except (EOFError, KeyboardInterrupt):
        return False
