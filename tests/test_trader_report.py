"""The report: figures checked against sums made by hand, and runs that are empty, crashed, tampered with or resumed."""

import json
import math
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import empyrical
import numpy as np
import pytest
from test_trader_crash import config_for, life, tape  # noqa: F401  (tape is a fixture)

from scalp_nb.feed.errors import DataError
from scalp_nb.trader.report import (
    ReportError,
    RunData,
    drawdown,
    kpis,
    load_run,
    refusals_by_reason,
    report_text,
    sharpe,
    status,
    why_few,
    write_results,
)
from scalp_nb.trader.store import Store

NS = 1_000_000_000
START = 1_795_059_900 * NS


def written(run_dir: Path, *said: tuple[str, int, dict[str, Any]]) -> RunData:
    "A run folder whose journal says exactly this; times in seconds after the start."
    run_dir.mkdir(exist_ok=True)
    with Store.open(run_dir / "store.db", "paper") as s:
        for kind, at, data in said:
            s.append(kind, START + at * NS, data)
    return load_run(run_dir)


def begin(**over: Any) -> tuple[str, int, dict[str, Any]]:
    cfg = {"venue": {"terms": "angel_one", "plan": None}, "exits": {"stop_pct": 0.0025, "target_pct": 0.01}, "paper": {},
           "strategy": {"pressure": "whole_book"}, "session": {"rules_date": None}, "data": {"recording": "x.parquet"}}
    return "run:begin", 0, {"config": cfg, "day": "2026-11-19", "provenance": {}, "fallback": "", "content": "c", **over}


def equity(at: int, value: str) -> tuple[str, int, dict[str, Any]]:
    return "note:equity", at, {"equity": value, "cash": value, "unrealised": "0", "fees": "0", "peak": value}


def submit(at: int, order: str, purpose: str, side: int, px: str, stop: str | None = None) -> tuple[str, int, dict[str, Any]]:
    return "command:Submit", at, {"intent": {"id": order, "symbol": "A", "side": side, "purpose": purpose, "qty": "10", "type": "limit", "limit": px,
                                             "stop": stop, "reason": "", "parent": ""}}


def fill(at: int, order: str, purpose: str, side: str, px: str, ref: str, qty: str = "10") -> tuple[str, int, dict[str, Any]]:
    return "note:fill", at, {"id": order, "exec_id": f"{order}.{at}", "ts": START + at * NS, "symbol": "A", "side": side, "purpose": purpose,
                             "qty": qty, "px": px, "ref_px": ref, "fee": "2", "slippage": "0"}


def trip(entry: str, exit_: str, a: int, b: int, px: tuple[str, str], gross: str, reason: str) -> tuple[str, int, dict[str, Any]]:
    return "note:round_trip", b, {"symbol": "A", "side": "BUY", "qty": "10", "entry_ts": START + a * NS, "exit_ts": START + b * NS,
                                  "entry_px": px[0], "exit_px": px[1], "gross": gross, "fees": "4", "net": str(Decimal(gross) - 4), "slippage": "0",
                                  "entry_id": entry, "exit_id": exit_, "reason": reason}


def by_hand(run_dir: Path) -> RunData:
    "Two long round trips of ten: 100.10 -> 101 (decided at 100 and 101), 100 -> 99.70 through a stop at 99.75. Fees 2 a fill."
    return written(run_dir, begin(), equity(0, "10000"),
                   submit(60, "e1", "entry", 1, "100.20"), fill(60, "e1", "entry", "BUY", "100.10", "100"), equity(120, "10004"),
                   submit(360, "x1", "exit", -1, "100.9"), fill(360, "x1", "exit", "SELL", "101", "101"),
                   trip("e1", "x1", 60, 360, ("100.10", "101"), "9", "opposite"),
                   equity(360, "10005"), submit(400, "e2", "entry", 1, "100.20"), fill(400, "e2", "entry", "BUY", "100", "100"),
                   submit(400, "x2", "stop", -1, "99.5", "99.75"), fill(700, "x2", "stop", "SELL", "99.70", "100"),
                   trip("e2", "x2", 400, 700, ("100", "99.70"), "-3", "stop"), equity(700, "9998"),
                   ("note:signals", 3600, {"bin_percent": 5, "counts": [0, 2] + [0] * 18}),
                   ("run:end", 3600, {"ok": True, "flat": True, "reason": "stopped: flatten", "rows": 9, "equity": "9998", "start_equity": "10000"}))


def test_figures_by_hand(tmp_path):
    k = kpis(by_hand(tmp_path))
    exact = {"round_trips": 2, "win_rate": 0.5, "average_win": 5.0, "average_loss": -7.0, "payoff": 5 / 7, "profit_factor": 5 / 7,
             "gross_pnl": 6.0, "fees": 8.0, "net_pnl": -2.0, "fees_of_round_trips": 8.0,
             "traded_value": 1001 + 1010 + 1000 + 997, "hours": 1.0, "trades_per_hour": 2.0,
             "time_in_market": 600 / 3600, "peak_exposure": 1001 / 10000, "max_drawdown": 7.0,
             "max_drawdown_pct": 7 / 10005, "driftless_win_rate": 0.2, "sharpe_periods": 2}
    assert {n: k[n] for n in exact} == pytest.approx(exact)
    assert k["slippage_entries_bps"] == pytest.approx(1e4 * (0.10 * 10) / (1000 + 1000))
    # the stop aimed at 99.75, not at the touch when it was placed
    assert k["slippage_exits_bps"] == pytest.approx(1e4 * (0.05 * 10) / (1010 + 997.5))
    assert k["average_exposure"] == pytest.approx((300 * 1001 + 300 * 1000) / (3600 * 10000))
    cost = (8 + 1.5) / (1001 + 1000)
    assert k["cost_round_trip_bps"] == pytest.approx(1e4 * cost)
    assert k["break_even_win_rate"] == pytest.approx((0.0025 + cost) / 0.0125)
    assert k["sharpe_daily"] is None and "20 daily returns needed" in k["reasons"]["sharpe_daily"]
    assert k["sharpe_t_statistic"] is None and "30 needed" in k["reasons"]["sharpe_t_statistic"]


def test_one_entry_closed_in_parts_is_one_round_trip(tmp_path):
    parts = [trip("e", f"x{i}", 1, 10 + i, ("100", "99.9"), "-1", "opposite") for i in range(5)]
    k = kpis(written(tmp_path, begin(), *parts))
    assert (k["round_trips"], k["gross_pnl"], k["average_loss"]) == (1, -5.0, -25.0)


def test_results_file_has_no_nan_and_replaces_as_a_whole(tmp_path):
    by_hand(tmp_path)
    (tmp_path / "results.json").write_text("old")
    path = write_results(tmp_path)
    data = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} in results.json"))
    assert data["kpis"]["round_trips"] == 2 and data["status"]["ok"] is True and data["journal"]["whole"] is True
    assert data["assumptions"]["parameter_sets_tried"] == "unknown, not from a sweep"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".results")] == []


def test_results_that_cannot_be_written_are_refused(tmp_path):
    by_hand(tmp_path)
    (tmp_path / "results.json").mkdir()
    with pytest.raises(ReportError, match="results.json"):
        write_results(tmp_path)


def test_no_trades_says_why(tmp_path):
    run = written(tmp_path, begin(), ("note:entries", 0, {"on": False, "code": "paused"}), ("note:entries", 600, {"on": True, "code": ""}),
                  ("note:refusal", 700, {"symbol": "A", "code": "spread", "previous_repeated": 0}),
                  ("note:refusal", 800, {"symbol": "A", "code": "depth", "previous_repeated": 7}),
                  ("note:refusal_count", 900, {"symbol": "A", "code": "depth", "repeated": 2}),
                  ("note:signals", 900, {"bin_percent": 5, "counts": [0] * 19 + [11]}))
    assert refusals_by_reason(run) == {"spread": 8, "depth": 3}
    said = "\n".join(why_few(run))
    assert "journal does not tell" not in said
    assert "11 signals" in said and "refused 8 times: spread" in said and "entries off for 10 min: paused" in said
    k = kpis(run)
    for name, value in k.items():
        assert value is None and k["reasons"][name] or name == "reasons" or math.isfinite(value)
    assert "refused 8 times: spread" in report_text(tmp_path)


def test_refusals_the_journal_lost_are_counted(tmp_path):
    run = written(tmp_path, begin(), ("note:refusal", 7, {"symbol": "A", "code": "spread", "previous_repeated": 0}),
                  ("note:trip", 8, {"breaker": "daily_loss", "reason": "x", "numbers": {}}),
                  ("note:signals", 9, {"bin_percent": 5, "counts": [9] + [0] * 19}))
    assert "trip: daily_loss" in why_few(run)
    assert "8 signals more were refused; the journal does not tell by which gate" in why_few(run)


def test_empty_run(tmp_path):
    Store.open(tmp_path / "store.db", "paper").close()
    (tmp_path / "config.yaml").write_text("run: {account: paper}\n")
    run = load_run(tmp_path)
    assert run.lives == () and status(run)["ok"] is None and kpis(run)["max_drawdown"] is None
    assert "refused before it began" in report_text(tmp_path)
    json.loads(write_results(tmp_path).read_text())


def test_a_folder_without_a_journal_is_refused(tmp_path):
    with pytest.raises(DataError, match="journal of the run"):
        load_run(tmp_path)


def test_sharpe_and_drawdown_agree_with_empyrical():
    rng = np.random.default_rng(0)
    r = rng.normal(1e-5, 1e-4, 300)
    assert sharpe(r, 252) == pytest.approx(empyrical.sharpe_ratio(r, annualization=252))
    curve = [Decimal(str(x)) for x in np.cumprod(1 + r) * 100]
    assert drawdown([Decimal(100), *curve])[1] == pytest.approx(-empyrical.max_drawdown(r), rel=1e-9)


def test_a_broken_journal_is_reported(tmp_path):
    by_hand(tmp_path)
    con = sqlite3.connect(tmp_path / "store.db")
    con.execute("DROP TRIGGER journal_no_update")
    con.execute("UPDATE journal SET data=replace(data, '10004', '10009') WHERE seq=5")
    con.commit()
    con.close()
    run = load_run(tmp_path)
    assert not run.verdict.ok and "BROKEN at record 5" in report_text(tmp_path)


def test_a_real_session_against_its_own_tables(tape, tmp_path):  # noqa: F811
    cfg = config_for(tape)
    assert life(cfg, tmp_path / "r") == 0
    run, k = load_run(tmp_path / "r"), kpis(load_run(tmp_path / "r"))
    with Store.open(tmp_path / "r" / "store.db", "crash", exclusive=False) as s:
        fills, intents = s.fills(), s.intents()
    cash = sum(-f.side * f.qty * f.px - fee for f, fee, _ in fills)
    assert k["net_pnl"] == pytest.approx(float(cash)) and k["fees"] == pytest.approx(float(sum(fee for _, fee, _ in fills)))
    assert float(run.equity["equity"].iloc[-1] - run.equity["equity"].iloc[0]) == pytest.approx(float(cash))
    assert k["round_trips"] == len({f.client_id for f, _, _ in fills if f.purpose.value == "entry"}) >= 2
    assert sorted(run.orders["id"]) == sorted(i.id for i in intents)
    assert sum(run.signals or ()) >= len(run.decisions) and status(run)["ok"] is True and len(run.lives) == 1


def test_a_crashed_run_reports_and_so_does_its_resumption(tape, tmp_path):  # noqa: F811
    cfg, run_dir = config_for(tape), tmp_path / "c"
    assert life(cfg, run_dir, crash_at=12) < 0
    run = load_run(run_dir)
    assert run.end is None and status(run)["ok"] is None and run.verdict.ok
    assert "UNFINISHED" in report_text(run_dir)
    assert json.loads(write_results(run_dir).read_text())["status"]["ok"] is None
    assert life(cfg, run_dir) == 0
    run = load_run(run_dir)
    assert [x.end is None for x in run.lives] == [True, False] and "2 incarnations (1 without an end)" in report_text(run_dir)
    assert json.loads(write_results(run_dir).read_text())["status"]["ok"] is True
