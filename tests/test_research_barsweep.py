"""Bar sweeps against a back-test that walks every bar with the streaming strategies, and against vectorbt where both can express the same."""

import math

import numpy as np
import pytest

from scalp_nb.research.barsweep import (
    REASONS,
    BarFill,
    BarSpace,
    bar_recording,
    bar_space,
    bar_summary,
    bar_sweep,
    bar_trades,
    one_set,
    run_bars,
    tape_of_bars,
    walk_bars,
)
from scalp_nb.research.trials import TrialLog
from scalp_nb.strategy.combine import CombinedRun, CombineParams
from scalp_nb.strategy.protocol import CLOSE_LONG, CLOSE_SHORT, BarRun, bar_strategy, signals

MIX = {"members": [{"strategy": "sma_crossover", "params": {"stop_loss_pct": 0.3}}, {"strategy": "rsi_reversion", "params": {"take_profit_pct": 0.4}},
                   {"strategy": "bollinger_breakout"}], "memory": 3}
FIVE = [("sma_crossover", {}),
        ("sma_crossover", {"fast_period": 5, "slow_period": 15, "more_pairs": ((10, 30), (20, 50))}), ("rsi_reversion", {"period": 7}),
        ("bollinger_breakout", {}), ("combination", MIX)]


def space_of(name: str, params: dict, **more) -> BarSpace:
    if name == "combination":
        return one_set(CombineParams.model_validate(params))
    return one_set(bar_strategy(name).params(**params, **more), name)


def tape(seed: int, days: int = 3, minutes: int = 200):
    bars, _ = walk_bars(1, days, seed, vol=1e-3, minutes=minutes)
    return tape_of_bars("W0", bars, "US")


class Walker:
    """The back-test one would write first: every bar, one after the other, with the strategy that runs live."""

    def __init__(self, t, space: BarSpace, m: BarFill) -> None:
        p = space.sets[0]
        self.run = CombinedRun(p) if isinstance(p, CombineParams) else BarRun(bar_strategy(space.strategy), p)
        self.t, self.m, self.h, self.trades, self.pos, self.order = t, m, m.half_spread_bps * 1e-4, [], None, None
        self.today, self.day = 0, -1

    def fill(self, i: int, px: float, order, side: int, sig) -> None:
        entry = px * (1 + side * self.h)
        stop = -side * math.inf if math.isnan(sig["stop_pct"]) else entry * (1 - side * sig["stop_pct"] / 100)
        target = side * math.inf if math.isnan(sig["target_pct"]) else entry * (1 + side * sig["target_pct"] / 100)
        self.pos = (order, i, side, entry, stop, target, float(sig["size"]))
        self.today += 1

    def out(self, i: int, px: float, reason: str) -> None:
        signal_bar, at, side, entry, _, _, size = self.pos
        px = px if reason == "target" else px * (1 - side * self.h)
        net = 1e4 * size * (side * (px / entry - 1) - self.m.cost_bps * 1e-4 * (1 + px / entry))
        self.trades.append((signal_bar, at, i, side, entry, px, reason, net))
        self.pos = None

    def act(self, i: int, px: float, signal_bar: int, sig) -> None:
        """What a signal does where it is filled."""
        closed = 0
        if self.pos and sig["exit"] & (CLOSE_LONG if self.pos[2] > 0 else CLOSE_SHORT):
            closed = self.pos[2]
            self.out(i, px, "signal")
        free = self.m.max_trades == 0 or self.today < self.m.max_trades
        if self.pos is None and sig["side"] and sig["side"] != closed and free:
            self.fill(i, px, signal_bar, int(sig["side"]), sig)

    def inside(self, i: int, b) -> bool:
        _, _, side, _, stop, target, _ = self.pos
        if (b["low"] <= stop) if side > 0 else (b["high"] >= stop):
            self.out(i, min(b["open"], stop) if side > 0 else max(b["open"], stop), "stop")
        elif (b["high"] >= target) if side > 0 else (b["low"] <= target):
            self.out(i, max(b["open"], target) if side > 0 else min(b["open"], target), "target")
        return self.pos is None

    def go(self) -> list:
        t, n = self.t, len(self.t.bars)
        for i, b in enumerate(t.bars):
            if t.session[i] != self.day:
                self.day, self.today = t.session[i], 0
            if self.order:
                self.act(i, b["open"], *self.order)
                self.order = None
            exited = self.pos is not None and not (self.m.at == "close" and self.pos[1] == i) and self.inside(i, b)
            sig, last = self.run.push(b), t.last[i] == i if self.m.flat_at_end else i == n - 1
            if last:
                if self.pos:
                    late = self.m.at == "close" and sig["exit"] & (CLOSE_LONG if self.pos[2] > 0 else CLOSE_SHORT)
                    self.out(i, b["close"], "signal" if late else "end")
            elif not exited or self.m.same_bar:
                if self.m.at == "close":
                    self.act(i, b["close"], i, sig)
                elif sig["side"] or sig["exit"]:
                    self.order = (i, sig)
        return self.trades


MODELS = [BarFill(at=at, half_spread_bps=h, cost_bps=c, flat_at_end=flat, same_bar=same, max_trades=k)
          for at in ("next_open", "close") for h, c, flat, same, k in ((0, 0, False, True, 0), (2, 3, True, True, 0), (5, 1, True, False, 2))]


@pytest.mark.parametrize("name,params", FIVE, ids=["sma", "sma pairs", "rsi", "bollinger", "combination"])
def test_the_sweep_trades_like_a_walk_over_every_bar_with_the_streaming_strategy(name, params):
    seen: set[str] = set()
    for seed, m in enumerate(MODELS):
        t = tape(seed)
        exits = {} if name == "combination" else {"stop_loss_pct": 0.3, "take_profit_pct": 0.45} if seed % 2 else {"stop_loss_pct": 0.2}
        space = space_of(name, params, **exits)
        want, got = Walker(t, space, m).go(), bar_trades(t, space, m)
        rows = got[["signal_bar", "entry_bar", "exit_bar", "side", "entry", "exit", "reason", "net_bps"]]
        assert [tuple(r[:4]) + (r[6],) for r in rows.itertuples(index=False)] == [tuple(w[:4]) + (w[6],) for w in want], (m, seed)
        np.testing.assert_allclose(rows[["entry", "exit", "net_bps"]].to_numpy(float), [(w[4], w[5], w[7]) for w in want], rtol=1e-12, atol=1e-9)
        seen |= set(got.reason)
    assert seen >= {"stop", "signal"}


def test_scaled_exits_and_sizes_are_those_of_signals():
    t, s = tape(5), bar_strategy("rsi_reversion")
    vol = {"period": 10, "reference": 0.001, "exits": True, "size": True}
    space = one_set(s.params.model_validate({"stop_loss_pct": 0.3, "take_profit_pct": 0.6, "vol": vol}), "rsi_reversion")
    sig, got = signals(s, space.sets[0], t.bars), bar_trades(t, space, BarFill(half_spread_bps=0))
    assert len(got) > 10 and got["size"].nunique() > 5
    for r in got.itertuples():
        assert r.size == sig["size"][r.signal_bar]
        assert r.stop == pytest.approx(r.entry * (1 - r.side * sig["stop_pct"][r.signal_bar] / 100), rel=1e-12)
        assert r.target == pytest.approx(r.entry * (1 + r.side * sig["target_pct"][r.signal_bar] / 100), rel=1e-12)


def vbt_trades(t, space: BarSpace, m: BarFill, sl=None, tp=None):
    """The closed trades of vectorbt on the signals of `strategy.signals`."""
    import pandas as pd
    import vectorbt as vbt
    sig = signals(bar_strategy(space.strategy), space.sets[0], t.bars)
    col = {"entries": sig["side"] > 0, "short_entries": sig["side"] < 0, "exits": sig["exit"] & CLOSE_LONG > 0,
           "short_exits": sig["exit"] & CLOSE_SHORT > 0}
    if m.at == "next_open":
        col = {k: np.append(False, v[:-1]) for k, v in col.items()}
    if m.flat_at_end:
        ends = t.last == np.arange(len(sig))
        col = {k: v | ends if "exits" in k else v & ~ends for k, v in col.items()}
    index = pd.to_datetime(t.bars["ts"])
    px = {f: pd.Series(t.bars[f], index) for f in ("open", "high", "low", "close")}
    stops = {} if sl is None else {"sl_stop": sl / 100, "tp_stop": tp / 100}
    col = {k: pd.Series(v, index) for k, v in col.items()}
    pf = vbt.Portfolio.from_signals(px["close"], **col, price=px["open" if m.at == "next_open" else "close"], open=px["open"], high=px["high"],
                                    low=px["low"], slippage=m.half_spread_bps * 1e-4, fees=m.cost_bps * 1e-4, size=1.0,
                                    init_cash=1e9, upon_opposite_entry="reverse", freq="1min", **stops)
    r = pf.trades.records
    return r[r["status"] == 1]


# A buy from oversold that on the same bar also passes the exit level of a long: vectorbt has no rule that enters when flat and leaves when long.
@pytest.mark.parametrize("name,params", [*FIVE[:2], ("rsi_reversion", {"period": 7, "exit_level": None}), FIVE[3]],
                         ids=["sma", "sma pairs", "rsi", "bollinger"])
def test_vectorbt_makes_the_same_trades_where_it_can_express_them(name, params):
    pytest.importorskip("vectorbt")
    cases = [(BarFill(half_spread_bps=3, cost_bps=2, flat_at_end=False), None, None),
             (BarFill(at="close", half_spread_bps=3, cost_bps=2), None, None),
             (BarFill(at="close", half_spread_bps=0, cost_bps=2, same_bar=False), 0.25, 0.4)]
    for seed, (m, sl, tp) in enumerate(cases):
        t = tape(10 + seed, minutes=390)
        space = space_of(name, params, **({} if sl is None else {"stop_loss_pct": sl, "take_profit_pct": tp}))
        want, got = vbt_trades(t, space, m, sl, tp), bar_trades(t, space, m)
        if not m.flat_at_end:
            got = got[got.reason != "end"]
        assert len(got) == len(want) > 10
        assert got.entry_bar.tolist() == want.entry_idx.tolist() and got.exit_bar.tolist() == want.exit_idx.tolist()
        np.testing.assert_allclose(got.net_bps, want["return"] * 1e4, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got.exit, want.exit_price, rtol=1e-12)
        assert sl is None or {"stop", "target"} <= set(got.reason)


def test_results_are_the_sums_of_the_trades_and_do_not_depend_on_the_other_sets(tmp_path):
    bars, universe = walk_bars(3, 4, 7, vol=1e-3)
    rec, m = bar_recording("walk", bars, universe), BarFill(cost_bps=1, max_trades=5)
    space = bar_space("bollinger_breakout", {"period": (10, 20), "width": (1.5, 2.0), "stop_loss_pct": (None, 0.2), "take_profit_pct": (None, 0.5)})
    import pandas as pd
    frame = pd.concat(bar_sweep([rec], space, TrialLog(tmp_path / "log"), m, chunk=5), ignore_index=True)
    assert len(frame) == space.size * 3 * 4 and frame.groupby(["session", "symbol", "set"]).trades.sum().max() == 5
    t = tape_of_bars("W1", bars[bars["sym"] == 1], "US")
    for k in (0, 7, space.size - 1):
        trades, mine = bar_trades(t, space, m, [k]), frame[(frame.symbol == "W1") & (frame.set == k)]
        each = mine[mine.trades > 0].set_index("session").net_bps.to_dict()
        assert trades.groupby("session").net_bps.sum().to_dict() == pytest.approx(each, abs=1e-9)
        assert len(trades) == mine.trades.sum() and (trades.net_bps > 0).sum() == mine.wins.sum()
        assert {r: int((trades.reason == r).sum()) for r in REASONS.values()} == {r: int(mine[r].sum()) for r in REASONS.values()}
        alone = run_bars(t, BarSpace(space.strategy, (space.sets[k],)), m)[0]
        assert alone["net_bps"].tolist() == mine.net_bps.tolist()
    best = bar_summary(frame).iloc[0]
    assert best.win_rate * best.win_bps / best.wins - (1 - best.win_rate) * best.loss_bps / (best.trades - best.wins) == pytest.approx(best.mean_bps)


def test_a_planted_edge_is_found_and_noise_costs_money(tmp_path):
    def net(reversion: float) -> float:
        bars, universe = walk_bars(2, 8, 3, vol=1e-3, reversion=reversion)
        frame = next(bar_sweep([bar_recording("x", bars, universe)], one_set(bar_strategy("rsi_reversion").params(period=2), "rsi_reversion"),
                               TrialLog(tmp_path / "log"), BarFill(at="close", half_spread_bps=1)))
        return float(bar_summary(frame).net_bps[0])
    assert net(0.0) < 0 < net(0.8)
