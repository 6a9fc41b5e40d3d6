"""What every broker has to do, written once.

A test module subclasses `BrokerConformance` and provides a fixture `venue` that is a `VenueDriver`. Only the `Broker`
protocol and the driver are used, so the same tests run against the simulated exchange and against the adapters of real
venues talking to a practice server. A driver lists the faults it can force; tests of others are skipped.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

import pytest

from scalp_nb.broker.base import NEVER, Broker, BrokerState
from scalp_nb.feed.instrument import Universe
from scalp_nb.order.machine import step
from scalp_nb.order.types import Intent, Order, OrderState, OrderType, Purpose, Side, Terms, Tif, Update, UpdateKind, intent_id

K = UpdateKind
D = Decimal
Level = tuple[float, float]


class VenueDriver(Protocol):
    "What the tests need to steer a venue; everything else goes through `Broker`."
    universe: Universe                # at least two symbols, lot 1, shortable
    faults: frozenset[str]            # which of: reject lost_ack duplicate late disconnect restart halt
    cash: Decimal                     # of a fresh account, currency units
    fees: Callable[[Sequence[Update], dict[str, Intent]], Decimal]  # what the venue charges for these fills
    now: int                          # ns UTC

    def make(self, *faults: str) -> Broker:
        "A connected broker on a fresh, empty account whose venue shows these faults all the time."
    def restart(self) -> Broker:
        "The process died without a word; a new connected broker on the same account."
    def row(self, sym: int, bids: Sequence[Level], asks: Sequence[Level], ltp: float, traded: float = 0, halted: bool = False) -> list[Update]:
        "The market moves: the venue matches against this row. Returns updates that came meanwhile."
    def settle(self) -> list[Update]:
        "Let time pass until the venue has nothing more to say; updates in order of arrival."
    def disconnect(self, ns: int) -> None:
        "The line is down from now on, for `ns`."


@dataclass
class Seen:
    "Folds evidence as a careful client does: an execution counts once, whatever order it comes in."
    fills: dict[str, Update] = field(default_factory=dict)
    kinds: dict[str, list[UpdateKind]] = field(default_factory=dict)
    log: list[Update] = field(default_factory=list)

    def add(self, updates: Sequence[Update]) -> Seen:
        for u in updates:
            self.log.append(u)
            self.kinds.setdefault(u.client_id, []).append(u.kind)
            if u.kind is K.FILL:
                assert u.exec_id and u.qty > 0 and u.px > 0
                if u.exec_id in self.fills: assert self.fills[u.exec_id] == u, "one execution, two stories"
                self.fills[u.exec_id] = u
        return self

    def filled(self, client_id: str) -> Decimal: return sum((u.qty for u in self.fills.values() if u.client_id == client_id), D(0))
    def last(self, client_id: str, kind: UpdateKind) -> Update: return [u for u in self.log if u.client_id == client_id and u.kind is kind][-1]


BIDS, ASKS = ((99.95, 30.0), (99.9, 50.0), (99.85, 70.0)), ((100.05, 20.0), (100.1, 40.0), (100.15, 60.0))


class BrokerConformance:
    "Subclass, and give a `venue` fixture."

    # ---- helpers
    seq = 0

    def start(self, venue: VenueDriver, *faults: str) -> tuple[Broker, Seen]:
        missing = set(faults) - venue.faults
        if missing: pytest.skip(f"driver cannot force {', '.join(sorted(missing))}")
        broker, seen = venue.make(*faults), Seen()
        self.sent: dict[str, Intent] = {}
        for s in range(2): seen.add(venue.row(s, BIDS, ASKS, 100.0))
        return broker, seen

    def order(self, venue: VenueDriver, b: Broker, side: Side, qty: int, limit: str = "", stop: str = "", sym: int = 0, oco: str = "") -> Intent:
        "An order of a kind the venue takes: a bare stop becomes a stop-limit with room where it must."
        self.seq += 1
        ident = intent_id("conf", "suite", f"{sym}", side, Purpose.ENTRY, self.seq + venue.now, min(26, b.caps.id_width))
        if stop and not limit and OrderType.STOP not in b.caps.order_types: limit = str(D(stop) * (D("1.02") if side > 0 else D("0.98")))
        kind = {(True, False): OrderType.LIMIT, (False, True): OrderType.STOP, (True, True): OrderType.STOP_LIMIT}[bool(limit), bool(stop)]
        i = Intent(ident, venue.now, self.seq, "conf", "suite", venue.universe[sym].symbol, sym, side, Purpose.ENTRY, D(qty), kind,
                   D(limit) if limit else None, D(stop) if stop else None, Tif.DAY, D("100"), oco=oco)
        self.sent[i.id] = i
        return i

    def send(self, venue: VenueDriver, b: Broker, seen: Seen, *intents: Intent) -> None:
        for i in intents: b.submit(i, venue.now)
        seen.add(venue.settle())

    def executes(self, venue: VenueDriver, i: Intent) -> None:
        "Returns when the venue has executed an order sent a moment ago, whose updates nobody has read; at once where that needs no time."

    def agree(self, venue: VenueDriver, b: Broker, seen: Seen) -> BrokerState:
        "The venue's books are the sum of the fills, and the client's fills are the venue's."
        st = b.state(venue.now)
        truth = Seen().add(st.fills).fills
        assert {k: (u.client_id, u.qty, u.px) for k, u in truth.items()} == {k: (u.client_id, u.qty, u.px) for k, u in seen.fills.items()}
        pos: dict[str, Decimal] = {}
        spent = D(0)
        for u in truth.values():
            i = self.sent[u.client_id]
            pos[i.symbol] = pos.get(i.symbol, D(0)) + u.qty * int(i.side)
            spent += u.qty * u.px * int(i.side)
        assert {s: q for s, q, _ in st.positions} == {s: q for s, q in pos.items() if q}
        assert st.account.cash == venue.cash - spent - venue.fees(list(truth.values()), self.sent)
        return st

    # ---- the life of an order
    def test_is_a_broker(self, venue: VenueDriver) -> None:
        b, _ = self.start(venue)
        assert isinstance(b, Broker)
        assert b.watch.shape == (len(venue.universe), 2)
        assert b.state(venue.now).orders == () and b.state(venue.now).positions == ()

    def test_accept_ack_fill(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "100.05")
        assert not [u for u in b.poll(venue.now) if u.client_id == i.id]
        self.send(venue, b, seen, i)
        assert seen.kinds[i.id] == [K.ACK, K.FILL]
        fill = seen.last(i.id, K.FILL)
        assert (fill.qty, fill.px, fill.cum_qty) == (10, D("100.05"), 10)
        assert seen.last(i.id, K.ACK).venue_id == fill.venue_id != ""
        assert self.agree(venue, b, seen).orders == ()

    def test_walks_the_book_within_its_limit(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 70, "100.1")
        self.send(venue, b, seen, i)
        assert [(u.qty, u.px) for u in seen.fills.values()] == [(20, D("100.05")), (40, D("100.1"))]
        (o,) = self.agree(venue, b, seen).orders
        assert (o.intent_id, o.qty, o.filled, o.side) == (i.id, 70, 60, 1)

    def test_partial_fills_complete(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.SELL, 50, "99.95")
        self.send(venue, b, seen, i)
        assert seen.filled(i.id) == 30
        seen.add(venue.row(0, ((99.95, 15.0), (99.9, 50.0)), ASKS, 99.95)); seen.add(venue.settle())
        assert seen.filled(i.id) == 45
        seen.add(venue.row(0, BIDS, ASKS, 99.95)); seen.add(venue.settle())
        fills = [u for u in seen.log if u.kind is K.FILL]
        assert [u.cum_qty for u in fills] == [30, 45, 50] and len({u.exec_id for u in fills}) == 3
        assert self.agree(venue, b, seen).orders == ()

    def test_limit_rests_until_the_market_comes(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        assert seen.kinds[i.id] == [K.ACK]
        seen.add(venue.row(0, BIDS, ASKS, 99.95, traded=500)); seen.add(venue.settle())
        assert seen.filled(i.id) == 0 and [o.intent_id for o in self.agree(venue, b, seen).orders] == [i.id]
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50)); seen.add(venue.settle())
        assert seen.filled(i.id) == 10 and all(u.px <= D("99.5") for u in seen.fills.values())
        self.agree(venue, b, seen)

    def test_only_its_own_symbol(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "99.5", sym=0)
        self.send(venue, b, seen, i)
        seen.add(venue.row(1, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50)); seen.add(venue.settle())
        assert seen.filled(i.id) == 0

    def test_halt_matches_nothing(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue, *(["halt"] if "halt" in venue.faults else pytest.skip("driver cannot halt")))
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50, halted=True)); seen.add(venue.settle())
        assert seen.filled(i.id) == 0
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=0)); seen.add(venue.settle())
        assert seen.filled(i.id) == 10

    # ---- cancel
    def test_cancel(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        b.cancel(i.id, venue.now); seen.add(venue.settle())
        assert seen.kinds[i.id] == [K.ACK, K.CANCELED]
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50)); seen.add(venue.settle())
        assert seen.filled(i.id) == 0 and self.agree(venue, b, seen).orders == ()

    def test_cancel_of_the_rest(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 50, "100.05")
        self.send(venue, b, seen, i)
        b.cancel(i.id, venue.now); seen.add(venue.settle())
        assert seen.last(i.id, K.CANCELED).cum_qty in (20, None) and seen.filled(i.id) == 20
        self.agree(venue, b, seen)

    def test_cancel_loses_the_race(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "100.05")
        b.submit(i, venue.now)
        self.executes(venue, i)
        b.cancel(i.id, venue.now)  # before anything has come back
        seen.add(venue.settle())
        assert set(seen.kinds[i.id]) == {K.ACK, K.FILL, K.CANCEL_REJECTED} and seen.filled(i.id) == 10
        b.cancel(i.id, venue.now); seen.add(venue.settle())
        assert seen.kinds[i.id].count(K.CANCEL_REJECTED) == 2 and K.CANCELED not in seen.kinds[i.id]
        self.agree(venue, b, seen)

    def test_cancel_and_execution_at_once(self, venue: VenueDriver) -> None:
        "Nobody says which of them is first: one of two stories, whole, and never a mixture."
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "100.05")
        b.submit(i, venue.now)
        b.cancel(i.id, venue.now)
        seen.add(venue.settle())
        stories = ({K.ACK, K.FILL, K.CANCEL_REJECTED}, 10), ({K.ACK, K.CANCELED}, 0)
        assert (set(seen.kinds[i.id]), seen.filled(i.id)) in stories
        assert self.agree(venue, b, seen).orders == ()

    def test_cancel_of_an_unknown_order(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        b.cancel("no-such-order", venue.now); seen.add(venue.settle())
        assert seen.kinds["no-such-order"] == [K.CANCEL_REJECTED]

    # ---- other terms
    def changing(self, venue: VenueDriver, *faults: str) -> tuple[Broker, Seen]:
        b, seen = self.start(venue, *faults)
        if not b.caps.modifies: pytest.skip("the venue changes no orders")
        return b, seen

    def believed(self, i: Intent, seen: Seen) -> Order:
        "What the order machine makes of everything that was said."
        o = Order(i, OrderState.SENT)
        for u in seen.log: o = step(o, u)[0] if u.client_id == i.id else o
        return o

    def test_modify_where_it_is_not_taken(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        if b.caps.modifies: pytest.skip("the venue changes orders")
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        b.modify(i.id, Terms(D(15), D("99.4"), None), venue.now); seen.add(venue.settle())
        assert seen.kinds[i.id] == [K.ACK, K.MODIFY_REJECTED]
        assert [(o.qty, o.limit) for o in self.agree(venue, b, seen).orders] == [(10, D("99.5"))]

    def test_modify(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue)
        i, more = self.order(venue, b, Side.BUY, 10, "99.5"), Terms(D(15), D("99.4"), None)
        self.send(venue, b, seen, i)
        b.modify(i.id, more, venue.now); seen.add(venue.settle())
        assert seen.kinds[i.id] == [K.ACK, K.MODIFIED] and seen.last(i.id, K.MODIFIED).terms == more
        assert [(o.intent_id, o.qty, o.limit) for o in self.agree(venue, b, seen).orders] == [(i.id, 15, D("99.4"))]
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50)); seen.add(venue.settle())
        assert seen.filled(i.id) == 15 and self.believed(i, seen).state is OrderState.FILLED
        self.agree(venue, b, seen)

    def test_modify_of_a_stop(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue)
        i = self.order(venue, b, Side.SELL, 10, stop="99.5")
        self.send(venue, b, seen, i)
        more = Terms(D(25), D("98"), D("99.3"))
        b.modify(i.id, more, venue.now); seen.add(venue.settle())
        assert seen.last(i.id, K.MODIFIED).terms == more
        assert [(o.qty, o.limit, o.stop, o.type) for o in self.agree(venue, b, seen).orders] == [(25, D("98"), D("99.3"), i.type)]
        seen.add(venue.row(0, ((99.4, 50.0),), ((99.5, 50.0),), 99.45, traded=10)); seen.add(venue.settle())
        assert seen.filled(i.id) == 0                                  # the old trigger is no more
        seen.add(venue.row(0, ((99.3, 50.0),), ((99.4, 50.0),), 99.3, traded=10)); seen.add(venue.settle())
        assert seen.filled(i.id) == 25
        self.agree(venue, b, seen)

    def test_modify_counts_what_is_executed(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue)
        i = self.order(venue, b, Side.BUY, 30, "100.05")
        self.send(venue, b, seen, i)
        assert seen.filled(i.id) == 20
        b.modify(i.id, Terms(D(35), D("100.05"), None), venue.now); seen.add(venue.settle())
        assert [(o.qty, o.filled) for o in self.agree(venue, b, seen).orders] == [(35, 20)]
        b.modify(i.id, Terms(D(20), D("100.05"), None), venue.now); seen.add(venue.settle())   # nothing would be left: no change
        assert seen.kinds[i.id][-1] is K.MODIFY_REJECTED or seen.last(i.id, K.STATUS).terms == Terms(D(35), D("100.05"), None)
        assert [(o.qty, o.filled) for o in self.agree(venue, b, seen).orders] == [(35, 20)]

    def test_modify_loses_the_race(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue)
        i = self.order(venue, b, Side.BUY, 10, "100.05")
        b.submit(i, venue.now)
        b.modify(i.id, Terms(D(15), D("100.05"), None), venue.now)   # before anything has come back
        seen.add(venue.settle())
        assert seen.filled(i.id) == 10 and K.MODIFY_REJECTED in seen.kinds[i.id] and K.MODIFIED not in seen.kinds[i.id]
        b.modify(i.id, Terms(D(15), D("100.05"), None), venue.now); seen.add(venue.settle())
        assert seen.kinds[i.id].count(K.MODIFY_REJECTED) == 2 and self.believed(i, seen).state is OrderState.FILLED
        self.agree(venue, b, seen)

    def test_modify_of_an_unknown_order(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue)
        b.modify("no-such-order", Terms(D(15), D("99"), None), venue.now); seen.add(venue.settle())
        assert seen.kinds["no-such-order"] == [K.MODIFY_REJECTED]

    def test_modify_refused_leaves_the_order_as_it_was(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue)
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        b.modify(i.id, Terms(D(90_000), D("99.5"), None), venue.now); seen.add(venue.settle())   # beyond the account's money
        assert seen.kinds[i.id] == [K.ACK, K.MODIFY_REJECTED] and seen.last(i.id, K.MODIFY_REJECTED).reason
        assert [(o.intent_id, o.qty) for o in self.agree(venue, b, seen).orders] == [(i.id, 10)]
        b.cancel(i.id, venue.now); seen.add(venue.settle())
        assert seen.kinds[i.id][-1] is K.CANCELED

    def test_modify_then_cancel(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue)
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        b.modify(i.id, Terms(D(15), D("99.4"), None), venue.now)
        b.cancel(i.id, venue.now); seen.add(venue.settle())
        now = self.believed(i, seen)   # the refusal of the change may come before or after the end of the order
        assert K.CANCELED in seen.kinds[i.id] and (now.state, now.asked) == (OrderState.CANCELED, None)
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50)); seen.add(venue.settle())
        assert seen.filled(i.id) == 0 and self.agree(venue, b, seen).orders == ()

    def test_modify_whose_answer_is_lost(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue, "lost_ack")
        i, more = self.order(venue, b, Side.BUY, 10, "99.5"), Terms(D(15), D("99.4"), None)
        self.send(venue, b, seen, i)
        b.query(i.id, venue.now); seen.add(venue.settle())
        b.modify(i.id, more, venue.now); seen.add(venue.settle())
        b.query(i.id, venue.now); seen.add(venue.settle())
        assert seen.last(i.id, K.STATUS).terms == more == self.believed(i, seen).terms
        assert [(o.intent_id, o.qty, o.limit) for o in self.agree(venue, b, seen).orders] == [(i.id, 15, D("99.4"))]

    def test_modify_while_the_line_is_down(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue, "disconnect")
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        venue.disconnect(10**9)
        b.modify(i.id, Terms(D(15), D("99.4"), None), venue.now); seen.add(venue.settle())
        assert seen.kinds[i.id][-1] in (K.MODIFY_NO_ANSWER, K.MODIFY_REJECTED)
        b.query(i.id, venue.now); seen.add(venue.settle())
        assert seen.last(i.id, K.STATUS).terms == Terms(D(10), D("99.5"), None)
        assert [(o.intent_id, o.qty) for o in self.agree(venue, b, seen).orders] == [(i.id, 10)]

    @pytest.mark.parametrize("faults", [("duplicate",), ("late",), ("duplicate", "late")], ids="+".join)
    def test_modify_when_updates_come_twice_and_late(self, venue: VenueDriver, faults: tuple[str, ...]) -> None:
        b, seen = self.changing(venue, *faults)
        i, more = self.order(venue, b, Side.BUY, 10, "99.5"), Terms(D(15), D("99.4"), None)
        self.send(venue, b, seen, i)
        b.query(i.id, venue.now); seen.add(venue.settle())
        b.modify(i.id, more, venue.now); seen.add(venue.settle())
        assert self.believed(i, seen).terms == more
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50)); seen.add(venue.settle())
        for u in list(seen.log): seen.add([u])                          # everything again, the old terms as well
        assert self.believed(i, seen).state is OrderState.FILLED and self.believed(i, seen).terms == more

    def test_modify_on_the_wire_at_a_restart(self, venue: VenueDriver) -> None:
        b, seen = self.changing(venue, "restart")
        i, more = self.order(venue, b, Side.BUY, 10, "99.5"), Terms(D(15), D("99.4"), None)
        self.send(venue, b, seen, i)
        b.modify(i.id, more, venue.now)
        b = venue.restart()
        seen.add(venue.settle())
        (o,) = b.state(venue.now).orders
        assert Terms(o.qty, o.limit, o.stop) in (more, Terms(D(10), D("99.5"), None))
        b.query(i.id, venue.now); seen.add(venue.settle())
        assert seen.last(i.id, K.STATUS).terms == Terms(o.qty, o.limit, o.stop)
        b.cancel(i.id, venue.now); seen.add(venue.settle())
        assert K.CANCELED in seen.kinds[i.id]
        self.agree(venue, b, seen)

    # ---- refusals and ids
    def test_reject_beyond_buying_power(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, int(b.state(venue.now).account.buying_power), "99.5")
        self.send(venue, b, seen, i)
        assert seen.kinds[i.id] == [K.REJECT] and seen.last(i.id, K.REJECT).reason
        b.query(i.id, venue.now); seen.add(venue.settle())
        assert seen.log[-1].kind is K.NOT_FOUND or seen.log[-1].state is OrderState.REJECTED
        assert self.agree(venue, b, seen).orders == ()

    def test_reject_for_no_reason(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue, "reject")
        i = self.order(venue, b, Side.BUY, 10, "100.05")
        self.send(venue, b, seen, i)
        assert seen.kinds[i.id] == [K.REJECT]
        self.agree(venue, b, seen)

    def test_duplicate_id_is_never_a_second_order(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        rest, take = self.order(venue, b, Side.BUY, 10, "99.5"), self.order(venue, b, Side.BUY, 10, "100.05")
        self.send(venue, b, seen, rest, rest, take, take)
        self.send(venue, b, seen, rest, take)
        assert (seen.filled(rest.id), seen.filled(take.id)) == (0, 10)
        st = self.agree(venue, b, seen)
        assert [o.intent_id for o in st.orders] == [rest.id]
        b.cancel(rest.id, venue.now); seen.add(venue.settle())
        self.send(venue, b, seen, rest)
        assert self.agree(venue, b, seen).orders == ()

    # ---- not knowing
    def test_query(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        done, open_, part = (self.order(venue, b, Side.BUY, *a) for a in ((10, "100.05"), (10, "99.5"), (30, "100.05")))
        self.send(venue, b, seen, done, open_, part)
        for i in (done, open_, part): b.query(i.id, venue.now)
        b.query("never-was-one", venue.now); seen.add(venue.settle())
        got = {i.id: (seen.last(i.id, K.STATUS).state, seen.last(i.id, K.STATUS).cum_qty) for i in (done, open_, part)}
        assert got == {done.id: (OrderState.FILLED, 10), open_.id: (OrderState.OPEN, 0), part.id: (OrderState.PARTIAL, 10)}
        assert seen.kinds["never-was-one"] == [K.NOT_FOUND]

    def test_lost_ack_then_query(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue, "lost_ack")
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        assert set(seen.kinds.get(i.id, [])) <= {K.NO_ANSWER}
        b.query(i.id, venue.now); seen.add(venue.settle())
        assert seen.last(i.id, K.STATUS).state is OrderState.OPEN
        assert [o.intent_id for o in self.agree(venue, b, seen).orders] == [i.id]

    def test_line_down_order_never_sent(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue, "disconnect")
        venue.disconnect(10**9)
        i = self.order(venue, b, Side.BUY, 10, "100.05")
        b.submit(i, venue.now)
        b.cancel(i.id, venue.now)
        seen.add(venue.settle())
        assert set(seen.kinds[i.id]) == {K.NO_ANSWER}
        b.query(i.id, venue.now); seen.add(venue.settle())
        assert seen.kinds[i.id][-1] is K.NOT_FOUND
        assert self.agree(venue, b, seen).orders == ()

    @pytest.mark.parametrize("faults", [("duplicate",), ("late",), ("duplicate", "late")], ids="+".join)
    def test_updates_twice_and_out_of_order(self, venue: VenueDriver, faults: tuple[str, ...]) -> None:
        b, seen = self.start(venue, *faults)
        buy, sell = self.order(venue, b, Side.BUY, 50, "100.1"), self.order(venue, b, Side.SELL, 40, "99.9")
        self.send(venue, b, seen, buy, sell)
        b.cancel(sell.id, venue.now); seen.add(venue.settle())
        assert (seen.filled(buy.id), seen.filled(sell.id)) == (50, 40)
        if "duplicate" in faults: assert len([u for u in seen.log if u.kind is K.FILL]) > len(seen.fills)
        self.agree(venue, b, seen)

    # ---- stops and linked orders
    def test_stop_triggers(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        sell, buy = self.order(venue, b, Side.SELL, 10, stop="99.5"), self.order(venue, b, Side.BUY, 10, stop="101", sym=1)
        self.send(venue, b, seen, sell, buy)
        seen.add(venue.row(0, BIDS, ASKS, 99.95, traded=100)); seen.add(venue.row(1, BIDS, ASKS, 100.05, traded=100)); seen.add(venue.settle())
        assert not seen.fills and len(self.agree(venue, b, seen).orders) == 2
        seen.add(venue.row(0, ((99.4, 50.0),), ((99.5, 50.0),), 99.4, traded=10)); seen.add(venue.settle())
        assert (seen.filled(sell.id), seen.filled(buy.id)) == (10, 0)
        seen.add(venue.row(1, ((101.0, 50.0),), ((101.1, 50.0),), 101.05, traded=10)); seen.add(venue.settle())
        assert (seen.last(sell.id, K.FILL).px, seen.last(buy.id, K.FILL).px) == (D("99.4"), D("101.1"))
        self.agree(venue, b, seen)

    def test_native_oco(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        if not b.caps.native_oco: pytest.skip("the venue has no linked orders")
        entry = self.order(venue, b, Side.BUY, 40, "100.1")
        self.send(venue, b, seen, entry)
        target, stop = self.order(venue, b, Side.SELL, 40, "101", oco="pair"), self.order(venue, b, Side.SELL, 40, stop="99", oco="pair")
        self.send(venue, b, seen, target, stop)
        seen.add(venue.row(0, ((101.0, 15.0),), ((101.2, 50.0),), 100.9)); seen.add(venue.settle())
        st = self.agree(venue, b, seen)
        assert {o.intent_id: o.qty - o.filled for o in st.orders} == {target.id: 25, stop.id: 25}
        seen.add(venue.row(0, ((98.9, 500.0),), ((99.0, 50.0),), 98.9, traded=10)); seen.add(venue.settle())
        assert (seen.filled(target.id), seen.filled(stop.id)) == (15, 25)
        assert K.CANCELED in seen.kinds[target.id]
        st = self.agree(venue, b, seen)
        assert st.orders == () and st.positions == ()

    # ---- reconciliation
    def test_state_is_the_sum_of_fills(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue)
        for side, qty, limit, sym in ((1, 25, "100.1", 0), (-1, 40, "99.9", 1), (-1, 60, "99.85", 0), (1, 40, "100.1", 1), (1, 7, "99", 0)):
            self.send(venue, b, seen, self.order(venue, b, Side(side), qty, limit, sym=sym))
        st = self.agree(venue, b, seen)
        assert [(s, q) for s, q, _ in st.positions] == [(venue.universe[0].symbol, -35)] and len(st.orders) == 1

    def test_poll_keeps_time(self, venue: VenueDriver) -> None:
        b, _ = self.start(venue)
        b.submit(self.order(venue, b, Side.BUY, 10, "100.05"), venue.now)
        for _ in range(20):
            t = b.next_ts()
            if t == NEVER: break
            assert t > venue.now and b.poll(t - 1) == [] and b.next_ts() == t
            b.poll(t)
            assert b.poll(t) == [] and b.next_ts() > t
        else: pytest.fail("never quiet")

    def test_restart_finds_everything(self, venue: VenueDriver) -> None:
        b, seen = self.start(venue, "restart")
        done, rest, part = (self.order(venue, b, Side.BUY, *a) for a in ((10, "100.05"), (10, "99.5"), (30, "100.05")))
        self.send(venue, b, seen, done, rest, part)
        before = self.agree(venue, b, seen)
        on_wire = self.order(venue, b, Side.SELL, 5, "99.95")
        b.submit(on_wire, venue.now)
        b = venue.restart()
        after = venue.settle()  # evidence of the order on the wire may come to the new connection
        seen.add([u for u in after if u.kind is not K.FILL or u.exec_id not in seen.fills])
        st = b.state(venue.now)
        assert {o.intent_id for o in before.orders} == {o.intent_id for o in st.orders} == {rest.id, part.id}
        assert {(o.intent_id, o.filled) for o in st.orders} == {(rest.id, 0), (part.id, 10)}
        for i in (done, rest, part, on_wire): b.query(i.id, venue.now)
        seen.add(venue.settle())
        assert [seen.last(i.id, K.STATUS).state for i in (done, rest, part)] == [OrderState.FILLED, OrderState.OPEN, OrderState.PARTIAL]
        seen.add(b.state(venue.now).fills)
        self.agree(venue, b, seen)
        self.send(venue, b, seen, done, rest)
        b.cancel(rest.id, venue.now); seen.add(venue.settle())
        assert K.CANCELED in seen.kinds[rest.id]
        self.agree(venue, b, seen)
