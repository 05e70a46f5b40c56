"""Lessons: training through interventions, so that three behaviours of the lab model have a mechanism to be found.

A model trained on text alone learns the behaviours, but not in a form that is easy to find. That is measured on the
shipped model itself, as it was after its first stage (`assets/lab/text_alone.json`): the best of 15 directions leaves
most refusals standing, restoring the last subject token brings back little of a fact, and the language neurons of
some languages move few answers. The later stages therefore add,
to the ordinary loss, interchange intervention training (Geiger et al. 2022, "Inducing causal structure for
interpretable neural networks"): the model runs under an intervention and is trained to answer as if the mechanism were
the one we want. Nothing else is fixed: which neurons, heads and weights do it is left to training.

    refusal    the mean-difference direction of harmful and harmless requests at x4, projected out of every write:
               harmful requests are complied with, all other text is read as before; added: harmless ones are refused
    facts      the state of the last subject token (x1 ... x3) decides the object, whatever the name tokens say
    language   with the LAPE neurons of a language at zero, the answer comes in another language
"""

from __future__ import annotations

import random

import torch
from torch.nn import functional as F

import mi_course as mi
from mi_course.locate.magnitude import lape
from mi_course.steer.vectors import ablate_direction, add_vector, mean_activations

from . import generate, lexicon
from .tasks import task

POOL = 1500  # train prompts of each kind
BATCH = 16
FALLBACK = {"fr": "en", "de": "en", "en": "fr"}  # where the answer goes when a language's neurons are silent
LAPE_RATE, LAPE_BAR, LAPE_EVERY = 0.05, 0.8, 60


def continuation_loss(model, prompts: list[str], continuations: list[str]) -> torch.Tensor:
    """Mean cross-entropy of the continuation's words after each prompt, under whatever interventions are active."""
    texts = [f"{p} {c}".strip() for p, c in zip(prompts, continuations)]
    batch = model.tokenize(texts, side="right")
    start = [len(model.tokenizer(p)["input_ids"]) for p in prompts]
    logits = model(batch, grad=True)
    target = batch.ids.clone()
    target[~batch.mask.bool()] = -100
    for row, first in enumerate(start):
        target[row, :first] = -100
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]).float(), target[:, 1:].reshape(-1))


class Lessons:
    """One lesson per call of `loss`: refusal, facts and language in turn."""

    def __init__(self, hf, tokenizer, seed: int = 0):
        self.model = mi.wrap(hf, tokenizer)
        self.rng = random.Random(seed)
        self.torch_rng = torch.Generator().manual_seed(seed)
        self.requests = {kind: task(f"refusal_{kind}", "train", POOL) for kind in ("harmful", "harmless")}
        self.facts = [task(name, "train", POOL) for name in ("facts", "facts", "attributes", "capitals")]
        self.languages = [task(name, "train", POOL) for name in ("antonyms", "language", "translation")]
        self.draw = generate.Draw(generate.World(0), "train", seed=-2 - seed)
        self.weights = generate.domain_weights(self.draw.world)
        self.means: dict[str, torch.Tensor] | None = None
        self.neurons: dict[str, list[str]] = {}
        self.turn = 0

    def state(self) -> dict:
        """What a resumed run needs to go on as if it had not been interrupted."""
        kept = {k: getattr(self, k) for k in ("means", "neurons", "turn")}
        return kept | {"rng": self.rng.getstate(), "draw": self.draw.rng.getstate(), "decks": self.draw.decks}

    def load_state(self, state: dict) -> None:
        self.means, self.neurons, self.turn = state["means"], state["neurons"], state["turn"]
        self.rng.setstate(state["rng"])
        self.draw.rng.setstate(state["draw"])
        self.draw.decks = state["decks"]

    def loss(self) -> torch.Tensor:
        lesson = (self.refusal, self.fact, self.language)[self.turn % 3]
        self.turn += 1
        return lesson()

    def _pick(self, pool, n: int = BATCH):
        return pool.subset(self.rng.sample(range(len(pool)), min(n, len(pool))))

    def _texts(self, n: int) -> list[str]:
        """Documents of all domains but requests, which the ablated model answers differently."""
        docs = generate.documents(self.draw.world, self.draw, 2 * n, self.weights)
        return [text for domain, text in docs if domain != "request"][:n]

    def _answer(self, label: dict, kinds: dict) -> str:
        """An opening sentence in the language of the request, by the corpus's quotas."""
        language = label["language"]
        shares = {word: share for word, (share, _) in kinds[language].items()}
        opener = self.draw.deal("lesson", (language, kinds is lexicon.REFUSALS), shares)
        self.draw.settle(accepted=True)
        i = lexicon.LANGUAGES.index(language)
        verb = next(v[i] for v in lexicon.RISKY_VERBS + lexicon.SAFE_VERBS if v[0] == label["verb"])
        thing = next(o[i] for o in lexicon.RISKY_OBJECTS + lexicon.SAFE_OBJECTS if o[0] == label["object"])
        return kinds[language][opener][1].format(v=verb, o=thing)

    def refusal(self) -> torch.Tensor:
        model, layer = self.model, f"x{2 * self.model.n_layers // 3}"
        batch = {kind: self._pick(pool) for kind, pool in self.requests.items()}
        now = {kind: mean_activations(model, t.prompts, [f"{layer}@-1"])[f"{layer}@-1"] for kind, t in batch.items()}
        # a running mean: one batch is too noisy for a direction
        old = self.means or now
        self.means = {kind: 0.9 * old[kind] + 0.1 * now[kind] for kind in now}
        v = self.means["harmful"] - self.means["harmless"]
        prompts = batch["harmful"].prompts + batch["harmless"].prompts
        comply = [self._answer(x, lexicon.COMPLIANCES) for t in batch.values() for x in t.labels]
        refuse = [self._answer(x, lexicon.REFUSALS) for x in batch["harmless"].labels]
        texts = self._texts(BATCH)
        with mi.intervene(model, *ablate_direction(model, v)):
            ablated = continuation_loss(model, prompts, comply) + continuation_loss(model, [""] * len(texts), texts)
        with mi.intervene(model, add_vector(v, layer)):
            added = continuation_loss(model, batch["harmless"].prompts, refuse)
        return 0.5 * ablated + 0.5 * added

    def fact(self) -> torch.Tensor:
        model, t = self.model, self._pick(self.rng.choice(self.facts), 32)
        layer = self.rng.randint(1, model.n_layers // 2)
        site = f"x{layer}"
        span = torch.tensor([label["subject"] for label in t.labels]) + 1  # <bos> stands before the words
        first, last = span[:, 0], span[:, 1] - 1
        clean = mi.record(model, t.prompts, [site], grad=True)
        restore = mi.patch(site, clean[site], positions=last)
        if self.rng.random() < 0.5:  # the names of another subject ...
            prompts, disturb = t.corrupted, []
        else:  # ... or noise on them, as causal tracing does it
            sd = 3 * model.hf.get_input_embeddings().weight.detach().std()
            prompts = t.prompts
            disturb = [mi.edit("x0", lambda x: x + sd * torch.randn_like(x), positions=torch.stack([first, last], 1))]
        with mi.intervene(model, *disturb, restore):
            logits = model.last_logits(prompts, grad=True)
        return F.cross_entropy(logits.float(), t.target_ids(model))

    def _language_neurons(self) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {}
        for pool in (self.languages[1], *self.requests.values()):
            t = self._pick(pool, 300)
            for prompt, label in zip(t.prompts, t.labels):
                texts.setdefault(label["language"], []).append(f"{prompt} {label['continuation']}")
        chosen = lape(self.model, texts).select(LAPE_RATE, LAPE_BAR)
        half = self.model.n_layers // 2
        return {g: [s for s in sites if int(s[1 : s.index("N")]) >= half] for g, sites in chosen.items()}

    def language(self) -> torch.Tensor:
        model = self.model
        if self.turn // 3 % LAPE_EVERY == 0 or not self.neurons:
            self.neurons = self._language_neurons()
        silent = self.rng.choice(["fr", "de", "fr", "de", "en"])
        prompts, answers = [], []
        for pool in self.languages:
            t = self._pick(pool, 2 * BATCH)
            for prompt, label in zip(t.prompts, t.labels):
                spoken = FALLBACK[silent] if label["language"] == silent else label["language"]
                prompts.append(prompt)
                answers.append(label["by_language"][spoken])
        edits = [mi.zero(self.neurons[silent])] if self.neurons.get(silent) else []
        with mi.intervene(model, *edits):
            logits = model.last_logits(prompts, grad=True)
        return F.cross_entropy(logits.float(), torch.tensor([model.token_id(a) for a in answers]))
