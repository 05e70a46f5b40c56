"""The steerers of the course under one signature: g(model, task, strength) -> context manager.

    with STEERERS["mean difference"](model, task, 1.0):     made from the task once, then strength is only a dial
        ...

`task` is what may be learned from: prompts, `wanted` (words with shares after each), `positive` prompts after which the
model answers so already, `contrast` prompts that must keep their answers, `documents` of other domains, and a `tag`
that asks for the behaviour; see `mi_course.world.steering_tasks`. Strength 0 is the identity, 1 what the maker made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mi_course.models import Model, add, scale

from . import editing, gates, interventions, peft_lora, training, vector_sources
from .decoding import DoLa
from .detectors import aura, fit_detector
from .fit import Examples
from .head_shifts import iti
from .steer import Steer
from .vectors import mean_differences, unit
from .weights import WeightEdit


@dataclass(frozen=True)
class Steerer:
    """One way to steer. Call it as g(model, task, strength).

    family  "prompt", "output", "amplitude", "vectors" or "optimization"
    make    (model, task) -> a Steer, a WeightEdit, or a dial (strength -> context manager)
    facts   True: only for tasks about facts, whose labels name relation and subject
    """

    name: str
    family: str
    make: Callable
    facts: bool = False
    _last: list = field(default_factory=list, repr=False, compare=False)

    def suits(self, task) -> bool:
        """Can this steerer do anything about the task?"""
        return not self.facts or "relation" in task.labels[0] and "subject" in task.labels[0]

    def made(self, model: Model, task):
        """What `make` gives, made anew only for another model or task than the last time."""
        if not self._last or self._last[0] is not model or self._last[1] is not task:
            self._last[:] = [model, task, self.make(model, task)]
        return self._last[2]

    def __call__(self, model: Model, task, strength: float):
        steer = self.made(model, task)
        return steer.scaled(strength).on(model) if hasattr(steer, "scaled") else steer(strength)


def bytes_of(steer) -> int | None:
    """Bytes that must be kept: of the change of weights, or of the tensors of the edits; None when unknown.

    A change of a matrix is kept as its entries that are not 0, or as two factors, whichever is smaller.
    """
    if isinstance(steer, WeightEdit):
        return sum(_numbers(delta) * delta.element_size() for delta in steer.deltas.values())
    if isinstance(steer, Steer):
        values = [value for edit in steer.edits for value in edit.arguments.values()]
        return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
    return 0 if isinstance(steer, DoLa) else getattr(steer, "bytes", None)


def _numbers(delta: Tensor) -> int:
    """How many numbers make up a change: its entries that are not 0, or for [m, n] of rank r also r (m + n)."""
    entries = int(delta.count_nonzero())
    return min(entries, int(torch.linalg.matrix_rank(delta)) * sum(delta.shape)) if delta.dim() == 2 else entries


# --- prompt and output: what needs no look inside ------------------------------------------------------------------
@contextmanager
def prefixed(model: Model, prefix: str):
    """While active, every text that the model is given begins with `prefix`.

    Lists of token ids are left as they are, and so are texts that would no longer fit into the model's context.
    """
    before, tokenize = model.__dict__.get("tokenize"), model.tokenize

    def with_prefix(prompts, side="left"):
        if isinstance(prompts, str):
            prompts = [prompts]
        if isinstance(prompts, (list, tuple)):
            longer = [f"{prefix} {p}" if isinstance(p, str) else p for p in prompts]
            prompts = [new if new == p or _fits(model, new) else p for p, new in zip(prompts, longer, strict=True)]
        return tokenize(prompts, side)

    model.tokenize = with_prefix
    try:
        yield model
    finally:
        del model.tokenize
        if before is not None:
            model.tokenize = before


def _fits(model: Model, text) -> bool:
    return not isinstance(text, str) or len(model.tokenizer(text)["input_ids"]) <= model.n_ctx


class Prompt:
    """A dial: the task's tag, or where it has none as many worked examples as the strength says (rounded up).

    Examples stop where they would fill a third of the model's context.
    """

    def __init__(self, model: Model, task):
        self.model, self.tag, self.examples = model, task.tag, []
        for prompt, target in zip(task.prompts, task.targets, strict=True):
            more = [*self.examples, f"{prompt} {target} ."]
            if len(model.tokenizer(" ".join(more))["input_ids"]) <= model.n_ctx // 3:
                self.examples = more
        self.bytes = len((self.tag or " ".join(self.examples)).encode())

    def __call__(self, strength: float):
        prefix = self.tag or " ".join(self.examples[: math.ceil(strength)])
        return prefixed(self.model, prefix) if strength > 0 else nullcontext(self.model)


class LogitBias:
    """A dial: adds strength times a constant to the logit of every wanted word.

    The constant is what the word lacks on average, over the prompts where it is wanted, to draw level with the most
    likely word. So at strength 1 wanted and old words are about even.
    """

    def __init__(self, model: Model, task):
        logits, shares = model.last_logits(task.prompts), task.wanted_shares(model)
        lacking = (logits.max(-1, keepdim=True).values - logits) * (shares > 0)
        self.model, self.bias = model, lacking.sum(0) / (shares > 0).sum(0).clamp_min(1)
        self.bytes = int((self.bias != 0).sum()) * self.bias.element_size()

    @contextmanager
    def __call__(self, strength: float):
        head = self.model.hf.get_submodule(self.model.family.unembed)
        old = head._parameters.get("bias")
        new = strength * self.bias if old is None else old + strength * self.bias
        head._parameters["bias"] = torch.nn.Parameter(new.to(head.weight), requires_grad=False)
        try:
            yield self.model
        finally:
            head._parameters["bias"] = old


def contrast_of_layers(model: Model, task) -> DoLa:
    """DoLa with its usual settings. It learns nothing from the task."""
    return DoLa()


# --- vectors --------------------------------------------------------------------------------------------------------
def added(vector: Tensor, layer: int) -> Steer:
    """x + s v at block `layer`, at all positions."""
    return Steer(add(f"x{layer}", vector))


def best_of(model: Model, task, steers: Sequence[Steer]) -> Steer:
    """The steer with the highest log-probability of the wanted words on the task's own prompts, at strength 1."""
    return max(steers, key=lambda steer: _wanted_logprob(model, task, steer))


@torch.no_grad()
def _wanted_logprob(model: Model, task, steer) -> float:
    shares = task.wanted_shares(model)
    with steer.on(model):
        log_p = model.last_logits(task.prompts).log_softmax(-1)
    return float((log_p.masked_fill(shares == 0, -math.inf)).logsumexp(-1).mean())


def middle_layers(model: Model) -> range:
    """Layers from a third to the last: where vectors are tried."""
    return range(max(1, model.n_layers // 3), model.n_layers)


def mean_difference(model: Model, task) -> Steer:
    """Mean state of the positive prompts minus that of the prompts (Eq. 22), at the best of the middle layers."""
    sites = [f"x{layer}@-1" for layer in middle_layers(model)]
    found = mean_differences(model, task.positive, task.prompts, sites)
    return best_of(model, task, [added(v, layer) for layer, v in zip(middle_layers(model), found.values())])


def probe_direction(model: Model, task) -> Steer:
    """The weight of a linear probe that tells the positive prompts from the prompts, at the best middle layer."""
    layers = middle_layers(model)
    found = [vector_sources.probe_vector(model, task.positive, task.prompts, f"x{layer}@-1") for layer in layers]
    return best_of(model, task, [added(v, layer) for v, layer in zip(found, layers)])


def sae_features(model: Model, task, k: int = 8) -> Steer:
    """The k features of the largest mean difference, of the first SAE at a residual state (Eq. 23 and 24)."""
    sae = next((s for s in model.saes.values() if str(s.site).startswith("x")), None)
    if sae is None:
        raise ValueError("model.saes holds no SAE of a residual state; attach one: model.saes['x3-topk'] = sae")
    delta = vector_sources.feature_difference(model, sae, task.positive, task.prompts)
    return Steer(add(str(sae.site), vector_sources.sae_vector(sae, delta, k)))


def conditional_vector(model: Model, task) -> Steer:
    """The mean difference, added only where a detector in the same state finds a prompt of this kind.

    The detector is made from the prompts against the contrast prompts, with 5 % false alarms.
    """
    steer = mean_difference(model, task)
    site = f"{steer.edits[0].sites[0]}@-1"
    return replace(steer, when=fit_detector(model, task.prompts, task.contrast, site, false_alarms=0.05))


def head_shift(model: Model, task) -> Steer:
    """ITI: the four heads that tell the positive prompts from the prompts best, each shifted towards the positive."""
    return iti(model, task.positive, task.prompts)


def random_direction(model: Model, task) -> Steer:
    """The control: as long as the mean difference and at its layer, pointing anywhere."""
    (edit,) = mean_difference(model, task).edits
    v = edit.arguments["vector"]
    r = torch.randn(v.shape, generator=torch.Generator().manual_seed(len(task.prompts)))
    return Steer(add(list(edit.sites), unit(r).to(v) * v.norm()))


# --- amplitude ------------------------------------------------------------------------------------------------------
def head_ablation(model: Model, task, k: int = 2) -> Steer:
    """Switch off the k heads without which the wanted words become most likely (zeroing each in turn)."""
    sites = [f"L{layer}H{head}.z" for layer in range(model.n_layers) for head in range(model.n_heads)]
    gain = {site: _wanted_logprob(model, task, Steer(scale(site, 0.0))) for site in sites}
    return Steer(scale(sorted(sites, key=gain.get, reverse=True)[:k], 0.0))


def dampened_experts(model: Model, task) -> Steer:
    """AurA: neurons that tell the prompts from the positive ones are scaled down, the better the more."""
    return aura(model, task.prompts, task.positive)


# --- optimization ---------------------------------------------------------------------------------------------------
BUDGET = {"steps": 40, "batch": 16, "learning_rate": 4e-3}  # of everything that is trained


def examples(model: Model, task) -> Examples:
    """The wanted words of the task, with their shares, as targets of training."""
    return Examples(task.prompts, task.wanted_shares(model))


def _preserving(task, **options) -> dict:
    return BUDGET | {"contrast": task.contrast, "documents": task.documents} | options


def full_finetuning(model: Model, task) -> WeightEdit:
    """All weights, a tenth of the learning rate of the others."""
    mask = training.everything(model)
    return training.masked_finetune(model, examples(model, task), mask, **_preserving(task, learning_rate=4e-4))


def masked_finetuning(model: Model, task) -> WeightEdit:
    """The FFN of one layer, the middle one."""
    mask = [f"mlp{model.n_layers // 2}"]
    return training.masked_finetune(model, examples(model, task), mask, **_preserving(task))


def low_rank(model: Model, task) -> WeightEdit:
    """Rank 2 in all matrices of the blocks: LoRA, written out."""
    return training.low_rank_finetune(model, examples(model, task), rank=2, **_preserving(task))


def trained_vector(model: Model, task) -> Steer:
    """A vector at the middle layer, trained for the wanted words (S3e)."""
    return interventions.trained_vector(
        model, examples(model, task), f"x{model.n_layers // 2 + 1}", **_preserving(task, learning_rate=0.02)
    )


def reft(model: Model, task) -> Steer:
    """LoReFT of rank 4 at the last prompt token of two middle layers."""
    sites = [f"x{model.n_layers // 2 + i}" for i in (0, 1)]
    return interventions.reft(model, examples(model, task), sites, rank=4, **_preserving(task, learning_rate=0.02))


def layer_biases(model: Model, task) -> Steer:
    """One trained vector for each layer, at all positions (S2e)."""
    return interventions.layer_biases(model, examples(model, task), **_preserving(task, learning_rate=0.05))


def bias_tuning(model: Model, task) -> WeightEdit:
    """All bias vectors of the blocks (BitFit)."""
    return training.masked_finetune(model, examples(model, task), training.bias_mask(model), **_preserving(task))


def head_gates(model: Model, task) -> Steer:
    """JoLA: scale and shift of every head, with gates that learn which heads to touch."""
    return gates.jola(model, examples(model, task), **_preserving(task, learning_rate=0.05))[0]


def peft(model: Model, task) -> WeightEdit:
    """The same by the library peft; ImportError where it is not installed."""
    return peft_lora.lora(model, examples(model, task), rank=2, **_preserving(task))


def _facts(model: Model, task) -> tuple[list, list, list]:
    """For every subject of the task: its prompts, the subject's last token in each, the wanted token."""
    prompts, positions, targets = [], [], []
    for name in dict.fromkeys(label["subject_text"] for label in task.labels):
        own = task.where(subject_text=name)
        prompts.append(own.prompts)
        positions.append([label["subject"][1] - 1 + _opening(model) for label in own.labels])
        targets.append(int(own.target_ids(model)[0]))
    few = min(map(len, prompts))  # equally many for each
    return [p[:few] for p in prompts], [p[:few] for p in positions], targets


def rome(model: Model, task) -> WeightEdit:
    """One rank-one edit after the other, one for each subject, in the FFN of layer 1 of 6 (or as deep)."""
    layer = model.n_layers // 6
    total = None
    for prompts, positions, target in zip(*_facts(model, task)):
        with total.on(model) if total else nullcontext():
            edit = editing.rome(model, prompts, positions, target, layer, C=_moments(model, task, layer))
        total = edit if total is None else WeightEdit({k: v + edit.deltas[k] for k, v in total.deltas.items()})
    return total


def memit(model: Model, task) -> WeightEdit:
    """All subjects at once, spread over the FFNs of the first half of the layers."""
    layers = range(model.n_layers // 2)
    C = {layer: _moments(model, task, layer) for layer in layers}
    return editing.memit(model, *_facts(model, task), list(layers), C)


def _moments(model: Model, task, layer: int) -> Tensor:
    """Second moments of the keys: those that ship with a lab model, else from the task's documents."""
    try:
        return editing.second_moments(model)[layer]
    except ValueError:
        return editing.key_covariance(model, task.documents, layer)


def _opening(model: Model) -> int:
    """How many special tokens the tokenizer puts before a text."""
    return model.tokenize(["the"]).ids.shape[1] - len(model.tokenizer("the", add_special_tokens=False)["input_ids"])


STEERERS = {
    steerer.name: steerer
    for steerer in (
        Steerer("prompt", "prompt", Prompt),
        Steerer("logit bias", "output", LogitBias),
        Steerer("DoLa", "output", contrast_of_layers),
        Steerer("random direction", "vectors", random_direction),
        Steerer("mean difference", "vectors", mean_difference),
        Steerer("conditional vector", "vectors", conditional_vector),
        Steerer("probe direction", "vectors", probe_direction),
        Steerer("SAE features", "vectors", sae_features),
        Steerer("head shift", "vectors", head_shift),
        Steerer("trained vector", "vectors", trained_vector),
        Steerer("head ablation", "amplitude", head_ablation),
        Steerer("AurA", "amplitude", dampened_experts),
        Steerer("ROME", "optimization", rome, facts=True),
        Steerer("MEMIT", "optimization", memit, facts=True),
        Steerer("ReFT", "optimization", reft),
        Steerer("layer biases", "optimization", layer_biases),
        Steerer("bias tuning", "optimization", bias_tuning),
        Steerer("head gates", "optimization", head_gates),
        Steerer("masked tuning", "optimization", masked_finetuning),
        Steerer("full fine-tuning", "optimization", full_finetuning),
        Steerer("low rank", "optimization", low_rank),
        Steerer("LoRA (peft)", "optimization", peft),
    )
}
