"""Arbitrary fills against a share-by-share reference: FIFO pairs, exact sums, conservation of money."""
import json
from collections import deque
from decimal import Decimal as D

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scalp_nb.order.position import PositionBook, slippage
from scalp_nb.order.types import Fill, Purpose, Side

SYMS = st.integers(0, 2)
QTY = st.integers(1, 12)
PX = st.integers(1, 10**7).map(lambda n: D(n) / 10**4)  # 0.0001 .. 1000, sub-penny as venues fill
FEE = st.integers(-10**5, 10**6).map(lambda n: D(n) / 10**6)


class Book(RuleBasedStateMachine):
    @initialize(cash=st.integers(0, 10**9).map(lambda n: D(n) / 100))
    def start(self, cash):
        self.cash, self.book = cash, PositionBook(cash)
        self.fills, self.trips, self.fees, self.n = [], [], D(0), 0
        self.shares = {s: deque() for s in range(3)}  # reference: one entry per open share (side, price)
        self.ref_gross = D(0)
        self.marks = {s: D(100) for s in range(3)}

    @rule(sym=SYMS, side=st.sampled_from(Side), qty=QTY, px=PX, ref=PX, fee=FEE, purpose=st.sampled_from(Purpose))
    def fill(self, sym, side, qty, px, ref, fee, purpose):
        self.n += 1
        f = Fill(self.n, f"o{self.n}", f"e{self.n}", f"S{sym}", sym, side, purpose, D(qty), px, ref)
        trips = self.book.apply(f, fee)
        closed = 0
        for _ in range(qty):
            open_ = self.shares[sym]
            if open_ and open_[0][0] is not side:
                s, entry = open_.popleft()
                self.ref_gross += s * (px - entry)
                closed += 1
            else: open_.append((side, px))
        assert sum((t.qty for t in trips), D(0)) == closed
        assert all(t.side is side.opposite and t.exit_id == f.client_id and t.exit_px == px and t.exit_purpose is purpose for t in trips)
        assert [t.entry_ts for t in trips] == sorted(t.entry_ts for t in trips)
        self.fills.append(f), self.trips.extend(trips)
        self.fees += fee

    @rule(sym=SYMS, px=PX)
    def mark(self, sym, px): self.marks[sym] = px

    @rule()
    def restart(self):
        fresh = PositionBook(D(0))
        fresh.restore(json.loads(json.dumps(self.book.snapshot())))
        assert fresh.snapshot() == self.book.snapshot()
        self.book = fresh

    @invariant()
    def conserved(self):
        b = self.book
        unrealised = sum((b.unrealised(s, m) for s, m in self.marks.items()), D(0))
        assert b.equity(self.marks) == self.cash + b.realised + unrealised - b.fees
        assert b.cash == self.cash - sum((f.side * f.qty * f.px for f in self.fills), D(0)) - self.fees
        assert b.fees == self.fees

    @invariant()
    def positions_are_the_sum_of_fills(self):
        for s in range(3):
            assert self.book.qty(s) == sum((f.side * f.qty for f in self.fills if f.sym == s), D(0)) == sum(x for x, _ in self.shares[s])
            assert len({lot.side for lot in self.book.lots(s)}) <= 1
            if self.shares[s]: assert abs(self.book.avg_px(s) - sum(p for _, p in self.shares[s]) / len(self.shares[s])) < D("1e-20")

    @invariant()
    def trips_add_up(self):
        b, lots = self.book, [lot for s in range(3) for lot in self.book.lots(s)]
        assert sum((t.gross for t in self.trips), D(0)) == b.realised == self.ref_gross
        assert sum((t.fees for t in self.trips), D(0)) + sum((lot.fee for lot in lots), D(0)) == self.fees
        assert all(t.net == t.gross - t.fees for t in self.trips)
        slip = sum((t.slippage for t in self.trips), D(0)) + sum((lot.slip * lot.qty for lot in lots), D(0))
        assert slip == sum((slippage(f) for f in self.fills), D(0))


Book.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBook = Book.TestCase
