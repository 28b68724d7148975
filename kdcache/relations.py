"""Relations between the instances of a batch: (batch, dim) in, (batch, batch) out."""

import torch


def gram(x: torch.Tensor) -> torch.Tensor:
    """Gram matrix: G = X Xᵀ.

    Args:
        x: of shape (batch, dim).

    Returns:
        Of shape (batch, batch). On probabilities an entry is the chance that two instances,
        drawn independently, fall into the same class.

    >>> gram(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist()
    [[1.0, 0.5], [0.5, 0.5]]
    """
    return x @ x.T


def class_energy(p: torch.Tensor) -> torch.Tensor:
    """How far a batch of probabilities is from uninformed: ‖(P − 1/C)ᵀ(P − 1/C)‖²_F.

    Equals ‖gram(P) − gram(1/C)‖²_F, since each row of P − 1/C sums to 0.

    Args:
        p: probabilities of shape (batch, num_labels).

    Returns:
        A scalar ≥ 0; 0 for uniform rows.

    >>> class_energy(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item()
    1.0
    """
    centred = p - 1.0 / p.shape[1]
    return (centred.T @ centred).square().sum()
