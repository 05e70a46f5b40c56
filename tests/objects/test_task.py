import math

import pytest
import torch

from mi_course.objects.task import Task


class Batch:
    def __init__(self, mask):
        self.mask = mask


class WordModel:
    """Stands in for a model: words are tokens, and the logits are fixed functions of the last word."""

    tokenizer = "words"
    words = ["paris", "rome", "lima", "oslo", "in", "from"]

    def tokenize(self, prompts):
        lengths = [len(p.split()) for p in prompts]
        return Batch(torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths]))

    def token_id(self, word):
        if len(word.split()) != 1:
            raise ValueError(f"{word!r} is {len(word.split())} tokens")
        return self.words.index(word.strip())

    def last_logits(self, prompts, grad=False):
        last = torch.tensor([self.words.index(p.split()[-1]) for p in prompts])
        return torch.eye(6)[last] * 3.0


def make(**changes):
    fields = dict(
        name="t",
        prompts=["in paris", "in rome"],
        corrupted=["in lima", "in oslo"],
        targets=["paris", "rome"],
        foils=["lima", "oslo"],
        labels=[{"kind": "a"}, {"kind": "b"}],
    )
    return Task(**(fields | changes))


def test_metrics_are_what_they_say():
    model = WordModel()
    assert make().measure(model).tolist() == [3.0, 3.0]
    assert make().measure(model, on="corrupted").tolist() == [-3.0, -3.0]
    p = math.exp(3) / (math.exp(3) + 5)
    assert make(metric="prob").measure(model).tolist() == pytest.approx([p, p])
    assert make(metric="logprob").measure(model).tolist() == pytest.approx([math.log(p)] * 2)
    assert make(metric="accuracy").measure(model).tolist() == [1.0, 1.0]
    assert make(targets=["paris", "lima"]).accuracy(model) == 0.5


def test_metrics_carry_gradients():
    logits = torch.randn(2, 6, requires_grad=True)
    for metric in ("logit_diff", "prob", "logprob"):
        make(metric=metric).metric_of(logits, WordModel()).sum().backward()
        assert logits.grad.abs().sum() > 0
        logits.grad = None


def test_subset_and_where_keep_items_together():
    one = make().subset([1])
    assert (one.prompts, one.targets, one.foils, one.corrupted, one.labels) == (
        ["in rome"],
        ["rome"],
        ["oslo"],
        ["in oslo"],
        [{"kind": "b"}],
    )
    assert make().where(kind="b") == one == make().subset([False, True]) == make().subset(slice(1, 2))
    assert make().subset(torch.tensor([1])) == one
    assert len(make().subset(1)) == 1


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(prompts=[], targets=[]), "prompts.*non-empty"),
        (dict(prompts="in paris"), "prompts.*list"),
        (dict(targets=["paris"]), "targets.*1 entries for 2"),
        (dict(foils=None), "foils.*missing"),
        (dict(metric="loss"), "metric.*choose one of"),
    ],
)
def test_structure_is_checked_at_once(changes, says):
    with pytest.raises(ValueError, match=says):
        make(**changes)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(corrupted=["in lima", "from in oslo"]), r"corrupted\[1\] has 3 tokens but prompts\[1\] has 2"),
        (dict(targets=["paris", "rome oslo"]), r"targets\[1\].*single token"),
        (dict(foils=["paris lima", "oslo"]), r"foils\[0\].*single token"),
    ],
)
def test_tokens_are_checked_with_a_model(changes, says):
    task = make(**changes)
    with pytest.raises(ValueError, match=says):
        task.validate(WordModel())
    with pytest.raises(ValueError, match=says):
        task.measure(WordModel())


def test_missing_parts_say_what_to_give():
    with pytest.raises(ValueError, match="corrupted"):
        make(corrupted=None).measure(WordModel(), on="corrupted")
    with pytest.raises(ValueError, match="label keys are"):
        make().where(kind="z")
    with pytest.raises(ValueError, match="give one per prompt"):
        make().subset([True])
