"""The packet path decides what the row path decides."""

import pytest
from markets import config, market, synthetic

from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.packet import FeedError, encode_snap_quote
from scalp_nb.trader.events import Depth, Started
from scalp_nb.trader.journal import dumps, encode
from scalp_nb.trader.runner import Memory
from scalp_nb.trader.setup import paper_run
from scalp_nb.trader.wire import Wire


def tokens(universe):
    return Universe("t", tuple(Instrument(i.symbol, "NSE", token=str(1000 + k), derivatives=True) for k, i in enumerate(universe.instruments)))


def started(rows, universe, **over):
    r = paper_run(config(**over), market(rows, universe), Memory())
    r.trader.handle(Started(int(rows["recv"][0]), r.broker.state(int(rows["recv"][0]))))
    return r.trader


def test_packets_and_rows_give_the_same_commands():
    rows, universe = synthetic(seconds=600)
    rows["ts"] -= rows["ts"] % 1_000_000  # the wire carries milliseconds
    universe = tokens(universe)
    by_rows, by_packets = started(rows, universe), started(rows, universe)
    wire, a, b = Wire(by_packets), [], []
    for k in range(len(rows)):
        i = 0
        while i < 1:
            a += by_rows.handle(Depth(rows[k:k + 1], i))
            i = by_rows.consumed
        packet = encode_snap_quote(rows[k:k + 1], universe[int(rows["sym"][k])].token, 1)
        said = list(wire.on_packet(packet, int(rows["recv"][k])))
        while by_packets.cursor < k + 1:
            said += by_packets.handle(Depth(wire.row))
        b += said
    assert [dumps(encode(c)) for c in a] == [dumps(encode(c)) for c in b]
    assert len(a) > 3


def test_bad_packets_are_named_and_counted():
    rows, universe = synthetic(seconds=60)
    universe = tokens(universe)
    wire = Wire(started(rows, universe))
    good = encode_snap_quote(rows[:1], universe[int(rows["sym"][0])].token, 1)
    for bad, what in ((good[:100], "length"), (b"\x09" + good[1:], "mode"), (encode_snap_quote(rows[:1], "99999", 1), "token")):
        with pytest.raises(FeedError, match=what):
            wire.on_packet(bad, int(rows["recv"][0]))
    assert wire.bad == 3
    assert wire.on_packet(good, int(rows["recv"][0])) == ()
