"""Cell measurement reports: the simulator's format, malformed lines, repetitions, made-up reports, the command."""

from __future__ import annotations

import gzip
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from semr.errors import InvalidInputError
from semr.settings import Settings, get_settings
from semr.storage import ObjectStore
from workflow_examples.qoe import data
from workflow_examples.qoe.reports import SCHEMA, Reading, read_reports
from workflow_examples.qoe.synthetic import PERIOD_MILLISECONDS, Synthetic, json_lines

ROOT = Path(__file__).parents[2]
SIMULATOR_FILE = ROOT.parent / "shared" / "data" / "cell.json.gz"
MADE = Synthetic(cells=4, reports=300)


def made_table() -> pa.Table:
    return pa.Table.from_batches(list(MADE.batches()))


def made_lines() -> list[bytes]:
    return [line for batch in MADE.batches() for line in json_lines(batch)]


def read(path: Path) -> tuple[pa.Table, Reading]:
    reading = Reading()
    return pa.Table.from_batches(list(read_reports(path, reading)), schema=SCHEMA), reading


def by_cell_and_time(table: pa.Table) -> pa.Table:
    return table.sort_by([("cell", "ascending"), ("time", "ascending")]).combine_chunks()


@pytest.mark.parametrize("packed", [False, True])
def test_reports_come_back_from_the_simulators_format(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "cell.json"
    content = b'{"metadata": {"simulator": 1}}\n\n' + b"".join(made_lines())
    path.write_bytes(gzip.compress(content) if packed else content)
    table, reading = read(path)
    assert by_cell_and_time(table).equals(by_cell_and_time(made_table()))
    assert (reading.malformed, reading.rows, reading.lines) == (0, len(table), len(made_lines()) + 1)
    assert (reading.first, reading.last) == (
        np.datetime64(table["time"][0].as_py()),
        np.datetime64(table["time"][-1].as_py()),
    )


def changed(line: bytes, **parts: Any) -> bytes:
    content = orjson.loads(line)
    content["cellMeasReport"].update(parts)
    return orjson.dumps(content) + b"\n"


def test_malformed_lines_are_kept_aside_with_their_numbers(tmp_path: Path) -> None:
    lines = made_lines()
    cells = orjson.loads(lines[0])["cellMeasReport"]["cellMeasReportList"]
    wrong = {
        1: b'{"cellMeasReport": {"du-id"\n',
        5: b"[1, 2]\n",
        6: b"null\n",
        7: b"\xff\xfe\n",
        9: b'{"cellMeasReport": 5}\n',
        20: changed(lines[20], measTimeStampRf="yesterday"),
        21: changed(lines[21], measTimeStampRf=None),
        22: changed(lines[22], cellMeasReportList=[{**cells[0], "throughput": "fast"}]),
        23: changed(lines[23], cellMeasReportList=[{**cells[0], "throughput": -1}]),
        24: changed(lines[24], cellMeasReportList=[{"nrCellIdentity": "c1/B2"}]),
        25: changed(lines[25], cellMeasReportList=[{**cells[0], "nrCellIdentity": None}]),
        26: lines[26].rstrip() + lines[27],
        27: changed(lines[27], cellMeasReportList=[{**cells[0], "throughput": 1e200}]),
    }
    for number, line in wrong.items():
        lines[number - 1] = line
    path = tmp_path / "cell.json"
    path.write_bytes(b"".join(lines))
    table, reading = read(path)
    assert [each.line for each in reading.kept] == sorted(wrong)
    assert reading.malformed == len(wrong)
    good = [orjson.loads(line) for number, line in enumerate(lines, start=1) if number not in wrong]
    assert len(table) == sum(len(each["cellMeasReport"]["cellMeasReportList"]) for each in good)
    assert reading.kept[0].text.startswith('{"cellMeasReport"')


def test_too_many_malformed_lines_store_nothing(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    path.write_bytes(b"".join([*made_lines()[:80], b"nonsense\n" * 2]))
    with pytest.raises(InvalidInputError, match=r"2 of 82 lines .* in line 81: 'nonsense'. Nothing was stored"):
        data.ingest(str(path), store=store)
    assert store.versions(data.DATASET) == []
    done = data.ingest(str(path), most_malformed=0.1, store=store)
    kept = store.filesystem.open_input_stream(done.quarantine.removeprefix("s3://")).read().decode().splitlines()
    assert [json.loads(line) for line in kept] == [{"line": 81, "text": "nonsense"}, {"line": 82, "text": "nonsense"}]


def test_repetitions_come_later_after_a_gap(store: ObjectStore) -> None:
    once = data.ingest(synthetic=MADE, store=store)
    thrice = data.ingest(synthetic=MADE, scale=3, store=store)
    assert thrice.version.rows == 3 * once.version.rows
    times = pc.unique(store.read(thrice.version, "all", ["time"])["time"].combine_chunks()).to_numpy()
    steps = np.diff(np.sort(times)).astype("timedelta64[ms]").astype(int) // PERIOD_MILLISECONDS
    assert (steps == 1).sum() == 3 * (MADE.reports - 1)
    assert (steps == 2).sum() == 2
    assert data.ingest(synthetic=MADE, store=store).version == once.version


def test_a_seed_means_the_same_reports_of_any_length() -> None:
    short = pa.Table.from_batches(list(Synthetic(cells=3, reports=1100, seed=7).batches()))
    long = pa.Table.from_batches(list(Synthetic(cells=3, reports=2500, seed=7).batches()))
    assert long.slice(0, len(short)).equals(short)
    other = pa.Table.from_batches(list(Synthetic(cells=3, reports=1100, seed=8).batches()))
    assert not other.equals(short)


def test_made_up_reports_have_what_they_promise() -> None:
    table = pa.Table.from_batches(list(Synthetic(cells=6, reports=6000, outage_probability=0.002).batches()))
    frame = table.to_pandas()
    resets = gaps = 0
    for _, cell in frame.groupby("cell"):
        growth = cell["pdcpBytesDl"].diff()
        resets += int((growth < 0).sum())
        gaps += int((cell["time"].diff() > timedelta(milliseconds=PERIOD_MILLISECONDS)).sum())
        hours = cell["time"].dt.hour
        by_hour = growth[growth > 0].groupby(hours).mean()
        assert by_hour.max() > 2 * by_hour.min()
    assert 30 < resets < gaps


def test_another_regime_is_another_load() -> None:
    plan = Synthetic(cells=2, reports=2000, regime_at=1000, outage_probability=0.0, loss_probability=0.0)
    cell = pa.Table.from_batches(list(plan.batches())).to_pandas().query("cell == 'c1/B2'")
    rates = cell["pdcpBytesDl"].diff().to_numpy()
    assert rates[1000:].mean() > 2 * rates[1:1000].mean()
    assert np.abs(np.diff(rates[1000:])).mean() > 3 * np.abs(np.diff(rates[1:1000])).mean()
    before = pa.Table.from_batches(
        list(Synthetic(cells=2, reports=2000, outage_probability=0, loss_probability=0).batches())
    )
    np.testing.assert_array_equal(
        before.to_pandas().query("cell == 'c1/B2'")["pdcpBytesDl"][:1000], cell["pdcpBytesDl"][:1000]
    )


@pytest.mark.parametrize("wrong", [{"cells": 0}, {"reports": 0}, {"loss_probability": 1.0}])
def test_plans_of_reports_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Synthetic(**wrong)


@pytest.fixture
def contract(object_store_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_store_settings.contract().items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()


@pytest.mark.usefixtures("contract")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cell.json"
    made = ["--cells", "2", "--reports", "50"]
    assert data.main([*made, "--export", str(path)]) == 0
    assert data.main(["--source", str(path)]) == 0
    output = capsys.readouterr().out
    assert "of 2 cells" in output and "stored" in output
    assert data.main(["--source", str(path)]) == 0
    assert "was there already" in capsys.readouterr().out
    assert data.main(["--source", str(tmp_path / "missing.json")]) == 2
    assert "There is no file" in capsys.readouterr().err
    path.write_text('{"metadata": {}}\n')
    assert data.main(["--source", str(path)]) == 2
    assert "has no cell measurement reports" in capsys.readouterr().err


def test_the_simulators_own_file() -> None:
    if not SIMULATOR_FILE.is_file():
        pytest.skip(f"{SIMULATOR_FILE} is not here")
    table, reading = read(SIMULATOR_FILE)
    assert (reading.reports, reading.rows, reading.malformed) == (13_505, 40_515, 0)
    assert reading.first == np.datetime64(datetime(2021, 7, 2, 13, 9, 28, 328000))
    constant = table.filter(pc.equal(table["cell"], "c2/B2"))["pdcpBytesDl"]
    assert pc.unique(constant).to_pylist() == [2.56]
