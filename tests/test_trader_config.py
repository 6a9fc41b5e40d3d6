"""A configuration is taken exactly as written, or refused with everything that is wrong with it."""
import json
import os
import pickle
import subprocess
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from scalp_nb.feed.errors import ConfigError
from scalp_nb.trader import config as C
from scalp_nb.trader.config import (
    DataSection,
    InvalidConfig,
    LiveMoney,
    RunSection,
    Section,
    SessionSection,
    StoreSection,
    config_hash,
    data_hash,
    git_state,
    live_phrase,
    load_config,
    looks_secret,
    merge,
    provenance,
    read_yaml,
    require_live,
    secret,
    shown,
    span_ns,
    updated,
)


class Lot(IntEnum):
    ONE = 1
    TEN = 10


class Mode(StrEnum):
    CHASE = "chase"
    CANCEL = "cancel"


class Risk(Section):
    max_daily_loss_pct: float = Field(5.0, gt=0, le=100)
    max_trades: int = Field(10, ge=1, le=1000)
    shorts: bool = True
    fee: Decimal = Field(Decimal("0.10"), ge=0)
    mode: Mode = Mode.CHASE
    lot: Lot = Lot.ONE
    lots: tuple[Lot, ...] = ()
    windows: tuple[tuple[time, time], ...] = ()
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    tag: Annotated[str, Field(min_length=1, max_length=5)] = "x"
    opened: Literal["auction", 9] = "auction"


class Careless(BaseModel):  # a model that forgot to be strict
    n: int = 1


class Conf(Section):
    run: RunSection = RunSection()
    data: DataSection = DataSection()
    session: SessionSection = SessionSection()
    store: StoreSection = StoreSection()
    live: LiveMoney = LiveMoney()
    risk: Risk = Risk()
    backup: Risk | None = None
    careless: Careless = Careless()
    day: date | None = None


def names(overrides: dict[Any, Any], model: type[BaseModel] = Conf, path: Path | None = None) -> dict[str, tuple[str, str]]:
    with pytest.raises(InvalidConfig) as e: load_config(model, path, overrides)
    assert isinstance(e.value, ConfigError)
    return {p.name: (p.value, p.allowed) for p in e.value.problems}


@pytest.fixture
def yml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        (p := tmp_path / "c.yaml").write_text(text)
        return p
    return write


# ---- YAML

@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n", "On", "NO", "tRue"])
def test_only_true_and_false_are_booleans(yml: Any, word: str) -> None:
    assert read_yaml(yml(f"a: {word}")) == {"a": word}
    assert names({}, path=yml(f"risk: {{shorts: {word}}}")) == {"risk.shorts": (repr(word), "true or false, without quotes")}


@pytest.mark.parametrize(("text", "value"), [
    ("true", True), ("False", False), ("1e3", 1000.0), ("1E-3", 0.001), ("1.", 1.0), (".5", 0.5), ("-0.0", -0.0), ("+7", 7), ("0", 0),
    ("010", "010"), ("0x1f", "0x1f"), ("0o17", "0o17"), ("1_000", "1_000"), ("09:20", "09:20"), ("1:30", "1:30"), ("190:20:30", "190:20:30"),
    ("2026-11-20", date(2026, 11, 20)), ("2026-11-20 09:20:00", "2026-11-20 09:20:00"), ("2026-1-2", "2026-1-2"), ("'2026-11-20'", "2026-11-20"),
    ("~", None), ("null", None), ("", None), ("=", "="), ("1e", "1e"), ("e3", "e3"), (".inf", float("inf")), ("'5'", "5"), ("1.2.3", "1.2.3"),
])
def test_scalars_are_what_they_look_like(yml: Any, text: str, value: Any) -> None:
    got = read_yaml(yml(f"a: {text}"))["a"]
    assert type(got) is type(value) and got == value


@pytest.mark.parametrize(("text", "says"), [
    ("a: 1\nb:\n  c: 1\n  c: 2", "line 4: the key 'c' is given twice"), ("a: [1", "line"), ("a: 2026-02-30", "day"), ("- 1", "holds a list"),
    ("5", "holds a int"), ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"), ("a: *x", "undefined alias"),
    ("\x00", "special characters"), ("? [1]\n: 2", "a key must be a name"), ("? {a: 1}\n: 2", "line 1: a key must be a name"),
])
def test_broken_files_are_refused(yml: Any, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says): read_yaml(yml(text))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"a: \xff")
    for p in (tmp_path / "none.yaml", tmp_path, tmp_path / "c.yaml"):
        with pytest.raises(ConfigError, match="cannot be read"): read_yaml(p)


def test_anchors_work(yml: Any) -> None:
    assert read_yaml(yml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"))["b"] == {"x": 1, "y": 3}


letters = st.characters(codec="utf-8", max_codepoint=0xFFFF)  # PyYAML does not join escaped surrogate pairs


@given(st.dictionaries(st.text(letters, min_size=1, max_size=8), st.none() | st.booleans() | st.integers(-10**15, 10**15)
                       | st.floats(allow_nan=False, allow_infinity=False) | st.text(letters, max_size=10), max_size=5))
def test_what_json_writes_yaml_reads(tmp_path_factory: pytest.TempPathFactory, d: dict[str, Any]) -> None:
    p = tmp_path_factory.mktemp("y") / "c.yaml"
    p.write_text(json.dumps(d))
    assert read_yaml(p) == d


# ---- merging

def test_file_then_parameters(yml: Any) -> None:
    p = yml("run: {name: a, seed: 3}\nrisk:\n  max_trades: 7\n  windows: [['09:20', '11:00'], ['13:00', '15:00']]\nday: 2026-11-20\n")
    c = load_config(Conf, p, {"risk": {"fee": 0.3}, "risk.mode": "cancel", "run.name": "b", "day": "2026-11-21", "risk.lots": [1, 10]})
    assert (c.run.name, c.run.seed, c.risk.max_trades, c.risk.fee, c.risk.mode) == ("b", 3, 7, Decimal("0.3"), Mode.CANCEL)
    assert c.risk.windows == ((time(9, 20), time(11)), (time(13), time(15)))
    assert c.day == date(2026, 11, 21) and c.risk.lots == (Lot.ONE, Lot.TEN)
    assert load_config(Conf) == Conf() and load_config(Conf, yml("")) == Conf()


def test_values_of_python_types_pass() -> None:
    c = load_config(Conf, None, {"run.out_dir": Path("x"), "day": date(2026, 1, 2), "risk": Risk(max_trades=3),
                                 "data.start": datetime(2026, 1, 2, 3, tzinfo=UTC)})
    assert (c.run.out_dir, c.day, c.risk.max_trades) == (Path("x"), date(2026, 1, 2), 3)
    assert span_ns(c.data)[0] == 1_767_322_800_000_000_000


@pytest.mark.parametrize(("overrides", "bad"), [
    ({"risk.fee": 1, "risk": {"fee": 2}}, "risk.fee"), ({"risk": 5, "risk.fee": 1}, "risk.fee"), ({"risk.fee": 1, "risk": 5}, "risk"),
    ({"risk..fee": 1}, "risk..fee"), ({"": 1}, ""), ({".risk": 1}, ".risk"),
])
def test_ambiguous_parameters_are_refused(overrides: dict[str, Any], bad: str) -> None:
    assert bad in [p.name for p in merge({}, overrides)[1]]
    with pytest.raises(InvalidConfig): load_config(Conf, None, overrides)


def test_a_scalar_for_a_section_and_back(yml: Any) -> None:
    assert names({"risk": 5})["risk"] == ("5", "a section")
    assert load_config(Conf, yml("risk: 5"), {"risk.max_trades": 2}).risk.max_trades == 2


# ---- refusals

@pytest.mark.parametrize(("name", "value", "got", "allowed"), [
    ("risk.shorts", "false", "'false'", "true or false, without quotes"),
    ("risk.shorts", 0, "0", "true or false, without quotes"),
    ("risk.max_trades", True, "True", "a whole number, without quotes, ≥ 1, ≤ 1000"),
    ("risk.max_trades", 3.0, "3.0", "a whole number, without quotes, ≥ 1, ≤ 1000"),
    ("risk.max_trades", "3", "'3'", "a whole number, without quotes, ≥ 1, ≤ 1000"),
    ("risk.max_trades", 1001, "1001", "a whole number, without quotes, ≥ 1, ≤ 1000"),
    ("risk.max_trades", None, "None", "a whole number, without quotes, ≥ 1, ≤ 1000"),
    ("risk.max_daily_loss_pct", True, "True", "a number, without quotes, > 0, ≤ 100"),
    ("risk.max_daily_loss_pct", 0, "0", "a number, without quotes, > 0, ≤ 100"),
    ("risk.max_daily_loss_pct", 100.0001, "100.0001", "a number, without quotes, > 0, ≤ 100"),
    ("risk.max_daily_loss_pct", float("nan"), "nan", "a finite number"),
    ("risk.max_daily_loss_pct", float("-inf"), "-inf", "a finite number"),
    ("risk.fee", Decimal("NaN"), "Decimal('NaN')", "a finite number"),
    ("risk.fee", -0.1, "-0.1", "a number, without quotes, ≥ 0.0"),
    ("risk.fee", True, "True", "a number, without quotes, ≥ 0.0"),
    ("risk.mode", "Chase", "'Chase'", "one of 'chase', 'cancel'"),
    ("risk.lot", True, "True", "one of 1, 10"),
    ("risk.lot", 2, "2", "one of 1, 10"),
    ("risk.lots", [1, True], "True", "one of 1, 10"),
    ("risk.tag", "", "''", "text, at least 1 characters, at most 5 characters"),
    ("risk.tag", 5, "5", "text, at least 1 characters, at most 5 characters"),
    ("risk.tag", "\ud800", "'\\ud800'", "valid Unicode text"),
    ("risk.opened", "x", "'x'", "one of 'auction', 9"),
    ("risk.weights", {"a": -1}, "-1", "a number, without quotes, > 0"),
    ("risk.max_trades", 10**30, "an integer beyond 64 bits", "64 bits"),
    ("risk.max_trades", np.int64(3), "a numpy.int64", "a plain value: text, number, boolean, date, list"),
    ("risk.max_daily_loss_pct", np.float64(3), "a numpy.float64", "a plain value: text, number, boolean, date, list"),
    ("risk.max_trades", {1}, "a builtins.set", "a plain value: text, number, boolean, date, list"),
    ("careless.n", "3", "'3'", "a whole number, without quotes"),
    ("day", 20261120, "20261120", "a date, YYYY-MM-DD or nothing (null)"),
    ("day", "2026-02-30", "'2026-02-30'", "a date, YYYY-MM-DD or nothing (null)"),
    ("day", "20/11/2026", "'20/11/2026'", "a date, YYYY-MM-DD or nothing (null)"),
    ("data.start", "2026-11-20T09:30", "'2026-11-20T09:30'",
     "a date, YYYY-MM-DD or a time with its UTC offset, e.g. 2026-11-20T09:30:00+05:30 or nothing (null)"),
    ("backup.max_trades", 0, "0", "a whole number, without quotes, ≥ 1, ≤ 1000"),
    ("live.enabled", "yes", "'yes'", "true or false, without quotes"),
    ("session.on_lease_lost", "panic", "'panic'", "one of 'flatten', 'cancel', 'hold'"),
])
def test_refusals_give_name_value_and_range(name: str, value: Any, got: str, allowed: str) -> None:
    found = names({name: value})
    at = next(n for n in found if n.startswith(name))
    assert found == {at: (got, allowed)}


def test_a_list_of_pairs_is_checked(yml: Any) -> None:
    assert "risk.windows.0" in next(iter(names({"risk.windows": [["09:20"]]})))
    assert "risk.windows.0" in next(iter(names({"risk.windows": [["09:20", 930]]})))


def test_everything_is_listed_at_once() -> None:
    found = names({"risk": {"max_trades": 0, "shorts": "no", "max_trade": 1, "fee": float("inf")}, "sesion.heartbeat_s": 1, "zzz": 1,
                   "run.seed": -1})
    assert set(found) == {"risk.max_trades", "risk.shorts", "risk.max_trade", "risk.fee", "sesion", "zzz", "run.seed"}


@pytest.mark.parametrize(("name", "hint"), [("risk.max_trade", "risk.max_trades"), ("max_trades", "risk.max_trades"),
                                            ("risk.heartbeat_s", "session.heartbeat_s"), ("seesion", "session"),
                                            ("risk.shrots", "risk.shorts"), ("careless.m", None), ("qqqqq", None), (5, None)])
def test_unknown_names_get_the_nearest_known_one(name: Any, hint: str | None) -> None:
    (allowed,) = [a for _, a in names({name: 1}).values()]
    assert (f"did you mean {hint!r}?" in allowed) if hint else allowed.startswith("a known name")


@pytest.mark.parametrize("key", ["api_key", "alpaca.secret_key", "risk.password", "broker.totp_seed", "run.accessToken", "live.mpin",
                                 "risk.weights.api_key", "a.b.c.token"])
def test_secrets_are_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidConfig) as e: load_config(Conf, None, {key: "hunter2"})
    assert "hunter2" not in str(e.value) + repr(e.value) and "put it in the environment as" in str(e.value)


def test_a_secret_is_not_shown_by_another_fault_either() -> None:
    with pytest.raises(InvalidConfig) as e: load_config(Conf, None, {"store.url": "postgresql://me:hunter2@db/x", "zz": {"password": "hunter2"}})
    assert "hunter2" not in str(e.value)
    with pytest.raises(InvalidConfig) as e:
        load_config(Conf, None, {"data.symbols": [{"password": "hunter2"}], "store.url": "postgresql://h/d?password=hunter2"})
    assert "hunter2" not in str(e.value)
    with pytest.raises(InvalidConfig) as e: load_config(Conf, None, {"store.url": "postgresql://me:hun/ter2@db/x"})
    assert "ter2" not in str(e.value)
    with pytest.raises(InvalidConfig) as e: load_config(Conf, None, {"zz": "postgresql://me:hunter2@db/x", "run": "mysql://me:hunter2@db/x"})
    assert "hunter2" not in str(e.value)


def test_required_values() -> None:
    class Need(Section):
        name: str
        n: Annotated[int, Field(ge=1)]
    assert names({}, Need) == {"name": ("nothing", "text (required)"), "n": ("nothing", "a whole number, without quotes, ≥ 1 (required)")}


def test_shown() -> None:
    assert shown(10**5000) == "an endless number" and not looks_secret("key") and shown("x" * 99).endswith("...")


def test_a_configuration_cannot_be_changed_but_updated() -> None:
    c = load_config(Conf, None, {"risk.windows": [["09:20", "10:00"]]})
    with pytest.raises(Exception, match="frozen"): c.risk.max_trades = 5  # type: ignore[misc]
    d = updated(c, {"risk.max_trades": 5})
    assert (c.risk.max_trades, d.risk.max_trades, d.risk.windows) == (10, 5, c.risk.windows)
    with pytest.raises(InvalidConfig, match="risk.max_trades: got 0"): updated(c, {"risk.max_trades": 0})
    with pytest.raises(InvalidConfig, match="two values"): updated(c, {"risk.max_trades": 1, "risk": {"max_trades": 2}})
    assert pickle.loads(pickle.dumps(d)) == d


# ---- sections

def test_span() -> None:
    assert span_ns(DataSection()) == (None, None)
    c = load_config(DataSection, None, {"start": "2026-11-20", "end": "2026-11-20T10:00:00.123456Z"})
    day = int((datetime(2026, 11, 20) - datetime(1970, 1, 1)) / timedelta(days=1)) * 86_400 * 10**9
    assert span_ns(c) == (day, day + 36_000_123_456_000)
    assert span_ns(load_config(DataSection, None, {"end": "2026-11-20"})) == (None, day + 86_400 * 10**9)
    assert "a start before its end" in str(names({"start": "2026-11-21", "end": "2026-11-20"}, DataSection))


@pytest.mark.parametrize("name", ["../x", "", "a b", "x" * 65, "-x", ".x", "a/b", "a\n"])
def test_names_that_are_no_file_names(name: str) -> None:
    assert set(names({"account": name, "name": name}, RunSection)) == {"account", "name"}


def test_live_money_needs_three_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    p = live_phrase("acct")
    monkeypatch.setenv("SCALP_LIVE_CONFIRM", p)
    assert require_live(LiveMoney(), "acct") is False
    assert require_live(LiveMoney(enabled=True, confirm=p), "acct") is True
    for live, account, env in ((LiveMoney(enabled=True), "acct", p), (LiveMoney(confirm=p), "acct", p),
                               (LiveMoney(enabled=True, confirm=p), "acc", p),
                               (LiveMoney(enabled=True, confirm=p), "acct", p.upper()), (LiveMoney(enabled=True, confirm=p + "\n"), "acct", p)):
        monkeypatch.setenv("SCALP_LIVE_CONFIRM", env)
        with pytest.raises(InvalidConfig, match="exactly|true, or remove"): require_live(live, account)
    monkeypatch.delenv("SCALP_LIVE_CONFIRM")
    with pytest.raises(InvalidConfig, match="SCALP_LIVE_CONFIRM"): require_live(LiveMoney(enabled=True, confirm=p), "acct")


def test_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALP_TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="SCALP_TEST_KEY is not set"): secret("SCALP_TEST_KEY")
    Path(".env").write_text('SCALP_TEST_KEY="hunter2"\n')
    s = secret("SCALP_TEST_KEY")
    assert s.get_secret_value() == "hunter2" and "hunter2" not in repr(s) + str(s) + f"{s}" and "SCALP_TEST_KEY" not in os.environ
    monkeypatch.setenv("SCALP_TEST_KEY", "other")
    assert secret("SCALP_TEST_KEY").get_secret_value() == "other"


# ---- provenance

def git(d: Path, *args: str) -> str:
    out = subprocess.run(["git", "-C", str(d), "-c", "user.name=t", "-c", "user.email=t@t", *args], check=True, capture_output=True, text=True)
    return out.stdout.strip()


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "x")
    assert git_state(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["dirty"] is True


def test_git_state_inside_somebody_elses_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "x")
    (inner := tmp_path / "venv" / "scalp_nb").mkdir(parents=True)
    monkeypatch.setattr(C, "__file__", str(inner / "config.py"))
    assert git_state() == {"commit": None, "dirty": None}


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == {"commit": None, "dirty": None}


def test_provenance(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"abc")
    facts = provenance(Conf(), tmp_path / "d")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["config_hash"] == config_hash(load_config(Conf, None, {"risk.max_trades": 10})) != config_hash(Conf(day=date(2026, 1, 1)))
    assert facts["data_hash"] == data_hash(tmp_path / "d") != data_hash(tmp_path / "d" / "a")
    assert facts["numpy"] == np.__version__ and facts["lock"]["numpy"] == np.__version__
    assert provenance(Conf())["data_hash"] is None
    with pytest.raises(ConfigError, match="cannot be read"): provenance(Conf(), tmp_path / "none")
