"""Breakers, limits and sizing: latches, bounds, and sizes that can never exceed a limit."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from riskviews import ENTRY, NAN

from scalp_nb.feed.errors import ConfigError, DataError
from scalp_nb.risk.breakers import NAMES, AccountNumbers, Breakers, Trip
from scalp_nb.risk.gates import check
from scalp_nb.risk.limits import RiskLimits, load_limits
from scalp_nb.risk.sizing import SizingConfig, explain_size, size

LIMITS = RiskLimits()
S = 10**9


def breach(name: str, **kw: object) -> list[str]:
    return [t.name for t in Breakers().update(replace(ENTRY, **kw), LIMITS, 0)]


@pytest.mark.parametrize(("name", "out", "inside"), [
    ("kill", {"killed": True}, {"killed": False}),
    ("order_failures", {"consecutive_failures": 5}, {"consecutive_failures": 4}),
    ("consecutive_losses", {"consecutive_losses": 5}, {"consecutive_losses": 4}),
    ("daily_loss", {"day_pnl": -50_000.0}, {"day_pnl": -49_999.99}),
    ("drawdown", {"equity": 900_000.0}, {"equity": 900_000.01}),
])
def test_breaker_trips_at_its_limit(name: str, out: dict[str, object], inside: dict[str, object]) -> None:
    assert breach(name, **out) == [name]
    assert breach(name, **inside) == []
    b = Breakers()
    b.update(replace(ENTRY, **out), LIMITS, 0)
    assert check(ENTRY, LIMITS, b).code in ("breaker", "kill_switch")
    assert b.update(ENTRY, LIMITS, 1) == () and b.blocks_entries


@pytest.mark.parametrize(("name", "kw"), [("feed", {"feed_ok": False, "feed_reason": "stale"}), ("feed", {"feed_ok": False}),
                                          ("reconcile", {"reconciled": False})])
def test_lasting_trouble_trips_even_across_a_restart(name: str, kw: dict[str, object]) -> None:
    b = Breakers()
    assert b.update(replace(ENTRY, **kw), LIMITS, 0) == ()
    b = Breakers.restore(json.loads(json.dumps(b.snapshot())))
    assert b.update(replace(ENTRY, **kw), LIMITS, 30 * S - 1) == ()
    assert [t.name for t in b.update(replace(ENTRY, **kw), LIMITS, 30 * S)] == [name]
    b = Breakers()
    b.update(replace(ENTRY, **kw), LIMITS, 0)
    b.update(ENTRY, LIMITS, 1)
    assert b.update(replace(ENTRY, **kw), LIMITS, 30 * S) == ()


def test_account_numbers_are_enough() -> None:
    calm = AccountNumbers(equity=1e6, start_equity=1e6, peak_equity=1e6, day_pnl=0.0, consecutive_losses=0, consecutive_failures=0)
    assert Breakers().update(calm, LIMITS, 0) == ()
    worst = replace(calm, equity=8e5, day_pnl=-2e5, consecutive_losses=9, consecutive_failures=9, killed=True)
    assert {t.name for t in Breakers().update(worst, LIMITS, 0)} == set(NAMES) - {"feed", "reconcile"}
    unread = AccountNumbers(equity=0.0, start_equity=0.0, peak_equity=0.0, day_pnl=0.0, consecutive_losses=0, consecutive_failures=0)
    assert Breakers().update(unread, LIMITS, 0) == ()


def test_unknown_numbers_trip_nothing_but_are_refused() -> None:
    v = replace(ENTRY, equity=NAN, day_pnl=NAN)
    assert Breakers().update(v, LIMITS, 0) == () and not check(v, LIMITS, Breakers()).allowed


@pytest.mark.parametrize("who", ["", " ", "system", "AUTO", "Bot ", "123", "x", None, 5, True])
def test_only_a_person_resets(who: object) -> None:
    b = Breakers()
    b.trip("kill", 1, "operator")
    with pytest.raises(ConfigError, match="name of a person"): b.reset("kill", who, 2)  # type: ignore[arg-type]
    assert b.killed


def test_reset_needs_something_tripped() -> None:
    with pytest.raises(ConfigError, match="none is tripped"): Breakers().reset("kill", "Asha Rao", 2)
    with pytest.raises(ConfigError, match="breaker"): Breakers().trip("moon", 1, "x")


@pytest.mark.parametrize("bad", [{}, {"tripped": {}, "bad_since": {}, "resets": []}, {"tripped": [{"name": "kill"}], "bad_since": {}, "resets": []},
                                 {"tripped": [{"name": "moon", "ts": 1, "reason": "", "numbers": []}], "bad_since": {}, "resets": []},
                                 {"tripped": [], "bad_since": {"feed": "x"}, "resets": []}])
def test_unreadable_state_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(DataError, match="saved breaker state"): Breakers.restore(bad)


class Latch(RuleBasedStateMachine):
    "Against a plain set: what tripped stays tripped through updates and restarts until a person resets it."

    def __init__(self) -> None:
        super().__init__()
        self.b, self.model, self.ts = Breakers(), {}, 0
    @rule(name=st.sampled_from(NAMES), why=st.text(max_size=5))
    def trip(self, name: str, why: str) -> None:
        got = self.b.trip(name, self.ts, why, {"x": 1.5})
        assert (got is None) is (name in self.model)
        self.model.setdefault(name, Trip(name, self.ts, why, (("x", 1.5),)))
    @rule(step=st.integers(0, 100))
    def quiet_update(self, step: int) -> None:
        self.ts += step
        assert self.b.update(ENTRY, LIMITS, self.ts) == ()
    @rule(name=st.sampled_from(NAMES), who=st.sampled_from(["Asha Rao", "system", ""]))
    def reset(self, name: str, who: str) -> None:
        if who == "Asha Rao" and name in self.model: assert self.b.reset(name, who, self.ts).tripped == self.model.pop(name)
        else:
            with pytest.raises(ConfigError): self.b.reset(name, who, self.ts)
    @rule()
    def restart(self) -> None:
        self.b = Breakers.restore(json.loads(json.dumps(self.b.snapshot())))
    @invariant()
    def latched(self) -> None:
        assert self.b.tripped == self.model and self.b.blocks_entries is bool(self.model) and self.b.killed is ("kill" in self.model)
        assert check(ENTRY, LIMITS, self.b).allowed is (not self.model)


TestLatch = Latch.TestCase
TestLatch.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("name", list(RiskLimits.model_fields))
@pytest.mark.parametrize("value", [True, "1", None, NAN, float("inf"), -1, 1e15, [1]])
def test_limits_refuse_what_is_not_a_bounded_number(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name) as e: load_limits({name: value})
    assert "default" in str(e.value) and "Next:" in str(e.value)


def test_limits_load() -> None:
    assert load_limits({}) == LIMITS and load_limits({"max_trades_per_day": 3}).max_trades_per_day == 3
    with pytest.raises(ConfigError, match="one of max_consecutive_failures"): load_limits({"max_position": 0.1})


money = st.one_of(st.floats(0.01, 1e8), st.sampled_from([NAN, 0.0, -5.0, float("inf")]))

@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["fixed", "percent", "volatility"]), money, money, money, st.sampled_from([1, 25, 75, 0]),
       st.floats(0.0001, 0.2), st.floats(0, 0.1), st.floats(0.001, 1.0), st.integers(1, 10_000))
def test_size_never_exceeds_a_limit(mode: str, equity: float, power: float, price: float, lot: int, stop: float, vol: float,
                                     pct: float, fixed: int) -> None:
    cfg = SizingConfig(mode=mode, balance_pct=pct, fixed_qty=fixed)  # type: ignore[arg-type]
    s = explain_size(cfg, equity, power, price, lot, stop, vol, LIMITS)
    assert s.qty == size(cfg, equity, power, price, lot, stop, vol, LIMITS) and s.qty >= 0 and s.reason
    if s.qty == 0: return
    e, b, p, q = (Decimal(str(x)) for x in (equity, power, price, s.qty))
    eps = 1 + Decimal("1e-20")
    assert q % lot == 0 and q <= s.wanted and q * p <= b * eps and q <= 100_000
    assert q * p <= e * Decimal("0.10") * eps and q * p <= 1_000_000 * eps
    assert q * p * Decimal(str(stop)) <= e * Decimal("0.005") * eps


def test_a_sized_order_passes_the_size_gates() -> None:
    for mode in ("percent", "volatility"):
        qty = float(size(SizingConfig(mode=mode, balance_pct=1.0), 1e6, 1e6, 100.0, 1, 0.0025, 0.001, LIMITS))  # type: ignore[arg-type]
        assert check(replace(ENTRY, qty=qty, displayed_qty=1e6), LIMITS, Breakers()).allowed
        assert check(replace(ENTRY, qty=qty + 1, displayed_qty=1e6), LIMITS, Breakers()).code == "position_size"


def test_size_needs_known_inputs() -> None:
    cfg = SizingConfig(mode="volatility")
    assert explain_size(cfg, 1e6, 1e6, 100.0, 1, 0.0025, NAN, LIMITS).reason == "volatility is unknown"
    assert "unknown" in explain_size(cfg, 1e6, 1e6, NAN, 1, 0.0025, 0.001, LIMITS).reason
    assert "less than one lot" in explain_size(cfg, 1e4, 1e4, 100.0, 75, 0.0025, 0.001, LIMITS).reason
    assert explain_size(SizingConfig(fixed_qty=3), Decimal(10_000), 1e6, 100.0, 1, 0.0025, NAN, LIMITS).qty == 3
