from __future__ import annotations

import pytest
from hypothesis import given
from strategies import gpus

from optsched import catalog
from optsched.domain.efficiency import GemmLaw
from optsched.domain.fit import Fit
from optsched.domain.hardware import Gpu
from optsched.domain.inheritance import inherited, without_fits
from optsched.errors import SpecError, UnknownNameError

FIT = Fit(source="a test", date="2026-11-21", num_rows=1, train_mape=0.1)


@given(gpu=gpus(), sibling=gpus())
def test_own_numbers_stay_and_inherited_laws_are_not_called_fitted(gpu: Gpu, sibling: Gpu) -> None:
    found = inherited(gpu, sibling)
    assert (found.name, found.datasheet, found.price) == (gpu.name, gpu.datasheet, gpu.price)
    for name in gpu.efficiency.model_fields_set - {"origin"}:
        value = getattr(gpu.efficiency, name)
        if isinstance(value, dict):
            assert getattr(found.efficiency, name).items() >= value.items()
        elif name != "collectives":
            assert getattr(found.efficiency, name) == value
    for dtype, law in found.efficiency.gemm.items():
        expected = gpu.efficiency.gemm.get(dtype) or without_fits(sibling.efficiency.gemm[dtype])
        assert law == expected
    if not gpu.efficiency.gemm:
        assert found.efficiency.origin == "assumed"
        assert all(law.fit is None for law in found.efficiency.gemm.values())


@given(gpu=gpus())
def test_a_gpu_inherits_nothing_new_from_itself(gpu: Gpu) -> None:
    found = inherited(gpu, gpu)
    assert without_fits(found.efficiency).replace(origin="assumed") == without_fits(gpu.efficiency).replace(origin="assumed")


def test_collectives_are_inherited_over_the_same_interconnect_only() -> None:
    sxm = catalog.gpu("h100-sxm")
    near = sxm.replace(efficiency=sxm.efficiency.replace(gemm={"bf16": GemmLaw(fit=FIT)}))
    bare = sxm.replace(efficiency=type(sxm.efficiency)(source="none", idle_w=70.0))
    far = bare.replace(datasheet=bare.datasheet.replace(interconnect="pcie5-x16"))
    assert inherited(bare, near).efficiency.collectives == without_fits(near.efficiency.collectives)
    assert inherited(far, near).efficiency.collectives is None
    assert inherited(far, near).efficiency.gemm["bf16"] == GemmLaw()


def test_siblings_that_name_each_other_and_unknown_ones_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPTSCHED_MODELS", str(tmp_path))
    (tmp_path / "gpus").mkdir()
    text = catalog.gpu_path("l4").read_text(encoding="utf-8")

    def write(name: str, sibling: str) -> None:
        named = text.replace('name = "l4"', f'name = "{name}"')
        lines = [line for line in named.splitlines() if not line.startswith("sibling =")]
        lines.insert(lines.index("[efficiency]") + 1, f'sibling = "{sibling}"')
        (tmp_path / "gpus" / f"{name}.toml").write_text("\n".join(lines), encoding="utf-8")

    write("one", "two")
    write("two", "one")
    write("three", "h100-sxn")
    with pytest.raises(SpecError, match=r"efficiency\.sibling: siblings name each other: one -> two -> one"):
        catalog.gpu("one")
    with pytest.raises(UnknownNameError, match="Unknown gpu 'h100-sxn'; did you mean: h100-sxm"):
        catalog.gpu("three")
