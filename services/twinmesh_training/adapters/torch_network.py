"""Fits networks with torch, on the CPU, in a worker process."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from twinmesh_training.domain.ports import Progress
from twinmesh_training.domain.predictor import Network

Float32 = npt.NDArray[np.float32]

_BATCH: Final = 256
_INPUT_DROPOUT: Final = 0.1
_PATIENCE: Final = 12
"""Epochs without a better one; long, because a one-cycle rate is at its best only near its end."""
_MIN_ROWS_PER_BATCH: Final = 32
_BLENDS: Final = (0.25, 0.5, 0.75, 1.0)


class TorchNetworkTrainer:
    """A residual MLP: input dropout, smooth L1, one cycle of AdamW, early stopping, then a blend towards the gate.

    Args:
        threads: torch's threads; set explicitly, because two on a busy machine lose badly against one.
        hidden: widths of the hidden layers.
        max_epochs: bound of epochs, whatever the budget.
    """

    def __init__(self, *, threads: int = 1, hidden: tuple[int, ...] = (128, 128), max_epochs: int = 24) -> None:
        torch.set_num_threads(threads)
        self._hidden = hidden
        self._max_epochs = max_epochs

    def fit(
        self, features: Float32, residual: Float32, *, validation: int, seed: int, budget_s: float, progress: Progress
    ) -> Network:
        """See `twinmesh_training.domain.ports.NetworkTrainer`."""
        deadline = time.monotonic() + budget_s
        cut = len(features) - validation
        mean = features[:cut].mean(axis=0, dtype=np.float64)
        deviation = features[:cut].std(axis=0, dtype=np.float64)
        # A feature that hardly moved in the fit part must not explode where it moves.
        scale = np.where(deviation > 1e-6, deviation, 1.0)
        standard = torch.from_numpy(((features - mean) / scale).astype(np.float32))
        wanted = torch.from_numpy(residual)
        unit = float(residual[:cut].std()) or 1.0
        randomness = torch.Generator().manual_seed(seed)
        model = _build(features.shape[1], self._hidden, residual.shape[1], randomness)
        parts = (standard[:cut], wanted[:cut], standard[cut:], wanted[cut:])
        best = _descend(model, parts, unit, randomness, deadline, self._max_epochs, progress)
        layers = _blended(best, parts[2], parts[3])
        return Network(mean=mean, scale=scale, layers=layers)


def _build(inputs: int, hidden: tuple[int, ...], outputs: int, randomness: torch.Generator) -> list[nn.Linear]:
    widths = (inputs, *hidden)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=randomness)
        nn.init.zeros_(layer.bias)
    # Starting from zero, the network starts as the gate and can only depart from it for a reason.
    last = nn.Linear(widths[-1], outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return [*layers, last]


def _forward(layers: list[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    for layer in layers[:-1]:
        x = nn.functional.silu(layer(x))
    answer: torch.Tensor = layers[-1](x)
    return answer


def _descend(
    layers: list[nn.Linear],
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    unit: float,
    randomness: torch.Generator,
    deadline: float,
    max_epochs: int,
    progress: Progress,
) -> list[nn.Linear]:
    """Train in place; return the layers with the weights that were best on the validation rows."""
    x, y, x_validation, y_validation = parts
    batches = max(1, len(x) // _BATCH)
    module = nn.ModuleList(layers)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=2e-3, total_steps=max_epochs * batches + 1, pct_start=0.15
    )
    best_loss = _error(layers, x_validation, y_validation)
    best = {name: value.clone() for name, value in module.state_dict().items()}
    stale = 0
    started = time.monotonic()
    for epoch in range(max_epochs):
        spent = time.monotonic() - started
        if stale > _PATIENCE or time.monotonic() + (spent / epoch if epoch else 0.0) > deadline:
            break
        done = min(1.0, epoch / max_epochs)
        progress.report(done, f"training the network: epoch {epoch + 1}, validation error {best_loss:.4g}")
        order = torch.randperm(len(x), generator=randomness)
        for index in range(batches):
            if index % 16 == 0:
                progress.check()
            rows = order[index * _BATCH : (index + 1) * _BATCH]
            keep = torch.rand((len(rows), x.shape[1]), generator=randomness) >= _INPUT_DROPOUT
            seen = x[rows] * keep / (1 - _INPUT_DROPOUT)
            loss = nn.functional.smooth_l1_loss(_forward(layers, seen) / unit, y[rows] / unit, beta=0.5)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch types it only in part
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        error = _error(layers, x_validation, y_validation)
        stale += 1
        if error < best_loss:
            best_loss, stale = error, 0
            best = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(best)
    return layers


@torch.no_grad()
def _error(layers: list[nn.Linear], x: torch.Tensor, y: torch.Tensor) -> float:
    return float((_forward(layers, x) - y).abs().mean())


@torch.no_grad()
def _blended(
    layers: list[nn.Linear], x: torch.Tensor, y: torch.Tensor
) -> tuple[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], ...]:
    """Weights as arrays, the last layer shrunk by the factor that validates best: half-way is often better."""
    answer = _forward(layers, x)
    factor = min(_BLENDS, key=lambda f: float((f * answer - y).abs().mean()))
    found = [
        (layer.weight.detach().numpy().T.astype(np.float64), layer.bias.detach().numpy().astype(np.float64))
        for layer in layers
    ]
    weights, bias = found[-1]
    return (*found[:-1], (weights * factor, bias * factor))
