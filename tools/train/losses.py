"""The losses of early-exit value networks, all exits at once.

With q_k the Q-values of exit k of K and c_k its confidence logit:

- reinforcement: Huber(q_k(s, a) - y) for every exit, y the final exit's Double-DQN target (van Hasselt et al. 2016,
  arXiv 1509.06461, equation 4): our reading of RAPID-RL (arXiv 2109.08231), so that all exits value the same policy;
- distillation: KL(softmax(T / tau) || softmax(q_k / tau)) with the teacher's values T (Rusu et al. 2016, arXiv
  1511.06295, equation 3) and Huber((q_k - T) / scale), which keeps the values' level. Little of the latter is enough,
  and much of it makes a small head spend itself on how good a state is, where only actions are to be told apart;
- confidence: binary cross entropy of c_k with what it should mean, see `Meaning`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Meaning = Literal["agreement", "regret"]
"""What an exit's confidence estimates.

`agreement`: the probability that its best action is the final exit's. `regret`: how little it costs to follow it,
exp(-regret / (REGRET_FRAC * spread)), where regret = q_K(best) - q_K(its action) and the spread is the mean distance
between the final exit's best and worst action. Where two actions are worth the same, disagreeing costs nothing.
"""

REGRET_FRAC = 0.05


def spread(q: Tensor) -> Tensor:
    """Mean distance between the best and the worst action: the natural unit of a task's Q-values."""
    return (q.max(1).values - q.min(1).values).mean().clamp_min(1e-6)


def targets(online: Tensor, slow: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """Double-DQN targets.

    Args:
        online: (B, A) of the next observation, chooses the action.
        slow: (B, A) of the next observation, values it.
        reward: (B,) n-step.
        discount: (B,) of what follows.

    Returns:
        (B,).
    """
    return reward + discount * slow.gather(1, online.argmax(1, keepdim=True)).squeeze(1)


def temporal_difference(heads: dict[int, Tensor], action: Tensor, wanted: Tensor) -> dict[int, Tensor]:
    """Huber loss of each exit against the one target, exit -> mean over the batch."""
    rows = action.unsqueeze(1)
    return {k: functional.smooth_l1_loss(head[:, :-1].gather(1, rows).squeeze(1), wanted) for k, head in heads.items()}


def distillation(
    heads: dict[int, Tensor], teacher: Tensor, temperature: float, scale: float, value_weight: float = 1.0
) -> dict[int, Tensor]:
    """KL plus Huber of each exit against the teacher, exit -> mean over the batch.

    Args:
        heads: exit -> (B, A + 1).
        teacher: (B, A) Q-values.
        temperature: in units of Q.
        scale: typical spread of the teacher's Q-values; makes the Huber part free of units.
        value_weight: of the Huber part, against 1 of KL.
    """
    wanted = functional.log_softmax(teacher / temperature, 1)
    losses = {}
    for k, head in heads.items():
        said = functional.log_softmax(head[:, :-1] / temperature, 1)
        kl = functional.kl_div(said, wanted, reduction="batchmean", log_target=True)
        losses[k] = kl + value_weight * functional.smooth_l1_loss(head[:, :-1] / scale, teacher / scale)
    return losses


def confidence_labels(q: Tensor, final: Tensor, meaning: Meaning, scale: float) -> Tensor:
    """What an exit's confidence should say, (B,) in 0..1.

    Args:
        q: (B, A) of the exit.
        final: (B, A) of the final exit.
        meaning: see `Meaning`.
        scale: typical spread of the final exit's Q-values.
    """
    chosen = q.argmax(1, keepdim=True)
    if meaning == "agreement":
        return (chosen.squeeze(1) == final.argmax(1)).float()
    regret = final.max(1).values - final.gather(1, chosen).squeeze(1)
    return torch.exp(-regret / (REGRET_FRAC * scale))


def confidence(heads: dict[int, Tensor], final: Tensor, meaning: Meaning, scale: float) -> dict[int, Tensor]:
    """Cross entropy of each exit's confidence, exit -> mean over the batch; leave the last exit out."""
    return {
        k: functional.binary_cross_entropy_with_logits(
            head[:, -1], confidence_labels(head[:, :-1].detach(), final.detach(), meaning, scale)
        )
        for k, head in heads.items()
    }
