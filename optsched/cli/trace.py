"""``optsched trace``: import, describe or synthesise workloads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from optsched.cli.output import emit_json, print_line, print_table, progress
from optsched.domain.workload import Workload
from optsched.errors import SpecError

trace = App(
    name="trace",
    help="Import, describe or synthesise workloads.",
    help_format="plaintext",
    result_action="return_value",
)  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True)
class Reading:
    """How to read the trace.

    Parameters
    ----------
    format
        azure, burstgpt, conserve, llmservingsim, mooncake, openai, parquet, servegen, sharegpt or vllm-log; told by the
        file if left out.
    drop_empty
        Leave out requests without prompt or output instead of refusing the file.
    tokenizer
        A tokenizer.json that counts the tokens of texts (sharegpt, openai).
    chars_per_token
        Estimate token counts of texts as characters over this number instead.
    window
        START:END of the day to sample, in seconds (servegen).
    sample_rate
        Mean request rate to sample, per second; as published if left out (servegen).
    sample_seed
        Seed of the sample (servegen).
    """

    format: str | None = None
    drop_empty: Annotated[bool, Parameter(negative="")] = False
    tokenizer: Path | None = None
    chars_per_token: float | None = None
    window: str = "0:86400"
    sample_rate: float | None = None
    sample_seed: int = 0


def _read(file: Path, reading: Reading | None) -> tuple[str, Workload]:
    """Return the format and the workload of a trace, with a progress bar on stderr."""
    from optsched.traces.importers import detect_format, import_trace
    from optsched.traces.options import ImportOptions

    reading = reading or Reading()
    start, _, end = reading.window.partition(":")
    try:
        window_s = (float(start), float(end))
    except ValueError as error:
        raise SpecError(f"{reading.window!r}: must be START:END in seconds, for example 43200:46800", field="window") from error
    options = ImportOptions(
        drop_empty=reading.drop_empty,
        tokenizer=reading.tokenizer,
        chars_per_token=reading.chars_per_token,
        seed=reading.sample_seed,
        window_s=window_s,
        rate_per_s=reading.sample_rate,
    )
    name = reading.format or detect_format(file)
    with progress(f"reading {file.name}", float(file.stat().st_size) if file.is_file() else None) as advance:
        return name, import_trace(file, name, options, advance)


@trace.command(name="import")
def import_(
    file: Path, /, *, out: Path, reading: Reading | None = None, json: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Import a trace of any known format into a Parquet file.

    Parameters
    ----------
    file
        The trace; a folder or archive for servegen.
    out
        The .parquet file to write.
    json
        Print one JSON object.
    """
    from optsched.files import sha256_of
    from optsched.traces.table import write_parquet

    _check_out(out)
    name, workload = _read(file, reading)
    write_parquet(workload, out)
    _report({"out": str(out), "sha256": sha256_of(out), "format": name}, workload, json)


@trace.command
def stats(
    file: Path,
    /,
    *,
    conversations: int | None = None,
    turns: int | None = None,
    recipe_out: Path | None = None,
    quantiles: str | None = None,
    title: str | None = None,
    origin: str | None = None,
    reading: Reading | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Describe a trace in numbers, and write a recipe with its length quantiles if asked to.

    Parameters
    ----------
    file
        The trace.
    conversations
        Only its first conversations.
    turns
        Only their first turns.
    recipe_out
        Write a recipe with its length quantiles, turn by turn, to this .toml file, whose name becomes the recipe's.
    quantiles
        Probabilities of the recipe's points, from 0 to 1, for example 0,0.5,0.9,1; if left out, 20 that follow long tails.
    title
        Title of the recipe.
    origin
        Where the recipe's numbers come from; file and hash are added to it.
    json
        Print one JSON object.
    """
    for count, option in ((conversations, "conversations"), (turns, "turns")):
        if count is not None and count < 1:
            raise SpecError(f"{count}: must be at least 1", field=option)
    name, workload = _read(file, reading)
    if conversations is not None and conversations > workload.num_conversations:
        raise SpecError(f"{conversations}: the trace has only {workload.num_conversations}; ask for fewer", field="conversations")
    workload = workload.head(conversations, turns)
    found: dict[str, object] = {"file": str(file), "format": name}
    if recipe_out is not None:
        _write_recipe(recipe_out, workload, _probabilities(quantiles), title, _origin(origin, file, workload))
        found["recipe"] = str(recipe_out)
    _report(found, workload, json)


@trace.command
def synthesise(
    recipe: str,
    /,
    *,
    conversations: int,
    out: Path,
    rate: float | None = None,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Draw conversations from a recipe into a Parquet file.

    Parameters
    ----------
    recipe
        Name of a packaged recipe, or path of a .toml file.
    conversations
        How many.
    out
        The .parquet file to write.
    rate
        Conversations per second of Poisson arrivals; without it the file has no arrivals.
    seed
        Seed of lengths and arrivals.
    json
        Print one JSON object.
    """
    from optsched import catalog
    from optsched.domain.workload import Arrivals
    from optsched.files import sha256_of, validate
    from optsched.traces.arrivals import arrival_times
    from optsched.traces.synthesis import synthesise as draw
    from optsched.traces.table import write_parquet

    _check_out(out)
    arrivals = validate(Arrivals, {"process": "burst" if rate is None else "poisson", "rate_per_s": rate, "seed": seed})
    found = catalog.recipe(recipe)
    workload = draw(found, conversations, seed)
    if rate is not None:
        workload = workload.with_arrivals(arrival_times(arrivals, conversations))
    write_parquet(workload, out)
    _report({"out": str(out), "sha256": sha256_of(out), "recipe": found.name}, workload, json)


def _check_out(out: Path) -> None:
    if out.suffix != ".parquet":
        raise SpecError("a workload is written as Parquet; give --out a name that ends in .parquet", file=out)


def _probabilities(text: str | None) -> Sequence[float]:
    from optsched.traces.statistics import QUANTILES

    if text is None:
        return QUANTILES
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SpecError(f"{text!r}: must be numbers from 0 to 1, for example 0,0.5,1", field="quantiles") from error


def _origin(origin: str | None, file: Path, workload: Workload) -> str:
    from optsched.files import sha256_of

    source = f"{file.name} (sha256 {sha256_of(file)[:12]})" if file.is_file() else file.name
    longest = int(workload.turn_in_conversation.max()) + 1
    scope = (
        f"quantiles of {workload.num_conversations} conversations of {'one turn' if longest == 1 else f'up to {longest} turns'}"
    )
    scope += f" in {source}, written by optsched trace stats"
    return scope if origin is None else f"{origin}; {scope}"


def _write_recipe(path: Path, workload: Workload, quantiles: Sequence[float], title: str | None, origin: str) -> None:
    from optsched.files import write_atomically
    from optsched.traces.statistics import distil, recipe_toml

    if path.suffix != ".toml":
        raise SpecError("a recipe is written as TOML; give --recipe-out a name that ends in .toml", file=path)
    recipe = distil(workload, path.stem, title or f"Lengths of {path.stem}", origin, quantiles)
    write_atomically(path, recipe_toml(recipe).encode())


def _report(found: Mapping[str, object], workload: Workload, as_json: bool) -> None:
    from optsched.traces.statistics import Spread, statistics

    numbers = statistics(workload)
    if as_json:
        emit_json({**found, **dataclasses.asdict(numbers)})
        return
    for key, value in found.items():
        print_line(f"{key}: {value}")
    fields = {field.name: getattr(numbers, field.name) for field in dataclasses.fields(numbers)}
    spreads = {name: value for name, value in fields.items() if isinstance(value, Spread)}
    for name, value in fields.items():
        if name not in spreads and value is not None:
            print_line(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    columns = ("", *(field.name for field in dataclasses.fields(Spread)))
    rows = [(name, *(f"{value:.6g}" for value in dataclasses.astuple(spread))) for name, spread in spreads.items()]
    print_table("Spreads", columns, rows)
