"""The empirical neural tangent kernel (Jacot et al., NeurIPS 2018), and how far it predicts training.

With J the derivative of a network's outputs on some samples by its parameters, K = J Jᵀ. Under gradient descent
in small steps the outputs f move along ``-lr K (dL/df)`` as long as J stays what it is at the initialisation:
the network is then a linear model. GraSP's paper argues through K: the squared gradient norm is
``(dL/df)ᵀ K (dL/df)``, so that keeping it large keeps the directions in which the errors lie among those that
are learned fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.loss import find_logits

_COLUMNS = 1 << 16  # of the Jacobian at a time in double precision


@dataclass(frozen=True)
class TangentKernel:
    """K of some samples at one point.

    Attributes:
        matrix: float64, ``[samples * classes, samples * classes]``, symmetric; the classes of one sample are
            neighbours.
        outputs: logits at this point, float64, ``[samples, classes]``.
    """

    matrix: Tensor
    outputs: Tensor

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, the largest first, and eigenvectors as columns."""
        values, vectors = torch.linalg.eigh(self.matrix)
        return values.flip(0), vectors.flip(1)

    def alignment(self, labels: Tensor) -> Tensor:
        """Share of the labels' squared length that lies along each eigenvector, the largest eigenvalue first.

        Labels are taken as ``one-hot - 1 / classes``: what is the same for all classes moves no softmax.
        """
        classes = self.outputs.shape[1]
        wanted = (F.one_hot(labels, classes).double() - 1 / classes).flatten()
        _, vectors = self.eigen()
        return (vectors.T @ wanted).square() / wanted.square().sum()

    def losses(self, labels: Tensor, lr: float, steps: int) -> list[float]:
        """Cross-entropy before and after each of `steps` steps of gradient descent, if the network were linear."""
        samples, classes = self.outputs.shape
        wanted, outputs, found = F.one_hot(labels, classes).double(), self.outputs, []
        for _ in range(steps + 1):
            found.append(float(F.cross_entropy(outputs, labels)))
            errors = (outputs.softmax(1) - wanted) / samples
            outputs = outputs - lr * (self.matrix @ errors.flatten()).view(samples, classes)
        return found


def tangent_kernel(model: nn.Module, inputs: Tensor, *, chunk: int = 32) -> TangentKernel:
    """K of a model in the mode that it is in, over all its trainable parameters; those masked have no part in it.

    In training mode batch normalisation uses the statistics of `inputs`, so that one sample's output depends on
    the others, as it does in training. The model is left as it is.

    Args:
        model: takes the inputs, gives logits. It must draw nothing (no active dropout).
        inputs: one batch; the Jacobian takes ``samples * classes * parameters`` float32 numbers.
        chunk: rows of the Jacobian computed at a time.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name: buffer.detach() for name, buffer in model.named_buffers()}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        own = {name: buffer.clone() for name, buffer in buffers.items()}  # batch statistics are updated in place
        return find_logits(torch.func.functional_call(model, {**values, **own}, (inputs,)))[0]

    value, pull_back = torch.func.vjp(outputs, parameters)  # type: ignore[misc]  # there is no auxiliary output
    basis = torch.eye(value.numel(), dtype=value.dtype, device=value.device).view(-1, *value.shape)
    rows = []
    for part in basis.split(chunk):
        (gradients,) = torch.func.vmap(pull_back)(part)
        rows.append(torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1))
    jacobian = torch.cat(rows)
    matrix = torch.zeros(len(jacobian), len(jacobian), dtype=torch.float64, device=value.device)
    for part in jacobian.split(_COLUMNS, 1):
        matrix.addmm_(part.double(), part.double().T)
    return TangentKernel(matrix, value.detach().double())


def real_losses(model: nn.Module, inputs: Tensor, labels: Tensor, lr: float, steps: int) -> list[float]:
    """Cross-entropy before and after each of `steps` steps of gradient descent on one batch; trains `model`."""
    optimizer, found = torch.optim.SGD(model.parameters(), lr=lr), []
    for step in range(steps + 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(find_logits(model(inputs))[0], labels)
        found.append(float(loss.detach()))
        if step < steps:
            loss.backward()
            optimizer.step()
    return found
