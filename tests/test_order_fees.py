"""Fees are exact, add up whatever the slicing and whatever restarts, and equal the brokers' own totals."""

import json
import math
from datetime import date, timedelta
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalp_nb.feed.errors import ConfigError, RuleError
from scalp_nb.order.fees import (
    FeeLedger,
    FeeSchedule,
    break_even_win_rate,
    charge,
    charges_agree,
    disagreements,
    fees_for,
    order_fee,
    round_trip_bps,
)
from scalp_nb.order.rules import table_rows
from scalp_nb.order.types import Fill, Purpose, Side

THEIRS = {"Angel One Brokerage": "brokerage", "Exchange Transaction Charges": "transaction", "Stamp Duty": "stamp", "SEBI Fees": "sebi",
          "IPFT charges": "ipft", "Security Transaction Tax": "stt", "GST": "gst"}  # in the order of the fact sheet
ANGEL = fees_for("angel_one", "NSE", date(2026, 11, 20))
FO = fees_for("angel_one", "NSE", date(2026, 11, 20), "FO")
ALPACA = fees_for("alpaca", "US", date(2026, 9, 15))  # SEC, TAF and CAT all charge


def fill(n: int, side: Side, qty: Decimal, px: Decimal, order: str = "o1") -> Fill:
    return Fill(n, order, f"e{n}", "X", 0, side, Purpose.ENTRY, qty, px, px)


fills = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 5000), st.integers(1, 5_000_000)), min_size=1, max_size=12)

def as_fills(rows: list[tuple[str, int, int]]) -> list[Fill]:
    "Orders a and c buy, b sells."
    return [fill(i, Side.SELL if o == "b" else Side.BUY, Decimal(q), Decimal(p) / 100, o) for i, (o, q, p) in enumerate(rows)]


def angel_total(rows: list[Fill]) -> Fraction:
    "Fact-sheet formula in rational numbers, over whole orders."
    total = Fraction(0)
    for order in {f.client_id for f in rows}:
        own = [f for f in rows if f.client_id == order]
        v = sum((Fraction(f.qty) * Fraction(f.px) for f in own), Fraction(0))
        b = min(Fraction(20), max(Fraction(5), v / 1000))
        base = b + v * Fraction("0.000030699") + v * Fraction("0.000001") + v * Fraction("0.000000001")
        total += base * Fraction("1.18") + v * (Fraction("0.00025") if own[0].side < 0 else Fraction("0.00003"))
    return total


def alpaca_total(rows: list[Fill]) -> Fraction:
    def cents(x: Fraction) -> Fraction: return Fraction(math.ceil(x * 100), 100)
    sells = [f for f in rows if f.side < 0]
    sec = sum((Fraction(f.qty) * Fraction(f.px) * Fraction("0.0000206") for f in sells), Fraction(0))
    taf = sum((min(Fraction(f.qty) * Fraction("0.000195"), Fraction("9.79")) for f in sells), Fraction(0))
    cat = sum((Fraction(f.qty) * Fraction("0.000003") for f in rows), Fraction(0))
    return cents(sec) + cents(taf) + cents(cat)


@settings(max_examples=200, deadline=None)
@given(fills, st.data())
def test_increments_add_up_to_the_brokers_total_across_restarts(rows: list[tuple[str, int, int]], data: st.DataObject) -> None:
    fs = as_fills(rows)
    for schedule, total in ((ANGEL, angel_total(fs)), (ALPACA, alpaca_total(fs))):
        ledger, charged = FeeLedger(schedule), []
        for f in fs:
            if data.draw(st.booleans()): ledger = FeeLedger.restore(schedule, json.loads(json.dumps(ledger.snapshot())))
            charged.append(ledger.charge(f))
        assert sum((Fraction(c) for c in charged), Fraction(0)) == total == Fraction(ledger.total)
        assert min(charged) >= 0 and sum((Fraction(v) for v in ledger.breakdown.values()), Fraction(0)) == total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=8), st.integers(1, 5_000_000), st.sampled_from([Side.BUY, Side.SELL]))
def test_slicing_one_order_costs_the_same(qtys: list[int], cents: int, side: Side) -> None:
    px = Decimal(cents) / 100
    for schedule in (ANGEL, FO):
        whole, parts = FeeLedger(schedule), FeeLedger(schedule)
        whole.charge(fill(0, side, Decimal(sum(qtys)), px))
        for i, q in enumerate(qtys): parts.charge(fill(i, side, Decimal(q), px))
        assert parts.total == whole.total and parts.breakdown == whole.breakdown
        assert whole.total == order_fee(schedule, side, Decimal(sum(qtys)) * px, Decimal(sum(qtys)))


def test_a_callers_decimal_context_cannot_round_money() -> None:
    f = fill(1, Side.SELL, Decimal("137"), Decimal("4123.35"))
    with localcontext() as ctx:
        ctx.prec, ctx.rounding = 4, ROUND_CEILING
        low = FeeLedger(ANGEL).charge(f)
    assert low == FeeLedger(ANGEL).charge(f)


@pytest.mark.parametrize(("value", "fee", "bps"), [(10_000, "27.15", "27.2"), (20_000, "54.30", "27.2"), (50_000, "64.94", "13.0"),
                                                   (100_000, "82.68", "8.3"), (200_000, "118.16", "5.9"), (500_000, "224.61", "4.5"),
                                                   (1_000_000, "402.01", "4.0")])
def test_round_trips_of_the_fact_sheet(value: int, fee: str, bps: str) -> None:
    v = Decimal(value)
    assert round(order_fee(ANGEL, Side.BUY, v, v / 500) + order_fee(ANGEL, Side.SELL, v, v / 500), 2) == Decimal(fee)
    assert abs(round_trip_bps(ANGEL, v, Decimal(500)) - Decimal(bps)) <= Decimal("0.06")


@pytest.mark.parametrize("v", [1_000, 8_000, 1_950_000])
def test_futures_by_hand(v: int) -> None:
    base = Fraction(min(20.0, 0.0025 * v)) + v * (Fraction("0.0000173") + Fraction("0.000001") + Fraction("0.000001"))
    for side, tax in ((Side.BUY, Fraction("0.00002")), (Side.SELL, Fraction("0.0005"))):
        got = order_fee(FO, side, Decimal(v), Decimal(65))
        assert abs(Fraction(got) - (base * Fraction("1.18") + v * tax)) < Fraction(1, 10**9)


def test_alpaca_example_of_the_fact_sheet() -> None:
    now, then = fees_for("alpaca", "US", date(2026, 11, 20)), fees_for("alpaca", "US", date(2027, 1, 4))
    assert round_trip_bps(now, Decimal(10_000), Decimal(100)) == Decimal("0.22")  # 0.21 SEC, 0.01 CAT
    assert round_trip_bps(then, Decimal(10_000), Decimal(100)) == Decimal("0.24")  # and 0.02 TAF
    free = fees_for("alpaca", "US", date(2025, 9, 1))
    assert "sec" not in {n for n, v in _one(free).items() if v}


def _one(s: FeeSchedule) -> dict[str, Decimal]:
    ledger = FeeLedger(s)
    ledger.charge(fill(1, Side.SELL, Decimal(100), Decimal(100)))
    return ledger.breakdown


def test_the_taf_cap_holds_per_execution() -> None:
    assert _taf(50_000) == Decimal("9.75") and _taf(100_000) == Decimal("9.79") and _taf(1) == Decimal("0.01")


def _taf(qty: int) -> Decimal:
    ledger = FeeLedger(ALPACA)
    ledger.charge(fill(1, Side.SELL, Decimal(qty), Decimal(1)))
    return ledger.breakdown["taf"]


@pytest.mark.parametrize(("broker", "venue", "segment"), [("angel_one", "NSE", "CM"), ("angel_one", "NSE", "FO"), ("alpaca", "US", "CM")])
def test_every_change_day_has_one_schedule(broker: str, venue: str, segment: str) -> None:
    own = [r for r in table_rows("fees") if (r["broker"], r["venue"], r["segment"]) == (broker, venue, segment)]
    start = max(min(date.fromisoformat(r["valid_from"]) for r in own if r["item"] == i) for i in {r["item"] for r in own})
    days = {date.fromisoformat(r["valid_from"]) + timedelta(d) for r in own for d in (-1, 0)} | {date(2027, 6, 1)}
    for day in sorted(d for d in days if d >= start):
        assert fees_for(broker, venue, day, segment).sources
    with pytest.raises(RuleError, match="no fee schedule"): fees_for(broker, venue, start - timedelta(1), segment)


@pytest.mark.parametrize("args", [("angel_one", "NSE", date(2020, 1, 1)), ("alpaca", "NSE", date(2026, 1, 1)), ("nobody", "US", date(2026, 1, 1)),
                                  ("angel_one", "NSE", date(2026, 1, 1), "FO", "cap30"), ("angel_one", "NSE", date(2026, 1, 1), "CM", "gold")])
def test_no_schedule_means_no_trading(args: tuple[str, str, date]) -> None:
    with pytest.raises(RuleError, match="no fee schedule for the date"): fees_for(*args)


def test_plans_differ() -> None:
    v = Decimal(1_000_000)
    cap30 = fees_for("angel_one", "NSE", date(2026, 11, 20), plan="cap30")
    assert order_fee(cap30, Side.BUY, v, v) - order_fee(ANGEL, Side.BUY, v, v) == Decimal("11.80")
    flat, share = (fees_for("angel_one", "NSE", date(2026, 11, 20), plan=p) for p in ("flat20", "pct003"))
    for value, fixed, part in ((100, "20", "0.03"), (10_000, "20", "3"), (66_666, "20", "19.9998"), (1_000_000, "20", "20")):
        for s, b in ((flat, fixed), (share, part)):
            ledger = FeeLedger(s)
            ledger.charge(fill(1, Side.BUY, Decimal(1), Decimal(value)))
            assert ledger.breakdown["brokerage"] == Decimal(b)
    fo = fees_for("angel_one", "NSE", date(2026, 11, 20), "FO", "flat20")
    assert order_fee(fo, Side.BUY, v, v) - order_fee(FO, Side.BUY, v, v) == 0
    with pytest.raises(RuleError, match="cap30, flat20, pct003, standard"): fees_for("angel_one", "NSE", date(2026, 11, 20), plan="gold")


def test_refusals() -> None:
    for q, p in ((Decimal(0), Decimal(1)), (Decimal(1), Decimal("NaN")), (Decimal(1), Decimal(-1)), (1.0, Decimal(1)), (Decimal(1), 1.0)):
        with pytest.raises(RuleError, match="exact quantity and price"): FeeLedger(ANGEL).charge(fill(1, Side.BUY, q, p))  # type: ignore[arg-type]
    for v, q in ((Decimal(-1), Decimal(1)), (Decimal(1), Decimal(-1)), (Decimal("NaN"), Decimal(1))):
        with pytest.raises((RuleError, ArithmeticError)): order_fee(ANGEL, Side.BUY, v, q)
    with pytest.raises(RuleError, match="round trip"): round_trip_bps(ANGEL, Decimal(0), Decimal(1))
    snap = FeeLedger(ANGEL).snapshot()
    with pytest.raises(ConfigError, match="another schedule"): FeeLedger.restore(ALPACA, snap)
    with pytest.raises(ConfigError, match="state 'raw'"): FeeLedger.restore(ANGEL, {**snap, "raw": None})
    assert order_fee(ANGEL, Side.BUY, Decimal(0), Decimal(0)) == 0


def test_break_even() -> None:
    assert break_even_win_rate(0.0025, 0.01, 0.002) == pytest.approx(0.36) and break_even_win_rate(0.0025, 0.01, 0.0) == pytest.approx(0.2)
    for bad in ((0.0, 0.01, 0.0), (0.01, float("nan"), 0.0), (0.01, 0.01, -1.0)):
        with pytest.raises(ConfigError, match="break-even"): break_even_win_rate(*bad)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([Side.BUY, Side.SELL]), st.integers(1, 3000), st.integers(100, 500_000)), min_size=1, max_size=4),
       st.sampled_from(["standard", "cap30", "flat20", "pct003"]), st.sampled_from(sorted(THEIRS)), st.integers(2, 500))
def test_a_charge_that_is_off_is_named(legs: list[tuple[Side, int, int]], plan: str, off: str, paise: int) -> None:
    orders = [(s, Decimal(q), Decimal(p) / 100) for s, q, p in legs]
    ledger = FeeLedger(fees_for("angel_one", "NSE", date(2026, 11, 20), plan=plan))
    for i, (s, q, p) in enumerate(orders): charge(ledger, str(i), s, q, p)
    paid = {theirs: round(ledger.breakdown.get(ours, Decimal(0)), 2) for theirs, ours in THEIRS.items()}

    def answer(amounts: dict[str, Decimal]) -> dict[str, object]:
        parts = [{"name": n, "amount": float(a), "msg": "", "breakup": None} for n, a in amounts.items()]
        tree = [parts[0], {"name": "External Charges", "amount": 1e9, "breakup": parts[1:4]}, {"name": "Taxes", "amount": 1e9, "breakup": parts[4:]}]
        return {"status": "true", "data": {"summary": {"total_charges": float(sum(amounts.values())), "breakup": tree}}}

    assert disagreements(charges_agree(answer(paid), orders, plan, date(2026, 11, 20))) == ()
    wrong = answer(paid | {off: paid[off] + Decimal(paise) / 100})
    assert THEIRS[off] in {t.split(":")[0] for t in disagreements(charges_agree(wrong, orders, plan, date(2026, 11, 20)))}
