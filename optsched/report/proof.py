"""A certificate as a picture and in words."""

from __future__ import annotations

from re import fullmatch

from optsched.domain.plan import Certificate
from optsched.report.charts.gap import gap_chart
from optsched.report.markup import Html, figure, figures, join, table
from optsched.report.numbers import quantity, share


def in_words(certificate: Certificate) -> str:
    """Return what a certificate says."""
    if certificate.status == "OPTIMAL":
        return f"No plan does better under evaluator {certificate.evaluator}: the value is proven optimal."
    if certificate.bound <= 0:
        return f"Nothing is proven about how much better {_what(certificate)} could be."
    return (
        f"Under evaluator {certificate.evaluator} no plan on these terms has less than "
        f"{written(certificate, certificate.bound)}; {share(certificate.gap)} of this plan's value lies above that."
    )


def written(certificate: Certificate, value: float) -> str:
    """Return a value of a certificate with its unit, which the objective's name ends with in brackets."""
    found = fullmatch(r".*\[(.+)\]", certificate.objective)
    return quantity(value, found.group(1) if found else "")


def _what(certificate: Certificate) -> str:
    return certificate.objective.split(" [")[0]


def proof_body(certificate: Certificate) -> Html:
    """Return the picture of the gap, and the certificate's fields."""
    picture = gap_chart(
        certificate.value, certificate.bound, title=_what(certificate), write=lambda value: written(certificate, value)
    )
    rows = [
        ("objective", certificate.objective), ("value", written(certificate, certificate.value)),
        ("proven lower bound", written(certificate, certificate.bound)), ("gap", share(certificate.gap)),
        ("status", certificate.status), ("evaluator", certificate.evaluator), ("found by", certificate.solver),
    ]  # fmt: skip
    caption = "Solid: what every plan needs at least. Hatched: what is not proven either way."
    return join([figures([figure(picture, caption), table(("certificate", ""), rows)])])
