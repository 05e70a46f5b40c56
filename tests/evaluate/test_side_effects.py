"""A bigram model whose every probability is known by hand: the measures have exact answers."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mi_course.evaluate import document_loss, identity, kl_to_base, side_effect_matrix

VOCABULARY = 4


class Bigram:
    """Token a is followed by b with probability table[a, b]; pads with token 0 on the left."""

    def __init__(self):
        self.table = torch.rand(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)) + 0.1
        self.table /= self.table.sum(-1, keepdim=True)

    def tokenize(self, prompts):
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        return SimpleNamespace(ids=ids, mask=mask)

    def __call__(self, batch):
        return self.table.log()[batch.ids] + 3.0  # logits are free up to a constant

    @contextmanager
    def swapped(self, table):
        old, self.table = self.table, table
        try:
            yield
        finally:
            self.table = old


class AlwaysThree:
    def accuracy(self, model):
        return float((model.table.argmax(-1) == 3).float().mean())


DOCUMENTS = [[1, 2, 3], [3, 1], [2, 2, 1, 0, 3]]


def test_document_loss_by_hand_and_in_order():
    model = Bigram()
    expected = [np.mean([-np.log(float(model.table[a, b])) for a, b in zip(d, d[1:])]) for d in DOCUMENTS]
    for batch_size in (1, 2, 64):
        assert np.allclose(document_loss(model, DOCUMENTS, batch_size), expected, atol=1e-6)
    with pytest.raises(ValueError, match="empty"):
        document_loss(model, [])
    with pytest.raises(ValueError, match="two tokens"):
        document_loss(model, [[1]])


def test_kl_is_zero_for_the_identity_and_exact_for_a_known_change():
    model = Bigram()
    uniform = torch.full((VOCABULARY, VOCABULARY), 1 / VOCABULARY)
    assert torch.equal(kl_to_base(model, identity, DOCUMENTS), torch.zeros(3))
    per_token = (model.table * (model.table / uniform).log()).sum(-1)
    expected = [per_token[torch.tensor(d[:-1])].mean().item() for d in DOCUMENTS]
    assert np.allclose(kl_to_base(model, lambda: model.swapped(uniform), DOCUMENTS, 2), expected, atol=1e-6)


def test_side_effect_matrix():
    model = Bigram()
    to_three = torch.full((VOCABULARY, VOCABULARY), 0.1)
    to_three[:, 3] = 0.7
    steers = {"nothing": identity, "to three": lambda: model.swapped(to_three)}
    matrix = side_effect_matrix(model, steers, {"a": DOCUMENTS, "b": DOCUMENTS[:1]}, {"a": AlwaysThree()})
    assert matrix.domains == ["a", "b"]
    assert matrix.kl[0].tolist() == [0, 0] and (matrix.kl[1] > 0).all()
    for j, documents in enumerate((DOCUMENTS, DOCUMENTS[:1])):
        assert matrix.kl[1, j] == pytest.approx(kl_to_base(model, steers["to three"], documents).mean().item())
    assert matrix.loss_change[0].tolist() == [0, 0]
    with model.swapped(to_three):
        after = document_loss(model, DOCUMENTS).mean().item()
    assert matrix.loss_change[1, 0] == pytest.approx(after - document_loss(model, DOCUMENTS).mean().item())
    assert matrix.accuracy_change[1, 0] == pytest.approx(1 - AlwaysThree().accuracy(model))
    assert np.isnan(matrix.accuracy_change[1, 1])
    assert matrix.row("to three")["a"]["kl"] == matrix.kl[1, 0]
    with pytest.raises(ValueError, match="steers"):
        side_effect_matrix(model, {}, {"a": DOCUMENTS})
