"""A behaviour, stated so that every method can be run on it: prompts, right answers, contrasts and a metric."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

METRICS = ("logit_diff", "prob", "logprob", "accuracy")


@dataclass(frozen=True)
class Task:
    """Prompts with their labels, the contrast (clean and corrupted twins), target and foil tokens, and a metric.

    name       what the task is called in tables and plots
    prompts    n clean prompts: text, or lists of token ids for a model without tokenizer
    targets    n right next tokens: text that is one token each, or token ids
    corrupted  n twins of the prompts, equal in token length, whose right answer is the foil; None when there are none
    foils      n wrong next tokens to contrast with, one token each; None when there are none
    labels     n dicts with what is known of each item (entity, relation, template ...); empty dicts by default
    split      which part of the data this is, "train", "validation" or "test"
    metric     what `measure` returns, per item and at the last real token (F in Eq. 12 to 14 of the survey):
               "logit_diff"  logit(target) - logit(foil)
               "prob"        p(target),  in 0 ... 1
               "logprob"     log p(target), in nats
               "accuracy"    1 when the target is the most likely token, else 0 (no gradient)

    Lists of unequal length, an empty task or an unknown metric raise ValueError here. What depends on the tokenizer
    (twins of unequal length, an answer of several tokens) raises ValueError on first use with a model;
    `validate(model)` asks for it at once.
    """

    name: str
    prompts: list
    targets: list
    corrupted: list | None = None
    foils: list | None = None
    labels: list[dict] = field(default_factory=list)
    split: str = "test"
    metric: str = "logit_diff"
    # what was looked up or checked last: argument -> (tokenizer it was done with, result)
    _memory: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        n = len(self.prompts)
        if isinstance(self.prompts, str) or n == 0:
            raise ValueError(f"prompts of task {self.name!r} must be a non-empty list; give at least one prompt")
        if not self.labels:
            object.__setattr__(self, "labels", [{} for _ in range(n)])
        for argument in ("targets", "corrupted", "foils", "labels"):
            values = getattr(self, argument)
            if values is not None and (isinstance(values, str) or len(values) != n):
                raise ValueError(f"{argument} of task {self.name!r} has {len(values)} entries for {n} prompts; "
                                 f"give one per prompt")
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} is unknown; choose one of {', '.join(METRICS)}")
        if self.metric == "logit_diff" and self.foils is None:
            raise ValueError(f"foils of task {self.name!r} are missing: metric 'logit_diff' contrasts the target with "
                             f"a foil; give foils, or metric='logprob'")

    def __len__(self) -> int:
        return len(self.prompts)

    # ---------------------------------------------------------------- parts

    def subset(self, items: int | slice | Iterable[int] | Iterable[bool]) -> Task:
        """The task on some of its items: a count (the first k), a slice, indices, or one bool per item."""
        if isinstance(items, int):
            items = slice(items)
        if isinstance(items, slice):
            chosen = range(len(self))[items]
        else:
            chosen = [i.item() if isinstance(i, Tensor) else i for i in items]
            if chosen and all(isinstance(i, bool) for i in chosen):
                if len(chosen) != len(self):
                    raise ValueError(f"items has {len(chosen)} bools for {len(self)} prompts; give one per prompt")
                chosen = [i for i, keep in enumerate(chosen) if keep]

        def take(values):
            return None if values is None else [values[i] for i in chosen]

        return replace(self, prompts=take(self.prompts), targets=take(self.targets), corrupted=take(self.corrupted),
                       foils=take(self.foils), labels=take(self.labels))

    def where(self, **wanted) -> Task:
        """The items whose labels have these values, for example `task.where(relation="capital")`."""
        keep = [all(label.get(key) == value for key, value in wanted.items()) for label in self.labels]
        if not any(keep):
            known = sorted({key for label in self.labels for key in label})
            raise ValueError(f"no item of task {self.name!r} has the labels {wanted}; its label keys are {known}")
        return self.subset(keep)

    # ---------------------------------------------------------------- with a model

    def validate(self, model) -> None:
        """Raise ValueError unless twins are equally long and every target and foil is one token for this model."""
        self.target_ids(model)
        if self.foils is not None:
            self.foil_ids(model)
        if self.corrupted is not None:
            self._remember("corrupted", model, lambda: self._check_twins(model))

    def _check_twins(self, model) -> None:
        clean = model.tokenize(self.prompts).mask.sum(1)
        corrupted = model.tokenize(self.corrupted).mask.sum(1)
        uneven = (clean != corrupted).nonzero().flatten().tolist()
        if uneven:
            i = uneven[0]
            raise ValueError(
                f"corrupted[{i}] has {int(corrupted[i])} tokens but prompts[{i}] has {int(clean[i])} (task "
                f"{self.name!r}, {len(uneven)} such pairs); change words one for one so that positions correspond")

    def target_ids(self, model) -> Tensor:
        """[n] token ids of the targets. ValueError names a target that is not a single token."""
        return self._remember("targets", model, lambda: _token_ids(self.targets, "targets", self.name, model))

    def foil_ids(self, model) -> Tensor:
        """[n] token ids of the foils. ValueError names a foil that is not a single token, or that there are none."""
        if self.foils is None:
            raise ValueError(f"task {self.name!r} has no foils; give foils, or a metric that needs none ('logprob')")
        return self._remember("foils", model, lambda: _token_ids(self.foils, "foils", self.name, model))

    def _remember(self, argument: str, model, look_up):
        """Sweeps measure thousands of times: tokenize and check once per tokenizer."""
        tokenizer, result = self._memory.get(argument, (self, None))
        if tokenizer is not model.tokenizer:
            result = look_up()
            self._memory[argument] = (model.tokenizer, result)
        return result

    def metric_of(self, logits: Tensor, model) -> Tensor:
        """The metric from logits at the answer position: [n, V] -> [n]. Differentiable except for "accuracy"."""
        target = self.target_ids(model).to(logits.device)
        if self.metric == "accuracy":
            return (logits.argmax(-1) == target).float()
        if self.metric == "logit_diff":
            foil = self.foil_ids(model).to(logits.device)
            return _pick(logits, target) - _pick(logits, foil)
        logprob = _pick(logits.float().log_softmax(-1), target)
        return logprob.exp() if self.metric == "prob" else logprob

    def measure(self, model, on: str = "clean", grad: bool = False) -> Tensor:
        """[n] metric of each item, under whatever interventions are active.

        `on` is "clean" or "corrupted"; `grad` keeps the graph for backward passes. All items go through as one batch,
        so that a patch with one value per item meets its item; for a large model take `task.subset(...)`.
        """
        if on not in ("clean", "corrupted"):
            raise ValueError(f"on={on!r} is unknown; choose 'clean' or 'corrupted'")
        prompts = self.prompts if on == "clean" else self.corrupted
        if prompts is None:
            raise ValueError(f"task {self.name!r} has no corrupted prompts; give corrupted=, or use on='clean'")
        self.validate(model)
        return self.metric_of(model.last_logits(prompts, grad=grad), model)

    def accuracy(self, model) -> float:
        """Share of items, 0 ... 1, whose most likely next token is the target; interventions apply."""
        return replace(self, metric="accuracy").measure(model).mean().item()


def _pick(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _token_ids(words: list, argument: str, task: str, model) -> Tensor:
    ids = []
    for i, word in enumerate(words):
        if not isinstance(word, str):
            ids.append(int(word))
            continue
        try:
            ids.append(model.token_id(word))
        except ValueError as error:
            raise ValueError(f"{argument}[{i}] of task {task!r} must be a single token: {error}") from error
    return torch.tensor(ids)
