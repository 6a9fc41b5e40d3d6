"""A change of an order at Angel One, wherever it can go wrong: who refuses it, what races it, what is lost and what comes late."""
from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from angel_fake import START, bad, gate, good

pytest.importorskip("pyotp")

from test_broker_angel_odd import World  # noqa: E402

from scalp_nb.order.machine import apply_modify, step  # noqa: E402
from scalp_nb.order.types import Intent, Order, OrderState, OrderType, Purpose, Terms, UpdateKind  # noqa: E402

D, K, S = Decimal, UpdateKind, 10**9
MORE = Terms(D(15), D("98.9"), D("99.4"))


@pytest.fixture
def w() -> Iterator[World]:
    world = World()
    world.b.connect(world.clock())
    yield world
    world.close()


def stop(w: World, sym: int = 0) -> Intent:
    "A protective stop of 10 that rests."
    i = w.send(w.intent(-1, type=OrderType.STOP_LIMIT, limit="99", stop=D("99.5"), purpose=Purpose.STOP, sym=sym))
    w.until(lambda: i.id in w.venue.rows)
    w.venue.say(i.id, "trigger pending")
    w.see(i, K.ACK)
    return i


def believed(w: World, i: Intent, terms: Terms = MORE) -> Order:
    "What the order machine makes of what was said after the change was asked for."
    o = apply_modify(Order(i, OrderState.OPEN), terms, START)
    for u in w.log: o = step(o, u)[0] if u.client_id == i.id else o
    return o


def body(i: Intent, w: World, terms: Terms = MORE) -> dict[str, Any]:
    return {"orderid": w.venue.rows[i.id]["orderid"], "price": str(terms.limit), "triggerprice": str(terms.stop), "quantity": str(terms.qty)}


def test_the_whole_order_is_sent_once_and_the_book_tells_the_outcome(w: World) -> None:
    i = stop(w)
    w.b.modify(i.id, MORE, w.clock())
    w.see(i, K.ACK, K.MODIFIED)
    assert w.last(i).terms == MORE and believed(w, i).leaves == 15
    assert w.venue.changes == [{"variety": "STOPLOSS", "orderid": "1", "ordertype": "STOPLOSS_LIMIT", "producttype": "INTRADAY", "duration": "DAY",
                                "price": "98.9", "triggerprice": "99.4", "quantity": "15", "tradingsymbol": "AAA-EQ", "symboltoken": "11",
                                "exchange": "NSE"}]
    w.rest(5)
    assert w.kinds(i) == [K.ACK, K.MODIFIED] and len(w.venue.changes) == 1


def test_a_promise_is_no_outcome(w: World) -> None:
    "Accepted; for a while the row shows the old terms, first as pending, then without a word."
    i = stop(w)
    w.venue.on_modify = lambda b: good({"orderid": "1"})
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: w.venue.changes)
    w.venue.rows[i.id]["status"] = "modify pending"
    w.rest(20)
    assert w.kinds(i) == [K.ACK]                                       # pending: however long it takes
    w.venue.change(body(i, w))
    w.see(i, K.ACK, K.MODIFIED)


def test_the_exchange_refuses_it(w: World) -> None:
    i = stop(w)
    w.venue.on_modify = lambda b: good({"orderid": "1"})
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: w.venue.changes)
    w.venue.rows[i.id] |= {"status": "not modified", "text": "EXCH: price out of range"}
    w.see(i, K.ACK, K.MODIFY_REJECTED)
    o = believed(w, i)
    assert (w.last(i).reason, w.last(i).text) == ("not_modified", "EXCH: price out of range") and (o.leaves, o.fixed, o.asked) == (10, True, None)


@pytest.mark.parametrize("answer, reason", [(bad("AB1013", "Order not found"), "not_found"), (bad("AB1008", "Invalid Order Variety"), "variety"),
                                            ((403, b"Access denied because of exceeding access rate"), "rate_limited"),
                                            (gate("AG7002"), "ip_not_registered")])
def test_a_definite_no(w: World, answer: Any, reason: str) -> None:
    i = stop(w)
    w.venue.on_modify = lambda b: answer
    w.b.modify(i.id, MORE, w.clock())
    w.see(i, K.ACK, K.MODIFY_REJECTED)
    assert w.last(i).reason == reason and believed(w, i).leaves == 10
    w.rest(3)
    assert len(w.venue.changes) == 1                                   # not sent again


@pytest.mark.parametrize("answer", [bad("AB1007", "AMX error"), (504, b"<html>Gateway Time-out</html>"), (200, b'{"status": tr'), bad("AB9999", "?")])
def test_an_answer_that_proves_nothing_is_settled_by_the_book(w: World, answer: Any) -> None:
    for sym, carried in ((0, False), (1, True)):
        i = stop(w, sym)
        w.venue.on_modify = lambda b, carried=carried: (w.venue.change(b) if carried else None, answer)[1]
        w.b.modify(i.id, MORE, w.clock())
        w.until(lambda i=i, k=K.MODIFIED if carried else K.STATUS: w.kinds(i)[-1] is k)
        o = believed(w, i)
        assert w.kinds(i) in ([K.ACK, K.MODIFY_NO_ANSWER, w.last(i).kind], [K.ACK, w.last(i).kind])   # the book may be the faster
        assert (o.terms, o.leaves) == (MORE if carried else Terms(D(10), D(99), D("99.5")), 15)
        assert (o.asked, o.fixed) == ((None, False) if carried else (MORE, True))                      # late it may still come
    assert len(w.venue.changes) == 2


def test_taken_for_lost_and_carried_out_late(w: World) -> None:
    i = stop(w)
    w.venue.on_modify = lambda b: (504, b"")
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: w.kinds(i)[-1] is K.STATUS)
    w.venue.change(body(i, w), "trigger pending")
    w.until(lambda: w.kinds(i)[-1] is K.MODIFIED)
    o = believed(w, i)
    assert (o.terms, o.asked, o.leaves) == (MORE, None, 15) and w.told("not asked for")


def test_it_fills_before_the_change_reaches_it(w: World) -> None:
    "The refusal says AB1007, as for anything; the order book says what happened."
    i = stop(w)
    def filled(b: Any) -> Any:
        w.venue.trade(i.id, 10, 99.0)
        w.venue.say(i.id, "complete", 10)
        return bad("AB1007", "AMX error: order is complete")
    w.venue.on_modify = filled
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: {K.FILL, K.MODIFY_REJECTED} <= set(w.kinds(i)))
    o = believed(w, i)
    assert (o.state, o.filled, o.asked) == (OrderState.FILLED, 10, None)


def test_a_part_fills_while_it_is_changed(w: World) -> None:
    i = stop(w)
    w.venue.on_modify = lambda b: good({"orderid": "1"})
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: w.venue.changes)
    w.venue.trade(i.id, 4, 99.0)
    w.venue.say(i.id, "open", 4)
    w.venue.rows[i.id]["status"] = "modify pending"
    w.until(lambda: K.FILL in w.kinds(i))
    assert (believed(w, i).state, believed(w, i).leaves) == (OrderState.PARTIAL, 11)
    w.venue.change(body(i, w))
    w.until(lambda: K.MODIFIED in w.kinds(i))
    assert believed(w, i).leaves == 11


def test_the_new_quantity_may_be_what_is_left(w: World) -> None:
    "Were Angel One to mean the rest by it, the order book would show more than was asked for: told at once, and the larger one is believed."
    i = stop(w)
    w.venue.on_modify = lambda b: good({"orderid": "1"})
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: w.venue.changes)
    w.venue.trade(i.id, 4, 99.0)
    w.venue.say(i.id, "open", 4)
    w.venue.change({**body(i, w), "quantity": "19"})
    w.until(lambda: {K.FILL, K.MODIFIED} <= set(w.kinds(i)))
    o = believed(w, i)
    assert (o.terms.qty, o.leaves, o.fixed) == (19, 15, True) and w.told("not asked for")


@pytest.mark.parametrize("end, filled", [("cancelled", 0), ("rejected", 0)])
def test_it_ends_while_it_is_changed(w: World, end: str, filled: int) -> None:
    i = stop(w)
    w.venue.on_modify = lambda b: (504, b"")
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: w.venue.changes)
    w.venue.say(i.id, end, filled)
    w.until(lambda: {K.MODIFY_REJECTED, K.CANCELED if end == "cancelled" else K.REJECT} <= set(w.kinds(i)))
    assert believed(w, i).asked is None and not believed(w, i).live


def test_a_person_changes_it_in_the_app(w: World) -> None:
    i = stop(w)
    w.b.modify(i.id, MORE, w.clock())
    w.see(i, K.ACK, K.MODIFIED)
    theirs = Terms(D(3), D("97.0"), D("97.5"))
    w.venue.change(body(i, w, theirs), "trigger pending")
    w.see(i, K.ACK, K.MODIFIED, K.MODIFIED)
    o = believed(w, i)
    assert (o.terms, o.fixed) == (theirs, True) and w.told("not asked for")


def test_one_row_of_old_terms_after_the_change_is_not_believed(w: World) -> None:
    i = stop(w)
    w.b.modify(i.id, MORE, w.clock())
    w.see(i, K.ACK, K.MODIFIED)
    old, new = {"price": "99", "triggerprice": "99.5", "quantity": "10"}, {"price": "98.9", "triggerprice": "99.4", "quantity": "15"}
    readings = [0]
    def book(b: Any, t: Any) -> Any:
        readings[0] += 1
        return good([{**w.venue.rows[i.id], **(old if readings[0] == 1 else new)}])
    w.venue.routes["getOrderBook"] = book
    w.until(lambda: readings[0] >= 5)
    assert w.kinds(i) == [K.ACK, K.MODIFIED] and not w.told("not asked for")


def test_changes_have_an_hour_of_their_own_and_a_second_together() -> None:
    w = World(orders_per_h=11, reserve_per_h=1, absent_polls=1)
    w.b.connect(w.clock())
    i = stop(w)
    for n in range(11):
        w.b.modify(i.id, Terms(D(11 + n), D(99), D("99.5")), w.clock())
        w.until(lambda n=n: w.kinds(i).count(K.MODIFIED) == n + 1)
    w.b.modify(i.id, Terms(D(40), D(99), D("99.5")), w.clock())
    w.until(lambda: w.kinds(i)[-1] is K.MODIFY_REJECTED)
    assert w.last(i).reason == "rate_budget" and len(w.venue.changes) == 11
    w.b.cancel(i.id, w.clock())                                          # that has a budget of its own
    w.until(lambda: w.kinds(i)[-1] is K.CANCELED)
    assert all(sum(t <= x < t + S for x in w.venue.times) <= 9 for t in w.venue.times)
    w.close()


def test_nothing_is_sent_for_an_order_that_cannot_be_changed(w: World) -> None:
    i = stop(w)
    w.venue.trade(i.id, 10, 99.0)
    w.venue.say(i.id, "complete", 10)
    w.until(lambda: K.FILL in w.kinds(i))
    w.rest(2)
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: w.kinds(i)[-1] is K.MODIFY_REJECTED)
    assert w.last(i).reason == "filled"
    odd = stop(w, 1)
    w.venue.say(odd.id, "wondrous")
    w.until(lambda: K.NO_ANSWER in w.kinds(odd))
    w.b.modify(odd.id, MORE, w.clock())
    w.until(lambda: w.kinds(odd)[-1] is K.MODIFY_REJECTED)
    assert w.last(odd).reason == "unknown_status" and not w.venue.changes


def test_another_process_goes_on_with_what_the_book_has(w: World) -> None:
    "The process died after the request: the new one reads the terms, says them when asked, and hears of a change that comes late."
    i = stop(w)
    w.venue.on_modify = lambda b: good({"orderid": "1"})
    w.b.modify(i.id, MORE, w.clock())
    w.until(lambda: w.venue.changes)
    w.b.close(w.clock())
    again = World.__new__(World)
    again.__dict__ |= {**w.__dict__, "log": [], "said": []}
    again.b = type(w.b)(w.b.universe, w.b.cfg, w.b.session._login, w.clock)
    again.b.connect(w.clock())
    (o,) = again.b.state(w.clock()).orders
    assert (o.qty, o.limit, o.stop) == (10, 99, D("99.5"))
    again.b.query(i.id, w.clock())
    again.until(lambda: again.kinds(i) == [K.STATUS])
    assert again.last(i).terms == Terms(D(10), D(99), D("99.5"))
    w.venue.change(body(i, w), "trigger pending")
    again.until(lambda: again.kinds(i)[-1] is K.MODIFIED)
    assert again.last(i).terms == MORE
    again.b.modify(i.id, Terms(D(20), D("98.9"), D("99.4")), w.clock())
    w.venue.on_modify = None
    w.venue.change({**body(i, w), "quantity": "20"}, "trigger pending")
    again.until(lambda: again.last(i).terms is not None and again.last(i).terms.qty == 20)
    again.b.close(w.clock())
