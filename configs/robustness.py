"""``visuomotor robustness``: what a policy survives, which factor costs most, and which policy will transfer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from visuomotor.configs.build import LoadedPolicy, load_policy, pick_device, set_threads
from visuomotor.configs.compose import parse_plain, task_settings
from visuomotor.configs.demonstrations import read_demonstrations
from visuomotor.configs.execution import Execution
from visuomotor.configs.randomize import compose_randomization, plain_randomization, typed_randomization
from visuomotor.configs.rollout import RolloutEvaluator
from visuomotor.configs.schema import DataConfig, RolloutConfig, check_device
from visuomotor.configs.training_data import make_source
from visuomotor.data.errors import ConfigError, nearest
from visuomotor.data.parts import PartConfig
from visuomotor.data.windows import window_table
from visuomotor.envs.registry import make_env
from visuomotor.envs.sim.gl import RenderingError
from visuomotor.policies.execution.config import ExecuteConfig
from visuomotor.policies.execution.planner import ChunkPolicy
from visuomotor.policies.learn.evaluate import test_seeds
from visuomotor.sim2real.randomization.build import build_events
from visuomotor.sim2real.randomization.config import RandomizationConfig
from visuomotor.sim2real.robustness.conditions import (
    NOMINAL,
    Condition,
    joint_conditions,
    pair_conditions,
    single_conditions,
)
from visuomotor.sim2real.robustness.config import FactorConfig, check_together
from visuomotor.sim2real.robustness.detect import Watched, encode, strangeness
from visuomotor.sim2real.robustness.report import write_report
from visuomotor.sim2real.robustness.store import ResultStore
from visuomotor.sim2real.robustness.summary import Outcome, damage, risk, spearman, transfer_scores

__all__ = ["RobustnessConfig", "main", "read_factors"]

_WIDTH = 200  # px of a picture in the report
_SAME = 0.5  # mean difference of pixels up to which two pictures show the same


@dataclass(kw_only=True, slots=True)
class RobustnessConfig:
    """``visuomotor robustness``: success by factor, one at a time and all together.

    Attributes:
        checkpoint: a checkpoint folder, or a run (its best checkpoint, else its last).
        others: further ones, which are tried under the same conditions and ranked together with it.
        factors: in what worlds may differ: a preset or a YAML file of ``factors:``.
        only: names of the factors to try; empty: all.
        task: null takes the one that the policy was trained for.
        env: settings of the task's environment that differ from their defaults.
        episodes: of each level of each factor, and of the nominal worlds; all on the same seeds.
        grid: try all levels of the two most damaging factors together.
        conditions: in which all factors differ at once; 0 for none.
        condition_episodes: of each of them.
        share: of these conditions, the worst, whose mean is reported (conditional value at risk).
        real: a store recorded on the real robot: how strange its observations are to the policy.
        weight: of that strangeness against success in simulation, when several policies are ranked.
        held_out: a randomisation (preset or file) that stands for the real world and that nothing was trained in:
            the ranking is checked against success in it.
        held_out_episodes: of that.
        num_envs: worlds side by side.
        pictures: a picture of a world of every level in the report.
        weights: ``ema`` (the moving average) or ``raw``.
        execute: how the chunks of the policy become actions.
        seed: of the joint conditions.
        out: folder of the result; null writes beside the checkpoint. What it holds already is not run again.
    """

    checkpoint: str = MISSING
    others: list[str] = field(default_factory=list)
    factors: str = "tabletop"
    only: list[str] = field(default_factory=list)
    task: str | None = None
    env: dict[str, Any] = field(default_factory=dict)
    episodes: int = 100
    grid: bool = True
    conditions: int = 32
    condition_episodes: int = 20
    share: float = 0.25
    real: str | None = None
    weight: float = 1.0
    held_out: str | None = None
    held_out_episodes: int = 200
    num_envs: int = 100
    pictures: bool = True
    weights: str = "ema"
    execute: ExecuteConfig = field(default_factory=ExecuteConfig)
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.weights not in ("ema", "raw"):
            raise ConfigError(f"unknown weights {self.weights!r}. {nearest(self.weights, ('ema', 'raw'))}")
        lowest = {"episodes": 1, "conditions": 0, "condition_episodes": 1, "num_envs": 1, "held_out_episodes": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {low}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share={self.share}: expected above 0 and up to 1")
        if self.weight < 0:
            raise ConfigError(f"weight={self.weight}: expected 0 or more")


def main(words: Sequence[str]) -> int:
    """Try policies as ``words`` say (``key=value ...``); returns the exit status."""
    config = parse_plain(RobustnessConfig, words)
    set_threads(config.threads)
    factors = read_factors(config.factors, config.only)
    console = Console()
    policies = [_Tried(config, path, factors, console) for path in (config.checkpoint, *config.others)]
    same = Counter(p.name for p in policies)
    for p in (p for p in policies if same[p.name] > 1):  # checkpoints of one run, or runs of one name
        p.name = str(p.loaded.checkpoint.path)
    out = policies[0].default_out if config.out is None else Path(config.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    documents = [p.document(ResultStore(out / "conditions.jsonl")) for p in policies]
    document: dict[str, Any] = {"settings": asdict(config), "policies": documents}
    if len(documents) > 1:
        document["ranking"] = _ranking(documents, config)
    pictures = _pictures(policies[0], factors, out, console) if config.pictures else {}
    (out / "robustness.json").write_text(json.dumps(document, indent=1))
    page = write_report(out, document, {k: asdict(f) for k, f in factors.items()}, pictures)
    console.print(f"written: {out / 'robustness.json'}\nreport: {page}", highlight=False, soft_wrap=True)
    return 0


def read_factors(name: str, only: Sequence[str] = ()) -> dict[str, FactorConfig]:
    """Factors of a preset or a file.

    Raises:
        ConfigError: there is none, it cannot be read, or it lacks one of ``only``.
    """
    folder, path = files("visuomotor.configs") / "factors", Path(name).expanduser()
    presets = sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))
    if name not in presets and not path.is_file():
        raise ConfigError(f"factors={name}: no such file, and no preset of that name. {nearest(name, presets)}")
    try:
        text = (folder / f"{name}.yaml").read_text() if name in presets else path.read_text()
        plain = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException, ValueError) as e:
        raise ConfigError(f"factors={name} cannot be read as YAML: {str(e).splitlines()[0]}") from None
    given = plain.get("factors") if isinstance(plain, dict) else None
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"factors={name} holds no factors: expected `factors:` with one entry a factor")
    for missing in (n for n in only if n not in given):
        raise ConfigError(f"only={missing}: there is no such factor. {nearest(missing, given)}")
    out = {}
    for key in only or given:
        try:
            merged = OmegaConf.merge(OmegaConf.structured(FactorConfig), given[key])
            found = OmegaConf.to_object(merged)
        except (OmegaConfBaseException, ConfigError, ValueError, TypeError) as e:
            raise ConfigError(f"factor {key!r} of factors={name}: {str(e).splitlines()[0]}") from None
        assert isinstance(found, FactorConfig)
        for term, settings in found.terms.items():  # unknown terms and settings are refused before anything is run
            typed_randomization({"terms": {term: {**settings, "low": found.levels[0], "high": found.levels[0]}}})
        out[str(key)] = found
    check_together(out)
    return out


class _Tried:
    """One policy and the worlds that it is tried in."""

    def __init__(
        self, config: RobustnessConfig, checkpoint: str, factors: Mapping[str, FactorConfig], console: Console
    ) -> None:
        self._config, self._factors, self._console = config, factors, console
        self.loaded: LoadedPolicy = load_policy(checkpoint, weights=config.weights, device=pick_device(config.device))
        saved = self.loaded.checkpoint.document("config")["config"]
        task = config.task or saved["task"]
        if task is None:
            raise ConfigError(f"{checkpoint} was trained without a task: give task=<name>")
        self.task: str = task
        self._env = {**(saved["env"] if saved["task"] == task else {}), **config.env}
        trained_on = self.loaded.checkpoint.document("training")["dataset"]
        parts = {k: PartConfig(**v) for k, v in saved["data"].get("parts", {}).items()}
        self._data = DataConfig(path=trained_on["path"], parts=parts)
        path = self.loaded.checkpoint.path
        run = path.parent.parent if path.parent.name == "checkpoints" else path
        self.name, self.default_out = run.name, run / "robustness"

    def settings(self, condition: Condition) -> tuple[Any, RandomizationConfig]:
        """Of the task's environment and of the randomisation under ``condition``."""
        env = OmegaConf.create(self._env)
        for key, value in condition.env.items():
            OmegaConf.update(env, key, value)
        typed = OmegaConf.to_object(typed_randomization({"terms": condition.terms}))
        assert isinstance(typed, RandomizationConfig)
        plain = OmegaConf.to_container(env)
        assert isinstance(plain, dict)
        return task_settings(self.task, {str(k): v for k, v in plain.items()}), typed

    def document(self, store: ResultStore) -> dict[str, Any]:
        """Everything about this policy, ready for JSON."""
        c, show = self._config, self._say
        nominal = self._tried(store, NOMINAL, c.episodes)
        show("nominal", nominal)
        singles = {x.key: (x, self._tried(store, x, c.episodes)) for x in single_conditions(self._factors)}
        ranked = []
        for name in self._factors:
            levels = {x.levels[name]: o for x, o in singles.values() if name in x.levels}
            ranked.append(damage(name, nominal, levels))
            show(name, *levels.values())
        ranked.sort(key=lambda d: -d.mean)
        document: dict[str, Any] = {
            "name": self.name, "checkpoint": str(self.loaded.checkpoint.path), "task": self.task,
            "nominal": nominal.to_dict(), "damage": [d.to_dict() for d in ranked],
            "single": [{"levels": dict(x.levels), **o.to_dict()} for x, o in singles.values()],
        }  # fmt: skip
        if c.grid and len(ranked) > 1:
            pair = pair_conditions(self._factors, ranked[0].factor, ranked[1].factor)
            document["grid"] = [{"levels": dict(x.levels), **self._tried(store, x, c.episodes).to_dict()} for x in pair]
        joint = [(x, self._tried(store, x, c.condition_episodes))
                 for x in joint_conditions(self._factors, c.conditions, c.seed)]  # fmt: skip
        if joint:
            rates = [o.rate for _, o in joint]
            document["joint"] = [{"levels": dict(x.levels), **o.to_dict()} for x, o in joint]
            document["risk"] = {"share": c.share, **risk(rates, c.share)}
            show("all together", *(o for _, o in joint))
        if c.real is not None:
            real, known = Path(c.real).expanduser(), joint_conditions(self._factors, 8, c.seed + 1)
            identity = {"real": str(real.resolve()), "known": [x.key for x in known], **self._identity()}
            document["strangeness"] = store.get(identity, lambda: self._strangeness(str(real), known))
        if c.held_out is not None:
            document["held_out"] = self._held_out(store).to_dict()
        return document

    def _say(self, what: str, *outcomes: Outcome) -> None:
        rates = " ".join(f"{100 * o.rate:.0f}" for o in outcomes)
        self._console.print(f"{self.name}: {what}: {rates} % success", highlight=False, soft_wrap=True)

    def _identity(self) -> dict[str, Any]:
        weights = {"ema": "policy_ema.safetensors", "raw": "policy.safetensors"}[self._config.weights]
        sums = self.loaded.checkpoint.manifest["files"][weights]
        how = {"execute": asdict(self._config.execute), "task": self.task, "env": self._env}
        return {"weights": sums, **how}

    def _tried(self, store: ResultStore, condition: Condition, episodes: int) -> Outcome:
        identity = {**self._identity(), "condition": condition.key, "episodes": episodes}
        found = store.get(identity, lambda: self._run(*self.settings(condition), episodes))
        return Outcome(tuple(found["success"]), tuple(found["score"]))

    def _held_out(self, store: ResultStore) -> Outcome:
        assert self._config.held_out is not None
        typed = OmegaConf.to_object(compose_randomization([f"randomization={self._config.held_out}"]))
        assert isinstance(typed, RandomizationConfig)
        n, env = self._config.held_out_episodes, self.settings(NOMINAL)[0]
        identity = {**self._identity(), "held_out": plain_randomization(typed), "episodes": n}
        found = store.get(identity, lambda: self._run(env, typed, n))
        return Outcome(tuple(found["success"]), tuple(found["score"]))

    def _run(
        self, env: Any, randomization: RandomizationConfig, episodes: int, policy: ChunkPolicy | None = None
    ) -> dict[str, Any]:
        policy = policy or self.loaded.policy
        c = self._config
        rollout = RolloutConfig(
            episodes=episodes, selection_episodes=1, num_envs=min(c.num_envs, episodes), videos=0, execute=c.execute
        )
        evaluator = RolloutEvaluator(
            self.task, env, rollout, self.loaded.policy.spec, data=self._data, execution=Execution(config=c.execute),
            events=build_events(randomization),
        )  # fmt: skip
        with closing(evaluator):
            result = evaluator.test(policy, None)
        for warning in result.warnings:
            self._console.print(f"[yellow]{warning}[/yellow]")
        return {"success": [e.success for e in result.episodes], "score": [e.score for e in result.episodes]}

    def _strangeness(self, real: str, known: Sequence[Condition]) -> dict[str, float]:
        """Of the observations in ``real`` to the policy, which has acted under the ``known`` conditions."""
        policy = self.loaded.policy
        watched = Watched(policy)
        for condition in (NOMINAL, *known):
            self._run(*self.settings(condition), 10, watched)
        demos = read_demonstrations(real, policy, self._data.parts)
        table = window_table(demos.cache.episode_ends, policy.spec.window)
        obs = policy.encoder.config
        source = make_source(obs, policy.spec, demos.cache, demos.texts, table, batch_size=256, seed=0)
        rows = torch.linspace(0, len(source) - 1, min(len(source), 4000), dtype=torch.float64).long()
        parts = [encode(policy, source.gather(part).obs) for part in rows.split(256)]
        return strangeness(encode(policy, watched.seen()), torch.cat(parts))


def _ranking(documents: Sequence[Mapping[str, Any]], config: RobustnessConfig) -> dict[str, Any]:
    """Policies by what they promise, and, where there is a held-out world, how true that came."""
    simulated = [d["risk"]["mean"] if "risk" in d else d["nominal"]["success"]["rate"] for d in documents]
    distances = [d["strangeness"]["nearest"] if "strangeness" in d else 0.0 for d in documents]
    scores = transfer_scores(simulated, distances, config.weight)
    out: dict[str, Any] = {"order": [documents[i]["name"] for i in np.argsort(scores)[::-1]], "score": scores}
    if config.held_out is not None:
        truth = [d["held_out"]["success"]["rate"] for d in documents]
        by = {"score": scores, "simulation": simulated, "nominal": [d["nominal"]["success"]["rate"] for d in documents]}
        by |= {"strangeness": [-x for x in distances]} if config.real is not None else {}
        found = {k: spearman(v, truth) for k, v in by.items()}
        out["rank_correlation"] = {k: v if np.isfinite(v) else None for k, v in found.items()}
    return out


def _pictures(
    tried: _Tried, factors: Mapping[str, FactorConfig], out: Path, console: Console
) -> dict[str, dict[str, bytes]]:
    """JPEG of the nominal world and of every level that looks otherwise, ``{factor: {level: bytes}}``.

    Empty without a renderer.
    """
    found: dict[str, dict[str, bytes]] = {}
    nominal: np.ndarray | None = None
    try:
        for condition in (NOMINAL, *single_conditions(factors)):
            env_settings, randomization = tried.settings(condition)
            with closing(make_env(env_settings, 1, build_events(randomization))) as env:
                env.reset(seeds=[test_seeds(1)[0]])
                frame = env.render(0)
            height = round(_WIDTH * frame.shape[0] / frame.shape[1])
            small = cv2.resize(frame, (_WIDTH, height), interpolation=cv2.INTER_AREA)
            if nominal is None:
                nominal = small.astype(int)
            elif np.abs(small.astype(int) - nominal).mean() < _SAME:
                continue
            jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()
            factor, level = next(iter(condition.levels.items()), ("", ""))
            found.setdefault(factor, {})[str(level)] = jpeg
    except (RenderingError, NotImplementedError) as e:
        console.print(f"no pictures: {e}", highlight=False, soft_wrap=True)
        return {}
    return found
