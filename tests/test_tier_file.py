from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import fits, gemm_laws

from optsched import catalog
from optsched.domain.efficiency import GemmLaw
from optsched.domain.fit import Fit
from optsched.domain.hardware import Gpu
from optsched.errors import SpecError
from optsched.files import open_envelope, validate
from optsched.tier_file import table_text, with_tables

TEXT = '''# a card
name = "x"
note = """
[efficiency.gemm.bf16]
compute = 1
"""

[efficiency] # share of the peaks
source = "here"

# large products
[efficiency.gemm.bf16]
compute = 0.5 # old

[efficiency.gemm.bf16.fit]
source = "old"

# these were measured
[[step_laws]]
llm = "a"
'''


def rounded(law: GemmLaw) -> GemmLaw:
    return GemmLaw.model_validate(tomllib.loads(table_text("x", law))["x"])


@given(law=gemm_laws(), dtype=st.sampled_from(["bf16", "fp8"]))
def test_one_table_changes_and_every_other_value_and_comment_stays(law: GemmLaw, dtype: str) -> None:
    found = with_tables(TEXT, {f"efficiency.gemm.{dtype}": law})
    old, new = tomllib.loads(TEXT), tomllib.loads(found)
    assert GemmLaw.model_validate(new["efficiency"]["gemm"].pop(dtype)) == rounded(law)
    old["efficiency"]["gemm"].pop(dtype, None)
    assert new == old
    for comment in (
        "# a card",
        "# large products\n[efficiency.gemm.bf16]",
        "# share of the peaks",
        "# these were measured\n[[step_laws]]",
    ):
        assert comment in found
    assert ("# old" in found) == (dtype != "bf16")
    assert with_tables(found, {f"efficiency.gemm.{dtype}": law}) == found


@given(fit=fits())
def test_a_fit_survives_writing_up_to_its_digits(fit: Fit) -> None:
    found = Fit.model_validate(tomllib.loads(table_text("a.fit", fit))["a"]["fit"])
    assert found.parameters == fit.parameters
    assert found.rows_left_out == fit.rows_left_out
    assert found.train_mape == pytest.approx(fit.train_mape, rel=1e-5)
    assert (found.source, found.heldout_llms_mape is None) == (fit.source, fit.heldout_llms_mape is None)


@pytest.mark.parametrize("name", catalog.gpus())
def test_every_packaged_gpu_takes_a_new_law_and_nothing_else_changes(name: str) -> None:
    path = catalog.data_root() / "models" / "gpus" / f"{name}.toml"
    text, law = path.read_text(encoding="utf-8"), GemmLaw(compute=0.123456)
    found = with_tables(text, {"efficiency.gemm.tf32": law})
    gpu = validate(Gpu, open_envelope(tomllib.loads(found), "gpu"))
    assert gpu.efficiency.gemm["tf32"] == law
    assert gpu.datasheet == catalog.gpu(name).datasheet
    assert set(text.splitlines()) <= set(found.splitlines())


def test_tables_that_no_header_marks_are_refused() -> None:
    with pytest.raises(SpecError, match=r"\[efficiency.gemm\] is written without a header of its own; write it as a table"):
        with_tables("[efficiency]\ngemm = { bf16 = { compute = 1.0 } }\n", {"efficiency.gemm": GemmLaw()})
    with pytest.raises(SpecError, match="not valid TOML"):
        with_tables("[efficiency\n", {"efficiency.gemm": GemmLaw()})


def test_a_table_of_an_empty_file_stands_alone() -> None:
    assert with_tables("", {"a.b": GemmLaw(compute=0.5)}).startswith("[a.b]\ncompute = 0.5\n")
