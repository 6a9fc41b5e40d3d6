"""Three tests for every gate of the registry: a breach is stopped, the boundary is right, there is no way round it.

A gate without an entry in CASES fails the suite, and so does a CASE without a gate."""

import math
import random
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from riskviews import ENTRY, MINUTE, NAN

from scalp_nb.risk.breakers import Breakers
from scalp_nb.risk.gates import CONTROLS, GATES, Gate, RiskView, check, controls_table, gate
from scalp_nb.risk.limits import RiskLimits

LONG_EXIT = replace(ENTRY, side=-1, symbol_position=100.0, stop_px=NAN)
LIMITS = RiskLimits(min_volume=1000.0)
OPEN, CLOSE, CUTOFF = ENTRY.session_open_ts, ENTRY.session_close_ts, ENTRY.entry_cutoff_ts


def tripped(*names: str) -> Breakers:
    b = Breakers()
    for n in names: b.trip(n, 1, "test")
    return b


@dataclass(frozen=True)
class Case:
    "Views (as changes to a passing one) on both sides of a gate's line."
    out: tuple[dict[str, Any], ...]                  # each is refused by this gate
    inside: tuple[dict[str, Any], ...] = ({},)       # each passes this gate: the last value that is allowed
    breakers: Breakers = field(default_factory=Breakers)  # for `out`
    unknown: tuple[str, ...] = ()                    # inputs whose NaN this gate alone must refuse
    flags: tuple[str, ...] = ()                      # flags whose unknown value (None) this gate must refuse


_ORDER_BAD = ({"qty": 0.0}, {"qty": -1.0}, {"price": 0.0}, {"price": -1.0}, {"ref_px": 0.0}, {"side": 0}, {"side": 2})
CASES: dict[str, Case] = {
    "inputs_known": Case((*_ORDER_BAD, {"equity": math.inf}), ({"qty": 1e-9},),
                         unknown=tuple(f.name for f in fields(RiskView) if f.type is float and f.name not in ("own_bid", "own_ask"))),
    "exit_inputs_known": Case(_ORDER_BAD, ({"equity": NAN},), unknown=("qty", "price", "ref_px", "symbol_position")),
    "kill_switch": Case(({"killed": True},), flags=("killed",)),
    "paused": Case(({"paused": True},), flags=("paused",)),
    "breaker": Case(({},), breakers=tripped("daily_loss")),
    "order_failures": Case(({"consecutive_failures": 5}, {"consecutive_failures": 6}), ({"consecutive_failures": 4},),
                           unknown=("consecutive_failures",)),
    "market_hours": Case(({"market_open": False}, {"ts": OPEN - 1}, {"ts": CLOSE}, {"session_open_ts": 0, "session_close_ts": 0}),
                         ({"ts": OPEN}, {"ts": CLOSE - 1}), flags=("market_open",)),
    "entry_cutoff": Case(({"ts": CUTOFF + 1}, {"entry_cutoff_ts": 0}), ({"ts": CUTOFF},)),
    "feed_health": Case(({"feed_ok": False}, {"feed_ok": False, "feed_reason": "stale"}), flags=("feed_ok",)),
    "reconciled": Case(({"reconciled": False},), flags=("reconciled",)),
    "symbol_free": Case(({"symbol_blocked": True},), flags=("symbol_blocked",)),
    "eligible": Case(({"restricted": True},), flags=("restricted",)),
    "short_sale": Case(({"side": -1, "shortable": False}, {"side": -1, "shortable": False, "symbol_position": 99.0}, {"side": -1, "shortable": None}),
                       ({"side": -1}, {"side": 1, "shortable": False}, {"side": -1, "shortable": False, "symbol_position": 100.0})),
    "duplicate": Case(({"duplicate": True},), flags=("duplicate",)),
    "reduce_only": Case(({"qty": 100.5}, {"side": 1}, {"symbol_position": 0.0}, {"symbol_position": -100.0}), ({"qty": 100.0}, {"qty": 1.0}),
                        unknown=("qty", "symbol_position")),
    "order_value": Case(({"qty": 10_000.01}, {"qty": 9_000.0, "price": 1.0, "ref_px": 112.0}), ({"qty": 10_000.0},), unknown=("qty",)),
    "order_qty": Case(({"qty": 100_000.5},), ({"qty": 100_000.0},), unknown=("qty",)),
    "exit_order_value": Case(({"qty": 20_000.01},), ({"qty": 20_000.0},), unknown=("qty",)),
    "exit_order_qty": Case(({"qty": 200_000.5},), ({"qty": 200_000.0},), unknown=("qty",)),
    "position_size": Case(({"qty": 1000.01}, {"qty": 1.0, "symbol_position": -1000.0}, {"equity": 99_999.0}, {"equity": -1e6}),
                          ({"qty": 1000.0}, {"qty": 1.0, "symbol_position": 999.0}), unknown=("qty", "symbol_position", "equity")),
    "buying_power": Case(({"buying_power": 9_999.99}, {"open_order_exposure": 990_000.01}), ({"buying_power": 10_000.0},),
                         unknown=("qty", "buying_power", "open_order_exposure")),
    "gross_exposure": Case(({"gross_exposure": 990_000.01}, {"open_order_exposure": 990_000.01}), ({"gross_exposure": 990_000.0},),
                           unknown=("qty", "gross_exposure", "open_order_exposure", "equity")),
    "concurrent_positions": Case(({"open_positions": 10}, {"open_positions": 11}), ({"open_positions": 9},), unknown=("open_positions",)),
    "trades_per_day": Case(({"trades_today": 10}, {"trades_today": 11}), ({"trades_today": 9},), unknown=("trades_today",)),
    "daily_loss": Case(({"day_pnl": -50_000.0}, {"day_pnl": -1e9},
                       {"start_equity": 0.0}, {"start_equity": 0.0, "day_pnl": 1.0}), ({"day_pnl": -49_999.99},),
                       unknown=("day_pnl", "start_equity")),
    "drawdown": Case(({"equity": 900_000.0}, {"peak_equity": 0.0}), ({"equity": 900_000.01},), unknown=("equity", "peak_equity")),
    "loss_streak": Case(({"consecutive_losses": 5},), ({"consecutive_losses": 4},), unknown=("consecutive_losses",)),
    "loss_per_trade": Case(({"stop_px": 49.99}, {"stop_px": 100.0}, {"stop_px": 100.25}, {"stop_px": -1.0}, {"side": -1, "stop_px": 99.75}),
                           ({"stop_px": 50.0}, {"side": -1, "stop_px": 100.25}), unknown=("stop_px", "price", "qty", "equity")),
    "spread": Case(({"bid": 99.0}, {"bid": 199.5, "ask": 200.51},
                    {"bid": 100.0}, {"bid": 100.05}, {"bid": 0.0}, {"bid": -1.0}, {"ask": 0.0}, {"ask": math.inf}),
                   ({"bid": 99.8, "ask": 100.2}, {"bid": 199.5, "ask": 200.5}), unknown=("bid", "ask")),
    "stop_distance": Case(({"bid": 99.75}, {"bid": 99.0}, {"side": -1, "stop_px": 100.0}, {"side": -1, "stop_px": 99.0}),
                          ({"bid": 99.76}, {"side": -1, "stop_px": 100.01}), unknown=("bid", "stop_px")),
    "depth": Case(({"displayed_qty": 99.99}, {"displayed_qty": 0.0}), ({"displayed_qty": 100.0},), unknown=("displayed_qty", "qty")),
    "volume": Case(({"volume": 999.99},), ({"volume": 1000.0},), unknown=("volume",)),
    "price_collar": Case(({"price": 102.01}, {"price": 97.99}), ({"price": 102.0}, {"price": 98.0}), unknown=("price", "ref_px")),
    "exit_price_collar": Case(({"price": 105.01}, {"price": 94.99}), ({"price": 105.0}, {"price": 95.0}), unknown=("price", "ref_px")),
    "first_minutes": Case(({"ts": OPEN + 5 * MINUTE - 1},), ({"ts": OPEN + 5 * MINUTE},)),
    "last_minutes": Case(({"ts": CLOSE - 5 * MINUTE},), ({"ts": CLOSE - 5 * MINUTE - 1},)),
    "order_rate": Case(({"orders_last_second": 4}, {"orders_last_minute": 100}), ({"orders_last_second": 3, "orders_last_minute": 99},),
                       unknown=("orders_last_second", "orders_last_minute")),
    "exit_order_rate": Case(({"orders_last_second": 8}, {"orders_last_minute": 200}), ({"orders_last_second": 7, "orders_last_minute": 199},),
                            unknown=("orders_last_second", "orders_last_minute")),
    "self_cross": Case(({"own_ask": 100.0}, {"own_ask": 99.0}, {"side": -1, "own_bid": 100.0}, {"side": -1, "own_bid": 101.0}),
                       ({"own_ask": 100.05}, {"side": -1, "own_bid": 99.95}, {"own_bid": 100.0}, {"side": -1, "own_ask": 100.0})),
}
EACH = pytest.mark.parametrize("g", GATES, ids=lambda g: g.name)


def bases(g: Gate) -> list[tuple[RiskView, bool]]:
    "Passing views of the kinds of order a gate is asked about, with the `exiting` flag."
    return [(v, x) for v, x, asked in ((ENTRY, False, g.entries), (LONG_EXIT, True, g.exits)) if asked]


def outs(g: Gate) -> list[tuple[RiskView, bool]]:
    return [(replace(v, **kw), x) for v, x in bases(g) for kw in CASES[g.name].out]


def test_every_gate_has_its_case() -> None:
    assert set(CASES) == {g.name for g in GATES}


def test_the_passing_views_pass() -> None:
    assert check(ENTRY, LIMITS, Breakers()).allowed
    assert check(LONG_EXIT, LIMITS, Breakers(), exiting=True).allowed


@EACH
def test_breach_is_stopped(g: Gate) -> None:
    for v, exiting in outs(g):
        no = g.fn(v, LIMITS, CASES[g.name].breakers)
        assert no is not None and no.code == g.name and no.text, v
        d = check(v, LIMITS, CASES[g.name].breakers, exiting=exiting)
        assert not d.allowed and d.code and d.tier in (1, 2, 3) and d.checked[-1] == d.code and d.text


@EACH
def test_boundary_is_right(g: Gate) -> None:
    for v, _ in bases(g):
        for kw in CASES[g.name].inside:
            assert g.fn(replace(v, **kw), LIMITS, Breakers()) is None, kw


@EACH
def test_no_way_round(g: Gate) -> None:
    "Unknown inputs refuse, in the gate alone and in the check; no other value of the view buys a pass."
    case = CASES[g.name]
    for v, exiting in bases(g):
        for name in case.unknown:
            bad = replace(v, **{name: NAN})
            assert g.fn(bad, LIMITS, Breakers()) is not None, name
            assert not check(bad, LIMITS, Breakers(), exiting=exiting).allowed
        for name in case.flags:
            assert g.fn(replace(v, **{name: None}), LIMITS, Breakers()) is not None, name
    rng, order = random.Random(g.name), {"side", "qty", "price", "ref_px", "ts", "symbol_position", "session_open_ts", "session_close_ts"}
    for v, exiting in outs(g):
        for _ in range(40):
            other = rng.choice([f.name for f in fields(RiskView)])
            if other in order.union(case.unknown, *case.out): continue
            value = rng.choice((True, False, 0, 0.0, 1.0, -1.0, 1e12, NAN, math.inf))
            assert not check(replace(v, **{other: value}), LIMITS, case.breakers, exiting=exiting).allowed, (other, value)


@EACH
def test_exits_pass_entry_gates_but_not_their_own(g: Gate) -> None:
    case = CASES[g.name]
    for kw in case.out:
        v = replace(LONG_EXIT, **kw)
        d = check(v, LIMITS, case.breakers, exiting=True)
        if g.exits: assert not d.allowed
        elif d.code: assert gate(d.code).exits, "an exit was stopped by a gate that is not asked about exits"


def test_everything_that_stops_entries_lets_an_exit_through() -> None:
    "Controls 20 and 21: the kill switch, all breakers and every unhealthy state block entries and permit flattening."
    worst = replace(LONG_EXIT, killed=True, paused=True, feed_ok=False, reconciled=False, symbol_blocked=True, restricted=True, shortable=False,
                    consecutive_failures=99, consecutive_losses=99, trades_today=99, open_positions=99, day_pnl=-1e9, equity=NAN, start_equity=NAN,
                    peak_equity=NAN, cash=NAN, buying_power=NAN, gross_exposure=NAN, open_order_exposure=NAN, bid=NAN, ask=NAN, displayed_qty=NAN,
                    volume=NAN, entry_cutoff_ts=0, own_bid=100.0)
    every = tripped("kill", "order_failures", "daily_loss", "drawdown", "consecutive_losses", "feed", "reconcile")
    assert check(worst, LIMITS, every, exiting=True).allowed
    assert not check(worst, LIMITS, every).allowed


def test_a_truthy_exiting_is_not_an_exit() -> None:
    v = replace(LONG_EXIT, killed=True)
    for flag in (1, "yes", [1]): assert not check(v, LIMITS, Breakers(), exiting=flag).allowed  # type: ignore[arg-type]


FLOATS = [f.name for f in fields(RiskView) if f.type is float]

@pytest.mark.parametrize("name", FLOATS)
def test_unknown_float_fails_closed(name: str) -> None:
    d = check(replace(ENTRY, **{name: NAN}), LIMITS, Breakers())
    assert d.allowed is (name in ("own_bid", "own_ask"))  # NaN there means: no own order rests
    for x in (math.inf, -math.inf):
        if name not in ("own_bid", "own_ask"): assert not check(replace(ENTRY, **{name: x}), LIMITS, Breakers()).allowed
    d = check(replace(LONG_EXIT, **{name: NAN}), LIMITS, Breakers(), exiting=True)
    assert d.allowed is (name not in ("qty", "price", "ref_px", "symbol_position"))


number = st.floats(allow_nan=True, allow_infinity=True, width=64)

@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({n: st.one_of(st.just(getattr(ENTRY, n)), number) for n in FLOATS}), st.sampled_from([1, -1]))
def test_whatever_passes_is_within_every_limit(values: dict[str, float], side: int) -> None:
    "An independent reading of the limits agrees with the check on every order that it allows."
    v = replace(ENTRY, **values, side=side)
    if not check(v, LIMITS, Breakers()).allowed: return
    worst = v.qty * max(v.price, v.ref_px)
    assert 0 < worst <= LIMITS.max_order_value and 0 < v.qty <= LIMITS.max_order_qty
    assert abs(v.symbol_position) * max(v.price, v.ref_px) + worst <= 0.10 * v.equity * (1 + 1e-12)
    assert v.gross_exposure + v.open_order_exposure + worst <= v.equity * (1 + 1e-12)
    assert v.day_pnl > -0.05 * v.start_equity and v.equity > 0.9 * v.peak_equity
    assert 0 < (v.price - v.stop_px) * side * v.qty <= 0.005 * v.equity * (1 + 1e-12)
    assert 0 < v.bid < v.ask and (v.ask - v.bid) / ((v.ask + v.bid) / 2) <= 0.005
    assert abs(v.price / v.ref_px - 1) <= 0.02 * (1 + 1e-9) and v.displayed_qty >= v.qty and v.volume >= 1000
    assert not (side > 0 and v.price >= v.own_ask) and not (side < 0 and v.price <= v.own_bid)


def test_controls_report_covers_the_registry() -> None:
    rows = controls_table(LIMITS)
    assert {r["control"] for r in rows} == set(CONTROLS)
    assert {r["name"] for r in rows if r["kind"] == "gate"} == {g.name for g in GATES}
    assert not gate("spread").applies_to_exits and gate("reduce_only").applies_to_exits
    assert all(r["check"] and r["title"] for r in rows)
    assert next(r for r in rows if r["name"] == "volume")["limits"] == {"min_volume": 1000.0}
    with pytest.raises(Exception, match="risk gate"): gate("moon")


def test_every_limit_is_used() -> None:
    by_gates = {n for g in GATES for n in g.limits}
    assert set(RiskLimits.model_fields) - by_gates == {"feed_breaker_s", "reconcile_breaker_s"}  # the breakers use these
