"""What recordings say of symbols and hours: against sums done another way, and through the command line on real bars."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markets import synthetic
from realdata import realdata
from typer.testing import CliRunner

from scalp_nb import cli
from scalp_nb.feed.barfiles import load_bars
from scalp_nb.feed.importers import load
from scalp_nb.feed.universe import load_universe
from scalp_nb.research.liquidity import bar_minutes, by_time, depth_minutes, liquidity, ranked

BARS = "nse_bars/derived_nifty50_1min_2021-03-30_2021-05-24.parquet"


@pytest.fixture(scope="module")
def nifty() -> pd.DataFrame:
    b = load_bars(realdata(BARS), "NSE")
    return bar_minutes(b.bars, b.universe)


def test_value_of_a_minute_against_the_file_itself(nifty: pd.DataFrame) -> None:
    raw = pd.read_parquet(realdata(BARS))
    raw["value"] = raw["volume"].fillna(0) * (raw["high"] + raw["low"] + raw["close"]) / 3
    raw = raw[(raw["ts_ist"].dt.strftime("%H:%M") >= "09:15") & (raw["ts_ist"].dt.strftime("%H:%M") < "15:30")]
    theirs = raw.drop_duplicates(["symbol", "ts_ist"], keep="last").groupby("symbol")["value"].sum()
    ours = nifty.groupby("symbol")["value"].sum()
    assert set(ours.index) == set(theirs.index) and np.allclose(ours, theirs[ours.index], rtol=1e-9)


def test_the_day_of_nse_is_u_shaped(nifty: pd.DataFrame) -> None:
    hours = by_time(nifty, 15).set_index("start")["value_vs_day"]
    assert hours["09:15"] == hours.max() and hours["09:15"] > 3 * hours["12:30"] and hours["15:15"] > 2 * hours["12:30"]


def test_recorded_depth_has_the_spread_of_its_fact_sheet() -> None:
    got = load(realdata("nse_depth/NIFTY25DECFUT_2025-12-29_kite_5level.csv.gz"))
    f = liquidity(depth_minutes(got.rows, got.universe))
    assert f["spread_bps"].iloc[0] == pytest.approx(1.0, abs=0.25)  # the recordings' README: 1.0 bps
    assert f["spread_ticks"].iloc[0] == pytest.approx(2.72 / 0.10, rel=0.25) and f["minutes"].iloc[0] == 5


def test_order_of_rows_and_of_recordings_changes_nothing() -> None:
    rows, universe = synthetic(4, 600, seed=8)
    m = depth_minutes(rows, universe)
    halves = [depth_minutes(rows[rows["sym"] % 2 == k], universe) for k in (1, 0)]
    pd.testing.assert_frame_equal(liquidity(m), liquidity(pd.concat(halves)))
    assert ranked(liquidity(m))["rank"].tolist() == [1, 2, 3, 4]


def test_the_command_on_real_bars(tmp_path: Path) -> None:
    file, out = realdata(BARS), tmp_path / "u.csv"
    args = ["universe", "--bars", str(file), "--min-value", "5e6", "--min-price", "100", "--top", "20", "--out", str(out)]
    r = CliRunner().invoke(cli.app, args, prog_name="scalp")
    assert r.exit_code == 0 and "20 of 50 symbols stay" in r.stdout, r.output
    u, cells = load_universe(out), pd.read_csv(out)
    assert len(u) == 20 and {"RELIANCE", "SBIN", "HDFCBANK", "ICICIBANK"} < set(u.symbols)
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:12] in cells["source"][0] and (cells["value_a_minute"] >= 5e6).all()
    assert cells["as_of"].unique().tolist() == ["2021-05-24"] and "spread_bps" not in cells
