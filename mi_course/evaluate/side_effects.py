"""What else moved? Loss, KL to the base model and accuracy in every domain, with and without a steer.

The functions take plain things: a `model` with `model.tokenize(prompts)` and `model(batch)`, documents as strings (or
token-id lists), tasks with `accuracy(model)`, and steers as functions without arguments that return a fresh context
manager, such as `lambda: mi.intervene(model, mi.zero("L3H5"))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

Steer = Callable[[], AbstractContextManager]


def batches(model, documents: Sequence, batch_size: int) -> Iterator[tuple[torch.Tensor, object]]:
    """Documents in batches of similar length (little padding): pairs of (original indices, tokenized batch)."""
    if len(documents) == 0:
        raise ValueError("documents is empty: give at least one document")
    length = [len(d.split()) if isinstance(d, str) else len(d) for d in documents]
    order = sorted(range(len(documents)), key=length.__getitem__)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield torch.tensor(rows), model.tokenize([documents[i] for i in rows])


def _predicted(batch) -> torch.Tensor:
    """[B, T-1] mask of positions whose next token is a real token too. ValueError where a document has none."""
    mask = batch.mask.bool()
    mask = mask[:, :-1] & mask[:, 1:]
    if not mask.any(1).all():
        raise ValueError("documents: every document needs at least two tokens to have a next-token loss")
    return mask


def _row_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def document_loss(model, documents: Sequence, batch_size: int = 64) -> torch.Tensor:
    """Mean next-token cross-entropy of every document, in nats. Returns a float tensor [n_documents].

    Every document needs two tokens or more (the beginning token counts); padding is left out.
    """
    losses = torch.empty(len(documents))
    for rows, batch in batches(model, documents, batch_size):
        mask = _predicted(batch)
        log_p = model(batch)[:, :-1].float().log_softmax(-1)
        nll = -log_p.gather(-1, batch.ids[:, 1:, None])[..., 0]
        losses[rows] = _row_mean(nll, mask).cpu()
    return losses


@torch.no_grad()
def kl_to_base(model, steer: Steer, documents: Sequence, batch_size: int = 64) -> torch.Tensor:
    """KL(base || steered) of the next-token distributions, averaged over the positions of each document, in nats.

    Returns a float tensor [n_documents]; 0 for a steer that does nothing.
    """
    divergence = torch.empty(len(documents))
    for rows, batch in batches(model, documents, batch_size):
        base = model(batch)[:, :-1].float().log_softmax(-1)
        with steer():
            steered = model(batch)[:, :-1].float().log_softmax(-1)
        divergence[rows] = _row_mean(_kl(base, steered), _predicted(batch)).cpu()
    return divergence


def _kl(base: torch.Tensor, steered: torch.Tensor) -> torch.Tensor:
    """KL of two distributions given as log-probabilities [..., V]."""
    return (base.exp() * (base - steered)).sum(-1)


@torch.no_grad()
def _moved(model, steers: Iterable[Steer], documents: Sequence, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean KL to the base and mean change of the loss for every steer, from one base pass: two arrays [n_steers]."""
    steers = list(steers)
    sums = np.zeros((2, len(steers)))
    for _, batch in batches(model, documents, batch_size):
        mask, following = _predicted(batch), batch.ids[:, 1:, None]
        base = model(batch)[:, :-1].float().log_softmax(-1)
        for i, steer in enumerate(steers):
            with steer():
                steered = model(batch)[:, :-1].float().log_softmax(-1)
            change = base.gather(-1, following) - steered.gather(-1, following)
            sums[0, i] += _row_mean(_kl(base, steered), mask).sum().item()
            sums[1, i] += _row_mean(change[..., 0], mask).sum().item()
    return tuple(sums / len(documents))


@dataclass(frozen=True)
class SideEffects:
    """Steer i x domain j. Every field [n_steers, n_domains]; NaN where a domain has no documents or no task.

    kl: mean KL(base || steered), nats.  loss_change: steered - base loss, nats per token.
    accuracy_change: steered - base accuracy.
    """

    steers: list[str]
    domains: list[str]
    kl: np.ndarray
    loss_change: np.ndarray
    accuracy_change: np.ndarray

    def to_frame(self):
        """A pandas frame with one row per (steer, domain)."""
        import pandas as pd

        index = pd.MultiIndex.from_product([self.steers, self.domains], names=["steer", "domain"])
        columns = {name: getattr(self, name).ravel() for name in ("kl", "loss_change", "accuracy_change")}
        return pd.DataFrame(columns, index=index)

    def row(self, steer: str) -> dict[str, dict[str, float]]:
        """One steer as {domain: {kl, loss_change, accuracy_change}}."""
        i = self.steers.index(steer)
        return {
            domain: {name: float(getattr(self, name)[i, j]) for name in ("kl", "loss_change", "accuracy_change")}
            for j, domain in enumerate(self.domains)
        }


def side_effect_matrix(
    model,
    steers: Mapping[str, Steer],
    documents: Mapping[str, Sequence] | None = None,
    tasks: Mapping[str, object] | None = None,
    batch_size: int = 64,
) -> SideEffects:
    """The side-effect matrix of the course: every steer against every domain (survey-map section 0).

    Args:
        steers: name -> function that returns a fresh context manager.
        documents: domain -> documents, for KL and loss.
        tasks: domain -> task with `accuracy(model)`, for the change in accuracy. Domains are the union of both.
    """
    documents, tasks = documents or {}, tasks or {}
    if not steers:
        raise ValueError("steers is empty: give at least one name -> context manager factory")
    if not documents and not tasks:
        raise ValueError("give documents or tasks (or both): there is no domain to measure")
    domains = list(dict.fromkeys([*documents, *tasks]))
    kl, loss_change, accuracy_change = (np.full((len(steers), len(domains)), np.nan) for _ in range(3))
    for j, domain in enumerate(domains):
        if domain in documents:
            kl[:, j], loss_change[:, j] = _moved(model, steers.values(), documents[domain], batch_size)
        if domain in tasks:
            base = float(tasks[domain].accuracy(model))
            for i, steer in enumerate(steers.values()):
                with steer():
                    accuracy_change[i, j] = float(tasks[domain].accuracy(model)) - base
    return SideEffects(list(steers), domains, kl, loss_change, accuracy_change)


def identity() -> AbstractContextManager:
    """The steer that does nothing: the row of a side-effect matrix that must be zero."""
    return nullcontext()
