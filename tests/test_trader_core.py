"""The pure trader: batch boundaries, conservation, protection, controls, restarts."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markets import DAY, config, market, notes, random_tape, run_all, said, synthetic

from scalp_nb.broker.base import NEVER
from scalp_nb.feed.errors import ConfigError
from scalp_nb.feed.health import HealthConfig, health_params
from scalp_nb.feed.instrument import Universe
from scalp_nb.order.types import Intent, OrderState, OrderType, Purpose, Tif
from scalp_nb.practice.venue import synthetic_us
from scalp_nb.strategy.pressure import PressureParams, rule_params
from scalp_nb.strategy.scan import WINDOW, Scanner, scan_at
from scalp_nb.trader.core import Trader, TraderError, restore, snapshot
from scalp_nb.trader.events import AccountState, Clock, Control, Depth, Halt, Link, Note, Reconciled, Started, Submit
from scalp_nb.trader.journal import dumps, encode
from scalp_nb.trader.runner import Memory
from scalp_nb.trader.setup import paper_run

START = 1_795_060_000_000_000_000


def scan_log(rows, cuts, by_address):
    params = PressureParams(warmup_rows=2, all_features=True, max_spread_bps=500.0, decision_window_ms=200)
    sc = Scanner(3, health_params(HealthConfig(stale_ms=3000, suspect_ms=500), START, START + 10**15) | rule_params(params))
    sc.g["entries_on"] = 1
    log, edges = [], [0, *cuts, len(rows)]
    for a, b in zip(edges, edges[1:], strict=False):
        block, i = np.ascontiguousarray(rows[a:b]), 0
        while i < len(block):
            i = scan_at(sc.ctx, block.ctypes.data, len(block), i, NEVER) if by_address else sc.run(block, i, NEVER)
            if sc.reason:
                log.append((a + i, sc.reason, int(sc.g["sym"]), [(c.sym, c.side) for c in sc.candidates()]))
            if sc.reason & WINDOW:
                for c in sc.candidates():
                    sc.sym["held"][c.sym] = 0 if sc.sym["held"][c.sym] else c.side
                    sc.sym["armed"][c.sym], sc.sym["exposed"][c.sym] = 1, 1
                    sc.sym["stop_px"][c.sym] = sc.book["ltp"][c.sym] * (1 - 0.002 * c.side)
                    sc.sym["target_px"][c.sym] = sc.book["ltp"][c.sym] * (1 + 0.002 * c.side)
                sc.close_window()
            elif sc.reason & (4 | 8 | 16):
                sc.sym["held"][int(sc.g["sym"])] = 0
    return log, sc.sym.tobytes() + sc.glob["rows"].tobytes() + sc.book.tobytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 600), max_size=12), st.booleans())
def test_scan_decides_the_same_however_the_stream_is_cut(seed, cuts, by_address):
    rows = random_tape(np.random.default_rng(seed), 600, 3, START)
    whole, state = scan_log(rows, [], False)
    cut, state2 = scan_log(rows, sorted(set(cuts)), by_address)
    assert whole == cut
    assert state == state2
    assert seed != 0 or len(whole) > 5  # the tape does make the scan stop


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_row_by_row_is_the_same_as_one_block(seed):
    """Also what is due between two rows happens at its own time, whichever event brings the news."""
    rows, uni = synthetic(n_symbols=2, seconds=900, seed=seed, episode_every_s=60.0)
    whole, single = run_all(config(), rows, uni), run_all(config(), rows, uni, list(range(1, len(rows))))
    assert [(ts, dumps(encode(c))) for ts, c in said(whole)] == [(ts, dumps(encode(c))) for ts, c in said(single)]
    assert len(notes(whole, "round_trip")) >= 3


def test_time_never_runs_ahead_of_the_rows():
    """Found by fault run 17: a decision window whose candidate was gone before its end let time jump to the next timer, past waiting rows."""
    rows = random_tape(np.random.default_rng(5), 3000, 3, START)
    r, _ = started(**{"strategy.warmup_rows": 2, "strategy.max_spread_bps": 500.0, "strategy.decision_window_ms": 900, "health.stale_ms": 3_600_000,
                      "health.connection_stale_ms": 3_600_000})
    t, i, windows = r.trader, 0, 0
    rows["recv"] += t.now - int(rows["recv"][0])
    rows["ts"] += int(rows["recv"][0]) - START
    while i < len(rows) - 1:
        commands = t.handle(Depth(rows, i, int(rows["recv"][-1])))
        i, windows = t.consumed, windows + (int(t.scanner.g["win_end"]) > 0)
        assert t.now <= int(rows["recv"][min(i, len(rows) - 1)]), f"row {i}"
        if commands: r.carry(commands, Depth(rows, i))
        if i >= len(rows) - 1 or r.halted: break
    assert i > 100


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 5399), min_size=1, max_size=30), st.integers(1, 3))
def test_trader_says_the_same_however_the_stream_is_cut(cuts, seed):
    rows, uni = synthetic(seed=seed)
    whole, cut = run_all(config(), rows, uni), run_all(config(), rows, uni, cuts)
    assert [(ts, dumps(encode(c))) for ts, c in said(whole)] == [(ts, dumps(encode(c))) for ts, c in said(cut)]
    assert len(notes(whole, "round_trip")) >= 3


FAULTS = {"paper": {"reject_prob": 0.1, "lost_ack_prob": 0.1, "duplicate_update_prob": 0.2, "late_fill_prob": 0.2, "partial_prob": 0.3,
                    "latency_sigma": 1.0, "order_latency_ns": 20_000_000, "response_latency_ns": 20_000_000}}


def test_chased_entries_end_like_others():
    """An entry that never fills at its first price is cancelled and sent again, at most twice, never dearer than the accepted slippage."""
    over = {"exits.entry_chases": 2, "exits.entry_slip_pct": 0.00001, "exits.max_slippage_pct": 0.002, "exits.entry_timeout_ms": 300,
            "paper": {"order_latency_ns": 900_000_000, "partial_prob": 0.3}}
    chased, capped = 0, 0
    for seed in range(2):
        rows, uni = synthetic(seed=seed)
        r, cut = run_all(config(**over), rows, uni), run_all(config(**over), rows, uni, [97, 1003, 2500])
        assert [(ts, dumps(encode(c))) for ts, c in said(r)] == [(ts, dumps(encode(c))) for ts, c in said(cut)]
        entries = {c.intent.id: c.intent for _, c in said(r) if isinstance(c, Submit) and c.intent.purpose is Purpose.ENTRY}
        for i in entries.values():
            if not i.parent: continue
            first, family = entries[i.parent], [x for x in entries.values() if x.parent == i.parent]
            chased += 1
            assert len(family) <= 2 and i.ref_px == first.ref_px and i.qty == first.qty and r.trader.orders.orders[i.parent].filled == 0
            assert 0 < (i.limit - first.limit) * i.side
            assert (i.limit - first.ref_px) * i.side <= first.ref_px * Decimal("0.002")
            capped += r.trader.orders.orders[i.id].filled > 0
        t = r.trader
        assert t.trades_today == len({i for i in entries if t.orders.orders[i].filled}) <= t.limits.max_trades_per_day
        assert r.halted is not None and r.halted.ok and t.book.cash == r.broker.state(t.now).account.cash
    assert chased >= 2 and capped >= 1, (chased, capped)


def test_entries_by_market_order_where_the_venue_takes_them():
    """The Alpaca specification's order type: no price goes out, the gates judge the marketable one, and the books agree."""
    tape = synthetic_us(("AAPL", "MSFT"), DAY, 1200, seed=3, episode_every_s=120.0, episode_s=40.0, edge_bps=20.0)
    over = {"venue.terms": "alpaca", "exits.entry_order": "market", "exits.allow_market": True, "strategy.fallback": "displayed",
            "strategy.depth_multiplier": 1.1, "paper": {"partial_prob": 0.3, "order_latency_ns": 50_000_000}}
    r, cut = (run_all(config(**over), tape.rows, tape.universe, cuts) for cuts in (None, [97, 1003]))
    assert [(ts, dumps(encode(c))) for ts, c in said(r)] == [(ts, dumps(encode(c))) for ts, c in said(cut)]
    entries = [c.intent for _, c in said(r) if isinstance(c, Submit) and c.intent.purpose is Purpose.ENTRY]
    assert len(entries) >= 3 and {(i.type, i.limit, i.tif) for i in entries} == {(OrderType.MARKET, None, Tif.DAY)}
    assert all(n["price"] > 0 and n["ref_px"] > 0 for n in notes(r, "decision"))
    assert len(notes(r, "round_trip")) >= 3 and r.halted is not None and r.halted.ok
    assert r.broker.state(r.trader.now).account.cash == r.trader.book.cash


@pytest.mark.parametrize("mode", ["venue_stop", "oco", "local"])
@pytest.mark.parametrize("seed", range(6))
def test_money_and_positions_agree_with_the_venue_under_faults(mode, seed):
    """Invariants 2, 3, 4: one live entry a symbol, fills once, ledger = broker."""
    rows, uni = synthetic(seed=seed)
    terms = "alpaca" if mode == "oco" else "angel_one"
    cfg = config(**{"run.seed": seed, "exits.mode": mode, "sizing.fixed_qty": 7, **FAULTS}) if terms == "angel_one" else config(
        **{"run.seed": seed, "exits.mode": mode, "sizing.fixed_qty": 7, "paper": FAULTS["paper"] | {"native_oco": True}})
    r = run_all(cfg, rows, uni)
    t, venue = r.trader, r.broker.state(r.trader.now)
    assert r.halted is not None and r.halted.ok, r.halted
    assert venue.account.cash == t.book.cash
    assert {s: q for s, q, _ in venue.positions if q} == {uni[s].symbol: t.book.qty(s) for s in t.book.open_syms()} == {}
    assert sum((f["fee"] and Decimal(f["fee"]) for f in notes(r, "fill")), Decimal(0)) == t.book.fees
    assert t.book.cash == t.book.start + t.book.realised - t.book.fees
    intents = [c.intent for _, c in said(r) if isinstance(c, Submit)]
    assert len({i.id for i in intents}) == len(intents)
    assert len(notes(r, "round_trip")) >= 3
    blocked = {a["why"] for a in notes(r, "alert") if a["code"] == "exit_blocked"}
    assert blocked <= {"exit_order_rate"}, blocked  # the message budget may hold an exit back for a moment, nothing else may


def live_intervals(r):
    """(symbol, from, to) of every entry order's life."""
    open_at: dict[str, tuple[Intent, int]] = {}
    out = []
    for ts, c in said(r):
        if isinstance(c, Submit) and c.intent.purpose is Purpose.ENTRY:
            open_at[c.intent.id] = (c.intent, ts)
        if isinstance(c, Note) and c.kind == "order" and c.data["id"] in open_at and c.data["state"] in ("filled", "canceled", "rejected", "expired"):
            intent, begin = open_at.pop(c.data["id"])
            out.append((intent.symbol, begin, ts))
    return out


def test_one_live_entry_per_symbol():
    rows, uni = synthetic(seconds=3600)
    r = run_all(config(**FAULTS), rows, uni)
    lives = sorted(live_intervals(r))
    assert len(lives) > 10
    for (s1, _, end), (s2, begin, _) in zip(lives, lives[1:], strict=False):
        assert s1 != s2 or begin >= end


def test_an_open_position_is_protected_within_a_bound():
    """Invariant 5: after the first fill a stop works at the venue, or the local stop is armed, at every step."""
    rows, uni = synthetic()
    r = paper_run(config(**FAULTS), market(rows, uni), Memory())
    r.start(int(rows["recv"][0]))
    looked = 0
    for k in range(0, len(rows), 7):
        r.feed(rows[k:k + 7])
        t = r.trader
        for sym, h in t.held.items():
            looked += 1
            s = t.scanner.sym[sym]
            stops = [o for o in t.orders.working(sym) if o.intent.purpose is Purpose.STOP and o.state in (OrderState.OPEN, OrderState.PARTIAL)]
            assert h.trigger or stops or (s["armed"] and np.isfinite(s["stop_px"])), (sym, h)
            assert sum(o.leaves for o in stops) <= abs(t.book.qty(sym))
    assert looked > 50


def test_a_bad_feed_blocks_entries_and_lets_exits_pass():
    """Invariant 6."""
    rows, uni = synthetic()
    clean = run_all(config(), rows, uni)
    entry = next(i for _, c in said(clean) if isinstance(c, Submit) for i in [c.intent] if i.purpose is Purpose.ENTRY)
    sick = rows.copy()
    mine = (sick["sym"] == entry.sym) & (sick["ts"] >= entry.ts - 5_000_000_000) & (sick["ts"] <= entry.ts + 20_000_000_000)
    sick["bid_px"][mine, 0] = sick["ask_px"][mine, 0] + 1
    r = run_all(config(), sick, uni)
    sent = [c.intent for _, c in said(r) if isinstance(c, Submit)]
    assert not [i for i in sent if i.sym == entry.sym and i.purpose is Purpose.ENTRY and abs(i.ts - entry.ts) < 20_000_000_000]
    held = rows.copy()
    after = (held["sym"] == entry.sym) & (held["ts"] > entry.ts + 3_000_000_000)
    held["ask_px"][after, 0] = held["bid_px"][after, 0] - 1  # crossed from then on, and far through a long's or short's stop on one side
    r = run_all(config(), held, uni)
    assert [x for x in notes(r, "round_trip") if x["entry_id"] == entry.id]


def control(runner, action, **args):
    runner.send(Control(runner.trader.now, action, "ann", args))


def started(**over):
    rows, uni = synthetic()
    r = paper_run(config(**over), market(rows, uni), Memory())
    r.start(int(rows["recv"][0]))
    return r, rows


def feed_until_held(r, rows):
    for k in range(0, len(rows), 5):
        r.feed(rows[k:k + 5])
        if r.trader.held:
            return k + 5
    raise AssertionError("no position on this tape")


def test_kill_is_latched_flattens_and_survives_a_restart():
    """Invariant 7."""
    r, rows = started()
    k = feed_until_held(r, rows)
    control(r, "kill")
    r.feed(rows[k:k + 60])
    assert not r.trader.held and r.trader.entries_code == "breaker"
    t2 = Trader(r.trader.setup)
    restore(t2, snapshot(r.trader))
    assert t2.breakers.blocks_entries and "kill" in t2.breakers.tripped
    with pytest.raises(ConfigError):
        control(r, "reset_breaker", name="drawdown")
    control(r, "reset_breaker", name="kill")
    assert not r.trader.breakers.blocks_entries


@pytest.mark.parametrize("over", [{"exits.time_stop_s": 0.0}, {}], ids=["kept", "an exit that nobody answers"])
def test_silence_after_a_restart_counts_from_the_restart(over):
    """Found in a restart with a position: before its first row the feed had been silent for 1,795,101,786 s, and its breaker tripped early.
    And with an order that is asked about every second, the look at the silence was put off every second."""
    r, rows = started(**over)
    feed_until_held(r, rows)
    t, began = Trader(r.trader.setup), r.trader.now + 60 * 10**9
    t.handle(Started(began, r.broker.state(r.trader.now), snapshot(r.trader)))
    assert t.held and t.reconciled
    stale = max(t.setup.health.stale_ms, t.setup.health.connection_stale_ms) * 10**6
    patience = stale + int(t.limits.feed_breaker_s * 10**9)
    said_of = [c for ts in range(began, began + patience - 10**9, 10**9) for c in t.handle(Clock(ts)) if isinstance(c, Note)]
    assert "feed" not in t.breakers.tripped
    silent = [c.data["silent_ms"] for c in said_of if c.kind == "health" and "silent_ms" in c.data]
    assert silent and max(silent) <= patience / 10**6
    later = [c for ts in range(began + patience, began + 2 * patience, 10**9) for c in t.handle(Clock(ts)) if isinstance(c, Note)]
    (trip,) = [c.data for c in later if c.kind == "trip" and c.data["breaker"] == "feed"]
    assert 0 < float(trip["reason"].split()[3]) < 2 * patience / 10**9, trip


def test_pause_flatten_resume_and_names():
    r, rows = started()
    control(r, "pause")
    r.feed(rows[:2000])
    assert not [1 for _, c in said(r) if isinstance(c, Submit)]
    control(r, "resume")
    k = 2000 + feed_until_held(r, rows[2000:])
    control(r, "flatten")
    r.feed(rows[k:k + 40])
    assert [x["reason"] for x in notes(r, "exit")][:1] == ["flatten"]
    with pytest.raises(TraderError, match="without a name"):
        r.send(Control(r.trader.now, "pause", " "))
    with pytest.raises(TraderError, match="control action"):
        control(r, "explode")
    with pytest.raises(TraderError, match="stop policy"):
        control(r, "stop", policy="panic")


@pytest.mark.parametrize("policy,flat", [("flatten", True), ("cancel", False), ("hold", False)])
def test_stop_policies(policy, flat):
    r, rows = started()
    k = feed_until_held(r, rows)
    control(r, "stop", policy=policy)
    r.feed(rows[k:k + 50])
    r.advance(r.trader.now + 10_000_000_000)
    assert isinstance(r.halted, Halt) and r.halted.ok is flat
    assert bool(r.trader.held) is not flat


def test_parameters_change_within_their_bounds():
    r, _ = started()
    control(r, "set", path="risk.max_trades_per_day", value=1)
    assert r.trader.limits.max_trades_per_day == 1
    control(r, "set", path="strategy.lower", value=0.8)
    assert float(r.trader.scanner.p["lower"]) == 0.8
    for path, value in [("strategy.lower", 0.2), ("risk.max_trades_per_day", "3"), ("strategy.pressure", "displayed"), ("nothing.here", 1)]:
        with pytest.raises(ConfigError):
            control(r, "set", path=path, value=value)
    assert float(r.trader.scanner.p["lower"]) == 0.8


def test_a_difference_at_the_start_refuses_and_explains():
    """Invariant 8."""
    rows, uni = synthetic(seconds=60)
    r = paper_run(config(), market(rows, uni), Memory())
    state = r.broker.state(int(rows["recv"][0]))
    from scalp_nb.trader.events import Started
    r.send(Started(int(rows["recv"][0]), replace(state, positions=(("S1", Decimal(5), Decimal(600)),))))
    assert r.halted is not None and not r.halted.ok
    assert "S1" in r.halted.reason and "5" in r.halted.reason
    assert not r.trader.reconciled


def test_snapshot_is_exact_at_any_moment():
    r, rows = started(**FAULTS)
    for k in range(0, 4000, 400):
        r.feed(rows[k:k + 400])
        t2 = Trader(r.trader.setup)
        snap = snapshot(r.trader)
        restore(t2, snap)
        again = snapshot(t2)
        assert {k: v for k, v in again.items() if k != "rows"} == {k: v for k, v in snap.items() if k != "rows"}


def test_trades_per_day_is_a_wall():
    rows, uni = synthetic()
    r = run_all(config(**{"risk.max_trades_per_day": 2}), rows, uni)
    filled = {n["entry_id"] for n in notes(r, "round_trip")}
    assert len(filled) == 2
    assert {"on": False, "code": "max_trades_per_day"} in notes(r, "entries")


def test_only_the_strongest_of_a_window_is_entered():
    rows, uni = synthetic(n_symbols=6, episode_every_s=20.0)
    r = run_all(config(**{"strategy.decision_window_ms": 2000}), rows, uni)
    contested = [d for d in notes(r, "decision") if d["candidates"] > 1]
    assert contested, "the tape has windows with several candidates"


def test_handle_is_pure_the_block_is_not_written():
    r, rows = started()
    before = rows.tobytes()
    r.trader.handle(Depth(rows, 0))
    assert rows.tobytes() == before


@pytest.mark.parametrize("breaker,limit", [("daily_loss", {"risk.max_daily_loss_pct": 0.0001}), ("drawdown", {"risk.max_drawdown_pct": 0.0001})])
def test_a_loss_breaker_trips_on_the_row_that_breaks_it_and_closes(breaker, limit):
    rows, uni = synthetic()
    r = run_all(config(**{"sizing.fixed_qty": 50, "paper": {"cash": 500_000}} | limit), rows, uni)
    trips = notes(r, "trip")
    assert [x["breaker"] for x in trips][:1] == [breaker]
    when = next(ts for ts, c in said(r) if isinstance(c, Note) and c.kind == "trip")
    assert not [c for ts, c in said(r) if ts > when and isinstance(c, Submit) and c.intent.purpose is Purpose.ENTRY]
    assert r.halted is not None and r.halted.ok
    exits = [x["reason"] for x in notes(r, "exit")]
    assert breaker in exits or not [x for x in notes(r, "round_trip") if x["exit_ts"] > when + 5_000_000_000]


def test_a_lost_connection_blocks_entries_until_it_is_back_and_settled():
    r, rows = started()
    r.send(Link(r.trader.now, "feed", False, "socket closed"))
    r.feed(rows[:2000])
    assert not [c for _, c in said(r) if isinstance(c, Submit)]
    r.send(Link(r.trader.now, "feed", True))
    r.feed(rows[2000:])
    assert [c for _, c in said(r) if isinstance(c, Submit)]
    assert [n["bits"] for n in notes(r, "health")][:2] == [["feed_down"], ["feed_up"]]


def test_cash_that_differs_is_an_alert():
    r, _ = started()
    a = r.broker.state(r.trader.now).account
    r.send(AccountState(r.trader.now, a))
    assert notes(r, "alert") == []
    r.send(AccountState(r.trader.now, replace(a, cash=a.cash + 1)))
    assert notes(r, "alert")[0]["code"] == "cash_differs"


def test_a_difference_while_trading_trips_the_breaker_when_seen_twice():
    r, _ = started()
    state = replace(r.broker.state(r.trader.now), positions=(("S0", Decimal(3), Decimal(500)),))
    r.send(Reconciled(r.trader.now, state))
    assert not r.trader.breakers.tripped, "one picture may be taken between a fill and the news of it"
    r.send(Reconciled(r.trader.now, state))
    assert "reconcile" in r.trader.breakers.tripped and r.trader.entries_code == "breaker"


def test_a_fill_that_never_reaches_us_is_fetched_and_protected():
    """Invariant 5: the look-up says filled, the execution is missing: the broker's list is fetched, the position gets its stop."""
    r, rows = started(**{"paper": {"late_fill_prob": 1.0, "late_fill_ns": 50_000_000_000}})
    k = 0
    while not r.broker.venue.fills:
        r.feed(rows[k:k + 5])
        k += 5
    filled = r.broker.venue.fills[0].ts
    while not r.trader.held:
        r.feed(rows[k:k + 1])
        k += 1
        assert r.trader.now - filled < 5_000_000_000, "protected long before the late news comes"
    t = r.trader
    sym = next(iter(t.held))
    assert [o for o in t.orders.working(sym) if o.intent.purpose is Purpose.STOP]
    assert [e for _, e in r.ledger.events if isinstance(e, Reconciled)]


def test_square_off_before_the_close():
    rows, uni = synthetic(seconds=1800)
    shift = int(5.6 * 3600e9)
    for f in ("ts", "recv"):
        rows[f] += shift
    patient = {"exits.time_stop_s": 0.0, "exits.stop_pct": 0.05, "exits.target_pct": 0.2, "strategy.exit_on_opposite": False}
    r = run_all(config(**patient), rows, uni, drain_s=1)
    t = r.trader
    assert not t.held and r.halted is not None and r.halted.ok
    assert {x["reason"] for x in notes(r, "exit")} == {"square_off"}
    last = max(x["exit_ts"] for x in notes(r, "round_trip"))
    assert t.flat_by[0] <= last <= t.flat_by[0] + 10_000_000_000
    entries = [c.intent.ts for _, c in said(r) if isinstance(c, Submit) and c.intent.purpose is Purpose.ENTRY]
    assert entries and max(entries) < t.last_entry[0]


def test_a_symbol_without_a_legal_price_is_refused_not_fatal():
    """A tick so coarse that no marketable limit fits the protection band: a refusal in words, and the session goes on."""
    rows, uni = synthetic()
    coarse = Universe("coarse", tuple(replace(i, tick_table="5000") for i in uni.instruments))
    r = run_all(config(), rows, coarse)
    assert r.halted is not None and r.halted.ok
    refused = notes(r, "refusal")
    assert {x["code"] for x in refused} == {"no_price"} and all("price" in x["text"] or "limit" in x["text"] for x in refused)
    assert not [c for _, c in said(r) if isinstance(c, Submit)]


def test_silence_is_news_only_while_the_market_is_open():
    rows, uni = synthetic(n_symbols=2, seconds=120)
    early = rows.copy()
    for f in ("ts", "recv"):
        early[f] -= 3 * 3600 * 10**9           # long before the open
    early["recv"] = early["ts"] = early["ts"][0] + np.arange(len(early)) * 7_000_000_000  # a row every seven seconds
    closed = [n for n in notes(run_all(config(), early[:200], uni, drain_s=1), "health") if n["bits"] == ["silence"]]
    assert closed == []
    late = rows.copy()
    late["recv"] = late["ts"] = late["ts"][0] + np.arange(len(late)) * 7_000_000_000
    told = [n for n in notes(run_all(config(), late, uni, drain_s=1), "health") if n["bits"] == ["silence"]]
    assert 5 < len(told) < len(late) / 7 and told[-1]["silences"] > 10 * len(told) / 2
