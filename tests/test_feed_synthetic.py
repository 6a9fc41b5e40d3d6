"""The synthetic market: same bytes everywhere, a book that could exist, an edge exactly where it was planted."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalp_nb.feed.depth import DEPTH, LEVELS, Rows, empty_depth
from scalp_nb.feed.quality import quality
from scalp_nb.feed.recorder import content_hash
from scalp_nb.feed.synthetic import SyntheticConfig, SyntheticSymbol, sample_config, synthetic_market, write_session
from scalp_nb.feed.universe import load_universe

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"


def market(n: int = 12, **changes: object) -> tuple[Rows, int]:
    symbols = tuple(SyntheticSymbol(symbol=f"S{k:03d}", price="1000", tick="0.05") for k in range(n))
    return synthetic_market(SyntheticConfig(symbols=symbols, **changes))[0], n


def forward(rows: Rows, n: int, ahead: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole-book pressure, the default scalper's signal (+1, 0, -1) and the return over the next `ahead` rows in bp, all symbols."""
    out = []
    for i in range(n):
        r = rows[rows["sym"] == i]
        mid = (r["bid_px"][:, 0] + r["ask_px"][:, 0]) / 2
        p = r["total_buy"] / (r["total_buy"] + r["total_sell"])
        bid, ask = r["bid_qty"].sum(1), r["ask_qty"].sum(1)
        buy, sell = (p >= 0.70) & (p <= 0.95) & (bid > 1.5 * ask), (p <= 0.30) & (p >= 0.05) & (ask > 1.5 * bid)
        out.append((p[:-ahead] - 0.5, buy[:-ahead].astype(int) - sell[:-ahead], 1e4 * np.log(mid[ahead:] / mid[:-ahead])))
    pressure, signal, ret = (np.concatenate(c) for c in zip(*out, strict=True))
    return pressure, signal, ret


def test_no_edge_no_prediction() -> None:
    pressure, signal, ret = forward(*market(30, seed=11))
    onsets = int((np.diff(signal) != 0).sum() / 2)
    assert onsets > 300
    # 30 symbol-days hold about 1,000 independent episodes: two standard errors of the correlation are near 0.03
    assert abs(np.corrcoef(pressure, ret)[0, 1]) < 0.03
    assert abs((signal * ret)[signal != 0].mean()) < 1.2


def test_edge_predicts_and_grows_with_its_strength() -> None:
    gains, correlations = [], []
    for edge in (0.0, 8.0, 16.0, 32.0):
        pressure, signal, ret = forward(*market(12, seed=3, edge_bps=edge))
        gains.append((signal * ret)[signal != 0].mean())
        correlations.append(np.corrcoef(pressure, ret)[0, 1])
    assert correlations == sorted(correlations) and gains == sorted(gains)
    assert correlations[1] > 0.12 and gains[1] > 3
    assert gains[3] > 1.6 * gains[2] > 2.4 * gains[1]


def test_no_episodes_when_switched_off() -> None:
    pressure, signal, _ = forward(*market(3, seed=2, episode_every_s=0, edge_bps=20.0))
    assert np.abs(pressure).max() < 0.1 and not signal.any()


def test_the_book_could_exist() -> None:
    rows, n = market(6, seed=9, seconds=7200)
    for i in range(n):
        r = rows[rows["sym"] == i]
        assert (r["bid_px"][:, 0] < r["ask_px"][:, 0]).all()
        assert (np.diff(r["seq"]) == 1).all() and (np.diff(r["ts"]) > 0).all()
        steps = np.diff(r["volume"])
        assert (steps >= 0).all() and r["volume"][0] < 0.01 * r["volume"][-1], "volume starts at the open"
        moved = (r["ltp"][1:] != r["ltp"][:-1]) & np.isfinite(r["ltp"][1:])
        assert not moved[steps == 0].any(), "the last price changed without volume"
        assert np.nanmax(np.abs(r["ltp"] / 1000 - 1)) < 0.1
        for s in ("bid", "ask"):
            assert (r[f"{s}_qty"].sum(1) < r[f"total_{'buy' if s == 'bid' else 'sell'}"]).all()
            assert ((r[f"{s}_orders"] > 0) == (r[f"{s}_qty"] > 0)).all() and (r[f"{s}_qty"] >= r[f"{s}_orders"]).all()
            assert not (np.diff(r[f"{s}_px"], axis=1) * (-1 if s == "bid" else 1) <= 0).any()


def test_a_day_moves_like_a_stock() -> None:
    rows, n = market(40, seed=4)
    mids = [(r["bid_px"][:, 0] + r["ask_px"][:, 0]) / 2 for r in (rows[rows["sym"] == i] for i in range(n))]
    day = np.array([np.log(m[-1] / m[0]) for m in mids])
    assert 0.008 < day.std() < 0.022
    assert 0.5 < np.mean([1e4 * np.diff(np.log(m)).std() for m in mids]) < 2.5, "bp a second"


SHORT = "from scalp_nb.feed.synthetic import *; from scalp_nb.feed.recorder import content_hash; import sys; " \
    "c = SyntheticConfig(seed=8, seconds=15, edge_bps=30, episode_every_s=10, " \
    "symbols=(SyntheticSymbol(symbol='A', price='500'), SyntheticSymbol(symbol='B', price='240', tick='0.01', lot=15))); " \
    "sys.stdout.write(content_hash(synthetic_market(c)[0]))"


def test_interpreted_and_compiled_give_the_same_bytes() -> None:
    """No compiler, processor or maths library decides a byte: plain Python arithmetic agrees with the compiled kernel."""
    def run(off: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": off}
        return subprocess.run([sys.executable, "-W", "ignore", "-c", SHORT], cwd=ROOT, check=True, capture_output=True, text=True, env=env).stdout
    compiled = run("0")
    assert len(compiled) == 64 and run("1") == compiled


def test_two_hundred_symbols_in_time() -> None:
    market(1, seconds=1)  # compile
    t = time.perf_counter()
    rows, n = market(200, seed=1, seconds=600)
    assert len(np.unique(rows["sym"])) == n
    assert time.perf_counter() - t < 30


# ---- the session in data/ --------------------------------------------------------------------------------------------


def shipped() -> tuple[dict, Path]:
    manifest = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))
    return manifest, DATA / manifest["file"]


def read_rows(path: Path) -> Rows:
    table = pq.read_table(path)
    rows = empty_depth(table.num_rows)
    for name in DEPTH.names:
        if DEPTH[name].shape:
            for k in range(LEVELS):
                rows[name][:, k] = table[f"{name}_{k + 1}"].to_numpy()
        else:
            rows[name] = table[name].to_numpy()
    return rows


def test_shipped_session_is_what_its_manifest_says() -> None:
    manifest, path = shipped()
    rows = read_rows(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest["file_sha256"]
    assert (content_hash(rows), len(rows)) == (manifest["sha256"], manifest["rows"])
    assert path.stat().st_size <= 10_000_000
    assert SyntheticConfig(**manifest["config"]) == sample_config()
    assert "planted edge of 12 bp" in manifest["source"]


def test_shipped_session_regenerates(tmp_path: Path) -> None:
    manifest, path = shipped()
    again = write_session(tmp_path)
    assert again["sha256"] == manifest["sha256"], "the generator changed: regenerate data/ and say so"
    assert (tmp_path / "universe.csv").read_bytes() == (DATA / "universe.csv").read_bytes()
    if pa.__version__ == manifest["pyarrow"]:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "manifest.json").read_bytes() == (DATA / "manifest.json").read_bytes()


def test_shipped_session_gives_the_scalper_candidates() -> None:
    rows, universe = synthetic_market(sample_config())
    q = quality(rows, universe)
    assert (q.total.crossed, q.total.locked, q.total.seq_gaps, q.total.totals) == (0, 0, 0, 1.0)
    assert len(q.symbols) == 10 and all(0.5 < s.spread_mean < 5 for s in q.symbols)
    _, signal, ret = forward(rows, 10)
    assert (np.diff(signal) > 0).sum() > 300 and (signal > 0).any() and (signal < 0).any()
    assert (signal * ret)[signal != 0].mean() > 3
    opened, closed = 1795059900 * 10**9, 1795081500 * 10**9  # 09:15 and 15:15 Indian time on 2026-11-19
    assert opened <= rows["ts"].min() and rows["ts"].max() < closed


def test_shipped_universe_file() -> None:
    _, universe = synthetic_market(sample_config().model_copy(update={"seconds": 1}))
    assert load_universe(DATA / "universe.csv").instruments == universe.instruments
    assert all(i.derivatives and i.venue == "NSE" and i.lot == 1 and i.token for i in universe.instruments)


@pytest.mark.parametrize("bad", [{"edge_bps": -1}, {"seconds": 0}, {"cadence_ms": -5}, {"market_factor": 2}, {"seed": -1}])
def test_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        market(1, **bad)
