"""Training a TopK SAE: tokens per second, forward and backward, against the same SAE in dense PyTorch.

16 features for each dimension of the model, 32 of them active, batches of 4096 random states. Dense means Eq. 7 to 9
as one writes them down: all activations in a matrix that is mostly zero, and a product with it.
"""

import torch

from mi_course.objects.sae import SAE

from ..bench import alternate

BATCH, EXPANSION, K = 4096, 16, 32
LIMITS = {"sae_training": 1.5}  # tokens per second, ours / dense
DIRECTION = "at least"


def measure(model, pairs: int, batch: int = BATCH) -> dict:
    """Medians over alternating pairs. Raises AssertionError when loss or gradients are not those of the dense SAE."""
    sae = SAE(model.d_model, EXPANSION * model.d_model, "topk", K)
    x = torch.randn(batch, model.d_model, generator=torch.Generator().manual_seed(0))

    def ours():
        return step(sae, sae.loss(x))

    def dense():
        return step(sae, dense_loss(sae, x))

    for found, expected in zip(ours(), dense()):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), "the two losses or gradients disagree"
    times = alternate(dense, ours, pairs)
    return {
        "sae_training": round(1 / times["ratio"], 2),
        "sae_tokens_per_second": round(batch / (times["plain"] * times["ratio"])),
        "sae_tokens_per_second_dense": round(batch / times["plain"]),
    }


def dense_loss(sae: SAE, x):
    """|x - x^|^2 with every activation in its place, zero or not."""
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    top = z.relu().topk(sae.k, dim=-1)
    a = torch.zeros_like(z).scatter(-1, top.indices, top.values)
    return (x - (a @ sae.W_dec + sae.b_dec)).pow(2).sum(-1).mean()


def step(sae: SAE, loss) -> list:
    """Backward pass: the loss and every gradient."""
    return [loss.detach(), *torch.autograd.grad(loss, list(sae.parameters()))]
