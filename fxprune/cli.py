"""The command line: parses, calls a stage, prints. `fxprune COMMAND --help` says what each option does."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.logging import RichHandler
from rich.table import Table

from fxprune import __version__
from fxprune.compat.command import compat
from fxprune.console import (
    EXIT_BAD_INPUT,
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    Seed,
    err,
    out,
    print_json,
    say,
)
from fxprune.errors import FxpruneError, RecipeError, TrainError, VerificationError

if TYPE_CHECKING:
    from fxprune.recipes import Recipe, RunResult

app = typer.Typer(
    name="fxprune",
    help="Prune any torch module at initialisation, train it, and export a verified sparse ONNX file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_SHARED = ("prune", "train")  # what torchrun speeds up

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, for machines.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a checkpoint that stands in the folder.")]
Folder = Annotated[Path, typer.Argument(help="Checkpoint folder, as `fxprune prune -o` wrote it.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Again = Annotated[
    str | None,
    typer.Option("--model", help="Name the model again, if it is code of your own: FILE.py:FACTORY."),
]

VerifyData = Annotated[
    str | None,
    typer.Option("--data", help="Images to compare the best class on; those it was pruned on, or digits."),
]


def main() -> None:
    """Entry point; exit codes: 0 done, 1 a check of the exported file failed, 2 bad input, 130 interrupted."""
    from fxprune import distributed
    from fxprune.memory import exhausted
    from fxprune.progress import shown_on

    warnings.simplefilter("ignore")  # torch's own; ours go through logging
    signal.signal(signal.SIGINT, _interrupted)
    try:
        with distributed.joined():
            out.quiet = distributed.rank() > 0
            with contextlib.nullcontext() if out.quiet else shown_on(err):
                app()
    except _Interrupted:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)  # libraries and their threads take seconds to go, and nothing is left to do
    except VerificationError as error:
        _fail(error, EXIT_CHECK_FAILED)
    except FxpruneError as error:
        _fail(error, EXIT_BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        _fail(f"memory ran out ({reason}); give smaller inputs, smaller batches, or --memory 0", EXIT_BAD_INPUT)


# what can be said of a command that was interrupted; the others begin anew
_GOES_ON = {
    "train": "the same command goes on after the last whole epoch",
    "run": "the same command goes on after the last whole epoch",
    "study": "the same command goes on where it was",
    "compat": "the same command with --resume goes on where it was",
}


class _Interrupted(SystemExit):
    """Ctrl-C, on its way through what cleans up."""


def _interrupted(*_: object) -> None:
    command = next((word for word in sys.argv[1:] if word in _GOES_ON), "")
    say(f"interrupted; what was saved before is whole; {_GOES_ON.get(command, 'the same command begins anew')}")
    raise _Interrupted(EXIT_INTERRUPTED)


def _fail(error: Exception | str, code: int) -> None:
    err.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is done and chosen.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Options of every command."""
    from fxprune import distributed

    if version:
        out.print(__version__)
        raise typer.Exit
    if distributed.active() and context.invoked_subcommand not in _SHARED:
        raise TrainError(
            f"{context.invoked_subcommand} does not share its work among processes; start it without torchrun "
            f"({' and '.join(_SHARED)} do)"
        )
    handler = RichHandler(console=err, show_time=False, show_path=False)
    logger = logging.getLogger("fxprune")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Glob, such as 'resnet*' or 'timm:vit_*'.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the models of the libraries whose name matches a pattern."""
    from fxprune.zoo import list_models

    names = list_models(pattern)
    print_json(names) if as_json else out.print("\n".join(names), highlight=False, end="\n" if names else "")
    if not names:
        say(f"no model of the libraries matches {pattern!r}")
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="timm:NAME, torchvision:NAME, FILE.py:FACTORY or PKG.MOD:FACTORY.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    sparsity: Annotated[
        float | None,
        typer.Option(help="Share of the prunable weights to remove, in [0, 1)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, fashion-mnist, cifar10, cifar100, imagefolder:PATH or tiny-imagenet:PATH."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--input", help="Shape of one sample, such as 3x32x32; the model's own by default."),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Outputs of the model; as many as the data has classes by default."),
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="How weights are scored: grasp, snip, synflow, obd, magnitude or random.")
    ] = "grasp",
    rounds: Annotated[int, typer.Option(help="How often to score and cut; synflow wants 100.")] = 1,
    schedule: Annotated[str, typer.Option(help="Of the rounds: exponential or linear.")] = "exponential",
    ranking: Annotated[str, typer.Option(help="global, layer (same density everywhere) or erk.")] = "global",
    floor: Annotated[
        float, typer.Option(help="Least density of a weight, as a share of the overall one; 0 for none.")
    ] = 0.05,
    live: Annotated[
        bool, typer.Option("--live/--no-live", help="Score where no branch is closed by its initialisation.")
    ] = True,
    include: Annotated[list[str] | None, typer.Option(help="Globs of weights to prune; all by default.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Globs of weights to leave.")] = None,
    granularity: Annotated[
        str,
        typer.Option(
            help="weight; channel, where whole channels and heads go and tensors get smaller; or a pattern: 2:4 "
            "keeps two of every four weights."
        ),
    ] = "weight",
    budget: Annotated[
        str | None,
        typer.Option(help="What channels may cost: macs=0.5, params=0.5 or latency=0.5, of the whole model's."),
    ] = None,
    normalise: Annotated[
        str, typer.Option(help="Divide the score of a channel by its cost, its size, or none.")
    ] = "cost",
    round_to: Annotated[int, typer.Option(help="Keep a multiple of so many channels.")] = 1,
    sanity: Annotated[
        str | None,
        typer.Option(help="Scramble on purpose: invert, shuffle or reinitialise."),
    ] = None,
    per_class: Annotated[int, typer.Option(help="Score images of each class.")] = 10,
    score_batch: Annotated[
        int | None,
        typer.Option(help="Score images at a time; as many as hold a million pixels by default."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Divides the logits in the score's loss.")] = 200.0,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0, help="GiB that GraSP may use to be fast, 0 for the least; 60% of what is free by default."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune a model at its initialisation and save it as a checkpoint."""
    from fxprune.report import report
    from fxprune.stages import PruneJob, prune_stage
    from fxprune.zoo import ModelSpec, parse_shape, runs_user_code

    spec = ModelSpec(model, parse_shape(shape) if shape else None, num_classes)
    job = PruneJob(
        model=spec,
        data=data,
        sparsity=sparsity,
        criterion=criterion,
        per_class=per_class,
        score_batch=score_batch,
        temperature=temperature,
        rounds=rounds,
        schedule=schedule,
        ranking=ranking,
        floor=floor,
        live=live,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        granularity=granularity,
        budget=budget,
        normalise=normalise,
        round_to=round_to,
        sanity=sanity,
        memory=memory,
        seed=seed,
        device=device,
    )
    _print_report(report(prune_stage(job, output, force=force)), as_json)
    again = ["--model", model] if runs_user_code(spec) else []
    say(f"saved in {output}; next: {_command('train', output, *again)}")


@app.command()
def groups(
    model: Annotated[str, typer.Argument(help="timm:NAME, torchvision:NAME, FILE.py:FACTORY or MODULE:FACTORY.")],
    shape: Annotated[str | None, typer.Option("--input", help="Shape of a sample, such as 3x32x32.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which slices of a model's tensors have to be cut together, and why the others stay."""
    from fxprune.stages import groups_stage
    from fxprune.zoo import ModelSpec, parse_shape

    found = groups_stage(ModelSpec(model, parse_shape(shape) if shape else None))
    if as_json:
        print_json(found)
        return
    table = Table("units", "cut together: tensor, dimension (indices of each unit)")
    for family in found["families"]:
        dims = [f"{name}, {dim}" + (f" ({count})" if count > 1 else "") for name, dim, count in family["dims"]]
        table.add_row(str(family["units"]), "; ".join(dims))
    out.print(table)
    stays = Table("stays", "dimension", "since")
    for each in found["stays"]:
        stays.add_row(each["weight"], str(each["dim"]), each["reason"])
    out.print(stays)


@app.command()
def shrink(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the smaller checkpoint.")],
    model: Again = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Cut the channels of which masks have left nothing that works, and save the smaller network."""
    from fxprune.report import report
    from fxprune.stages import shrink_stage

    shrunk = shrink_stage(folder, output, model=_named(model), force=force)
    _print_report(report(shrunk), as_json)
    say(f"saved in {output}")


@app.command()
def train(
    folder: Folder,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    weight_decay: Annotated[float, typer.Option(help="On weights, not on scales and biases.")] = 5e-4,
    schedule: Annotated[str, typer.Option(help="cosine, step or constant.")] = "cosine",
    precision: Annotated[str, typer.Option(help="float32, or bf16 for products in bfloat16.")] = "float32",
    data: Annotated[str | None, typer.Option(help="Data spec; what it was pruned on by default.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Take training and topology from a recipe, in place of these options."),
    ] = None,
    topology: Annotated[
        str | None,
        typer.Option(help="Let the masks move: set, rigl, deep-r or dsr, at its paper's settings."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="CSV file for a table of the epochs.")] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Folder for TensorBoard, if it is installed."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin a new schedule, even if a training was interrupted.")
    ] = False,
    model: Again = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train the pruned model of a checkpoint; the checkpoint is replaced after each epoch.

    A training that was interrupted goes on where it was, under the same options.
    """
    from fxprune import distributed
    from fxprune.recipes import Recipe
    from fxprune.stages import train_stage
    from fxprune.topology import make
    from fxprune.training import Callback, EachEpoch, Epoch, TrainConfig
    from fxprune.training.logs import CsvLog, TensorBoard

    config = TrainConfig(
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        weight_decay=weight_decay,
        schedule=schedule,  # type: ignore[arg-type]  # checked by TrainConfig
        seed=seed,
        device=device,
        precision=precision,  # type: ignore[arg-type]
    )

    movement = [make(topology, seed)] if topology else []
    if recipe is not None:
        read = Recipe.read(recipe)
        config, movement = read.train, read.movement

    def tell(epoch: Epoch) -> None:
        say(
            f"epoch {epoch.epoch}/{config.epochs}: loss {epoch.loss:.4f}, train {epoch.train_accuracy:.2%}, "
            f"test {epoch.test_accuracy:.2%}, {epoch.seconds:.1f} s"
        )

    callbacks: list[Callback] = [EachEpoch(tell), *movement]
    if distributed.rank() == 0:
        callbacks += [CsvLog(log)] if log else []
        callbacks += [TensorBoard(tensorboard)] if tensorboard else []
    history = train_stage(folder, config, callbacks, data=data, model=_named(model), fresh=fresh)
    if as_json:
        print_json([epoch.to_json() for epoch in history])
    again = ["--model", model] if model else []
    say(f"saved in {folder}; next: {_command('export', folder, *again)}")


@app.command()
def export(
    folder: Folder,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="ONNX file to write; model.onnx in the folder by default."),
    ] = None,
    encoding: Annotated[
        str,
        typer.Option(help="How weights are stored: auto (smallest for each), dense, coo, bitmask or gaps."),
    ] = "auto",
    values: Annotated[str, typer.Option(help="Type of stored non-zeros: fp32 (as they are) or fp16.")] = "fp32",
    inline: Annotated[
        bool, typer.Option("--inline", help="No functions in the file, for runtimes that take none (OpenVINO).")
    ] = False,
    data: VerifyData = None,
    model: Again = None,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint to ONNX and verify the file; without a clean verification there is no file."""
    from fxprune.report.text import verification
    from fxprune.stages import ONNX_FILE, export_stage

    options = {"encoding": encoding, "values": values, "inline": inline}
    result = export_stage(folder, file, model=_named(model), data=data, **options)
    print_json(result.to_json()) if as_json else out.print(verification(result))
    say(f"wrote {file or folder / ONNX_FILE}, {result.bytes:,} bytes")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="ONNX file.")],
    against: Annotated[Path, typer.Option("--against", help="Checkpoint folder that it was exported from.")],
    data: VerifyData = None,
    model: Again = None,
    as_json: AsJson = False,
) -> None:
    """Verify an ONNX file against the checkpoint that it was exported from."""
    from fxprune.report.text import verification
    from fxprune.stages import verify_stage

    result = verify_stage(file, against, model=_named(model), data=data)
    print_json(result.to_json()) if as_json else out.print(verification(result))
    failed = [check.name for check in result.checks if not check.passed]
    if failed:
        say(f"{file} is not what {against} is: {', '.join(failed)}")
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def report(
    folder: Folder,
    model: Again = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write one HTML page that opens offline as well."),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency/--no-latency", help="Export the dense network too, and time both in ONNX Runtime."
        ),
    ] = True,
    gradient: Annotated[
        bool,
        typer.Option("--gradient/--no-gradient", help="Take the gradient norm before and after pruning."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Report what was removed from a checkpoint's model, what is left, and what it costs."""
    from fxprune.stages import ONNX_FILE, report_stage

    statistics = report_stage(folder, model=_named(model), latency=latency, gradient=gradient, page=html)
    _print_report(statistics, as_json)
    if statistics.file is None and (folder / ONNX_FILE).is_file():
        say(f"{folder / ONNX_FILE} is of other weights than these; export again")
    if html:
        say(f"wrote {html}")


@app.command()
def run(
    recipes: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECIPE...",
            help="Recipes in TOML, such as model_zoo/recipes/digits-resnet20.toml; several end side by side.",
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; the recipe's by default.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="In place of the recipe's.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Go through recipes: prune, train, export, verify, report."""
    from dataclasses import replace

    from fxprune.recipes import Recipe
    from fxprune.recipes import run as run_recipe
    from fxprune.side_by_side import side_by_side

    if len(recipes) > 1 and (output or sparsity is not None):
        raise RecipeError(
            "--output and --sparsity: expected one recipe to change, got several; run them one by one"
        )
    read = [Recipe.read(recipe) for recipe in recipes]  # mistakes in any are told before the first is run
    if output:
        read = [replace(read[0], output=output)]
    if sparsity is not None:
        read = [replace(read[0], job=replace(read[0].job, sparsity=sparsity))]
    results = []
    for each in read:
        results.append(run_recipe(each, force=force, say=say))
        if not as_json:
            _print_result(each, results[-1])
    if as_json:
        found = [result.to_json() for result in results]
        print_json(found if len(found) > 1 else found[0])
    elif len(results) > 1:
        out.print(side_by_side([recipe.stem for recipe in recipes], results))


def _print_result(recipe: Recipe, result: RunResult) -> None:
    from fxprune.report.text import verification
    from fxprune.stages import REPORT_FILE, RESULTS_FILE

    _print_report(result.report, as_json=False)
    out.print(verification(result.verification))
    if result.dense_accuracy is not None:
        out.print(f"test accuracy, dense network: {result.dense_accuracy:.2%}", highlight=False)
    out.print(
        f"test accuracy, pruned network: {result.pruned_accuracy:.2%} "
        f"({result.untrained_accuracy:.2%} before training)",
        highlight=False,
    )
    out.print(
        f"everything is in {recipe.output}, figures in {recipe.output / RESULTS_FILE}, the report in "
        f"{recipe.output / REPORT_FILE}",
        highlight=False,
    )


app.add_typer(compat, name="compat")


def _named(model: str | None) -> Any:
    from fxprune.zoo import ModelSpec

    return ModelSpec(model) if model else None


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="accuracy, gradient-flow, initialisation, batch-size, ntk or sanity, or all of them; or channels."
        ),
    ],
    setting: Annotated[Path, typer.Argument(help="TOML file: data, networks, training, and what is tried.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for results; out/studies/SETTING by default."),
    ] = None,
    network: Annotated[list[str] | None, typer.Option(help="Only these of the setting; all by default.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Experiments at a time.")] = 1,
    pages: Annotated[
        bool, typer.Option("--pages", help="Measure nothing: make the pages of what is there.")
    ] = False,
) -> None:
    """Answer a question of the GraSP paper on a network and data of one's choice; an interrupted study goes on."""
    from fxprune.study.pages import conduct

    for line in conduct(name, setting, output, network or [], jobs=jobs, measure=not pages):
        say(line)


def _command(*arguments: str | Path) -> str:
    """What to type next."""
    return shlex.join(["fxprune", *map(str, arguments)])


def _print_report(statistics: Any, as_json: bool) -> None:
    if as_json:
        print_json(statistics.to_json())
        return
    from fxprune.report.text import renderables

    for part in renderables(statistics):
        out.print(part, highlight=False)


if __name__ == "__main__":
    main()
