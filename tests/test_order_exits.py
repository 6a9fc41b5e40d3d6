"""The exit planner against a small exchange that fills, cancels, rejects and loses answers as it likes."""
import json
from dataclasses import dataclass, field
from decimal import Decimal as D
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scalp_nb.order.exits import (
    Ask,
    CancelOrder,
    Change,
    ExitConfig,
    ExitView,
    Lifecycle,
    Place,
    levels,
    lifecycle,
    plan_deadline,
    plan_exits,
    stop_type,
    through_stop,
    touch,
)
from scalp_nb.order.machine import amended
from scalp_nb.order.manager import DuplicateOrder, OrderManager
from scalp_nb.order.position import PositionBook
from scalp_nb.order.types import Order, OrderError, OrderState, OrderType, Purpose, Side, Terms, Tif, Update, UpdateKind

K, S, P, T = UpdateKind, OrderState, Purpose, OrderType
MS, SEC, SYM = 10**6, 10**9, 0
PICK = st.integers(0, 10**6)
FATES = ["ack", "ack", "ack", "ack", "silent", "lost", "reject"]
CANCEL_FATES = ["ok", "ok", "ok", "lost", "no_answer", "refuse"]
MODIFY_FATES = ["ok", "ok", "ok", "silent", "unanswered", "late", "late_unanswered", "lost", "no_answer", "refuse"]


def choose(items, pick): return items[pick % len(items)]


def rnd(px, d): return (px / D("0.05")).to_integral_value("ROUND_CEILING" if d > 0 else "ROUND_FLOOR") * D("0.05")


@dataclass(frozen=True)
class Caps:
    order_types: frozenset = frozenset({T.LIMIT, T.STOP_LIMIT})
    tifs: frozenset = frozenset({Tif.DAY})
    native_oco: bool = False
    modifies: int = 0


@dataclass
class Venue:
    "The truth: orders, executions, position. A native OCO group shares one quantity and ends together."
    native_oco: bool
    orders: dict = field(default_factory=dict)  # id -> [intent, state, filled]
    out: list = field(default_factory=list)     # said and not yet heard
    heard: list = field(default_factory=list)   # said and heard
    late: list = field(default_factory=list)    # changes that take effect some time
    pos: D = D(0)
    n: int = 0

    def say(self, key, kind, ts, **kw): self.out.append(Update(ts, key, kind, **kw))

    def group(self, key):
        i = self.orders[key][0]
        return [k for k, o in self.orders.items() if k == key or (self.native_oco and i.oco and o[0].oco == i.oco)]

    def leaves(self, key): return self.orders[key][0].qty - sum(self.orders[k][2] for k in self.group(key))
    def live(self): return sorted(k for k, o in self.orders.items() if o[1] is S.OPEN)

    def end(self, key, state, ts, quiet=False):
        self.orders[key][1] = state
        if not quiet: self.say(key, K(state.value), ts, cum_qty=self.orders[key][2])

    def submit(self, intent, fate, ts):
        if fate == "lost": return
        assert intent.id not in self.orders, "one order per intent, ever"
        self.orders[intent.id] = [intent, S.OPEN, D(0)]
        if fate == "reject":
            self.orders[intent.id][1] = S.REJECTED
            self.say(intent.id, K.REJECT, ts)
        elif fate == "ack": self.say(intent.id, K.ACK, ts)

    def fill(self, key, qty, ts, quiet=False):
        o = self.orders[key]
        self.n += 1
        o[2] += qty
        self.pos += o[0].side * qty
        done = self.leaves(key) == 0
        if done: o[1] = S.FILLED if o[2] == o[0].qty else S.CANCELED
        self.say(key, K.FILL, ts, exec_id=f"e{self.n}", qty=qty, px=D(100), cum_qty=None if quiet else o[2])
        for k in self.group(key) if done else ():
            if k != key and self.orders[k][1] is S.OPEN: self.end(k, S.CANCELED, ts)
        if done and o[1] is S.CANCELED: self.say(key, K.CANCELED, ts, cum_qty=o[2])

    def cancel(self, key, fate, ts):
        o = self.orders.get(key)
        if fate == "lost": return
        if fate == "no_answer": return self.say(key, K.NO_ANSWER, ts)
        if o is None or o[1] is not S.OPEN or fate == "refuse": return self.say(key, K.CANCEL_REJECTED, ts)
        for k in self.group(key):
            if self.orders[k][1] is S.OPEN: self.end(k, S.CANCELED, ts)

    def modify(self, key, terms, fate, ts):
        if fate in ("no_answer", "unanswered", "late_unanswered"): self.say(key, K.MODIFY_NO_ANSWER, ts)
        if fate in ("late", "late_unanswered"): self.late.append((key, terms))
        if fate == "refuse": self.say(key, K.MODIFY_REJECTED, ts)
        if fate in ("ok", "silent", "unanswered"): self.change(key, terms, ts, quiet=fate != "ok")

    def change(self, key, terms, ts, quiet=False):
        o = self.orders[key]
        if o[1] is S.OPEN and terms.qty > o[2]: o[0] = amended(o[0], terms)
        if not quiet: self.say(key, K.MODIFIED if o[1] is S.OPEN else K.MODIFY_REJECTED, ts, terms=terms_of(o) if o[1] is S.OPEN else None)

    def query(self, key, ts):
        if key not in self.orders: return self.say(key, K.NOT_FOUND, ts)
        _, state, filled = self.orders[key]
        self.say(key, K.STATUS, ts, state=state, cum_qty=filled, terms=terms_of(self.orders[key]) if state is S.OPEN else None)


def terms_of(o): return Terms(o[0].qty, o[0].limit, o[0].stop)


class Exits(RuleBasedStateMachine):
    "A minimal trader around the real manager, book and planner."
    @initialize(mode=st.sampled_from(["venue_stop", "oco", "local"]), native=st.booleans(), market=st.booleans(), plain=st.booleans(),
                modifies=st.sampled_from([0, 1, 3, 20]))
    def start(self, mode, native, market, plain, modifies):
        types = {T.LIMIT, T.STOP_LIMIT} | ({T.STOP, T.MARKET} if plain else set())
        self.caps = Caps(frozenset(types), native_oco=native, modifies=modifies)
        self.cfg = ExitConfig(mode=mode, allow_market=market, reprice_ms=100)
        self.venue = Venue(native)
        self.m, self.book = self.manager(), PositionBook(D(10**6))
        self.ts, self.bid, self.ask, self.trigger, self.entry = SEC, 99.95, 100.05, "", ""

    def manager(self): return OrderManager("a", "s", ack_timeout_ns=200 * MS, stale_ns=10**18, requery_ns=100 * MS, settle_ns=300 * MS)

    # ------------------------------------------------------------ the trader
    def view(self): return ExitView(SYM, self.book.qty(SYM), self.book.avg_px(SYM), self.entry, self.bid, self.ask, self.ts, self.trigger)
    def plan(self): return plan_exits(self.view(), self.m.family(SYM, self.entry), self.cfg, self.caps, rnd)

    def converge(self, fate="ack", cancel_fate="ok", modify_fate="ok"):
        for _ in range(20):
            acts = [a for a in self.plan() if not isinstance(a, Ask)]
            for a in self.plan():
                if isinstance(a, Ask) and self.m.ask(a.client_id, self.ts): self.venue.query(a.client_id, self.ts)
            if not acts: break
            for a in acts: self.act(a, fate, cancel_fate, modify_fate)
        else: raise AssertionError(f"the planner does not converge: {acts}")
        if self.book.qty(SYM) == 0 and not self.m.working(SYM): self.trigger = ""

    def act(self, a, fate, cancel_fate, modify_fate):
        if isinstance(a, Change):
            o = self.m.order(a.client_id)
            assert o.intent.purpose is P.STOP and not o.filled and o.leaves < a.terms.qty == abs(self.book.qty(SYM))
            self.m.modify_requested(a.client_id, a.terms, self.ts)
            assert self.m.order(a.client_id).changes <= self.caps.modifies
            self.venue.modify(a.client_id, a.terms, modify_fate, self.ts)
            return
        if isinstance(a, CancelOrder):
            self.m.cancel_requested(a.client_id, self.ts)
            self.venue.cancel(a.client_id, cancel_fate, self.ts)
            return
        assert isinstance(a, Place) and a.purpose is not P.ENTRY and a.type in self.caps.order_types
        assert a.side is self.view().side.opposite and 0 < a.qty <= abs(self.book.qty(SYM))
        i = self.m.next_intent(ts=self.ts, sym=SYM, symbol="X", side=a.side, purpose=a.purpose, qty=a.qty, type=a.type, limit=a.limit, stop=a.stop,
                               tif=a.tif, ref_px=D(100), parent=self.entry, reason=a.reason, oco=a.oco)
        self.send(i, fate)

    def send(self, intent, fate):
        self.m.accept(intent)
        self.m.sent(intent.id, self.ts)
        self.venue.submit(intent, fate, self.ts)
        return intent.id

    def hear(self, u):
        if u not in self.venue.heard: self.venue.heard.append(u)
        out = self.m.on_update(u)
        if out.fill: self.book.apply(out.fill, D("0.01"))

    # ------------------------------------------------------------ what happens
    @precondition(lambda self: not self.book.qty(SYM) and not self.m.working(SYM) and not self.trigger)
    @rule(side=st.sampled_from(Side), qty=st.integers(1, 10), fate=st.sampled_from(FATES))
    def enter(self, side, qty, fate):
        i = self.m.next_intent(ts=self.ts, sym=SYM, symbol="X", side=side, purpose=P.ENTRY, qty=D(qty), type=T.LIMIT, limit=D(100), stop=None,
                               tif=Tif.DAY, ref_px=D(100))
        self.entry = self.send(i, fate)
        with pytest.raises(DuplicateOrder):
            self.m.next_intent(ts=self.ts, sym=SYM, symbol="X", side=side.opposite, purpose=P.ENTRY, qty=D(1), type=T.LIMIT, limit=D(100), stop=None,
                               tif=Tif.DAY, ref_px=D(100))

    @precondition(lambda self: self.venue.live())
    @rule(pick=PICK, qty=PICK, quiet=st.booleans())
    def venue_fills(self, pick, qty, quiet):
        key = choose(self.venue.live(), pick)
        self.venue.fill(key, D(1 + qty % int(self.venue.leaves(key))), self.ts, quiet)

    @precondition(lambda self: self.venue.live())
    @rule(pick=PICK, state=st.sampled_from([S.CANCELED, S.EXPIRED]), quiet=st.booleans())
    def venue_ends_an_order(self, pick, state, quiet): self.venue.end(choose(self.venue.live(), pick), state, self.ts, quiet)

    @precondition(lambda self: self.venue.out)
    @rule(pick=PICK, fate=st.sampled_from(FATES), cancel_fate=st.sampled_from(CANCEL_FATES), modify_fate=st.sampled_from(MODIFY_FATES),
          all_=st.booleans())
    def deliver(self, pick, fate, cancel_fate, modify_fate, all_):
        for _ in range(len(self.venue.out) if all_ else 1): self.hear(self.venue.out.pop(pick % len(self.venue.out)))
        self.converge(fate, cancel_fate, modify_fate)

    @precondition(lambda self: self.venue.late)
    @rule(pick=PICK, quiet=st.booleans())
    def a_late_change_takes_effect(self, pick, quiet): self.venue.change(*self.venue.late.pop(pick % len(self.venue.late)), self.ts, quiet)

    @precondition(lambda self: self.venue.heard)
    @rule(pick=PICK)
    def deliver_again(self, pick):
        u = choose(self.venue.heard, pick)
        if u.kind in (K.FILL, K.ACK, K.CANCELED, K.EXPIRED, K.MODIFIED, K.MODIFY_REJECTED):
            assert self.m.on_update(u).fill is None
            self.converge()

    @rule(why=st.sampled_from(["stop", "target", "opposite", "time", "square_off", "flatten"]))
    def trigger_fires(self, why):
        if self.book.qty(SYM) or self.m.working(SYM): self.trigger = why
        self.converge()

    @rule(mid=st.sampled_from([98.0, 99.7, 100.0, 100.3, 102.0]), missing=st.sampled_from(["", "bid", "ask", "both"]))
    def market_moves(self, mid, missing):
        self.bid = float("nan") if missing in ("bid", "both") else mid - 0.05
        self.ask = float("nan") if missing in ("ask", "both") else mid + 0.05
        self.converge()

    @rule(ms=st.integers(1, 400), answers=st.booleans(), fate=st.sampled_from(["ack", "reject", "lost"]))
    def time_passes(self, ms, answers, fate):
        self.ts += ms * MS
        for o in self.m.due(self.ts):
            if answers: self.venue.query(o.intent.id, self.ts)
        self.converge(fate)
        assert plan_deadline(self.view(), self.m.family(SYM, self.entry), self.cfg) > self.ts

    @rule()
    def restart(self):
        m, book = self.manager(), PositionBook(D(0))
        m.restore(json.loads(json.dumps(self.m.snapshot())))
        book.restore(json.loads(json.dumps(self.book.snapshot())))
        before = self.plan()
        self.m, self.book = m, book
        assert self.plan() == before
        m.recover(self.ts)
        self.converge()

    # ------------------------------------------------------------ what must hold
    def exits_at_venue(self): return [k for k in self.venue.live() if self.venue.orders[k][0].purpose is not P.ENTRY]

    @invariant()
    def reduce_only_at_the_venue(self):
        if not hasattr(self, "venue"): return
        groups = {}
        for k in self.exits_at_venue():
            i = self.venue.orders[k][0]
            groups.setdefault((i.side, i.oco if self.caps.native_oco and i.oco else k), self.venue.leaves(k))
        for side in Side:
            total = sum((q for (s, _), q in groups.items() if s is side), D(0))
            assert total <= max(-side * self.venue.pos, D(0)), "working exits exceed the position"

    @invariant()
    def books_are_the_heard_executions(self):
        if not hasattr(self, "venue"): return
        heard = {(u.client_id, u.exec_id): self.venue.orders[u.client_id][0].side * u.qty for u in self.venue.heard if u.kind is K.FILL}
        assert self.book.qty(SYM) == sum(heard.values(), D(0))
        assert self.book.equity({SYM: D(100)}) == D(10**6) + self.book.realised + self.book.unrealised(SYM, D(100)) - self.book.fees

    @rule()
    def settle(self):
        "A venue that answers everything, a book that is there: the planner reaches its goal and stays there."
        self.bid, self.ask = 99.95, 100.05
        while self.venue.late: self.venue.change(*self.venue.late.pop(), self.ts, quiet=True)
        for _ in range(12):
            while self.venue.out: self.hear(self.venue.out.pop(0))
            self.converge()
            self.ts += 7 * SEC
            for o in self.m.due(self.ts): self.venue.query(o.intent.id, self.ts)
            for o in self.m.working(SYM): self.venue.query(o.intent.id, self.ts)  # a reconciliation
        assert not self.venue.out or not self.plan()
        while self.venue.out: self.hear(self.venue.out.pop(0))
        self.goal()

    def goal(self):
        assert self.venue.pos == self.book.qty(SYM)
        exits, pos = [self.venue.orders[k][0] for k in self.exits_at_venue()], abs(self.venue.pos)
        assert sorted(i.id for i in exits) == sorted(o.intent.id for o in self.m.working(SYM) if o.intent.purpose is not P.ENTRY)
        for i in exits: assert self.m.order(i.id).terms == terms_of([i]) and self.m.order(i.id).asked is None
        if not pos: assert not exits and not (self.trigger and self.venue.live())  # a trigger cancels the entry as well
        elif self.trigger or any(i.purpose in (P.EXIT, P.FLATTEN) for i in exits):
            assert len(exits) == 1 and self.venue.leaves(exits[0].id) == pos and exits[0].purpose in (P.EXIT, P.FLATTEN)
            assert lifecycle(self.book.qty(SYM), self.m.working(SYM)) is Lifecycle.EXITING
        elif self.cfg.mode == "local": assert not exits
        else:
            want = [P.STOP, P.TARGET] if self.cfg.mode == "oco" and self.caps.native_oco else [P.STOP]
            assert [i.purpose for i in exits] == want or sorted(i.purpose for i in exits) == sorted(want)
            assert all(self.venue.leaves(i.id) == pos for i in exits)

    def teardown(self):
        if hasattr(self, "venue"): self.settle()


Exits.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestExits = Exits.TestCase


# ---------------------------------------------------------------- the same machine, driven by dice that know where trouble is


def walk(seed, steps=80):
    r, x = Random(seed), Exits()
    x.start(r.choice(["venue_stop", "oco", "oco", "local"]), r.random() < 0.7, r.random() < 0.3, r.random() < 0.3, r.choice([0, 2, 20, 20]))
    for _ in range(steps):
        pick, p, fate = r.randrange(10**6), r.random(), r.choice(FATES)
        can_enter = not x.book.qty(SYM) and not x.m.working(SYM) and not x.trigger
        if can_enter and p < 0.9: x.enter(r.choice(list(Side)), r.randint(1, 10), fate)
        elif x.venue.late and p < 0.1: x.a_late_change_takes_effect(pick, r.random() < 0.5)
        elif x.venue.out and p < 0.55: x.deliver(pick, fate, r.choice(CANCEL_FATES), r.choice(MODIFY_FATES), r.random() < 0.7)
        elif x.venue.live() and p < 0.75: x.venue_fills(pick, r.randrange(10**6), r.random() < 0.5)
        elif x.venue.live() and p < 0.78: x.venue_ends_an_order(pick, r.choice([S.CANCELED, S.EXPIRED]), r.random() < 0.5)
        elif p < 0.90: x.time_passes(r.randint(1, 400), r.random() < 0.8, r.choice(["ack", "ack", "reject", "lost"]))
        elif p < 0.93: x.trigger_fires(r.choice(["stop", "target", "opposite", "flatten"]))
        elif p < 0.95: x.market_moves(r.choice([98.0, 99.7, 100.0, 100.3, 102.0]), r.choice(["", "", "bid", "ask", "both"]))
        elif x.venue.heard and p < 0.97: x.deliver_again(pick)
        elif p < 0.99: x.restart()
        else: x.settle()
        x.reduce_only_at_the_venue(), x.books_are_the_heard_executions()
    x.settle()
    return x


@pytest.mark.parametrize("block", range(8))
def test_random_walks(block):
    for seed in range(block * 50, block * 50 + 50):
        try: walk(seed)
        except BaseException as e:
            e.add_note(f"seed {seed}")
            raise


def growing(seed):
    "Entries that fill in small pieces, so that their stop grows again and again while the venue does as it likes with each change."
    r, x = Random(seed), Exits()
    x.start("venue_stop", False, False, False, r.choice([1, 20, 20]))
    for _ in range(60):
        pick, p = r.randrange(10**6), r.random()
        entries = [k for k in x.venue.live() if x.venue.orders[k][0].purpose is P.ENTRY]
        if not x.book.qty(SYM) and not x.m.working(SYM) and not x.trigger: x.enter(r.choice(list(Side)), 30, "ack")
        elif x.venue.out and p < 0.5: x.deliver(pick, "ack", r.choice(CANCEL_FATES), r.choice(MODIFY_FATES), r.random() < 0.6)
        elif entries and p < 0.7: x.venue.fill(entries[0], D(1 + pick % min(4, int(x.venue.leaves(entries[0])))), x.ts)
        elif x.venue.live() and p < 0.78: x.venue_fills(pick, r.randrange(4), False)
        elif x.venue.late and p < 0.82: x.a_late_change_takes_effect(pick, r.random() < 0.5)
        elif p < 0.92: x.time_passes(r.randint(1, 400), r.random() < 0.8, "ack")
        elif x.venue.heard and p < 0.94: x.deliver_again(pick)
        elif p < 0.96: x.restart()
        elif p < 0.98: x.trigger_fires("opposite")
        x.reduce_only_at_the_venue(), x.books_are_the_heard_executions()
    x.settle()
    return sum(o.changes for o in x.m.orders.values())


def test_a_stop_that_grows_whatever_becomes_of_its_changes():
    changes = []
    for seed in range(300):
        try: changes.append(growing(seed))
        except BaseException as e:
            e.add_note(f"seed {seed}")
            raise
    assert sum(changes) > 500


# ---------------------------------------------------------------- single cases the machine meets rarely

CFG = ExitConfig()


def view(qty, trigger="", bid=99.95, ask=100.05, ts=100 * SEC): return ExitView(SYM, D(qty), D(100), "en", bid, ask, ts, trigger)


def placed(p, key="k", state=S.OPEN, ts=100 * SEC, **kw):
    m = OrderManager("a", "s")
    i = m.next_intent(ts=ts, sym=SYM, symbol="X", side=p.side, purpose=p.purpose, qty=p.qty, type=p.type, limit=p.limit, stop=p.stop, tif=p.tif,
                      ref_px=D(100), parent="en", reason=p.reason, oco=p.oco)
    return Order(i, state, sent_ts=ts, **kw)


def test_levels_refused_when_no_tick_fits():
    with pytest.raises(OrderError, match="exit levels"): levels(Side.BUY, D("0.05"), CFG, rnd)
    assert levels(Side.SELL, D(2), CFG, rnd) == (D("2.05"), D("1.95"))


def test_no_stop_type_means_local_protection():
    limit_only = Caps(frozenset({T.LIMIT}))
    assert stop_type(CFG, limit_only) is None and plan_exits(view(5), [], CFG, limit_only, rnd) == ()
    assert stop_type(CFG, Caps(frozenset({T.STOP}))) is T.STOP


def test_touch_prefers_the_opposite_side_then_its_own_then_the_fallback():
    nan = float("nan")
    assert [touch(Side.BUY, b, a, D(7)) for b, a in ((1.0, 2.0), (1.0, nan), (nan, nan))] == [D("2.0"), D("1.0"), D(7)]


def test_a_stop_that_would_trigger_at_once_is_an_exit():
    assert [p.purpose for p in plan_exits(view(5, bid=99.0), [], CFG, Caps(), rnd)] == [P.EXIT]
    assert not through_stop(view(5, bid=float("nan")), CFG, rnd)


def test_rejected_stop_backs_off_and_never_gives_up():
    lost, ts, gaps = [], 100 * SEC, []
    for _ in range(10):
        at = plan_deadline(view(5, ts=ts), lost, CFG) if lost else ts
        gaps.append((at - ts) // MS)
        assert not lost or plan_exits(view(5, ts=at - 1), lost, CFG, Caps(), rnd) == ()
        p, = plan_exits(view(5, ts=at), lost, CFG, Caps(), rnd)
        lost.append(placed(p, state=S.REJECTED, ts=at))
        ts = at
    assert gaps == [0, 500, 1000, 2000, 4000, 8000, 16000, 32000, 32000, 32000]


def test_chase_reprices_only_towards_the_market():
    p, = plan_exits(view(5, "opposite"), [], CFG, Caps(), rnd)
    o = placed(p)
    late = 100 * SEC + 500 * MS
    assert plan_exits(view(5, "opposite", bid=99.0, ts=late - 1), [o], CFG, Caps(), rnd) == ()
    assert plan_exits(view(5, "opposite", bid=100.5, ts=late), [o], CFG, Caps(), rnd) == ()
    assert plan_exits(view(5, "opposite", bid=99.0, ts=late), [o], CFG, Caps(), rnd) == (CancelOrder(o.intent.id, "reprice"),)
    assert plan_deadline(view(5, "opposite", ts=late), [o], CFG) == late + 500 * MS
    market = Caps(frozenset(T))
    wants = ExitConfig(allow_market=True)
    assert plan_exits(view(5, "opposite", ts=late), [o], wants, market, rnd) == (CancelOrder(o.intent.id, "reprice"),)
    m, = plan_exits(view(5, "kill"), [], wants, market, rnd)
    assert (m.type, m.purpose) == (T.MARKET, P.FLATTEN)
    assert plan_exits(view(5, "kill", ts=late), [placed(m)], wants, market, rnd) == ()


def test_unknown_orders_are_asked_about_and_the_uncovered_rest_leaves():
    p, = plan_exits(view(5), [], CFG, Caps(), rnd)
    lost = placed(p, state=S.UNKNOWN)
    assert plan_exits(view(5, "stop"), [lost], CFG, Caps(), rnd) == (Ask(lost.intent.id),)
    ask, rest = plan_exits(view(9, "stop"), [lost], CFG, Caps(), rnd)
    assert (ask, rest.qty, rest.purpose) == (Ask(lost.intent.id), D(4), P.EXIT)
    assert plan_exits(view(3), [lost], CFG, Caps(), rnd) == (Ask(lost.intent.id),)
    x, = plan_exits(view(5, "stop"), [], CFG, Caps(), rnd)
    asked = placed(x, state=S.UNKNOWN)
    assert plan_exits(view(9, "stop"), [asked], CFG, Caps(), rnd) == (Ask(asked.intent.id),)
    smaller = placed(x)
    assert plan_exits(view(9, "stop"), [smaller], CFG, Caps(), rnd) == (CancelOrder(smaller.intent.id, "resize"),)
    assert plan_exits(view(3, "stop"), [smaller], CFG, Caps(), rnd) == (CancelOrder(smaller.intent.id, "reduce_only"),)


def test_lifecycle():
    p, = plan_exits(view(5), [], CFG, Caps(), rnd)
    stop = placed(p)
    assert [lifecycle(D(q), o) for q, o in ((0, []), (5, [stop]), (0, [stop]))] == [Lifecycle.FLAT, Lifecycle.HOLDING, Lifecycle.EXITING]
