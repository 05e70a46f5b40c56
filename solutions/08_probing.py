# %% [markdown]
# # 08 Probing
# A probe is a small classifier that is trained to read a property off the activations of a frozen model: is this review good, is this
# request harmful, where does this landmark stand? It is the cheapest way to ask *what a state knows*, and the easiest one to be fooled by.
# Survey ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 3.4, Eq. 15.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - fit a linear probe, sweep it over layers, positions, heads and features, and say beside which baselines its accuracy stands
# - split the data so that the probe cannot know the answer by heart, and see what a careless split pretends
# - measure how much a probe can learn by itself (selectivity) and how easily it learns (description length)
# - erase what a probe reads, and tell a property that the model uses from one that merely is there
# - say why the direction that reads best is not the direction to steer with
#
# **The claim.** A probe measures what can be *decoded* from a site, not what the model *uses* (survey, section 3.4). In `lab` the verdict
# on a review can be read, nearly without an error, from more than ten of the 24 heads, while one head carries most of it to the answer; the
# ranking of the heads by probe says next to nothing about their ranking by intervention.

# %% label="setup"
import math
import random

import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import null_band
from mi_course.locate import causal, erasure
from mi_course.locate.probe_controls import majority, permutation_null, random_model
from mi_course.locate.probe_sweep import (
    Split,
    contrast,
    evaluate,
    features,
    rank_columns,
    split_by,
    split_rows,
    sweep,
    token_types,
)
from mi_course.locate.probing import fit
from mi_course.teach import Question, check, curves, heatmap, quiz, show
from mi_course.world import compiled, lexicon, saes
from mi_course.world.generate import LANDMARK_BODIES, World
from mi_course.world.installed_tasks import answer_key, behaving, installed_effect, installed_task

torch.manual_seed(0)
model, untrained = mi.load(), random_model(mi.load())
L = model.n_layers
layers = [f"x{l}" for l in range(L + 1)]
heads = causal.heads(model)
print(f"{model.name}: {L} layers x {model.n_heads} heads, d = {model.d_model}")

# %% [markdown]
# `untrained` is the same architecture with fresh random weights. It will be asked everything that `lab` is asked.
#
# ## 1. A probe
# Take a state $z \in \mathbb{R}^d$ at a fixed site, and labels with $K$ classes. The probe is
#
# $$p(y \mid z) = \mathrm{softmax}(z\,W_P + b), \qquad W_P \in \mathbb{R}^{d \times K}$$
#
# and only $W_P$ and $b$ are trained; the model is frozen. Our first property: reviews with two remarks, which agree, and the word "not"
# that turns a remark round. Is the review good? The state is $x^2$, the input of block 2, at the last token, where the model is about to
# give its verdict. Here is the probe by gradient descent.

# %% label="by_hand" tags=["nbval-check-output"]


def reviews(split, n):
    """The reviews with two remarks."""
    task = world.task("sentiment", split=split, n=n)
    return task.subset(["negations" in label for label in task.labels])


train, test = reviews("train", 500), reviews("test", 100)
prompts, n = train.prompts + test.prompts, len(train)
good = [label["good"] for label in train.labels + test.labels]
halves = Split(list(range(n)), list(range(n, len(prompts))))  # to fit on, to test on
print(test.prompts[0], "->", test.targets[0])
print(
    f"{n} reviews to train on, {len(test)} others to test on; accuracy of the model "
    f"{test.accuracy(model):.2f}"
)

z, y = features(model, prompts, ["x2"])["x2"], torch.tensor(good).long()
z = (z - z[:n].mean(0)) / z[:n].std()
W, b = torch.zeros(model.d_model, 2), torch.zeros(2)
for _ in range(1000):
    p = (z[:n] @ W + b).softmax(1)
    error = p - torch.nn.functional.one_hot(y[:n], 2)  # gradient of -log p by the scores
    W -= 0.5 * z[:n].T @ error / n
    b -= 0.5 * error.mean(0)
by_hand = ((z[n:] @ W + b).argmax(1) == y[n:]).float().mean().item()
print(f"accuracy of the probe by hand {by_hand:.2f}; of scikit-learn's {evaluate(z, good, halves):.2f}")
assert by_hand > 0.9

# %% [markdown]
# The test reviews are combinations of words that training never showed, to the model or to the probe. `fit` and `evaluate` of the package
# use scikit-learn for this probe, which it calls logistic regression.
#
# A faster way needs no descent. Write the labels as one-hot rows $Y$ (1 in the column of the class, 0 elsewhere) and ask for the
# least-squares solution, with a penalty that keeps $W$ small:
#
# $$\min_{W, b}\; \lVert z W + b - Y \rVert^2 + \lambda \lVert W \rVert^2$$

# %% [markdown] exercise="probing.ridge_probe" difficulty=3 minutes=10
# ### Exercise: a ridge probe in closed form
# Write `ridge_probe(x, Y, penalty)`: states `[n, d]`, one-hot labels `[n, K]` as floats. Return `W` `[d, K]` and `b` `[K]` that minimise
# the expression above. The bias $b$ is not penalised.


# %%
def ridge_probe(x, Y, penalty):
    """(W [d, K], b [K]) with the smallest |x W + b - Y|^2 + penalty |W|^2."""
    ### BEGIN SOLUTION
    centred = x - x.mean(0)
    gram = centred.T @ centred + penalty * torch.eye(x.shape[1])
    W = torch.linalg.solve(gram, centred.T @ (Y - Y.mean(0)))
    return W, Y.mean(0) - x.mean(0) @ W
    ### END SOLUTION


# %%
ridge_probe = check("probing.ridge_probe", ridge_probe)

# %% [markdown]
# Your probe at every layer. Beside it the package's `"ridge"`, which divides the states by their size first and penalises more.

# %% label="ridge_by_layer" tags=["nbval-check-output"]
states = features(model, prompts, layers)
one_hot = torch.nn.functional.one_hot(y, 2).float()
for site, x in states.items():
    W, b = ridge_probe(x[:n], one_hot[:n], 10.0)
    mine = ((x[n:] @ W + b).argmax(1) == y[n:]).float().mean().item()
    print(f"{site}: yours {mine:.2f}   the package's {evaluate(x, good, halves, 'ridge'):.2f}")
assert mine > 0.95

# %% [markdown]
# How hard one penalises matters in the early layers and not in the late ones. Remember this when two papers disagree about "the layer where
# the property appears": part of it is the probe.
#
# ## 2. An accuracy is nothing without its baselines
# Four numbers belong beside every probe:
#
# - **majority**: always say the commonest label of the training part
# - **embedding only**: probe the token embedding at the same position. Here the last token is the same word in all prompts, so this is
#   chance (not exactly 0.5: what is commonest in the training part can be the rarer class in the test part).
# - **bag of words**: probe the mean embedding of all tokens. It knows which words occur and not in what order.
# - **random weights**: probe the untrained model, in which words are mixed but nothing was learned
#
# We sweep two properties over the layers (with `"lda"`, a fast linear probe that section 9 explains): *good* from above, and *harmful* (a
# request with a risky verb and a risky object).

# %% label="requests"
parts = [
    world.task(f"refusal_{kind}", split=s, n=150)
    for s in ("train", "test")
    for kind in ("harmful", "harmless")
]
asked = [prompt for part in parts for prompt in part.prompts]
harmful = [label["harmful"] for part in parts for label in part.labels]
m = len(parts[0]) + len(parts[1])
request_halves = Split(list(range(m)), list(range(m, len(asked))))
print(f"{len(asked)} requests, for example: {asked[0]}")

# %% label="baselines"
lines = {}
read = {
    "good, lab": states,
    "good, random weights": features(untrained, prompts, layers),
    "harmful, lab": features(model, asked, layers),
    "harmful, random weights": features(untrained, asked, layers),
}
for name, texts, label, where in (
    ("good", prompts, good, halves),
    ("harmful", asked, harmful, request_halves),
):
    for which in ("lab", "random weights"):
        line = f"{name}, {which}"
        lines[line] = [evaluate(x, label, where, "lda") for x in read[line].values()]
    word = sweep(model, texts, ["embed"], label, where, "lda")["embed"]
    bag = sweep(model, texts, ["embed"], label, where, "lda", positions="mean")["embed"]
    null = permutation_null(read[f"{name}, lab"]["x3"], label, where, "lda", draws=10)
    print(
        f"{name:8} majority {majority(label, where):.2f}   embedding of the last token {word:.2f}   "
        f"bag of words {bag:.2f}   shuffled labels at x3 up to {max(null):.2f}"
    )
    assert (bag > 0.9) == (name == "harmful") and min(lines[f"{name}, lab"][2:]) > 0.95
for name, values in lines.items():
    print(f"{name:24}" + "".join(f"{value:6.2f}" for value in values))
show(
    curves(range(L + 1), lines, xlabel="state x^l at the last token", ylabel="accuracy on the test part"),
    alt="Four lines over the layers 0 to 6. Both properties can be read from lab nearly without error "
    "from layer 1 "
    "on. With random weights, good stays near 0.6 and harmful between 0.6 and 0.8.",
    reading="In lab both properties can be read from layer 1 on. Random weights already give harmful at "
    "up to 0.8.",
)

# %% [markdown]
# The two upper lines look alike, and mean different things. *Harmful* is in the words: the bag of words reaches 0.98, without any model, so
# that a perfect probe at layer 3 says little about what the model computed. *Good* is not in the words, because of "not" (the bag stays at
# 0.67): here the model must have done something before layer 2. One baseline told them apart, and it costs one line.
#
# ## 3. Who has seen whom: splits
# Now a property of an entity: in which city does a landmark stand? There are 80 landmarks and 16 cities. We ask with five templates each,
# and probe at two places: the last token of the name, and the last token of the prompt, where the model answers. The question is where the
# *fact* becomes readable.
#
# The same landmark occurs in five prompts. If some go to the training part and some to the test part, the probe can learn "hidden tower →
# paris" from the *name*, and needs no fact in the state at all.

# %% [markdown] exercise="probing.honest_split" difficulty=2 minutes=6
# ### Exercise: a split by entity and by template
# Write `honest_split(entities, templates, new_entities, new_templates)`: the entity and the template of every row, and the sets of those
# that are kept for testing. Return two lists of row numbers: to train on, and to test on. No entity and no template may have rows in both;
# test rows are new in both respects. Rows that fit neither part are left out.


# %%
def honest_split(entities, templates, new_entities, new_templates):
    """(rows to train on, rows to test on)."""
    ### BEGIN SOLUTION
    train, test = [], []
    for row, (entity, template) in enumerate(zip(entities, templates)):
        new = (entity in new_entities) + (template in new_templates)
        if new == 0:
            train.append(row)
        elif new == 2:
            test.append(row)
    return train, test
    ### END SOLUTION


# %%
honest_split = check("probing.honest_split", honest_split)

# %% [markdown]
# Four splits of the same 400 prompts, the same kind of probe.

# %% label="four_splits"
landmarks = World(0).landmarks
place_prompts, labels = [], []
for name in landmarks:
    for template in LANDMARK_BODIES["place"]:
        place_prompts.append(template.format(s=name))
        end = len(template.split("{s}")[0].split()) + 2  # <bos> is position 0, names have two tokens
        labels.append({"name": name, "template": template, "place": landmarks[name]["place"], "end": end})
cities, ends = [label["place"] for label in labels], [label["end"] for label in labels]
by_entity, by_template = split_by(labels, "name", seed=1), split_by(labels, "template")
new_names = {labels[i]["name"] for i in by_entity.test}
new_templates = {labels[i]["template"] for i in by_template.test}
both = honest_split([l["name"] for l in labels], [l["template"] for l in labels], new_names, new_templates)
splits = {
    "by row": split_rows(len(labels)),
    "by template": by_template,
    "by entity": by_entity,
    "by both": Split(*both).check(labels, "name", "template"),
}
at_name, at_end = (features(model, place_prompts, layers, where) for where in (ends, "last"))
place_lines = {
    name: [evaluate(x, cities, split, "lda") for x in at_name.values()] for name, split in splits.items()
}
names = [label["name"] for label in labels]
null = null_band(permutation_null(at_name["x3"], cities, by_entity, "lda", draws=10, groups=names))
show(
    curves(
        range(L + 1),
        place_lines,
        null=(null.low, null.high),
        xlabel="state x^l at the last token of the name",
        ylabel="accuracy, 16 cities",
    ),
    alt="Four lines over the layers. Split by row and by template, the city is read with 0.6 to 0.95 "
    "from layer 1 on. "
    "Split by entity or by both, the lines stay below 0.25 up to x5 and end near 0.35.",
    reading="At the name: with known names the probe is right in up to 95 of 100 cases, with new names "
    "in at most 21 before x6. Grey: cities dealt anew to the names, at x3.",
)
leaky, honest = place_lines["by row"][1], place_lines["by entity"][1]
print(f"x1 at the name: by row {leaky:.2f}, by entity {honest:.2f}")
print(
    "at the last token, by entity:",
    "  ".join(f"{evaluate(x, cities, by_entity, 'lda'):.2f}" for x in at_end.values()),
)
assert leaky > 0.7 and honest < 0.3

# %% [markdown]
# Split by row, one would report: "the city is known at the last token of the name, from layer 1 on". Split by entity, the probe is right
# in at most one case of five up to $x^5$: the first probe had learned the names by heart. (Names have two tokens, and the embedding of the last one is shared by
# ten landmarks. At layer 1 the tokens have been put together, so that a probe can tell all names apart.) Only in the last layers, and far
# better at the last token (0.82) than at the name (about a third), does the city become something that a probe can read for a landmark that
# it never met. Template splits do not help with this; they guard against another shortcut, cues in the wording.
#
# `split.check(labels, "name")` raises an error when an entity is on both sides. The null here deals the cities anew to whole *names*:
# shuffling rows would tear apart what can be learned by heart, and give too low a null.
#
# ## 4. How much can the probe do by itself?
# A large probe can learn a lot that the state does not "know". [@hewitt2019designing] measure this with a **control
# task**: every word type gets a random label, the same for all its occurrences. No model knows these labels, so whatever accuracy the probe
# reaches, it learned by heart.
#
# $$\text{selectivity} = \text{accuracy on the real labels} - \text{accuracy on the control task}$$

# %% [markdown] exercise="probing.control_labels" difficulty=2 minutes=6
# ### Exercise: a control task
# Write `control_labels(types, draw)`: the word type of every row, and a function whose call `draw()` gives the next random label. Return
# one label per row: equal words have equal labels, and `draw` is called once for every different word, in the order in which they first
# appear.


# %%
def control_labels(types, draw):
    """One random label per word type, for all its occurrences."""
    ### BEGIN SOLUTION
    known = {}
    labels = []
    for word in types:
        if word not in known:
            known[word] = draw()
        labels.append(known[word])
    return labels
    ### END SOLUTION


# %%
control_labels = check("probing.control_labels", control_labels)

# %% [markdown]
# The real task is the one of the paper, on our scale: the class of a word (noun, verb, adjective, name, place, thing), token by token. Two
# probes: linear, and an MLP with one hidden layer of 128. The split is by document, since words of the test part must have occurred in
# training (else nobody could know their random label).

# %% label="selectivity" tags=["nbval-check-output"]
word_class = {w: "noun" for concept in lexicon.NOUNS.values() for w in concept}
word_class |= {w: "verb" for concept in lexicon.VERBS.values() for w in concept}
word_class |= {w: "adjective" for pair in lexicon.ANTONYMS for concept in pair for w in concept}
word_class |= {w: "name" for w in lexicon.FIRST + lexicon.LAST}
word_class |= {w: "place" for w in [*lexicon.CITIES, *lexicon.COUNTRIES]}
word_class |= {w: "thing" for w in lexicon.SPORTS + lexicon.DRINKS + lexicon.PETS + lexicon.MATERIALS}
documents = [text for texts in world.documents("train", n=10).values() for text in texts]
types = model.tokenizer.convert_ids_to_tokens(token_types(model, documents))
owner = model.tokenize(documents).mask.nonzero()[:, 0].tolist()  # the document of every token
rows = [i for i, word in enumerate(types) if word in word_class]
words = [types[i] for i in rows]
classes = [word_class[word] for word in words]
by_document = split_by([{"document": owner[i]} for i in rows], "document")
rng = random.Random(0)
control = control_labels(words, lambda: rng.choice(classes))
tokens = features(model, documents, ["x0", "x3"], "tokens")
print(f"{len(rows)} tokens, {len(set(words))} word types; majority {majority(classes, by_document):.2f}")
selectivity = {}
for site, x in tokens.items():
    for kind in ("logistic", "mlp"):
        real, by_heart = (evaluate(x[rows], labels_, by_document, kind) for labels_ in (classes, control))
        selectivity[site, kind] = real - by_heart
        print(
            f"{site} {kind:8}  real {real:.2f}   control {by_heart:.2f}   selectivity {real - by_heart:.2f}"
        )
assert all(selectivity[site, "logistic"] > selectivity[site, "mlp"] for site in tokens)

# %% [markdown]
# By accuracy the two are equal. By selectivity the MLP is much worse at both layers, because it learns by heart what it is asked to. That
# is the finding of the paper, and the reason why probes are kept linear. The layers change places as well: by accuracy $x^0$ is a little
# better than $x^3$; by selectivity it is far worse, since words are easiest to learn by heart at the embedding.
#
# Selectivity has a blind spot that section 3 showed: when the label belongs to an *entity* and the split is by entity, a control task
# cannot be learned at all, and the difference says no more than the accuracy.
#
# ## 5. How fast does the probe learn? Description length
# Accuracy on plenty of data hides how hard the reading was. [@voita2020information] ask how many **bits** it takes to send
# the labels to someone who has the states. The online code sends them in blocks. The first block costs $\log_2 K$ bits a label. Then both
# sides fit the probe on all blocks so far, and a label of the next block costs $-\log_2 p(\text{label})$ under it. A property that is laid
# out simply is learned from few rows, so its code is short.

# %% [markdown] exercise="probing.online_code" difficulty=4 minutes=10
# ### Exercise: the online code
# Write `online_code(x, y, ends, probabilities, n_classes)`: states `[n, d]`, class numbers `[n]`, the ends of the blocks (such as `[20, 40,
# 80]` for rows 0-19, 20-39, 40-79), and `probabilities(x_train, y_train, x_new)`, which fits a probe and returns the probabilities `[m, K]`
# of the new rows. Return the length of the code in bits.


# %%
def online_code(x, y, ends, probabilities, n_classes):
    """Bits: log2 K a label in the first block, then -log2 p(label) under a probe fitted on all before."""
    ### BEGIN SOLUTION
    bits = ends[0] * math.log2(n_classes)
    for start, end in zip(ends, ends[1:]):
        p = probabilities(x[:start], y[:start], x[start:end])
        bits -= p.gather(1, y[start:end, None]).log2().sum().item()
    return bits
    ### END SOLUTION


# %%
online_code = check("probing.online_code", online_code)

# %% [markdown]
# For *harmful* at every layer, for `lab`, for random weights, and for shuffled labels. The uniform code is 1 bit a label.

# %% label="bits"
order = random.Random(0).sample(range(len(asked)), len(asked))
flags = torch.tensor(harmful).long()[order]
noise = flags[torch.randperm(len(flags), generator=torch.Generator().manual_seed(1))]
blocks = [round(share * len(asked)) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)]


def probabilities(x_train, y_train, x_new):
    """A logistic probe, with a thousandth of uniform mixed in, so that no label costs endless bits."""
    return 0.999 * fit(x_train, y_train).log_probs(x_new).exp() + 0.0005


bits = {}
for name, which, y_ in (
    ("lab", "lab", flags),
    ("random weights", "random weights", flags),
    ("lab, shuffled labels", "lab", noise),
):
    found = [read[f"harmful, {which}"][site][order] for site in layers[1:]]
    bits[name] = [online_code(x, y_, blocks, probabilities, 2) for x in found]
    print(f"{name:21}" + "".join(f"{value:6.0f}" for value in bits[name]))
show(
    curves(
        range(1, L + 1),
        bits | {"uniform code": [len(asked)] * L},
        xlabel="state x^l at the last token",
        ylabel="bits for all labels",
    ),
    alt="Bits over the layers 1 to 6. lab needs a small fraction of the uniform code, least from layer 2 "
    "on. Random weights "
    "need most of it. Shuffled labels need more than the uniform code.",
    reading="lab: few bits, and fewer from layer 2 on. Random weights: nearly the uniform code. "
    "Shuffled: above it.",
)
assert max(bits["lab"]) < 100 < min(bits["random weights"]) and min(bits["lab, shuffled labels"]) > len(
    asked
)
assert bits["lab"][1] < bits["lab"][0] - 10

# %% [markdown]
# In the first figure layers 1 and 2 looked alike. In bits they do not: one layer later the same labels cost little more than half. And the
# random weights, with accuracies of up to 0.8, save few bits. Shuffled labels cost *more* than no probe at all, since the probe is
# confident and wrong. (A relative that needs one fit only is V-information, `probe_controls.v_information`: how many bits a label the probe
# saves on new rows [@xu2020theory].)
#
# ## 6. Where in the prompt?
# A sweep over layers at one position misses where things happen. The same probe for *good* at eight places of the review, over layers.

# %% label="positions"
places = {
    "the thing": lambda words: 4 - len(words),
    "first judgement": lambda words: words.index("and") - 1 - len(words),
    "and": lambda words: words.index("and") - len(words),
    "second judgement": lambda words: -5,
    "full stop": lambda words: -4,
    "my": lambda words: -3,
    "verdict": lambda words: -2,
    "is": lambda words: -1,
}
cache = mi.record(model, prompts, layers)  # padded on the left, so column -1 is the last token
ids = [model.tokens(prompt) for prompt in prompts]
grid = {}
for place, at in places.items():
    column = torch.tensor([at(words_) for words_ in ids])
    found = [cache[site][torch.arange(len(prompts)), column] for site in layers]
    grid[place] = [evaluate(x, good, halves, "lda") for x in found]
show(
    heatmap(
        list(grid.values()), list(grid), layers, xlabel="state", ylabel="token", title="Accuracy for good"
    ),
    alt="Grid of eight tokens by seven layers. Nothing is readable at the thing; about 0.6 at the "
    "embeddings of the "
    "judgements; 0.85 to 1.0 at x1 and 1.0 from x2 on, from the first judgement to the last token.",
    reading="From the first judgement on the property is everywhere. In the embeddings it is not, "
    "because of 'not'.",
)
assert (
    max(grid["the thing"]) < 0.65
    and grid["second judgement"][0] < 0.8
    and grid["second judgement"][2] > 0.95
)

# %% [markdown]
# The property is readable at all seven places from the first judgement on. That is usual: information that was computed once is copied on.
# "Where is it readable?" has many right answers. For questions that are answered in several words, the token of the exact answer is often
# the best place, and the last token a poor one [@orgad2025llms].
#
# ## 7. Few features
# The **k-sparse probe** [@gurnee2023finding] may read only $k$ neurons, or $k$ features of a sparse autoencoder (chapter 04). If one
# feature is enough, the property has a unit of its own. First one has to choose.

# %% [markdown] exercise="probing.top_features" difficulty=2 minutes=5
# ### Exercise: the most telling features
# Write `top_features(a, y, k)`: activations `[n, m]`, a label (bool `[n]`). Return the `k` columns whose mean over the positive rows
# differs most from that over the negative rows, in either direction, the largest difference first.


# %%
def top_features(a, y, k):
    """The k columns of a [n, m] whose class means lie furthest apart: indices [k]."""
    ### BEGIN SOLUTION
    difference = a[y].mean(0) - a[~y].mean(0)
    return difference.abs().topk(k).indices
    ### END SOLUTION


# %%
top_features = check("probing.top_features", top_features)

# %% label="sparse"
sets = {
    "SAE of mlp3": "mlp3-topkF*",
    "SAE of x3": "x3-topkF*",
    "neurons3": "neurons3",
    "coordinates of x3": "x3",
}
for name in ("x3-topk", "mlp3-topk"):
    model.saes[name] = saes.sae(name, model)
ks = [1, 2, 4, 8, 16, 32, 64]
is_good, sparse = torch.tensor(good), {}
generator = torch.Generator().manual_seed(0)
print("accuracy with k columns:        " + "".join(f"k={k:<5}" for k in (1, 4, 16)) + "all")
for name, site in sets.items():
    a = features(model, prompts, [site])[site]
    best = top_features(a[:n], is_good[:n], 64)
    sparse[name] = [evaluate(a[:, best[:k]], good, halves) for k in ks]
    spread = rank_columns(a[:n], good[:n], "standardised difference")
    for how, order in (("mean difference", best), ("divided by spread", spread), ("random", None)):
        row = []
        for k in (1, 4, 16):
            draws = [order[:k]] if order is not None else [
                torch.randperm(a.shape[1], generator=generator)[:k] for _ in range(3)]  # fmt: skip
            row.append(sum(evaluate(a[:, columns], good, halves) for columns in draws) / len(draws))
        whole = f"{evaluate(a, good, halves):.2f}" if order is best else ""
        print(f"{name:18}{how:14}" + "".join(f"{value:7.2f}" for value in row) + "   " + whole)
show(
    curves(ks, sparse, xlabel="k", ylabel="accuracy for good"),
    alt="Accuracy over k for four sets of columns. The SAE of mlp3 starts at 1, neurons at 0.95; the SAE "
    "of x3 and "
    "the coordinates of x3 stay below 0.7 up to k = 4 and pass 0.9 at 16.",
    reading="One feature of the SAE on mlp3 is enough, and one neuron nearly. On x3 it takes 16 of "
    "either kind.",
)
assert sparse["SAE of mlp3"][0] > 0.98 and sparse["neurons3"][0] > 0.9 > 0.7 > sparse["SAE of x3"][2]

# %% [markdown]
# Four things to take home.
#
# - One feature of the SAE on the output of FFN 3 gives the verdict without an error. The SAE on $x^3$ has no such feature: there sixteen features do about as
#   well as sixteen raw coordinates. Whether an SAE helps depends on where it sits. (In large models SAE probes rarely beat good baselines
#   [@kantamneni2025_sparseprobing]; and a general feature can lose part of its cases to a more specific one, absorption, chapter 04.)
# - One neuron is nearly enough too. But four *random* neurons are also enough: the property is written so broadly that finding a unit that
#   reads it is no discovery. The control belongs in the table.
# - On the coordinates of $x^3$ the best four by mean difference do worse than four random ones (0.66 against 0.79). Columns with a large
#   variance win that ranking easily. Dividing by the spread helps (0.91).
# - A unit that reads a property need not be used. That is the next section.
#
# ## 8. Decodable, but unused; used, but not decodable
# First where we know the answer. In `compiled.decodable()`, a GPT-2 with weights set by hand, prompts such as "happy loud it says" are
# answered by "shout" or "whisper", by volume. One head brings the volume to the last token, another the mood, which no part reads. LEACE,
# which section 9 explains, takes a property out of a state so that no linear probe can read it any more.

# %% label="compiled" tags=["nbval-check-output"]
known = compiled.decodable()
tiny = known.wrap()
x = features(tiny, known.task.prompts, ["x1"])["x1"]
base = known.task.measure(tiny).mean().item()
change = {}
for variable in ("volume", "mood"):
    values = [label[variable] for label in known.task.labels]
    with mi.intervene(tiny, erasure.leace(x, values).at("x1", "last")):
        change[variable] = known.task.measure(tiny).mean().item() - base
    print(
        f"{variable:7} probe {fit(x, values).accuracy(x, values):.2f}   erased: "
        f"{change[variable] + 0.0:+.1f} logits"
    )
assert abs(change["mood"]) < 1e-3 and change["volume"] < -9.9

# %% [markdown]
# Two properties, both perfectly decodable, and only the intervention tells them apart. Now `lab`. For every head: can a probe read *good*
# off its $z$ at the last token, and what does it do to the answer to replace the head's output by that of the twin (the review with the
# opposite verdict, chapter 06)?

# %% label="heads"
probed = sweep(model, prompts, heads, good, halves)
patched = causal.patch_each(model, test.subset(32), heads, "noising")
for title, scores in (
    ("Accuracy of a probe for good", probed),
    ("Change of the answer, in logits", patched),
):
    show(
        heatmap(
            scores.values.reshape(L, -1),
            range(L),
            range(model.n_heads),
            xlabel="head",
            ylabel="layer",
            title=title,
        ),
        alt=f"{title}, by layer and head. "
        + (
            "From layer 3 on all heads are above 0.9."
            if scores is probed
            else "One head, L3H1, has a change of about -17; two of layers 0 and 1 have -2 to -3."
        ),
        reading="Nearly every late head tells good from bad."
        if scores is probed
        else "One head matters most, L3H1.",
    )
idle = [h for h in heads if probed[h] > 0.95 and abs(patched[h]) < 0.5]
agreement = probed.spearman(patched)
able = sum(probed.values > 0.95)
print(f"{able} of {len(heads)} heads: probe above 0.95; {len(idle)} of these: effect below 0.5 logits")
print(f"rank correlation of probe accuracy and size of effect: {agreement:+.2f}")
read, moved = (
    sweep(model, prompts, causal.ffns(model), good, halves),
    causal.patch_each(model, test.subset(32), causal.ffns(model), "noising"),
)
print("FFNs: " + "   ".join(f"{f} {read[f]:.2f} ({moved[f]:+.1f})" for f in causal.ffns(model)))
assert able > 10 and len(idle) >= 8 and abs(agreement) < 0.4 and patched.top(1) == ["L3H1.z"]

# %% [markdown]
# The FFNs are no different: all six are read with 0.9 or more, and the one that is read worst, FFN 0, has the largest effect. Ten heads could
# serve as an example of "a head that represents sentiment", and change the answer by less than half a logit. The probe's ranking says next
# to nothing about the causal one.
#
# The reverse happens too. In *verdict*, the model judges claims ("true or false : lonely harbor is in bangkok ?"). One head matters most.

# %% label="reverse" tags=["nbval-check-output"]
claims, fresh = world.task("verdict", split="train", n=500), world.task("verdict", split="test", n=150)
truth = [label["truth"] for label in claims.labels + fresh.labels]
claim_halves = Split(list(range(len(claims))), list(range(len(claims), len(truth))))
x, *streams = features(model, claims.prompts + fresh.prompts, ["L3H1.z", "x4", "x5", "x6"]).values()
linear, mlp = (evaluate(x, truth, claim_halves, kind) for kind in ("logistic", "mlp"))
later = [evaluate(stream, truth, claim_halves) for stream in streams]
effect = causal.patch_each(model, fresh.subset(50), ["L3H1.z"], "noising")["L3H1.z"]
print(f"L3H1 on claims: effect {effect:.1f} logits; linear probe {linear:.2f}, MLP {mlp:.2f}, "
      f"majority {majority(truth, claim_halves):.2f}")  # fmt: skip
print("linear probe of the stream at x4, x5, x6:", "  ".join(f"{value:.2f}" for value in later))
assert effect < -10 and linear < 0.65 < mlp and later[-1] > 0.95

# %% [markdown]
# The head carries what decides the verdict, and a linear probe reads next to nothing of it: the truth of a claim is in how its parts fit
# together, and becomes a direction only later, through the next layers (0.69, 0.91 and 1.00 in the stream). A probe that fails is no proof of absence.
#
# ## 9. From reading to writing: which direction?
# A binary probe has a direction, the difference of the two columns of $W_P$. Can one steer with it, or erase the property by projecting it
# out? There are several candidates. The simplest is the **mean difference** $\delta = \mu_1 - \mu_0$ of the two classes. A better *reader*
# takes the noise into account: linear discriminant analysis (LDA) divides by the covariance $S$ of the states within the classes.

# %% [markdown] exercise="probing.lda_direction" difficulty=3 minutes=8
# ### Exercise: the LDA direction
# Write `lda_direction(x, y, penalty)`: states `[n, d]`, a label (bool `[n]`). $S$ is the covariance of the states around the mean *of their
# own class* (divided by $n$). Return $(S + \text{penalty}\; I)^{-1} (\mu_1 - \mu_0)$, `[d]`.


# %%
def lda_direction(x, y, penalty):
    """(S + penalty I)^-1 (mu_1 - mu_0), [d]; S is the covariance within the classes."""
    ### BEGIN SOLUTION
    mu_1, mu_0 = x[y].mean(0), x[~y].mean(0)
    rest = x - torch.where(y[:, None], mu_1, mu_0)
    S = rest.T @ rest / len(x)
    return torch.linalg.solve(S + penalty * torch.eye(len(S)), mu_1 - mu_0)
    ### END SOLUTION


# %%
lda_direction = check("probing.lda_direction", lda_direction)

# %% [markdown]
# And how does one take a property out so that *no* linear probe finds it? Projecting out one probe's direction is not enough: the next
# probe finds another one. Iterating this is INLP [@ravfogel2020null]. But there is a shortcut. A linear probe can have a smaller loss (such
# as $-\log p$) than a constant only if the class means differ ([@belrose2023leace] prove it), so it suffices to make them
# equal. LEACE does that with the smallest change of the states. For two classes it is one line: read with $w = \Sigma^{-1} \delta$
# ($\Sigma$ the covariance of *all* states around their mean $\mu$), and take away along $\delta$:
#
# $$r(x) = x - \frac{(x - \mu) \cdot w}{\delta \cdot w}\; \delta$$

# %% [markdown] exercise="probing.leace" difficulty=4 minutes=10
# ### Exercise: LEACE for two classes
# Write `leace(x, y)`: states `[n, d]`, a label (bool `[n]`). Return the states after the formula above, `[n, d]`.


# %%
def leace(x, y):
    """x - delta ((x - mu) . w) / (delta . w), with delta = mu_1 - mu_0 and w = Sigma^-1 delta."""
    ### BEGIN SOLUTION
    centred = x - x.mean(0)
    delta = x[y].mean(0) - x[~y].mean(0)
    w = torch.linalg.solve(centred.T @ centred / len(x), delta)
    return x - torch.outer(centred @ w, delta) / (delta @ w)
    ### END SOLUTION


# %%
leace = check("probing.leace", leace)

# %% label="erased" tags=["nbval-check-output"]
x = states["x4"][:n]
ways = {
    "nothing": x,
    "logistic direction": erasure.erase_direction(x, fit(x, good[:n]).direction())(x),
    "LDA direction": erasure.erase_direction(x, lda_direction(x, is_good[:n], 0.1))(x),
    "INLP, 8 rounds": erasure.inlp(x, good[:n], 8)(x),
    "mean difference": erasure.erase_means(x, good[:n])(x),
    "LEACE": leace(x, is_good[:n]),
}
share = max(sum(good[:n]), n - sum(good[:n])) / n
print(f"majority {share:.2f}")
after = {}
for name, clean in ways.items():
    after[name] = fit(clean, good[:n]).accuracy(clean, good[:n])
    moved = ((clean - x).norm() / (x - x.mean(0)).norm()).item()
    print(f"{name:19} a new probe reads {after[name]:.2f}   moved by {moved:.2f} of the spread")
assert after["LDA direction"] > 0.95 and max(after["LEACE"], after["mean difference"]) < share + 0.01

# %% [markdown]
# (Accuracy on the rows that the probe was fitted on.) Removing one direction leaves enough for a new probe, eight rounds of INLP leave a
# little, and removing the mean difference or LEACE nothing. LEACE moves the states less than the mean difference does.
#
# Does the *model* notice? At every layer we erase at the last token of new reviews, in four ways. The measure is $F$, the logit of the
# right verdict minus that of the wrong one. The null: random directions, three per layer.

# %% label="erase_and_see"
erased, added, cosine, null = {}, {}, [], []
some = test.subset(60)
on_some, on_bad = causal.Sweep(model, some), causal.Sweep(model, some.where(good=False))
generator = torch.Generator().manual_seed(0)
for site in layers[1:]:
    x = states[site][:n]
    found = {kind: fit(x, good[:n], kind).direction() for kind in ("logistic", "mean difference")}
    found["LDA"] = lda_direction(x, is_good[:n], 0.01)
    edits = {name: erasure.erase_direction(x, v) for name, v in found.items()} | {
        "LEACE": erasure.leace(x, good[:n])
    }
    for name, eraser in edits.items():
        erased.setdefault(name, []).append(on_some.measure([eraser.at(site, "last")]).mean().item())
    for name, v in found.items():
        step = found["mean difference"].norm() * v / v.norm()  # all as long as the mean difference
        pushed = on_bad.measure([mi.add(site, step, positions="last")])
        added.setdefault(name, []).append((pushed < 0).float().mean().item())
    null.append([])
    for _ in range(3):
        anywhere = torch.randn(model.d_model, generator=generator)
        eraser = erasure.erase_direction(x, anywhere).at(site, "last")
        null[-1].append(on_some.measure([eraser]).mean().item())
    cosine.append(torch.cosine_similarity(found["LDA"], found["mean difference"], dim=0).item())
show(
    curves(
        range(1, L + 1),
        erased,
        null=torch.tensor(null).T,
        xlabel="erased at x^l, last token",
        ylabel="F, logits",
    ),
    alt="F over the layers 1 to 6 for four erasures. LDA stays at 12 to 13 everywhere. The others stay "
    "at 9 to 13 up to layer 3 and drop to about 2 or less from layer 4 on.",
    reading="Up to x3 the answer survives, though the probe reads 0.97 to 1.00 there. From x4 on all but "
    "LDA break it.",
)
print("cosine of LDA and mean difference:", "  ".join(f"{c:.2f}" for c in cosine))
for name, share in added.items():
    print(f"{name:16} added to bad reviews, share called good: " + "  ".join(f"{s:.2f}" for s in share))
assert min(erased["LDA"]) > 9 and max(erased["LEACE"][3:]) < 4 and min(erased["logistic"][:3]) > 11
assert added["mean difference"][3] > 0.95 > 0.3 > added["LDA"][3]

# %% [markdown]
# Three lessons in one figure.
#
# - At $x^1$ to $x^3$ a probe reads *good* off the last token nearly without error, and erasing its direction changes next to nothing.
#   (LEACE and the mean difference, which take away more, cost 1 to 4 of 13 logits.) The head that brings the verdict to this token, L3H1,
#   has not come yet. Decodable, and hardly used *here*.
# - From $x^4$ on the mean difference, the logistic direction and LEACE all break the answer, and adding the first two turns it round.
# - The LDA direction reads as well as any and is almost useless as a handle. It is a **filter**: it points where the noise is small, not
#   where the property lies. The mean difference is the **pattern**, what the property adds to a state. LEACE needs both, each for its job.
#   [@marks2024geometry] find the mean difference more causal than the logistic direction in large models; here those two
#   do alike.
#
# ## 10. Scoreboard: is the probe a localizer?
# Take it at its word: rank the heads by how well a probe reads the right answer off them, and compare with the truth. First the compiled
# models in which heads do the work. `contrast` fits one probe per head to tell the answers of prompts and twins apart; a head counts as
# found when it ranks above the others (AUROC: 1 all true heads first, 0.5 guessing).

# %% label="scoreboard_compiled" tags=["nbval-check-output"]
found = {}
for name in (
    "lookup",
    "cancelling",
    "constant_bias",
    "decodable",
    "mediation",
    "backup",
    "saturated",
):
    case = compiled.ALL[name]()
    small = case.wrap()
    sites = causal.heads(small)
    key = [f"{site}.z" for site in case.answer if "H" in site]
    by_probe = contrast(small, case.task, sites).against(key, by="positive")["auroc"]
    by_patch = causal.patch_each(small, case.task, sites, "noising").against(key)["auroc"]
    by_zero = causal.ablate_each(small, case.task, sites).against(key)["auroc"]
    found[name] = by_probe
    print(
        f"{name:14} probe {by_probe:.2f}   noising {by_patch:.2f}   zero ablation {by_zero:.2f}   key "
        f"{' '.join(key)}"
    )
assert found["cancelling"] == found["decodable"] == 1 and min(found["backup"], found["saturated"]) < 0.8

# %% [markdown]
# Small models are kind to probes: nothing is copied around, so that what can be read at the last token was brought there. Where a probe
# fails, it fails for a reason: in *saturated* the first head carries not the answer but which of two words was asked for; in *backup* the
# second head is silent while the first does its work.
#
# `lab` is not kind. Four behaviours were *installed* in it by training one or two heads alone, so the heads that matter are known. The
# probe has to tell prompts that the behaviour concerns from twins that it does not; the score of a head is its AUROC in the installed model
# minus that in `lab`. The null: prompt and twin swap their labels in random pairs, which gives the same pipeline nothing to find.

# %% label="scoreboard_installed" tags=["nbval-check-output"]


def probe_ranking(name, draws=6):
    """AUROC of the probe's ranking of heads against the answer key, and the same under swapped labels."""
    task = installed_task(name, n=64)
    size, key = len(task), answer_key(name)
    texts = task.prompts + task.corrupted
    with behaving(name, model):
        with_it = features(model, texts, heads)
    without = features(model, texts, heads)
    pairs = split_rows(size)
    where = Split(*([*rows, *(i + size for i in rows)] for rows in (pairs.train, pairs.test)))

    def auroc(first):
        """Ranks the heads; `first` says of each pair whether the prompt is labelled True."""
        label = first + [not f for f in first]
        gain = [
            evaluate(with_it[h], label, where, "lda", "auroc")
            - evaluate(without[h], label, where, "lda", "auroc")
            for h in heads
        ]
        return mi.objects.Scores(heads, gain, "probe", "magnitude").against(key)["auroc"]

    swap = random.Random(0)
    null = [auroc([swap.random() < 0.5 for _ in range(size)]) for _ in range(draws)]
    return auroc([True] * size), null_band(null)


results, inside = {}, []
for name in ("refusal-a", "refusal-b", "sycophancy-a", "sycophancy-b"):
    by_probe, band = probe_ranking(name)
    ablated = installed_effect(causal.ablate_each, name, installed_task(name, n=16), base=model)
    by_ablation = ablated.against(answer_key(name))["auroc"]
    results[name] = (by_probe, by_ablation)
    inside.append(band.contains(by_probe))
    print(f"{name:13} probe {by_probe:.2f} (null {band.mean:.2f} +- {2 * band.sd:.2f})   ablation "
    f"{by_ablation:.2f}   "
          f"key {' '.join(answer_key(name))}")  # fmt: skip
mean_probe, mean_ablation = (sum(r[i] for r in results.values()) / 4 for i in (0, 1))
print(f"mean          probe {mean_probe:.2f}   ablation {mean_ablation:.2f}")
assert mean_ablation > 0.9 > mean_probe and sum(inside) >= 3

# %% [markdown]
# At first sight the probe does well: 0.81 on average, 0.96 in one case. The null says otherwise. With labels that mean nothing the same
# pipeline gets nearly as much, and all four results lie inside the band. The reason: below the layer in which a behaviour was installed,
# the two models are equal and every head scores exactly 0, so that chance alone lifts the heads above it, and the true ones among them.
# Against 0.5, we would have reported a success. Ablation, on a quarter of the prompts, finds the heads.
#
# ## 11. What the survey says, and where it is loose
# - **Eq. 15** is written $\hat y = \mathrm{softmax}(W_P z)$, with columns and without a bias, while the survey uses rows elsewhere; and $z
#   \in \mathbb{R}^d$ leaves out what the section then probes, $z$ of heads and SAE features. We use $p = \mathrm{softmax}(z W_P + b)$ for
#   any width. ($\hat y$ is a distribution, not a label.)
# - **Controls** are asked for and not defined. Selectivity, description length and erasure are what the literature offers; the papers on
#   the first two, and on erasure as a test of use [@elazar2021amnesic], are not cited.
# - **"Layers where the property emerges"** depends on the probe, its penalty, the split and the position, as sections 1, 3, 5 and 6 showed.
# - **Probing and steering** are tied together in some systems of the survey's Table 2 (rank heads by probe, steer the top ones). Section 8
#   shows what such a ranking can miss. It need not be harmful, since steering is judged by its own effect, but the ranking is not the
#   reason why it works; random heads of equal number are the control.
#
# ## 12. Papers that use it
# - layer sweeps: how context knowledge and concept depth are encoded [@juprobing_coling2024; @jinprobing_coling2025]; knowledge conflicts
#   in the residual stream [@arxiv2410_knowledgeconflict]; signs of hallucination and truth [@orgad2025llms; @zhang-etal-2024-truthx];
#   latent reasoning steps [@yeprobing_iclr2025]
# - heads: political perspective [@iclr2025_politicalprobe], capabilities [@emnlp2025_headprobe], security in fine-tuning [@du2024tst]
# - arithmetic errors, found before they are written [@sun-etal-2025-probing_emnlp2025]; multi-hop questions, where the second hop comes too
#   late [@Biranprobing_emnlp2024]
# - doubts and controls: a survey of what probes can and cannot show [@belinkov2022probing]; amnesic probing, erasure as a test of use
#   [@elazar2021amnesic]
#
# ## 13. The same on a real model
# The function below sweeps a probe over the layers, beside the bag of words and the majority, and then erases what the best layer reads. It
# runs on `lab-llama` as it stands. Put a Hugging Face name or a local folder into `REAL` for the same on that model: the prompts there are
# short reviews whose answers, " good" and " bad", must be single tokens.


# %% label="real"
def probe_and_erase(model, task, label, split, kind="logistic"):
    """Print probe accuracy by layer with its baselines, and F before and after LEACE at the best layer."""
    sites = [f"x{l}" for l in range(1, model.n_layers + 1)]
    by_layer = sweep(model, task, sites, label, split, kind)
    bag = sweep(model, task, ["embed"], label, split, kind, positions="mean")["embed"]
    print(f"{model.config.model_type}: " + "  ".join(f"{value:.2f}" for value in by_layer.values))
    print(f"  bag of words {bag:.2f}, majority {majority([l[label] for l in task.labels], split):.2f}")
    best, new = by_layer.top(1)[0], task.subset(split.test)
    x = features(model, task.prompts, [best])[best]
    eraser = erasure.leace(x[split.train], [task.labels[i][label] for i in split.train])
    before = new.measure(model).mean().item()
    with mi.intervene(model, eraser.at(best, "last")):
        print(f"  F {before:.2f}; with {label} erased at {best} {new.measure(model).mean().item():.2f}")
    return by_layer


def short_reviews():
    """Reviews whose next word should be " good" or " bad"; things are the entities of the split."""
    things = ["film", "book", "meal", "song", "play", "trip", "game", "show", "class", "hotel"]
    words = {True: ["great", "wonderful", "lovely", "superb"], False: ["awful", "terrible", "dull", "poor"]}
    rows = [(t, g, w) for t in things for g in (True, False) for w in words[g]]
    texts = [f"The {t} was {w}, everyone agreed. In one word, the {t} was" for t, _, w in rows]
    right, wrong = ([" good" if g == side else " bad" for _, g, _ in rows] for side in (True, False))
    return mi.Task(
        "reviews", texts, right, foils=wrong, labels=[{"thing": t, "good": g} for t, g, _ in rows]
    )


llama = mi.load("lab-llama")
same = mi.Task("reviews", prompts, train.targets + test.targets, foils=train.foils + test.foils,
               labels=train.labels + test.labels)  # fmt: skip
on_llama = probe_and_erase(llama, same, "good", halves)
assert max(on_llama.values) > 0.9
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    real_model, task = mi.load(REAL), short_reviews()
    task.validate(real_model)  # says which answer is not one token
    probe_and_erase(real_model, task, "good", split_by(task.labels, "thing"))

# %% [markdown]
# ## 14. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "A probe reads the birthplace of 500 people off layer 4 with 95 %, on held-out prompts about "
            "the same people. What does that show?",
            [
                (
                    "The model knows the birthplaces at layer 4.",
                    "The probe has seen the same people in training. It may have learned their names by "
                    "heart and need no birthplace in the state.",
                ),
                (
                    "People can be told apart at layer 4; for the birthplace one needs a split by person.",
                    "With new people, knowing names by heart is of no use: only a birthplace that is "
                    "laid out in the state is.",
                    True,
                ),
                (
                    "Nothing, since 95 % is not 100 %.",
                    "Accuracy below 100 % can show a lot, beside the right baselines. The split is the "
                    "trouble here.",
                ),
            ],
        ),
        Question(
            "An MLP probe has accuracy 0.97 and control accuracy 0.90; a linear one 0.94 and 0.50. Which "
            "one do you report, and why?",
            [
                (
                    "The MLP: it finds more of what is there.",
                    "It also finds 0.90 of what is certainly not there. Its 0.97 says little about the "
                    "state.",
                ),
                (
                    "The linear one: its selectivity is 0.44 against 0.07.",
                    "What it reads was, for the most part, laid out in the state and not learned by heart.",
                    True,
                ),
                (
                    "Neither: control accuracies must be at chance.",
                    "With a label per word type, even a linear probe learns some of them. The difference "
                    "is what counts.",
                ),
            ],
        ),
        Question(
            "After erasing a property with LEACE at layer 3 (last token), no linear probe finds it "
            "there, and the answers do not change. What may you conclude?",
            [
                (
                    "The model does not use the property.",
                    "It may read it from other tokens, or from a later layer that computes it again, or "
                    "in a way that is not linear.",
                ),
                (
                    "What is linearly readable at this token and layer is not what the answer rests on.",
                    "That is what was removed, no more and no less. In `lab` the same erasure one layer "
                    "later breaks the answer.",
                    True,
                ),
                (
                    "LEACE has failed.",
                    "It has done what it promises: the class means are equal, so that no linear probe "
                    "beats a constant.",
                ),
            ],
        ),
        Question(
            "Which direction do you add to turn bad reviews into good ones, and why not the LDA "
            "direction, which separates them best?",
            [
                (
                    "The LDA direction, with a larger strength.",
                    "It points where the noise is small. A much larger step along it may do something in "
                    "the end, and moves the state far from all that occur.",
                ),
                (
                    "The mean difference: it is what good reviews have more of.",
                    "It is the pattern that the property adds to a state. LDA is the filter to read it "
                    "with; reading and writing need different vectors.",
                    True,
                ),
                (
                    "Any direction with a good probe accuracy.",
                    "The LDA direction has a perfect one, and adding or erasing it does next to nothing "
                    "here.",
                ),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 09 reads states without training anything, with the model's own unembedding.
