"""Sessions at the Angel One practice venue: the specification's trading day, kills in every phase of an order, refusals, expired tokens."""

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import yaml
from alpaca_live import begun, folder, journal, of_kind, until
from angel_live import conf, drawn_tape, market, resting, tickets, venue, wire
from test_live_notebook import ROOT, finish, papermill

from scalp_nb.live.notebook import Plan, preflight
from scalp_nb.order.types import Intent, OrderType, Purpose, Side, Tif
from scalp_nb.practice.angel_one import AngelServer
from scalp_nb.practice.faults import read_script
from scalp_nb.trader.lease import write_kill
from scalp_nb.trader.replay import replay_run
from scalp_nb.trader.report import load_run
from scalp_nb.trader.session import EXIT_CONFIG, EXIT_OK, EXIT_REFUSED, run_session
from scalp_nb.trader.venues import open_venue, shut

pytestmark = pytest.mark.usefixtures("restore_signals")
HUNDRED = {"exits.stop_pct": 0.05, "exits.target_pct": 0.5, "exits.time_stop_s": 0}   # nothing closes by itself


def at(tape: Any, seconds: float) -> datetime:
    "A moment after the tape's first row."
    return datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + seconds, UTC)


def same_as_venue(run_dir: Path, server: AngelServer, account: str = "test") -> int:
    "The journal's fills are the venue's executions, each once, and no order was sent twice; how many fills."
    truth, orders = server.get("truth"), tickets(server)
    fills = [n.data for n in of_kind(run_dir, "note:fill", account=account)]
    sent = [c.intent.id for c in of_kind(run_dir, "command:Submit", account=account)]
    tags = [t.tag for t in orders]
    assert len(sent) == len(set(sent)) and len(tags) == len(set(tags)) and set(tags) <= set(sent)
    assert len({f["exec_id"] for f in fills}) == len(fills) == len(truth["executions"])
    assert sum(Decimal(f["qty"]) for f in fills) == sum(Decimal(str(e["qty"])) for e in truth["executions"])
    return len(fills)


def told(nb: nbformat.NotebookNode) -> str:
    "Everything the notebook printed as text."
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    return "\n".join(str(o.get("text", "")) + str(o.get("data", "")) for o in outputs)


# ---- the specification's trading day

@pytest.mark.soak
def test_the_shipped_configuration_on_a_short_day(tmp_path):
    """Started before the open, headless by papermill: waits, trades the strongest signals, ends flat, logs out, reports its targets."""
    tape = market(n=8, seconds=1200, seed=4, episode_every_s=90.0)
    params = yaml.safe_load((ROOT / "nbs/live/angel_scalper.yaml").read_text(encoding="utf-8"))
    speed, before = 40.0, 3000
    changes: dict[str, Any] = {"venue": {"broker": "angel_practice", "angel": {"feed": wire(speed)["venue.angel.feed"],
                                                                              "account": wire(speed)["venue.angel.account"]}},
                               "until": at(tape, 1080).isoformat(), "symbols": list(tape.universe.symbols), "universe": "",
                               "strategy": {"windows": [], "warmup_rows": 10}, "risk": {"avoid_first_minutes": 1},
                               "exits": {"stop_pct": 0.0008, "target_pct": 0.0012}}
    for name, value in wire(speed).items():
        section, _, key = name.partition(".")
        if section in ("health", "exits", "session"): changes.setdefault(section, {})[key] = value
    merged = {**params, **{k: {**params[k], **v} if isinstance(v, dict) and isinstance(params.get(k), dict) else v for k, v in changes.items()}}
    with venue(tape, speed, start=int(tape.rows["ts"][0]) - before * 10**9) as server:
        status, out = finish(papermill(tmp_path, merged), 300)
        assert status == 0, out[-3000:]
        run_dir = tmp_path / "run"
        assert same_as_venue(run_dir, server, "paper") >= 4
        assert server.get("truth")["positions"] == {}
    run, said = load_run(run_dir), told(nbformat.read(run_dir / "live_trading.ipynb", 4))
    submits = [c.intent for c in of_kind(run_dir, "command:Submit", account="paper")]
    opens = int(tape.rows["ts"][0]) // 60_000_000_000 * 60_000_000_000
    assert min(i.ts for i in submits) >= opens + 60 * 10**9 > of_kind(run_dir, "event:Started", account="paper")[0].ts
    assert {i.type for i in submits} <= {OrderType.LIMIT, OrderType.STOP_LIMIT} and {i.tif for i in submits} == {Tif.DAY}
    assert all(len(i.id) <= 19 for i in submits) and {i.qty for i in submits if i.purpose is Purpose.ENTRY} == {1}
    assert len({i.id for i in submits if i.purpose is Purpose.ENTRY and not i.parent}) >= len(run.round_trips) > 0
    assert len(run.round_trips) <= 10 and {"stop", "target"} & set(run.round_trips["reason"])
    assert "the practice venue of this machine" in said and "all 8 symbols in the instrument master" in said and "five levels" in said
    assert "a target, not a forecast" in said and "60.0 %" in said
    again = replay_run(run_dir)
    assert again.ok and again.commands > 20, again.first


# ---- kill -9 in the middle of every phase of an order

def kept_long(n: int = 1, seconds: int = 900) -> Any:
    "A market that stands still while buyers lean on it."
    mid = 10_000 + 800 * np.arange(n) + np.zeros((seconds, n), int)
    return drawn_tape(mid, 0.8, start_s=600)


PHASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    # phase: changes of the configuration, faults of the venue, terms of the account
    "intent": ({}, [], {}),
    "sent": ({}, [{"fault": "ack_slow", "match": "placeOrder", "args": {"seconds": 3.0}}], {}),
    "lost": ({}, [{"fault": "ack_lost", "match": "placeOrder"}], {}),
    "open": ({"sizing.fixed_qty": 5000, "risk.max_position_pct": 1.0, "risk.max_order_value": 5e6, "risk.max_gross_exposure_pct": 10.0,
              "risk.depth_multiple": 0.01, "exits.entry_timeout_ms": 600_000, "risk.max_loss_per_trade_pct": 1.0}, [],
             {"cash": Decimal(100_000_000)}),
    "stop": ({}, [], {}),
    "exiting": ({"exits.time_stop_s": 30.0}, [{"fault": "cancel_late", "args": {"seconds": 30.0}}], {}),
}


def reached(phase: str, run_dir: Path, server: AngelServer) -> bool:
    "Whether the session is in the phase."
    orders = tickets(server)
    if phase == "intent": return False   # it ends by itself
    if phase in ("sent", "lost"): return bool(orders)
    if phase == "open": return any(t.filled and t.open for t in orders)
    if phase == "stop": return bool(resting(server))
    return bool([n for n in journal(run_dir, "note:exit")])


def begun_to_die(run_dir: Path) -> "subprocess.Popen[str]":
    "A session that is killed with its first intent on disk and nothing of it sent."
    code = ("import os, sys, signal\nfrom scalp_nb.broker.angel_one import AngelBroker\nfrom scalp_nb.trader.session import main\n"
            "AngelBroker.submit = lambda self, i, ts: os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(main(sys.argv[1:]))")
    argv = [sys.executable, "-c", code, str(run_dir / "config.yaml"), str(run_dir)]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("phase", [p if p == "stop" else pytest.param(p, marks=pytest.mark.soak) for p in PHASES])
def test_a_session_killed_in_a_phase_goes_on_with_the_venues_books(phase, tmp_path):
    over, script, terms = PHASES[phase]
    tape, speed = kept_long(), 20.0
    cfg = conf(tape, speed, **HUNDRED | over)
    run_dir = folder(tmp_path, cfg)
    with venue(tape, speed, script=read_script(script), terms=terms) as server:
        first = begun(run_dir, cfg) if phase != "intent" else begun_to_die(run_dir)
        until(lambda: first.poll() is not None or reached(phase, run_dir, server), phase, 60, 0.005)
        if phase == "intent": assert first.wait(30) == -signal.SIGKILL and tickets(server) == []
        else:
            assert first.poll() is None, first.stderr and first.stderr.read()
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        second = begun(run_dir, cfg)
        lives = lambda: [r for r in journal(run_dir, "note:entries") if r.data["on"]]  # noqa: E731
        def settled() -> bool:
            held = set(server.get("truth")["positions"])
            return len(journal(run_dir, "run:begin")) == 2 and bool(journal(run_dir, "event:Started")[1:]) and held == resting(server)
        until(lambda: second.poll() is not None or settled(), "protected again", 60)
        assert second.poll() is None, second.stderr and second.stderr.read()
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == EXIT_OK, second.stderr and second.stderr.read()
        same_as_venue(run_dir, server)
        assert server.get("truth")["positions"] == {} and not any(t.open for t in tickets(server))
    assert of_kind(run_dir, "note:reconcile")[1].data["differences"] == []
    assert lives()
    again = replay_run(run_dir)
    assert again.ok, again.first


# ---- what the books do not know, and the kill switch

def order(i: str, symbol: str, qty: int, limit: str, side: Side = Side.BUY, sym: int = 0) -> Intent:
    px = Decimal(limit)
    return Intent(i, 0, 0, "test", "hand", symbol, sym, side, Purpose.ENTRY, Decimal(qty), OrderType.LIMIT, px, None, Tif.DAY, px)


@pytest.mark.parametrize("planted", ["position", pytest.param("order", marks=pytest.mark.soak)])
def test_what_the_books_do_not_know_is_refused_and_printed(planted, tmp_path, capfd):
    tape = kept_long(2)
    cfg = conf(tape, 5.0)
    run_dir = folder(tmp_path, cfg)
    with venue(tape, 5.0) as server:
        v = open_venue(cfg)
        try:
            v.broker.connect(v.pace.now())
            v.broker.submit(order("byhand", "SAA", 7, "500.50" if planted == "position" else "490.00"), v.pace.now())
            if planted == "position": until(lambda: server.get("truth")["positions"], planted)
            else: until(lambda: any(t.status == "open" for t in tickets(server)), planted)
        finally: shut(v)
        sent = len(tickets(server))
        assert run_session(cfg, run_dir) == EXIT_REFUSED
        assert len(tickets(server)) == sent    # nothing was traded, nothing was cancelled
    said = capfd.readouterr().err
    assert "differ" in said and "SAA" in said and "7" in said
    print(said)


@pytest.mark.soak
def test_the_kill_switch_with_ten_positions_and_their_stops(tmp_path):
    """Angel One takes nine order messages a second, so ten cancels and ten exits take seconds: none is lost, and it ends flat."""
    n, speed = 10, 5.0
    tape = kept_long(n, 2400)
    cfg = conf(tape, speed, **HUNDRED | {"sizing.fixed_qty": 20, "risk.max_gross_exposure_pct": 5.0, "risk.max_concurrent_positions": n,
                                         "risk.max_orders_per_minute": 1000})
    run_dir = folder(tmp_path, cfg)
    seen: dict[str, Any] = {}
    def hand() -> None:
        "Another program that watches, kills, and ends the session."
        def stops() -> set[str]: return {t.tag for t in tickets(server) if t.status == "trigger pending"}
        def clock() -> int: return int(server.get("clock")["now"])
        try:
            until(lambda: len(server.get("truth")["positions"]) == n and len(stops()) == n, "ten positions with their stops", 120, every=0.1)
            seen["stops"] = stops()
            write_kill(run_dir, "test")
            t0 = clock()
            until(lambda: not seen["stops"] & stops(), "all cancels", 30, every=0.01)
            seen["cancelled"] = (clock() - t0) / 1e9
            until(lambda: not server.get("truth")["positions"], "flat", 60)
            seen["flat"] = (clock() - t0) / 1e9
        finally: os.kill(os.getpid(), signal.SIGTERM)   # the session's own handler: a request to stop
    with venue(tape, speed) as server:
        other = threading.Thread(target=hand)
        other.start()
        assert run_session(cfg, run_dir) == EXIT_OK
        other.join()
        same_as_venue(run_dir, server)
    print(f"{len(seen['stops'])} stops cancelled {seen['cancelled']:.1f} s after the kill switch (venue's time), flat after {seen['flat']:.1f} s")
    assert seen["cancelled"] <= 10 and seen["flat"] <= 30
    assert "kill" in [c.data["action"] for c in of_kind(run_dir, "note:control")]


# ---- while a session runs

def session_with(tmp_path: Path, faults: list[dict[str, Any]], seconds: int = 420, speed: float = 30.0, terms: dict[str, Any] | None = None,
                 **over: Any) -> tuple[Path, int, dict[str, Any], list[dict[str, Any]]]:
    "A session under a script; its folder, exit status, the venue's truth and events."
    tape = market(3, seconds + 60, seed=2)
    cfg = conf(tape, speed, **{"data.end": at(tape, seconds)} | over)
    run_dir = folder(tmp_path, cfg)
    with venue(tape, speed, script=read_script(faults), terms=terms or {}) as server:
        status = run_session(cfg, run_dir)
        truth, events = server.get("truth"), server.get("events")
        same_as_venue(run_dir, server)
        truth["open"] = [t.tag for t in tickets(server) if t.open]
    return run_dir, status, truth, events


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["token_expired", "login_twice", "mute_after_rollover"])
def test_a_session_goes_on_after_its_tokens_died(fault, tmp_path):
    """Logged in again by itself; entries are off in between, and trades are made afterwards."""
    run_dir, status, truth, _ = session_with(tmp_path, [{"fault": fault, "at": 120.0}])
    assert status == EXIT_OK and truth["positions"] == {}
    died = of_kind(run_dir, "event:Started")[0].ts + 120 * 10**9
    entries = [c.intent.ts for c in of_kind(run_dir, "command:Submit") if c.intent.purpose is Purpose.ENTRY]
    assert entries and max(entries) > died
    assert replay_run(run_dir).ok


@pytest.mark.soak
def test_an_unregistered_address_stops_orders_for_good(tmp_path):
    """AG7002: the first refused order is the last one sent; people are told why."""
    run_dir, _, truth, events = session_with(tmp_path, [], terms={"static_ip_ok": False}, seconds=300)
    assert truth["orders"] == [] and truth["positions"] == {}
    asked = [e for e in events if e["kind"] == "request" and "placeOrder" in str(e)]
    assert len(asked) <= 1
    said = " ".join(str(n.data) for n in of_kind(run_dir, "note:health", "note:alert", "note:order"))
    assert "AG7002" in said and "register" in said
    sent = [c for c in of_kind(run_dir, "command:Submit")]
    assert len(sent) <= 3


@pytest.mark.soak
def test_a_storm_of_refused_requests_loses_nothing(tmp_path):
    """A tenth of all requests answered 403 for two minutes."""
    run_dir, status, truth, events = session_with(tmp_path, [{"fault": "http_429", "at": 60.0, "times": 0, "p": 0.1}])
    assert status == EXIT_OK and truth["positions"] == {} and of_kind(run_dir, "note:fill")
    assert replay_run(run_dir).ok


@pytest.mark.soak
def test_entries_stop_when_the_hours_messages_are_used_up_and_exits_go_on(tmp_path):
    """Of twelve orders an hour eight are kept for exits: later entries are refusals with their reason, no failures, and it ends flat."""
    account = wire(30.0)["venue.angel.account"] | {"orders_per_h": 12, "reserve_per_h": 8}
    run_dir, status, truth, _ = session_with(tmp_path, [], **{"venue.angel.account": account})
    ended = {n.data["id"]: n.data for n in of_kind(run_dir, "note:order")}
    held_back = [d for d in ended.values() if d["reason"] == "rate_budget"]
    assert len(held_back) > 5 and {d["purpose"] for d in held_back} == {"entry"} and {d["state"] for d in held_back} == {"rejected"}
    assert status == EXIT_OK and truth["positions"] == {} and of_kind(run_dir, "note:trip") == []
    assert 1 <= sum(d["purpose"] == "entry" and d["state"] == "filled" for d in ended.values()) <= 4
    assert replay_run(run_dir).ok


@pytest.mark.soak
def test_a_rejected_entry_is_followed_by_its_signal_after_a_rest(tmp_path):
    """The signal comes again after a rejection, and not before the symbol has cooled down."""
    run_dir, status, truth, _ = session_with(tmp_path, [], terms={"cash": Decimal(300)}, seconds=240,
                                             **{"sizing.fixed_qty": 7, "risk.max_position_pct": 1.0, "risk.max_gross_exposure_pct": 10.0,
                                                "risk.max_consecutive_failures": 1000, "risk.max_loss_per_trade_pct": 1.0,
                                                "strategy.cooldown_s": 10.0})
    refused = [n for n in of_kind(run_dir, "note:refusal", "note:order")]
    assert refused and truth["positions"] == {}


@pytest.mark.soak
def test_a_defect_closes_everything_and_is_journalled(tmp_path, capsys, monkeypatch):
    """The emergency exit at a venue: orders go out, answers are waited for, and it ends flat."""
    from scalp_nb.trader import session
    real, broke = session.interruptions, []
    def interruptions(run: Any) -> None:
        if run.runner.trader.held and not broke:
            broke.append(1)
            raise ZeroDivisionError("a defect")
        real(run)
    monkeypatch.setattr(session, "interruptions", interruptions)
    run_dir, status, truth, _ = session_with(tmp_path, [], **HUNDRED)
    assert status == session.EXIT_FAILED and truth["positions"] == {} and truth["open"] == []
    assert of_kind(run_dir, "run:error")[0]["error"] == "ZeroDivisionError" and of_kind(run_dir, "run:end")[0]["flat"]
    assert replay_run(run_dir).ok


# ---- bad input: each refused in its own words

def refused(cfg: Any, tmp_path: Path, capfd: Any, name: str = "r") -> str:
    assert run_session(cfg, folder(tmp_path, cfg, name)) == EXIT_CONFIG
    return str(capfd.readouterr().err)


def test_bad_input_is_refused_before_anything_is_sent(tmp_path, capfd, monkeypatch):
    tape = kept_long(3)
    with venue(tape, 5.0, terms={"not_shortable": frozenset({"SAC"})}) as server:
        assert "SAZ" in (said := refused(conf(tape, 5.0, **{"data.symbols": ["SAA", "SAZ"]}), tmp_path, capfd, "a")) and "nearest" in said
        checks = {c.name: c for c in preflight(Plan(conf(tape, 5.0), tmp_path / "p", "test")).checks}
        assert "accepts the keys" in checks["keys, address, market"].found and "1,000,000.00" in checks["venue's account"].found
        assert "all 3 symbols in the instrument master of 2026-11-20" in checks["tradable"].found
        assert "practice time, 5 times" in checks["venue's clock"].found and "the market is open" in checks["venue's clock"].found
        assert "five levels" in checks["streamed"].found
        for name, value, words in (("ANGEL_PIN", "0000", "PIN refused"), ("ANGEL_TOTP_SECRET", "A" * 32, "TOTP refused"),
                                   ("ANGEL_API_KEY", "", "ANGEL_API_KEY is not set"), ("ANGEL_TOTP_SECRET", "no base 32!", "no TOTP secret"),
                                   ("ANGEL_REST_URL", "https://apiconnect.angelone.in", "an address of this machine")):
            with monkeypatch.context() as m:
                m.setenv(name, value)
                assert words in refused(conf(tape, 5.0), tmp_path, capfd, words[:9].replace(" ", "-"))
        assert "as the venue's clock runs" in refused(conf(tape, 5.0, **{"venue.angel.speed": 50.0}), tmp_path, capfd, "s")
        server.step(7 * 3600)
        assert "'closed'" in (said := refused(conf(tape, 5.0), tmp_path, capfd, "d")) and "2026-11-23 09:15" in said
        assert server.get("truth")["orders"] == []


def test_a_holiday_and_real_money_are_refused(tmp_path, capfd, monkeypatch):
    tape = kept_long(2)
    holiday = int(datetime(2026, 11, 24, 10, 0, tzinfo=UTC).timestamp()) * 10**9 - 19_800 * 10**9
    with venue(tape, 1.0, start=holiday):
        assert "'closed'" in (said := refused(conf(tape, 1.0), tmp_path, capfd, "h")) and "2026-11-25 09:15 IST" in said
    live = conf(tape, 1.0, **{"venue.broker": "angel_live", "venue.angel.feed": {}, "venue.angel.account": {}})
    assert "typed twice" in refused(live, tmp_path, capfd, "l")
    assert preflight(Plan(live, tmp_path / "p", "test")).checks[0].ok is False


def test_the_brokers_estimate_of_charges_is_compared_with_the_plan():
    tape = kept_long(2)
    with venue(tape, 1.0):
        for plan, words in ((None, "by Angel One's estimate too"), ("flat20", "DIFFER from plan flat20: brokerage")):
            v = open_venue(conf(tape, 1.0, **{"venue.plan": plan}))
            try: assert v.charges is not None and words in v.charges()
            finally: shut(v)
