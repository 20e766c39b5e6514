from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from optsched import catalog
from optsched.errors import SpecError, UnknownNameError

GPUS = {
    "a40",
    "a100-40gb",
    "a100-80gb",
    "h100-sxm",
    "h100-pcie",
    "h200",
    "b200",
    "l40s",
    "l4",
    "a10g",
    "rtx-4090",
    "rtx-pro-6000",
}
MODELS = catalog.data_root() / "models"


@pytest.fixture
def user_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for kind in ("gpus", "llms", "links"):
        (tmp_path / kind).mkdir()
    monkeypatch.setenv("OPTSCHED_MODELS", str(tmp_path))
    return tmp_path


def test_the_packaged_data_is_found() -> None:
    assert set(catalog.gpus()) >= GPUS | {"mi300x", "local-cpu"}
    assert set(catalog.llms()) >= {"opt-13b", "qwen3-0.6b", "deepseek-v3", "tiny-opt", "demo-qwen3"}
    assert set(catalog.links()) >= {"nvlink3", "nvlink4", "nvlink5", "pcie4-x16", "pcie5-x16", "loopback", "kv-transfer-a40"}


@pytest.mark.parametrize("kind", ["gpus", "llms", "links"])
def test_every_packaged_file_is_named_after_what_it_holds(kind: str) -> None:
    find = {"gpus": catalog.gpu, "llms": catalog.llm, "links": catalog.link}[kind]
    paths = sorted((MODELS / kind).glob("*.toml"))
    assert paths
    assert [find(path.stem).name for path in paths] == [path.stem for path in paths]


def test_every_packaged_recipe_and_scenario_loads() -> None:
    for name in catalog.recipes():
        assert catalog.recipe(name).name == name
    for name in catalog.scenarios():
        scenario = catalog.scenario(name)
        for gpu in scenario.supply:
            assert catalog.gpu(gpu).name == gpu


def test_a_gpu_an_llm_and_a_link_are_added_by_files_alone(user_models: Path) -> None:
    for kind, old, new in (("gpus", "l4", "my-card"), ("llms", "qwen3-0.6b", "my-llm"), ("links", "nvlink4", "my-link")):
        text = (MODELS / kind / f"{old}.toml").read_text().replace(f'name = "{old}"', f'name = "{new}"')
        (user_models / kind / f"{new}.toml").write_text(text)
    assert catalog.gpu("my-card").datasheet == catalog.gpu("l4").datasheet
    assert catalog.llm("my-llm").num_params == catalog.llm("qwen3-0.6b").num_params
    assert catalog.link("my-link").bytes_per_s == catalog.link("nvlink4").bytes_per_s
    assert catalog.tier("my-card@60W").name == "my-card@60W"
    assert {"my-card", "a40"} <= set(catalog.gpus())


def test_a_user_s_file_comes_before_the_packaged_one(user_models: Path) -> None:
    text = (MODELS / "gpus" / "a40.toml").read_text().replace('title = "NVIDIA A40 48 GB"', 'title = "mine"')
    (user_models / "gpus" / "a40.toml").write_text(text)
    assert catalog.gpu("a40").title == "mine"
    assert catalog.gpus().count("a40") == 1


def test_a_user_s_broken_file_is_named(user_models: Path) -> None:
    (user_models / "gpus" / "broken.toml").write_text("schema = ")
    with pytest.raises(SpecError, match=r"broken\.toml: not valid TOML"):
        catalog.gpu("broken")


def test_unknown_names_are_refused_with_near_matches_and_the_way_to_add_one() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Unknown gpu 'a4'; did you mean: a40.*gpus/NAME.toml in the folder \$OPTSCHED_MODELS"
    ):
        catalog.gpu("a4")
    with pytest.raises(UnknownNameError, match="Unknown link 'nvlink9'; did you mean: nvlink"):
        catalog.link("nvlink9")
    with pytest.raises(UnknownNameError, match=r"Unknown llm 'qwen3-0.7b'; did you mean: qwen3-0.6b.*Hugging Face config.json"):
        catalog.llm("qwen3-0.7b")
    with pytest.raises(UnknownNameError, match=r"Unknown workload 'no-such'.*path of a recipe"):
        catalog.recipe("no-such")
    with pytest.raises(UnknownNameError, match=r"Unknown scenario 'no-such'.*path of a scenario file"):
        catalog.scenario("no-such")


def test_paths_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        catalog.llm(str(tmp_path / "config.json"))
    with pytest.raises(SpecError, match="no such file"):
        catalog.recipe(str(tmp_path / "recipe.toml"))
    with pytest.raises(SpecError, match=r"no such file.*optsched show scenarios"):
        catalog.scenario(str(tmp_path / "scenario.toml"))


@pytest.mark.parametrize(
    ("name", "cap_w"), [("a40", 300.0), ("a40@200W", 200.0), ("a40@200", 200.0), ("a40@0.2kW", 200.0), ("a40@250.5", 250.5)]
)
def test_a_tier_is_a_gpu_at_a_cap(name: str, cap_w: float) -> None:
    tier = catalog.tier(name)
    assert (tier.gpu.name, tier.power_cap_w) == ("a40", cap_w)
    assert catalog.tier(tier.name) == tier


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a40@77W", "power cap 77 W of a40 must lie above its idle power 77 W and at most at its board power 300 W"),
        ("a40@301W", "power cap 301 W"),
        ("a40@-200W", "power cap -200 W"),
        ("a40@200GB", "tier 'a40@200GB': '200GB' is not a quantity in W"),
        ("a40@fast", "tier 'a40@fast'"),
        ("a40@nan", "tier 'a40@nan'"),
    ],
)
def test_a_cap_outside_the_card_s_range_is_refused(name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        catalog.tier(name)


def test_without_a_named_folder_the_platform_s_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTSCHED_MODELS")
    assert catalog.user_models().parts[-2:] == ("optsched", "models")
