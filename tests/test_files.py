from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from strategies import gpus, links, llms, step_laws

from optsched import catalog
from optsched.domain.hardware import Gpu, Link
from optsched.domain.llm import Llm
from optsched.domain.step_law import StepLaw
from optsched.errors import SpecError
from optsched.files import canonical_sha256, dump, load, open_envelope, read_json, read_toml, save, sha256_of, write_atomically

LINK = 'schema = "optsched/link"\nversion = 1\nname = "x"\ntitle = "X"\nbandwidth = "1 GB/s"\nlatency = "1 us"\nsource = "here"\n'
RECORDS = st.one_of(gpus(), llms(), links(), step_laws())
KINDS: dict[type[BaseModel], str] = {Gpu: "gpu", Llm: "llm", Link: "link", StepLaw: "step-law"}


@given(record=RECORDS)
def test_every_record_survives_writing_and_reading(record: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("records") / "record.json"
    kind = KINDS[type(record)]
    save(record, kind, path)
    assert load(type(record), kind, path) == record
    assert canonical_sha256(load(type(record), kind, path)) == canonical_sha256(record)


@given(record=RECORDS, cut=st.floats(0, 0.999))
def test_a_truncated_file_is_refused_in_one_line(record: BaseModel, cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "record.json"
    text = json.dumps(dump(record, "gpu"), indent=1)
    path.write_text(text[: int(len(text) * cut)], encoding="utf-8")
    with pytest.raises(SpecError, match="is the file truncated") as caught:
        load(type(record), "gpu", path)
    assert str(path) in str(caught.value)
    assert caught.value.field is not None
    assert caught.value.field.startswith("line ")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_json_constants_that_are_no_numbers_are_refused(constant: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'{{"a": {constant}}}')
    with pytest.raises(SpecError, match=f"not valid JSON: {constant} is not a number"):
        read_json(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optsched/link", "optsched/gpu", "schema: 'optsched/gpu': expected 'optsched/link'; was another file meant"),
        ('schema = "optsched/link"\n', "", "schema: None: expected 'optsched/link'"),
        ("version = 1", "version = 2", "version: 2: this optsched reads version 1"),
        ("version = 1\n", "", "version: None: this optsched reads version 1"),
        ('source = "here"\n', "", "source: missing; add it"),
        ("title", "titel", r"titel: unknown key; did you mean .title."),
        ('source = "here"', 'source = "here"\nspeed = 3', "speed: unknown key; check its spelling, or remove it"),
        ("1 GB/s", "1 GB", "bandwidth: '1 GB' is not a quantity in B/s"),
        ("1 GB/s", "-1 GB/s", "bandwidth: .*greater than 0"),
        ("1 us", "nan s", "latency"),
        ('"1 GB/s"', "nan", "bandwidth: nan: .*finite number"),
        ('"1 GB/s"', "-inf", "bandwidth"),
        ('name = "x"', "name = 3", "name: 3: input should be a valid string"),
        ('name = "x"', "name = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(LINK.replace(old, new))
    with pytest.raises(SpecError, match=message) as caught:
        load(Link, "link", path)
    assert caught.value.file == path
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize("data", [[], "text", 3, None])
def test_an_envelope_must_be_a_table(data: object) -> None:
    with pytest.raises(SpecError, match="expected an object with schema 'optsched/gpu', got"):
        open_envelope(data, "gpu")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    for name, message in (("absent.toml", "no such file; check the path"), ("latin.toml", "not a UTF-8 text file .byte 8.")):
        with pytest.raises(SpecError, match=message):
            read_toml(tmp_path / name)
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    write_atomically(path, b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(SpecError, match="cannot be written: No space left on device; choose another --out"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_writing_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be written: No such file or directory"):
        write_atomically(tmp_path / "absent" / "out.json", b"new")


def test_hashes_are_those_of_the_bytes_and_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_of(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    with pytest.raises(SpecError, match="no such file"):
        sha256_of(tmp_path / "absent")
    with pytest.raises(SpecError, match="cannot be read"):
        sha256_of(tmp_path)
    link = catalog.link("nvlink4")
    assert canonical_sha256(link) != canonical_sha256(link.replace(latency_s=1.0))
