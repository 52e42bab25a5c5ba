"""A `nets.NetSpec` as a PyTorch module; its parameters go to and from `nets.Params` without loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgert.nets import Conv, Dense, MaxPool, Params, Placed, Relu, stages, weighted


class Net(nn.Module):
    """An early-exit network.

    Attributes:
        spec: what it looks like.
    """

    def __init__(self, params: Params) -> None:
        """Build it with a copy of `params`."""
        super().__init__()
        self.spec = params.spec
        self._stages = stages(self.spec)
        self._first = next(placed for placed in self._stages[0].trunk if isinstance(placed.layer, Conv | Dense))
        self.weights = nn.ParameterDict()
        for placed in weighted(self.spec):
            for part in ("w", "b"):
                self.weights[_key(placed, part)] = nn.Parameter(torch.empty(0))
        self.load(params)

    def load(self, params: Params) -> None:
        """Take over parameters."""
        for placed in weighted(self.spec):
            weight = torch.from_numpy(params.views[f"{placed.name}.w"].copy())
            match placed.layer:
                case Conv(channels, kernel):
                    weight = weight.reshape(kernel, kernel, placed.in_shape[-1], channels).permute(3, 2, 0, 1)
                    weight = weight.contiguous(memory_format=torch.channels_last)
                case _:
                    weight = weight.T.contiguous()
            bias = torch.from_numpy(params.views[f"{placed.name}.b"].copy())
            for part, value in (("w", weight), ("b", bias)):
                own: Tensor = self.weights[_key(placed, part)]
                own.data = value.to(own.device)

    def params(self) -> Params:
        """The parameters as the rest of edgert knows them."""
        made = Params(self.spec)
        for placed in weighted(self.spec):
            weight = self.weights[_key(placed, "w")].detach().cpu().float()
            weight = weight.permute(2, 3, 1, 0) if isinstance(placed.layer, Conv) else weight.T
            view = made.views[f"{placed.name}.w"]
            view[:] = weight.reshape(view.shape).numpy()
            made.views[f"{placed.name}.b"][:] = self.weights[_key(placed, "b")].detach().cpu().float().numpy()
        return made

    def parts(self) -> list[list[nn.Parameter]]:
        """The parameters of the trunk with the last head, then those of each other head that has any."""
        last = self.spec.n_exits - 1
        found: dict[str, list[nn.Parameter]] = {}
        for placed in weighted(self.spec):
            head = placed.name.partition(".")[0]
            owner = "whole" if head.startswith("t") or head == f"h{last}" else head
            found.setdefault(owner, []).extend(self.weights[_key(placed, part)] for part in ("w", "b"))
        return list(found.values())

    def output_bias(self, exit_: int) -> nn.Parameter:
        """What an exit's output layer adds: (n_actions + 1,), the confidence's last."""
        bias: nn.Parameter = self.weights[_key(self._stages[exit_].head[-1], "b")]
        return bias

    def _run(self, layers: list[Placed], x: Tensor) -> Tensor:
        for placed in layers:
            match placed.layer:
                case Conv(_, _, stride, padding):
                    x = functional.conv2d(x, self._own(placed, "w"), self._own(placed, "b"), stride, padding)
                case MaxPool(kernel, stride):
                    x = functional.max_pool2d(x, kernel, stride)
                case Dense():
                    x = functional.linear(_flat(x), self._own(placed, "w"), self._own(placed, "b"))
                case Relu():
                    x = functional.relu(x)
        return x

    def _own(self, placed: Placed, part: str) -> Tensor:
        own: Tensor = self.weights[_key(placed, part)]
        return own * self.spec.input_scale if part == "w" and placed is self._first else own

    def forward(
        self, obs: Tensor, exits: tuple[int, ...] | None = None, *, detached: bool = False, half: bool = False
    ) -> dict[int, Tensor]:
        """Q-values and confidence logit of the wanted exits.

        Args:
            obs: (batch, H, W, C) uint8.
            exits: which; None means all.
            detached: no gradient flows from any but the last head into the trunk, so that trunk and last head learn
                exactly what they would learn without the other heads.
            half: convolutions and hidden layers in bfloat16; the output layers stay float32.

        Returns:
            exit -> (batch, n_actions + 1) float32. The confidence's gradient stops where the head begins: judging may
            form the head, never the trunk.
        """
        wanted = range(self.spec.n_exits) if exits is None else exits
        found: dict[int, Tensor] = {}
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=half):
            # Whole numbers up to 255 are exact in bfloat16; their scale goes to the first layer's weights instead.
            x = obs.permute(0, 3, 1, 2).to(torch.bfloat16 if half else torch.float32)
            for k, stage in enumerate(self._stages[: max(wanted) + 1]):
                x = self._run(stage.trunk, x)
                if k not in wanted:
                    continue
                *hidden, output = stage.head
                seen = x.detach() if detached and k < self.spec.n_exits - 1 else x
                features = _flat(self._run(hidden, seen))
                judging = _flat(self._run(hidden, x.detach())) if hidden else features.detach()
                with torch.autocast(obs.device.type, enabled=False):
                    weight, bias = self._own(output, "w"), self._own(output, "b")
                    q = functional.linear(features.float(), weight[:-1], bias[:-1])
                    sure = functional.linear(judging.float(), weight[-1:], bias[-1:])
                    if output.gap_logits:
                        best = q.detach().topk(2, 1).values
                        sure = sure + output.gap_logits * (best[:, :1] - best[:, 1:])
                found[k] = torch.cat((q, sure), 1)
        return found


def _key(placed: Placed, part: str) -> str:
    """Module names may not hold dots."""
    return f"{placed.name}.{part}".replace(".", "_")


def _flat(x: Tensor) -> Tensor:
    """Features in edgert's order: row, column, channel."""
    return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x


def as_tensor(obs: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], device: torch.device) -> Tensor:
    """Observations on the device."""
    return torch.from_numpy(obs).to(device, non_blocking=True)
