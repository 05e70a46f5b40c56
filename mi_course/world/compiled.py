"""Compiled models (T0): real GPT-2 checkpoints whose every weight is set by hand, so that the mechanism is known.

Each function builds one small model in memory and returns it with a task and the answer key: which sites matter, which
look as if they did, and by how much the metric moves. Most are counter-examples: on each of them some popular localizer
is wrong, and the number by which it is wrong is known beforehand.

How the weights are laid out. Every coordinate of the residual stream is one named feature ("tok:a" means "the word
here is a", "pos:3" means "this is position 3"). A head is a list of `match` (which query feature looks for which key
feature: the QK circuit) and of `move` (which feature at the source becomes which feature here: the OV circuit). A
neuron is a key (features it reads) and a value (features it writes).

What about LayerNorm? A trained GPT-2 divides each state by its size, which would mix all features. Two choices make
every LayerNorm the identity here, without leaving the architecture. (1) One spare coordinate, "balance", gets minus
the sum of whatever is written to the others, so the mean of each state is zero and centring does nothing. (2) The
epsilon in (x - mean) / sqrt(var + eps) is 2^34 and the gain 2^17, its root, so the variance of x, a few units, is lost
in rounding and the powers of two divide out exactly. Real models are not like this: there the scale must be frozen
before contributions can be added up (survey audit A2). The activation function is ReLU, so that gates are exact.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch

from mi_course.objects.task import Task

_EPS = 2.0**34       # see the module docstring: makes LayerNorm the identity on balanced states
_SHARP = 40.0        # attention score of a match; a non-match gets exp(-40) = 4e-18 of the attention
_LOGIT = 10.0        # logit that a fully written answer receives


@dataclass(frozen=True)
class Compiled:
    """A compiled model and its answer key.

    name       which one
    model      the Hugging Face GPT2LMHeadModel (eval, float32)
    tokenizer  a PreTrainedTokenizerFast: words are tokens, <bos> is put in front
    task       a `Task` on which the mechanism works: clean and corrupted prompts, targets, foils
    answer     the sites that carry the behaviour
    decoys     sites that some method takes for important, although they are not
    edges      the edges of the circuit where they are worth knowing, "sender->receiver"
    expected   "<zero|mean|noising|denoising> <sites>" -> change of the task's mean logit difference, exact
    note       what this model shows, in two sentences
    others     further tasks, by name
    directions named unit vectors [d_model] of the residual stream, where one stands for a variable
    """

    name: str
    model: torch.nn.Module
    tokenizer: object
    task: Task
    answer: list[str]
    note: str
    decoys: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    expected: dict[str, float] = field(default_factory=dict)
    others: dict[str, Task] = field(default_factory=dict)
    directions: dict[str, torch.Tensor] = field(default_factory=dict)

    def wrap(self):
        """The model in the course's wrapper, ready for `record` and `intervene`."""
        import mi_course

        return mi_course.wrap(self.model, tokenizer=self.tokenizer)


# -------------------------------------------------------------------------------------------------- the compiler


class _Builder:
    """Collects heads, neurons and embeddings by feature name, then makes the GPT-2."""

    def __init__(self, words, features, n_layers, n_heads=3, n_neurons=4, n_positions=32):
        self.vocab = ["<bos>", "<pad>", *words]
        self.features = ["one", *features]                     # "one" is 1 at every token: a constant to read from
        self.feature_index = {name: i for i, name in enumerate(self.features)}
        self.n_layers, self.n_heads, self.n_neurons, self.n_positions = n_layers, n_heads, n_neurons, n_positions
        self.embeddings = {word: {"one": 1.0} for word in self.vocab}
        self.positions, self.heads, self.neurons, self.unembeddings = {}, {}, {}, {}

    def embed(self, word, *features):
        """The embedding of `word` has a 1 at each of these features."""
        self.embeddings[word].update({feature: 1.0 for feature in features})

    def position(self, i, feature):
        """The positional embedding of position i (<bos> is at 0) has a 1 at this feature."""
        self.positions[i] = {feature: 1.0}

    def unembed(self, feature, word, weight=_LOGIT):
        """One unit of `feature` at the end adds `weight` to the logit of `word`."""
        self.unembeddings[feature, word] = weight

    def head(self, layer, head, match, move):
        """match: (feature of the query, feature of the key, score); move: (feature there, feature here, weight)."""
        self.heads[layer, head] = (match, move)

    def neuron(self, layer, index, key, value, bias=0.0):
        """Activation relu(sum of key weights times features + bias), which adds value weights to features."""
        self.neurons[layer, index] = (key, value, bias)

    def build(self):
        """Returns (model, tokenizer)."""
        from transformers import GPT2Config, GPT2LMHeadModel

        widest = max([1] + [max(len(match), len(move)) for match, move in self.heads.values()])
        d_head = max(widest, math.ceil((len(self.features) + 1) / self.n_heads))
        d_model = d_head * self.n_heads
        config = GPT2Config(
            vocab_size=len(self.vocab), n_positions=self.n_positions, n_embd=d_model, n_layer=self.n_layers,
            n_head=self.n_heads, n_inner=self.n_neurons, activation_function="relu", layer_norm_epsilon=_EPS,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=0, pad_token_id=1, attn_implementation="eager")
        with torch.random.fork_rng(devices=[]):
            model = GPT2LMHeadModel(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            self._fill(model, d_model, d_head)
        return model, _tokenizer(self.vocab)

    def _fill(self, model, d_model, d_head):
        at, balance = self.feature_index, d_model - 1
        body = model.transformer
        for norm in [body.ln_f, *(n for block in body.h for n in (block.ln_1, block.ln_2))]:
            norm.weight.fill_(math.sqrt(_EPS))
        for i, word in enumerate(self.vocab):
            for feature, weight in self.embeddings[word].items():
                body.wte.weight[i, at[feature]] = weight
        for i, features in self.positions.items():
            for feature, weight in features.items():
                body.wpe.weight[i, at[feature]] = weight
        for (layer, head), (match, move) in self.heads.items():
            attention, first = body.h[layer].attn, head * d_head
            for i, (query, key, score) in enumerate(match):
                # GPT-2 divides scores by sqrt(d_head)
                attention.c_attn.weight[at[query], first + i] = score * math.sqrt(d_head)
                attention.c_attn.weight[at[key], d_model + first + i] = 1.0
            for i, (source, target, weight) in enumerate(move):
                attention.c_attn.weight[at[source], 2 * d_model + first + i] = 1.0
                attention.c_proj.weight[first + i, at[target]] = weight
        for (layer, j), (key, value, bias) in self.neurons.items():
            ffn = body.h[layer].mlp
            ffn.c_fc.bias[j] = bias
            for feature, weight in key.items():
                ffn.c_fc.weight[at[feature], j] = weight
            for feature, weight in value.items():
                ffn.c_proj.weight[j, at[feature]] = weight
        for (feature, word), weight in self.unembeddings.items():
            model.lm_head.weight[self.vocab.index(word), at[feature]] = weight
        # Everything that writes to the residual stream is balanced, see the module docstring.
        for writer in [body.wte, body.wpe, *(p for b in body.h for p in (b.attn.c_proj, b.mlp.c_proj))]:
            writer.weight[:, balance] = -writer.weight[:, :balance].sum(1)


def _tokenizer(vocab):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<bos>", pad_token="<pad>")


def _task(name, model_name, rows, labels=None):
    """rows: (prompt, corrupted prompt, target, foil)."""
    prompts, corrupted, targets, foils = (list(column) for column in zip(*rows))
    return Task(f"{model_name}/{name}", prompts, targets, corrupted, foils, labels or [])


# -------------------------------------------------------------------------------------------------- the models


def induction(seed: int = 0) -> Compiled:
    """Two-layer induction: in `a b c d a b` predict `c`, since `c` followed `b` before.

    L0H0 writes into each token which token came before it; L1H0 looks for a token whose predecessor is the current one
    (prefix matching) and copies that token to the output (copying): two jobs of one head that the survey blurs
    (audit A29). Where nothing matches, L1H0 rests on <bos>.
    """
    letters = list("abcdefghijkl")
    n_positions = 24
    b = _Builder(letters, [f"{kind}:{w}" for kind in ("tok", "prev", "out") for w in letters]
                 + [f"pos:{i}" for i in range(n_positions)] + ["is_bos", "junk"], n_layers=2, n_positions=n_positions)
    for i in range(n_positions):
        b.position(i, f"pos:{i}")
    b.embed("<bos>", "is_bos")
    for w in letters:
        b.embed(w, f"tok:{w}")
        b.unembed(f"out:{w}", w)
    b.head(0, 0, match=[(f"pos:{i}", f"pos:{i - 1}", _SHARP) for i in range(1, n_positions)],
           move=[(f"tok:{w}", f"prev:{w}", 1.0) for w in letters])
    b.head(1, 0, match=[(f"tok:{w}", f"prev:{w}", 2 * _SHARP) for w in letters] + [("one", "is_bos", _SHARP)],
           move=[(f"tok:{w}", f"out:{w}", 1.0) for w in letters])
    # Decoys: heads that attend to <bos> and write much, into a coordinate that nobody reads.
    for layer, head in ((0, 1), (1, 1)):
        b.head(layer, head, match=[("one", "is_bos", _SHARP)], move=[("is_bos", "junk", 8.0)])

    rng, rows = random.Random(seed), []
    for _ in range(32):
        *first, foil = rng.sample(letters, 7)
        k = rng.randrange(1, 6)
        twin = first[:k] + [foil] + first[k + 1:]
        repeat = first[max(0, k - 2):k]
        while len(repeat) < 2:                       # every prompt has 8 words: short repeats start one word earlier
            repeat = [rng.choice([w for w in letters if w not in first and w != foil])] + repeat
        rows.append((" ".join(first + repeat), " ".join(twin + repeat), first[k], foil))
    model, tokenizer = b.build()
    return Compiled(
        "induction", model, tokenizer, _task("next", "induction", rows), answer=["L0H0", "L1H0"],
        decoys=["L0H1", "L1H1"],
        edges=["x0->L0H0.q", "x0->L0H0.k", "x0->L0H0.v", "x0->L1H0.q", "L0H0->L1H0.k", "x0->L1H0.v", "L1H0->logits"],
        expected={"zero L0H0": -_LOGIT, "zero L1H0": -_LOGIT, "zero L0H1 L1H1": 0.0, "noising L1H0": -2 * _LOGIT,
                  "denoising L1H0": 2 * _LOGIT, "noising L0H0": 0.0},
        note="Both heads are needed (zero ablation of either loses everything). The twin changes the copied token, "
             "which reaches the output through the values of L1H0 alone: patching L0H0 from the twin does nothing. A "
             "site that matters under ablation need not carry what differs between the twins.")


def lookup() -> Compiled:
    """A look-up FFN: neuron j of layer 0 has key k_j = one subject and value v_j = its attribute (FFN as memory).

    At the subject `L0N<j>` fires and writes the attribute into the stream; at the last word L1H0 fetches it. The
    neuron's activation is relu(2 - 1) = 1 on its own subject and 0 elsewhere.
    """
    capitals = dict(france="paris", italy="rome", peru="lima", norway="oslo", egypt="cairo", cuba="havana")
    openings = ["the capital of", "the city of", "the seat of"]
    subjects, cities = list(capitals), list(capitals.values())
    fillers = ["the", "capital", "of", "city", "seat", "is"]
    b = _Builder(subjects + cities + fillers,
                 [f"tok:{s}" for s in subjects] + [f"{kind}:{c}" for kind in ("attr", "out") for c in cities]
                 + ["is_subject", "is_last", "is_bos", "junk"], n_layers=2, n_neurons=len(subjects) + 2)
    b.embed("<bos>", "is_bos")
    for s in subjects:
        b.embed(s, f"tok:{s}", "is_subject")
    b.embed("is", "is_last")
    for j, (subject, city) in enumerate(capitals.items()):
        b.neuron(0, j, key={f"tok:{subject}": 2.0}, bias=-1.0, value={f"attr:{city}": 1.0})
        b.unembed(f"out:{city}", city)
    # Decoys: one neuron that always fires with a large value, one that fires on every subject; nobody reads them.
    b.neuron(0, len(subjects), key={"one": 3.0}, value={"junk": 3.0})
    b.neuron(0, len(subjects) + 1, key={"is_subject": 3.0}, value={"junk": 3.0})
    b.head(1, 0, match=[("is_last", "is_subject", 2 * _SHARP), ("one", "is_bos", _SHARP)],
           move=[(f"attr:{c}", f"out:{c}", 1.0) for c in cities])

    rows = []
    for opening in openings:
        for i, subject in enumerate(subjects):
            other = subjects[(i + 1) % len(subjects)]
            rows.append((f"{opening} {subject} is", f"{opening} {other} is", capitals[subject], capitals[other]))
    task = _task("capital", "lookup", rows, [{"subject": r[0].split()[-2]} for r in rows])
    model, tokenizer = b.build()
    return Compiled(
        "lookup", model, tokenizer, task, answer=[f"L0N{j}" for j in range(len(subjects))] + ["L1H0"],
        decoys=[f"L0N{len(subjects)}", f"L0N{len(subjects) + 1}"],
        expected={f"zero L0N{j}": -_LOGIT / len(subjects) for j in range(len(subjects))}
        | {"zero L1H0": -_LOGIT, "zero L0N6": 0.0, "zero L0N7": 0.0, "noising mlp0": -2 * _LOGIT},
        note="One neuron per fact, silent on all other subjects: dormant, with score 0, when the data never mention "
             "its subject. The two decoys are the most active neurons of the layer and change nothing.",
        others={s: task.where(subject=s) for s in subjects})


def cancelling() -> Compiled:
    """Two heads that cancel: L0H0 writes a large +u, L1H0 reads u and writes -u. L0H1 does the work.

    By norm L0H0 and L1H0 lead; ablating L0H0, or both, changes nothing at all. Ablating L1H0 alone does, since then u
    is left.
    """
    names = ["ann", "bob", "cid", "dan", "eve", "fay"]
    b = _Builder([*names, "then", "says"], [f"{kind}:{w}" for kind in ("tok", "out") for w in names]
                 + ["is_name", "is_last", "u"], n_layers=2)
    for w in names:
        b.embed(w, f"tok:{w}", "is_name")
        b.unembed(f"out:{w}", w)
        b.unembed("u", w, 0.25 if w in names[::2] else 0.0)
    b.embed("says", "is_last")
    b.head(0, 0, match=[("is_last", "is_name", _SHARP)], move=[("is_name", "u", 8.0)])
    b.head(0, 1, match=[("is_last", "is_name", _SHARP)], move=[(f"tok:{w}", f"out:{w}", 1.0) for w in names])
    b.head(1, 0, match=[("is_last", "is_last", _SHARP)], move=[("u", "u", -1.0)])
    # names[::2] are always targets and the others foils, so that a left-over u moves the metric in one direction.
    rows = [(f"then {t} says", f"then {f} says", t, f) for t in names[::2] for f in names[1::2]]
    model, tokenizer = b.build()
    return Compiled(
        "cancelling", model, tokenizer, _task("name", "cancelling", rows), answer=["L0H1"], decoys=["L0H0", "L1H0"],
        expected={"zero L0H0": 0.0, "zero L0H0 L1H0": 0.0, "zero L1H0": 2.0, "zero L0H1": -_LOGIT},
        note="A write can be large and leave no trace, because a later head takes it out again: magnitude shows "
             "presence, not necessity. The eraser L1H0 matters only as long as there is something to erase.")


def _gate(name, words, neurons, expected, note) -> Compiled:
    """Heads L0H0 and L0H1 bring two yes/no signals to the last word; neurons of layer 0 combine them."""
    first, not_first, second, not_second, yes, no = words
    fillers = ["and", "with", "plus", "also"]
    b = _Builder([*words, *fillers, "so"], ["tok:first", "tok:second", "slot:first", "slot:second", "is_last", "first",
                                            "second", "gate"], n_layers=1)
    b.embed(first, "tok:first", "slot:first")
    b.embed(not_first, "slot:first")
    b.embed(second, "tok:second", "slot:second")
    b.embed(not_second, "slot:second")
    b.embed("so", "is_last")
    for head, signal in enumerate(("first", "second")):
        b.head(0, head, match=[("is_last", f"slot:{signal}", _SHARP)], move=[(f"tok:{signal}", signal, 1.0)])
    for j, (bias, weight) in enumerate(neurons):
        b.neuron(0, j, key={"first": 1.0, "second": 1.0}, bias=bias, value={"gate": weight})
    b.unembed("gate", yes)
    b.unembed("one", no, _LOGIT / 2)
    rows = [(f"{first} {w} {second} so", f"{not_first} {w} {not_second} so", yes, no) for w in fillers]
    model, tokenizer = b.build()
    return Compiled(name, model, tokenizer, _task("gate", name, rows), answer=["L0H0", "L0H1"],
                    edges=["x0->L0H0.v", "x0->L0H1.v", "L0H0->mlp0", "L0H1->mlp0", "mlp0->logits"],
                    expected=expected, note=note)


def and_gate() -> Compiled:
    """`sun and rain so` gives rainbow, anything else nothing: relu(first + second - 1).

    Noising either head destroys the answer; denoising one alone restores nothing.
    """
    return _gate("and_gate", ["sun", "dark", "rain", "dry", "rainbow", "nothing"], neurons=[(-1.0, 1.0)],
                 expected={"noising L0H0": -_LOGIT, "noising L0H1": -_LOGIT, "denoising L0H0": 0.0,
                           "denoising L0H1": 0.0, "denoising L0H0 L0H1": _LOGIT, "zero L0H0": -_LOGIT},
                 note="Both inputs are needed. Denoising one head at a time finds nothing, noising finds both.")


def or_gate() -> Compiled:
    """`rain and hose so` gives wet, and either alone does too: relu(first + second) - relu(first + second - 1).

    Noising one head changes nothing; denoising one alone restores everything.
    """
    return _gate("or_gate", ["rain", "sun", "hose", "tap", "wet", "dry"], neurons=[(0.0, 1.0), (-1.0, -1.0)],
                 expected={"noising L0H0": 0.0, "noising L0H1": 0.0, "noising L0H0 L0H1": -_LOGIT,
                           "denoising L0H0": _LOGIT, "denoising L0H1": _LOGIT, "zero L0H0": 0.0},
                 note="Either input is enough. Noising (and ablating) one head at a time finds nothing, denoising "
                      "finds both: single ablation is not a test of necessity when there is redundancy.")


def backup() -> Compiled:
    """Redundant heads: L0H0 names the name; L1H0 does it only if L0H0 did not (self-repair).

    L1H0 looks at the name with score 80 - 80 * (how much of this name is already in the output) and at <bos> with 40.
    """
    names = ["ann", "bob", "cid", "dan", "eve", "fay"]
    b = _Builder([*names, "then", "says"], [f"{kind}:{w}" for kind in ("tok", "out") for w in names]
                 + ["is_name", "is_last", "is_bos"], n_layers=2)
    b.embed("<bos>", "is_bos")
    for w in names:
        b.embed(w, f"tok:{w}", "is_name")
        b.unembed(f"out:{w}", w)
    b.embed("says", "is_last")
    copy = [(f"tok:{w}", f"out:{w}", 1.0) for w in names]
    b.head(0, 0, match=[("is_last", "is_name", _SHARP)], move=copy)
    b.head(1, 0, match=[("is_last", "is_name", 2 * _SHARP), ("is_last", "is_bos", _SHARP)]
           + [(f"out:{w}", f"tok:{w}", -2 * _SHARP) for w in names], move=copy)
    rows = [(f"then {t} says", f"then {names[(i + 1) % 6]} says", t, names[(i + 1) % 6]) for i, t in enumerate(names)]
    model, tokenizer = b.build()
    return Compiled(
        "backup", model, tokenizer, _task("name", "backup", rows), answer=["L0H0", "L1H0"],
        expected={"zero L0H0": 0.0, "zero L1H0": 0.0, "zero L0H0 L1H0": -_LOGIT, "mean L0H0": 0.0,
                  "noising L0H0": -_LOGIT},
        note="Ablating either head alone changes nothing, zero or mean, because the other takes over; ablating both "
             "destroys the behaviour. Patching L0H0 from the twin shows half of the story: the backup adds the right "
             "name to the wrong one.")


def saturated() -> Compiled:
    """A saturated softmax: `apple pear first pick` gives apple. L0H0 fetches `first`; L1H0 uses it to choose an item.

    The score of the chosen item exceeds the other's by 20, so the gradient through the pattern is about exp(-20), while
    ablating L0H0 takes the choice away.
    """
    items = ["apple", "pear", "plum", "fig", "lime", "date"]
    sharp = 20.0
    b = _Builder([*items, "first", "second", "pick"], [f"{kind}:{w}" for kind in ("tok", "out") for w in items]
                 + ["pos:1", "pos:2", "tok:first", "tok:second", "want:1", "want:2", "is_cue", "is_last"], n_layers=2)
    b.position(1, "pos:1")
    b.position(2, "pos:2")
    for w in items:
        b.embed(w, f"tok:{w}")
        b.unembed(f"out:{w}", w)
    b.embed("first", "tok:first", "is_cue")
    b.embed("second", "tok:second", "is_cue")
    b.embed("pick", "is_last")
    b.head(0, 0, match=[("is_last", "is_cue", _SHARP)],
           move=[("tok:first", "want:1", 1.0), ("tok:second", "want:2", 1.0)])
    b.head(1, 0, match=[("want:1", "pos:1", sharp), ("want:2", "pos:2", sharp)],
           move=[(f"tok:{w}", f"out:{w}", 1.0) for w in items])
    rows = []
    for i, left in enumerate(items):
        right = items[(i + 2) % len(items)]
        rows += [(f"{left} {right} first pick", f"{left} {right} second pick", left, right),
                 (f"{left} {right} second pick", f"{left} {right} first pick", right, left)]
    model, tokenizer = b.build()
    return Compiled(
        "saturated", model, tokenizer, _task("pick", "saturated", rows), answer=["L0H0", "L1H0"],
        edges=["x0->L0H0.v", "L0H0->L1H0.q", "x0->L1H0.k", "x0->L1H0.v", "L1H0->logits"],
        expected={"zero L0H0": -_LOGIT, "zero L1H0": -_LOGIT, "noising L0H0": -2 * _LOGIT,
                  "denoising L0H0": 2 * _LOGIT},
        note="The gradient at L0H0 is zero to eight digits and its effect is the largest possible: a first-order score "
             "(gradient times activation, EAP) misses it, a path integral from the twin (IG, EAP-IG) crosses the point "
             "where the choice flips and finds it.")


def rotated_basis(seed: int = 0) -> Compiled:
    """A rotated basis: the answer stands in the stream from x1 on, but in another code that only the last FFN decodes.

    Layer 0 writes the answer w as the output feature of another word, pi(w); layer 3 takes that out and writes w. The
    logit lens reads pi(w) with full confidence at x1, x2 and x3; an affine map learned per layer (tuned lens) reads w.
    """
    letters = list("abcdefgh")
    follows = {w: letters[(i + 1) % 8] for i, w in enumerate(letters)}
    code = {w: letters[(i + 3) % 8] for i, w in enumerate(letters)}
    b = _Builder(letters, [f"{kind}:{w}" for kind in ("tok", "out") for w in letters], n_layers=4, n_neurons=8)
    for j, w in enumerate(letters):
        b.embed(w, f"tok:{w}")
        b.unembed(f"out:{w}", w)
        b.neuron(0, j, key={f"tok:{w}": 1.0}, value={f"out:{code[follows[w]]}": 1.0})
        b.neuron(3, j, key={f"out:{code[w]}": 1.0}, value={f"out:{code[w]}": -1.0, f"out:{w}": 1.0})
    rng, rows = random.Random(seed), []
    for _ in range(64):
        *context, last, other = [rng.choice(letters) for _ in range(4)] + rng.sample(letters, 2)
        rows.append((" ".join([*context, last]), " ".join([*context, other]), follows[last], follows[other]))
    task = _task("next", "rotated_basis", rows, [{"lens_reads": code[answer]} for _, _, answer, _ in rows])
    model, tokenizer = b.build()
    return Compiled(
        "rotated_basis", model, tokenizer, task, answer=["mlp0", "mlp3"],
        expected={"zero mlp0": -_LOGIT, "zero mlp1": 0.0, "zero mlp2": 0.0},
        note="The lens assumes that every layer speaks the output's language. Here it is confident and always wrong "
             "before the last layer, although the answer is linearly there.")


def constant_bias() -> Compiled:
    """A component that writes the same on every input: L0H0. L0H1 brings the name, through neurons that need both.

    Neuron j is relu(name_j + constant - 1). Zero ablation of L0H0 shuts every neuron; mean or resample ablation of it
    changes nothing, since its mean is what it always writes.
    """
    names = ["ann", "bob", "cid", "dan", "eve", "fay"]
    b = _Builder([*names, "then", "says"], [f"{kind}:{w}" for kind in ("tok", "here", "out") for w in names]
                 + ["is_name", "is_last", "is_bos", "constant"], n_layers=1, n_neurons=len(names))
    b.embed("<bos>", "is_bos")
    b.embed("says", "is_last")
    b.head(0, 0, match=[("one", "is_bos", _SHARP)], move=[("is_bos", "constant", 1.0)])
    b.head(0, 1, match=[("is_last", "is_name", _SHARP)], move=[(f"tok:{w}", f"here:{w}", 1.0) for w in names])
    for j, w in enumerate(names):
        b.embed(w, f"tok:{w}", "is_name")
        b.unembed(f"out:{w}", w)
        b.neuron(0, j, key={f"here:{w}": 1.0, "constant": 1.0}, bias=-1.0, value={f"out:{w}": 1.0})
    rows = [(f"then {t} says", f"then {names[(i + 1) % 6]} says", t, names[(i + 1) % 6]) for i, t in enumerate(names)]
    model, tokenizer = b.build()
    return Compiled(
        "constant_bias", model, tokenizer, _task("name", "constant_bias", rows), answer=["L0H1"], decoys=["L0H0"],
        expected={"zero L0H0": -_LOGIT, "mean L0H0": 0.0, "noising L0H0": 0.0, "zero L0H1": -_LOGIT,
                  "noising L0H1": -2 * _LOGIT},
        note="Zero ablation asks 'what if this component were off', mean ablation 'what if it knew nothing about this "
             "input'. A constant write answers the two differently: here all against nothing.")


def polysemantic() -> Compiled:
    """One neuron, two meanings: L0N0 fires on `red` and on `seven` and writes both `apple` and `eight`.

    The word itself rules out answers of the wrong kind, so the model never errs. Whoever switches the neuron off to
    forget red apples also loses how to count from seven.
    """
    colours = dict(red="apple", yellow="banana", green="lime")
    numbers = dict(seven="eight", two="three", four="five")
    pairs = colours | numbers
    b = _Builder([*pairs, *pairs.values(), "so"], [f"tok:{w}" for w in pairs] + [f"out:{w}" for w in pairs.values()]
                 + ["is_colour", "is_number"], n_layers=1, n_neurons=5)
    for w, answer in pairs.items():
        b.embed(w, f"tok:{w}", "is_colour" if w in colours else "is_number")
        b.unembed(f"out:{answer}", answer)
        b.unembed("is_number" if w in colours else "is_colour", answer, -_LOGIT)
    b.neuron(0, 0, key={"tok:red": 1.0, "tok:seven": 1.0}, value={"out:apple": 1.0, "out:eight": 1.0})
    for j, w in enumerate(["yellow", "green", "two", "four"], start=1):
        b.neuron(0, j, key={f"tok:{w}": 1.0}, value={f"out:{pairs[w]}": 1.0})

    def rows(kind):
        words = list(kind)
        return [(f"so {w}", f"so {words[i - 1]}", kind[w], kind[words[i - 1]]) for i, w in enumerate(words)]

    model, tokenizer = b.build()
    return Compiled(
        "polysemantic", model, tokenizer, _task("colours", "polysemantic", rows(colours)),
        answer=["L0N0", "L0N1", "L0N2"], decoys=["L0N3", "L0N4"],
        expected={f"zero L0N{j}": -_LOGIT / 3 if j < 3 else 0.0 for j in range(5)},
        note="Zeroing L0N0 removes 'red, apple' and, unasked, 'seven, eight'; zeroing L0N1 removes 'yellow, banana' "
             "alone.",
        others={"numbers": _task("numbers", "polysemantic", rows(numbers))})


def mediation() -> Compiled:
    """A linear model with a direct and an indirect path: L0H0 -> logits (3 per unit) and L0H0 -> L1H0 -> logits (2).

    Attention never depends on the signal, so total effect = direct effect + indirect effect, exactly.
    """
    b = _Builder(["warm", "cold", "it", "is", "up", "down"], ["signal", "slot", "is_last", "near", "far"], n_layers=2)
    b.embed("warm", "signal", "slot")
    b.embed("cold", "slot")
    b.embed("is", "is_last")
    b.head(0, 0, match=[("is_last", "slot", _SHARP)], move=[("signal", "near", 1.0)])
    b.head(1, 0, match=[("is_last", "is_last", _SHARP)], move=[("near", "far", 1.0)])
    b.unembed("near", "up", 3.0)
    b.unembed("far", "up", 2.0)
    b.unembed("one", "down", 2.5)
    model, tokenizer = b.build()
    rows = [("warm it is", "cold it is", "up", "down"), ("it warm is", "it cold is", "up", "down")]
    return Compiled(
        "mediation", model, tokenizer, _task("signal", "mediation", rows), answer=["L0H0", "L1H0"],
        edges=["x0->L0H0.v", "L0H0->logits", "L0H0->L1H0.v", "L1H0->logits"],
        expected={"noising L0H0": -5.0, "noising L1H0": -2.0, "denoising L0H0": 5.0, "denoising L1H0": 2.0},
        note="Patching L0H0 and letting L1H0 recompute gives the total effect 5; holding L1H0 fixed gives the direct "
             "effect 3; the indirect effect is 2. In a linear model they add up; in general they do not.")


def decodable() -> Compiled:
    """Decodable but unused: `happy loud it says` gives shout. L0H0 brings the volume; L0H1 the mood, which none reads.

    Each variable is a direction: +1 for loud and happy, -1 for quiet and sad. A probe reads both from x1 without error;
    erasing `mood` changes no logit, erasing `volume` leaves no preference.
    """
    values = {"loud": ("volume", 1.0), "quiet": ("volume", -1.0), "happy": ("mood", 1.0), "sad": ("mood", -1.0)}
    fillers = ["it", "he", "she", "so"]
    b = _Builder([*values, *fillers, "says", "shout", "whisper"],
                 ["is_volume", "is_mood", "is_last", "said:volume", "said:mood", "volume", "-volume", "mood", "-mood"],
                 n_layers=2)
    b.embed("says", "is_last")
    for word, (variable, sign) in values.items():
        b.embed(word, f"is_{variable}")
        b.embeddings[word][f"said:{variable}"] = sign
    for head, variable in enumerate(("volume", "mood")):
        # written with both signs, so that erasing the direction keeps the state balanced (see LayerNorm above)
        b.head(0, head, match=[("is_last", f"is_{variable}", _SHARP)],
               move=[(f"said:{variable}", variable, 1.0), (f"said:{variable}", f"-{variable}", -1.0)])
    b.unembed("volume", "shout", _LOGIT / 2)
    b.unembed("-volume", "whisper", _LOGIT / 2)
    rows, labels = [], []
    for mood in ("happy", "sad"):
        for volume, other in (("loud", "quiet"), ("quiet", "loud")):
            target, foil = ("shout", "whisper") if volume == "loud" else ("whisper", "shout")
            for w in fillers:
                rows.append((f"{mood} {volume} {w} says", f"{mood} {other} {w} says", target, foil))
                labels.append({"mood": mood, "volume": volume})
    model, tokenizer = b.build()
    directions = {}
    for variable in ("volume", "mood"):
        direction = torch.zeros(model.config.n_embd)
        direction[b.feature_index[variable]], direction[b.feature_index[f"-{variable}"]] = 0.5**0.5, -(0.5**0.5)
        directions[variable] = direction
    return Compiled(
        "decodable", model, tokenizer, _task("volume", "decodable", rows, labels), answer=["L0H0"], decoys=["L0H1"],
        expected={"zero L0H0": -_LOGIT, "zero L0H1": 0.0, "noising L0H0": -2 * _LOGIT, "noising L0H1": 0.0},
        directions=directions,
        note="That a probe reads a variable shows that it is there, not that the model uses it. Only the intervention "
             "tells the two directions apart.")


ALL = {f.__name__: f for f in (induction, lookup, cancelling, and_gate, or_gate, backup, saturated, rotated_basis,
                               constant_bias, polysemantic, mediation, decodable)}


# -------------------------------------------------------------------------------------------------- planted features


@dataclass(frozen=True)
class PlantedFeatures:
    """Data with known sparse features, for sparse autoencoders: x = sum over active j of c_j f_j (+ noise).

    directions  [n_features, d] unit-norm rows: more features than dimensions, hence superposition
    parent, child   indices: the child is active only when the parent is (as "capital city" implies "city")
    p_active    [n_features] chance that each feature is active
    """

    directions: torch.Tensor
    p_active: torch.Tensor
    parent: int
    child: int
    noise: float

    def sample(self, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (x [n, d], codes [n, n_features]); codes are 0 when off and uniform in 0.5 ... 1.5 when on."""
        generator = torch.Generator().manual_seed(seed)
        n_features, d = self.directions.shape
        active = torch.rand(n, n_features, generator=generator) < self.p_active
        active[:, self.child] &= active[:, self.parent]
        codes = active * (0.5 + torch.rand(n, n_features, generator=generator))
        return codes @ self.directions + self.noise * torch.randn(n, d, generator=generator), codes


def planted_features(n_features: int = 24, d: int = 16, p_active: float = 0.05, noise: float = 0.0,
                     seed: int = 0) -> PlantedFeatures:
    """Sparse features in superposition, with one parent-child pair (features 0 and 1), on which absorption can be seen.

    Absorption (audit A12): a sparse autoencoder saves activity by letting the child's latent carry the parent's
    direction too, so the parent's latent stays silent when the child is on. Measure P(parent silent | child on).

    The parent is active with 4 x p_active, the child in half of those cases; all other features are independent.
    Directions are random unit vectors, pushed apart for a few hundred steps.
    """
    if n_features < 3 or not 0 < p_active <= 0.25:
        raise ValueError(f"n_features={n_features} must be at least 3 and p_active={p_active} in (0, 0.25]")
    # Not the plain seed: an SAE initialised with the same seed would start at the very answer.
    f = torch.randn(n_features, d, generator=torch.Generator().manual_seed(seed + 1_000_003))
    for _ in range(300):
        f = f / f.norm(dim=1, keepdim=True)
        overlap = f @ f.T - torch.eye(n_features)
        f = f - 0.1 * overlap.pow(3) @ f
    p = torch.full((n_features,), p_active)
    p[0], p[1] = 4 * p_active, 0.5
    return PlantedFeatures(f / f.norm(dim=1, keepdim=True), p, parent=0, child=1, noise=noise)
