"""Angel One's stream decoder: against recorded ticks, the broker's own SDK, the slow path, torn streams and noise."""

import json
import socket
import struct
import time
from typing import Any

import numpy as np
import pytest
from angel_sdk import sdk_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import realdata
from test_feed_packet import FIXTURES, books, field, rebuild, same_as_sdk

from scalp_nb.feed.angel_one import AngelFeed, AngelFeedConfig, _decode
from scalp_nb.feed.angel_wire import MODES, AngelDecoder, AngelTokens, decode_packet, encode_packet
from scalp_nb.feed.depth import FLAG_GAP, depth_row, empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.packet import encode_snap_quote, read_packet, token_table
from scalp_nb.feed.websock import TEXT, WebSock, payload

UNI = Universe("u", (Instrument("INFY", "NSE", "1594"), Instrument("FUT", "NSE", "53001", segment="FO"), Instrument("NIFTY", "NSE", "99926000"),
                     Instrument("USDINR", "CDE", "1", segment="FO")))
TOKENS = {"1594": 1, "53001": 2, "99926000": 1, "1": 13}


def one(packet: bytes) -> Any:
    out, raw = empty_depth(1), np.frombuffer(packet, np.uint8)
    assert decode_packet(raw.ctypes.data, len(packet), out, 0, 0, 0) >= 0
    return out[0]


# ---------------------------------------------------------------- against recordings and the SDK

@pytest.mark.parametrize("name", FIXTURES)
def test_recorded_depth_through_the_walk(name: str) -> None:
    d = json.loads(realdata(f"fixtures/angel/{name}").read_text())
    packet, token, segment = rebuild(d), str(d["token"]).strip('"'), "CM" if int(d["exchange_type"]) == 1 else "FO"
    uni = Universe("u", (Instrument("OTHER", "NSE", "7"), Instrument("X", "NSE", token, segment=segment)))
    decoder, raw = AngelDecoder(uni), np.frombuffer(frame(packet), np.uint8)
    assert decoder.walk(raw.ctypes.data, len(raw), 99) == (len(raw), 0)
    assert decoder.take_rows().tobytes() == read_packet(packet, token_table(uni), 99).tobytes()
    same_as_sdk(packet, sdk_decoder()(packet))


def test_recorded_quotes_are_equal_and_equal_to_the_sdk() -> None:
    ticks = json.loads(realdata("fixtures/angel/ws_quote_INFY_2024-12-20.json").read_text())
    assert len(ticks) > 2
    for d in ticks:
        names = ("sequence_number", "exchange_timestamp", "last_traded_price", "last_traded_quantity", "avg_traded_price", "vol_traded")
        packet = b"".join([struct.pack("<BB25s", 2, 1, b"1594"), *(struct.pack("<q", int(d[n])) for n in names),
                           struct.pack("<dd", float(d["total_buy_quantity"]), float(d["total_sell_quantity"])),
                           *(struct.pack("<q", int(field(d, n))) for n in ("open_price_day", "high_price_day", "low_price_day", "close_price"))])
        r, sdk = one(packet), sdk_decoder()(packet)
        assert (r["ts"], r["seq"], r["ltp"]) == (int(d["exchange_timestamp"]) * 10**6, int(d["sequence_number"]), int(d["last_traded_price"]) / 100)
        assert (r["ltq"], r["volume"]) == (int(d["last_traded_quantity"]), int(d["vol_traded"]))
        assert (r["ts"], r["seq"], r["ltp"] * 100, r["ltq"], r["volume"], r["total_buy"], r["total_sell"]) == (
            sdk["exchange_timestamp"] * 10**6, sdk["sequence_number"], pytest.approx(sdk["last_traded_price"]), sdk["last_traded_quantity"],
            sdk["volume_trade_for_the_day"], sdk["total_buy_quantity"], sdk["total_sell_quantity"])
        assert np.isnan(r["bid_px"]).all() and np.isnan(r["ask_px"]).all() and not r["bid_qty"].any() and not r["ask_orders"].any()


@settings(max_examples=80)
@given(row=books(), mode=st.sampled_from(sorted(MODES.values())))
def test_every_mode_of_any_book_says_what_the_sdk_says(row: Any, mode: int) -> None:
    packet = encode_packet(row, "26009", 2, mode)
    r, sdk = one(packet), sdk_decoder()(packet)
    assert (r["ts"], r["seq"], np.nan_to_num(r["ltp"])) == (sdk["exchange_timestamp"] * 10**6, sdk["sequence_number"], sdk["last_traded_price"] / 100)
    if mode >= 2: assert (r["volume"], r["total_buy"]) == (sdk["volume_trade_for_the_day"], sdk["total_buy_quantity"])
    else: assert np.isnan(r["total_buy"]) and np.isnan(r["total_sell"])
    if mode == 3: assert r.tobytes() == row[0].tobytes()
    else: assert np.isnan(r["bid_px"]).all() and np.isnan(r["ask_px"]).all()


# ---------------------------------------------------------------- fast path and slow path, torn anywhere

def frame(body: bytes, b0: int = 0x82) -> bytes:
    return bytes([b0, len(body)]) + body if len(body) < 126 else struct.pack(">BBH", b0, 126, len(body)) + body


def feed_with(sock: socket.socket) -> tuple[AngelFeed, WebSock]:
    "A feed whose first connection is `sock`: the real reading code, without a server."
    feed = AngelFeed(UNI, AngelFeedConfig(url="ws://127.0.0.1:1/"), lambda: AngelTokens("k", "c", "j", "f"), lambda: 7)
    ws = feed._lines[0].ws = WebSock(sock, size=4096)
    return feed, ws


def in_pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({c % (len(stream) + 1) for c in cuts}), len(stream)]
    return [stream[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]


def fast(pieces: list[bytes]) -> tuple[bytes, tuple[int, ...]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    feed, ws = feed_with(ours)
    for piece in pieces:
        theirs.sendall(piece)
        while ws.pump(): _decode(feed, feed._lines[0], ws)
    d = feed._decoder
    theirs.close()
    ours.close()
    return d.take_rows().tobytes(), (d.unknown + feed._odd, d.malformed, d.messages, d.crossed, sum(feed.stats.by_error.values()), len(ws.ended))


def slow(stream: bytes) -> tuple[bytes, tuple[int, ...]]:
    "One message at a time, in Python."
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ws, d, odd, errors = WebSock(ours, size=1 << 20), AngelDecoder(UNI), 0, 0
    theirs.setblocking(True)
    theirs.sendall(stream)
    if ws.pump():
        for m in ws.messages():
            body = payload(m)
            if body == b"pong": continue
            if m[0] == TEXT:
                is_error = body.startswith(b"{")
                errors, odd = errors + is_error, odd + (not is_error)
            else: d.message(m[1], m[2], 7)
    theirs.close()
    ours.close()
    return d.take_rows().tobytes(), (d.unknown + odd, d.malformed, d.messages, d.crossed, errors, len(ws.ended))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["tick"] * 6 + ["text", "ping", "pieces", "bad", "short"]))
    row, token = draw(books()), draw(st.sampled_from([*TOKENS, "777"]))
    packet = encode_packet(row, token, TOKENS.get(token, 1), draw(st.sampled_from(sorted(MODES.values())))) if token != "1" else \
        encode_packet(depth_row(5 * 10**6, 0, [(84.1225, 2)], ltp=84.125), "1", 13)
    if kind == "text": return frame(draw(st.sampled_from([b"pong", b'{"correlationID":"a","errorCode":"E1001","errorMessage":"x"}', b"hello"])), 0x81)
    if kind == "ping": return frame(b"are you there", 0x89)
    if kind == "pieces":
        k = draw(st.integers(0, len(packet)))
        return frame(packet[:k], 0x02) + frame(b"", 0x89) + frame(packet[k:], 0x80)
    if kind == "bad":
        noise = bytearray(packet)
        for at, v in draw(st.lists(st.tuples(st.integers(0, len(packet) - 1), st.integers(0, 255)), max_size=4)): noise[at] = v
        return frame(bytes(noise))
    if kind == "short": return frame(packet[:draw(st.integers(0, len(packet)))])
    return frame(packet)


@settings(max_examples=60, deadline=None)
@given(st.lists(frames(), min_size=1, max_size=8), st.lists(st.integers(0, 10**6), max_size=12))
def test_the_compiled_walk_and_the_slow_path_agree_however_the_stream_is_torn(found: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(found)
    whole = slow(stream)
    pieces = fast(in_pieces(stream, cuts))
    assert pieces[1] == whole[1]
    assert pieces[0] == whole[0]


def test_torn_at_every_byte() -> None:
    row = depth_row(10**15, 0, [(99.5, 7, 1)], [(99.55, 8, 1)], ltp=99.5, volume=4, total_buy=1, total_sell=2)
    snap, ltp = encode_snap_quote(row, "1594", 1), encode_packet(row, "53001", 2, 1)
    stream = (frame(ltp) + frame(b"pong", 0x81) + frame(snap) + frame(b"", 0x89) + frame(ltp[:20], 0x02) + frame(ltp[20:], 0x80)
              + frame(b"\x04" * 60) + frame(ltp))
    whole = slow(stream)
    assert whole[1][:3] == (1, 0, 4)
    for k in range(1, len(stream)): assert fast([stream[:k], stream[k:]]) == whole, k
    assert fast([stream[k:k + 1] for k in range(len(stream))]) == whole


# ---------------------------------------------------------------- noise, and too much

@settings(max_examples=150, deadline=None)
@given(st.lists(frames(), max_size=4), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6), st.integers(0, 10**6))
def test_the_walk_never_reads_beyond_what_it_was_given(found: list[bytes], noise: list[tuple[int, int]], cut: int) -> None:
    stream = bytearray(b"".join(found) or b"\x82\x00")
    for at, v in noise: stream[at % len(stream)] = v
    stream = stream[:1 + cut % len(stream)]
    out = []
    for behind in (b"\xff", b"\x00"):
        d, raw = AngelDecoder(UNI), np.frombuffer(bytes(stream) + behind * 600, np.uint8)
        out.append((d.walk(raw.ctypes.data, len(stream), 1), d.take_rows().tobytes(), d.malformed, d.unknown))
    assert out[0] == out[1] and out[0][0][0] <= len(stream)


def test_only_whole_frames_are_taken() -> None:
    row = depth_row(10**15, 0, [(99.5, 7, 1)], [(99.55, 8, 1)], ltp=99.5, volume=4, total_buy=1, total_sell=2)
    parts = [frame(encode_packet(row, "1594", 1, m)) for m in (3, 1, 2)]
    stream, ends = b"".join(parts), np.cumsum([0] + [len(p) for p in parts])
    for cut in range(len(stream) + 1):
        d, raw = AngelDecoder(UNI), np.frombuffer(stream[:cut] + b"\0" * 400, np.uint8)
        whole = int(np.searchsorted(ends, cut, side="right")) - 1
        assert d.walk(raw.ctypes.data, cut, 1) == (ends[whole], 0) and d.waiting == whole, cut


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=40, max_size=120), st.integers(16, 40))
def test_too_many_rows_leave_the_latest_of_each_symbol(said: list[tuple[int, bool]], room: int) -> None:
    names = tuple(TOKENS)
    small, all_of_it = AngelDecoder(UNI, rows=room), AngelDecoder(UNI, rows=10_000)
    small.latest_wins(True)
    for k, (s, gap) in enumerate(said):
        packet = encode_packet(depth_row(k * 10**9, 0, ltp=k + 1.0), names[s], TOKENS[names[s]], 1)
        for d in (small, all_of_it):
            if gap: d.gap([s])
            d.read(packet, k)
    a, b = small.take_rows(), all_of_it.take_rows()
    assert len(a) + small.dropped == len(b) and len(a) <= room and np.all(np.diff(a["recv"]) > 0)
    at = np.searchsorted(b["recv"], a["recv"])
    assert all(a[n][["ts", "sym", "ltp"]] == b[m][["ts", "sym", "ltp"]] for n, m in enumerate(at))
    for s in range(4):
        mine, whole = a[a["sym"] == s], b[b["sym"] == s]
        assert len(mine) == 0 if len(whole) == 0 else mine["ltp"][-1] == whole["ltp"][-1]
        edges = [-1, *np.searchsorted(whole["recv"], mine["recv"]).tolist()]
        told = [bool((whole["flags"][a + 1:b + 1] & FLAG_GAP).any()) for a, b in zip(edges, edges[1:], strict=False)]
        assert [bool(x & FLAG_GAP) for x in mine["flags"]] == told, "a gap is told by whichever row stays"


def test_a_thousand_symbols_and_a_flood_stay_bounded_and_fresh() -> None:
    uni = Universe("big", tuple(Instrument(f"S{k}", "NSE", str(1000 + 7 * k)) for k in range(1000)))
    d, began = AngelDecoder(uni, rows=4096), time.monotonic()
    stream = b"".join(frame(encode_packet(depth_row(k * 10**9, 0, ltp=k + 1.0), uni[k * 7919 % 1000].token, 1, 1)) for k in range(20_000))
    raw = np.frombuffer(stream, np.uint8)
    d.latest_wins(True)
    assert d.walk(raw.ctypes.data, len(raw), 1) == (len(raw), 0)
    rows = d.take_rows()
    assert len(rows) <= 4096 and len(rows) + d.dropped == 20_000 and time.monotonic() - began < 30
    assert set(rows["sym"]) == set(range(1000))
    last = {k * 7919 % 1000: k + 1.0 for k in range(20_000)}
    assert {int(r["sym"]): float(r["ltp"]) for r in rows} == last
