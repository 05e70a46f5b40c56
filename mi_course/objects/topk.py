"""TopK training without the zeros: the same loss and gradients as a dense product, several times cheaper.

Of m features only k are active in a state, yet a dense decoder multiplies all m, and its backward pass does so four
more times (for the activations, W_dec, the pre-activations and W_enc). Only one product is really dense: the
pre-activations, since every feature has to compete. The rest needs the winners alone:

    x^ = sum over winners of a_j f_j               an embedding bag: look up rows of W_dec, add them with weights
    d loss / d W_enc = x^T S,  d loss / d x = S W_enc^T     S [n, m]: the gradients of the winners, else 0; sparse

Winners lie one state after the other: `columns` [N] says which features, `values` [N] how large, `offsets` [n] where
each state's begin.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, across_batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Winners among the pre-activations x W_enc + b_enc of states x [n, d]: (columns, values, offsets).

    The k largest of each state, or, if `across_batch`, the k n largest of all (then states have different numbers of
    them). Values below zero are cut to zero, as a ReLU before the choice would do.
    """
    values, columns, offsets = _Encode.apply(x, W_enc, b_enc, k, across_batch)
    return columns, values.relu(), offsets


def decode(columns: Tensor, values: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
    """sum_j a_j f_j over the winners of each state, [n, d]; f_j is row j of W_dec."""
    return functional.embedding_bag(columns, W_dec, offsets, mode="sum", per_sample_weights=values)


class _Encode(torch.autograd.Function):
    """Pre-activations of the winners; the backward pass never forms the dense gradient [n, m]."""

    @staticmethod
    def forward(ctx, x, W_enc, b_enc, k, across_batch):
        z = torch.addmm(b_enc, x, W_enc)
        n, m = z.shape
        if across_batch:
            chosen = z.flatten().topk(k * n, sorted=False).indices.sort().values
        else:
            chosen = (z.topk(k, dim=-1, sorted=False).indices + m * torch.arange(n, device=z.device)[:, None]).flatten()
        rows, columns = chosen // m, chosen % m
        offsets = torch.searchsorted(rows, torch.arange(n, device=z.device))
        ctx.save_for_backward(x, W_enc, rows, columns)
        ctx.mark_non_differentiable(columns, offsets)
        return z.flatten()[chosen], columns, offsets

    @staticmethod
    def backward(ctx, d_values, *_):
        x, W_enc, rows, columns = ctx.saved_tensors
        S = torch.sparse_coo_tensor(torch.stack([rows, columns]), d_values, (len(x), W_enc.shape[1]),
                                    check_invariants=False)
        d_b = torch.zeros_like(W_enc[0]).index_add(0, columns, d_values)
        return torch.sparse.mm(S, W_enc.T.contiguous()), torch.sparse.mm(S.T, x).T, d_b, None, None
