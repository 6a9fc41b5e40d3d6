"""A promoted parameter set on its way to money: into the run's configuration, through the session process, into journal, report and live notebook."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from markets import DAY, synthetic

from scalp_nb.feed.errors import ConfigError
from scalp_nb.feed.recorder import write_parquet
from scalp_nb.live import notebook as live
from scalp_nb.research.stats import economics_of
from scalp_nb.research.validate import Evidence, GateConfig, Promoted, Verdict, economics_checks, judge, make_trades, promote
from scalp_nb.strategy.barplan import BarPlan, legs
from scalp_nb.trader import session
from scalp_nb.trader.config import InvalidConfig, LiveMoney, live_phrase, load_config
from scalp_nb.trader.promoted import PromotionError, checked, load_promoted, plan_parameters, require_promoted, seal, with_file
from scalp_nb.trader.report import assumptions, load_run
from scalp_nb.trader.setup import LIVE, RunConfig, refuse_live

ROOT = Path(__file__).resolve().parents[1]
TODAY = datetime.now(UTC).date()
PHRASE = live_phrase("paper")
PARAMETERS = {"lower": 0.71, "upper": 0.95, "depth_multiplier": 1.5, "stop_pct": 0.002, "target_pct": 0.008, "hold_s": 60.0}


def judged(random_p: float | None = 0.005, **thresholds: Any) -> Verdict:
    "A verdict with the figures that matter here; how the gate comes to them is tested in test_research_gate.py."
    cfg = GateConfig(**thresholds)
    figures = [checked("sessions", 60, ">=", cfg.min_sessions), checked("trades", 180, ">=", cfg.min_trades),
               checked("deflated Sharpe ratio", 0.99, ">=", cfg.dsr_min), checked("walk-forward mean session return, bps", 4.2, ">", 0.0),
               checked("random entries as good, p", random_p, "<=", cfg.alpha, "no random-entry benchmark in the evidence")]
    return judge([*figures, *economics_checks(economics_of(3.0, 1.0, 0.002, 0.008, [0.002, -0.001], "an order of 100000"))], cfg)


def write_promoted(path: Path, v: Verdict, last: date, parameters: dict[str, Any] | None = None, **kw: Any) -> Promoted:
    "A promoted set proved on the 60 days until `last`."
    x = np.random.default_rng(1).normal(1e-3, 1e-3, (60, 2))
    ev = Evidence([last - timedelta(days=59 - i) for i in range(60)], x, 0, 45, make_trades(np.arange(60), 0, 1, 1, x[:, 0], 0.0), np.array([1]))
    return promote(path, "pressure", parameters or PARAMETERS, {"tape-21": "0" * 64}, ev, v, 1_767_225_600_000_000_000, **kw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Promoted sets: good, one for each reason to refuse, and a recording to trade on."
    at = tmp_path_factory.mktemp("promoted")
    def write(name: str, v: Verdict, last: date = TODAY - timedelta(days=1), **kw: Any) -> None: write_promoted(at / name, v, last, **kw)
    write("good.yaml", judged())
    write("paper.yaml", judged(), DAY - timedelta(days=1))
    write("failed.yaml", judged(None))
    write("lax.yaml", judged(alpha=0.2))
    write("changed.yaml", judged(), kernel="0" * 64)
    write("expired.yaml", judged(), TODAY - timedelta(days=200))
    write("sample.yaml", judged(), DAY)
    (at / "altered.yaml").write_text((at / "good.yaml").read_text().replace("lower: 0.71", "lower: 0.61"))
    rows, uni = synthetic(n_symbols=1, seconds=300, seed=5, episode_every_s=30.0, episode_s=20.0)
    write_parquet(rows, uni, at / "tape.parquet")
    return at


pytestmark = pytest.mark.usefixtures("restore_signals")


def yaml_of(at: Path, folder: Path, promoted: str | None, real: bool, **over: Any) -> Path:
    "A run's YAML."
    cfg: dict[str, Any] = {"data": {"recording": str(folder / "tape.parquet")}, "session": {"drain_timeout_s": 5.0}} | over
    if promoted: cfg["promoted"] = str(folder / promoted)
    if real: cfg["live"] = {"enabled": True, "confirm": PHRASE}
    (at / "cfg.yaml").write_text(yaml.safe_dump(cfg))
    return at / "cfg.yaml"


REFUSED = [
    (None, {}, "proved parameters only"),
    ("none.yaml", {}, "promote a set first"),
    ("failed.yaml", {}, "did not pass the gate"),
    ("altered.yaml", {}, "changed since it was promoted"),
    ("expired.yaml", {}, "days before"),
    ("changed.yaml", {}, "strategy code changed since it was promoted"),
    ("lax.yaml", {}, "laxer threshold: alpha 0.2"),
    ("good.yaml", {"strategy": {"lower": 0.7}}, "strategy.lower: got 0.7; allowed: 0.71, as promoted"),
    ("good.yaml", {"strategy": {"rest_s": 1.0}}, "strategy.rest_s is 1.0, not in the file"),
    ("good.yaml", {}, "false with venue.broker: paper"),   # the set is in order: what is left is that there is no venue for real money
]


@pytest.mark.parametrize(("name", "over", "words"), REFUSED)
def test_real_money_is_refused_by_the_session_itself(name: str | None, over: dict[str, Any], words: str, folder: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    "Exit status 2, the reason in words, and nothing opened: no store, no venue, no control server."
    monkeypatch.setenv("SCALP_LIVE_CONFIRM", PHRASE)
    status = session.main([str(yaml_of(tmp_path, folder, name, True, **over)), str(tmp_path / "run")])
    assert status == session.EXIT_CONFIG and words in capsys.readouterr().err
    assert not {"store.db", "venue.jsonl", "control.json"} & {p.name for p in (tmp_path / "run").glob("*")}


def test_real_money_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    config = str(yaml_of(tmp_path, folder, "failed.yaml", True))
    got = subprocess.run([sys.executable, "-m", "scalp_nb.trader.session", config, str(tmp_path / "run")],
                         env={**os.environ, "PYTHONPATH": str(ROOT), "SCALP_LIVE_CONFIRM": PHRASE}, capture_output=True, text=True, check=False)
    assert got.returncode == 2 and "random entries as good" in got.stderr and "did not pass the gate" in got.stderr, got.stderr
    assert not (tmp_path / "run" / "store.db").exists()


def test_the_gate_of_live_money_asked_directly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALP_LIVE_CONFIRM", PHRASE)
    cfg = RunConfig(live=LiveMoney(enabled=True, confirm=PHRASE))
    with pytest.raises(PromotionError, match="proved parameters only"): refuse_live(cfg)
    with pytest.raises(PromotionError, match="promoted was 0.71"): refuse_live(cfg.model_copy(update={"promoted": folder / "good.yaml"}))
    monkeypatch.delenv("SCALP_LIVE_CONFIRM")
    with pytest.raises(InvalidConfig, match="SCALP_LIVE_CONFIRM"): refuse_live(cfg)   # half-confirmed: that comes first


@pytest.mark.parametrize("broker", sorted(LIVE))
def test_real_money_needs_phrase_twice_promoted_set_and_live_venue(broker: str, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    "With all of it the gate opens; without any one of them it stays shut. Nothing connects here: the gate comes before any connection."
    def asked(promoted: str = "good.yaml", real: bool = True, **over: Any) -> RunConfig:
        cfg = load_config(RunConfig, yaml_of(tmp_path, folder, promoted, real, **{"venue": {"broker": broker}, "data": {}} | over))
        return with_file(cfg, cfg.promoted)
    monkeypatch.setenv("SCALP_LIVE_CONFIRM", PHRASE)
    refuse_live(asked())
    with pytest.raises(PromotionError, match="did not pass the gate"): refuse_live(asked("failed.yaml"))
    with pytest.raises(ConfigError, match="false with venue.broker: paper"): refuse_live(asked(venue={"broker": "paper"}))
    with pytest.raises(ConfigError, match="typed twice"): refuse_live(asked(real=False))
    monkeypatch.setenv("SCALP_LIVE_CONFIRM", PHRASE[:-1])
    with pytest.raises(InvalidConfig, match="SCALP_LIVE_CONFIRM"): refuse_live(asked())


def test_a_resealed_verdict_does_not_help(folder: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((folder / "failed.yaml").read_text())
    content["gate"]["passed"] = True
    content["sha256"] = seal({k: v for k, v in content.items() if k != "sha256"})
    (tmp_path / "resealed.json").write_text(json.dumps(content))
    with pytest.raises(PromotionError, match="from its own figures"): load_promoted(tmp_path / "resealed.json", True, True)


@pytest.mark.parametrize(("name", "words"), [("failed.yaml", ["DID NOT PASS THE GATE"]), ("changed.yaml", ["CODE_CHANGED"]),
                                             ("sample.yaml", ["passed the gate", "IN_SAMPLE"])])
def test_on_paper_a_doubtful_set_runs_and_says_so(name: str, words: list[str], folder: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    "The promoted values are the run's, and journal, report and stderr carry hash, verdict and doubts."
    status = session.main([str(yaml_of(tmp_path, folder, name, False)), str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert status == 0 and all(w in err for w in words), err
    run, held = load_run(tmp_path / "run"), load_promoted(folder / name, True, True)
    told = run.begin["promoted"]
    assert (told["sha256"], told["passed"], told["trials"]) == (held.sha256, held.passed, held.trials)
    assert (run.config["strategy"]["lower"], run.config["exits"]["time_stop_s"]) == (0.71, 60.0)
    said = assumptions(run)
    assert held.sha256[:12] in said["promoted_set"] and all(w in said["promoted_set"] for w in words) and said["parameter_sets_tried"] == held.trials
    assert "break-even win rate" in told["economics"]


def test_an_altered_file_is_not_believed_on_paper_either(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert session.main([str(yaml_of(tmp_path, folder, "altered.yaml", False)), str(tmp_path / "run")]) == session.EXIT_CONFIG
    assert "changed since it was promoted" in capsys.readouterr().err


def test_a_running_strategy_is_not_changed_with_real_money(tmp_path: Path) -> None:
    "The control request is refused and journalled; limits may still be changed."
    class Kept:
        rows: list[dict[str, Any]] = []
        def append(self, kind: str, ts: int, data: dict[str, Any], **kw: Any) -> None: self.rows.append({"kind": kind, **data})
    class Sent:
        events: list[Any] = []
        trader = type("T", (), {"now": 1, "cursor": 0})()
        def send(self, event: Any) -> None: self.events.append(event)
    run = session.Run(RunConfig(live=LiveMoney(enabled=True, confirm=PHRASE)), tmp_path)
    run.store, run.runner = Kept(), Sent()  # type: ignore[assignment]
    session.request(run, "set", "me", path="strategy.lower", value=0.6)
    session.request(run, "set", "me", path="risk.max_trades_per_day", value=3)
    assert [e.args["path"] for e in Sent.events] == ["risk.max_trades_per_day"]
    assert [r["kind"] for r in Kept.rows] == ["run:refused"] and "promoted parameter" in Kept.rows[0]["reason"]


# ---- strategies on bars -----------------------------------------------------------------------------------------------------------------

MINE = """
from numba import njit
from scalp_nb.strategy.indicators import sma
from scalp_nb.strategy.protocol import CLOSE, INDICATORS, SIDE, STRENGTH, BarParams, BarStrategy

@njit
def above(state, p, x, out):
    now = 1.0 if x[CLOSE] > x[INDICATORS] else -1.0
    if state[0] != 0.0 and now != state[0]: out[SIDE], out[STRENGTH] = now, 50.0
    if x[INDICATORS] == x[INDICATORS]: state[0] = now

class P(BarParams):
    period: int = 3

MINE = BarStrategy("NAME", "Follow the close across its average.", P, above, lambda p: (sma(p.period),), lambda p: (), lambda p: p.period + 1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    "A user's strategy in a module of its own."
    from scalp_nb.strategy import protocol
    (tmp_path / "own_rule.py").write_text(MINE.replace("NAME", "own_above"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_rule:MINE"
    sys.modules.pop("own_rule", None)
    protocol._KNOWN.pop("own_above", None)


def promoted_plan(path: Path, plan: BarPlan, last: date = DAY - timedelta(days=1)) -> Promoted:
    x = np.random.default_rng(1).normal(1e-3, 1e-3, (60, 2))
    ev = Evidence([last - timedelta(days=59 - i) for i in range(60)], x, 0, 45, make_trades(np.arange(60), 0, 1, 1, x[:, 0], 0.0), np.array([1]))
    return promote(path, plan.name, plan_parameters(plan), {"bars": "0" * 64}, ev, judged(), 1_767_225_600_000_000_000)


def test_a_combination_with_a_users_rule_is_promoted_traded_and_refused_when_its_file_changes(own: str, folder: Path, tmp_path: Path,
                                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    "Members, bar sizes and volatility scaling come from the file; journal and report name it; a changed rule is no longer proved."
    vol = {"vol": {"estimate": "stdev", "period": 3, "size": True}}
    plan = BarPlan.model_validate({"name": "combine", "mode": "any", "members": [
        {"strategy": own, "params": {"bar_s": 5} | vol}, {"strategy": "sma_crossover", "params": {"bar_s": 10, "fast_period": 2, "slow_period": 3}}]})
    held = promoted_plan(tmp_path / "set.yaml", plan)
    run_yaml = str(yaml_of(tmp_path, folder, str(tmp_path / "set.yaml"), False, risk={"avoid_first_minutes": 0}))
    assert session.main([run_yaml, str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    section = run.config["strategy"]
    assert section["name"] == "combine" and section["members"][0]["params"]["vol"]["period"] == 3 and section["members"][1]["params"]["bar_s"] == 10
    assert run.begin["strategy"] == "any of own_above on 5 s bars, sma_crossover on 10 s bars" and len(run.fills) > 0
    assert run.begin["promoted"]["sha256"] == held.sha256 and run.begin["promoted"]["concerns"] == {}
    assert held.sha256[:12] in assumptions(run)["promoted_set"]
    monkeypatch.setenv("SCALP_LIVE_CONFIRM", PHRASE)
    money = with_file(load_config(RunConfig, None, {"promoted": str(tmp_path / "set.yaml")}), tmp_path / "set.yaml")
    assert require_promoted(tmp_path / "set.yaml", money, DAY).sha256 == held.sha256
    (tmp_path / "own_rule.py").write_text(MINE.replace("NAME", "own_above").replace("50.0", "60.0"))
    with pytest.raises(PromotionError, match="strategy code changed"): require_promoted(tmp_path / "set.yaml", money, DAY)
    assert session.main([run_yaml, str(tmp_path / "again")]) == 0   # on paper it runs and says so
    assert "code_changed" in load_run(tmp_path / "again").begin["promoted"]["concerns"]


def test_a_swept_set_of_bars_is_promoted_as_it_was_proved(own: str, tmp_path: Path) -> None:
    "From the sweep of a user's rule over bars to the run's configuration: the same parameters, and the sweep's evidence under the seal."
    from scalp_nb.research import barsweep as b
    from scalp_nb.research.trials import TrialLog
    bars, universe = b.walk_bars(2, 6, reversion=0.4)
    rec, space = b.bar_recording("walk", bars, universe), b.bar_space(own, {"period": [3, 5]}, stop_loss_pct=0.5)
    f = pd.concat(b.bar_sweep([rec], space, TrialLog(tmp_path / "log")), ignore_index=True)
    ev = b.bar_evidence(b.tapes_of([rec]), space, f, 1, 2, reps=20)
    plan = b.plan_of(space, 1)
    held = promote(tmp_path / "set.yaml", plan.name, plan_parameters(plan), {rec.name: rec.content}, ev, judged(), 1)
    assert held.parameters["strategy.params.period"] == 5 and held.sessions == ev.sessions
    cfg = with_file(load_config(RunConfig, None, {}), tmp_path / "set.yaml")
    assert isinstance(cfg.strategy, BarPlan) and legs(cfg.strategy)[0][1] == space.sets[1]
    with pytest.raises(InvalidConfig, match=r"strategy.params.period: got 4; allowed: 5, as promoted"):
        with_file(load_config(RunConfig, None, {"strategy": {"name": own, "params": {"period": 4}}}), tmp_path / "set.yaml")


# ---- the live notebook ------------------------------------------------------------------------------------------------------------------

def test_the_notebook_takes_its_parameters_from_the_file(folder: Path, tmp_path: Path) -> None:
    given = {"recording": str(folder / "tape.parquet"), "promoted": str(folder / "paper.yaml"), "run_dir": str(tmp_path / "run")}
    plan = live.plan_run(given, here=tmp_path)
    assert (plan.cfg.strategy.lower, plan.cfg.exits.target_pct, plan.cfg.promoted) == (0.71, 0.008, folder / "paper.yaml")
    again = load_config(RunConfig, live.write_config(plan))
    assert again == plan.cfg                                        # and the session reads the same
    market = live.load_market(plan.cfg)
    page = live.promotion_table(plan, market).to_html() + live.gate_table(plan, market).to_html()   # type: ignore[union-attr]
    for word in ("paper.yaml", "sets tried", "45", "tape-21", "proved on", "walk-forward mean session return", "break-even win rate",
                 "deflated Sharpe ratio", "lower 0.71"): assert word in page, word
    assert "WARNING" not in page
    plan = live.plan_run(given | {"promoted": str(folder / "failed.yaml")}, here=tmp_path)
    page = live.promotion_table(plan, market).to_html()
    assert "WARNING: failed" in page and "b00020" in page and "NOT PASSED" in page
    plan = live.plan_run({"recording": given["recording"]}, here=tmp_path)
    assert "nobody proved" in live.promotion_table(plan, market).to_html() and live.gate_table(plan, market) is None


def test_a_contradicting_parameter_is_refused_naming_both(folder: Path, tmp_path: Path) -> None:
    given = {"recording": str(folder / "tape.parquet"), "promoted": str(folder / "good.yaml")}
    with pytest.raises(InvalidConfig, match=r"exits.stop_pct: got 0.01; allowed: 0.002, as promoted"):
        live.plan_run(given | {"exits": {"stop_pct": 0.01}}, here=tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"strategy": {"lower": 0.7}, "promoted": str(folder / "good.yaml")}))
    with pytest.raises(InvalidConfig, match=r"strategy.lower: got 0.7; allowed: 0.71, as promoted"):
        live.plan_run({"recording": given["recording"], "config": str(tmp_path / "c.yaml")}, here=tmp_path)
    assert live.plan_run(given | {"strategy": {"lower": 0.71}}, here=tmp_path).cfg.strategy.lower == 0.71
    with pytest.raises(live.ConfigError, match="an existing file"): live.plan_run(given | {"promoted": "none.yaml"}, here=tmp_path)


def test_preflight_refuses_real_money_for_the_same_reasons(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALP_LIVE_CONFIRM", PHRASE)
    given = {"recording": str(folder / "tape.parquet"), "run_dir": str(tmp_path / "run"), "live_money": True, "live_confirm": PHRASE}
    for promoted, words in (("", "proved parameters only"), ("failed.yaml", "did not pass the gate")):
        plan = live.plan_run(given | {"promoted": str(folder / promoted) if promoted else ""}, here=tmp_path)
        bad = [c for c in live.preflight(plan).checks if not c.ok]
        assert [c.name for c in bad] == ["real money"] and words in bad[0].found
