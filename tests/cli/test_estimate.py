from __future__ import annotations

import json

import pytest

from optsched import catalog
from optsched.cli import invoke
from optsched.domain.fit import Fit
from optsched.domain.hardware import Tier
from optsched.domain.inheritance import without_fits

A40 = ["estimate", "--llm", "qwen3-0.6b", "--tier", "a40@200W"]


def test_estimate_prints_one_json_object_with_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*A40, "--prompt", "16000", "--batch", "64", "--context", "2000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"prefill_s", "decode_step_s", "prefill_energy_j", "decode_energy_j_per_token", "memory", "origin"} <= set(found)
    assert {"weights_bytes", "kv_bytes_per_token", "hidden_bytes_per_token", "kv_token_budget"} <= set(found["memory"])
    assert found["origin"] in {"assumed", "fitted"}
    assert found["prefill_s"] == pytest.approx(0.80, rel=0.15)  # ConServe artifact, 200 W
    assert "sensitivity" not in found
    assert 0 < found["prefill_standard_error_s"] < 0.1 * found["prefill_s"]


def test_estimate_shows_tables_and_says_that_coefficients_are_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["estimate", "--llm", "qwen3-0.6b", "--tier", "mi300x", "--sensitivity"]) == 0
    text = capsys.readouterr().out
    for word in (
        "decode step",
        "KV cache budget",
        "prefill attention",
        "limited by",
        "memory bandwidth",
        "No standard error: assumed",
    ):
        assert word in text


def test_sensitivity_is_part_of_the_json_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*A40, "--sensitivity", "--hidden-tokens", "512", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["sensitivity"]["decode"]) == {
        "compute", "memory_bandwidth", "link_bandwidth", "link_latency", "overheads", "power_cap",
    }  # fmt: skip
    assert found["sensitivity"]["decode"]["overheads"]["elasticity"] > 0
    assert found["sensitivity"]["prefill"]["compute"]["change"] < 0
    assert any(row["operation"] == "hidden rebuild" for row in found["breakdown"]["decode"])


def test_standard_errors_are_shown_beside_the_error_of_the_laws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = without_fits(catalog.gpu("a40"))
    fit = Fit(
        source="invented", date="2026-11-21", num_rows=9, train_mape=0.03, heldout_shapes_mape=0.05,
        parameters=("compute", "memory"), covariance=((4e-4, 1e-4), (1e-4, 4e-4)),
    )  # fmt: skip
    law = card.efficiency.gemm_law("bf16").replace(compute=0.6, memory=0.7, fit=fit)
    fitted = card.replace(efficiency=card.efficiency.replace(gemm={"bf16": law}, origin="fitted"))
    monkeypatch.setattr(catalog, "tier", lambda name: Tier(fitted, 200.0))
    assert invoke([*A40, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["prefill_standard_error_s"] < 0.1 * found["prefill_s"]
    assert 0 < found["decode_step_standard_error_s"] < 0.1 * found["decode_step_s"]
    assert 0 < found["prefill_energy_standard_error_j"] < 0.1 * found["prefill_energy_j"]
    assert 0 < found["decode_step_model_error"] < 0.05
    assert "decode_attention" in found["not_fitted"]
    assert invoke(A40) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("+-", "standard error of the fitted coefficients alone", "held-out measurements", "Not fitted, so in neither:"):
        assert words in text


def test_several_gpus_and_a_named_link_can_be_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "--llm", "opt-30b", "--tier", "a100-40gb", "--tp", "2", "--link", "pcie4-x16", "--json"]
    assert invoke(words) == 0
    rows = json.loads(capsys.readouterr().out)["breakdown"]["prefill"]
    assert [row["resource"] for row in rows if row["operation"] == "all reduce"] == ["link"]


def test_more_tokens_than_fit_or_than_the_llm_knows_are_estimated_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*A40, "--prompt", "50000", "--batch", "8", "--json"]) == 0
    errors = capsys.readouterr().err
    assert "50000 tokens exceed the 40960 positions of qwen3-0.6b" in errors
    assert "8 x 50000 cached tokens exceed the budget of" in errors


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--prompt", "0"], 1, "prompt 0 must be at least 1"),
        (["--batch", "-1"], 1, "batch -1 must be at least 1"),
        (["--context", "0"], 1, "context 0 must be at least 1"),
        (["--tp", "3"], 1, "tp=3 does not divide the 16 heads"),
        (["--tp", "0"], 1, "tp=0 and pp=1 must be at least 1"),
        (["--hidden-tokens", "5000"], 1, "hidden tokens 5000 must lie between 0 and"),
        (["--tp", "2", "--link", "strnig"], 1, "Unknown link 'strnig'"),
        (["--prompt", "many"], 2, "many"),
    ],
)
def test_wrong_numbers_are_refused_in_one_line(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke([*A40, *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_llm_that_does_not_fit_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["estimate", "--llm", "opt-66b", "--tier", "a40", "--json"]) == 1
    assert "opt-66b needs" in capsys.readouterr().err


def test_an_engine_without_cuda_graphs_spends_much_of_a_decode_step_on_launches(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["estimate", "--llm", "opt-13b", "--tier", "a100-40gb", "--batch", "50", "--context", "400", "--engine", "eager"]
    assert invoke([*given, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert 0.030 <= answer["decode_step_s"] <= 0.150
    assert 0.1 < answer["overhead_share"]["decode"] < 0.9
    assert invoke(given) == 0
    assert "Overheads of the engine take" in capsys.readouterr().out
    assert invoke([*given[:-1], "magic"]) == 1
    assert "magic" in capsys.readouterr().err


def test_a_pipeline_shows_what_it_decodes_when_full(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "--llm", "qwen3-30b-a3b", "--tier", "h100-sxm", "--tp", "2", "--pp", "2", "--expert-parallel"]
    assert invoke([*command, "--batch", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["pipeline"]
    assert (found["batches"], found["sequences"]) == (2, 8)
    assert found["tokens_per_s"] > found["alone_tokens_per_s"]
    assert invoke([*command, "--batch", "16"]) == 0
    text = capsys.readouterr().out
    assert "Full pipeline: 2 batches of 8 sequences in flight" in text
    assert "tp=2, pp=2, whole experts" in text
