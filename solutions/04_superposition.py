# %% [markdown]
# # 04 Superposition and sparse autoencoders
# A layer has more to say than it has dimensions. This chapter shows how features share dimensions (**superposition**), how a sparse
# autoencoder (**SAE**) tries to take them apart again, and, since part of the data is planted, how far it succeeds. Survey, section 2.5.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - say when a model stores more features than dimensions, and predict where that sets in
# - write an SAE: encoder, decoder, a loss that cannot be cheated, TopK
# - report on an SAE with numbers that can prove it wrong: FVU, L0, dead features, the splice baseline
# - measure shrinkage and absorption where the true features are known
# - read a feature, and put random directions and an untrained model beside it
#
# **The claim.** Sparse features can be packed into fewer dimensions than there are features, and an SAE finds many of them again; but sparsity
# itself makes it hide general features inside specific ones, and how clean a feature looks is weak evidence that the model uses it.

# %% label="setup"
import json
import random
import tempfile
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

import mi_course as mi
from mi_course import world
from mi_course.evaluate import document_loss
from mi_course.objects import sae as saes
from mi_course.objects.sae_features import auroc, by_token, logit_effect, top_examples
from mi_course.objects.sae_formats import load_gemma_scope, load_saelens
from mi_course.objects.sae_truth import absorption, recovery
from mi_course.objects.superposition import pair_boundary, pair_losses, train_toys
from mi_course.teach import Question, check, curves, heatmap, quiz, show
from mi_course.teach.plots import Table
from mi_course.world import saes as shipped
from mi_course.world.compiled import planted_features

torch.manual_seed(0)
model = mi.load()
model

# %% [markdown]
# ## 1. More features than dimensions
# A **feature** here is a property of the input that is present or not, and has a size when present, here
# drawn uniformly from 0 to 1. Take $n$ of them, $x \in [0, 1]^n$, and
# press them through $m < n$ dimensions and back ([@elhage2022toy]):
#
# $$h = x W^\top, \qquad x' = \mathrm{ReLU}(h W + b), \qquad \text{loss} = \textstyle\sum_i I_i\,(x_i - x'_i)^2$$
#
# Column $i$ of $W$ is the direction in which feature $i$ is stored, $I_i$ is its **importance**, and the **density** $p$ is the probability that
# a feature is present. A small density means sparse features. This is the whole training, for one model:

# %% label="ten-lines"
def train_one(density, importance, m, steps=400):
    """A toy model in ten lines. Returns W [m, n]."""
    n = len(importance)
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(1)).requires_grad_()
    b = torch.zeros(n, requires_grad=True)
    optimizer = torch.optim.Adam([W, b], lr=0.02)
    for _ in range(steps):
        x = torch.rand(256, n) * (torch.rand(256, n) < density)
        loss = (importance * (x - torch.relu(x @ W.T @ W + b)) ** 2).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return W.detach()


importance = 0.9 ** torch.arange(5.0)
layouts = {density: train_one(density, importance, m=2) for density in (1.0, 0.3, 0.05)}
figure = Figure(figsize=(8, 2.9), layout="constrained")
for axes, (density, W) in zip(figure.subplots(1, 3), layouts.items()):
    for i, (x, y) in enumerate(W.T.tolist()):
        axes.plot([0, x], [0, y], color="#0072B2", lw=2)
        axes.annotate(str(i), (1.12 * x, 1.12 * y), ha="center", va="center", fontsize=9)
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"density {density}")
stored = [int((W.norm(dim=0) > 0.5).sum()) for W in layouts.values()]
show(
    figure,
    alt="Three panels with the directions of five features in two dimensions. At density 1 two arrows are "
    "long and stand at a right angle. At density 0.3 four arrows form a cross. At density 0.05 five "
    "arrows point to the corners of a pentagon.",
    reading="The sparser the features, the more of them share two dimensions: two, then four, then all five.",
)
print("features stored (arrow longer than 0.5):", dict(zip(layouts, stored)))
assert stored[0] <= 3 and stored[1] == 4 and stored[2] == 5

# %% [markdown]
# Dense features get a dimension each, and the rest is mostly dropped (short arrows, below the 0.5 that we count): that is what a principal component analysis does too. Sparse ones share. Two that
# point in opposite directions, an **antipodal pair**, disturb each other only when both are present, and the ReLU cleans up the rest.
#
# How many dimensions does a feature have? Walk along its direction $\hat w_i = w_i / |w_i|$ and see how much room everything else takes there:
#
# $$D_i = \frac{|w_i|^2}{\sum_j (\hat w_i \cdot w_j)^2}$$

# %% [markdown] exercise="superposition.feature_dimensions" difficulty=2 minutes=9
# ### Exercise: a share of a dimension
# Write `feature_dimensions(W)`: `[m, n]` in, $D$ of shape `[n]` out. The direction $w_i$ is column `i`. The sum over $j$ includes $i$ itself. A
# feature that is not stored ($w_i = 0$) has $D_i = 0$.

# %%
def feature_dimensions(W):
    """Share of a dimension of each feature, |w_i|^2 / sum_j (w_i/|w_i| . w_j)^2: W [m, n] -> [n]."""
    ### BEGIN SOLUTION
    norm = W.norm(dim=0)
    unit = W / norm.clamp_min(1e-9)
    overlap = (unit.T @ W).pow(2).sum(-1)
    return norm**2 / overlap.clamp_min(1e-9)
    ### END SOLUTION

# %%
feature_dimensions = check("superposition.feature_dimensions", feature_dimensions)

# %% [markdown]
# The shares add up to at most $m$: superposition makes no room, it divides it. Now 16 features in 4 dimensions, over many densities, with a
# control: the same model without its ReLU. The plot shows how many features are stored.

# %% label="capacity"
density = torch.logspace(-2, 0, 7)
importance = 0.9 ** torch.arange(16.0)
toys = {
    "with ReLU": train_toys(density, importance, m=4, restarts=2, steps=500),
    "linear": train_toys(density, importance, m=4, restarts=2, steps=500, relu=False),
}
stored = {name: (t.W.norm(dim=1) > 0.5).sum(-1) for name, t in toys.items()}
shares = {name: torch.stack([feature_dimensions(W) for W in t.W]).sum(-1) for name, t in toys.items()}
figure = curves(density, stored, xlabel="density of the features", ylabel="features stored in 4 dimensions")
figure.axes[0].set_xscale("log")
show(
    figure,
    alt="Two lines over density on a log scale. With the ReLU nearly all of the 16 features are stored at "
    "density 0.01, falling to 4 at density 1. Without it 4 or 5 are stored at every density.",
    reading="With a ReLU, the sparser the features, the more of them are packed into 4 dimensions; without "
    "one it stays at about 4.",
)
for name in toys:
    low, high = shares[name].min(), shares[name].max()
    print(f"{name:10} stored {stored[name].tolist()}   sum of shares {low:.2f} to {high:.2f}")
assert stored["with ReLU"][0] >= 11 and stored["linear"].max() <= 8
assert max(s.max() for s in shares.values()) < 4.01

# %% [markdown]
# ## 2. A phase change
# Is superposition gradual? Take the smallest case, two features in one dimension. There are three sensible layouts, and their losses can be
# worked out by hand. With density $p$, the first feature of importance 1 and the second of importance $r$:
#
# | layout | loss | why |
# |---|---|---|
# | only the first | $r\,(p/3 - p^2/4)$ | the second is replaced by its mean and costs its variance |
# | only the second | $p/3 - p^2/4$ | the same, the other way round |
# | antipodal pair | $(1 + r)\,p^2/6$ | fails only when both are present, and loses the smaller one twice |
#
# So for $r \le 1$ the pair wins below $p^* = 4r/(2 + 5r)$, and at equal importance below 4/7. Each cell below is a trained model. Its number
# is 1 when both features are stored with equal length in opposite directions, 0 when only one is stored. The dashed line is the formula, which
# knows nothing of the training.

# %% label="phase"
density, ratio = torch.logspace(-1.5, 0, 7), torch.logspace(-1, 1, 7)
p, r = (grid.flatten() for grid in torch.meshgrid(density, ratio, indexing="ij"))
pairs = train_toys(p, torch.stack([torch.ones_like(r), r], 1), m=1, restarts=6, steps=400)
w = pairs.W[:, 0]
opposite = (-w.prod(-1) / w.pow(2).amax(-1)).clamp_min(0).view(7, 7)
figure = heatmap(
    opposite,
    rows=[f"{x:.2f}" for x in density],
    columns=[f"{x:.2f}" for x in ratio],
    xlabel="importance of the second feature, relative to the first",
    ylabel="density",
    title="Do two features share one dimension?",
    unit="1: antipodal pair, 0: one feature alone",
)
fine = torch.logspace(-1, 1, 60)
row = (torch.log10(pair_boundary(fine)) + 1.5) / 0.25  # from a density to the row of the grid
figure.axes[0].plot((torch.log10(fine) + 1) * 3, row, color="white", lw=3)
figure.axes[0].plot((torch.log10(fine) + 1) * 3, row, color="black", lw=1, ls="--")
show(
    figure,
    alt="Heat map of 7 densities by 7 importances. Below a curve that peaks at equal importance the cells "
    "are near 1, above it near 0. The curve of the formula runs along the border.",
    reading="Below the line (sparse) both are stored, above it only the more important one; the change is "
    "sudden.",
)
losses = torch.stack(list(pair_losses(p, r).values())).sort(0).values
agree = (opposite > 0.5) == (p < pair_boundary(r)).view(7, 7)
clear = (losses[1] / losses[0] > 1.5).view(7, 7)  # not so near the line that two layouts are about as good
print(f"as the formula says: {agree.sum()} of 49; away from the line {agree[clear].sum()} of {clear.sum()}")
assert agree.float().mean() > 0.85 and agree[clear].float().mean() > 0.95

# %% [markdown]
# It is a **phase change**: as sparsity grows, the best layout switches from one kind to another at a definite point. The claim that language
# models do the same is an extrapolation. It predicts that single neurons answer to several unrelated things (**polysemantic** neurons), and
# this we can look at. The generator says which **domain** each document belongs to (facts, sums, requests, ...). We take the 20 test documents in which
# a neuron of block 2 is largest, look for a neuron that divides them between two domains, and print where it is largest.

# %% label="polysemantic"
train_docs, test_docs = world.documents("train", n=20), world.documents("test", n=20)
train_texts, test_texts = (sum(docs.values(), []) for docs in (train_docs, test_docs))
domain = torch.tensor([i for i, texts in enumerate(test_docs.values()) for _ in texts])
SITE, NEURONS = "x3", "neurons2"  # the stream after block 2, and the neurons of block 2, which write to it
neurons = saes.states(model, NEURONS, test_texts, skip=1)  # without <bos>, which is the same everywhere
lengths = torch.tensor([len(model.tokens(text)) - 1 for text in test_texts])
document = torch.arange(len(test_texts)).repeat_interleave(lengths)
assert len(document) == len(neurons)


def largest(values):
    """Largest value of each unit in each document: [tokens, units] -> [documents, units]."""
    start = torch.full((len(test_texts), values.shape[1]), -torch.inf)
    return start.scatter_reduce(0, document[:, None].expand_as(values), values, "amax")


def top_domains(values, labels=domain, k=10):
    """Share of each domain in a unit's k top documents, [units, domains], for units active in so many."""
    top = largest(values).topk(k, dim=0)
    share = torch.nn.functional.one_hot(labels[top.indices], int(domain.max()) + 1).sum(0) / k
    return share[top.values[-1] > 0]


def purity(values, labels=domain):
    """The share of a unit's 10 top documents that come from its commonest domain."""
    return top_domains(values, labels).amax(-1)


shares = top_domains(neurons, k=20)
first, second = shares.topk(2).values.T
j = int((second + first / 10).argmax())  # the neuron with the largest second domain
for where in shares[j].topk(2).indices.tolist():
    print(f"L2N{j}: {shares[j, where]:.0%} of its top 20 documents are of domain '{list(test_docs)[where]}'")
    in_domain = largest(neurons)[:, j].masked_fill(domain != where, -torch.inf)
    seen = set()
    for number in in_domain.topk(8).indices.tolist():
        words = model.tokens(test_texts[number])[1:]
        at = int(neurons[document == number, j].argmax())
        seen.add(f"    {' '.join(words[max(0, at - 7) : at])} [{words[at]}]")
    print("\n".join(sorted(seen)[:3]))
assert second[j] >= 0.3

# %% [markdown]
# One neuron, chosen because it is so, proves little: section 7 measures all of them, beside features and controls. Chapter 03 looks at neurons more closely.
#
# ## 3. A sparse autoencoder
# If a state is a sparse sum of more directions than dimensions, look for these directions. An SAE has $d_{SAE} = m$ **features** (also called
# **latents**), a row $f_j$ of $W_{dec}$ each, and an encoder that says how much of each is in a state $x \in \mathbb{R}^d$ (Eq. 7 and 8; from
# here on $m$ counts features, in sections 1 and 2 it counted dimensions):
#
# $$a = \sigma\big((x - b_{dec}) W_{enc} + b_{enc}\big), \qquad \hat x = a W_{dec} + b_{dec} = b_{dec} + \textstyle\sum_j a_j f_j$$
#
# The survey leaves $\sigma$ open and does not subtract $b_{dec}$; published SAEs mostly do, so that $a$ describes how a state differs from a
# typical one. We start with $\sigma$ = ReLU.

# %% [markdown] exercise="superposition.encode_decode" difficulty=1 minutes=7
# ### Exercise: encode and decode
# Write `encode_decode(x, W_enc, b_enc, W_dec, b_dec)`, with `x` of shape `[..., d]`, `W_enc` `[d, m]`, `W_dec` `[m, d]`. Return the pair
# (activations `[..., m]`, reconstruction `[..., d]`). Feature $f_j$ is **row** $j$ of `W_dec`.

# %%
def encode_decode(x, W_enc, b_enc, W_dec, b_dec):
    """Eq. 7 and 8 with a ReLU, b_dec subtracted first: (a [..., m], x^ [..., d])."""
    ### BEGIN SOLUTION
    a = torch.relu((x - b_dec) @ W_enc + b_enc)
    return a, a @ W_dec + b_dec
    ### END SOLUTION

# %%
encode_decode = check("superposition.encode_decode", encode_decode)

# %% [markdown]
# Training minimises the squared error plus a penalty on activity (Eq. 9): $|x - \hat x|^2 + \lambda \sum_j a_j$. As it stands this can be
# cheated. Divide $W_{enc}$ and $b_{enc}$ by 7 and multiply $W_{dec}$ by 7: every reconstruction stays the same, and the penalty is 7 times
# smaller. Nothing has become sparser.

# %% label="degenerate"
truth = planted_features(seed=0)
x, codes = truth.sample(4000, seed=1)
relu_sae = saes.train(x, 32, kind="relu", sparsity=0.3, steps=300, lr=5e-3)
for name, each in (("trained", relu_sae), ("rescaled by 7", relu_sae.rescaled(7.0))):
    a, x_hat = encode_decode(x, each.W_enc, each.b_enc, each.W_dec, each.b_dec)
    error, active = (x - x_hat).pow(2).sum(-1).mean(), (a > 0).sum(-1).float().mean()
    print(f"{name:14} squared error {error:.3f}   |a|_1 {a.sum(-1).mean():.3f}   active {active:.2f}")
same = torch.allclose(relu_sae(x), relu_sae.rescaled(7.0)(x), atol=1e-4)
assert same and torch.allclose(relu_sae.encode(x) / 7, relu_sae.rescaled(7.0).encode(x), atol=1e-4)

# %% [markdown]
# There are two cures: hold the rows of $W_{dec}$ at length 1, as our `train` does, or let the lengths count: $\lambda \sum_j a_j |f_j|$. With rows
# of length 1 the two are the same.

# %% [markdown] exercise="superposition.sae_loss" difficulty=2 minutes=9
# ### Exercise: a loss that cannot be cheated
# Write `sae_loss(x, x_hat, a, W_dec, l1)`: the mean over states of $|x - \hat x|^2 + \lambda \sum_j a_j |f_j|$. Shapes: `x` and `x_hat` `[N, d]`,
# `a` `[N, m]`, `W_dec` `[m, d]`; `l1` is $\lambda$. Return one number (a tensor).

# %%
def sae_loss(x, x_hat, a, W_dec, l1):
    """Mean over states of |x - x^|^2 + l1 * sum_j a_j |f_j|."""
    ### BEGIN SOLUTION
    error = (x - x_hat).pow(2).sum(-1)
    activity = (a * W_dec.norm(dim=1)).sum(-1)
    return (error + l1 * activity).mean()
    ### END SOLUTION

# %%
sae_loss = check("superposition.sae_loss", sae_loss)

# %% label="invariant"
costs = []
for each in (relu_sae, relu_sae.rescaled(7.0), relu_sae.rescaled(0.1)):
    a, x_hat = encode_decode(x, each.W_enc, each.b_enc, each.W_dec, each.b_dec)
    costs.append(sae_loss(x, x_hat, a, each.W_dec, 0.3).item())
print("loss of the three scalings:", [round(cost, 4) for cost in costs])
assert max(costs) - min(costs) < 1e-3

# %% [markdown]
# A penalty on the size of activations has a price of its own: it makes all of them too small (**shrinkage**, measured in section 6). Later SAEs
# choose the sparsity directly. **TopK** ([@gao2024scaling]) keeps the $k$ largest activations of each state, and needs no penalty.

# %% [markdown] exercise="superposition.top_k" difficulty=2 minutes=8
# ### Exercise: TopK
# Write `top_k(z, k)`: pre-activations `[..., m]` in, activations of the same shape out. In each state keep the `k` largest numbers of ReLU(z) in
# their places, and set the others to 0. A state with fewer than `k` positive numbers keeps only those.

# %%
def top_k(z, k):
    """The k largest of relu(z) in each state, the others set to 0: [..., m] -> [..., m]."""
    ### BEGIN SOLUTION
    top = z.relu().topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, top.indices, top.values)
    ### END SOLUTION

# %%
top_k = check("superposition.top_k", top_k)

# %% [markdown]
# Three more kinds, all in `mi_course.objects.sae`:
#
# | kind | what it keeps | source |
# |---|---|---|
# | BatchTopK | the $k N$ largest of a batch of $N$ states; after training, what exceeds one threshold | [@bussmann2024batchtopk] |
# | JumpReLU | what exceeds a learned threshold of each feature; the number of active features is penalised | [@rajamanoharan2024jumping] |
# | Matryoshka | any of these, but its first 4 features (say) must also reconstruct alone | [@bussmann2025learning] |
#
# ## 4. What every report must say
# Three numbers say whether an SAE does its job. **FVU**, the fraction of variance unexplained: the summed squared error divided by the summed
# squared distance of the states from their mean state. **L0**: active features per state. **Dead**: the share of features that never fire.

# %% [markdown] exercise="superposition.quality" difficulty=2 minutes=10
# ### Exercise: FVU, L0, dead
# Write `quality(x, x_hat, a)` for `N` states: a dictionary with the numbers `"fvu"`, `"l0"` and `"dead"`. Shapes: `x` and `x_hat` `[N, d]`, `a`
# `[N, m]`. The mean state is one vector, a mean over the `N` states.

# %%
def quality(x, x_hat, a):
    """{"fvu", "l0", "dead"} for states x [N, d], reconstructions x_hat [N, d] and activations a [N, m]."""
    ### BEGIN SOLUTION
    fvu = (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    l0 = (a > 0).sum(-1).float().mean()
    dead = 1 - (a > 0).any(0).float().mean()
    return {"fvu": fvu.item(), "l0": l0.item(), "dead": dead.item()}
    ### END SOLUTION

# %%
quality = check("superposition.quality", quality)

# %% [markdown]
# Now a live one, on the residual stream of `lab` between blocks 2 and 3: 512 features for 128 dimensions (an expansion factor of 4), 12 active per
# token. It trains in a few seconds on the states of all words of the train documents, and is judged on the test documents. (`<bos>`, which opens every
# document, is in the training, since the SAE will stand in for its state too, but not in the test: it is the same everywhere.)

# %% label="live"
train_x, test_x = saes.states(model, SITE, train_texts), saes.states(model, SITE, test_texts, skip=1)
LIVE = {"kind": "topk", "k": 12, "site": SITE, "steps": 200, "lr": 4e-3, "remedy": "auxk", "dead_after": 50}
live = saes.train(train_x, 512, **LIVE)


def report(sae, states):
    """Your report on an SAE."""
    return quality(states, sae(states), sae.encode(states))


found = report(live, test_x)
print(len(train_x), "states for training,", len(test_x), "for testing")
print({name: round(value, 3) for name, value in found.items()})
assert found["fvu"] < 0.35 and found["l0"] <= 12 and found["dead"] < 0.1

# %% [markdown]
# **Dead features.** A feature that never fires gets no gradient through its activation, so it stays dead: capacity paid for and lost. Train with a
# learning rate that is too high and only 4 active features, and see. Two remedies: **resampling** points dead features at badly reconstructed
# states ([@bricken2023towards]), and **AuxK** lets dead features learn to reconstruct what the others leave over ([@gao2024scaling]; the ghost gradients
# that the survey names were an earlier form of this idea). The control is the same training without a remedy, from two seeds.

# %% label="dead"
runs = {
    "no remedy": {},
    "no remedy, other seed": {"seed": 1},
    "resampling": {"remedy": "resample"},
    "AuxK": {"remedy": "auxk"},
}
histories, ends = {name: [] for name in runs}, {}
for name, options in runs.items():
    options |= {"kind": "topk", "k": 4, "steps": 150, "lr": 1e-2, "dead_after": 25}
    ends[name] = report(saes.train(train_x, 512, history=histories[name], **options), test_x)
show(
    curves(
        [point["step"] for point in histories["AuxK"]],
        {name: [point["dead"] for point in history] for name, history in histories.items()},
        xlabel="training step",
        ylabel="share of features silent for 25 steps",
    ),
    alt="Four lines of the share of silent features over training. Both runs without a remedy rise "
    "together and stay high. Resampling falls at every round and rises in between; AuxK rises with "
    "them at first, then falls and stays well below.",
    reading="Without a remedy features stay dead; both remedies bring many back (resampling stops before the "
    "end). Fewer dead features is not yet a better fit: compare the FVU below.",
)
for name, end in ends.items():
    print(f"{name:22} dead on test states {end['dead']:.2f}   FVU {end['fvu']:.3f}")
spread = abs(ends["no remedy"]["dead"] - ends["no remedy, other seed"]["dead"])
assert all(ends["no remedy"]["dead"] - ends[name]["dead"] > 2 * spread for name in ("resampling", "AuxK"))

# %% [markdown]
# ## 5. The error term and the splice baseline
# An SAE in a model is a promise: a state is $\hat x$ plus an error $x - \hat x$. Replace the state by $\hat x$ (**splice** the SAE in) and the model
# gets worse, before anyone has touched a feature. So a change of feature $j$ must keep the error, or its effect is mixed up with that of the splice.

# %% [markdown] exercise="superposition.clamp_feature" difficulty=3 minutes=11
# ### Exercise: clamp a feature, keep the error
# Write `clamp_feature(x, a, W_dec, b_dec, j, value)`: the states `x` `[..., d]` with feature `j` set to `value` everywhere, all other features as they
# are in `a` `[..., m]`, and the error $x - \hat x$ added back, where $\hat x = a W_{dec} + b_{dec}$.

# %%
def clamp_feature(x, a, W_dec, b_dec, j, value):
    """x with feature j set to `value`; the other features and the SAE's error stay: [..., d]."""
    ### BEGIN SOLUTION
    error = x - (a @ W_dec + b_dec)
    changed = a.clone()
    changed[..., j] = value
    return changed @ W_dec + b_dec + error
    ### END SOLUTION

# %%
clamp_feature = check("superposition.clamp_feature", clamp_feature)

# %% [markdown]
# How much does the splice alone cost? **Loss recovered** is the share of the model's loss that survives it: 1 is perfect, 0 no better than putting
# the mean state in the place of $x$. (Many papers put zeros there. That destroys more, so that every SAE looks better.) The second row is a control,
# an SAE with random features of the same shape.

# %% label="splice"
some_texts = test_texts[::8]
random_sae = saes.SAE(model.d_model, 512, kind="topk", k=12, site=SITE, seed=1).eval()
with torch.no_grad():
    random_sae.b_dec.copy_(train_x.mean(0))
recovered = {}
for name, each in (("trained", live), ("random features", random_sae)):
    recovered[name] = saes.loss_recovered(model, each, some_texts, baseline="mean")
    print(f"{name:16} loss recovered {recovered[name]:.3f}   FVU {report(each, test_x)['fvu']:.3f}")
fires = (live.encode(saes.states(model, SITE, some_texts)) > 0).sum(0)
busy, quiet = int(fires.argmax()), int(fires.argmin())
assert fires[quiet] == 0


def clamp_in_model(sae, j, value):
    """The clamp as an edit of the model."""
    return mi.edit(sae.site, lambda x: clamp_feature(x, sae.encode(x), sae.W_dec, sae.b_dec, j, value))


changes = {
    "silent feature to 0": clamp_in_model(live, quiet, 0.0),
    "splice alone": live.splice(),
    "busiest feature to 0": clamp_in_model(live, busy, 0.0),
}
logits, moved = model.last_logits(some_texts), {}
for name, change in changes.items():
    with mi.intervene(model, change):
        moved[name] = (model.last_logits(some_texts) - logits).abs().mean().item()
    print(f"{name:24} mean change of the logits {moved[name]:.4f}")
assert moved["silent feature to 0"] < 1e-3 < moved["busiest feature to 0"] < moved["splice alone"]
assert recovered["trained"] > recovered["random features"] + 0.05

# %% [markdown]
# Three things to take along. Loss recovered is generous: even random features keep most of the loss, so a number such as 0.9 means little without
# this control. And clamping a feature to the value that it already has changes nothing, as it should, while the splice alone, with nothing clamped,
# moves every logit by about 0.5 on average, here much more than switching off the feature that fires most often. An experiment that clamps without the
# error term books both as the effect of the feature.
#
# ## 6. The scoreboard: what an SAE finds when the truth is known
# On a real model nobody knows the features. Here we plant them: 24 unit directions in 16 dimensions, each present in about 5 % of the states, with
# sizes from 0.5 to 1.5. One pair is a family: the **child** (feature 1) is present only when its **parent** (feature 0) is, as "capital" implies
# "city". We ask:
#
# - **recovery**: match features to planted directions and take the mean cosine (for all but the family)
# - **shrinkage**: how much too short reconstructions are, as a share
# - **absorption**: does the parent's feature fall silent when the child is there?
#
# The survey says that in absorption "broad" features suppress "specific" ones. The source that it cites found the reverse ([@chanin2024absorption]):
# one feature costs less than two, so the child's feature takes the parent's direction along and the *general* feature misses exactly those cases.
# Two conditional probabilities decide who is right.

# %% [markdown] exercise="superposition.absorption_rate" difficulty=3 minutes=12
# ### Exercise: absorption
# Write `absorption_rate(latent, parent_on, child_on)`. `latent` `[N]` holds the activations of the parent's feature, `parent_on` and `child_on` say (True or
# False, `[N]`) where the planted features are present. Return two numbers: P(silent | child present) and, as a control, P(silent | parent present
# without the child). Silent means exactly 0.

# %%
def absorption_rate(latent, parent_on, child_on):
    """(P(latent silent | child on), P(latent silent | parent on, child off))."""
    ### BEGIN SOLUTION
    silent = (latent == 0).float()
    alone = parent_on & ~child_on
    return silent[child_on].mean().item(), silent[alone].mean().item()
    ### END SOLUTION

# %%
absorption_rate = check("superposition.absorption_rate", absorption_rate)

# %% [markdown]
# Five kinds of SAE with 32 features each, from four seeds (each with its own planted directions). The two null rows: an SAE with random rows, never
# trained; and a TopK SAE trained on normal noise with the same mean and covariance as the data, which has no features to find.

# %% label="scoreboard"
KINDS = {
    "ReLU": {"kind": "relu", "sparsity": 0.3},
    "TopK": {"kind": "topk", "k": 2},
    "BatchTopK": {"kind": "batchtopk", "k": 2},
    "JumpReLU": {"kind": "jumprelu", "sparsity": 0.1},
    "Matryoshka": {"kind": "batchtopk", "k": 2, "prefixes": (4, 32)},
}
COLUMNS = {
    "recovery": "recovery",
    "fvu": "FVU",
    "l0": "L0",
    "dead": "dead",
    "shrinkage": "shrinkage",
    "parent cosine": "cosine of the parent's feature with the parent",
    "silent with child": "it is silent, child present",
    "silent alone": "it is silent, child absent",
    "child silent": "the child's feature is silent, child present",
}


def score(sae, truth, x, codes):
    """One row of the scoreboard."""
    matched, a = recovery(sae, truth.directions), sae.encode(x)
    parent, child = (codes[:, i] > 0 for i in (truth.parent, truth.child))
    similar = truth.directions[[truth.parent, truth.child]] @ torch.nn.functional.normalize(sae.W_dec).T
    cosine, latent_of = similar.max(-1)
    with_child, alone = absorption_rate(a[:, latent_of[0]], parent, child)
    family_out = [i for i in range(len(truth.directions)) if i not in (truth.parent, truth.child)]
    row = quality(x, sae(x), a) | {"shrinkage": sae.quality(x)["shrinkage"]}
    row |= {"recovery": matched.cosine[family_out].mean().item()}
    row |= {"parent cosine": cosine[0].item(), "silent with child": with_child, "silent alone": alone}
    return row | {"child silent": (a[child, latent_of[1]] == 0).float().mean().item()}


table, trained = {name: [] for name in (*KINDS, "null: random rows", "null: noise")}, {}
for seed in range(4):
    truth = planted_features(seed=seed)
    planted, _ = truth.sample(10_000, seed=10)
    x, codes = truth.sample(5_000, seed=11)
    for name, options in KINDS.items():
        trained[name, seed] = saes.train(planted, 32, steps=400, lr=6e-3, seed=seed, **options)
        table[name].append(score(trained[name, seed], truth, x, codes))
    untouched = saes.SAE(16, 32, kind="topk", k=2, seed=seed).eval()
    table["null: random rows"].append(score(untouched, truth, x, codes))
    if seed < 2:
        noise = torch.randn(planted.shape, generator=torch.Generator().manual_seed(seed))
        noise = noise @ torch.linalg.cholesky(planted.T.cov()).T + planted.mean(0)
        sae = saes.train(noise, 32, kind="topk", k=2, steps=400, lr=6e-3)
        table["null: noise"].append(score(sae, truth, x, codes))


def average(name, column):
    return mean(row[column] for row in table[name])


nulls = [row["recovery"] for name in table if name.startswith("null") for row in table[name]]
assert all(average(name, "recovery") > mean(nulls) + 4 * stdev(nulls) for name in KINDS)
assert average("ReLU", "shrinkage") > 0.1
assert all(abs(average(name, "shrinkage")) < 0.03 for name in KINDS if name != "ReLU")
caption = f"Mean ± s.d. over seeds. The planted features have L0 {(codes > 0).sum(-1).float().mean():.2f}."
cells = [[f"{average(n, c):.2f} ± {stdev(row[c] for row in table[n]):.2f}" for c in COLUMNS] for n in table]
Table(cells, list(table), list(COLUMNS.values()), caption=caption)

# %% [markdown]
# Read it by column. All five find most of the planted directions (recovery above 0.9), far above both nulls (0.5). Only ReLU shrinks, by about a
# sixth. FVU alone would not tell a TopK SAE with all the right directions (0.12) from one that fits a little better with a few wrong ones. Then the
# family: the next figure has a dot for each seed, the share of states in which the parent's feature is silent, with the child (filled) and
# without it (hollow), and the same for the child's feature (triangles).

# %% label="absorption"
figure = Figure(figsize=(7.2, 3.2), layout="constrained")
axes = figure.subplots()
dots = (
    ("silent with child", -0.2, {"marker": "o", "color": "#D55E00", "label": "parent's feature, with child"}),
    ("silent alone", 0, {"marker": "o", "color": "#D55E00", "mfc": "w", "label": "parent's feature, alone"}),
    ("child silent", 0.2, {"marker": "^", "color": "#0072B2", "label": "child's feature"}),
)
for column, shift, look in dots:
    points = [(i + shift, row[column]) for i, name in enumerate(KINDS) for row in table[name]]
    axes.plot(*zip(*points), ls="", **look)
axes.set(xticks=range(len(KINDS)), ylabel="share of states in which it is silent", ylim=(-0.05, 1.05))
axes.set_xticklabels(list(KINDS))
figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
show(
    figure,
    alt="Dots for five kinds of SAE. With the child present the parent's feature is often silent for "
    "ReLU, TopK and JumpReLU, sometimes for BatchTopK, never for Matryoshka. Without the child it is "
    "rarely silent. The child's feature is almost always active, but on one seed of Matryoshka it is not.",
    reading="Filled far above hollow is absorption: the general feature misses the specific cases.",
)
example = planted_features(seed=0)
x, codes = example.sample(5_000, seed=11)
who = absorption(trained["TopK", 0], x, codes, example.directions, example.parent, example.child)
print(f"TopK, seed 0: the parent's feature has cosine {who.parent_cosine:.2f} with the parent")
print(f"and is silent in {who.silent_with_child:.0%} of the cases of the child;")
print(f"the feature that fires instead has cosine {who.heir_cosine:.2f} with the parent")
plain = [row for name in ("ReLU", "TopK", "JumpReLU") for row in table[name]]
assert mean(row["silent with child"] - row["silent alone"] for row in plain) > 0.15
assert mean(row["silent with child"] for row in plain) > mean(row["child silent"] for row in plain) + 0.1
assert max(row["silent with child"] for row in table["Matryoshka"]) < 0.1 and who.heir_cosine > 0.3

# %% [markdown]
# The survey has the direction reversed: it is the general feature that falls silent, and the specific one that speaks for both. A reader who sees the
# parent's feature (its cosine with the truth is nearly perfect) would swear that it detects the parent; it misses most of one kind of case. No
# activation examples can show that, since they show only where it fires. Nor does it happen every time: some filled dots lie at 0, which is why one seed
# is not enough.
#
# Is sparsity the cause? Give TopK less and more room.

# %% label="sparsity"
sweep = {}
for k in (1, 3):
    rows = []
    for seed in range(2):
        truth = planted_features(seed=seed)
        x, codes = truth.sample(5_000, seed=11)
        planted, _ = truth.sample(10_000, seed=10)
        sae = saes.train(planted, 32, kind="topk", k=k, steps=400, lr=6e-3, seed=seed)
        rows.append(score(sae, truth, x, codes))
    sweep[k] = {column: mean(row[column] for row in rows) for column in COLUMNS}
    shown = ("fvu", "silent with child", "silent alone")
    print(f"TopK, k = {k}: ", {column: round(sweep[k][column], 2) for column in shown})
assert sweep[1]["silent with child"] > sweep[3]["silent with child"] and sweep[1]["fvu"] > sweep[3]["fvu"]

# %% [markdown]
# The less activity an SAE may spend, the more it absorbs; but at $k = 3$, twice what the planted features need, some is left. TopK gives every state
# the same number of places, so a state with parent, child and something else is short of one, and the parent's is the one to save. BatchTopK can
# take places from emptier states, and absorbs less.
#
# **Where it fails.** Absorption is the failure of the sparse kinds. Matryoshka training removes it here on every seed, and pays elsewhere: look at the
# cosine of its parent's feature, and at its triangles. Its first features must do all the work alone, so one of them mixes parent and child, and on
# a seed now and then no feature is left that stands for the child. Mixing what occurs together is called hedging ([@chanin2025hedging]).
#
# ## 7. Are features cleaner than neurons?
# Back to `lab`. For a unit (a neuron, a feature, a direction), take the 10 test documents in which it is largest and ask how many come from one domain:
# its **purity**. The controls matter more than the method here:
#
# - neurons of block 2, and random directions in the stream
# - the same SAE features with shuffled domain labels
# - features of an SAE trained in the same way on an **untrained** model, with random weights ([@heap2025random])

# %% label="purity"
torch.manual_seed(0)
untrained = mi.wrap(type(model.hf)(model.hf.config).eval(), model.tokenizer)  # the same with new weights
untrained_x = saes.states(untrained, SITE, test_texts, skip=1)
other = saes.train(saes.states(untrained, SITE, train_texts), 512, **LIVE)
random_directions = torch.randn(model.d_model, 512, generator=torch.Generator().manual_seed(0))
shuffled = domain[torch.randperm(len(domain), generator=torch.Generator().manual_seed(0))]
units = {
    "SAE features": purity(live.encode(test_x)),
    "SAE features, untrained model": purity(other.encode(untrained_x)),
    "neurons": purity(neurons),
    "random directions": purity((test_x - test_x.mean(0)) @ random_directions),
    "SAE features, shuffled labels": purity(live.encode(test_x), shuffled),
}
quantiles = torch.linspace(0, 1, 21)
show(
    curves(
        quantiles,
        {name: values.quantile(quantiles) for name, values in units.items()},
        xlabel="share of units that are less pure",
        ylabel="purity of the top 10 documents",
    ),
    alt="Five rising lines, the sorted purity of units. SAE features of the trained model are highest, "
    "then features of the untrained model and neurons, then random directions; shuffled labels are "
    "far below.",
    reading="Features are purer than neurons, but an SAE on a model with random weights does well too.",
)
print({name: round(values.mean().item(), 2) for name, values in units.items()})
fvu = report(live, test_x)["fvu"], report(other, untrained_x)["fvu"]
print(f"FVU on the trained model {fvu[0]:.3f}, on the untrained one {fvu[1]:.3f}")
assert units["SAE features"].mean() > units["neurons"].mean() + 0.05 > units["random directions"].mean()
assert units["SAE features"].mean() > units["SAE features, untrained model"].mean() + 0.05
assert units["SAE features, shuffled labels"].mean() < 0.3

# %% [markdown]
# SAE features are the purest units, and clearly purer than those of the untrained model. But the untrained model's features are about as pure as the neurons
# of the trained one, and its FVU need not be worse. Part of what an SAE shows is in the text, not in the model. So a gallery of clean features is
# no evidence of what the model computes; a comparison with an untrained model, and an intervention, are.
#
# ## 8. Reading a feature
# `lab` comes with SAEs that were trained longer, five kinds at this site. A feature that stands for something should fire there and nowhere else. So
# take every feature and every domain, and over all test tokens measure **precision** (the share of its firing that lies in the domain), **recall** (the
# share of the domain's tokens on which it fires), and their harmonic mean, F1. The feature for each domain is chosen on train documents. The control:
# as many random directions, each with a threshold that makes it fire as often as the feature with the same number.

# %% label="read"
pretrained = {name: world.sae(name, model) for name in shipped.names() if name.startswith(SITE)}
train_domain = torch.arange(len(train_docs)).repeat_interleave(
    torch.tensor([sum(len(model.tokens(text)) for text in texts) for texts in train_docs.values()])
)
token_domain = {"train": train_domain, "test": domain[document]}
token_states = {"train": train_x, "test": test_x}


def precision_recall(on, of):
    """Precision and recall [units, domains]. on [tokens, units]: who fires where; of [tokens]: the domain."""
    in_domain = torch.nn.functional.one_hot(of).float()
    both = on.float().T @ in_domain
    return both / on.sum(0).clamp_min(1)[:, None], both / in_domain.sum(0)


def f1(precision, recall):
    return 2 * precision * recall / (precision + recall).clamp_min(1e-9)


def best_for_domains(on):
    """For each domain the unit with the best F1 on train tokens, that F1, and its F1 on test tokens."""
    on_train, unit = f1(*precision_recall(on["train"], token_domain["train"])).max(0)
    on_test = f1(*precision_recall(on["test"], token_domain["test"]))
    return unit, on_train, on_test[unit, torch.arange(len(unit))]


random_directions = torch.randn(model.d_model, 512, generator=torch.Generator().manual_seed(1))
projected = {split: (x - train_x.mean(0)) @ random_directions for split, x in token_states.items()}
sorted_projections = projected["train"].sort(0, descending=True).values
good, by_chance = {}, {}
for name, each in pretrained.items():
    on = {split: each.encode(x) > 0 for split, x in token_states.items()}
    count = on["train"].sum(0).clamp_max(len(train_x) - 1)
    threshold = sorted_projections.gather(0, count[None])[0]
    good[name] = best_for_domains(on)
    by_chance[name] = best_for_domains({split: x > threshold for split, x in projected.items()})
    numbers = {key: round(value, 3) for key, value in report(each, test_x).items()}
    print(f"{name:14} mean F1 {good[name][2].mean():.2f}, random {by_chance[name][2].mean():.2f}   {numbers}")
assert all(good[name][2].mean() > by_chance[name][2].mean() + 0.05 for name in pretrained)

# %% [markdown]
# Every SAE has features for domains, far better than random directions. Here is the best one of the TopK SAE: where its activation lies, with an example
# from each of four domains; the words on which it fires most; and the words that it promotes (its direction times the unembedding, section 3.5 of the survey).

# %% label="examples"
def describe(sae, feature):
    """Print where a feature is active, on which words, and what it promotes."""
    a = sae.encode(test_x)[:, feature]
    share = torch.stack([a[domain[document] == i].sum() for i in range(len(test_docs))]) / a.sum()
    for i in share.topk(4).indices.tolist():
        for example in top_examples(model, sae, list(test_docs.values())[i], feature, k=1):
            print(f"  {share[i]:4.0%} {list(test_docs)[i]:12} {example.context(before=6, after=1)}")
    words = [f"{use.token} {use.rate:.0%}" for use in by_token(model, sae, test_texts[::2], feature)[:7]]
    print("  fires on:", ", ".join(words))
    print("  promotes:", ", ".join(model.tokens(logit_effect(model, sae, feature).topk(8).indices.tolist())))


sae = pretrained["x3-topk"]
unit, on_train, _ = good["x3-topk"]
which = int(on_train.argmax())
feature, where = int(unit[which]), list(test_docs)[which]
fires = sae.encode(test_x) > 0
precision, recall = precision_recall(fires, domain[document])
numbers = f"precision {precision[feature, which]:.2f}, recall {recall[feature, which]:.2f}"
print(f"feature {feature} for '{where}': {numbers}")
describe(sae, feature)

# %% [markdown]
# What it promotes says little: three blocks still follow, and they read the feature before the unembedding does.
#
# All this is correlation. Does the model *use* such features? Attach the SAE, and `saeF17` is a site like `L3H5`; `mi.zero` on it does what your
# `clamp_feature` does. For the ten domains that have the best features, switch each of these features off (rows), and see how much the loss changes
# in every domain (columns). Other domains are an easy control, since the
# feature hardly fires there. So there is a stricter one: in each domain we also switch off five other features, drawn from the 20 that fire
# most often in it.

# %% label="use"
model.saes["sae"] = sae
tested = on_train.topk(10).indices.tolist()
names = [list(test_docs)[i] for i in tested]
texts = {name: test_docs[name][:8] for name in names}
plain = {name: document_loss(model, texts[name]).mean() for name in names}


def loss_change(edit, name):
    """Mean change of the loss on the documents of a domain, in nats per token."""
    with mi.intervene(model, edit):
        return (document_loss(model, texts[name]).mean() - plain[name]).item()


switched_off = {name: mi.zero(f"saeF{int(unit[i])}") for name, i in zip(names, tested)}
effects = torch.tensor([[loss_change(edit, name) for name in names] for edit in switched_off.values()])
null = []
for i, name in zip(tested, names):
    busy = [j for j in recall[:, i].topk(21).indices.tolist() if j != int(unit[i])]
    null.append([loss_change(mi.zero(f"saeF{j}"), name) for j in random.Random(0).sample(busy, 5)])
beats = effects.diag() > torch.tensor(null).amax(1)
show(
    heatmap(
        1000 * effects,
        rows=[f"{int(unit[i])}: {name}" for i, name in zip(tested, names)],
        columns=names,
        xlabel="domain in which the loss is measured",
        ylabel="feature switched off, and its domain",
        unit="change of the loss, nats per 1000 tokens",
        marked=torch.diag(beats).numpy(),
    ),
    alt="Heat map of ten features by ten domains. Only the diagonal differs from 0, in some domains clearly "
    "and in others hardly. Some cells of the diagonal are framed.",
    reading="A feature changes almost only its own domain. Framed: more than each of five others that "
    "fire there.",
)
one = names[int(effects.diag().argmax())]
by_hand = loss_change(clamp_in_model(sae, int(unit[tested[names.index(one)]]), 0.0), one)
print(f"{one}: feature off {effects.diag().max():+.4f}, by your clamp {by_hand:+.4f},", end=" ")
print(f"splice alone {loss_change(sae.splice(), one):+.4f}")
print(f"more than each of the five others: {int(beats.sum())} of 10 (by chance 1 or 2)")
others = effects[~torch.eye(10, dtype=torch.bool)].abs().mean()
assert abs(effects.diag().max() - by_hand) < 1e-3 and effects.diag().mean() > 10 * others

# %% [markdown]
# Off the diagonal almost nothing moves: a feature that fires only in its domain can hardly matter elsewhere. On the diagonal the picture is mixed. Some of the ten
# carry a good part of what the model knows there; but most are beaten by at least one of five other features that fire in the same documents and look less
# clean. A clean feature is not thereby an important one. (And look at the splice: with nothing switched off it can cost as much as the best feature. Without
# the error term you would have booked both.)
#
# **A trap.** Now look for a feature with a label in hand: which one tells harmful from harmless requests at the last token? **AUROC** is the chance
# that a random harmful request scores higher than a random harmless one; 0.5 is guessing. The feature is chosen on train prompts and judged on test prompts,
# and so are the controls: 512 random directions, and the difference of the two mean states, which uses the labels.

# %% label="trap"
harmful, states = {}, {}
for split in ("train", "test"):
    bad, fine = (world.task(f"refusal_{kind}", split=split, n=200) for kind in ("harmful", "harmless"))
    harmful[split] = torch.tensor([True] * len(bad) + [False] * len(fine))
    states[split] = mi.record(model, bad.prompts + fine.prompts, [f"{SITE}@-1"])[f"{SITE}@-1"]
difference = states["train"][harmful["train"]].mean(0) - states["train"][~harmful["train"]].mean(0)
detectors = {name: each.encode for name, each in pretrained.items()}
detectors["random directions"] = lambda x: x @ random_directions
detectors["mean difference"] = lambda x: (x @ difference)[:, None]
picked, detected = {}, {}
for name, detect in detectors.items():
    on_train = auroc(detect(states["train"]), harmful["train"])
    picked[name] = (on_train.max().item(), int(on_train.argmax()))
    detected[name] = auroc(detect(states["test"])[:, picked[name][1]], harmful["test"]).item()
    print(f"{name:18} AUROC of the best {detected[name]:.3f}")
NAME = max(pretrained, key=lambda name: picked[name][0])
print(f"feature {picked[NAME][1]} of {NAME}:")
describe(pretrained[NAME], picked[NAME][1])
assert detected["random directions"] > sorted(detected[name] for name in pretrained)[2]

# %% [markdown]
# By this measure one SAE has a nearly perfect detector of harm, and others, with about the same FVU, do clearly worse. But the best of 512 random
# directions is nearly perfect too: the two sets of prompts differ in many ways, and 128 dimensions leave much room. Then see where the detector lives: more in biographies than in requests, and the words that it
# promotes are professions. It separates these two sets, and stands for something else. So compare an AUROC with that of equally many random
# directions, and look at where a feature fires in *all* text. Where labels exist, the difference of means is simpler and better, as benchmarks have found
# too ([@wu2025axbench]).
#
# ## 9. SAEs of others, from a folder
# Two formats cover most published SAEs. SAELens writes a folder with `cfg.json` and `sae_weights.safetensors`; Gemma Scope ([@lieberum2024gemma]) writes
# `params.npz`. Nothing is downloaded here: the cell writes a tiny folder of each kind from our own weights, reads it back, and compares.

# %% label="formats" tags=["nbval-check-output"]
d, m = model.d_model, 16
W_enc, W_dec = torch.randn(d, m), torch.randn(m, d)
weights = {"W_enc": W_enc, "b_enc": torch.randn(m), "W_dec": W_dec, "b_dec": torch.randn(d)}
x = torch.randn(5, d)
with tempfile.TemporaryDirectory() as folder:
    config = {"architecture": "standard", "d_in": d, "d_sae": m, "hook_name": "blocks.3.hook_resid_pre"}
    (Path(folder) / "cfg.json").write_text(json.dumps(config))
    save_file(weights, Path(folder) / "sae_weights.safetensors")
    from_saelens = load_saelens(folder, model)
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    np.savez(Path(folder) / "params.npz", threshold=np.full(m, 2.0, "float32"), **arrays)
    from_gemma_scope = load_gemma_scope(folder, site="x3", model=model)
a, _ = encode_decode(x, *weights.values())
gap = (from_saelens.encode(x) - a).abs().max().item()
z = x @ W_enc + weights["b_enc"]  # Gemma Scope does not subtract b_dec
gap_scope = (from_gemma_scope.encode(x) - z * (z > 2.0)).abs().max().item()
print(f"SAELens: {from_saelens.kind} at {from_saelens.site}, same as your encode_decode: {gap < 1e-3}")
print(f"Gemma Scope: {from_gemma_scope.kind} at {from_gemma_scope.site}, same as by hand: {gap_scope < 1e-3}")
assert gap < 1e-3 and gap_scope < 1e-3

# %% [markdown]
# ## 10. What the survey says, and where it is loose
# - **Eq. 9** has no constraint on the lengths of features, so its penalty can be made as small as you like (section 3). It also fits ReLU only: TopK has no
#   penalty, JumpReLU counts active features.
# - **Absorption** is described in the wrong direction (section 6). Gated, TopK and BatchTopK SAEs are offered as remedies; they were made against
#   shrinkage, or to control sparsity ([@rajamanoharan2024improving]), and TopK absorbs most of our five on average (seeds differ widely). Matryoshka training was made against absorption.
# - **Rows or columns?** $f_j$ is row $j$ of $W_{dec}$ in section 2.5 and column $j$ in section 4.3 and Figure 12. With $W_{dec} \in
#   \mathbb{R}^{m \times d}$ only a row has length $d$; in an `nn.Linear` it is a column.
# - **The error term** $x - \hat x$ is never mentioned where features are clamped. Without it, every effect contains that of the splice.
# - "Typically 16 to 128 times" is a narrow view of the **expansion factor**: published work ranges from below 1 to a few hundred.
# - Of the suites named, Gemma Scope and Llama Scope can be downloaded; the SAEs behind "Golden Gate Claude" cannot.
#
# ## 11. Papers that use this
# - superposition in toy models: [@elhage2022toy]; SAEs on language models: [@bricken2023towards], [@cunningham2023sparse]
# - features of a large model, clamped to change its behaviour: [@templeton2024scaling]
# - circuits of features with error nodes: [@Markscircuts_iclr2025]
# - toxicity and refusal features: [@goyalBreakingBadTokens2025], [@yeo-etal-2025-understanding]; features of instructions: [@he2025saif]
# - clamping only when a detector fires, to unlearn: [@muhamed2025dsg]; features around reasoning words: [@galichin2025have]
#
# ## 12. The same on a real model
# Put a model and the local folder of an SAE in the SAELens format here. The cell prints the report of section 4, with the loss recovered, and the
# contexts of one feature. Ten sentences are enough to see that it works, not to believe a number.

# %% label="real"
REAL, FOLDER = None, None  # for example "gpt2" and a folder with cfg.json and sae_weights.safetensors
if REAL is None or FOLDER is None:
    print("skipped: REAL and FOLDER are not set. Everything above ran on the shipped model.")
else:
    real = mi.load(REAL)
    real_sae = load_saelens(FOLDER, real)
    texts = ["The bridge was closed because of the storm.", "She asked him to bring the keys."] * 5
    x = saes.states(real, real_sae.site, texts, skip=1)  # the first token's state is extreme in many models
    recovered = saes.loss_recovered(real, real_sae, texts, baseline="mean", skip=1)
    print(report(real_sae, x), "loss recovered", recovered)
    for example in top_examples(real, real_sae, texts, int(real_sae.encode(x).sum(0).argmax()), k=3):
        print(f"{example.value:.1f}  {example.context()}")

# %% [markdown]
# ## 13. Four questions

# %% label="quiz"
quiz([
    Question(
        "Two features of equal importance share one dimension as an antipodal pair. What is needed for that to be the best layout?",
        [
            ("They must rarely be present at the same time.", "The pair fails only when both are present, at a rate of p squared. Dropping one costs in proportion to p. So the pair wins when p is small.", True),
            ("They must be similar in meaning.", "The toy features are independent. What counts is how often both are present, not what they mean."),
            ("The model must be linear.", "Without the ReLU nothing cleans up the wrong sign, and the linear control stored hardly more features than it has dimensions."),
        ],
    ),
    Question(
        "An SAE's feature has cosine 0.99 with the planted parent direction, and all its top examples contain the parent. Does it detect the parent?",
        [
            ("Yes: direction and examples agree.", "Both look at where it fires. Absorption is about where it is silent although the parent is there."),
            ("Not shown: it may be silent whenever a certain child is present.", "That is what TopK did: a nearly perfect direction that misses most cases of the child, because another feature carries both.", True),
            ("No: a cosine below 1 means that it detects something else.", "0.99 is close. The trouble is not the direction but when the encoder lets it fire."),
        ],
    ),
    Question(
        "You clamp a feature to 0 by replacing the state with the changed reconstruction, and refusals drop by 30 points. What do you conclude?",
        [
            ("The feature causes refusal.", "Perhaps, but the error term is gone too. The splice alone, with nothing clamped, may cost as much."),
            ("Nothing yet: measure the splice with nothing clamped, or keep the error term.", "Then the difference belongs to the feature. And compare with other active features, since any change may cost something.", True),
            ("The SAE is bad.", "Perhaps. FVU and loss recovered say how bad; but even a good one has an error that must be kept."),
        ],
    ),
    Question(
        "The best of 512 features separates two sets of prompts with an AUROC of 0.97. Which control comes first?",
        [
            ("More prompts, for a narrower interval.", "Good, but the interval is not the problem: the winner was chosen from 512 candidates."),
            ("The best of 512 random directions, chosen and judged in the same way.", "If it reaches 0.97 too, the two sets are simply easy to separate, and the feature has shown nothing.", True),
            ("The top examples of the feature.", "They show where it is large. Features of a model with random weights have convincing top examples too, as the purity plot shows."),
        ],
    ),
])
