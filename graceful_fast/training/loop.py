"""One training loop for every recipe: an objective, any model, optimiser and loader; a state that resumes exactly."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Objective = Callable[..., torch.Tensor]
"""(new_logits, inputs, target) of a batch -> the loss."""


def cross_entropy(new_logits: torch.Tensor, inputs: Any, target: torch.Tensor) -> torch.Tensor:
    """The plain objective."""
    return nn.functional.cross_entropy(new_logits, target)


@dataclass
class Training:
    """A model in training and all that its next epoch depends on.

    ``state_dict()`` between two epochs, loaded into a `Training` made alike, goes on as if nothing had happened: model,
    optimiser, schedule, number of epochs, torch's random numbers and those of the loader's generator. The objective's
    old model is not part of it.

    Args:
        model: The new model: inputs -> logits. May be compiled or wrapped by DistributedDataParallel.
        objective: (new_logits, inputs, target) -> loss, such as those of `graceful_fast.training.pct`.
        optimizer: Of the model's parameters.
        batches: Of (inputs, target); each iteration over it is an epoch. A DataLoader: give it a `generator`, so that
            its order is part of the state, and under DistributedDataParallel a DistributedSampler.
        schedule: Stepped after every batch.
        autocast: The type that both models' products are computed in, e.g. torch.bfloat16; None for float32.

    Example:
        >>> import torch
        >>> from graceful_fast.training.loop import Training, cross_entropy
        >>> model = torch.nn.Linear(2, 2)
        >>> batches = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> training = Training(model, cross_entropy, torch.optim.SGD(model.parameters(), lr=1.0), batches)
        >>> training.run(20)
        >>> model(torch.eye(2)).argmax(1), training.epoch
        (tensor([0, 1]), 20)
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    batches: Iterable[Any]
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    autocast: torch.dtype | None = None
    epoch: int = 0

    def run(self, epochs: int) -> None:
        """Train until `epochs` epochs are done in all; a resumed training does what is left."""
        device = next(self.model.parameters()).device
        self.model.train()
        while self.epoch < epochs:
            sampler = getattr(self.batches, "sampler", None)
            if isinstance(sampler, torch.utils.data.DistributedSampler):
                sampler.set_epoch(self.epoch)
            for inputs, target in self.batches:
                inputs, target = inputs.to(device), target.to(device)
                with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                    loss = self.objective(self.model(inputs), inputs, target)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                if self.schedule is not None:
                    self.schedule.step()
            self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, for torch.save."""
        generator = getattr(self.batches, "generator", None)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "epoch": self.epoch,
            "random": torch.get_rng_state(),
            "batches": None if generator is None else generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.epoch = state["epoch"]
        torch.set_rng_state(state["random"])
        generator = getattr(self.batches, "generator", None)
        if generator is not None:
            generator.set_state(state["batches"])
