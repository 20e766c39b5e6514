"""What was predicted against what was observed, as tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence

from optsched.domain.results import Metrics
from optsched.report.accuracy import DRIFT, QUANTILES, SCALARS, OperationClass
from optsched.report.charts.lines import Band, Series, line_chart
from optsched.report.markup import Cell, Html, badge, element, figure, figures, join, table
from optsched.report.numbers import change, plain, quantity, seconds, share
from optsched.report.verdicts import LATENCIES

_COLOURS = {
    "prefill steps": "var(--prefill)", "decode steps": "var(--decode)", "mixed steps": "var(--mixed)",
    "transfers": "var(--transfer)",
}  # fmt: skip
_UNITS = {"makespan_s": "s", "tokens_per_s": "", "energy_j": "J"}


def drift_in_words(classes: Sequence[OperationClass]) -> str:
    """Return which classes of operations have drifted, and by how much, in one sentence."""
    drifted = [each for each in classes if each.drifted]
    if not classes:
        return "The log holds no operations to judge."
    if not drifted:
        return f"Every kind of operation took as long as predicted, to {share(DRIFT)}."
    listed = ", ".join(f"{each.name} took {_times(each)}" for each in drifted)
    return f"Drift: {listed} the predicted time; the limit is {share(DRIFT)} either way."


def _times(found: OperationClass) -> str:
    return f"{float(found.observed_s.sum() / max(found.predicted_s.sum(), 1e-300)):.2f} times"


def figures_body(predicted: Metrics, observed: Metrics, errors: dict[str, float]) -> Html:
    """Return predicted, observed and error of every figure: means and 95th percentiles as a table, the others to unfold.

    Parameters
    ----------
    predicted, observed
        The figures.
    errors
        ``(predicted - observed) / observed`` by name, see `accuracy.relative_errors`.
    """

    def rows(quantiles: Sequence[str]) -> list[Sequence[Cell]]:
        found: list[Sequence[Cell]] = []
        for name, title in LATENCIES.items():
            for quantile in quantiles:
                values = [seconds(getattr(getattr(each, name), quantile)) for each in (predicted, observed)]
                found.append((f"{title} {quantile}", *values, *_error(errors.get(f"{name}.{quantile}"))))
        return found

    scalars: list[Sequence[Cell]] = [
        (title, *(quantity(getattr(each, name), _UNITS[name]) for each in (predicted, observed)), *_error(errors.get(name)))
        for name, title in SCALARS.items()
        if getattr(observed, name) is not None
    ]
    columns = ("", "predicted", "observed", "error", "")
    others = [quantile for quantile in QUANTILES if quantile not in ("mean", "p95")]
    rest = element("details", join([element("summary", "Medians and 99th percentiles"), table(columns, rows(others))]))
    return join([table(columns, [*rows(("mean", "p95")), *scalars]), rest])


def _error(value: float | None) -> tuple[Cell, Cell]:
    """Return an error as a number and as a bar to the left or right of nothing."""
    if value is None:
        return "-", ""
    width = 50 * min(1.0, abs(value))
    left = 50 - width if value < 0 else 50
    bar = element("i", class_="bad" if abs(value) > DRIFT else "", style=f"left:{left:.1f}%;width:{width:.1f}%")
    return change(value), element("span", join([bar, element("b")]), class_="bar", title=change(value))


def operations_body(classes: Sequence[OperationClass]) -> Html:
    """Return a row per class of operations, and how each kept to its prediction over the run."""
    rows = []
    total = sum(float(each.observed_s.sum()) for each in classes)
    for each in classes:
        count = len(each.start_s)
        spent = float(each.observed_s.sum())
        verdict = badge("drift", "bad") if each.drifted else badge("few", "plain") if count < 5 else badge("as predicted", "good")
        rows.append((
            each.name, f"{count:,}", share(spent / total if total else 0.0), seconds(float(each.predicted_s.mean())),
            seconds(float(each.observed_s.mean())), *_error(each.error), verdict,
        ))  # fmt: skip
    columns = ("operation", "count", "of the time", "predicted mean", "observed mean", "error of the sum", "", "")
    return join([table(columns, rows), figures([_over_time(each) for each in classes if len(each.start_s) >= 5])])


def _over_time(found: OperationClass) -> Html:
    series = Series(found.name, found.over_time(), _COLOURS[found.name])
    picture = line_chart(
        [series], title=f"{found.name[0].upper()}{found.name[1:]}", along="seconds into the run",
        write_up=lambda value: f"{plain(value)} x", band=Band(1 / (1 + DRIFT), 1 / (1 - DRIFT)),
    )  # fmt: skip
    return figure(picture, "Observed over predicted time; green: within the limit.")
