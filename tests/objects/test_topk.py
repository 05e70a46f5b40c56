"""TopK without the zeros gives what the dense products give: loss, gradients, and whole trainings."""

import pytest
import torch

from mi_course.objects import topk
from mi_course.objects.sae import SAE, train


def states(n=40, d=12, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_loss(sae, x, y):
    """Eq. 7-9 as they stand, with every zero in its place."""
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    if sae.kind == "topk":
        top = z.relu().topk(sae.k, dim=-1)
        a = torch.zeros_like(z).scatter(-1, top.indices, top.values)
    else:
        flat = z.relu().flatten()
        top = flat.topk(sae.k * len(x))
        a = torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(z)
    return sum((y - a[:, :n] @ sae.W_dec[:n] - sae.b_dec).pow(2).sum(-1).mean() for n in sae.prefixes), a


@pytest.mark.parametrize("other_target", [False, True])
@pytest.mark.parametrize("kind, k, prefixes", [("topk", 3, None), ("batchtopk", 3, None), ("topk", 30, None),
                                               ("batchtopk", 4, (5, 17, 40))])
def test_loss_and_gradients_equal_the_dense_ones(kind, k, prefixes, other_target):
    sae = SAE(12, 40, kind, k, prefixes=prefixes, seed=1).double()
    with torch.no_grad():
        sae.b_enc.normal_(std=0.3), sae.b_dec.normal_()
    x = states()
    y = states(seed=5) if other_target else x
    reference, a = dense_loss(sae, x, y)
    expected = torch.autograd.grad(reference, list(sae.parameters()))
    loss, use = sae._loss_and_use(x, 0.0, None, y)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-13)
    for name, found, right in zip(dict(sae.named_parameters()), torch.autograd.grad(loss, list(sae.parameters())),
                                  expected):
        assert (found - right).abs().max() <= 1e-13 * right.abs().max().clamp_min(1), name
        assert right.abs().max() > 1e-3, name                                  # the gradient compared is not zero
    assert torch.equal(use.count, (a > 0).sum(0))
    assert use.smallest.item() == pytest.approx(a[a > 0].min().item(), rel=1e-12)


def test_gradient_for_the_states_too():
    x, W, b = states().requires_grad_(), states(12, 40, 2), torch.zeros(40, dtype=torch.float64)
    columns, values, offsets = topk.encode(x, W, b, 3, across_batch=False)
    got = torch.autograd.grad((values * torch.arange(len(values))).sum(), x)[0]
    z = (x @ W + b).relu()
    rows = torch.arange(40).repeat_interleave(3)
    assert torch.equal(z[rows, columns], values)
    assert torch.allclose(got, torch.autograd.grad((z[rows, columns] * torch.arange(120)).sum(), x)[0], atol=1e-12)
    assert torch.equal(offsets, torch.arange(0, 120, 3))


def test_a_state_without_winners_is_an_empty_sum():
    x = torch.cat([states(4), torch.zeros(1, 12, dtype=torch.float64)])         # all winners elsewhere
    columns, values, offsets = topk.encode(x, states(12, 40, 2), -torch.ones(40, dtype=torch.float64), 2, True)
    out = topk.decode(columns, values, offsets, states(40, 12, 3))
    assert offsets[-1] == len(columns) == 10 and torch.equal(out[-1], torch.zeros(12, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_training_takes_this_way_and_ends_where_the_dense_one_ends(kind, monkeypatch):
    x = states(200).float().double()
    fast = train(x, 24, kind, 3, steps=30, batch_size=50)
    calls = []
    original = topk.encode
    monkeypatch.setattr(topk, "encode", lambda *args: calls.append(1) or original(*args))
    train(x, 24, kind, 3, steps=3, batch_size=50)
    assert len(calls) == 3

    def dense(self, x, y):
        from mi_course.objects.sae import Use
        loss, a = dense_loss(self, x, y)
        return loss, Use((a > 0).sum(0), a[a > 0].min().detach())

    monkeypatch.setattr(SAE, "_loss_of_winners", dense)
    slow = train(x, 24, kind, 3, steps=30, batch_size=50)
    for name, right in slow.state_dict().items():
        assert torch.allclose(fast.state_dict()[name], right, atol=1e-9), name
