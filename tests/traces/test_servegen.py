from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.traces.importers import import_trace
from optsched.traces.options import ImportOptions

TRACE = "0,0,0,,0,0\n600,2.0,1,Gamma,1.0,0.5\n1200,1.0,1,Weibull,0.6,1\n"
DATASET = json.dumps(
    {
        "0": {"input_tokens": "{}", "output_tokens": "{}", "reason_ratio": "{}"},
        "600": {"input_tokens": "{10: 0.25, 30: 0.75}", "output_tokens": "{0: 0.5, 7: 0.5}", "reason_ratio": "{0.5: 1.0}"},
    }
)


def _folder(path: Path, trace: str = TRACE, dataset: str | None = DATASET, number: int = 4) -> Path:
    path.mkdir(exist_ok=True)
    (path / f"chunk-{number}-trace.csv").write_text(trace)
    if dataset is not None:
        (path / f"chunk-{number}-dataset.json").write_text(dataset)
    return path


def _archive(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "model")
    return path


def _sample(path: Path, **options: object) -> Workload:
    return import_trace(path, "servegen", ImportOptions(**options))  # type: ignore[arg-type]


def test_rates_and_lengths_are_those_of_the_clients(tmp_path: Path) -> None:
    folder = _folder(_folder(tmp_path / "m").parent / "m", TRACE.replace("2.0", "3.0"), number=5)
    workload = _sample(folder, seed=1, window_s=(600.0, 1200.0))
    assert workload.num_conversations == 600 * 5
    assert workload.arrival_s[-1] <= 600
    assert set(workload.new_tokens.tolist()) == {10, 30}
    assert (workload.new_tokens == 30).mean() == pytest.approx(0.75, abs=0.04)
    assert set(workload.output_tokens.tolist()) == {1, 7}
    assert abs(np.corrcoef(workload.new_tokens, workload.output_tokens)[0, 1]) < 0.06


def test_gaps_have_the_variation_of_their_distribution(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m", "0,0,0,,0,0\n600,50.0,2,Gamma,0.25,1\n1200,50.0,2,Weibull,0.5,1\n")
    bursty = np.diff(_sample(folder, window_s=(600.0, 1200.0)).arrival_s)
    assert bursty.std() / bursty.mean() == pytest.approx(2.0, rel=0.1)  # 1 / sqrt(shape)
    heavy = np.diff(_sample(folder, window_s=(1200.0, 1800.0)).arrival_s)
    assert heavy.std() / heavy.mean() == pytest.approx(np.sqrt(5), rel=0.1)  # sqrt(G(5) / G(3)^2 - 1) for shape 1/2


def test_seed_rate_and_window_are_respected(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m")
    assert _sample(folder, seed=3) == _sample(folder, seed=3)
    assert _sample(folder, seed=3) != _sample(folder, seed=4)
    assert _sample(folder).num_conversations == 1200 + 600
    assert _sample(folder, window_s=(600.0, 1800.0), rate_per_s=0.5).num_conversations == pytest.approx(600, abs=2)
    assert _sample(folder, window_s=(900.0, 1300.0)).num_conversations == 600 + 100


def test_another_client_leaves_the_requests_of_the_first_as_they_are(tmp_path: Path) -> None:
    alone = _sample(_folder(tmp_path / "m"), window_s=(600.0, 1200.0))
    both = _sample(_folder(tmp_path / "m", number=9), window_s=(600.0, 1200.0))
    gaps = np.round(alone.arrival_s - alone.arrival_s[0], 6)
    offsets = both.arrival_s[:, None] - both.arrival_s[None, :3]
    assert any(np.isin(gaps, np.round(offsets[:, start], 6)).mean() > 0.99 for start in range(3))


def test_a_folder_and_its_archive_give_the_same_requests(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m")
    assert _sample(_archive(folder, tmp_path / "m.tar.gz"), seed=2) == _sample(folder, seed=2)


@pytest.mark.parametrize(
    ("trace", "dataset", "match"),
    [
        ("0,1,1,Gamma,1\n", DATASET, r"chunk-4-trace.csv: line 1: 5 cells: must be start, rate, cv"),
        ("0,x,1,Gamma,1,1\n", DATASET, r"chunk-4-trace.csv: line 1: rate: 'x': must be a finite number"),
        ("0,1,1,Normal,1,1\n", DATASET, r"line 1: pattern: 'Normal': must be Gamma, Weibull or empty"),
        ("0,1,1,Gamma,0,1\n", DATASET, r"line 1: shape: 0: the shape of a gap distribution must be positive"),
        ("0,1,1,Gamma,1,1\n0,1,1,Gamma,1,1\n", DATASET, r"line 2: start: 0: must come after the window before"),
        ("", DATASET, r"chunk-4-trace.csv: missing or empty; is the archive complete\?"),
        ("0,0,0,,0,0\n", DATASET, r"no client sends a request between 0 s and 86400 s; choose another --window"),
        ("0,0.000001,1,Gamma,1,1\n", DATASET, r"no request was drawn; widen --window, or raise --rate"),
        (TRACE, None, r"chunk-4-dataset.json: missing or without histograms, but the client sends requests"),
        (TRACE, '{"0": ', r"chunk-4-dataset.json: not valid JSON: .*; is the archive truncated\?"),
        (TRACE, "[]", r"chunk-4-dataset.json: must be an object of histograms"),
        (TRACE, '{"noon": {}}', r"chunk-4-dataset.json: noon: must be the start of a stretch"),
        (TRACE, '{"0": {}}', r"chunk-4-dataset.json: 0: input_tokens: missing"),
        (TRACE, '{"0": {"input_tokens": "{1: ", "output_tokens": "{}"}}', r"0: input_tokens: must be a dictionary of token"),
        (TRACE, '{"0": {"input_tokens": "__import__(1)", "output_tokens": "{}"}}', r"input_tokens: must be a dictionary"),
        (TRACE, '{"0": {"input_tokens": "{1: -1.0}", "output_tokens": "{}"}}', r"input_tokens: token counts and shares must not"),
    ],
)
def test_a_damaged_client_is_named(trace: str, dataset: str | None, match: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=match):
        _sample(_folder(tmp_path / "m", trace, dataset))


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    path = tmp_path / "m.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("model/chunk-1-trace.csv")
        entry.size = len(noise)
        archive.addfile(entry, io.BytesIO(noise))
    with pytest.raises(SpecError, match=r"model/chunk-1-trace.csv: not UTF-8 text"):
        _sample(path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(SpecError, match=r"not a readable archive: .*; is it truncated\?"):
        _sample(path)


def test_the_published_clients_send_what_their_rates_say(third_party_data: Path) -> None:
    path = third_party_data / "traces" / "servegen_reason_deepseek-r1.tar.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    workload = import_trace(path, options=ImportOptions(window_s=(43200.0, 46800.0), rate_per_s=2.5, seed=1))
    assert workload.num_conversations == pytest.approx(9000, abs=30)
    assert workload.arrival_s[-1] == pytest.approx(3600, abs=5)
    assert 500 < workload.new_tokens.mean() < 4000
    assert 500 < workload.output_tokens.mean() < 4000
