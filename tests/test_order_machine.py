"""A hostile broker (lost, late, repeated and shuffled evidence, crashes) against the order manager."""
import json
from dataclasses import replace
from decimal import Decimal as D
from itertools import permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scalp_nb.order.machine import (
    anomalies,
    apply_cancel,
    apply_modify,
    apply_sent,
    is_contradicted,
    is_ghost,
    missing_fills,
    pending_close,
    step,
    told,
)
from scalp_nb.order.manager import NEVER, DuplicateOrder, OrderManager, check_shape
from scalp_nb.order.types import TERMINAL, Intent, Order, OrderError, OrderState, OrderType, Purpose, Side, Terms, Tif, Update, UpdateKind

K, S, P = UpdateKind, OrderState, Purpose
MS = 10**6
INTENT = Intent("id1", 1, 1, "a", "s", "X", 0, Side.BUY, P.ENTRY, D(10), OrderType.LIMIT, D(100), None, Tif.DAY, D(100))

# ---------------------------------------------------------------- one order, any evidence whatever

quantities = st.sampled_from([D(0), D(1), D(3), D(7), D(10), D(12), D(-1), D("nan"), D("inf")])
updates = st.builds(Update, ts=st.integers(0, 9), client_id=st.just("id1"), kind=st.sampled_from(K), venue_id=st.sampled_from(["", "v"]),
                    exec_id=st.sampled_from(["", "e1", "e2", "e3"]), qty=quantities, px=quantities, cum_qty=st.none() | quantities,
                    state=st.none() | st.sampled_from(S), reason=st.sampled_from(["", "margin"]),
                    terms=st.none() | st.builds(Terms, qty=quantities, limit=st.sampled_from([D(100), D(101), None]), stop=st.just(None)))
started = st.sampled_from([Order(INTENT, S.INTENT), Order(INTENT, S.SENT)]) | st.builds(
    lambda qty: apply_modify(Order(INTENT, S.OPEN), Terms(qty, D(100), None), 1), st.sampled_from([D(3), D(12)]))


@settings(max_examples=500, deadline=None)
@example(Order(INTENT, S.INTENT), [Update(0, "id1", K.NO_ANSWER), Update(0, "id1", K.NOT_FOUND), Update(0, "id1", K.REJECT, cum_qty=D(1))])
@given(started, st.lists(updates, max_size=12))
def test_any_evidence_counts_each_execution_once_and_is_idempotent(order, bag):
    counted = {}
    for u in bag:
        anomalies(order, u)  # total as well
        before, (order, fill) = order, step(order, u)
        if fill is not None:
            assert u.kind is K.FILL and u.exec_id not in counted
            counted[u.exec_id] = fill.qty * 1
        elif u.kind is K.FILL: assert u.exec_id in counted or "malformed_fill" in (order.reason,) or pending_close(order)
        assert step(order, u) == (order, None)
        assert order.filled == sum(counted.values(), D(0)) and order.exec_ids == counted.keys()
        if order.state is S.FILLED: assert order.filled >= order.intent.qty
        if order.filled >= order.most and order.state is not S.UNKNOWN and order.intent.qty == before.intent.qty: assert order.state is S.FILLED
        if order.state in TERMINAL: assert order.asked is None
        if before.asked and order.live and not order.asked: assert u.terms is not None or u.kind is K.MODIFY_REJECTED   # no timer, no silence
        assert order.intent == replace(INTENT, qty=order.intent.qty, limit=order.intent.limit) and order.intent.qty > 0
        if before.state is S.UNKNOWN and order.state is not S.UNKNOWN: assert u.kind not in (K.NO_ANSWER, K.CANCEL_REJECTED)
        if order.state is S.UNKNOWN and before.state in (S.INTENT, S.SENT):
            assert u.kind is K.NO_ANSWER or pending_close(order) or is_contradicted(order)
        if pending_close(order): assert missing_fills(order, u) > 0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_true_evidence_ends_the_same_in_any_order(data):
    cut = data.draw(st.integers(0, 3))
    fills = [Update(1, "id1", K.FILL, exec_id=f"e{n}", qty=D(q), px=D(100)) for n, q in enumerate((2, 3, 5)[:cut])]
    done = sum((u.qty for u in fills), D(0))
    end = [] if done == 10 else [Update(1, "id1", data.draw(st.sampled_from([K.CANCELED, K.EXPIRED])), cum_qty=done)]
    bag = [Update(1, "id1", K.ACK, venue_id="v"), *fills, *end]
    want = S.FILLED if done == 10 else S(end[0].kind.value)
    for p in permutations(bag):
        order = Order(INTENT, S.SENT)
        for u in (*p, *data.draw(st.permutations(p))): order, _ = step(order, u)
        assert (order.state, order.filled, order.notional) == (want, done, done * 100)


def test_refusals():
    with pytest.raises(OrderError, match="another order"): step(Order(INTENT, S.SENT), Update(1, "x", K.ACK))
    with pytest.raises(OrderError, match="sent twice"): apply_sent(Order(INTENT, S.SENT, sent_ts=1), 2)
    with pytest.raises(OrderError, match="quantity"): check_shape(D(0), OrderType.MARKET, None, None, D(1))
    with pytest.raises(OrderError, match="prices of a"): check_shape(D(1), OrderType.STOP, D(1), None, D(1))
    with pytest.raises(OrderError, match="requery_ns"): OrderManager("a", "s", requery_ns=0)
    m = OrderManager("a", "s")
    with pytest.raises(OrderError, match="unknown client order id"): m.sent("nobody", 1)
    with pytest.raises(OrderError, match="another order manager"): m.restore({"version": 1, "account": "b", "strategy": "s"})
    x = decide(m, 0)
    m.accept(x)
    with pytest.raises(DuplicateOrder, match="already used"): m.accept(x)
    assert apply_sent(Order(INTENT, S.PARTIAL, filled=D(1)), 7).state is S.PARTIAL
    assert apply_cancel(Order(INTENT, S.FILLED), 7).cancel_ts == 0
    assert not is_ghost(Order(INTENT, S.REJECTED)) and told(Update(1, "id1", K.ACK, cum_qty=D("nan"))) == 0


@pytest.mark.parametrize(("state", "filled", "u", "expect"), [
    (S.REJECTED, 0, Update(1, "id1", K.FILL, exec_id="e", qty=D(3), px=D(1)), ("late_fill", "fill_after_reject")),
    (S.CANCELED, 0, Update(1, "id1", K.FILL, exec_id="e", qty=D(3), px=D(1)), ("late_fill",)),
    (S.PARTIAL, 8, Update(1, "id1", K.FILL, exec_id="e", qty=D(3), px=D(1)), ("overfill",)),
    (S.PARTIAL, 8, Update(1, "id1", K.REJECT), ("reject_after_fill",)),
    (S.OPEN, 0, Update(1, "id1", K.NOT_FOUND), ("vanished",)),
    (S.OPEN, 0, Update(1, "id1", K.STATUS, state=S.CANCELED, cum_qty=D(3)), ("missing_fills",)),
    (S.CANCELED, 0, Update(1, "id1", K.STATUS, state=S.OPEN), ("stale_status",)),
    (S.OPEN, 0, Update(1, "id1", K.CANCEL_REJECTED), ()),
    (S.FILLED, 10, Update(1, "id1", K.CANCEL_REJECTED), ()),
    (S.OPEN, 0, Update(1, "id1", K.NO_ANSWER), ()),
])
def test_anomalies(state, filled, u, expect): assert anomalies(Order(INTENT, state, filled=D(filled)), u) == expect


def test_ghost_rejected_for_good_and_resurrected():
    ghost = Order(INTENT, S.REJECTED, reason="not_found")
    assert step(ghost, Update(1, "id1", K.REJECT, reason="margin"))[0].reason == "margin"
    assert anomalies(ghost, Update(1, "id1", K.ACK)) == ("resurrected",)
    assert step(ghost, Update(1, "id1", K.FILL, exec_id="e", qty=D(3), px=D(1)))[0].state is S.PARTIAL


# ---------------------------------------------------------------- many orders, a hostile broker


def decide(m, sym, ts=1, side=Side.BUY, purpose=P.ENTRY, qty=10, parent=""):
    return m.next_intent(ts=ts, sym=sym, symbol=f"S{sym}", side=side, purpose=purpose, qty=D(qty), type=OrderType.LIMIT, limit=D(100), stop=None,
                         tif=Tif.DAY, ref_px=D(100), parent=parent)


class Hostile(RuleBasedStateMachine):
    "`truth` is what the broker knows; `bag` what it has said and we have not heard; `said` everything it ever said."
    def __init__(self):
        super().__init__()
        self.m = OrderManager("a", "s", ack_timeout_ns=100 * MS, stale_ns=500 * MS, requery_ns=50 * MS, settle_ns=150 * MS)
        self.ts, self.n = 1, 0
        self.truth, self.bag, self.said = {}, [], []
        self.heard = {}   # id -> {exec_id: qty} as delivered
        self.seqs = set()

    def say(self, key, kind, **kw):
        u = Update(self.ts, key, kind, **kw)
        self.bag.append(u), self.said.append(u)

    def hear(self, u):
        before = self.m.orders.get(u.client_id)
        out = self.m.on_update(u)
        if u.kind is K.FILL:
            known = self.heard.setdefault(u.client_id, {})
            assert (out.fill is None) == (u.exec_id in known)
            known[u.exec_id] = u.qty
        if before.state is S.UNKNOWN and out.order.state is not S.UNKNOWN: assert u.kind not in (K.NO_ANSWER, K.CANCEL_REJECTED)

    @rule(sym=st.integers(0, 1), side=st.sampled_from(Side), purpose=st.sampled_from([P.ENTRY, P.ENTRY, P.EXIT, P.STOP]),
          arrives=st.booleans(), noted=st.booleans(), parent=st.sampled_from(["", "p"]))
    def submit(self, sym, side, purpose, arrives, noted, parent):
        try: intent = decide(self.m, sym, self.ts, side, purpose, parent=parent)
        except DuplicateOrder: return
        assert intent.seq not in self.seqs
        self.seqs.add(intent.seq)
        self.m.accept(intent)
        if arrives or noted: self.m.sent(intent.id, self.ts)
        if arrives: self.truth[intent.id] = {"state": S.OPEN, "fills": {}, "sym": sym, "purpose": purpose}

    def live_truth(self): return sorted(k for k, t in self.truth.items() if t["state"] is S.OPEN)

    @precondition(lambda self: self.live_truth())
    @rule(data=st.data(), act=st.sampled_from(["ack", "fill", "fill", "end", "reject"]), quiet=st.booleans())
    def broker_acts(self, data, act, quiet):
        key = data.draw(st.sampled_from(self.live_truth()))
        t = self.truth[key]
        done = sum(t["fills"].values(), D(0))
        if act == "ack": self.say(key, K.ACK, venue_id="v" + key, cum_qty=done)
        elif act == "fill":
            self.n += 1
            q = D(data.draw(st.integers(1, int(10 - done))))
            t["fills"][f"e{self.n}"] = q
            if done + q == 10: t["state"] = S.FILLED
            self.say(key, K.FILL, exec_id=f"e{self.n}", qty=q, px=D(100), cum_qty=None if quiet else done + q)
        elif act == "reject" and not done:
            t["state"] = S.REJECTED
            if not quiet: self.say(key, K.REJECT)
        elif act == "end":
            t["state"] = data.draw(st.sampled_from([S.CANCELED, S.EXPIRED]))
            if not quiet: self.say(key, K(t["state"].value), cum_qty=done)

    @precondition(lambda self: self.bag)
    @rule(data=st.data())
    def deliver(self, data): self.hear(self.bag.pop(data.draw(st.integers(0, len(self.bag) - 1))))

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def repeat(self, data):  # what was once heard is heard again
        u = data.draw(st.sampled_from(self.said))
        if u not in self.bag:
            self.ts += 1
            self.hear(u)

    @precondition(lambda self: self.m.working())
    @rule(data=st.data(), kind=st.sampled_from([K.NO_ANSWER, K.CANCEL_REJECTED, None]))
    def cancel(self, data, kind):
        key = data.draw(st.sampled_from([o.intent.id for o in self.m.working()]))
        self.m.cancel_requested(key, self.ts)
        if kind: self.say(key, kind)

    @rule(ms=st.integers(1, 300), answers=st.booleans())
    def time_passes(self, ms, answers):
        self.ts += ms * MS
        unknown = {o.intent.id for o in self.m.working() if o.state is S.UNKNOWN}
        due = self.m.due(self.ts)
        assert all(self.m.orders[k].state is S.UNKNOWN for k in unknown)  # time decides nothing
        assert self.m.due(self.ts) == [] and all(o.live for o in due)
        assert min((self.m._ask_at(o) for o in self.m.working()), default=NEVER) > self.ts
        for o in due:
            if answers: self.answer(o.intent.id)
        for o in self.m.stale(self.ts): self.m.cancel_requested(o.intent.id, self.ts)
        assert self.m.next_deadline() > self.ts

    def answer(self, key):
        t = self.truth.get(key)
        if t is None: self.say(key, K.NOT_FOUND)
        else: self.say(key, K.STATUS, state=t["state"], cum_qty=sum(t["fills"].values(), D(0)))

    @rule()
    def crash(self):
        fresh = OrderManager("a", "s", ack_timeout_ns=100 * MS, stale_ns=500 * MS, requery_ns=50 * MS, settle_ns=150 * MS)
        fresh.restore(json.loads(json.dumps(self.m.snapshot())))
        assert fresh.snapshot() == self.m.snapshot() and fresh.orders == self.m.orders
        assert fresh.working() == self.m.working() and fresh.next_deadline() == self.m.next_deadline()
        assert fresh.family(0, "p") == self.m.family(0, "p")
        fresh.recover(self.ts)
        assert all(o.state not in (S.INTENT, S.SENT) for o in fresh.working())
        self.m = fresh

    @invariant()
    def every_delivered_execution_is_counted_once(self):
        for key, o in self.m.orders.items(): assert o.filled == sum(self.heard.get(key, {}).values(), D(0))

    @invariant()
    def one_live_entry_per_symbol(self):
        for sym in (0, 1):
            assert sum(o.intent.purpose is P.ENTRY for o in self.m.working(sym)) <= 1
            assert sum(t["sym"] == sym and t["purpose"] is P.ENTRY and t["state"] is S.OPEN for t in self.truth.values()) <= 1

    @invariant()
    def finished_means_finished_there(self):
        for key, o in self.m.orders.items():
            if o.state in TERMINAL and key in self.truth:
                assert self.truth[key]["state"] is not S.OPEN
                assert o.filled == sum(self.truth[key]["fills"].values(), D(0))  # nothing is called finished while an execution is missing

    def teardown(self):
        "When everything was said and every question answered, both sides agree."
        for _ in range(12):
            for key, t in self.truth.items():
                for e, q in t["fills"].items():
                    if e not in self.heard.get(key, {}): self.hear(Update(self.ts, key, K.FILL, exec_id=e, qty=q, px=D(100)))
            while self.bag: self.hear(self.bag.pop())
            self.ts += 10**9
            for o in self.m.due(self.ts): self.answer(o.intent.id)
        for o in self.m.working():  # open orders nobody had a question about
            self.answer(o.intent.id)
            self.hear(self.bag.pop())
        for key, o in self.m.orders.items():
            t = self.truth.get(key)
            if t is None: assert o.state is S.REJECTED and is_ghost(o)
            else:
                assert o.filled == sum(t["fills"].values(), D(0))
                assert o.state is t["state"] or (o.state, t["state"]) == (S.PARTIAL, S.OPEN)


Hostile.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestHostile = Hostile.TestCase


def test_forget_keeps_families_of_what_remains():
    m = OrderManager("a", "s")
    a, b = (m.accept(decide(m, s, parent="p")).intent.id for s in (0, 1))
    m.on_update(Update(5, a, K.REJECT))
    assert [o.intent.id for o in m.family(0, "p")] == [a, b]
    assert (m.forget(5), m.forget(6)) == (0, 1)
    assert [o.intent.id for o in m.family(0, "p")] == [b]
    assert m.on_update(Update(7, a, K.ACK)).anomaly == "orphan" and m.on_update(Update(7, a, K.ACK)).order is None and len(m.orphans) == 1
    assert m.ask(b, 10) and not m.ask(b, 11)


def test_no_such_order_is_not_believed_while_the_submit_may_be_on_its_way():
    m = OrderManager("a", "s", settle_ns=100)
    key = m.accept(decide(m, 0, ts=1)).intent.id
    m.sent(key, 1)
    m.on_update(Update(2, key, K.NO_ANSWER))
    assert m.on_update(Update(100, key, K.NOT_FOUND)).anomaly == "early_not_found" and m.symbol_blocked(0)
    assert m.on_update(Update(101, key, K.NOT_FOUND)).order.state is S.REJECTED


@pytest.mark.parametrize("u", [Update(1, "id1", K.CANCELED, cum_qty=D(5)), Update(1, "id1", K.STATUS, state=S.CANCELED, cum_qty=D(5))])
def test_a_cancelled_order_is_not_finished_while_executions_are_missing(u):
    order, fill = step(Order(INTENT, S.OPEN), u)
    assert fill is None and order.state is S.UNKNOWN and order.filled == 0 and missing_fills(order, u) == 5
    for n, want in ((1, S.UNKNOWN), (2, S.CANCELED)):
        order, fill = step(order, Update(2, "id1", K.FILL, exec_id=f"e{n}", qty=D("2.5"), px=D(1)))
        assert fill.qty == D("2.5") and order.state is want
