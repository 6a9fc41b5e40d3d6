"""The Angel One broker where a venue that behaves would never go: unknown statuses, late trade books, ghosts, contradictions, budgets."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from angel_fake import LOGIN, START, FakeVenue, bad, config, gate, good

pytest.importorskip("pyotp")

from scalp_nb.broker.angel_one import AngelBroker  # noqa: E402
from scalp_nb.broker.base import BrokerError  # noqa: E402
from scalp_nb.feed.instrument import Instrument, Universe  # noqa: E402
from scalp_nb.order.types import Intent, OrderState, OrderType, Purpose, Side, Tif, Update, UpdateKind  # noqa: E402
from scalp_nb.trader.streaming import venue_clock  # noqa: E402

D, K, S = Decimal, UpdateKind, 10**9
UNI = Universe("pair", (Instrument("AAA", "NSE", "11", freeze_qty=1000), Instrument("BBB", "NSE", "12"), Instrument("NOTOKEN", "NSE")))
SPEED = 40.0


class World:
    "A broker on a fake venue, at forty times the speed of time."
    def __init__(self, start: int = START, speed: float = SPEED, **over: Any) -> None:
        self.clock = venue_clock(start, speed).now
        self.venue = FakeVenue(self.clock)
        more = {"settle_s": 1.0, "fills_lag_s": 3.0, "first_wait_s": 5.0, **over}
        self.b = AngelBroker(UNI, config(self.venue, **more), LOGIN, self.clock)
        self.log: list[Update] = []
        self.said: list[Any] = []
        self.n = 0

    def intent(self, side: int = 1, qty: int = 10, limit: str = "100", sym: int = 0, purpose: Purpose = Purpose.ENTRY, **kw: Any) -> Intent:
        self.n += 1
        return replace(Intent(f"tag{self.n:04d}", self.clock(), self.n, "a", "s", UNI[sym].symbol, sym, Side(side), purpose, D(qty), OrderType.LIMIT,
                              D(limit), None, Tif.DAY, D(100)), **kw)

    def send(self, i: Intent) -> Intent:
        self.b.submit(i, self.clock())
        return i

    def poll(self) -> None:
        self.log += self.b.poll(self.clock())
        self.said += self.b.news()

    def kinds(self, i: Intent) -> list[UpdateKind]: return [u.kind for u in self.log if u.client_id == i.id]
    def last(self, i: Intent) -> Update: return [u for u in self.log if u.client_id == i.id][-1]
    def told(self, words: str) -> bool: return any(words in n.text for n in self.said)

    def until(self, done: Callable[[], bool], seconds: float = 6) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, ([(u.client_id, u.kind, u.reason, u.text) for u in self.log], self.said)
            time.sleep(0.003)
            self.poll()

    def rest(self, venue_s: float) -> None:
        end = self.clock() + int(venue_s * S)
        self.until(lambda: self.clock() > end, 1 + venue_s / SPEED)

    def see(self, i: Intent, *kinds: UpdateKind) -> None: self.until(lambda: self.kinds(i)[-len(kinds):] == list(kinds))

    def close(self) -> None:
        self.b.close(self.clock())
        self.venue.server.shutdown()
        self.venue.server.server_close()


@pytest.fixture
def w() -> Iterator[World]:
    world = World()
    world.b.connect(world.clock())
    yield world
    world.close()


def test_the_order_book_alone_is_enough(w: World) -> None:
    "The order socket cannot be reached the whole time."
    i = w.send(w.intent())
    w.see(i, K.ACK)
    w.venue.trade(i.id, 4, 100.05)
    w.venue.say(i.id, "open", 4)
    w.see(i, K.ACK, K.FILL)
    w.venue.trade(i.id, 6, 100.0)
    w.venue.say(i.id, "complete", 10)
    w.see(i, K.ACK, K.FILL, K.FILL)
    assert [(u.qty, u.px, u.cum_qty) for u in w.log if u.kind is K.FILL] == [(4, D("100.05"), 4), (6, D(100), 10)]
    w.rest(5)
    assert w.kinds(i).count(K.FILL) == 2 and w.b.up and w.told("order socket") and not [n for n in w.said if n.kind == "down"]


def test_what_is_sent(w: World) -> None:
    stop = w.send(w.intent(-1, type=OrderType.STOP_LIMIT, limit="99", stop=D("99.5"), purpose=Purpose.STOP))
    w.see(stop, K.ACK)
    (body,) = w.venue.bodies
    assert body == {"variety": "STOPLOSS", "tradingsymbol": "AAA-EQ", "symboltoken": "11", "transactiontype": "SELL", "exchange": "NSE",
                    "ordertype": "STOPLOSS_LIMIT", "producttype": "INTRADAY", "duration": "DAY", "price": "99", "triggerprice": "99.5",
                    "quantity": "10", "disclosedquantity": "0", "squareoff": "0", "stoploss": "0", "ordertag": stop.id}


@pytest.mark.parametrize("reason, kw", [
    ("tick", {"limit": "100.003"}), ("freeze", {"qty": 1001}), ("lot", {"qty": D("1.5")}), ("type", {"type": OrderType.MARKET, "limit": None}),
    ("tif", {"tif": Tif.IOC}), ("unknown_symbol", {"sym": 2}), ("unknown_symbol", {"symbol": "ZZZ"}), ("order_tag", {"id": "x" * 20}),
    ("band", {"limit": "111"})])
def test_refused_before_anything_is_sent(w: World, reason: str, kw: dict[str, Any]) -> None:
    w.b.set_band("AAA", D(90), D(110))
    direct = {k: kw.pop(k) for k in ("limit", "sym") if k in kw and kw[k] is not None}
    i = w.send(replace(w.intent(**direct), **{k: D(v) if k == "qty" else v for k, v in kw.items()}))
    w.see(i, K.REJECT)
    assert w.last(i).reason == reason and w.last(i).text and not w.venue.bodies


def test_bands_come_from_the_quote() -> None:
    w = World()
    w.venue.routes["quote"] = lambda b, t: good({"fetched": [{"symbolToken": "11", "lowerCircuit": 90.0, "upperCircuit": "110.0"}], "unfetched": []})
    w.b.connect(w.clock())
    w.until(lambda: "AAA" in w.b._bands)
    i = w.send(w.intent(limit="111"))
    out = w.send(w.intent(-1, limit="111", purpose=Purpose.EXIT))   # an exit is the exchange's to judge
    w.see(i, K.REJECT)
    w.see(out, K.ACK)
    assert w.last(i).reason == "band"
    w.close()


@pytest.mark.parametrize("at, purpose, sent", [(16, Purpose.EXIT, False), (8, Purpose.ENTRY, False), (15.4, Purpose.ENTRY, True),
                                               (15.4, Purpose.EXIT, True)])
def test_nothing_becomes_an_after_market_order(at: float, purpose: Purpose, sent: bool) -> None:
    w = World(START + int((at - 11) * 3600 * S))
    w.b.connect(w.clock())
    i = w.send(w.intent(purpose=purpose))
    w.see(i, K.ACK if sent else K.REJECT)
    assert sent or w.last(i).reason == "market_closed"
    assert bool(w.venue.bodies) == sent
    w.close()


# ---- not knowing
def test_a_lost_answer_is_settled_by_the_tag(w: World) -> None:
    w.venue.on_place = lambda n: (502, b"<html>")
    i = w.send(w.intent())
    w.see(i, K.NO_ANSWER, K.ACK)
    w.b.submit(i, w.clock())   # the trader in doubt: looked up, not sent
    w.until(lambda: w.last(i).kind is K.STATUS)
    assert w.last(i).state is OrderState.OPEN and len(w.venue.bodies) == 1


@pytest.mark.parametrize("code", ["AB1007", "AB9999"])
def test_absence_is_believed_only_after_several_order_books(w: World, code: str) -> None:
    w.venue.keep, w.venue.on_place = False, lambda n: bad(code)
    i = w.send(w.intent())
    w.see(i, K.NO_ANSWER)
    began, books = w.clock(), w.venue.count("getOrderBook")
    w.b.query(i.id, w.clock())
    w.see(i, K.NOT_FOUND)
    assert w.clock() - began > 2 * S and w.venue.count("getOrderBook") - books >= 3 and len(w.venue.bodies) == 1


def test_a_query_without_a_line_is_no_answer(w: World) -> None:
    i = w.send(w.intent())
    w.see(i, K.ACK)
    w.venue.routes["getOrderBook"] = lambda b, t: (502, b"<html>")
    w.b.query(i.id, w.clock())
    w.see(i, K.NO_ANSWER)


def test_an_unknown_status_is_told_and_blocks_its_symbol(w: World) -> None:
    w.venue.fresh = "frozen by regulator"
    i = w.send(w.intent())
    w.see(i, K.NO_ANSWER)
    assert w.last(i).reason == "unknown_status" and w.told("nobody has listed")
    w.venue.fresh = "open"
    same, other, out = w.send(w.intent()), w.send(w.intent(sym=1)), w.send(w.intent(-1, purpose=Purpose.EXIT))
    w.see(same, K.REJECT)
    w.see(other, K.ACK)
    w.see(out, K.ACK)
    assert w.last(same).reason == "unknown_status"
    assert {o.intent_id for o in w.b.state(w.clock()).orders} == {i.id, other.id, out.id}   # never lost; symbols have lanes of their own
    w.venue.say(i.id, "open")
    w.see(i, K.ACK)
    again = w.send(w.intent())
    w.see(again, K.ACK)
    assert [n.text for n in w.said if "nobody has listed" in n.text][1:] == []   # told once


def test_an_order_on_its_way_is_not_told_as_working(w: World) -> None:
    w.venue.fresh = "validation pending"
    i = w.send(w.intent())
    w.rest(4)
    assert w.kinds(i) == []
    w.venue.say(i.id, "rejected", text="RMS: Insufficient funds")
    w.see(i, K.REJECT)
    assert w.last(i).reason == "buying_power" and w.kinds(i) == [K.REJECT]


def test_a_refused_order_that_lives_is_told(w: World) -> None:
    w.venue.on_place = lambda n: bad("AB4008", "tag too long")
    i = w.send(w.intent())
    w.see(i, K.REJECT)
    w.until(lambda: w.told("look at it in Angel One's app"))
    w.venue.trade(i.id, 10)
    w.venue.say(i.id, "complete", 10)
    w.until(lambda: K.FILL in w.kinds(i))   # an execution is never lost


# ---- executions
def test_a_late_trade_book_holds_the_end_back(w: World) -> None:
    i = w.send(w.intent())
    w.see(i, K.ACK)
    w.venue.say(i.id, "cancelled", 4)
    w.rest(1.5)
    assert w.kinds(i) == [K.ACK]
    w.venue.trade(i.id, 4)
    w.see(i, K.ACK, K.FILL, K.CANCELED)
    assert w.last(i).cum_qty == 4


def test_executions_that_never_come_are_told(w: World) -> None:
    i = w.send(w.intent())
    w.see(i, K.ACK)
    w.venue.say(i.id, "cancelled", 4)
    w.see(i, K.ACK, K.CANCELED)
    assert w.last(i).cum_qty == 4 and w.told("not in the trade book")   # the order machine waits for what is missing
    w.venue.trade(i.id, 4)
    w.b.query(i.id, w.clock())
    w.until(lambda: K.FILL in w.kinds(i))


def test_an_execution_without_an_id_is_never_counted(w: World) -> None:
    i = w.send(w.intent())
    w.see(i, K.ACK)
    w.venue.trade(i.id, 10)
    w.venue.trades[0]["fillid"] = ""
    w.venue.say(i.id, "complete", 10)
    w.until(lambda: w.told("execution from Angel One"))
    assert K.FILL not in w.kinds(i)
    with pytest.raises(BrokerError, match="fillid"): w.b.state(w.clock())


# ---- cancelling
def test_a_cancel_that_was_taken_and_lost_the_race(w: World) -> None:
    i = w.send(w.intent())
    w.see(i, K.ACK)
    def filled_first(b: dict[str, Any], t: str) -> Any:
        w.venue.trade(i.id, 10)
        w.venue.say(i.id, "complete", 10)
        return good({"orderid": b["orderid"]})
    w.venue.routes["cancelOrder"] = filled_first
    w.b.cancel(i.id, w.clock())
    w.see(i, K.ACK, K.FILL, K.CANCEL_REJECTED)
    assert w.last(i).reason == "filled"
    w.b.cancel(i.id, w.clock())
    w.until(lambda: w.kinds(i).count(K.CANCEL_REJECTED) == 2)
    assert w.venue.count("cancelOrder") == 1   # known to have ended: no message


def test_a_cancel_is_repeated_while_its_answer_proves_nothing(w: World) -> None:
    i = w.send(w.intent())
    w.see(i, K.ACK)
    inner, tries = w.venue.cancel, []
    def flaky(b: dict[str, Any], t: str) -> Any:
        tries.append(1)
        return (502, b"<html>") if len(tries) == 1 else inner(b, t)
    w.venue.routes["cancelOrder"] = flaky
    w.b.cancel(i.id, w.clock())
    w.see(i, K.ACK, K.CANCELED)
    assert len(tries) == 2


def test_a_cancel_whose_answers_are_lost_is_settled_by_the_book(w: World) -> None:
    i = w.send(w.intent())
    w.see(i, K.ACK)
    inner = w.venue.cancel
    def lost(b: dict[str, Any], t: str) -> Any:
        inner(b, t)
        return 502, b"<html>"
    w.venue.routes["cancelOrder"] = lost
    w.b.cancel(i.id, w.clock())
    w.until(lambda: K.CANCELED in w.kinds(i))


# ---- limits and latches
def test_an_unregistered_address_ends_all_sending(w: World) -> None:
    resting = w.send(w.intent())
    w.see(resting, K.ACK)
    w.venue.keep, w.venue.on_place = False, lambda n: bad("AG7002", "IP not registered")
    i = w.send(w.intent(sym=1))
    w.see(i, K.REJECT)
    asked = len(w.venue.times)
    later, out = w.send(w.intent(sym=1)), w.send(w.intent(-1, purpose=Purpose.FLATTEN))
    w.b.cancel(resting.id, w.clock())
    for x in (later, out): w.see(x, K.REJECT)
    w.see(resting, K.ACK, K.CANCEL_REJECTED)
    assert {w.last(x).reason for x in (i, later, out, resting)} == {"ip_not_registered"} and len(w.venue.times) == asked
    assert not w.b.up and "register" in w.b.halted and [n.kind for n in w.said].count("down") == 1
    w.rest(4)
    assert not w.b.up and w.b.state(w.clock()).orders   # reads go on


def test_order_messages_stay_within_the_second_and_exits_pass() -> None:
    w = World(speed=4.0)
    w.b.connect(w.clock())
    entries = [w.send(w.intent(sym=n % 2)) for n in range(12)]
    outs = [w.send(w.intent(-1, sym=n % 2, purpose=Purpose.EXIT)) for n in range(9)]
    for i in outs: w.see(i, K.ACK)
    refused = [i for i in entries if w.kinds(i) == [K.REJECT]]
    assert refused and {w.last(i).reason for i in refused} == {"rate_budget"}
    times = sorted(w.venue.times)
    late = int(0.1 * S)   # the way to the server takes venue time, too: 25 ms on the wall
    assert all(times[n + 8] - times[n] > S - late for n in range(len(times) - 8))
    w.close()


def test_entries_per_hour_leave_room_for_exits() -> None:
    w = World(orders_per_h=10, reserve_per_h=7)
    w.b.connect(w.clock())
    sent = [w.send(w.intent()) for _ in range(5)]
    for i in sent: w.until(lambda i=i: bool(w.kinds(i)))
    assert [w.kinds(i)[0] for i in sent].count(K.ACK) == 3
    out = w.send(w.intent(-1, purpose=Purpose.EXIT))
    w.see(out, K.ACK)
    w.close()


def test_a_rate_refusal_is_definite_and_rests(w: World) -> None:
    w.venue.keep, w.venue.on_place = False, lambda n: (403, b"Access denied because of exceeding access rate")
    i = w.send(w.intent())
    w.see(i, K.REJECT)
    assert w.last(i).reason == "rate_limited"
    w.venue.keep, w.venue.on_place = True, None
    soon, out = w.send(w.intent()), w.send(w.intent(-1, purpose=Purpose.EXIT))
    w.see(soon, K.REJECT)
    w.see(out, K.ACK)
    assert w.venue.times[-1] - w.venue.times[0] > 0.9 * S


def test_an_expired_session_at_an_order(w: World) -> None:
    w.rest(31)
    dead = w.b.session.tokens().jwt
    w.venue.dead.add(dead)
    def place(b: dict[str, Any], t: str) -> Any: return gate("AG8002") if t in w.venue.dead else w.venue.place(b, t)
    w.venue.routes["placeOrder"] = place
    i = w.send(w.intent())
    w.see(i, K.REJECT)
    assert (w.last(i).reason, w.venue.bodies, w.venue.logins) == ("session", [], 2)
    w.see(w.send(w.intent()), K.ACK)


def test_no_entries_while_the_order_book_cannot_be_read() -> None:
    w = World(stale_s=3.0)
    w.b.connect(w.clock())
    w.venue.routes["getOrderBook"] = lambda b, t: (200, b"<html>maintenance</html>")
    w.until(lambda: not w.b.up)
    i, out = w.send(w.intent()), w.send(w.intent(-1, purpose=Purpose.EXIT))
    w.see(i, K.REJECT)
    assert w.last(i).reason == "updates_down" and w.told("cannot be read")
    w.until(lambda: len(w.venue.bodies) == 1)
    w.venue.routes["getOrderBook"] = lambda b, t: good(list(w.venue.rows.values()))
    w.see(out, K.ACK)
    w.until(lambda: w.b.up)
    assert [n.kind for n in w.said if n.kind in ("up", "down")] == ["up", "down", "up"]
    w.close()


def test_a_row_nobody_can_read_is_not_skipped() -> None:
    w = World()
    w.b.connect(w.clock())
    i = w.send(w.intent())
    w.see(i, K.ACK)
    w.venue.routes["getOrderBook"] = lambda b, t: good([*w.venue.rows.values(), {"ordertag": "x"}])
    w.until(lambda: w.told("an orderid"))
    assert not w.b.up
    w.close()


def test_an_account_without_the_market_is_refused() -> None:
    w = World()
    w.venue.routes["getProfile"] = lambda b, t: good({"exchanges": ["BSE", "MCX"], "products": ["INTRADAY"]})
    with pytest.raises(BrokerError, match="markets CM"): w.b.connect(w.clock())
    w.venue.routes["getProfile"] = lambda b, t: good({"exchanges": ["nse_cm"], "products": ["DELIVERY"]})
    with pytest.raises(BrokerError, match="INTRADAY"): w.b.connect(w.clock())
    w.close()


# ---- reconciliation
def test_a_picture_waits_until_its_books_agree() -> None:
    w = World(position_lag_s=60.0)
    w.b.connect(w.clock())
    i = w.send(w.intent())
    w.see(i, K.ACK)
    w.venue.say(i.id, "complete", 10)   # the trade book knows nothing yet
    inner, n = w.venue.routes["getTradeBook"], []
    def later(b: dict[str, Any], t: str) -> Any:
        n.append(1)
        if len(n) == 3: w.venue.trade(i.id, 10, 100.5)
        return inner(b, t)
    w.venue.routes["getTradeBook"] = later
    st = w.b.state(w.clock())
    assert [(u.client_id, u.qty) for u in st.fills] == [(i.id, 10)] and st.positions == (("AAA", D(10), D(100)),)
    assert st.account.cash == D(100_000) - 1005 and st.orders == ()
    w.close()


def test_a_restart_tells_nothing_twice(w: World) -> None:
    done, rest = w.send(w.intent()), w.send(w.intent(sym=1))
    w.see(done, K.ACK)
    w.see(rest, K.ACK)
    w.venue.trade(done.id, 10)
    w.venue.say(done.id, "complete", 10)
    w.see(done, K.ACK, K.FILL)
    second = AngelBroker(UNI, w.b.cfg, LOGIN, w.clock)
    second.connect(w.clock())
    st = second.state(w.clock())
    assert [u for u in st.fills] == [u for u in w.log if u.kind is K.FILL] and [o.intent_id for o in st.orders] == [rest.id]
    w.venue.trade(rest.id, 3)
    w.venue.say(rest.id, "open", 3)
    got: list[Update] = []
    w.until(lambda: bool(got.extend(second.poll(w.clock())) or [u for u in got if u.kind is K.FILL]))
    assert {u.client_id for u in got} == {rest.id} and [u.qty for u in got if u.kind is K.FILL] == [3]
    second.cancel(rest.id, w.clock())
    w.until(lambda: bool(got.extend(second.poll(w.clock())) or [u for u in got if u.kind is K.CANCELED]))
    second.close(w.clock())


def test_delivery_is_not_ours(w: World) -> None:
    "A person's own shares in the same account."
    w.venue.rows["x"] = {"orderid": "900", "ordertag": "", "producttype": "DELIVERY", "tradingsymbol": "AAA-EQ", "transactiontype": "BUY",
                         "quantity": "5", "filledshares": "5", "orderstatus": "complete", "ordertype": "LIMIT"}
    w.venue.trade("x", 5)
    w.venue.routes["getPosition"] = lambda b, t: good([{"tradingsymbol": "AAA-EQ", "producttype": "DELIVERY", "netqty": "5", "avgnetprice": "100"}])
    st = w.b.state(w.clock())
    assert (st.positions, st.fills, st.orders, st.account.cash) == ((), (), (), D(100_000))
    w.venue.rows["x"]["producttype"] = "INTRADAY"   # but this one is somebody trading beside us
    w.venue.routes["getPosition"] = lambda b, t: good([{"tradingsymbol": "AAA-EQ", "producttype": "INTRADAY", "netqty": "5", "avgnetprice": "100"}])
    st = w.b.state(w.clock())
    assert [(u.client_id, u.qty) for u in st.fills] == [("", 5)] and st.positions == (("AAA", D(5), D(100)),)
