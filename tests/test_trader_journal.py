"""The journal reads back exactly, and every kind of damage to it is named."""
import copy
import dataclasses
import math
import struct
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any, get_args

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalp_nb.broker.base import Account, BrokerCaps, BrokerOrder, BrokerState
from scalp_nb.order.types import Fill, Intent, Order, OrderState, OrderType, Purpose, Side, Tif, Update, UpdateKind
from scalp_nb.trader import journal as J
from scalp_nb.trader.events import (
    AccountState,
    Cancel,
    Clock,
    Command,
    Control,
    Depth,
    Event,
    Evidence,
    Halt,
    Link,
    Note,
    Query,
    Reconciled,
    Started,
    Submit,
)
from scalp_nb.trader.journal import GENESIS, JournalError, Record, chain_hash, decode, dumps, encode, kind_of, make_record, payload, verify

ints = st.integers(-2**70, 2**70)
i64 = st.integers(-2**63, 2**63 - 1)
texts = st.text(st.characters(codec=None), max_size=12)  # lone surrogates included
floats = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308]) | st.builds(
    lambda n: struct.unpack(">d", struct.pack(">Q", n))[0], st.integers(0, 2**64 - 1))
decimals = st.decimals(allow_nan=None) | st.sampled_from([Decimal("1.50"), Decimal("1E+5"), Decimal("-0"), Decimal("NaN12"), Decimal("-Infinity")])
enums = st.sampled_from([m for e in (Side, OrderType, Tif, Purpose, OrderState, UpdateKind) for m in e])
leaves = st.none() | st.booleans() | ints | floats | texts | decimals | enums
hashables = st.recursive(st.none() | st.booleans() | ints | texts | enums | decimals.filter(lambda d: not d.is_snan()),
                         lambda c: st.tuples(c, c) | st.frozensets(c, max_size=3), max_leaves=4)
values = st.recursive(leaves, lambda c: st.lists(c, max_size=4) | st.tuples(c) | st.tuples(c, c) | st.dictionaries(texts, c, max_size=4)
                      | st.dictionaries(hashables, c, max_size=3) | st.sets(hashables, max_size=3) | st.frozensets(hashables, max_size=3)
                      | st.dictionaries(st.sampled_from(["$dec", "$any", "$obj", "$map", "a"]), c, max_size=2), max_leaves=12)

intents = st.builds(Intent, texts, i64, i64, texts, texts, texts, i64, st.sampled_from(Side), st.sampled_from(Purpose), decimals,
                    st.sampled_from(OrderType), st.none() | decimals, st.none() | decimals, st.sampled_from(Tif), decimals, texts, texts, texts)
updates = st.builds(Update, i64, texts, st.sampled_from(UpdateKind), texts, texts, decimals, decimals, st.none() | decimals,
                    st.none() | st.sampled_from(OrderState), texts, texts)
orders = st.builds(Order, intents, st.sampled_from(OrderState), i64, i64, texts, decimals, decimals, st.frozensets(texts, max_size=3), i64, texts)
fills = st.builds(Fill, i64, texts, texts, texts, i64, st.sampled_from(Side), st.sampled_from(Purpose), decimals, decimals, decimals)
accounts = st.builds(Account, i64, decimals, decimals, decimals)
borders = st.builds(BrokerOrder, texts, texts, texts, i64 | st.sampled_from(Side), decimals, decimals, st.sampled_from(OrderType),
                    st.none() | decimals, st.none() | decimals)
states = st.builds(BrokerState, accounts, st.lists(st.tuples(texts, decimals, decimals), max_size=2).map(tuple),
                   st.lists(borders, max_size=2).map(tuple), st.lists(updates, max_size=2).map(tuple))
caps = st.builds(BrokerCaps, texts, st.frozensets(st.sampled_from(OrderType)), st.frozensets(st.sampled_from(Tif)), st.booleans())
dicts = st.dictionaries(texts, values, max_size=4)
events = (st.builds(Started, i64, states, st.none() | dicts) | st.builds(Clock, i64) | st.builds(Evidence, i64, updates)
          | st.builds(AccountState, i64, accounts) | st.builds(Reconciled, i64, states) | st.builds(Control, i64, texts, texts, dicts)
          | st.builds(Link, i64, texts, st.booleans(), texts))
commands = st.builds(Submit, intents) | st.builds(Cancel, texts, texts) | st.builds(Query, texts) | st.builds(Halt, texts, st.booleans())
notes = st.builds(Note, st.sampled_from(["signal", "refusal", "a:b"]), dicts)
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def same(a: Any, b: Any) -> bool:
    "Equal in type and in every bit, NaN included."
    if type(a) is not type(b): return False
    if isinstance(a, float): return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, Decimal): return a.as_tuple() == b.as_tuple()
    if isinstance(a, list | tuple): return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, set | frozenset): return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if isinstance(a, dict): return len(a) == len(b) and all(any(same(k, q) and same(a[k], b[q]) for q in b) for k in a)
    if dataclasses.is_dataclass(a): return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


def through(kind: str, obj: Any) -> Any:
    "Out to text and back."
    return decode(kind, orjson.loads(dumps(encode(obj))))


@many
@given(dicts)
def test_any_value_round_trips(d: dict[str, Any]) -> None:
    assert same(through("run:x", d), d)
    assert dumps(encode(through("run:x", d))) == dumps(encode(d))


@many
@given(events | commands | notes)
def test_events_commands_notes_round_trip(e: Any) -> None:
    assert same(through(kind_of(e), e), e)


@many
@given(intents | updates | orders | fills | accounts | borders | states | caps)
def test_records_round_trip(r: Any) -> None:
    assert same(through(type(r).__name__, r), r)


@many
@given(intents, st.sampled_from([f.name for f in fields(Intent)]), values)
def test_a_stranger_in_a_field_round_trips(i: Intent, name: str, v: Any) -> None:
    odd = replace(i, **{name: v})
    assert same(through("Intent", odd), odd)


@given(st.dictionaries(texts, ints, min_size=2, max_size=5))
def test_text_is_canonical(d: dict[str, int]) -> None:
    assert dumps(encode(d)) == dumps(encode(dict(reversed(d.items()))))


def test_every_event_and_command_is_known() -> None:
    assert set(get_args(Event)) - {Depth} == set(J.EVENTS.values())
    assert set(get_args(Command)) - {Note} == set(J.COMMANDS.values())


@pytest.mark.parametrize("bits", ["7ff8000000000001", "fff8000000000000", "7ff0000000000001"])
def test_nan_payload(bits: str) -> None:
    v = struct.unpack(">d", bytes.fromhex(bits))[0]
    assert struct.pack(">d", through("run:x", {"v": v})["v"]).hex() == bits


@pytest.mark.parametrize(("value", "back"), [(np.float32(0.1), float(np.float32(0.1))), (np.int8(-3), -3), (np.uint64(2**64 - 1), 2**64 - 1),
                                             (np.bool_(False), False), (np.float64("nan"), math.nan)])
def test_numpy_scalars_become_python(value: Any, back: Any) -> None:
    assert same(through("run:x", {"v": value})["v"], back)


class Money(int): ...


@pytest.mark.parametrize("value", [np.zeros(1), np.datetime64(1, "ns"), np.complex64(1), np.str_("x"), b"x", object(), Money(3), 1j,
                                   np.longdouble(1), copy.copy])
def test_what_has_no_exact_form_is_refused(value: Any) -> None:
    with pytest.raises(JournalError, match=r"data\.deep\.v"): encode({"deep": {"v": value}})
    with pytest.raises(JournalError): encode(value)


def test_a_refusal_does_not_show_the_value() -> None:
    class Token:
        def __repr__(self) -> str: return "hunter2"
    with pytest.raises(JournalError) as e: encode({"t": Token()})
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize(("kind", "data"), [
    ("event:Clock", {"ts": 1, "more": 2}), ("event:Clock", {}), ("event:Nope", {}), ("command:Nope", {}), ("command:Submit", {"intent": {}}),
    ("run:x", {"$dec": "x"}), ("run:x", {"$f": "zz"}), ("run:x", {"$what": 1}), ("run:x", {"$enum": ["Side", 9]}), ("run:x", {"$obj": ["os", {}]}),
    ("Account", {"ts": 1, "equity": "x", "cash": "1", "buying_power": "1"}), ("BrokerState", {"account": 1, "positions": [], "orders": []}),
    ("BrokerState", {"account": None, "positions": 5, "orders": []}),
])
def test_bad_data_is_refused(kind: str, data: dict[str, Any]) -> None:
    with pytest.raises(JournalError): decode(kind, data)


def test_a_missing_field_with_a_default_reads_as_its_default() -> None:
    u = Update(1, "c", UpdateKind.ACK)
    data = encode(u)
    del data["text"], data["cum_qty"]
    assert decode("Update", data) == u


# ---- the chain

N = 50


def journal() -> list[Record]:
    out: list[Record] = []
    for i in range(1, N + 1):
        prev = out[-1].hash if out else GENESIS
        out.append(make_record(prev, i, 1000 * i, "note:decision", {"i": i, "px": i * 0.1}, cursor=i * 7, corr=f"c{i % 5}"))
    return out


RS = journal()
HEAD = RS[-1].hash


def test_whole_journal() -> None:
    v = verify(RS, HEAD, N)
    assert (v.ok, v.first_bad_seq, v.reason, v.head, v.count) == (True, None, "", HEAD, N)
    assert verify(iter(RS)).ok
    assert payload(RS[3]) == Note("decision", {"i": 4, "px": 4 * 0.1})


def flip(r: Record, name: str) -> Record:
    "One field altered in the smallest way."
    v = getattr(r, name)
    if isinstance(v, int): return replace(r, **{name: v + 1})
    return replace(r, **{name: v[:-1] + ("0" if v[-1:] != "0" else "1")})


@pytest.mark.parametrize("name", ["ts", "cursor", "kind", "corr", "data", "prev", "hash"])
def test_every_edit_names_its_record(name: str) -> None:
    for k in range(N):
        v = verify(RS[:k] + [flip(RS[k], name)] + RS[k + 1:], HEAD, N)
        assert (v.ok, v.first_bad_seq, v.count) == (False, k + 1, k), (k, v)
        assert v.reason.startswith("edited") and v.head == (RS[k - 1].hash if k else GENESIS)


def test_every_rehashed_edit_names_its_record() -> None:
    for k in range(N):
        r = flip(RS[k], "ts")
        r = replace(r, hash=chain_hash(r.prev, r))
        v = verify(RS[:k] + [r] + RS[k + 1:], HEAD, N)
        assert (v.ok, v.first_bad_seq, v.count) == (False, k + 1, k) and v.reason.startswith("rewritten"), (k, v)


def test_every_deletion_names_its_record() -> None:
    for k in range(N):
        v = verify(RS[:k] + RS[k + 1:], HEAD, N)
        assert (v.ok, v.first_bad_seq) == (False, k + 1) and v.reason.startswith("deleted" if k < N - 1 else "truncated"), (k, v)


def test_every_truncation_is_seen_against_the_stated_head() -> None:
    for k in range(N):
        for stated in ({"head": HEAD}, {"head": HEAD, "count": N}, {"count": N}):
            v = verify(RS[:k], **stated)
            assert (v.ok, v.first_bad_seq, v.count) == (False, k + 1, k) and v.reason.startswith("truncated"), (k, v)


def test_every_swap_names_the_first_of_the_two() -> None:
    for i in range(N):
        for j in range(i + 1, N):
            rs = list(RS)
            rs[i], rs[j] = rs[j], rs[i]
            v = verify(rs, HEAD, N)
            assert (v.ok, v.first_bad_seq) == (False, i + 1) and v.reason.startswith("reordered"), (i, j, v)
            rs[i], rs[j] = replace(rs[i], seq=i + 1), replace(rs[j], seq=j + 1)  # contents swapped under their old numbers
            assert verify(rs, HEAD, N).first_bad_seq == i + 1


def test_every_insertion_is_named() -> None:
    for k in range(N):
        v = verify(RS[:k + 1] + RS[k:], HEAD, N)  # a record stands twice
        assert (v.ok, v.first_bad_seq) == (False, k + 2) and v.reason.startswith("inserted"), (k, v)
        fake = make_record(RS[k].prev, k + 1, 1, "note:decision", {})  # a forged one before record k + 1
        v = verify(RS[:k] + [fake] + RS[k:], HEAD, N)
        assert not v.ok and v.first_bad_seq in (k + 1, k + 2), (k, v)
    v = verify([*RS, make_record(HEAD, N + 1, 1, "note:decision", {})], HEAD, N)
    assert (v.first_bad_seq, v.reason.split(":")[0]) == (N + 1, "inserted")


def test_an_empty_journal_with_a_stated_head() -> None:
    assert verify([], HEAD, 0).first_bad_seq == 1
    assert verify([], HEAD, 1).first_bad_seq == 1


def test_fields_cannot_run_into_each_other() -> None:
    a = make_record(GENESIS, 1, 1, "note:ab", {}, corr="c")
    assert chain_hash(GENESIS, replace(a, kind="note:a", corr="bc")) != a.hash
    assert chain_hash(GENESIS, replace(a, seq=11, ts=1)) != chain_hash(GENESIS, replace(a, seq=1, ts=11))


@pytest.mark.parametrize("bad", [dict(ts=1.5), dict(ts="1"), dict(cursor=True), dict(cursor=np.bool_(True)), dict(ts=-2**63 - 1), dict(kind="x"),
                                 dict(kind=":x"), dict(kind="x:"), dict(kind="a:\n"), dict(corr="é"), dict(corr="\0")])
def test_bad_records_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(JournalError): make_record(**{"prev": GENESIS, "seq": 1, "ts": 1, "kind": "run:x", "obj": {}} | bad)
