"""Merging and replaying: nothing lost, nothing invented, nothing early."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scalp_nb.feed.depth import empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.recorder import Manifest, Recording
from scalp_nb.feed.replay import due_times, join_universes, merge, replay


@st.composite
def recordings(draw: st.DrawFn) -> list[Recording]:
    """Up to four recordings over subsets of five symbols, times with ties and backward steps, rows numbered uniquely."""
    out, n = [], 0
    for _ in range(draw(st.integers(1, 4))):
        symbols = draw(st.lists(st.sampled_from("ABCDE"), min_size=1, unique=True))
        u = Universe("".join(symbols), tuple(Instrument(s, "NSE") for s in symbols))
        ts = draw(st.lists(st.integers(0, 20), max_size=30))
        rows = empty_depth(len(ts))
        rows["ts"], rows["seq"] = ts, np.arange(n, n + len(ts))
        rows["sym"] = [draw(st.integers(0, len(symbols) - 1)) for _ in ts]
        n += len(ts)
        out.append(Recording(rows, u, Manifest(1, len(ts), 0, 0, "", True, "", {}, u)))
    return out


@settings(max_examples=200, deadline=None)
@given(parts=recordings())
def test_merge_is_a_stable_sort_that_keeps_every_row_and_its_symbol(parts: list[Recording]) -> None:
    rows, universe = merge(parts), join_universes([p.universe for p in parts])
    listed = [(int(r["ts"]), int(r["seq"]), p.universe[r["sym"]].symbol) for p in parts for r in p.rows]
    assert [(int(r["ts"]), int(r["seq"]), universe[r["sym"]].symbol) for r in rows] == sorted(listed, key=lambda x: x[0])


@settings(max_examples=100, deadline=None)
@given(ts=st.lists(st.integers(0, 10**12), min_size=1, max_size=60), speed=st.sampled_from([None, 0.5, 1.0, 7.3, 1e6]), size=st.integers(1, 9),
       work=st.integers(0, 10**10), data=st.data())
def test_replay_gives_every_row_once_in_order_and_never_early(ts: list[int], speed: float | None, size: int, work: int, data: Any) -> None:
    rows = empty_depth(len(ts))
    rows["ts"], rows["seq"] = ts, np.arange(len(ts))
    now = [data.draw(st.integers(-10**15, 10**15))]
    origin = now[0]

    def sleep(s: float) -> None:
        assert s > 0
        now[0] += max(1, round(s * 10**9)) * 50  # a sleep that overshoots, so that long pauses end soon

    got = []
    for block in replay(rows, speed, size, lambda: now[0], sleep):
        assert 0 < len(block) <= size
        assert np.shares_memory(block, rows)
        if speed is not None:
            assert due_times(rows, speed)[block["seq"][-1]] <= now[0] - origin
        now[0] += work
        got += block["seq"].tolist()
    assert got == list(range(len(ts)))
