"""The back-test against the session process, event for event; its refusals; its portfolio."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from markets import BUSY, market, synthetic
from realdata import realdata

from scalp_nb.broker.paper import alpaca_like
from scalp_nb.feed.recorder import write_parquet
from scalp_nb.research.backtest import Backtest, Latency, backtest, message_times, received, resampled
from scalp_nb.research.peer import compared as agreement
from scalp_nb.research.peer import peer_filled
from scalp_nb.research.probe import grid, probed
from scalp_nb.research.trials import ResearchError
from scalp_nb.trader.config import load_config
from scalp_nb.trader.journal import payload, verify
from scalp_nb.trader.report import kpis, load_run
from scalp_nb.trader.setup import Market, RunConfig, load_market
from scalp_nb.trader.store import Store

MS = 1_000_000
FROG = "lob_equity_us/FROG_2025-04-03_mbp10.zip"
FROG_RUN = {"strategy.fallback": "displayed", "sizing": {"mode": "fixed", "fixed_qty": 100}, "risk.max_spread_pct": 0.001, "venue.terms": "alpaca"}
# a venue that answers slowly and unevenly, fills in parts, refuses, loses and repeats answers
FAULTS = {"order_latency_ns": 40 * MS, "response_latency_ns": 25 * MS, "latency_sigma": 0.6, "partial_prob": 0.5, "reject_prob": 0.1,
          "lost_ack_prob": 0.05, "duplicate_update_prob": 0.2, "late_fill_prob": 0.2}


def conf(**over: Any) -> RunConfig:
    return load_config(RunConfig, None, BUSY | {"run.account": "test", "exits.time_stop_s": 20.0} | over)


def session(cfg: RunConfig, run_dir: Path) -> subprocess.CompletedProcess[str]:
    """The process a live notebook starts, run to its end."""
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(yaml.safe_dump(json.loads(cfg.model_dump_json())))
    argv = [sys.executable, "-m", "scalp_nb.trader.session", str(run_dir / "config.yaml"), str(run_dir)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


def said(records: Any) -> list[tuple[int, int, str, str]]:
    return [(r.ts, r.cursor, r.kind, r.data) for r in records if r.kind not in ("run:begin", "run:end")]


def compared(cfg: RunConfig, run_dir: Path) -> tuple[Backtest, Counter]:
    """One tape through both; every record must be the same. Returns the back-test and how many records of each kind there were."""
    done = session(cfg, run_dir)
    assert done.returncode == 0, done.stderr
    with Store.open(run_dir / "store.db", cfg.run.account, exclusive=False) as store:
        records = list(store.records())
    bt = backtest(cfg)
    live, ours = said(records), said(bt.journal)
    assert live == ours
    begin, end = payload(records[0]), payload(records[-1])
    assert {k: v for k, v in begin.items() if k not in ("resumed", "pid")} == bt.run.begin and end == bt.run.end
    run = load_run(run_dir)
    assert kpis(run) == kpis(bt.run)
    for name in ("orders", "fills", "round_trips", "equity", "refusals", "decisions"):
        assert getattr(run, name).equals(getattr(bt.run, name)), name
    return bt, Counter(kind for *_, kind, _ in live)


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    rows, uni = synthetic(n_symbols=2, seconds=600, seed=5, episode_every_s=30.0, episode_s=20.0)
    path = tmp_path_factory.mktemp("tape") / "tape.parquet"
    write_parquet(rows, uni, path)
    return path


@pytest.mark.parametrize("paper", [{}, FAULTS], ids=["good venue", "bad venue"])
def test_the_session_process_and_the_backtest_say_the_same(tape, tmp_path, paper):
    bt, kinds = compared(conf(**{"data.recording": str(tape), "paper": paper, "risk.max_spread_pct": 0.0003, "run.seed": 3}), tmp_path / "run")
    assert kinds["command:Submit"] > 20 and kinds["note:fill"] > 20 and kinds["note:refusal"] > 0 and kinds["event:Evidence"] > 50
    assert bt.summary["ok"] and bt.summary["flat"]
    if paper:
        assert "rejected" in set(bt.orders["state"])


def test_the_session_process_and_the_backtest_say_the_same_of_frog(tmp_path):
    cfg = load_config(RunConfig, None, FROG_RUN | {"data.recording": str(realdata(FROG)), "run.account": "test"})
    bt, kinds = compared(cfg, tmp_path / "run")
    assert (kinds["note:fill"], len(bt.round_trips), kinds["note:refusal"]) == (28, 5, 4)


def test_the_journal_is_whole_and_has_everything():
    rows, uni = synthetic(n_symbols=1, seconds=300, seed=5, episode_every_s=30.0, episode_s=20.0)
    bt = backtest(conf(), market(rows, uni))
    found = verify(bt.journal)
    assert found.ok and found.count == bt.run.verdict.count == len(bt.runner.ledger.kept) + 2 and found.head == bt.run.verdict.head


# ---- latency -------------------------------------------------------------------------------------------------------------------------

def executions(bt: Backtest) -> list[tuple[Any, ...]]:
    """Fills as the exchange sees them."""
    return list(bt.trades[["ts", "symbol", "side", "purpose", "qty", "px"]].itertuples(index=False, name=None))


@pytest.mark.parametrize(("feed", "order", "response"), [(30, 7, 55), (200, 1, 200), (400, 90, 20)])
def test_old_data_are_the_same_as_a_longer_way(tape, feed, order, response):
    """Rows that come L late and orders that take O: what is decided on a row meets the book L + O after it, at the same moment and price.

    An answer that is faster than the data is told of with the data, so the second run waits max(0, response - feed).
    """
    quiet = {"data.recording": str(tape), "health.stale_ms": 30_000}
    late = backtest(conf(**quiet), latency=Latency(feed=feed * MS, order=order * MS, response=response * MS))
    far = backtest(conf(**quiet), latency=Latency(feed=0, order=(order + feed) * MS, response=max(0, response - feed) * MS))
    assert len(late.trades) > 20 and executions(late) == executions(far)
    near = backtest(conf(**quiet), latency=Latency(feed=0, order=order * MS, response=response * MS))
    assert executions(near) != executions(far)


def test_a_constant_and_the_same_time_observed_are_the_same(tape):
    cfg = conf(**{"data.recording": str(tape)})
    one = backtest(cfg, latency=Latency(feed=20 * MS, order=9 * MS, response=4 * MS))
    some = backtest(cfg, latency=Latency(feed_samples=(20 * MS,) * 7, order_samples=(9 * MS,) * 3, response_samples=(4 * MS,)))
    assert one.runner.ledger.kept == some.runner.ledger.kept


def test_latencies_of_a_session_come_back(tape, tmp_path):
    """Times drawn from a session's journal, fed into a back-test, are the session's distribution again; the same seed gives the same run."""
    cfg = conf(**{"data.recording": str(tape), "paper": {"order_latency_ns": 30 * MS, "response_latency_ns": 12 * MS, "latency_sigma": 0.7}})
    assert session(cfg, tmp_path / "run").returncode == 0
    got = resampled(run=tmp_path / "run")
    assert len(got.order_samples) > 20 and 20 * MS < np.median(got.order_samples) < 45 * MS and 8 * MS < np.median(got.response_samples) < 20 * MS
    plain = conf(**{"data.recording": str(tape)})
    a, b = (backtest(plain, latency=got) for _ in range(2))
    assert a.runner.ledger.kept == b.runner.ledger.kept
    drawn = message_times([(r, json.loads(r.data)) for r in a.journal])
    assert {x for x, _ in drawn} <= set(got.order_samples) and len({x for x, _ in drawn}) > 10
    other = backtest(plain.model_copy(update={"run": plain.run.model_copy(update={"seed": 9})}), latency=got)
    assert message_times([(r, json.loads(r.data)) for r in other.journal]) != drawn


# ---- portfolio -----------------------------------------------------------------------------------------------------------------------

def cents(x: Any) -> float:
    return round(float(x), 2)


@pytest.mark.parametrize("paper", [{}, FAULTS], ids=["good venue", "bad venue"])
def test_the_portfolio_earns_what_the_account_did(tape, paper):
    bt = backtest(conf(**{"data.recording": str(tape), "paper": paper}))
    pf = bt.portfolio()
    assert len(bt.trades) > 20 and bt.summary["pnl"] != 0
    assert cents(pf.total_profit()) == cents(bt.summary["pnl"])
    assert cents(pf.value().iloc[-1]) == cents(bt.summary["end_equity"]) and len(pf.orders.records) == len(bt.trades)
    own = bt.round_trips.groupby("symbol")["net"].sum()
    assert {s: cents(v) for s, v in pf.total_profit(group_by=False).items()} == {s: cents(v) for s, v in own.items()}
    assert cents(pf.orders.records["fees"].sum()) == cents(bt.summary["fees"])
    assert pf.stats()["Total Fees Paid"] > 0


def test_a_position_left_open_is_valued_as_the_trader_values_it(tape):
    """The venue goes deaf before the end, so the last position cannot be closed."""
    whole = backtest(conf(**{"data.recording": str(tape)}))
    entry = whole.round_trips.iloc[-1]
    end = int(whole.market.rows["recv"][-1]) + int(whole.config.session.drain_timeout_s * 1e9)
    deaf = [int(entry["entry_ts"]) + 2 * MS, end - MS // 2]  # it answers again only for the last look at its books
    bt = backtest(conf(**{"data.recording": str(tape), "paper": {"disconnects": [deaf]}}))
    assert not bt.summary["flat"] and not bt.summary["ok"]
    assert cents(bt.portfolio().total_profit()) == cents(bt.summary["pnl"])


def test_no_trade_is_a_portfolio_too(tape):
    bt = backtest(conf(**{"data.recording": str(tape), "strategy.lower": 0.999, "strategy.upper": 0.9999}))
    assert len(bt.trades) == 0 and cents(bt.portfolio().total_profit()) == 0.0 == bt.summary["pnl"]
    assert bt.summary["win_rate"] is None and "no round trip" in bt.summary["reasons"]["win_rate"]


# ---- refusals ------------------------------------------------------------------------------------------------------------------------

def test_what_says_nothing_is_refused():
    rows, uni = synthetic(n_symbols=2, seconds=60)
    good = market(rows, uni)
    nan = rows.copy()
    nan["ask_px"][nan["sym"] == 0] = np.nan
    days = rows.copy()
    days["recv"][-5:] += 86_400_000_000_000
    for bad, words in ((rows[:0], "rows of the session"), (rows[rows["sym"] == 1], "rows of symbol: got 'S0'"), (nan, "prices of S0"),
                       (days, "days in the session")):
        with pytest.raises(ResearchError, match=words):
            backtest(conf(), replace(good, rows=bad))


# ---- against hftbacktest -------------------------------------------------------------------------------------------------------------

def against(market: Market, every_s: float, tick: float, resting: bool) -> pd.Series:
    """In which way our venue and hftbacktest agree about each of many probes."""
    rows = market.rows[market.rows["sym"] == 0]
    ours = probed(market, 0, grid(market, 0, every_s, resting, every_s), alpaca_like(cash=10**12))
    return agreement(rows, ours, peer_filled(rows, ours, int(every_s * 1e9), tick, MS, MS), MS)


@pytest.mark.parametrize(("name", "resting_odd", "taking_odd"), [("synthetic", 2, 1), (FROG, 5, 6)])
def test_another_simulator_fills_the_same_orders(name, resting_odd, taking_odd):
    """Measured: 1 of 716 resting probes differs on a synthetic hour; 3 of 4,676 resting and 4 of 4,676 marketable ones on FROG.

    Marketable probes that met a row a probe of their own had taken from are counted apart: hftbacktest sells the same share again.
    """
    pytest.importorskip("hftbacktest", reason="hftbacktest is not installed: pip install hftbacktest")
    if name == "synthetic":
        day = market(*synthetic(n_symbols=1, seconds=3600, seed=11))
    else:
        day = load_market(load_config(RunConfig, None, {"data.recording": str(realdata(name))}))
    day = replace(day, rows=received(day.rows, Latency(feed=0)))
    tick = 0.05 if name == "synthetic" else 0.01
    rest, take = against(day, 10.0, tick, True), against(day, 10.0, tick, False)
    explained = ["neither filled", "same instant and price"]
    assert (rest == "same instant and price").sum() > 100 and (take == "same instant and price").sum() > 100
    assert (~rest.isin(explained)).sum() <= resting_odd
    assert (~take.isin([*explained, "own mark"])).sum() <= taking_odd
    assert (take == "own mark").sum() <= 0.01 * len(take) and "other price" not in {*rest, *take}
