"""Tiers fitted to files: the log of our own workers, and tables of others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from factories import LAW, make_plan, make_workload

from optsched import catalog, files
from optsched.cli import invoke
from optsched.cli.link_writing import write_link
from optsched.domain.hardware import Gpu, Link
from optsched.domain.plan import Plan
from optsched.logfile import save_log
from optsched.simulator.simulate import simulate

WORKLOAD = make_workload(
    [[(120, 30), (40, 20)], [(300, 40)], [(64, 60), (10, 30)]] * 4, [0.1 * index for index in range(12)], 0.3
)
PLAN = make_plan(["mixed", "mixed"], policy="collocated")


def observed(path: Path, plan: Plan = PLAN, origin: str = "observed", noise: float = 0.0, keep_plan: bool = True) -> Path:
    """Write the log of an execution whose steps took as long as the law says, give or take some noise."""
    log = simulate(PLAN, WORKLOAD)
    wobble = np.exp(noise * np.random.default_rng(0).standard_normal(log.iterations))
    steps = replace(log.steps, end_s=log.steps.start_s + (log.steps.end_s - log.steps.start_s) * wobble)
    save_log(replace(log, origin=origin, steps=steps), WORKLOAD, path, plan if keep_plan else None)  # type: ignore[arg-type]
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTSCHED_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_log_s_steps_become_the_step_law_of_its_gpu_and_all_else_of_the_file_stays(folder: Path, capsys) -> None:
    observed(folder / "log.parquet", noise=0.02)
    assert invoke(["calibrate", "--from", "log.parquet", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = catalog.gpu("a40")
    (fitted,) = found.step_laws
    assert (fitted.llm, fitted.tp) == ("tiny", 1)
    assert "log.parquet at 300 W" in fitted.origin
    assert printed["out"] == str(folder / "models" / "gpus" / "a40.toml")
    assert printed["step_laws"][0]["heldout_mape"] < 0.1
    packaged = files.load(Gpu, "gpu", catalog.data_root() / "models" / "gpus" / "a40.toml")
    assert found.replace(step_laws=()) == packaged
    # a step that the log is full of is timed as it was
    assert float(fitted.law.step_s(2, 0, 400, 2)) == pytest.approx(float(LAW.step_s(2, 0, 400, 2)), rel=0.1)
    assert invoke(["calibrate", "--from", "log.parquet", "--tier", "a40", "--out", "mine.toml"]) == 0
    assert "Step laws fitted to the log" in capsys.readouterr().out
    assert files.load(Gpu, "gpu", folder / "mine.toml").step_laws == (fitted,)


def test_a_log_of_this_machine_s_workers_gives_the_link_between_them_too(folder: Path, capsys) -> None:
    """The simulated hand-overs stand for observed ones: they take exactly what the plan's links say."""
    cap_w = catalog.gpu("local-cpu").datasheet.power_w
    plan = make_plan(["prefill", "decode"], policy="conserve")
    plan = plan.replace(replicas=tuple(each.replace(gpu="local-cpu", power_cap_w=cap_w) for each in plan.replicas))
    log = replace(simulate(plan, WORKLOAD), origin="observed")
    save_log(log, WORKLOAD, folder / "log.parquet", plan)
    assert invoke(["calibrate", "--from", "log.parquet", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    link = catalog.link("loopback")
    assert printed["link"] == link.model_dump(mode="json", include={"latency_s", "bytes_per_s", "busy_slowdown"})
    assert max(link.busy_slowdown) == pytest.approx(1.0)
    assert printed["link_out"] == str(folder / "models" / "links" / "loopback.toml")
    assert "12 hand-overs of cache" in link.source
    took = log.transfers.end_s - log.transfers.start_s
    assert link.latency_s + log.transfers.bytes / link.bytes_per_s == pytest.approx(took, rel=1e-6)
    assert invoke(["calibrate", "--from", "log.parquet"]) == 0
    assert "Hand-over of cache:" in capsys.readouterr().out


def test_a_step_law_that_predicts_badly_comes_with_a_warning(folder: Path, capsys) -> None:
    observed(folder / "log.parquet", noise=1.0)
    assert invoke(["calibrate", "--from", "log.parquet"]) == 0
    assert "off on measurements it was not fitted to, more than 25%; do not rely on it" in capsys.readouterr().err


def test_logs_that_cannot_teach_anything_are_refused_in_one_line(folder: Path, capsys) -> None:
    def refusal(*words: str) -> str:
        assert invoke(["calibrate", *words]) == 1
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1
        return err

    path = str(observed(folder / "log.parquet", origin="simulated"))
    assert "the log is of a simulation, whose times are this model's own" in refusal("--from", path)
    path = str(observed(folder / "log.parquet", keep_plan=False))
    assert "the log names no plan, so its replicas are unknown" in refusal("--from", path)
    path = str(observed(folder / "log.parquet"))
    assert "no replica of the log stands on h200; choose --tier among a40" in refusal("--from", path, "--tier", "h200")
    caps = PLAN.replace(replicas=(PLAN.replicas[0].replace(power_cap_w=200.0), PLAN.replicas[1]))
    path = str(observed(folder / "log.parquet", caps))
    assert "replicas on a40 ran at 200, 300 W; a step law holds at one power cap" in refusal("--from", path)
    two = PLAN.replace(replicas=(PLAN.replicas[0].replace(gpu="l4", power_cap_w=72.0), PLAN.replicas[1]))
    path = str(observed(folder / "log.parquet", two))
    assert "the log's replicas stand on a40, l4; choose one with --tier" in refusal("--from", path)
    assert "no such file" in refusal("--from", "nowhere.parquet")
    assert "--profile and --from exclude each other" in refusal("--from", path, "--profile", path)


def nccl_table(path: Path, noise: float) -> None:
    """Write a table of all-gathers and all-to-alls as aiconfigurator's, over a link of 25 us and 20 GB/s."""
    draw = np.random.default_rng(1)
    rows = [(kind, gpus, 1 << power) for kind in ("all_gather", "alltoall") for gpus in (2, 4, 8) for power in range(8, 28)]
    seconds = np.array([25e-6 * np.log2(gpus) + 2 * size * (gpus - 1) / gpus / 20e9 for _, gpus, size in rows])
    table = pl.DataFrame(
        {
            "kernel_source": "NCCL", "nccl_dtype": "half", "op_name": [kind for kind, _, _ in rows],
            "num_gpus": [gpus for _, gpus, _ in rows], "message_size": [size for _, _, size in rows],
            "latency": seconds * 1e3 * np.exp(noise * draw.standard_normal(len(rows))),
        }
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path)


def test_a_folder_of_tables_becomes_laws_in_the_gpu_s_file_and_all_else_of_it_stays(folder: Path, capsys) -> None:
    nccl_table(folder / "measured" / "nccl" / "nccl_perf.parquet", noise=0.02)
    (folder / "measured" / "notes.csv").write_text("what,when\nnothing,never\n")
    (folder / "measured" / "README.md").write_text("notes")
    assert invoke(["calibrate", "--profile", "measured", "--tier", "l4", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "measured/notes.csv: none of the known tables; left out\n"
    printed = json.loads(captured.out)
    assert set(printed["laws"]) >= {"collectives.all_gather.two", "collectives.all_to_all.eight"}
    assert all(fit["heldout_shapes_mape"] < 0.25 for fit in printed["laws"].values())
    packaged = catalog.data_root() / "models" / "gpus" / "l4.toml"
    written = (folder / "models" / "gpus" / "l4.toml").read_text(encoding="utf-8")
    assert set(packaged.read_text(encoding="utf-8").splitlines()) <= set(written.splitlines())
    found, before = catalog.gpu("l4"), files.load(Gpu, "gpu", packaged)
    assert found.efficiency.collectives is not None
    assert found.efficiency.collectives.all_gather.eight.fit is not None
    assert files.load(Gpu, "gpu", Path(printed["out"])).efficiency.replace(collectives=None) == before.efficiency
    assert invoke(["calibrate", "--profile", "measured", "--tier", "l4"]) == 0
    assert "Laws fitted to the measurements" in capsys.readouterr().out
    assert (folder / "models" / "gpus" / "l4.toml").read_text(encoding="utf-8") == written


def test_a_law_that_predicts_badly_comes_with_a_warning(folder: Path, capsys) -> None:
    nccl_table(folder / "nccl_perf.parquet", noise=1.5)
    assert invoke(["calibrate", "--profile", "nccl_perf.parquet", "--tier", "l4", "--json"]) == 0
    assert "collectives.all_to_all" in (warned := capsys.readouterr().err)
    assert "off on measurements it was not fitted to, more than 25%" in warned


def test_profiles_that_hold_no_known_table_are_refused_in_one_line(folder: Path, capsys) -> None:
    def refusal(*words: str) -> str:
        assert invoke(["calibrate", *words]) == 1
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1
        return err

    assert "--tier: name the gpu that the measurements are of" in refusal("--profile", ".")
    assert "no such file or folder" in refusal("--profile", "nowhere", "--tier", "a40")
    (folder / "x.csv").write_text("a,b\n1,2\n")
    assert "no table of a known form; known are tables of" in refusal("--profile", "x.csv", "--tier", "a40")
    (folder / "y.parquet").write_text("a,b\n1,2\n")
    assert "y.parquet: not a readable Parquet file" in refusal("--profile", "y.parquet", "--tier", "a40")
    (folder / "z.csv").write_bytes(b"\xff\xfe\x00")
    assert "z.csv: not a readable CSV file" in refusal("--profile", "z.csv", "--tier", "a40")


@pytest.mark.parametrize("name", ["loopback", "nvlink3", "infiniband-ndr"])
def test_a_link_file_keeps_all_that_a_calibration_did_not_change(tmp_path: Path, name: str) -> None:
    link = catalog.link(name)
    (tmp_path / "gpus").mkdir()
    path = write_link(link, tmp_path / "gpus" / "mine.toml")
    assert path is not None
    again = files.load(Link, "link", path)
    assert again.model_dump(exclude={"collectives"}) == link.model_dump(exclude={"collectives"})
    assert (again.collectives is None) == (link.collectives is None)
    assert write_link(link, tmp_path / "mine.toml") is None
