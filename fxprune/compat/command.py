"""`fxprune compat`: parses, runs the matrix, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fxprune.console import EXIT_CHECK_FAILED, Seed, out, say


class _DefaultsToRun(TyperGroup):
    """`fxprune compat PATTERN` means `fxprune compat run PATTERN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command that is left out."""
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


compat = typer.Typer(
    cls=_DefaultsToRun, help="Try models of the libraries: run (the default, may be left out), and table."
)


@compat.command("run")
def compat_run(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON-lines file; each model adds a row.")],
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATTERN]...", help="Globs of names, such as 'timm:resnet*'; all by default."),
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(help="timm, torchvision or transformers; all that are installed by default."),
    ] = None,
    stage: Annotated[
        str, typer.Option(help="The last stage to go through: capture, prune or onnx; or shrink, after capture.")
    ] = "capture",
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts of the models, from 1 on.")] = "1/1",
    jobs: Annotated[int, typer.Option(min=1, help="Models at a time.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a file; skip what is in it.")] = False,
    older: Annotated[
        bool, typer.Option("--older", help="With --resume: what another version of fxprune tried counts as well.")
    ] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Try again the models whose last row in the file is a failure.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one model may take.")] = 1800.0,
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, help="GiB that one model may hold; by default 80% of what is free, for each job."),
    ] = None,
    image: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Largest side of images beyond the stage capture, where models take that; their own by default.",
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Try models one by one, each in a process of its own, and write down how far each gets."""
    from fxprune.compat.plan import check_options, memory_limit, plan, select, threads
    from fxprune.compat.results import ROWS, Tally
    from fxprune.compat.runner import Limits, known_models, run
    from fxprune.compat.stages import examine
    from fxprune.progress import track
    from fxprune.rows import RowFile

    check_options(library=library, stage=stage, shard=shard)
    limits = Limits(timeout, memory_limit(memory, jobs))
    with RowFile(output, ROWS, resume=resume or failed) as results:
        tasks = plan(
            select(known_models(), patterns or [], library, shard),
            stage,
            results.rows,
            failed=failed,
            older=older,
            memory=limits.memory,
            threads=threads(jobs),
            seed=seed,
            image=image,
        )
        tally = Tally(stage)
        for row in track(run(examine, tasks, limits, jobs=jobs), tally.__str__, len(tasks)):
            results.append(row)
            tally.add(row)
            if not row["ok"]:
                say("{model} fails in {failed[stage]}: {failed[kind]}: {failed[reason]}".format(**row))
    say(f"{tally}; rows are in {output}")
    if not tally.all_passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


@compat.command("table")
def compat_table(
    results: Annotated[list[Path], typer.Argument(help="Files that `fxprune compat` wrote.")],
    html: Annotated[Path | None, typer.Option(help="Write one page that sorts and filters.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
    readme: Annotated[
        Path | None,
        typer.Option(help="Put the pass rates between the markers of this file."),
    ] = None,
) -> None:
    """Print the pass rates, and write the table."""
    from fxprune.compat import table
    from fxprune.compat.results import ROWS
    from fxprune.rows import read_rows

    found = table.entries(read_rows(results, ROWS))
    if html:
        table.write(html, table.html(found))
    if markdown:
        table.write(markdown, table.markdown(found))
    if readme:
        table.update(readme, found)
    out.print(table.summary(found), highlight=False, soft_wrap=True)
