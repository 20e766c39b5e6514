"""Bad input of every kind gives one line with value, rule and remedy, exit code 1 or 2, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from factories import make_plan

from optsched import catalog, files
from optsched.cli import invoke

SCENARIO = """schema = "optsched/scenario"
version = 1
llm = "demo-qwen3"
[workload]
source = "swe-agent-quickstart"
conversations = 4
arrivals = { process = "poisson", rate_per_s = 2.0, seed = 42 }
[supply]
"local-cpu" = { count = 3 }
[[fleet]]
gpu = "local-cpu"
role = "prefill"
count = 1
[[fleet]]
gpu = "local-cpu"
role = "decode"
count = 2
[slo]
ttfet = { percentile = 95, standalone_factor = 5 }
[objective]
minimise = "ttfet"
"""
PROBLEM = {
    "schema": "optsched/batch-problem", "version": 1, "pending_s": [1.0, 2.0], "kv_blocks": [4, 6], "hidden_blocks": [2, 3],
    "hidden_penalty_s": [0.1, 0.2], "memory_blocks": 7,
}  # fmt: skip
GPU = (catalog.data_root() / "models" / "gpus" / "a40.toml").read_text(encoding="utf-8")
CONSERVE = "conv_id,iter_id,appended_input,total_input,out_token_size,carried_over\n0,0,100,100,5,0\n0,1,7,112,3,105\n"


@dataclass(frozen=True)
class Case:
    """Files to write, the words after ``optsched``, the exit code, and what the one line must say."""

    name: str
    arguments: list[str]
    says: str
    code: int = 1
    write: Callable[[Path], None] = lambda folder: None


def scenario(
    name: str, says: str, old: str, new: str, *, command: str = "plan", code: int = 1, extra: tuple[str, str] = ("", "")
) -> Case:
    """Return a case whose scenario file has one thing wrong."""
    assert old in SCENARIO, old
    return Case(
        name, [command, "scenario.toml"], says, code,
        lambda folder: (folder / "scenario.toml").write_text((SCENARIO.replace(*extra) if extra[0] else SCENARIO).replace(old, new), encoding="utf-8") and None,
    )  # fmt: skip


def problem(name: str, says: str, **changes: object) -> Case:
    """Return a case whose batch problem has one thing wrong."""
    text = json.dumps({**PROBLEM, **changes})
    return Case(name, ["batch", "problem.json"], says, 1, lambda folder: (folder / "problem.json").write_text(text) and None)


def text(name: str, file: str, content: str, arguments: list[str], says: str, code: int = 1) -> Case:
    """Return a case with one file of any content."""
    return Case(name, arguments, says, code, lambda folder: (folder / file).write_text(content, encoding="utf-8") and None)


def plan_file(name: str, says: str, change: Callable[[dict], None], command: str = "simulate") -> Case:
    """Return a case whose plan file has one thing wrong."""

    def write(folder: Path) -> None:
        data = files.dump(make_plan(["prefill", "decode"]), "plan")
        change(data)
        (folder / "plan.json").write_text(json.dumps(data), encoding="utf-8")

    return Case(name, [command, "plan.json"], says, 1, write)


def gpu(name: str, says: str, old: str, new: str) -> Case:
    """Return a case whose own gpu file (in $OPTSCHED_MODELS) has one thing wrong."""
    assert old in GPU, old

    def write(folder: Path) -> None:
        (folder / "models" / "gpus").mkdir(parents=True)
        content = GPU.replace('name = "a40"', 'name = "mine"').replace(old, new)
        (folder / "models" / "gpus" / "mine.toml").write_text(content, encoding="utf-8")

    return Case(name, ["show", "gpus", "mine"], says, 1, write)


def _assign(data: dict, **entry: object) -> None:
    data["placement"]["assignments"] = [{"conversation": 0, "prefill": "r0", "decode": "r1", **entry}]


MEMORY_LINE = next(line for line in GPU.splitlines() if line.startswith("memory ="))
BANDWIDTH_LINE = next(line for line in GPU.splitlines() if line.startswith("memory_bandwidth ="))
POWER_LINE = next(line for line in GPU.splitlines() if line.startswith("power ="))
TRACE = ["trace", "stats", "trace.csv"]

CASES = [
    # Usage: exit 2
    Case("no such command", ["optimise"], "optimise", 2),
    Case("no such option", ["plan", "quickstart", "--speed", "9"], "--speed", 2),
    Case("missing argument", ["plan"], "SCENARIO requires an argument", 2),
    Case("unknown batch method", ["batch", "problem.json", "--method", "magic"], "magic", 2),
    Case("unknown clock", ["plan", "quickstart", "--clock", "sun"], "sun", 2),
    Case("rate is no number", ["plan", "quickstart", "--rate", "fast"], "fast", 2),
    Case("unknown kind to show", ["show", "planets"], "planets", 2),
    Case("unknown placement policy word", ["plan", "quickstart", "--policy", "magic"], "magic", 1),
    # Names
    Case("unknown gpu", ["show", "gpus", "h1000"], "Unknown gpu 'h1000'; did you mean: .*h100"),
    Case("unknown llm", ["estimate", "--llm", "qwen4", "--tier", "a40"], "Unknown llm 'qwen4'; did you mean: .*qwen3"),
    Case("unknown tier", ["estimate", "--llm", "qwen3-0.6b", "--tier", "a4@300W"], "Unknown gpu 'a4'"),
    Case("a name longer than any file's", ["plan", "x" * 5000], "Unknown scenario 'xxx"),
    Case("a gpu's name that is a path", ["show", "gpus", "../gpus/a40"], "Unknown gpu '../gpus/a40'"),
    Case("unknown scenario", ["plan", "quickstrat"], "Unknown scenario 'quickstrat'; did you mean: quickstart"),
    Case("missing scenario file", ["plan", "absent.toml"], "absent.toml: no such file; check the path"),
    Case("missing plan file", ["simulate", "absent.json"], "absent.json: no such file"),
    Case("missing trace", ["plan", "quickstart", "--trace", "absent.csv"], "absent.csv: no such file"),
    Case("missing problem", ["batch", "absent.json"], "absent.json: no such file"),
    # Units and numbers
    Case("power cap in volts", ["estimate", "--llm", "qwen3-0.6b", "--tier", "a40@200V"], "'200V' is not a quantity in W"),
    Case("power cap above the board", ["estimate", "--llm", "qwen3-0.6b", "--tier", "a40@900W"], "900 W of a40 .*board power 300 W"),
    Case("negative prompt", ["estimate", "--llm", "qwen3-0.6b", "--tier", "a40", "--prompt", "-5"], "-5"),
    Case("zero rate", ["plan", "quickstart", "--rate", "0"], "--rate: 0: must be a positive, finite number"),
    Case("a rate of one in many lifetimes", ["plan", "quickstart", "--rate", "1e-12"], "rate_per_s: 1e-12: .*after more than 1e.08 s; raise the rate"),
    Case("a prompt of a billion steps", ["estimate", "--llm", "qwen3-0.6b", "--tier", "a40", "--prompt", "1" + "0" * 30], "steps, more than 1000000; lower the prompt"),
    Case("no llm to calibrate", ["calibrate", "--empty-llm"], "--llm: name at least one llm"),
    Case("NaN rate", ["simulate", "quickstart", "--rate", "nan"], "--rate: nan: must be a positive"),
    gpu("bandwidth in bytes", "datasheet.memory_bandwidth: '48 GB'.* not a quantity in B/s", BANDWIDTH_LINE, 'memory_bandwidth = "48 GB"'),
    gpu("no unit at all", "datasheet.memory: 'lots'.*cannot be read as a quantity", MEMORY_LINE, 'memory = "lots"'),
    gpu("negative power", "datasheet.power: .*greater than 0", POWER_LINE, 'power = "-300 W"'),
    gpu("NaN memory", "datasheet.memory: 'nan GB' cannot be read as a quantity", MEMORY_LINE, 'memory = "nan GB"'),
    gpu("misspelt key", "memory_bandwith: unknown key", "memory_bandwidth =", "memory_bandwith ="),
    # Scenario files
    text("scenario is not TOML", "scenario.toml", "llm = = 3", ["plan", "scenario.toml"], "not valid TOML"),
    text("scenario of another schema", "scenario.toml", 'schema = "optsched/gpu"\nversion = 1', ["plan", "scenario.toml"], "expected 'optsched/scenario'"),
    scenario("scenario of another version", "version: 7: this optsched reads version 1", "version = 1", "version = 7"),
    scenario("unknown llm in a scenario", "Unknown llm 'demo-qwen4'", "demo-qwen3", "demo-qwen4"),
    scenario("unknown recipe", "Unknown workload 'swe-agnt'", "swe-agent-quickstart", "swe-agnt"),
    scenario("unknown gpu in the supply", "Unknown gpu 'local-gpu'", "local-cpu", "local-gpu"),
    scenario("negative rate", "workload.arrivals.rate_per_s: -2.0: .*greater than 0", "rate_per_s = 2.0", "rate_per_s = -2.0"),
    scenario("rate is NaN", "workload.arrivals.rate_per_s: nan: .*finite", "rate_per_s = 2.0", "rate_per_s = nan"),
    scenario("no conversations", "workload.conversations: 0: .*greater than 0", "conversations = 4", "conversations = 0"),
    scenario("more conversations than memory", "conversations: draw at most 10000000", "conversations = 4", "conversations = 1" + "0" * 30),
    scenario("unknown arrival process", "process: 'pareto'", '"poisson"', '"pareto"'),
    scenario("fleet larger than the supply", "needs 9 x local-cpu, but .supply. has 3", "count = 2", "count = 8"),
    scenario("fleet of a gpu that is not supplied", "uses 'a40', which .supply. does not list", 'gpu = "local-cpu"\nrole = "decode"', 'gpu = "a40"\nrole = "decode"'),
    scenario("fleet without decoders", "only prefill replicas; add the other role", 'role = "decode"', 'role = "prefill"'),
    scenario("unknown role", "role: 'prefil'", 'role = "prefill"', 'role = "prefil"'),
    scenario("two limits in one target", "give either seconds or standalone_factor", "standalone_factor = 5", "standalone_factor = 5, seconds = 2"),
    scenario("percentile above 100", "slo.ttfet.percentile: 195", "percentile = 95", "percentile = 195"),
    scenario("unknown objective", "objective.minimise.*'fun'", '"ttfet"', '"fun"'),
    scenario("misspelt table", "suply: unknown key", "[supply]", "[suply]"),
    scenario("an llm that no tier holds", "llama-3.1-70b needs .* GB", "demo-qwen3", "llama-3.1-70b"),
    scenario("a policy parameter that does not exist", "unknown parameter of placement policy 'conserve'", "[objective]", "[policy]\nplacement_parameters = { magic = 1 }\n[objective]"),
    scenario("unknown batching policy", "Unknown batching policy 'fifo'", "[objective]", '[policy]\nbatching = "fifo"\n[objective]'),
    scenario("unknown batching parameter", "unknown parameter 'magic' of batching policy", "[objective]", "[policy]\nbatching_parameters = { magic = 1 }\n[objective]"),
    scenario("a million replicas", "1,000,002 are too many", "count = 3", "count = 2000000", extra=("count = 2", "count = 1000001")),
    Case("a policy that does not exist", ["plan", "quickstart", "--policy", "adaptative"], "adaptive", 1),
    Case("calibrate a capped tier", ["calibrate", "--tier", "local-cpu@50W"], "a power cap cannot be set here"),
    Case("calibrate into no folder", ["calibrate", "--out", "no/such/x.toml"], "no such folder"),
    # Plan files
    text("truncated plan", "plan.json", '{"schema": "optsched/plan", "version": 1, "llms": [', ["simulate", "plan.json"], "not valid JSON.*truncated"),
    text("plan is a list", "plan.json", "[1, 2]", ["simulate", "plan.json"], "expected an object with schema 'optsched/plan'"),
    plan_file("plan without replicas", "replicas: .*at least 1", lambda data: data.update(replicas=[])),
    plan_file("plan with an unknown key", "colour: unknown key", lambda data: data.update(colour="red")),
    plan_file("assignment to a missing replica", "assigned to replica 'r7', which does not exist", lambda data: _assign(data, decode="r7")),
    plan_file("decode on a prefiller", "decoded on 'r0', whose role is prefill", lambda data: _assign(data, decode="r0")),
    plan_file("a step law that runs backwards", "gemm_tokens must increase", lambda data: data["replicas"][0]["coefficients"].update(gemm_tokens=[5, 4, 3])),
    plan_file("negative overhead", "overhead_s: -1.0: .*greater than or equal to 0", lambda data: data["replicas"][0]["coefficients"].update(overhead_s=-1.0)),
    plan_file("bound above the value", "bound 9 lies above its value 1", lambda data: data["certificate"].update(value=1, bound=9)),
    plan_file("plan names a trace that is gone", "none: no such file", lambda data: None),
    plan_file("run a plan that breaks its problem", "whose role is prefill", lambda data: _assign(data, decode="r0"), "run"),
    # Reports and exports
    Case("report of nothing", ["report", "absent.json"], "absent.json: no such file"),
    text("report of a trace", "trace.csv", CONSERVE, ["report", "trace.csv"], "'trace.csv': a report is made of a plan"),
    text("report of half an answer", "answer.json", '{"fleet": [], "certificate": {}, "prices": {}}', ["report", "answer.json"], "answer.json: .*missing"),
    plan_file("report a plan that breaks its problem", "whose role is prefill", lambda data: _assign(data, decode="r0"), "report"),
    Case("export nothing", ["export", "absent.json", "--to", "vllm", "--out", "new"], "absent.json: no such file"),
    Case("export to nowhere", ["export", "plan.json", "--to", "vllm", "--out", "no/new"], "no/new: the folder that it is to be in does not exist"),
    text("export over something", "plan.json", "{}", ["export", "plan.json", "--to", "llm-d", "--out", "."], "the folder is not empty"),
    # Batch problems
    problem("NaN in a problem", "not valid JSON: NaN", pending_s=[float("nan"), 1.0]),
    problem("negative blocks", "-4", kv_blocks=[-4, 6]),
    problem("arrays of other lengths", "kv_blocks", kv_blocks=[4]),
    problem("memory is missing", "memory_blocks", memory_blocks=None),
    problem("fractional blocks", "4.5", kv_blocks=[4.5, 6]),
    # Traces
    text("empty trace", "trace.csv", "", TRACE, "trace.csv"),
    text("trace of no known format", "trace.csv", "a,b,c\n1,2,3\n", TRACE, "trace.csv"),
    text("damaged number", "trace.csv", CONSERVE.replace("7,112", "seven,112"), TRACE, "line 3.*appended_input.*seven"),
    text("negative number", "trace.csv", CONSERVE.replace("0,0,100", "0,0,-100"), TRACE, "line 2.*-100"),
    text("truncated line", "trace.csv", CONSERVE + "1,0,55", TRACE, "line 4"),
    text("truncated Parquet", "trace.parquet", "PAR1 and no more", ["trace", "stats", "trace.parquet"], "trace.parquet"),
    text("too few conversations", "trace.csv", CONSERVE, ["plan", "swe-agent-a40", "--trace", "trace.csv"], "255"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_gives_one_line_and_leaves_nothing_behind(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTSCHED_MODELS", str(tmp_path / "models"))
    case.write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = (
        [*case.arguments, "--out", "out.json"] if case.arguments[0] == "plan" and len(case.arguments) > 1 else case.arguments
    )
    assert invoke(arguments) == case.code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("optsched: ")
    assert "Traceback" not in printed.err
    assert re.search(case.says, printed.err), printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_table_has_at_least_forty_cases():
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


def test_an_unwritable_out_is_one_line(tmp_path, capsys):
    assert (
        invoke(
            ["trace", "synthesise", "swe-agent-quickstart", "--conversations", "2", "--out", str(tmp_path / "no" / "w.parquet")]
        )
        == 1
    )
    assert "choose another --out" in capsys.readouterr().err
