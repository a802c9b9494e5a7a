"""Fine-tuning the last denoising steps alone ends in a checkpoint that acts like any other."""

from __future__ import annotations

import torch

from visuomotor.configs.build import load_policy
from visuomotor.configs.cli import main
from visuomotor.policies.nets.staged import StagedBackbone

TINY = ["task=cartpole", "env.max_episode_steps=30", "env.engine.threads=1", "ppo.num_envs=4", "ppo.decisions=8",
        "ppo.epochs=1", "ppo.minibatches=2", "backbone=mlp", "backbone.width=16", "critic.width=16", "threads=1",
        "eval.episodes=0", "policy=diffusion", "policy.train_steps=20", "likelihood.steps=3",
        "likelihood.train_last=1"]  # fmt: skip


def test_the_checkpoint_holds_both_stages_and_is_loaded_and_trained_on_like_any_other(tmp_path):
    assert main(["rl", *TINY, "budget.env_steps=64", f"run_dir={tmp_path / 'a'}"]) == 0
    policy = load_policy(tmp_path / "a").policy
    stages = policy.backbone
    assert isinstance(stages, StagedBackbone)
    first, last = (torch.cat([p.flatten() for p in s.parameters()]) for s in (stages.first, stages.last))
    assert not torch.equal(first, last)
    obs = {k: torch.randn(2, 1, *s.shape) for k, s in policy.spec.obs.items()}
    noise = policy.draw_noise(2, torch.Generator().manual_seed(0))
    assert policy.noise_shape[0] == 1  # deployed without noise of its own
    assert torch.isfinite(policy.sample(obs, noise)).all()
    assert main(["rl", f"resume={tmp_path / 'a'}", "budget.env_steps=128"]) == 0
    again = load_policy(tmp_path / "a").policy.backbone
    assert isinstance(again, StagedBackbone)
    frozen = torch.cat([p.flatten() for p in again.first.parameters()])
    assert torch.equal(first, frozen)
    assert not torch.equal(last, torch.cat([p.flatten() for p in again.last.parameters()]))
