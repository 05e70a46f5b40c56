"""One short training loop for every steer that is learned: masked tuning, low rank, gates, ReFT, vectors (Eq. 20).

    loss = L_tgt + lambda L_pres,   L_tgt   cross-entropy of the wanted answers
                                    L_pres  KL(base || now) on documents + next-token loss on replayed documents

What is trained is a list of numbers, neutral at the start: a change of weights, a vector, a gate. The model's own
parameters never enter the optimizer, so nothing else can move, whatever weight decay and momentum do (audit A26), and
weight decay pulls the change towards nothing, that is, towards the base model.

Layers below the lowest one that the numbers touch compute the same at every step. They are run once: batches keep
x^layer, and every step starts there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from mi_course.models import Model, record
from mi_course.models.batch import Batch
from mi_course.objects import Task


@dataclass
class Examples:
    """Prompts with the distribution of the next token that is wanted after each.

    prompts  n prompts, or a tokenized Batch
    target   [n, V], rows sum to 1
    start    None, or (layer, x^layer [n, T, d]): runs start there, since the layers below do not change
    """

    prompts: object
    target: Tensor
    start: tuple[int, Tensor] | None = None

    def pick(self, rows: Sequence[int]) -> Examples:
        """Some of the examples."""
        return Examples([self.prompts[i] for i in rows], self.target[rows])

    def starting_at(self, model: Model, layer: int) -> Examples:
        """The same, with x^layer of the model recorded: cheaper, and right as long as no lower layer is changed."""
        batch = model.tokenize(self.prompts)
        x = record(model, batch, [f"x{layer}"], logits=False)[f"x{layer}"]
        return Examples(batch, self.target, (layer, x))

    def logits(self, model: Model, grad: bool = False) -> Tensor:
        """[n, V] logits of the next token after each prompt."""
        if self.start is None:
            return model.last_logits(self.prompts, grad)
        return model.resume(*self.start, self.prompts, grad, last=True)

    def cross_entropy(self, model: Model) -> Tensor:
        """Mean cross-entropy of the wanted distributions, in nats, with its graph."""
        log_p = self.logits(model, grad=torch.is_grad_enabled()).log_softmax(-1)
        return -(self.target.to(log_p) * log_p).sum(-1).mean()

    def probability(self, model: Model) -> float:
        """Mean probability that the model gives to the wanted words, 0 ... 1, whatever their shares."""
        p = self.logits(model).softmax(-1)
        return float((p * (self.target.to(p) > 0)).sum(-1).mean())

    def rate(self, model: Model) -> float:
        """Share of prompts after which a wanted word is the most likely one."""
        best = self.logits(model).argmax(-1, keepdim=True)
        return float((self.target.to(best.device).gather(-1, best) > 0).float().mean())


@dataclass
class Answers:
    """Prompts with whole answers: next-token loss on every token of the answer.

    prompts, answers   n lists of token ids each
    start              as in Examples
    Prompts are padded on the left and answers on the right, so that position policies such as "last" and "generated"
    mean what they mean while generating.
    """

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    start: tuple[int, Tensor] | None = None

    @classmethod
    def of(cls, model: Model, prompts: Sequence, answers: Sequence[str]) -> Answers:
        """From prompts and the texts that should follow them (with the leading space that many vocabularies need)."""
        ids = [model.tokenize([prompt]).ids[0].tolist() for prompt in prompts]
        return cls(ids, [model.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers])

    @classmethod
    def documents(cls, model: Model, documents: Sequence) -> Answers:
        """Documents of which every token but the first is to be predicted."""
        rows = [model.tokenize([document]).ids[0].tolist() for document in documents]
        return cls([row[:1] for row in rows], [row[1:] for row in rows])

    def pick(self, rows: Sequence[int]) -> Answers:
        """Some of the items."""
        return Answers([self.prompts[i] for i in rows], [self.answers[i] for i in rows])

    def batch(self, model: Model) -> tuple[Batch, int]:
        """All rows as one Batch, and the width of the prompts in it."""
        before, after = model.tokenize(self.prompts), Batch.from_rows(self.answers, 0, "right", model.device)
        ids, mask = (torch.cat(pair, 1) for pair in ((before.ids, after.ids), (before.mask, after.mask)))
        return Batch.from_mask(ids, mask), before.ids.shape[1]

    def starting_at(self, model: Model, layer: int) -> Answers:
        """The same, with x^layer of the model recorded."""
        x = record(model, self.batch(model)[0], [f"x{layer}"])[f"x{layer}"]
        return Answers(self.prompts, self.answers, (layer, x))

    def cross_entropy(self, model: Model) -> Tensor:
        """Mean over the answers' tokens of -log p(token | what stands before it), in nats, with its graph."""
        grad = torch.is_grad_enabled()
        batch, width = self.batch(model)
        model.taps.prompt_width = width  # what is prompt and what is reply, for edits that ask
        try:
            logits = model(batch, grad) if self.start is None else model.resume(*self.start, batch, grad)
        finally:
            model.taps.prompt_width = None
        log_p = logits[:, width - 1 : -1].log_softmax(-1).gather(-1, batch.ids[:, width:, None])[..., 0]
        wanted = batch.mask[:, width:]
        return -(log_p * wanted).sum() / wanted.sum()


def examples(model: Model, task: Task, whole_answers: bool = False) -> Examples | Answers:
    """What a task wants: its targets as next tokens, or the whole of `labels["continuation"]` where every item has one.

    ValueError if `whole_answers` is asked for and an item has no continuation.
    """
    if whole_answers:
        answers = [label.get("continuation") for label in task.labels]
        if None in answers:
            raise ValueError(
                f"whole_answers: item {answers.index(None)} of task {task.name!r} has no label 'continuation'; "
                "give one for each item, or train on the first token with whole_answers=False"
            )
        return Answers.of(model, task.prompts, answers)
    return Examples(task.prompts, torch.nn.functional.one_hot(task.target_ids(model), model.n_vocab).float())


def divergence(base: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """Mean KL(base || now) over real tokens, in nats: base log-probabilities [B, T, V], logits now, mask [B, T]."""
    kl = (base.exp() * (base - logits.log_softmax(-1))).sum(-1)
    return (kl * mask).sum() / mask.sum()


class Objective:
    """L_tgt + preserve * L_pres on random batches, from `layer` on. Made before anything is changed: it reads the base.

    targets   Examples or Answers; one batch of each enters every step
    layer     the lowest layer that training touches, or None to run the whole model (when embeddings are trained)
    documents texts on which every next-token distribution must stay: KL(base || now)
    replay    texts on which the ordinary next-token loss is taken
    """

    def __init__(self, model, targets, layer, documents=(), replay=(), preserve=3.0, batch=32, seed=0):
        self.rng, self.layer, self.preserve = random.Random(seed), layer, preserve
        self.sets = [self._batches(model, target, batch) for target in targets]
        self.texts = self._texts(model, documents, batch // 2)
        self.replay = self._batches(model, Answers.documents(model, replay), batch // 2) if len(replay) else []

    def __call__(self, model: Model) -> Tensor:
        """The loss of one random batch, in nats, with its graph."""
        loss = sum(self.rng.choice(batches).cross_entropy(model) for batches in self.sets)
        if self.texts:
            tokens, x, base = self.rng.choice(self.texts)
            now = model(tokens, grad=True) if x is None else model.resume(self.layer, x, tokens, grad=True)
            loss = loss + self.preserve * divergence(base, now, tokens.mask)
        if self.replay:
            loss = loss + self.preserve * self.rng.choice(self.replay).cross_entropy(model)
        return loss

    def _batches(self, model: Model, examples, size: int) -> list:
        n = len(examples.prompts)
        order = self.rng.sample(range(n), n)
        parts = [examples.pick(order[i : i + size]) for i in range(0, n, size)]
        return parts if self.layer is None else [part.starting_at(model, self.layer) for part in parts]

    def _texts(self, model: Model, documents: Sequence, size: int) -> list[tuple]:
        """Documents in batches of similar length: (tokens, x^layer or None, the base's log-probabilities)."""
        ordered, found = sorted(documents, key=len), []
        for i in range(0, len(ordered), size):
            batch = model.tokenize(ordered[i : i + size])
            if self.layer is None:
                x, logits = None, model(batch)
            else:
                cache = record(model, batch, [f"x{self.layer}"])
                x, logits = cache[f"x{self.layer}"], cache.logits
            found.append((batch, x, logits.log_softmax(-1)))
        return found


def fit(
    numbers: Sequence[Tensor],
    loss: Callable[[], Tensor],
    steps: int = 150,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.0,
    validate: Callable[[], float] | None = None,
    every: int = 10,
    patience: int = 3,
    progress: str | None = None,
) -> list[float]:
    """Minimise `loss` over the numbers, in place: AdamW, gradients clipped to length 1, rate falling to zero.

    validate: a loss on held-out examples, taken every `every` steps; the numbers end as they were when it was lowest,
    and training stops after `patience` checks without a lower one. progress: a title for the bar, None for no bar.
    Returns the loss of every step.
    """
    optimizer = torch.optim.AdamW(numbers, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    history, best, kept, waited = [], float("inf"), None, 0
    for step in tqdm(range(steps), desc=progress, disable=progress is None, mininterval=1):
        now = loss()
        gradients = torch.autograd.grad(now, numbers)  # of these numbers alone: the weights collect none
        for number, gradient in zip(numbers, gradients, strict=True):
            number.grad = gradient
        torch.nn.utils.clip_grad_norm_(numbers, 1.0)
        optimizer.step()
        schedule.step()
        history.append(float(now.detach()))
        if validate is not None and ((step + 1) % every == 0 or step + 1 == steps):
            with torch.no_grad():
                held_out = validate()
            if held_out < best:
                best, kept, waited = held_out, [number.detach().clone() for number in numbers], 0
            else:
                waited += 1
                if waited == patience:
                    break
    if kept is not None:
        with torch.no_grad():
            for number, value in zip(numbers, kept, strict=True):
                number.copy_(value)
    return history


def train(
    model: Model,
    task: Task | Examples | Answers,
    numbers: Sequence[Tensor],
    active: Callable[[], AbstractContextManager],
    layer: int | None,
    documents: Sequence = (),
    replay: Sequence = (),
    contrast: Sequence = (),
    preserve: float = 3.0,
    validation: Task | Examples | Answers | None = None,
    whole_answers: bool = False,
    batch: int = 32,
    seed: int = 0,
    penalty: Callable[[], Tensor] | None = None,
    **options,
) -> list[float]:
    """Train `numbers`, which act on the model inside `active()`, so that it gives the answers of the task.

    Args:
        task: what is wanted, a Task or Examples with distributions. whole_answers: train on the whole continuation.
        layer: the lowest layer that the numbers touch; None when that is the embedding.
        documents, replay: preservation terms, see `Objective`; preserve: their weight, lambda in Eq. 20.
        contrast: prompts after which the base's distribution must stay; a second target, of weight 1.
        validation: stop early on the target loss of these.
        penalty: further terms of the loss, such as the expected number of open gates.
        options: steps, learning_rate, weight_decay, every, patience, progress of `fit`.
    Returns the loss of every step. The model is as before, and its weights have collected no gradients.
    """
    if not 0 <= preserve:
        raise ValueError(f"preserve is {preserve}: the weight of the preservation terms must not be negative")

    def wanted(what):
        return examples(model, what, whole_answers) if isinstance(what, Task) else what

    targets = [wanted(task)]
    if len(contrast):
        targets.append(Examples(contrast, model.last_logits(contrast).softmax(-1)))
    objective = Objective(model, targets, layer, documents, replay, preserve, batch, seed)
    held_out = None
    if validation is not None:
        held_out = wanted(validation)
        held_out = held_out if layer is None else held_out.starting_at(model, layer)

    def loss():
        with active():
            value = objective(model)
        return value if penalty is None else value + penalty()

    def validate():
        with active():
            return float(held_out.cross_entropy(model))

    return fit(numbers, loss, validate=None if held_out is None else validate, **options)
