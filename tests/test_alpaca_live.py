"""Sessions at the Alpaca practice venue: a run from the first bar to the report, restarts, refusals, the kill switch."""

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from alpaca_live import begun, conf, folder, journal, market, of_kind, shaped, until, venue, waves, wire
from realdata import realdata
from test_live_notebook import ROOT, finish, papermill

pytest.importorskip("alpaca")

from scalp_nb.live.notebook import Plan, preflight  # noqa: E402
from scalp_nb.order.types import Intent, OrderType, Purpose, Side, Tif, UpdateKind  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.alpaca_orders import AlpacaTerms  # noqa: E402
from scalp_nb.practice.faults import read_script  # noqa: E402
from scalp_nb.practice.venue import bar_tape  # noqa: E402
from scalp_nb.trader.client import SessionClient  # noqa: E402
from scalp_nb.trader.lease import write_kill  # noqa: E402
from scalp_nb.trader.replay import replay_run  # noqa: E402
from scalp_nb.trader.report import load_run  # noqa: E402
from scalp_nb.trader.session import EXIT_CONFIG, EXIT_OK, EXIT_REFUSED, run_session  # noqa: E402
from scalp_nb.trader.venues import open_venue, shut  # noqa: E402

pytestmark = pytest.mark.usefixtures("restore_signals")


def at(tape: Any, seconds: float) -> datetime:
    "A moment after the tape's first row."
    return datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + seconds, UTC)


def same_as_venue(run_dir: Path, server: PracticeServer, account: str = "test") -> int:
    "The journal's fills are the venue's executions, each once, and no order was sent twice; how many fills."
    truth = server.get("truth")
    fills = [n.data for n in of_kind(run_dir, "note:fill", account=account)]
    sent = [c.intent.id for c in of_kind(run_dir, "command:Submit", account=account)]
    assert len(sent) == len(set(sent)) and {o["client_order_id"] for o in truth["orders"]} <= set(sent)
    assert len({o["client_order_id"] for o in truth["orders"]}) == len(truth["orders"])
    assert len({f["exec_id"] for f in fills}) == len(fills) == len(truth["executions"])
    assert sum(Decimal(f["qty"]) for f in fills) == sum(Decimal(str(e["qty"])) for e in truth["executions"])
    return len(fills)


def shipped(tmp_path: Path, tape: Any, speed: float, seconds: float, **over: Any) -> tuple[Path, nbformat.NotebookNode, PracticeServer]:
    "The shipped configuration under papermill against a venue that plays `tape`; its sections changed where wall time or prices ask for it."
    params = yaml.safe_load((ROOT / "nbs/live/alpaca_sma.yaml").read_text(encoding="utf-8"))
    changes: dict[str, Any] = {"venue": {"broker": "alpaca_practice", "alpaca": {"feed": wire(speed)["venue.alpaca.feed"]}},
                               "until": at(tape, seconds).isoformat()} | over
    for name, value in wire(speed).items():
        section, _, key = name.partition(".")
        if section in ("health", "exits", "session"): changes.setdefault(section, {})[key] = value
    merged = {**params, **{k: {**params[k], **v} if isinstance(v, dict) and isinstance(params.get(k), dict) else v for k, v in changes.items()}}
    with venue(tape, speed, terms={"rate_limit": 200}) as server:
        status, out = finish(papermill(tmp_path, merged), 560)
        assert status == 0, out[-3000:]
        same_as_venue(tmp_path / "run", server, "paper")
        assert server.get("truth")["positions"] == {}
    return tmp_path / "run", nbformat.read(tmp_path / "run/live_trading.ipynb", 4), server


def told(nb: nbformat.NotebookNode) -> str:
    "Everything the notebook printed as text."
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    return "\n".join(str(o.get("text", "")) + str(o.get("data", "")) for o in outputs)


def ended_by_stop_and_target(run_dir: Path) -> None:
    "Ask the session for a flat end once it has left positions by stop and by target."
    def reasons() -> set[str]: return {n.data["reason"] for n in journal(run_dir, "note:round_trip", account="paper")}
    try: until(lambda: {"stop", "target"} <= reasons(), "both exits", 120, every=0.5)
    finally:
        with SessionClient(run_dir) as c: c.stop("test")


def test_the_shipped_configuration_on_generated_bars(tmp_path):
    tape = market(n=8, minutes=180, seed=3)
    ender = threading.Thread(target=ended_by_stop_and_target, args=(tmp_path / "run",))
    ender.start()
    run_dir, nb, _ = shipped(tmp_path, tape, 100.0, 170 * 60, symbols=list(tape.universe.symbols), exits={"stop_pct": 0.0006, "target_pct": 0.0008},
                             strategy={"params": {"fast_period": 5, "slow_period": 15}},
                             risk={"max_consecutive_losses": 100, "max_trades_per_day": 100})
    ender.join()
    end, run = of_kind(run_dir, "run:end", account="paper")[0], load_run(run_dir)
    assert end["ok"] and end["flat"] and end["differences"] == []
    assert {"stop", "target"} <= set(run.round_trips["reason"])
    said = told(nb)
    assert "the practice venue of this machine" in said and "all 8 symbols by iex" in said and "100 times as fast as ours" in said
    again = replay_run(run_dir)
    assert again.ok and again.commands > 50, again.first


@pytest.mark.soak
def test_the_shipped_configuration_on_a_recorded_session(tmp_path):
    """31 US equities, minute bars of 2026-03-20 to half past eleven, a minute in a second. The recording counts no trades, so that filter is off."""
    path = realdata("us_bars/us_symbols_1min_2026-03-12_2026-03-20.tar.xz")
    symbols = yaml.safe_load((ROOT / "nbs/live/alpaca_sma.yaml").read_text(encoding="utf-8"))["symbols"]
    assert len(symbols) == len(set(symbols)) == 31
    tape = bar_tape(path, "2026-03-20", symbols)
    run_dir, nb, server = shipped(tmp_path, tape, 60.0, 7200, strategy={"min_bar_trades": 0})
    run, said = load_run(run_dir), told(nb)
    assert len(run.round_trips) == 20 and {"stop", "target", "signal"} <= set(run.round_trips["reason"])
    assert "30 of 31 by iex; RIVN by request, once a minute" in said
    assert {b[0] for n in of_kind(run_dir, "note:bars", account="paper") for b in n.data["bars"]} == set(symbols)   # the last one, too
    again = replay_run(run_dir)
    assert again.ok, again.first


def test_a_killed_session_goes_on_without_waiting_for_bars(tmp_path):
    """Twice over. How long it takes on the wall, ten seconds at most, is measured by tests/bench/bench_restart.py."""
    tape = shaped(waves(3, 3600))
    cfg = conf(tape, 20.0, **{"risk.max_consecutive_losses": 1000, "risk.max_trades_per_day": 1000, "exits.stop_pct": 0.05,
                              "exits.target_pct": 0.5})
    run_dir, took = folder(tmp_path, cfg), list[float]()
    def lives() -> list[Any]: return [r for r in journal(run_dir, "note:entries") if r.data["on"]]
    with venue(tape, 20.0) as server:
        life = begun(run_dir, cfg)
        until(lambda: life.poll() is not None or server.get("truth")["positions"], "a position")
        kept = server.get("truth")["positions"]
        while len(took) < 2:
            assert life.poll() is None, life.stderr and life.stderr.read()
            os.kill(life.pid, signal.SIGKILL)
            life.wait()
            before, t0, life = len(lives()), time.monotonic(), begun(run_dir, cfg)
            until(lambda life=life, before=before: life.poll() is not None or len(lives()) > before, "trading again", every=0.2)
            took.append(time.monotonic() - t0)
        print(f"trading again after {', '.join(f'{x:.1f}' for x in took)} s")
        assert life.poll() is None, life.stderr and life.stderr.read()
        life.send_signal(signal.SIGTERM)
        assert life.wait(60) == EXIT_OK
        looked = [r.data for r in of_kind(run_dir, "note:reconcile") if r.data["starting"]]
        assert len(looked) == 1 + len(took) and not any(x["differences"] for x in looked) and kept
        same_as_venue(run_dir, server)
        assert server.get("truth")["positions"] == {}
    assert of_kind(run_dir, "run:history")[-1]["bars"] == of_kind(run_dir, "note:warm_up")[-1].data["bars"]
    assert of_kind(run_dir, "note:warm_up")[-1].data["short"] == []
    again = replay_run(run_dir)
    assert again.ok, again.first


def order(i: str, symbol: str, qty: int, limit: str | None = None, side: Side = Side.BUY) -> Intent:
    kind, px = OrderType.MARKET if limit is None else OrderType.LIMIT, Decimal(limit) if limit else None
    return Intent(i, 0, 0, "test", "hand", symbol, 0, side, Purpose.ENTRY, Decimal(qty), kind, px, None, Tif.DAY, px or Decimal(100))


@pytest.mark.parametrize("planted", ["position", "order"])
def test_what_the_books_do_not_know_is_refused_and_printed(planted, tmp_path, capfd):
    tape = market(n=2, minutes=10)
    cfg = conf(tape, 1.0)
    run_dir = folder(tmp_path, cfg)
    with venue(tape, 1.0) as server:
        v = open_venue(cfg)
        try:
            v.broker.connect(v.pace.now())
            v.broker.submit(order("by-hand", "ABA", 7, None if planted == "position" else "50.00"), v.pace.now())
            until(lambda: server.get("truth")["positions" if planted == "position" else "orders"], planted)
        finally: shut(v)
        sent = len(server.get("truth")["orders"])
        assert run_session(cfg, run_dir) == EXIT_REFUSED
        assert len(server.get("truth")["orders"]) == sent    # nothing was traded, nothing was cancelled
    said = capfd.readouterr().err
    assert "differ" in said and "ABA" in said and "7" in said
    print(said)


def timed(what: Callable[[], Any]) -> float:
    t0 = time.monotonic()
    what()
    return time.monotonic() - t0


def test_the_kill_switch_with_ten_orders_and_ten_positions(tmp_path):
    n = 10
    tape = shaped(waves(n, 1800))
    cfg = conf(tape, 60.0, **{"exits.stop_pct": 0.05, "exits.target_pct": 0.5, "risk.max_consecutive_losses": 100,
                              "risk.max_loss_per_trade_pct": 0.05, "risk.max_gross_exposure_pct": 2.0})
    run_dir = folder(tmp_path, cfg)
    seen: dict[str, Any] = {}
    def hand() -> None:
        "Another program that watches, kills, and ends the session."
        def working() -> set[str]: return {o["id"] for o in server.get("truth")["orders"] if o["status"] in ("new", "accepted")}
        try:
            until(lambda: len(server.get("truth")["positions"]) == n and len(working()) >= n, "ten positions with their stops", every=0.1)
            seen["stops"] = working()
            write_kill(run_dir, "test")
            t0 = time.monotonic()
            until(lambda: not seen["stops"] & working(), "all cancels", every=0.01)
            seen["cancelled"] = time.monotonic() - t0
            until(lambda: not server.get("truth")["positions"], "flat")
            seen["flat"] = time.monotonic() - t0
            seen["look"] = statistics.median(timed(working) for _ in range(9))   # how long this busy process takes to ask anything
        finally: os.kill(os.getpid(), signal.SIGTERM)   # the session's own handler: a request to stop
    with venue(tape, 60.0) as server:
        other = threading.Thread(target=hand)
        other.start()
        assert run_session(cfg, run_dir) == EXIT_OK
        other.join()
        same_as_venue(run_dir, server)
    stops, cancelled = seen["stops"], seen["cancelled"]
    print(f"{len(stops)} orders cancelled {cancelled:.2f} s after the kill switch, {n} positions flat after {seen['flat']:.2f} s")
    assert len(stops) == n and cancelled <= 1.0 + 30 * seen["look"]   # a second where the machine has nothing else to do
    assert "kill" in [c.data["action"] for c in of_kind(run_dir, "note:control")]


# ---- bad input: each refused in its own words

def refused(cfg: Any, tmp_path: Path, capfd: Any, name: str = "r") -> str:
    assert run_session(cfg, folder(tmp_path, cfg, name)) == EXIT_CONFIG
    return str(capfd.readouterr().err)


def test_wrong_keys_symbols_and_hours_are_refused_before_anything_is_sent(tmp_path, capfd, monkeypatch):
    tape = market(n=3, minutes=2)
    with venue(tape, 1.0, terms={"untradable": frozenset({"ABB"}), "not_shortable": frozenset({"ABC"})}) as server:
        assert "ABB (not tradable)" in refused(conf(tape, 1.0), tmp_path, capfd, "a")
        assert "XYZ (unknown)" in refused(conf(tape, 1.0, **{"data.symbols": ["ABA", "XYZ"]}), tmp_path, capfd, "b")
        checks = {c.name: c for c in preflight(Plan(conf(tape, 1.0), tmp_path / "p", "test")).checks}
        assert not checks["tradable"].ok and "ABB (not tradable)" in checks["tradable"].found
        assert checks["sold short"].found == "ABC cannot be: long only there" and checks["streamed"].found == "all 3 symbols by iex"
        assert "equity 100,000.00" in checks["venue's account"].found and "the market is open" in checks["venue's clock"].found
        good = conf(tape, 1.0, **{"data.symbols": ["ABA", "ABC"]})
        assert "as the venue's clock runs" in refused(conf(tape, 1.0, **{"venue.alpaca.speed": 7.0}), tmp_path, capfd, "c")
        for key, value, words in (("APCA_API_SECRET_KEY", "wrong", "the API keys were refused"),
                                  ("APCA_API_KEY_ID", "", "APCA_API_KEY_ID is not set"),
                                  ("APCA_API_BASE_URL", "https://api.alpaca.markets", "an address of this machine")):
            with monkeypatch.context() as m:
                m.setenv(key, value)
                assert words in refused(good, tmp_path, capfd, words[:9].replace(" ", "-"))
        server.step(7 * 3600)
        assert "'closed'" in (said := refused(good, tmp_path, capfd, "d")) and "2026-11-20" in said
        assert server.get("truth")["orders"] == []


def test_real_money_is_asked_for_in_every_way_or_refused(tmp_path, capfd, monkeypatch):
    tape = market(n=2, minutes=2)
    for name in ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY"): monkeypatch.setenv(name, "PKTEST")
    cfg = conf(tape, 1.0, **{"venue.broker": "alpaca_live", "venue.alpaca.feed": {}})
    assert "typed twice" in refused(cfg, tmp_path, capfd, "a")
    assert preflight(Plan(cfg, tmp_path / "p", "test")).checks[0].ok is False
    with pytest.raises(Exception, match="paper keys on the live address"): open_venue(cfg)
    for name in ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY"): monkeypatch.setenv(name, "AKTEST")
    with pytest.raises(Exception, match="live keys on the paper address"):
        open_venue(conf(tape, 1.0, **{"venue.broker": "alpaca_paper", "venue.alpaca.feed": {}}))


def test_an_order_still_on_its_way_out_is_not_called_absent(tmp_path):
    """Found in a rehearsal: the market clock, asked before an order is sent, was slow; the look-up overtook the order and found none."""
    tape = market(n=2, minutes=2)
    script = read_script([{"fault": "http_slow", "match": "GET /v2/clock", "at": 2.0, "times": 1, "args": {"seconds": 1.5}}])
    with venue(tape, 1.0, script=script) as server:
        v = open_venue(conf(tape, 1.0))
        b, now, heard = v.broker, v.pace.now, list[Any]()
        try:
            b.connect(now())
            until(lambda: now() - int(tape.rows["ts"][0]) > 2_500_000_000, "the fault's time")
            b.submit(order("slow", "ABA", 5), now())
            b.query("slow", now())
            def filled() -> bool:
                heard.extend(b.poll(now()))
                return any(u.kind is UpdateKind.FILL for u in heard)
            until(filled, "a fill")
        finally: shut(v)
        assert len(server.get("faults")) == 1
    kinds = [u.kind for u in heard]
    assert UpdateKind.NOT_FOUND not in kinds and kinds[0] is UpdateKind.NO_ANSWER


def test_an_order_the_venue_turns_down_is_not_sent_twice(tmp_path):
    """Keys that expire, buying power, a symbol that cannot be sold short, a closed market: reason codes, and one request each at most."""
    tape = market(n=2, minutes=2)
    with venue(tape, 1.0, terms={"not_shortable": frozenset({"ABB"})}) as server:
        v = open_venue(conf(tape, 1.0))
        b, now = v.broker, v.pace.now
        try:
            b.connect(now())
            said: dict[str, Any] = {}
            def reason(i: Intent) -> str:
                b.submit(i, now())
                def heard() -> bool:
                    said.update((u.client_id, u) for u in b.poll(now()))
                    return i.id in said
                until(heard, i.id)
                assert said[i.id].kind is UpdateKind.REJECT
                return str(said[i.id].reason)
            assert reason(order("much", "ABA", 100_000, "99.00")) == "buying_power"
            assert reason(order("short", "ABB", 5, "101.00", Side.SELL)) == "not_shortable"
            before = b.stats.submits
            server.step(7 * 3600)
            assert reason(order("late", "ABA", 5, "99.00")) == "market_closed" and b.stats.submits == before
            server.step(17.5 * 3600)
            server.api.orders.terms = AlpacaTerms(**{**server.terms.model_dump(), "key": "PKNEW"})
            assert reason(order("old", "ABA", 5, "99.00")) in ("keys", "clock_unavailable") and b.stats.submits == before
        finally: shut(v)
        assert len(server.get("truth")["orders"]) == 0
