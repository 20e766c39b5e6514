"""The page of a plan: who serves, what is promised, what is proven, and what is going to happen."""

from __future__ import annotations

from dataclasses import dataclass

from optsched import __version__
from optsched.domain.log import ExecutionLog
from optsched.domain.plan import Plan
from optsched.domain.workload import Workload
from optsched.report.decisions import decisions_body
from optsched.report.fleet import fleet_body, gpus, power_w
from optsched.report.latencies import promise_body
from optsched.report.markup import Html, Section, Tile, element
from optsched.report.numbers import plain, quantity, share
from optsched.report.page import page
from optsched.report.palette import PAGE
from optsched.report.proof import in_words, proof_body
from optsched.report.timeline import draw_timeline
from optsched.report.verdicts import in_one_sentence, verdicts


@dataclass(frozen=True, slots=True)
class Executed:
    """What was executed, and what happened."""

    workload: Workload
    log: ExecutionLog

    @property
    def recovered(self) -> int:
        """Conversations that went on elsewhere after a worker was lost, each counted once."""
        return len({event.conversation for event in self.log.events if event.kind == "recovered"})


def plan_page(plan: Plan, *, source: str, executed: Executed | str, more: tuple[Section, ...] = ()) -> str:
    """Return a plan as a page.

    Parameters
    ----------
    plan
        What to show.
    source
        Its file, named at the end of the page.
    executed
        Its simulation, for the timeline; or why there is none.
    more
        Sections between the certificate and the timeline.
    """
    found = verdicts(plan.slo, plan.predicted)
    missed = any(not each.kept for each in found)
    sections = [
        Section("fleet", "Fleet", _fleet_lead(plan), fleet_body(plan)),
        Section("promise", "Promise", _promise_lead(plan), promise_body(plan.predicted, found)),
        Section("certificate", "Certificate", in_words(plan.certificate), proof_body(plan.certificate)),
        *more,
        timeline_section(plan, executed),
        Section("decisions", "Decisions", "What replicas are told, and what the plan rests on.", decisions_body(plan)),
    ]
    return page(
        title=f"{', '.join(llm.name for llm in plan.llms)} on {_gpu_names(plan)}",
        subtitle=f"A plan of optsched: placement {plan.placement.policy}, batching {plan.batching.policy}",
        verdict=in_one_sentence(found),
        tone="plain" if not found else "bad" if missed else "good",
        leading=plan_tiles(plan),
        sections=sections,
        footer=f"Made from {source} by optsched {__version__}; scenario {plan.scenario_sha256[:12]}.",
    )


def plan_tiles(plan: Plan) -> list[Tile]:
    """Return the figures that lead the page."""
    m = plan.predicted
    tiles = [
        Tile("GPUs", plain(gpus(plan)), f"caps of {quantity(power_w(plan), 'W')} in all"),
        Tile("Meet every target", share(m.slo_attainment), "of conversations"),
        Tile("Output tokens/s", plain(m.tokens_per_s), f"{m.tokens.output:,} in {quantity(m.makespan_s, 's')}"),
    ]
    if m.cost_usd_per_hour:
        per_million = m.cost_usd_per_hour / 3600 / m.tokens_per_s * 1e6 if m.tokens_per_s else None
        note = "" if per_million is None else f"{plain(per_million)} USD per million output tokens"
        tiles.append(Tile("Price", quantity(m.cost_usd_per_hour, "USD/h"), note))
    if m.energy_j:
        per_token = m.energy_j / max(m.tokens.output, 1)
        tiles.append(Tile("Energy", quantity(m.energy_j, "J"), f"{plain(per_token)} J per output token"))
    tiles.append(Tile("Gap to the bound", share(plan.certificate.gap), plan.certificate.status.lower()))
    return tiles


def timeline_section(plan: Plan, executed: Executed | str) -> Section:
    """Return the timeline of an execution, or why there is none."""
    if isinstance(executed, str):
        return Section("timeline", "Timeline", f"Not drawn: {executed}", Html(""))
    drawn = Html(draw_timeline(plan, executed.log, executed.workload, PAGE))
    lead = (
        f"{executed.workload.num_conversations:,} conversations, {executed.workload.num_turns:,} turns, "
        f"{executed.log.iterations:,} steps, {len(executed.log.transfers.start_s):,} transfers, "
        f"{executed.log.preemptions:,} preemptions, {executed.log.origin}. Hover over a bar to see what it is."
    )
    return Section("timeline", "Timeline", lead, element("div", drawn, class_="scroll timeline", tabindex="0"))


def _gpu_names(plan: Plan) -> str:
    counts: dict[str, int] = {}
    for replica in plan.replicas:
        counts[replica.gpu] = counts.get(replica.gpu, 0) + replica.tp * replica.pp
    return " and ".join(f"{count} x {name}" for name, count in counts.items())


def _fleet_lead(plan: Plan) -> str:
    assumed = sum(replica.origin == "assumed" for replica in plan.replicas)
    if not assumed:
        return "Each block is a GPU; the coefficients of every replica are fitted on measurements."
    which = "all replicas" if assumed == len(plan.replicas) else f"{assumed} of {len(plan.replicas)} replicas"
    return f"Each block is a GPU. The coefficients of {which} are assumed, not fitted on measurements."


def _promise_lead(plan: Plan) -> str:
    clock = {
        "true": "every queue counts from arrival",
        "paper": "waiting for a prefiller and for a decoder is left out, which is only for reproducing published figures",
    }[plan.predicted.clock]
    return f"Simulated on the {plan.predicted.clock} clock: {clock}. A target stands if no more conversations miss it than may."
