"""Second outputs for variances: a net that makes both at once, or a head on a trained net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .denoiser import Denoiser, Output
from .nets import UNet
from .nets.unet import act


class TwoOutputs(nn.Module):
    """A net with twice the channels: the first half is y, the second the other output.

    Args:
        net: ``net(x, t, cond)``, such as ``UNet(1, out=2)``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Output:
        return Output(*self.net(x, t, cond).chunk(2, 1))


class WithHead(nn.Module):
    """A trained U-Net that stays as it is, and a small head on its last feature map.

    One call of the U-Net serves both outputs. Only the head has gradients; it starts at 0.

    Args:
        net: The U-Net. It is frozen and kept in eval mode.
    """

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        last = net.last
        self.head = nn.ModuleList(
            [
                nn.Conv2d(last.in_channels, last.in_channels, 3, padding=1),
                nn.Conv2d(last.in_channels, last.out_channels, 3, padding=1),
            ]
        )
        nn.init.zeros_(self.head[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head[1].bias)  # type: ignore[arg-type]
        self.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> WithHead:
        """Set the mode of the head; the net stays in eval mode, so that nothing is dropped."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Output:
        with torch.no_grad():
            h = self.net.features(x, t, cond)
            y = self.net.image(self.net.last, h, x)
        enter, leave = self.head
        return Output(y, self.net.image(leave, act(enter(h)), x))


def add_head(model: Denoiser) -> Denoiser:
    """Return a denoiser with the same mean as a trained one, and a new second output.

    Raises:
        ValueError: if the net of the model is no ``UNet``.
    """
    if not isinstance(model.net, UNet):
        raise ValueError(f"model.net is a {type(model.net).__name__}: a head needs a UNet")
    return Denoiser(WithHead(model.net), model.schedule, model.prediction)
