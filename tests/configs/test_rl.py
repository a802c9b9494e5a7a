"""``visuomotor rl`` and ``finetune``: settings in layers, refusals, run folder, checkpoints that go on bit for bit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium
import pytest
import torch
from safetensors.torch import load_file

from visuomotor.configs.build import load_policy
from visuomotor.configs.cli import main
from visuomotor.configs.rl_build import loaded_start, make_accelerator, make_trainer, make_worlds, scratch_start
from visuomotor.configs.rl_compose import compose_finetune, compose_rl, restore_run
from visuomotor.configs.rl_run import split_state
from visuomotor.data.errors import CheckpointError, ConfigError
from visuomotor.data.spec import ArraySpec
from visuomotor.envs import registry
from visuomotor.envs.gym_adapter import GymVecEnv
from visuomotor.envs.registry import make_env, register_task
from visuomotor.policies.heads.flow import FlowHead
from visuomotor.policies.heads.gaussian import GaussianHead
from visuomotor.policies.likelihoods.registry import LIKELIHOODS

TINY = ["task=cartpole", "env.max_episode_steps=30", "env.engine.threads=1", "ppo.num_envs=4", "ppo.decisions=8",
        "ppo.epochs=2", "ppo.minibatches=2", "backbone.width=16", "critic.width=16", "threads=1",
        "eval.episodes=4", "eval.selection_episodes=3", "eval.num_envs=4", "eval.videos=0"]  # fmt: skip
SAVED = {"task": "cartpole", "env": {"max_episode_steps": 77}}


def run(run_dir: Path, *words: str) -> Path:
    assert main(["rl", *TINY, f"run_dir={run_dir}", *words]) == 0
    return run_dir


def tensors(run_dir: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    files = (run_dir / "checkpoints" / checkpoint).resolve().glob("*.safetensors")
    return {f"{f.stem}/{k}": v for f in files for k, v in load_file(f).items()}


@dataclass(kw_only=True, slots=True)
class PendulumConfig:
    max_episode_steps: int = 20


def pendulum(config: PendulumConfig, num_envs: int) -> GymVecEnv:
    make = partial(gymnasium.make, "Pendulum-v1")
    return GymVecEnv([make] * num_envs, max_episode_steps=config.max_episode_steps, fps=20.0)


@pytest.fixture
def pendulum_task(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))  # other tests list what there is
    register_task("rl_pendulum", PendulumConfig, pendulum)
    return "rl_pendulum"


# ---- settings


def test_the_word_of_the_user_is_above_the_task_and_the_likelihood():
    plain = compose_rl(["task=cartpole"])
    assert plain.config.ppo.num_envs == 32  # configs/rl_task/cartpole.yaml
    assert plain.plain["choices"] == {
        "policy": "gaussian", "backbone": "perceptron", "task": "cartpole", "likelihood": "gaussian",
    }  # fmt: skip
    assert compose_rl(["task=cartpole", "ppo.num_envs=5", "ppo.minibatches=1"]).config.ppo.num_envs == 5
    suited = LIKELIHOODS["reinflow"].ppo
    composed = compose_finetune(["checkpoint=x"], head=FlowHead, saved=SAVED)
    name = composed.plain["choices"]["likelihood"]
    for key, value in LIKELIHOODS[name].ppo.items():
        assert getattr(composed.config.ppo, key) == value
    told = compose_finetune(["checkpoint=x", "likelihood=reinflow", "ppo.clip=0.07"], head=FlowHead, saved=SAVED)
    assert told.config.ppo.clip == 0.07
    assert told.config.ppo.reduce == suited["reduce"]


def test_finetuning_keeps_the_environment_of_the_checkpoint_unless_told_otherwise():
    kept = compose_finetune(["checkpoint=x"], head=GaussianHead, saved=SAVED).config
    assert (kept.task, kept.env.max_episode_steps) == ("cartpole", 77)
    words = ["checkpoint=x", "env.max_episode_steps=5"]
    assert compose_finetune(words, head=GaussianHead, saved=SAVED).config.env.max_episode_steps == 5
    other = compose_finetune(["checkpoint=x", "task=hopper"], head=GaussianHead, saved=SAVED).config
    assert other.task == "hopper"
    assert other.env.max_episode_steps == 0
    with pytest.raises(ConfigError, match="trained without a task: give task="):
        compose_finetune(["checkpoint=x"], head=GaussianHead, saved={"task": None, "env": None})


def test_where_the_goal_ends_an_episode_it_is_the_reward_of_finetuning():
    lift = compose_finetune(["checkpoint=x", "task=lift"], head=GaussianHead, saved=SAVED).config
    assert (lift.env.reward, lift.env.privileged) == ("sparse", True)
    told = compose_finetune(["checkpoint=x", "task=lift", "env.reward=dense"], head=GaussianHead, saved=SAVED).config
    assert (told.env.reward, told.env.privileged) == ("dense", True)
    pole = compose_finetune(["checkpoint=x"], head=GaussianHead, saved=SAVED).config  # no goal ends it
    assert (pole.env.reward, pole.env.privileged) == ("dense", False)
    assert compose_rl(["task=lift"]).config.env.reward == "dense"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "task is missing: give task=<name>, one of cartpole"),
        (["task=cartpol"], "unknown task 'cartpol'. Did you mean 'cartpole'"),
        (["task=cartpole", "ppo.num_env=3"], "unknown setting 'ppo.num_env'. Did you mean 'ppo.num_envs'"),
        (["task=cartpole", "likelihood=gausian"], "unknown likelihood 'gausian'. Did you mean 'gaussian'"),
        (["task=cartpole", "policy=energy"], "EnergyHead"),
        (["task=cartpole", "ppo.epochs=many"], "many"),
        (["task=cartpole", "budget.env_steps=null"], "a run needs one of them to end"),
        (["task=cartpole", "budget.env_steps=0"], "budget.env_steps=0: expected more than 0"),
        (["task=cartpole", "seed=-1"], "seed=-1: expected 0 or more"),
        (["task=cartpole", f"seed={10**20}"], "expected 0 or more, within 63 bits"),
        (["task=cartpole", "eval.num_envs=0"], "eval.num_envs=0: expected at least 1"),
        (["task=cartpole", "env.swing=true"], "env.swing"),
        (["task=cartpole", "device=gpu"], "unknown device 'gpu'"),
    ],
)
def test_mistakes_are_one_sentence(words, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        compose_rl(words)


def test_a_resumed_run_keeps_its_settings_but_may_get_a_longer_budget(tmp_path):
    composed = compose_rl(["task=cartpole", "ppo.lr=0.01", "budget.env_steps=100"])
    longer = restore_run(composed.plain, ["budget.env_steps=200"], tmp_path)
    assert longer.config.budget.env_steps == 200
    assert longer.config.ppo.lr == 0.01
    assert longer.config.run_dir == str(tmp_path)
    with pytest.raises(ConfigError, match=r"'ppo.lr=1' cannot change when a run is resumed"):
        restore_run(composed.plain, ["ppo.lr=1"], tmp_path)
    with pytest.raises(CheckpointError, match="is a run of visuomotor train"):
        restore_run({"choices": {}, "config": {}}, [], tmp_path)


# ---- parts


def test_the_ends_of_the_range_of_actions_are_minus_one_and_one():
    composed = compose_rl(TINY)
    env = make_env(composed.config.env, 2)
    policy = scratch_start(composed.config, env).policy  # type: ignore[arg-type]
    ends = torch.stack([env.action_low, env.action_high])[:, None]
    assert torch.allclose(policy.normalizer.normalize("action", ends).flatten(), torch.tensor([-1.0, 1.0]))
    assert list(policy.spec.obs) == ["state"]


def test_a_task_without_bounds_needs_to_be_told_how_far_to_explore(pendulum_task):
    composed = compose_rl([f"task={pendulum_task}"])
    env = make_env(composed.config.env, 1)
    env.action_high = torch.full_like(env.action_high, torch.inf)
    with pytest.raises(ConfigError, match=r"does not bound action components \[0\]: say with action_scale"):
        scratch_start(composed.config, env)  # type: ignore[arg-type]
    told = compose_rl([f"task={pendulum_task}", "action_scale=3"]).config
    policy = scratch_start(told, env).policy  # type: ignore[arg-type]
    ends = policy.normalizer.unnormalize("action", torch.tensor([[-1.0], [1.0]]))
    assert ends.flatten().tolist() == pytest.approx([-2.0, 3.0])
    env.close()


def test_wrong_observations_and_goals_are_refused(pendulum_task):
    config = compose_rl([*TINY, "obs.keys=[stat]"]).config
    env = make_env(config.env, 4)
    with pytest.raises(ConfigError, match=r"obs.keys names 'stat'.*Did you mean 'state'"):
        scratch_start(config, env)  # type: ignore[arg-type]
    config = compose_rl([*TINY, "critic.keys=[statt]"]).config
    start = scratch_start(config, env)  # type: ignore[arg-type]
    accelerator = make_accelerator(config)
    with pytest.raises(ConfigError, match=r"critic.keys names 'statt'"):
        make_trainer(config, env, start, accelerator)
    spec = start.policy.spec
    start.policy.spec = type(spec)(
        obs={**spec.obs, "goal/cube": ArraySpec(shape=(3,))}, action_key="action", action=spec.action, fps=spec.fps,
        window=spec.window, action_config=spec.action_config, constant_keys=frozenset({"goal/cube"}),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="reads 'goal/cube', a goal or text that task 'cartpole' does not give"):
        make_trainer(compose_rl(TINY).config, env, start, accelerator)
    other = make_env(compose_rl([f"task={pendulum_task}"]).config.env, 1)
    with pytest.raises(CheckpointError, match="shape"):
        make_trainer(compose_rl(TINY).config, other, scratch_start(config, env), accelerator)  # type: ignore[arg-type]
    other.close()


def test_worlds_must_divide_among_processes():
    config = compose_rl([*TINY, "ppo.num_envs=5"]).config

    class Two:
        num_processes = 2

    with pytest.raises(ConfigError, match=r"ppo.num_envs=5 does not divide among 2 processes"):
        make_worlds(config, Two())


def test_what_belongs_to_a_process_goes_back_to_it():
    one = {"a": torch.zeros(1)}
    state = {"policy": one, "worlds": {"a": torch.ones(1)}, "worlds.1": {"a": torch.full((1,), 2.0)}}
    assert split_state(state, 0) == {"policy": one, "worlds": state["worlds"]}
    assert split_state(state, 1) == {"policy": one, "worlds": state["worlds.1"]}


def test_every_process_gets_its_own_earlier_rollouts_back() -> None:
    assert split_state({"rollouts": {}, "rollouts.1": (one := {"0/reward": torch.zeros(1)})}, 1) == {"rollouts": one}


# ---- runs


def test_a_run_leaves_what_evaluation_and_others_need(tmp_path, capsys):
    folder = run(tmp_path / "run", "budget.env_steps=96", "eval_every=2")
    for name in ("report.html", "config.yaml", "environment.json", "metrics.jsonl", "command.txt"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "command.txt").read_text().startswith("visuomotor rl task=cartpole")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["env_steps"] for line in lines if "value_loss" in line] == [32, 64, 96]
    assert [line["step"] for line in lines if "eval_score" in line] == [0, 2, 3]
    final = json.loads((folder / "eval" / "final.json").read_text())
    assert final["n_episodes"] == final["before"]["n_episodes"] == final["difference"]["n"] == 4
    assert [e["seed"] for e in final["episodes"]] == [100000, 100001, 100002, 100003]
    loaded = load_policy(folder)
    saved = loaded.checkpoint.document("normalizer")["obs/state"]["stats"]
    assert loaded.policy.normalizer.to_dict()["obs/state"]["stats"] == saved
    assert main(["rl", *TINY, f"run_dir={folder}"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["eval", f"checkpoint={folder}", "episodes=2", "videos=0", "env.engine.threads=1"]) == 0
    assert "over 2 test seeds" in capsys.readouterr().out
    assert main(["train", f"resume={folder}"]) == 2
    assert "visuomotor rl" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("ppo.schedule=adaptive", "hold.kl.weight=0.1", "window.horizon=3",
                                       "window.n_exec=2", "window.n_obs=2")])  # fmt: skip
def test_a_run_in_two_parts_is_that_in_one_bit_for_bit(more, tmp_path, capsys):
    words = [*more, "eval_every=3", "save_every=1"]
    whole = tensors(run(tmp_path / "whole", "budget.env_steps=384", *words))
    folder = run(tmp_path / "parts", "budget.env_steps=130", *words)
    assert main(["rl", f"resume={folder}", "budget.env_steps=384"]) == 0
    assert "resuming from update" in capsys.readouterr().out
    parts = tensors(folder)
    assert whole.keys() == parts.keys()
    different = [k for k in whole if not torch.equal(whole[k], parts[k]) and k != "progress/seconds"]
    assert different == []


def test_an_evaluation_that_was_due_when_the_run_was_stopped_is_made_up_for(tmp_path, monkeypatch):
    from visuomotor.policies.ppo.trainer import PPOTrainer

    def evaluated(folder: Path) -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["eval_return"]) for line in lines if "eval_return" in line]

    words = ["budget.env_steps=128", "eval_every=2"]
    whole = run(tmp_path / "whole", *words)
    folder = tmp_path / "parts"
    with monkeypatch.context() as patched:
        patched.setattr(PPOTrainer, "_agree", lambda self, stopping: self.updates_done == 2)
        assert main(["rl", *TINY, f"run_dir={folder}", *words]) == 130
    assert [step for step, _ in evaluated(folder)] == [0]
    assert main(["rl", f"resume={folder}"]) == 0
    assert [step for step, _ in evaluated(whole)] == [0, 2, 4]
    assert evaluated(folder) == evaluated(whole)
    best = [(f / "checkpoints" / "best").resolve().name for f in (whole, folder)]
    assert best[0] == best[1]


def test_a_finished_run_says_so_and_other_settings_are_refused(tmp_path, capsys):
    folder = run(tmp_path / "run", "budget.env_steps=32")
    assert main(["rl", f"resume={folder}", "ppo.lr=1"]) == 2
    assert "cannot change when a run is resumed" in capsys.readouterr().err
    before = tensors(folder)
    assert main(["rl", f"resume={folder}"]) == 0  # nothing left to do
    assert all(torch.equal(before[k], v) for k, v in tensors(folder).items())


def test_weights_that_diverge_do_not_replace_a_checkpoint(tmp_path, capsys, monkeypatch):
    from visuomotor.policies.ppo.trainer import PPOTrainer

    whole = PPOTrainer._update_statistics

    def broken(self, rollout):
        whole(self, rollout)
        if self.updates_done == 2:
            next(self.likelihood.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(PPOTrainer, "_update_statistics", broken)
    folder = tmp_path / "run"
    assert main(["rl", *TINY, f"run_dir={folder}", "budget.env_steps=320", "save_every=2", "eval_every=0"]) == 2
    error = capsys.readouterr().err
    assert "training diverged at update 3" in error
    assert "the checkpoint of update 2 is intact" in error
    assert not any(bool(v.isnan().any()) for k, v in tensors(folder).items() if k.startswith("policy"))


def test_worlds_of_other_simulators_run_and_resume_with_a_warning(pendulum_task, tmp_path, capsys):
    words = ["rl", f"task={pendulum_task}", "ppo.num_envs=2", "ppo.decisions=8", "backbone.width=8", "critic.width=8",
             "threads=1", "eval.episodes=0", f"run_dir={tmp_path / 'run'}"]  # fmt: skip
    assert main([*words, "budget.env_steps=32"]) == 0
    assert main(["rl", f"resume={tmp_path / 'run'}", "budget.env_steps=64"]) == 0
    assert "these worlds cannot be saved" in capsys.readouterr().out.replace("\n", " ")


def test_finetuning_goes_on_from_a_checkpoint_with_its_statistics_frozen(tmp_path, capsys):
    base = run(tmp_path / "base", "budget.env_steps=64")
    folder = tmp_path / "tuned"
    words = [w for w in TINY if not w.startswith(("task=", "backbone."))]
    assert main(["finetune", f"checkpoint={base}", *words, f"run_dir={folder}", "budget.env_steps=96"]) == 0
    before, after = load_policy(base), load_policy(folder / "checkpoints" / "last")
    assert before.policy.normalizer.to_dict() == after.policy.normalizer.to_dict()
    changed = [k for k, v in before.policy.state_dict().items() if not torch.equal(v, after.policy.state_dict()[k])]
    assert changed
    assert not any("normalizer" in k for k in changed)
    assert "difference over 4 paired seeds" in capsys.readouterr().out
    start = loaded_start(after)
    assert start.data == {}
    assert main(["finetune", f"resume={folder}", "budget.env_steps=128"]) == 0
    assert main(["finetune", *words]) == 2
    assert "checkpoint is missing: give checkpoint=" in capsys.readouterr().err
    assert main(["finetune", f"checkpoint={base}", "task=hopper"]) == 2
    assert "task 'hopper'" in capsys.readouterr().err
    assert main(["finetune", f"checkpoint={base}", "likelihood=reinflow"]) == 2
    assert "this policy has a GaussianHead, which can use: gaussian" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "more"),
    [
        ("flow", ["likelihood=reinflow", "likelihood.steps=2"]),
        ("flow", ["likelihood=dsrl", "likelihood.width=8"]),
        ("diffusion", ["likelihood.steps=3", "likelihood.train_last=2"]),
        ("meanflow", []),
    ],
)
def test_what_was_finetuned_is_deployed_as_it_was_trained_whatever_the_likelihood(policy, more, tmp_path, capsys):
    base = run(tmp_path / "base", f"policy={policy}", "budget.env_steps=32", "eval.episodes=0")
    words = [w for w in TINY if not w.startswith(("task=", "backbone."))]
    tuned = ["finetune", f"checkpoint={base}", *words, *more, "ppo.decisions=8", "ppo.critic_warmup=0"]
    assert main([*tuned, f"run_dir={tmp_path / 'whole'}", "budget.env_steps=64"]) == 0
    assert main([*tuned, f"run_dir={tmp_path / 'parts'}", "budget.env_steps=32"]) == 0
    assert main(["finetune", f"resume={tmp_path / 'parts'}", "budget.env_steps=64"]) == 0
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert [k for k in whole if not torch.equal(whole[k], parts[k]) and k != "progress/seconds"] == []
    loaded = load_policy(tmp_path / "whole" / "checkpoints" / "last")
    obs = {"state": torch.zeros(2, 1, loaded.policy.spec.obs["state"].size)}
    noise = loaded.policy.draw_noise(2, torch.Generator().manual_seed(0))
    assert loaded.policy.sample(obs, noise).isfinite().all()
    assert main(["eval", f"checkpoint={tmp_path / 'whole'}", "episodes=2", "videos=0", "env.engine.threads=1"]) == 0
