"""Angel One's rows, whatever is in them: read or refused by name, never believed where nobody knows what they mean."""
from __future__ import annotations

from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from scalp_nb.broker.angel_models import (  # noqa: E402
    ENDED,
    IN_TRANSIT,
    WORKING,
    amount,
    fills_of,
    read_hint,
    read_limits,
    read_order,
    read_position,
    read_trade,
    rows_of,
    state_of,
)
from scalp_nb.broker.angel_sdk import AngelError, judge  # noqa: E402
from scalp_nb.broker.base import BrokerError  # noqa: E402
from scalp_nb.broker.httpcalls import Answer, json_of  # noqa: E402
from scalp_nb.order.types import TERMINAL, OrderState  # noqa: E402

FAST = settings(max_examples=150, deadline=None, database=None)
scalar = st.none() | st.booleans() | st.integers(-10**12, 10**12) | st.floats(allow_nan=True) | st.text(max_size=12) | st.sampled_from(
    ["- 2235.80", "5", "", "NaN", "1e9", "BUY", "SELL", "13:27:53", "20-Oct-2020 13:10:59", "open", "complete"])
ORDER = ("orderid", "uniqueorderid", "ordertag", "tradingsymbol", "transactiontype", "quantity", "filledshares", "unfilledshares", "cancelsize",
         "price", "triggerprice", "averageprice", "status", "orderstatus", "ordertype", "variety", "producttype", "text", "updatetime",
         "exchorderupdatetime")


def rows(*keys: str) -> Any: return st.dictionaries(st.sampled_from(keys), scalar)


@FAST
@given(rows(*ORDER))
def test_any_order_row(d: dict[str, Any]) -> None:
    try: o = read_order(d)
    except BrokerError: return
    assert o.id and o.filled >= 0 and o.filled.is_finite() and o.qty.is_finite()
    known = o.status in ENDED or o.status in WORKING or o.status in IN_TRANSIT
    assert (state_of(o) in TERMINAL) == (o.status in ENDED)
    assert known == (state_of(o) is not OrderState.UNKNOWN)


@FAST
@given(rows("fillprice", "fillsize", "transactiontype", "fillid", "orderid", "filltime", "tradingsymbol"))
def test_any_trade_row(d: dict[str, Any]) -> None:
    try: t = read_trade(d, date(2026, 11, 19))
    except BrokerError: return
    assert t.px > 0 and t.qty > 0 and t.side in (1, -1) and t.fill_id and t.order_id


@FAST
@given(rows("tradingsymbol", "producttype", "netqty", "avgnetprice", "netprice"), rows("net", "availablecash", "m2mrealized", "m2munrealized"),
       scalar)
def test_any_position_limits_and_hint(p: dict[str, Any], limits: dict[str, Any], anything: Any) -> None:
    with suppress(BrokerError): assert read_position(p)[2].is_finite() and read_position(p)[3] >= 0
    with suppress(BrokerError): assert read_limits(limits, 1, Decimal(0)).buying_power >= 0
    for m in (anything, {"order-status": anything}, {"orderData": anything}, {"orderData": {"orderid": anything}}):
        with suppress(BrokerError): read_hint(m)
        with suppress(BrokerError): rows_of(m, "book")


@FAST
@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-10**9, max_value=10**9))
def test_amounts_in_every_spelling(x: Decimal) -> None:
    spaced = f"- {-x}" if x < 0 else f"{x}"
    assert amount(str(x)) == amount(spaced) == amount(f"{x:,}") == x


@FAST
@given(st.integers(0, 599), st.binary(max_size=60) | st.sampled_from([b'{"status": true, "data": 1}', b'{"status": "false"}', b'{"success": false}',
                                                                      b"[]"]))
def test_an_answer_is_data_or_an_error_of_ours(status: int, raw: bytes) -> None:
    try: judge(Answer(status, json_of(raw), raw.decode("utf-8", "replace")))
    except AngelError as e: assert e.reason
    else: assert 200 <= status < 300


@FAST
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6)), max_size=12), st.randoms())
def test_an_execution_counts_once_and_the_story_is_always_the_same(found: list[tuple[str, int]], random: Any) -> None:
    def one(o: str, n: int) -> Any: return {"orderid": o, "fillid": str(n), "fillprice": 100 + n, "fillsize": n, "transactiontype": "BUY"}
    trades = [read_trade(one(o, n), date(2026, 11, 19)) for o, n in found]
    once = fills_of(trades)
    again = fills_of([*trades, *random.sample(trades, len(trades))])
    assert once == again
    for us in once.values():
        assert us[-1].cum_qty == sum(u.qty for u in us) and len({u.exec_id for u in us}) == len(us)
