"""A price that is not on the tick never reaches a broker; every day has one answer or none."""

from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalp_nb.feed.errors import RuleError
from scalp_nb.feed.instrument import Instrument
from scalp_nb.order import rules as R
from scalp_nb.order.rules import VenueRules, product_of, round_qty, rows_on, rules_for, table_rows, tick_known
from scalp_nb.order.types import Intent, OrderType, Purpose, Side, Tif

DAYS = [("angel_one", "NSE", "CM", date(2021, 4, 12)), ("angel_one", "NSE", "CM", date(2024, 7, 1)), ("angel_one", "NSE", "CM", date(2026, 11, 20)),
        ("angel_one", "NSE", "FO", date(2023, 1, 2)), ("angel_one", "NSE", "FO", date(2025, 12, 29)), ("alpaca", "US", "CM", date(2012, 6, 21)),
        ("alpaca", "US", "CM", date(2026, 11, 20))]
NAMES = {("NSE", "CM"): ["SBIN"], ("NSE", "FO"): ["NIFTY25DECFUT", "SBIN25DECFUT"], ("US", "CM"): ["AAPL"]}
VENUES = [(rules_for(b, v, d, s), Instrument(n, v, segment=s, tick_table=t)) for b, v, s, d in DAYS for n in NAMES[v, s] for t in ("", "0.05", "5")]
NSE = rules_for("angel_one", "NSE", date(2026, 11, 20))
US = rules_for("alpaca", "US", date(2026, 11, 20))
SBIN = Instrument("SBIN", "NSE")


def intent(**kw: object) -> Intent:
    base = dict(id="i" * 19, ts=1, seq=1, account="a", strategy="s", symbol="SBIN", sym=0, side=Side.BUY, purpose=Purpose.ENTRY, qty=Decimal(10),
                type=OrderType.LIMIT, limit=Decimal("812.30"), stop=None, tif=Tif.DAY, ref_px=Decimal("812.30"))
    return Intent(**{**base, **kw})  # type: ignore[arg-type]


def codes(rules: VenueRules = NSE, ins: Instrument = SBIN, band: tuple[Decimal, Decimal] | None = None, **kw: object) -> list[str]:
    return [v.code for v in rules.check(intent(**kw), ins, band)]


def step(r: VenueRules, ins: Instrument, px: Decimal) -> Fraction:
    "The tick at a price, read straight from the CSV text: independent of the ladder code."
    if ins.tick_table: return Fraction(ins.tick_table)
    for row in table_rows("ticks"):
        if row["table"] != product_of(ins, r.indices) or not row["valid_from"] <= r.day.isoformat() <= (row["valid_to"] or "9999"): continue
        upper = Fraction(row["upper"]) if row["upper"] else Fraction(10**12)
        if Fraction(px) < upper or (row["upper_in"] == "1" and Fraction(px) == upper): return Fraction(row["tick"])
    raise AssertionError("no tick")


price = st.one_of(st.floats(0.01, 250_000), st.integers(1, 25_000_000).map(lambda n: n / 100),
                  st.sampled_from([249.99, 250.0, 1000.0, 5000.0, 20000.0, 0.99995, 1.0]))

@settings(max_examples=600, deadline=None)
@given(st.sampled_from(VENUES), price, st.sampled_from([-1, 0, 1]))
def test_rounded_price_is_on_the_tick_and_nearest(venue: tuple[VenueRules, Instrument], px: float, direction: int) -> None:
    r, ins = venue
    exact = Fraction(str(px))
    try: out = r.round_price(ins, px, direction)
    except RuleError:
        assert direction <= 0 and exact < step(r, ins, Decimal(str(px)))
        return
    assert Fraction(out) % step(r, ins, out) == 0                     # on the tick of the price it became
    wide = step(r, ins, Decimal(str(px)))
    gap = Fraction(out) - exact
    assert abs(gap) < wide and gap * direction >= 0 and (direction or abs(gap) <= wide / 2)
    assert r.round_price(ins, out, direction) == out                  # already on the tick: stays
    assert "tick" not in codes(r, ins, limit=out)
    off = out + wide.limit_denominator(10**6).numerator * Decimal("0.00001")
    if Fraction(off) % step(r, ins, off): assert "tick" in codes(r, ins, limit=off)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(VENUES), price, st.sampled_from([Side.BUY, Side.SELL]), st.floats(0, 0.2))
def test_marketable_limit_takes_and_stays_inside_the_band(venue: tuple[VenueRules, Instrument], px: float, side: Side, slip: float) -> None:
    r, ins = venue
    try: touch = r.round_price(ins, px, 0)
    except RuleError: return
    limit = r.marketable_limit(ins, side, touch, slip)
    band = r.protection.get(product_of(ins, r.indices))
    most = min(Decimal(str(slip)), band) if band is not None else Decimal(str(slip))
    assert (limit - touch) * side >= 0 and (limit - touch) * side <= touch * most
    assert "tick" not in codes(r, ins, limit=limit)


def test_marketable_limit_refuses_a_touch_off_the_tick_with_no_room() -> None:
    with pytest.raises(RuleError, match="on the tick"): NSE.marketable_limit(Instrument("P", "NSE", tick_table="0.05"), Side.BUY, 1.01, 0.001)
    for slip in (float("nan"), -0.1, 1.0):
        with pytest.raises(RuleError, match="slip"): NSE.marketable_limit(SBIN, Side.BUY, 812.3, slip)
    assert NSE.marketable_limit(SBIN, Side.SELL, 812.30, 0.05) == Decimal("808.25")


@pytest.mark.parametrize(("want", "kw"), [
    ([], {}), (["type"], {"type": OrderType.MARKET, "limit": None}), (["type"], {"type": OrderType.STOP, "limit": None, "stop": Decimal("812.30")}),
    (["tif"], {"tif": Tif.IOC}), (["tif"], {"tif": Tif.GTC}), (["tick"], {"limit": Decimal("812.31")}), (["price"], {"limit": None}),
    (["price"], {"limit": Decimal(0)}), (["price"], {"limit": Decimal("NaN")}), (["price"], {"limit": 812.30}), (["price"], {"stop": Decimal(800)}),
    (["qty"], {"qty": Decimal(0)}), (["qty"], {"qty": Decimal("Infinity")}), (["qty"], {"qty": 10}), (["lot"], {"qty": Decimal("0.5")}),
    (["trigger"], {"type": OrderType.STOP_LIMIT, "stop": Decimal("813.00")}), ([], {"type": OrderType.STOP_LIMIT, "stop": Decimal("812.30")}),
    (["tick"], {"type": OrderType.STOP_LIMIT, "stop": Decimal("812.29")}), (["price"], {"type": OrderType.STOP_LIMIT}),
    (["type", "tif", "qty", "tick"], {"type": OrderType.STOP, "tif": Tif.IOC, "qty": Decimal(-1), "limit": None, "stop": Decimal("0.001")}),
])
def test_check_names_every_reason(want: list[str], kw: dict[str, object]) -> None:
    assert codes(**kw) == want


def test_check_freeze_lot_and_band() -> None:
    fo, nifty = rules_for("angel_one", "NSE", date(2026, 11, 20), "FO"), Instrument("NIFTY26DECFUT", "NSE", lot=65, freeze_qty=1755, segment="FO")
    px = {"limit": Decimal("26000.10")}
    assert codes(fo, nifty, qty=Decimal(65), **px) == [] and codes(fo, nifty, qty=Decimal(64), **px) == ["lot"]
    assert codes(fo, nifty, qty=Decimal(1755), **px) == [] and codes(fo, nifty, qty=Decimal(1820), **px) == ["freeze"]
    band = (Decimal("800"), Decimal("812.30"))
    assert codes(band=band) == [] and codes(band=band, limit=Decimal("812.35")) == ["band"] and codes(band=band, limit=Decimal("799.95")) == ["band"]
    assert "multiples of 0.05" in NSE.check(intent(limit=Decimal("812.31")), SBIN)[0].text


@pytest.mark.parametrize(("broker", "venue", "day", "segment"), [
    ("angel_one", "NSE", date(2020, 12, 31), "CM"), ("alpaca", "US", date(2009, 12, 31), "CM"), ("alpaca", "NSE", date(2026, 1, 1), "CM"),
    ("nobody", "US", date(2026, 1, 1), "CM"), ("alpaca", "US", date(2026, 1, 1), "FO"), ("angel_one", "NSE", date(2026, 1, 1), "CDS")])
def test_no_row_means_no_trading(broker: str, venue: str, day: date, segment: str) -> None:
    with pytest.raises(RuleError, match="no rule table for the date"): rules_for(broker, venue, day, segment)


def test_a_product_without_one_of_its_tables_has_no_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for gone in ("ticks", "cutoffs", "order_types"):
        rules_for.cache_clear()
        monkeypatch.setattr(R, "rows_on", lambda name, day, gone=gone, **w: () if name == gone else rows_on(name, day, **w))
        with pytest.raises(RuleError, match="no rule table"): rules_for("alpaca", "US", date(2026, 11, 20))
    rules_for.cache_clear()


@pytest.mark.parametrize(("name", "key"), [("order_types", ("broker", "venue", "segment")), ("protection", ("product",)),
                                           ("cutoffs", ("broker", "product", "derivatives")), ("index_underlyings", ("underlying",)),
                                           ("ticks", ("table", "upper")), ("fees", ("broker", "venue", "segment", "plan", "item"))])
def test_rows_of_one_rule_never_overlap(name: str, key: tuple[str, ...]) -> None:
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for r in table_rows(name): groups.setdefault(tuple(r[k] for k in key), []).append((r["valid_from"], r["valid_to"] or "9999-12-31"))
    for k, spans in groups.items():
        spans.sort()
        for (_, end), (start, _) in zip(spans, spans[1:], strict=False): assert end < start, k


@pytest.mark.parametrize(("broker", "venue", "segment", "start"), [("angel_one", "NSE", "CM", date(2021, 1, 1)),
                                                                   ("angel_one", "NSE", "FO", date(2021, 1, 1)),
                                                                   ("alpaca", "US", "CM", date(2010, 1, 1))])
def test_every_change_day_has_rules(broker: str, venue: str, segment: str, start: date) -> None:
    days = {date.fromisoformat(r["valid_from"]) + timedelta(d) for t in ("ticks", "order_types", "cutoffs") for r in table_rows(t) for d in (-1, 0)}
    for day in sorted(d for d in days | {start, date(2027, 6, 1)} if d >= start):
        r = rules_for(broker, venue, day, segment)
        assert r.types and r.tifs and r.sources and r.cutoffs


@pytest.mark.parametrize("row", [{"valid_from": "", "valid_to": "", "source": "x"},
                                 {"valid_from": "2026-01-02", "valid_to": "2026-01-01", "source": "x"},
                                 {"valid_from": "2026-01-01", "valid_to": "", "source": ""}])
def test_a_bad_row_is_refused(row: dict[str, str], tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path
    folder = Path(str(tmp_path)) / "tables"
    folder.mkdir()
    (folder / "bad.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    monkeypatch.setattr(R, "files", lambda _: Path(str(tmp_path)))
    with pytest.raises(RuleError, match="row 1"): table_rows("bad")
    table_rows.cache_clear()


@pytest.mark.parametrize("rows", [(), ({"upper": "10.02", "upper_in": "0", "tick": "0.01"}, {"upper": "", "upper_in": "", "tick": "0.05"}),
                                  ({"upper": "", "upper_in": "", "tick": "0"},), ({"upper": "5", "upper_in": "0", "tick": "1"},),
                                  ({"upper": "", "upper_in": "", "tick": "1"}, {"upper": "", "upper_in": "", "tick": "1"})])
def test_a_bad_ladder_is_refused(rows: tuple[dict[str, str], ...]) -> None:
    with pytest.raises(RuleError, match="tick table"): R._ladder(rows, "x")


def test_ticks_and_quantities_refuse_nonsense() -> None:
    for px in (float("nan"), float("inf"), 0.0, -1.0, Decimal("NaN")):
        with pytest.raises(RuleError, match="finite number > 0"): NSE.tick(SBIN, px)
    for table in ("moon", "0", "-1", "Infinity", "us_stock"):
        with pytest.raises(RuleError): NSE.tick(replace(SBIN, tick_table=table), 100.0)
    for qty in (float("nan"), -1.0, Decimal("-1")):
        with pytest.raises(RuleError, match="quantity"): NSE.round_qty(SBIN, qty)
    with pytest.raises(RuleError, match="last band"): R.tick_in((), Decimal(1))
    with pytest.raises(RuleError, match="judged by other rules"): NSE.tick(Instrument("AAPL", "US"), 1.0)
    assert round_qty(Instrument("X", "NSE", lot=75), 149.9) == 75 and round_qty(SBIN, Decimal("3.7")) == 3
    assert tick_known(replace(SBIN, tick_table="0.10")) and not tick_known(SBIN) and not tick_known(replace(SBIN, tick_table="nse_etf"))


def ns(*a: int, tz: str = "Asia/Kolkata") -> int:
    return int(datetime(*a, tzinfo=ZoneInfo(tz)).timestamp()) * 10**9  # type: ignore[misc, arg-type]


def test_cutoffs_by_date_and_half_day() -> None:
    deriv = replace(SBIN, derivatives=True)
    for close in (ns(2026, 11, 20, 15, 15), ns(2026, 11, 20, 15, 30)):
        assert (NSE.entry_cutoff_ns(deriv, close), NSE.flat_by_ns(deriv, close)) == (ns(2026, 11, 20, 15, 0), ns(2026, 11, 20, 15, 8))
    old = rules_for("angel_one", "NSE", date(2026, 8, 2))
    assert old.flat_by_ns(deriv, ns(2026, 8, 2, 15, 30)) == ns(2026, 8, 2, 15, 12)
    assert NSE.entry_cutoff_ns(SBIN, ns(2026, 11, 20, 14, 45)) == ns(2026, 11, 20, 14, 30)
    half = rules_for("alpaca", "US", date(2026, 11, 27))
    aapl, close = Instrument("AAPL", "US", derivatives=True), ns(2026, 11, 27, 13, 0, tz="America/New_York")
    assert half.flat_by_ns(aapl, close) == close - 300 * 10**9 and half.entry_cutoff_ns(aapl, close) == close - 900 * 10**9
    with pytest.raises(RuleError, match="judged by other rules"): NSE.entry_cutoff_ns(aapl, close)


def test_rules_of_another_segment_do_not_judge() -> None:
    "Cash rules know no protection band for a future, so they must not price one."
    nifty = Instrument("NIFTY26DECFUT", "NSE", segment="FO", tick_table="0.10")
    for call in (lambda: NSE.tick(nifty, 26000.0), lambda: NSE.marketable_limit(nifty, Side.BUY, 26000.0, 0.5), lambda: NSE.flat_by_ns(nifty, 0),
                 lambda: NSE.check(intent(type=OrderType.MARKET, limit=None), nifty)):
        with pytest.raises(RuleError, match="judged by other rules"): call()


def test_every_product_has_a_general_cutoff() -> None:
    for rules, _ in VENUES: assert {(p, False) for p, _ in rules.cutoffs} <= set(rules.cutoffs)
