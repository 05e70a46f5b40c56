# %% [markdown]
# # 05 Magnitude analysis
# The objects of chapters 01 to 04 are thousands. Which of them matter for a behaviour? The cheapest answer looks at sizes: what is large,
# or often active, or different where the behaviour is, gets a high score. One forward pass, no gradient, no training. Survey
# ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 3.1, Eq. 10 and 11.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - score any object by its size, and say which sizes can be compared with each other
# - contrast two kinds of prompts and put the contrast against shuffled labels
# - find language neurons by LAPE, and test them by ablation beside random sets of equal size in the same layers
# - tell a score of where a head looks from a score of what it does (Ships)
# - rank layers by what they change, and look for outliers, massive activations and super weights
# - say on known answers where magnitude finds the right parts, and where it must fail
#
# **The claim.** An object is important when its size, a function of its activations or weights alone, is large (survey, section 3.1). What
# we will find: size shows *presence*. It is a good first screen, it ranks heads weakly like their exact effect, and it is blind to
# cancellation, to dormancy, and to whether anybody reads what is written.

# %% label="setup"
import itertools
import random
from dataclasses import replace

import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import document_loss, null_band
from mi_course.locate import attention_mass as am
from mi_course.locate import causal, contrast, magnitude, outliers
from mi_course.locate import layer_distance as layers
from mi_course.models import Site
from mi_course.objects import Scores
from mi_course.teach import Question, bars, check, curves, heatmap, quiz, show
from mi_course.world import compiled, exhaustive, generate, installed_tasks, lexicon, saes

torch.manual_seed(0)
torch.set_grad_enabled(False)  # nothing is trained in this chapter
model, gated = mi.load(), mi.load("lab-llama")
L, H, M = model.n_layers, model.n_heads, model.d_ffn
heads, neurons = [f"L{l}H{h}" for l in range(L) for h in range(H)], magnitude.all_neurons(model)
texts = [text for documents in world.documents("test", n=3).values() for text in documents]
print(f"{L} layers, {len(heads)} heads, {len(neurons)} neurons, {len(texts)} documents of all domains")

# %% [markdown]
# ## 1. The size of an object
# The survey's Eq. 10 turns an object $o_j$ into a number, for example
#
# $$s_j = \lVert o_j \rVert_2 \qquad\text{or}\qquad s_j = \max_k |(o_j)_k|$$
#
# and Eq. 11 keeps the objects with $s_j \ge \tau$, or the top k. The object has a value at every token of every prompt, so a mean over
# tokens belongs to it. Prompts of a batch are padded to one length, and what a model computes at padded places is noise.

# %% [markdown] exercise="magnitude.mean_norm" difficulty=1 minutes=5
# ### Exercise: mean size over real tokens
# Write `mean_norm(x, mask)`: states `[B, T, d]` and a bool mask `[B, T]`, True at real tokens. Return the mean of $\lVert x \rVert_2$ over all real
# tokens (each token counts once).


# %%
def mean_norm(x, mask):
    """Mean over real tokens of the Euclidean norm: x [B, T, d], mask bool [B, T] -> one number (a tensor)."""
    ### BEGIN SOLUTION
    return x.norm(dim=-1)[mask].mean()
    ### END SOLUTION


# %%
mean_norm = check("magnitude.mean_norm", mean_norm)

# %% [markdown]
# First use: the residual stream by depth. `x0` is the embedding, `x6` the state before the final norm. In the figure each curve is one
# model. Below it stands the mean size of what heads write, by layer.

# %% label="depth"
cache = mi.record(model, texts, [f"x{l}" for l in range(L + 1)])
mask = cache.batch.mask.bool()
depth = {"lab": [mean_norm(cache[f"x{l}"], mask).item() for l in range(L + 1)]}
package = magnitude.activation_norms(model, texts, [f"x{l}" for l in range(L + 1)])
assert torch.allclose(torch.tensor(depth["lab"]), torch.tensor(package.values).float(), rtol=1e-3)
depth["lab-llama"] = magnitude.activation_norms(gated, texts, [f"x{l}" for l in range(L + 1)]).values
figure = curves(
    range(L + 1), depth, xlabel="state x^l", ylabel="mean size", title="The residual stream grows"
)
figure.axes[0].set_yscale("log")
show(
    figure,
    alt="Mean norm of the residual stream against depth on a log scale, for lab and lab-llama. Both "
    "jump by more "
    "than ten times in block 0 and go on growing to the last state.",
    reading="Upwards: larger states. A late object is large because everything late is large.",
)
sizes = magnitude.activation_norms(model, texts, heads)
by_layer = torch.tensor(sizes.values).view(L, H).mean(1)
print("lab, x0 to x6:              ", "  ".join(f"{size:.0f}" for size in depth["lab"]))
print("lab, mean size of a head's write:", "  ".join(f"{size:.1f}" for size in by_layer))
assert depth["lab"][6] > 2 * depth["lab"][1] > 20 * depth["lab"][0]

# %% [markdown]
# So one list of sizes over all layers compares what cannot be compared: the same write of length 5 is a lot for a state of length 40 and
# little for one of 116, since the next norm divides by that length. The usual remedy is to compare within layers.

# %% [markdown] exercise="magnitude.within_layers" difficulty=2 minutes=7
# ### Exercise: standardise within layers
# Write `within_layers(values, layers)`: sizes `[n]` and the layer of each, `[n]`, in any order. Return z-scores: minus the mean of its layer, over
# the standard deviation of its layer (dividing by n, `correction=0`).


# %%
def within_layers(values, layers):
    """(value - mean of its layer) / s.d. of its layer (over n): values [n], layers int [n] -> [n]."""
    ### BEGIN SOLUTION
    z = torch.empty_like(values)
    for layer in layers.unique():
        own = values[layers == layer]
        z[layers == layer] = (own - own.mean()) / own.std(correction=0)
    return z
    ### END SOLUTION


# %%
within_layers = check("magnitude.within_layers", within_layers)

# %% [markdown]
# Neurons, scored in four ways on the same documents: $|s_j|$; $|s_j|\,\lVert v_j\rVert$, the length of what is written; the second within
# layers; and from weights alone, $\lVert v_j\rVert$. Chapter 03 showed why the second is better than the first: $s_j$ can be scaled against
# $v_j$ without changing the model. Where are the top 1 % (31 neurons) of each, and how many do two of them share?

# %% label="four_sizes" tags=["nbval-check-output"]
layer_of = torch.tensor([Site.parse(site).layer for site in neurons])
raw = torch.tensor(magnitude.activation_norms(model, texts, neurons).values).float()
write = torch.tensor(magnitude.activation_norms(model, texts, neurons, "write").values).float()
rankings = {
    "|s|": raw,
    "|s| |v|": write,
    "|s| |v|, z in layer": within_layers(write, layer_of),
    "|v|, no data": torch.tensor(outliers.neuron_norms(model).values).float(),
}
top = {name: set(values.topk(31).indices.tolist()) for name, values in rankings.items()}
for name, found in top.items():
    counts = [sum(layer_of[j] == l for j in found).item() for l in range(L)]
    print(f"{name:20} by layer {counts}   shared with |s| |v|: {len(found & top['|s| |v|'])}")
assert len(top["|s|"] & top["|s| |v|"]) < 25 and len(top["|v|, no data"] & top["|s| |v|"]) < 15

# %% [markdown]
# Four defensible scores, four lists. The survey calls magnitude data-dependent and lists static weights with it; the last row depends on no
# data, and finds mainly the last layer. Which list is right? Sizes cannot say. We need cases with a known answer.
#
# ## 2. Two cases in which size must fail
# `compiled.cancelling()` and `compiled.lookup()` are small GPT-2 models with hand-set weights (chapters 01 and 03). In the first, head L0H0
# writes a large vector and L1H0 takes it out again; L0H1 does the work. In the second, one neuron per country writes its capital, and two
# decoys fire everywhere, or at every country, and are read by nobody. Size, beside the exact effect of setting the object to zero:

# %% label="counter_examples" tags=["nbval-check-output"]
cancel = compiled.cancelling()
small = cancel.wrap()
names = ["L0H0", "L0H1", "L1H0"]
size = magnitude.activation_norms(small, cancel.task.prompts, names, position=-1)
zero = causal.ablate_each(small, cancel.task, [f"{name}.z" for name in names])
print("cancelling    size   zero ablation")
for name in names:
    print(f"  {name}       {size[name]:5.2f}   {zero[f'{name}.z'] + 0.0:+.2f}")
both = causal.ablate_together(small, cancel.task, ["L0H0.z", "L1H0.z"]).abs().max().item()
print(f"  L0H0 and L1H0 together: {both:.2f}")

look = compiled.lookup()
table = look.wrap()
cells = [f"L0N{j}" for j in range(8)]
true_neurons = [site for site in look.answer if site in cells]
everywhere = magnitude.activation_norms(table, look.task.prompts, cells)
on_peru = magnitude.activation_norms(table, look.others["peru"].prompts, cells)
print("lookup, all countries:", "  ".join(f"{everywhere[c]:.2f}" for c in cells))
print("lookup, Peru only:    ", "  ".join(f"{on_peru[c]:.2f}" for c in cells))
print(f"AUROC of size against the answer key: {everywhere.against(true_neurons)['auroc']:.2f}")
assert both < 1e-3 and zero["L0H1.z"] < -9 and set(size.top(2)) == {"L0H0", "L1H0"}
assert everywhere.against(true_neurons)["auroc"] == 0 and on_peru["L0N0"] == 0

# %% [markdown]
# - **Cancellation.** The two largest heads do nothing together; the head that does everything is third.
# - **Decoys.** The two loudest neurons (the last two) change nothing: AUROC 0, worse than guessing.
# - **Dormancy.** On prompts about Peru five of the six true neurons score exactly 0. A corpus without the behaviour cannot show it.
#
# ## 3. Contrast two corpora, and doubt it
# Better than size is a *difference* of sizes: $\mathbb{E}[s_j \mid \text{source}] - \mathbb{E}[s_j \mid \text{target}]$. It removes what is
# always large. Style neurons [@lai-etal-2024-style] and many SAE features are found in this way. But with 3,072 neurons some differ by luck.
# How many, is told by the same computation with **shuffled labels**.

# %% [markdown] exercise="magnitude.permutation_p" difficulty=3 minutes=11
# ### Exercise: p-values from shuffled labels
# Write `permutation_p(values, labels, shuffled)`: values `[n, m]` (prompts, sites), true labels `[n]` (bool), and k shuffled versions of them, `[k, n]`.
# For each site take the absolute difference of the two group means. Return $p = (1 + \#\{\text{shuffled} \ge \text{true}\}) / (1 + k)$, `[m]`.
# Take 1e-6 off the true value, so that ties count in spite of rounding.


# %%
def permutation_p(values, labels, shuffled):
    """Two-sided p-value of every site: values [n, m], labels bool [n], shuffled bool [k, n] -> [m]."""

    ### BEGIN SOLUTION
    def size(some):
        return (values[some].mean(0) - values[~some].mean(0)).abs()

    as_large = torch.stack([size(some) >= size(labels) - 1e-6 for some in shuffled])
    return (1 + as_large.sum(0)) / (1 + len(shuffled))
    ### END SOLUTION


# %%
permutation_p = check("magnitude.permutation_p", permutation_p)

# %% [markdown]
# Harmful against harmless requests, activations $s_j$ at the last token; then, as a control, eight labels that mean nothing (a coin toss for
# each prompt). The figure shows the distribution of the p-values of all 3,072 neurons; without any effect it is flat, 0.05 in each of the 20 bins. The dotted line is at p = 0.05.

# %% label="null"
harmful, harmless = (world.task(f"refusal_{kind}", split="train", n=80) for kind in ("harmful", "harmless"))
values, labels = contrast.contrast_values(
    model, harmful.prompts, harmless.prompts, neurons, norm="raw", position=-1
)
generator = torch.Generator().manual_seed(0)


def shuffles(labels, k):
    """k random orders of the labels, [k, n]."""
    return torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(k)])


coins = shuffles(labels, 8)
p_real = permutation_p(values, labels, shuffles(labels, 99))
p_coins = torch.stack([permutation_p(values, coin, shuffles(coin, 99)) for coin in coins])
edges = torch.linspace(0.005, 1.005, 21)
shares = {
    name: torch.histogram(p.flatten(), edges).hist / p.numel()
    for name, p in (("harmful or not", p_real), ("8 coin tosses", p_coins))
}
show(
    curves(
        (edges[1:] + edges[:-1]) / 2,
        shares,
        neutral=0.05,
        xlabel="p-value",
        ylabel="share of the neurons",
        title="p-values of 3,072 neurons",
    ),
    alt="Distribution of p-values. For the real label most neurons have a p-value near 0. For the coin "
    "tosses the "
    "curve is nearly flat at 0.05 per bin.",
    reading="A peak at the left: many neurons differ. Flat: nothing but luck. Dotted: 0.05.",
)
tests = [contrast.permutation_test(values, label, "effect", draws=99) for label in (labels, *coins)]
strict = [int((test.p_max <= 0.05).sum()) for test in tests]
found_by_luck = (p_coins <= 0.05).sum(1)
print(
    f"real label:   p <= .05 at {int((p_real <= 0.05).sum())} neurons; {strict[0]} beat the best of "
    f"shuffled labels"
)
print(f"coin tosses:  p <= .05 at {sorted(found_by_luck.tolist())}, mean {found_by_luck.float().mean():.0f}")
print(
    f"              {sum(count > 0 for count in strict[1:])} of 8 have a neuron that beats the best of "
    f"shuffled labels"
)
assert 40 < found_by_luck.float().mean() < 400 and strict[0] > 500

# %% [markdown]
# A coin toss "finds" dozens to hundreds of neurons, on average about one in twenty, as it must: a list of neurons with p < .05 is what one
# gets for nothing. (How many, varies a lot from toss to toss: neurons are correlated, so they are lucky together.) The strict test asks
# more: a neuron must beat the *largest* of all neurons under shuffled labels, in 95 % of the shufflings. It needs sites on one scale, so the
# package uses the standardised difference, the correlation with the label.
#
# And the real label? More than a thousand neurons pass the strict test. Can a thousand neurons all be needed for refusing? A contrast shows
# where the label can be *read*. To see whether it is used, remove neurons. For that we need the right control: as many neurons, drawn at
# random from the same layers.

# %% [markdown] exercise="magnitude.matched_set" difficulty=3 minutes=8
# ### Exercise: a matched random set
# Write `matched_set(chosen, generator)`: `chosen` is bool `[L, M]` (layers, neurons). Return a random set of the same form: as many True in every
# layer, none of them among the chosen. Draw with the `torch.Generator` that is given.


# %%
def matched_set(chosen, generator):
    """As many random other neurons in every layer: chosen bool [L, M] -> bool [L, M]."""
    ### BEGIN SOLUTION
    new = torch.zeros_like(chosen)
    for layer, row in enumerate(chosen):
        others = (~row).nonzero().flatten()
        pick = torch.randperm(len(others), generator=generator)[: int(row.sum())]
        new[layer, others[pick]] = True
    return new
    ### END SOLUTION


# %%
matched_set = check("magnitude.matched_set", matched_set)

# %% [markdown]
# We rank the neurons in four ways on training prompts, remove the top 30 of each ranking on *test* prompts, and beside each 8 matched sets.
# One ranking is the AUROC of each neuron as a detector, the criterion of AurA [@suauWhisperingExpertsNeural2024]. The last row takes 30
# neurons from the middle of the "significant" list. F is the logit difference between refusing and complying.


# %% label="screen" tags=["nbval-check-output"]
def as_mask(sites):
    """Names of neurons as bool [L, M]."""
    mask = torch.zeros(L, M, dtype=torch.bool)
    for site in map(Site.parse, sites):
        mask[site.layer, site.index] = True
    return mask


def without(chosen):
    """Context: these neurons are zero at all tokens."""
    used = [l for l in range(L) if chosen[l].any()]
    return mi.intervene(model, *[mi.scale(f"neurons{l}", (~chosen[l]).float()) for l in used])


refuse = world.task("refusal_harmful", split="test", n=48)
refusing = refuse.measure(model).mean()


def change(chosen):
    """Mean F(ablated) - F(base) on the test prompts."""
    with without(chosen):
        return (refuse.measure(model).mean() - refusing).item()


effect = tests[0].observed
screens = {
    "size, |s| |v|": torch.tensor(
        magnitude.activation_norms(model, harmful.prompts, neurons, "write", position=-1).values
    ),
    "difference of means": contrast.statistic_of(values, labels).abs(),
    "standardised": effect.abs(),
    "AUROC as a detector": contrast.statistic_of(values, labels, "auroc").abs(),
}
significant = (tests[0].p_max <= 0.05).nonzero().flatten()
middle = significant[effect[significant].abs().argsort()][len(significant) // 2 :][:30]
chosen = {name: as_mask([neurons[j] for j in score.topk(30).indices]) for name, score in screens.items()}
chosen["significant, mid-list"] = as_mask([neurons[j] for j in middle])
outcome = {}
for name, own in chosen.items():
    null = null_band([change(matched_set(own, generator)) for _ in range(8)])
    outcome[name] = change(own), null
    print(
        f"{name:22} {outcome[name][0]:+.2f}   matched {null.mean:+.2f}, band {null.low:+.2f} to "
        f"{null.high:+.2f}"
    )
assert outcome["difference of means"][0] < outcome["difference of means"][1].low - 1
assert abs(outcome["significant, mid-list"][0]) < 0.3 * abs(outcome["difference of means"][0])

# %% [markdown]
# The largest neurons are not the ones that refusing needs. The contrasts find some, far outside the band, and the plain difference more than
# the standardised one: a large difference moves the output, a reliable small one need not. The neurons from the middle of the list are every bit as significant, and
# removing 30 of them does next to nothing. **Significance is a statement about reading, not about need.**
#
# ## 4. Language neurons, and features near words
# The best known frequency score is LAPE [@tang-etal-2024-language]: how often is a neuron on in each language, and how uneven is that?
#
# $$p_k = P(s_j > 0 \mid \text{language } k), \qquad q_k = p_k / \textstyle\sum_i p_i, \qquad \mathrm{LAPE}_j = -\sum_k q_k \log q_k$$
#
# An entropy: 0 when the neuron is on in one language alone, $\log K$ when it does not care. (In a gated FFN the released code counts
# gate > 0; chapter 03 showed that this is another ranking.)

# %% [markdown] exercise="magnitude.lape" difficulty=3 minutes=9
# ### Exercise: LAPE
# Write `lape(on, tokens)`: `on` `[K, m]` counts how often each neuron was on in each language, `tokens` `[K]` the tokens of each. Return the entropy
# `[m]` in nats. A neuron that is never on has no preference: $\log K$.


# %%
def lape(on, tokens):
    """Entropy over languages of how often a neuron is on, in nats: on [K, m], tokens [K] -> [m]."""
    ### BEGIN SOLUTION
    p = on / tokens[:, None]
    total = p.sum(0)
    q = torch.where(total > 0, p / total.clamp_min(1e-12), 1 / len(p))
    return -torch.xlogy(q, q).sum(0)
    ### END SOLUTION


# %%
lape = check("magnitude.lape", lape)

# %% [markdown]
# A low entropy is not enough: a neuron that fired once in its life has entropy 0. The paper keeps neurons that in some language are on
# more often than 95 % of all (neuron, language) pairs, and of these the lowest entropies. That bar was chosen for large models; we look at
# two bars, on validation documents. Each number is the rise of the loss (nats per token) of the neurons' own language when they are removed.


# %% label="bar" tags=["nbval-check-output"]
def by_language(split, n, seed=0):
    """Documents of each language."""
    the_world = generate.World(0)
    draw = generate.Draw(the_world, split, seed)
    found = {language: [] for language in lexicon.LANGUAGES}
    for domain in itertools.cycle(("language", "request")):
        item = generate.sample(the_world, draw, domain)
        if len(found[item.labels["language"]]) < n:
            found[item.labels["language"]].append(item.text)
        if all(len(documents) == n for documents in found.values()):
            return found


train_docs, tune_docs, test_docs = (
    by_language("train", 100),
    by_language("validation", 30),
    by_language("test", 30),
)
on, tokens = [], []
for documents in train_docs.values():
    read = mi.record(model, documents, [f"neurons{l}" for l in range(L)])
    real = read.batch.mask.bool()
    on.append(torch.cat([(read[f"neurons{l}"][real] > 0).sum(0) for l in range(L)]).float())
    tokens.append(real.sum().float())
found = magnitude.lape(model, train_docs)
assert torch.allclose(lape(torch.stack(on), torch.stack(tokens)), found.entropy.flatten(), atol=1e-4)


def losses(documents):
    """Mean loss of every language."""
    return torch.tensor([document_loss(model, docs).mean().item() for docs in documents.values()])


def rise(documents, chosen, base):
    """Rise of the loss of every language when the neurons are removed, [languages]."""
    with without(chosen):
        return losses(documents) - base


languages, base_loss = list(train_docs), losses(tune_docs)
for bar in (0.95, 0.8):
    selected = found.select(top_rate=0.05, bar=bar)
    for i, (language, sites) in enumerate(selected.items()):
        own = as_mask(sites)
        own_rise = rise(tune_docs, own, base_loss)[i].item()
        print(
            f"bar {bar:.2f}  {language}: {len(sites):3} neurons, by layer {own.sum(1).tolist()}"
            f"   own loss {own_rise:+.2f}"
        )
assert own_rise > 0.2

# %% [markdown]
# With the published bar nearly all selected neurons sit in layer 0, and removing them does nothing. With the lower bar they spread over all
# layers, and removing them hurts. Nothing in the score told us; the ablation did. We go on with the lower bar, on test documents. The
# heatmap: remove the neurons of one language (row), and see what each language loses (column). The null: matched sets, for each row.

# %% label="languages"
base_loss, sets = losses(test_docs), [as_mask(selected[language]) for language in languages]
grid = torch.stack([rise(test_docs, own, base_loss) for own in sets])
luck = torch.stack(
    [torch.stack([rise(test_docs, matched_set(own, generator), base_loss) for _ in range(4)]) for own in sets]
)  # [3 rows, 4 draws, 3 languages]
outside = (grid - luck.mean(1)).abs() > 2 * luck.std(1)
show(
    heatmap(
        grid,
        rows=[f"without {l}" for l in languages],
        columns=languages,
        title="Loss without language neurons",
        unit="nats per token",
        marked=outside & (grid > 0.05),
    ),
    alt="Matrix of three by three. The diagonal rises: the loss of the language whose neurons are "
    "removed; largest for "
    "German, then French, small for English. Off the diagonal nearly 0.",
    reading="Each row removes one language's neurons. Starred: above 0.05 and outside the band of "
    "matched sets.",
)  # fmt: skip
for i, language in enumerate(languages):
    others = torch.cat([grid[i, :i], grid[i, i + 1 :]]).abs().max()
    print(
        f"{language}: own {grid[i, i]:+.2f}   others at most {others:.2f}   matched sets on own "
        f"{luck[i, :, i].mean():+.2f}"
    )
    assert grid[i, i] > 2 * others or language == "en"
assert grid[1, 1] > 0.1 and grid[2, 2] > 0.1 and luck.mean(1).abs().max() < 0.05

# %% [markdown]
# The published finding holds in `lab`: two or three percent of the neurons, found by frequency alone, carry a language and leave the others
# alone, and as in the paper most of them sit in the bottom and top layers. It holds least for English, the most frequent language here, and
# the paper's bar had to be replaced. Whether such neurons are good handles for *changing* the language is another question, taken up in
# chapter 19.
#
# A relative of LAPE, for SAE features (chapter 04) and single words in place of languages, is **ReasonScore** [@galichin2025have]. With $\mu^+$
# the mean activation at tokens near one of the words, $\mu^-$ elsewhere, and $H_i$ the entropy over the words, divided by its maximum:
#
# $$\frac{\mu^+_i}{\sum_k \mu^+_k}\; H_i^{\,\alpha} \;-\; \frac{\mu^-_i}{\sum_k \mu^-_k}$$
#
# Here the entropy is wanted *high*: a feature of one word only would be a word feature. The words are those of the chains of steps in this
# world; the paper took words such as "perhaps" and "however". The 15 best features are removed, beside sets of 15
# random ones (of those that fire at more than 1 % of the tokens).

# %% label="reason_score" tags=["nbval-check-output"]
model.saes["sae"] = saes.sae("x3-topk", model)
features = [f"saeF{i}" for i in range(len(model.saes["sae"].W_dec))]
read_docs = [text for documents in world.documents("train", n=8).values() for text in documents]
by_words = contrast.reason_score(model, read_docs, features, ["wait", "=", "steps"])
often = magnitude.firing_frequency(model, read_docs, features)
live = [feature for feature in features if often[feature] > 0.01]
tests_of = {"chains": world.documents("test", n=12)["chain"], "everything else": texts[::2]}
before, dice = losses(tests_of), random.Random(0)


def without_features(names):
    """Rise of the loss on chains and on everything else."""
    keep = torch.tensor([name not in names for name in features]).float()
    with mi.intervene(model, mi.scale("saeF*", keep)):
        return losses(tests_of) - before


best = without_features(by_words.top(15, by="positive"))
others = torch.stack([without_features(dice.sample(live, 15)) for _ in range(5)])
for i, of in enumerate(tests_of):
    print(
        f"{of:15} 15 best {best[i]:+.2f}   random sets {others[:, i].min():+.2f} to {others[:, i].max():+.2f}"
    )
assert best[0] > 2 * others[:, 0].max() and best[0] > 2 * best[1]

# %% [markdown]
# The chosen features carry something that chains need and other text needs little. Again the ablation says so, not the score. (With the best
# five alone the outcome changes with the documents that were scored: a short list is a noisy list.)
#
# ## 5. Attention: where a head looks, and what it does
# For heads, the usual magnitude is the share of attention on chosen tokens. Chapter 02 found induction heads by **prefix matching**
# [@olsson2022incontextlearninginductionheads]. Here we treat it as a localizer for copying and compare with the exact effect of removing
# each head.

# %% label="prefix" tags=["nbval-check-output"]
words = list(dict.fromkeys(word for row in lexicon.NOUNS.values() for word in row))
repeated = am.repeated_sequences(model, words, length=12, n=30)
copying = world.task("copying", split="test", n=25)
exact = causal.ablate_each(model, copying, [f"{head}.z" for head in heads])
exact = Scores(heads, exact.values, exact.method, exact.sign)
matching = am.prefix_matching(model, repeated)
print("head    prefix matching   zero ablation (logits)")
for head in dict.fromkeys([*matching.top(4), *exact.top(4, by="negative")]):
    print(f"{head}      {matching[head]:.2f}              {exact[head]:+.1f}")
print(f"rank correlation over all heads: {matching.spearman(exact):.2f}")
assert matching.top(1) == exact.top(1, by="negative")

# %% [markdown]
# The best induction head is the most needed head, by far. Below it the two lists part. L2H3 is the second most needed and scores 0: it does
# another part of the job, looking at the token before (chapter 02). L3H0 is fourth by matching and can go. A pattern score finds what it was
# designed to look for.
#
# **Ships** is filed under magnitude in section 3.1, as attention on refusal tokens. The paper [@zhou2025on] does something else: it removes
# a head and measures how much the output distribution changes.

# %% [markdown] exercise="magnitude.ships" difficulty=2 minutes=7
# ### Exercise: Ships
# Write `ships(base, ablated)`: logits at the answer position, `[n, V]` each, of the unchanged model and of the model without a head. Return the mean
# over prompts of $\mathrm{KL}(\text{base} \,\|\, \text{ablated}) = \sum_v p_v (\log p_v - \log q_v)$, with $p$ of the unchanged model.


# %%
def ships(base, ablated):
    """Mean KL(base || ablated) in nats: logits [n, V] each -> one number (a tensor)."""
    ### BEGIN SOLUTION
    p, q = base.log_softmax(-1), ablated.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()
    ### END SOLUTION


# %%
ships = check("magnitude.ships", ships)

# %% [markdown]
# Both scores for refusing harmful requests: how much each head looks from the last token at the words of the request, and Ships.

# %% label="ships_or_mass"
base = model.last_logits(refuse.prompts)
divergence = []
for head in heads:
    with mi.intervene(model, mi.zero(head)):
        divergence.append(ships(base, model.last_logits(refuse.prompts)).item())
divergence = Scores(heads, divergence, "Ships", "ablation")
spans = [(2, model.tokens(prompt).index("<end>")) for prompt in refuse.prompts]
mass = am.span_mass(model, refuse.prompts, spans)
grids = torch.tensor(mass.values).view(L, H), torch.tensor(divergence.values).view(L, H)
show(
    heatmap(
        torch.cat([grids[0], torch.full((L, 1), torch.nan), grids[1]], dim=1),
        columns=[*(f"H{h}" for h in range(H)), "", *(f"H{h}" for h in range(H))],
        ylabel="layer",
        title="Attention to the request (left), Ships (right)",
    ),
    alt="Two grids of 6 layers by 4 heads. Left, attention mass: high for several heads of all layers. "
    "Right, Ships: near 0 "
    "for all heads but one in the last layer.",
    reading="Left: where heads look. Right: which head's removal changes the answer. Few cells agree.",
)
print(
    "most attention:",
    ", ".join(f"{head} {mass[head]:.2f} (Ships {divergence[head]:.3f})" for head in mass.top(3)),
)
print(
    "largest Ships: ",
    ", ".join(f"{head} {divergence[head]:.3f} (attention {mass[head]:.2f})" for head in divergence.top(3)),
)
print(f"rank correlation {mass.spearman(divergence):.2f}")
package = causal.ships(model, refuse, ["L5H2.z"])
assert abs(package["L5H2.z"] - divergence["L5H2"]) < 1e-3 and mass.top(1) != divergence.top(1)

# %% [markdown]
# The heads that look most at the request can go without a trace; one head of the last layer matters, and it is not among the three that look
# most. Ships is a causal score, of the next chapter, and attention mass is the magnitude score that is easily confused with it. (The rank
# correlation comes from an order among Ships of 0.003 and less. All Ships here are small: no single head is needed for refusing in `lab`. Backups are the topic of chapter 06.)
#
# ## 6. Layers, and what sticks out
# How much does a block change at all? **Block influence** [@men-etal-2025-shortgpt] is $1 - \mathbb{E}[\cos(x^l, x^{l+1})]$ over all tokens;
# ShortGPT removes the blocks with the smallest.

# %% [markdown] exercise="magnitude.block_influence" difficulty=1 minutes=5
# ### Exercise: block influence
# Write `block_influence(x, y, mask)`: states before and after a block, `[B, T, d]`, and the mask of real tokens `[B, T]`. Return 1 minus the mean
# cosine.


# %%
def block_influence(x, y, mask):
    """1 - mean over real tokens of cos(x, y): [B, T, d] twice, bool [B, T] -> one number (a tensor)."""
    ### BEGIN SOLUTION
    return 1 - torch.cosine_similarity(x, y, dim=-1)[mask].mean()
    ### END SOLUTION


# %%
block_influence = check("magnitude.block_influence", block_influence)

# %% [markdown]
# Does it predict what skipping a block costs? `layers.without_blocks(l)` sets both writes of block l to zero, so that $x^{l+1} = x^l$.

# %% label="blocks" tags=["nbval-check-output"]
influence, cost = {}, {}
for which in (model, gated):
    states = mi.record(which, texts, [f"x{l}" for l in range(L + 1)])
    real = states.batch.mask.bool()
    influence[which.name] = [
        block_influence(states[f"x{l}"], states[f"x{l + 1}"], real).item() for l in range(L)
    ]
    before = document_loss(which, texts).mean().item()
    cost[which.name] = []
    for l in range(L):
        with mi.intervene(which, *layers.without_blocks(l)):
            cost[which.name].append(document_loss(which, texts).mean().item() - before)
    print(which.name)
    print("  influence:", "  ".join(f"{x:.2f}" for x in influence[which.name]))
    print("  loss more:", "  ".join(f"{x:.2f}" for x in cost[which.name]))
    sites = [f"x{l}" for l in range(L)]
    agree = Scores(sites, influence[which.name], "BI", "magnitude").spearman(
        Scores(sites, cost[which.name], "", "ablation")
    )
    print(f"  rank correlation {agree:.2f}")
assert all(max(range(L), key=x.__getitem__) == 0 for x in (*influence.values(), *cost.values()))

# %% [markdown]
# In both models block 0 changes and matters most by far, and the last block comes second. In between it is a guess: in `lab-llama` the block of
# smallest influence, 2, is the cheapest to skip; in `lab` the same block costs about three times as much as block 1. With six blocks a rank
# correlation is a weak statement.
#
# Large models also have **outliers**, found by size alone: coordinates of the stream that are large at most tokens [@dettmers2022gpt3],
# **massive activations**, single numbers above 100 and 1,000 times the median [@sun2024massive], and **super weights**, one number of
# $W_{out}$ behind a spike in the output of an FFN [@yu2024super]. Do ours?

# %% label="outliers" tags=["nbval-check-output"]
some = texts[::2]
for which in (model, gated):
    massive = outliers.massive_activations(which, some)
    ratio = outliers.outlier_dimensions(which, some, skip=1)
    best = outliers.super_weights(which, some)[0]
    before = document_loss(which, some).mean().item()
    with outliers.zeroed_weight(which, best.layer, best.neuron, best.dimension):
        harm = document_loss(which, some).mean().item() - before
    print(f"{which.name}: {len(massive)} massive activations")
    print(f"  largest coordinate on average {ratio.max():.1f} x the median one")
    print(f"  best super-weight candidate: makes {best.share:.0%} of its spike; loss without it {harm:+.4f}")
    assert not massive and harm < 0.05

# %% [markdown]
# They do not: nothing passes the published bars, and the best candidate for a super weight can go unnoticed. These are findings about
# billions of weights, and a small model without them is no counter-evidence. The tests of the package plant such outliers and find them.
#
# ## 7. The scoreboard
# **Installed behaviours.** Eight behaviours were put into known parts of `lab` (heads, neurons or an FFN), and what each really uses is known.
# A score is taken on the model with the behaviour, minus the same score on `lab`. AUROC is the chance that a used part ranks above another
# part (0.5 is guessing).


# %% label="installed"
def size_of(model, task, sites):
    return magnitude.activation_norms(model, task.prompts, sites)


def twins_apart(model, task, sites):
    return layers.twin_distance(model, task, sites)


def contrast_of(model, task, sites):
    return contrast.contrast(model, task.prompts, task.corrupted, sites, "effect", position=-1)


methods = {"size": size_of, "contrast with twins": contrast_of, "distance of twins": twins_apart}
behaviours = [name for name in installed_tasks.installed() if not name.endswith("direction")]
area, ranked = {name: [] for name in ["size, no base", *methods]}, {}
for behaviour in behaviours:
    task, sites = (
        installed_tasks.installed_task(behaviour, n=16),
        installed_tasks.candidates(behaviour, model, "result"),
    )
    ranked[behaviour] = sites
    for name, method in methods.items():
        with installed_tasks.behaving(behaviour, model):
            with_it = method(model, task, sites)
        rise = replace(with_it, values=with_it.values - method(model, task, sites).values)
        area[name].append(installed_tasks.against_key(rise, behaviour)["auroc"])
        if name == "size":
            area["size, no base"].append(installed_tasks.against_key(with_it, behaviour)["auroc"])
mean_area = {name: sum(found) / len(found) for name, found in area.items()}
lots, guesses = random.Random(0), []
for _ in range(20):
    guess = [
        installed_tasks.against_key(
            Scores(sites, [lots.random() for _ in sites], "guess", "magnitude"), name
        )["auroc"]
        for name, sites in ranked.items()
    ]
    guesses.append(sum(guess) / len(guess))
show(
    bars(mean_area, null=guesses, xlabel="AUROC, mean of 8 behaviours", title="Finding what was installed"),
    alt="Bars of mean AUROC of four magnitude scores. The change of size is near 1; size without the "
    "base model and the two "
    "contrasts with twins are lower.",
    reading="The band is random rankings. The change of size finds nearly every installed part.",
)
for name, found in area.items():
    print(f"{name:20}", "  ".join(f"{x:.2f}" for x in found), f"  mean {mean_area[name]:.2f}")
print("behaviours:", ", ".join(behaviours))
trained = installed_tasks.delta("german-a").facts["allowed"]
task = installed_tasks.installed_task("german-a", n=12)
among = installed_tasks.installed_effect(size_of, "german-a", task, trained, model)
inside = installed_tasks.against_key(among, "german-a")["auroc"]
print(f"german-a, change of size among the {len(trained)} trained neurons: AUROC {inside:.2f}")
band = null_band(guesses)
print(f"random rankings: {band.mean:.2f}, band {band.low:.2f} to {band.high:.2f}")
assert mean_area["size"] > 0.9 > mean_area["size, no base"] > band.high

# %% [markdown]
# Surprisingly good: compared with `lab`, the parts that were trained have become *loud*, and nothing cancels them. Not just because they were
# trained: of the 24 neurons that were trained for german-a only 4 are used, and the change of size tells these apart (see the line of german-a). Whoever
# has the model from before has this advantage in practice. But it is the easiest case for a magnitude. The next one is harder.
#
# **Behaviours that `lab` learned by itself.** Nobody knows where they are, but with 24 heads everything can be tried. The package stores what
# removing each head does to each behaviour (`exhaustive`, 64 prompts). How well does the size of a head at the last token rank them, on the
# same prompts (the distance of twins: on half of them)? The null band: random rankings. As a ceiling: mean ablation, the other common way of
# removing a head, against zero ablation.


# %% label="own_behaviours"
def normed(scores):
    """Standardised within layers with your function, shifted to be positive: large is important."""
    z = within_layers(
        torch.tensor(scores.values).float(), torch.tensor([Site.parse(s).layer for s in scores.sites])
    )
    return Scores(scores.sites, z - z.min(), "z in its layer", "magnitude")


own_tasks = exhaustive.MAIN
agreement = {name: [] for name in ("size", "z in its layer", "distance of twins", "mean ablation")}
recall, random_agreement = {"size": [], "z in its layer": []}, []
dice = random.Random(1)
for name in own_tasks:
    task = world.task(name, split="test", n=64)  # the prompts of the map
    truth, mean = (exhaustive.exhaustive(name, "heads", kind, model) for kind in ("zero", "mean"))
    truth, mean = (Scores(heads, found.values, found.method, found.sign) for found in (truth, mean))
    by_size = magnitude.activation_norms(model, task.prompts, heads, position=-1)
    twins = twins_apart(model, task.subset(slice(32)), heads)
    scores = {
        "size": by_size,
        "z in its layer": normed(by_size),
        "distance of twins": twins,
        "mean ablation": mean,
    }
    for method, found in scores.items():
        agreement[method].append(found.spearman(truth))
    for method in recall:
        recall[method].append(scores[method].against(truth.top(4))["recall_at_k"])
    rolls = [Scores(heads, [dice.random() for _ in heads], "random", "magnitude") for _ in range(20)]
    random_agreement.append([roll.spearman(truth) for roll in rolls])
null = null_band([sum(column) / len(own_tasks) for column in zip(*random_agreement)])
means = {name: sum(found) / len(own_tasks) for name, found in agreement.items()}
show(
    bars(
        means,
        null=null,
        xlabel="rank correlation with zero ablation",
        title="Size against need, 24 heads, 10 behaviours",
    ),
    alt="Bars of mean rank correlation with exact zero ablation. Size alone is low, size standardised "
    "within layers higher, distance of twins near zero, mean ablation highest.",
    reading="The band is random rankings. Standardising within layers helps; another ablation agrees "
    "far better.",
)
for name, found in agreement.items():
    print(f"{name:20}", "  ".join(f"{x:+.2f}" for x in found), f"  mean {means[name]:+.2f}")
print("behaviours:", ", ".join(own_tasks))
print(f"random rankings: {null.mean:+.2f}, band {null.low:+.2f} to {null.high:+.2f}")
print(
    "recall of the 4 most needed heads (chance 0.17):",
    ", ".join(f"{name} {sum(found) / len(found):.2f}" for name, found in recall.items()),
)
assert (
    means["mean ablation"] > means["z in its layer"] > means["size"] and means["z in its layer"] > null.high
)

# %% [markdown]
# Size alone ranks the heads a little better than dice do. Standardised within layers it is a moderate signal: the caution of section 1 pays
# off. About half of the four most needed heads are in the top four: enough to screen, not enough to conclude. The distance between twins at
# the last token does not find the heads that matter under ablation. (It asks another question: where do the twins differ?)
#
# **Where it fails, in one list.** Cancellation (section 2: the top two heads, no effect). Dormancy (section 2: the true neurons at 0 on the
# wrong corpus). No-label noise (section 3: hundreds of neurons may differ for a coin toss). Presence without use (section 3: significant
# neurons that can go; section 5: heads that look and are not needed).
#
# ## 8. What the survey says, and where it is loose
# - **Sizes across layers.** Eq. 10 and 11 rank all objects in one list, although the stream grows with depth; and $s_j$ without $\lVert v_j\rVert$
#   is no property of the model. Both matter in the numbers above.
# - **$\lVert W_{in}[j, :]\rVert$ as the score of neuron j.** In the survey's own shapes row j of $W_{in}$ belongs to input dimension j. The
#   key of neuron j is column j (chapter 03).
# - **"Training-free but data-dependent."** Static weights need no data; the text says so elsewhere.
# - **Ships** is a causal score, not attention on refusal tokens. It is also cited under two keys.
# - **Frequency.** $P(s_j > 0)$ is not what LAPE's code counts in gated models. And its bar is not part of the formula, although it decides
#   what is found.
# - What the text does say, and rightly: magnitude is presence, not necessity; it is a first screen.
#
# In the package: `locate.magnitude` (norms, frequency, LAPE, `within_layers`, `matched_sets`), `locate.contrast` (differences, their
# permutation test, ReasonScore), `locate.attention_mass`, `locate.outliers`, `locate.layer_distance`; Ships is in `locate.causal`.
#
# ## 9. Papers that use it
# - neurons by language and style: [@tang-etal-2024-language], [@lai-etal-2024-style]; damping neurons by their AUROC:
#   [@suauWhisperingExpertsNeural2024]
# - SAE features around reasoning words: [@galichin2025have]
# - attention as a score: induction [@olsson2022incontextlearninginductionheads], sinks [@xiao2023streamingllm]
# - outliers, for quantization: [@dettmers2022gpt3], [@xiao2023smoothquant], [@sun2024massive], [@yu2024super]; in queries and keys
#   [@jin2025massivevalues]
# - layers to skip: [@men-etal-2025-shortgpt]
#
# ## 10. The same on a real model
# The function prints how the stream grows, the influence of each block, and the outliers of a model on a few sentences. It runs on
# `lab-llama` as it stands. Put the name of a Hugging Face model or a local folder into `REAL` for that one, where massive activations are
# likely to appear.


# %% label="real"
def portrait(model, texts):
    """Print sizes by depth, block influence and outliers. Returns the number of massive activations."""
    depth = magnitude.activation_norms(model, texts, [f"x{l}" for l in range(model.n_layers + 1)], skip=1)
    influence = layers.block_influence(model, texts, skip=1)
    massive = outliers.massive_activations(model, texts)
    print(f"{model.config.model_type}, {model.n_layers} layers")
    print("  size of the stream:", "  ".join(f"{size:.0f}" for size in depth.values))
    print("  block influence:   ", "  ".join(f"{x:.2f}" for x in influence.values))
    print(
        "  least influence:   ",
        ", ".join(site.replace("x", "block ") for site in influence.top(3, by="negative")),
    )
    where = sorted({(m.position, m.dimension) for m in massive})[:6]
    print(f"  massive activations: {len(massive)}", f"at (position, coordinate) {where}" if where else "")
    return len(massive)


assert portrait(gated, texts[:40]) == 0
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    portrait(
        mi.load(REAL),
        [
            "The Eiffel Tower is a landmark in the city of Paris, and many people visit it in summer.",
            "When water freezes it expands, which is why ice floats on top of a lake in winter.",
            "She opened the door, looked at the empty room, and wondered who had taken the chairs.",
        ],
    )

# %% [markdown]
# ## 11. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "Two heads have the largest outputs of the model on a task. Removing both changes nothing. "
            "What is going on?",
            [
                (
                    "The measurement must be wrong.",
                    "In `compiled.cancelling()` it is exact, and the weights are known.",
                ),
                (
                    "What they write may cancel, or nobody may read it.",
                    "One may take out what the other puts in, or the direction is read by no later "
                    "part. Both leave sizes large.",
                    True,
                ),
                (
                    "They matter, but only together.",
                    "Together is what was removed. Heads that matter only together would show here.",
                ),
            ],
        ),
        Question(
            "A paper lists the 1 % of neurons with the largest activations, and 80 % of them are in the "
            "last two layers. It "
            "concludes that the behaviour sits there. What is missing?",
            [
                ("More prompts.", "More prompts make the same number more precise."),
                (
                    "The same list on other data, or sizes within layers.",
                    "Late layers are large on all data, since the stream grows. Only a difference to "
                    "that is about the behaviour.",
                    True,
                ),
                ("Another norm, such as the peak.", "It grows with depth as well."),
            ],
        ),
        Question(
            "Of 3,072 neurons, 160 differ between two groups of prompts with p < .05 each. What do you know?",
            [
                (
                    "160 neurons are specific to one group.",
                    "About 154 differ in this way for an average coin toss.",
                ),
                (
                    "Next to nothing: shuffled labels give as many on average.",
                    "5 % of 3,072 is 154. Compare with the largest of all under shuffled labels, or use "
                    "new prompts.",
                    True,
                ),
                (
                    "The effect is small, but real.",
                    "Whether there is an effect at all is what these numbers cannot tell.",
                ),
            ],
        ),
        Question(
            "You remove 70 neurons chosen by LAPE, most of them in the last layer, and the loss rises "
            "by 0.3. Which control is right?",
            [
                (
                    "70 neurons drawn from all layers.",
                    "Then the null has other layers, and late neurons act on the output directly.",
                ),
                (
                    "70 other neurons with the same number in every layer.",
                    "Count and layers are equal, so what is left is the choice itself.",
                    True,
                ),
                (
                    "The 70 neurons of highest entropy.",
                    "One set, and a special one: it gives no band, and other layers again.",
                ),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 06 measures need directly, one object at a time, and pays for it.
