# %% [markdown]
# # 06 Causal attribution
# Change one object inside the model, let the rest run, and see what the behaviour does. This is the strongest evidence that the survey's
# toolbox has, and the easiest to misread: the same head can matter a lot or not at all, depending on what it is replaced with, in which
# run, and who else could do its work. Survey ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 3.2, Eq. 12.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - state the sign and the base run of every causal score, and tell noising from denoising
# - patch states, heads and FFNs, and choose what an ablated object is replaced with: zero, a mean, another prompt's value
# - find sets of heads that single ablations miss
# - run causal tracing, attention knock-out, direct effects and path patching, and say what each of them holds fixed
# - say when a causal score is wrong about the mechanism
#
# **The claim.** The survey calls causal attribution the gold standard and "definitive evidence" (section 3.2). In `lab`, it does find the
# heads and FFNs behind a behaviour. But one at a time it understates them: six heads that together carry more than 90 % of naming the
# indirect object look like less than half of it when each is ablated alone.

# %% label="setup"
import random
from dataclasses import replace

import numpy as np
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate.localizers import random_rankings
from mi_course.locate import causal, search
from mi_course.locate.mediation import mediation, path_patching
from mi_course.objects import Task
from mi_course.teach import Question, check, curves, heatmap, quiz, show
from mi_course.world import compiled, installed_tasks

torch.manual_seed(0)
torch.set_grad_enabled(False)  # nothing is trained in this chapter
model = mi.load()
heads = causal.heads(model)  # "L0H0.z" ... "L5H3.z": z is what a head sends to its output projection
ioi = world.task("ioi", split="test", n=24)
print(f"{model.n_layers} layers x {model.n_heads} heads; F = logit(target) - logit(foil)")
print(f"clean:     {ioi.prompts[0]} -> {ioi.targets[0]} (foil {ioi.foils[0]})")
print(f"corrupted: {ioi.corrupted[0]} -> {ioi.foils[0]}")

# %% [markdown]
# ## 1. One table of signs
# The task names the **indirect object** (IOI [@wang2023interpretability]): two people are there, one of them hands something over, so it goes
# to the other one. Every prompt has a **corrupted twin** of equal length in which the giver is the other person, and so is the answer.
# $F$ is the logit of the right name minus that of the wrong one. The survey's score is
#
# $$\Delta F(o) = F(\mathrm{do}(o \leftarrow \tilde o)) - F(o) \qquad (12)$$
#
# It leaves open which run is changed and where $\tilde o$ comes from. Four choices are in use:
#
# | name | run that is changed | object gets | a helpful object scores |
# |---|---|---|---|
# | ablation | clean | zero, a mean, or another prompt's value | below 0 |
# | noising | clean | its value in the corrupted run | below 0 |
# | denoising | corrupted | its value in the clean run | above 0 |
# | causal tracing | corrupted by noise | its value in the clean run | above 0 |
#
# Ablating a helpful part gives a *negative* $\Delta F$; the "indirect effect" of causal tracing, which the survey describes next, is
# *positive* and has another base run. Eq. 12 covers both only if one says which. Noising asks whether the object is *necessary*, denoising
# whether it is *sufficient*.

# %% [markdown] exercise="causal.both_effects" difficulty=2 minutes=10
# ### Exercise: noising and denoising
# Write `both_effects(model, task, site)`: the noising and the denoising effect of one site, two tensors `[n]`.


# %%
def both_effects(model, task, site):
    """(noising [n], denoising [n]): F(patched run) - F(the run that was patched)."""
    ### BEGIN SOLUTION
    clean = mi.record(model, task.prompts, [site])[site]
    corrupted = mi.record(model, task.corrupted, [site])[site]
    with mi.intervene(model, mi.patch(site, corrupted)):
        noised = task.measure(model)
    with mi.intervene(model, mi.patch(site, clean)):
        denoised = task.measure(model, on="corrupted")
    return noised - task.measure(model), denoised - task.measure(model, on="corrupted")
    ### END SOLUTION


# %%
both_effects = check("causal.both_effects", both_effects)

# %% [markdown]
# Two small models whose weights were set by hand show why both are needed. In the AND gate the answer needs two signals, which two heads
# bring; in the OR gate one is enough.

# %% label="gates" tags=["nbval-check-output"]
for gate in (compiled.and_gate(), compiled.or_gate()):
    noised, denoised = (e.mean().item() for e in both_effects(gate.wrap(), gate.task, "L0H0.z"))
    print(f"{gate.name:9} one of its two heads: noising {noised:+6.1f}   denoising {denoised:+6.1f}")
    assert abs(noised - gate.expected["noising L0H0"]) < 1e-2
    assert abs(denoised - gate.expected["denoising L0H0"]) < 1e-2

# %% [markdown]
# In an AND, each input is necessary and none is sufficient; in an OR it is the reverse. One of the two scores is blind on each gate.
#
# Now all heads of `lab`. `causal.patch_each` does what you wrote, for many sites at once. It computes nothing twice: a run starts at the layer
# and the position where its patch starts, from stored states, and many patched runs share one batch. The numbers are the same.

# %% label="head_map"
noising = causal.patch_each(model, ioi, heads, "noising")
denoising = causal.patch_each(model, ioi, heads, "denoising")
mine = both_effects(model, ioi, "L3H1.z")[0].mean().item()
assert abs(mine - noising["L3H1.z"]) < 1e-3
correlation = np.corrcoef(noising.values, denoising.values)[0, 1]
on_clean, on_twins = (ioi.measure(model, on=which).mean() for which in ("clean", "corrupted"))
print(f"F on clean prompts {on_clean:.1f}, on twins {on_twins:.1f}")
print(f"strongest under noising: {', '.join(s[:-2] for s in noising.top(6, by='negative'))}")
print(f"noising against denoising over heads: r = {correlation:.2f}")
assert correlation < -0.95 and noising.top(1) == ["L3H1.z"]
show(
    heatmap(
        noising.values.reshape(model.n_layers, model.n_heads),
        xlabel="head",
        ylabel="layer",
        unit="change of F",
        title="Noising each head, IOI",
    ),
    alt="Grid of six layers by four heads. Head 1 of layer 3 stands out, then head 3 of layer 2, head 0 of "
    "layers 0 and 4, head 2 of layers 0 and 1; most others are near zero.",
    reading="Seven or so of 24 heads carry what distinguishes a prompt from its twin.",
)

# %% [markdown]
# The clean-corrupted difference of about 27 logits is shared by few heads, and here both directions agree ($r$ close to $-1$): little AND
# or OR among single heads. Where the information *is* at each layer, a grid over layers and positions shows. One pair of prompts:

# %% label="grid"
one = ioi.subset(1)
words = model.tokens(one.prompts[0])
sites = [f"x{layer}@{p}" for layer in range(model.n_layers + 1) for p in range(len(words))]
grid = causal.patch_each(model, one, sites, "denoising")
values = grid.values.reshape(model.n_layers + 1, len(words))
swap = (one.measure(model) - one.measure(model, on="corrupted")).item()
giver = next(i for i in range(len(words)) if model.tokens(one.corrupted[0])[i] != words[i])
plain_cells = len(sites)
print(f"clean - corrupted: {swap:.1f}; the twins differ at position {giver} ('{words[giver]}')")
print(f"cost: {grid.forwards:.0f} full forward passes' worth for {plain_cells} cells")
assert abs(values[0, giver] - swap) < 0.01 * swap and abs(values[-1, -1] - swap) < 0.01 * swap
assert abs(values[:, :giver]).max() == 0 and grid.forwards < plain_cells / 4
show(
    heatmap(
        values[:, giver:],
        [f"x{layer}" for layer in range(model.n_layers + 1)],
        words[giver:],
        xlabel="token",
        ylabel="state",
        unit="change of F",
    ),
    alt="Grid of seven layers by the tokens from the giver on. The effect sits on the giver's token in the "
    "first state and on the last token from x3 on; in x1 and x2 it is on both, and nowhere else.",
    reading="Layers 0 to 2 carry the difference from the giver's name straight to the last token. Earlier "
    "tokens are equal in both twins: no effect, and nothing to compute.",
)

# %% [markdown]
# ## 2. Replaced with what?
# An ablation needs no twin, but it needs a value. **Zero** is simple, and something that the rest of the model may never have seen. The **mean**
# over the data keeps what the object always says and removes what it says about this prompt; a mean per **position** keeps more. **Resample**
# gives the object's value on another prompt of the same length: a real value, about the wrong thing.

# %% [markdown] exercise="causal.replacement" difficulty=2 minutes=10
# ### Exercise: what an ablation puts in place
# Write `replacement(values, mask, kind)`: recorded values `[n, T, d]`, mask `[n, T]` (True at real tokens), kind one of "zero", "mean" (over all
# real tokens), "position mean" (over prompts; there is no padding then) and "resample" (prompt $i$ gets the values of prompt $i-1$, the first
# those of the last). Return a tensor like `values`.


# %%
def replacement(values, mask, kind):
    """What takes the place of values [n, T, d]: zero, mean, position mean or resample."""
    ### BEGIN SOLUTION
    if kind == "zero":
        return torch.zeros_like(values)
    if kind == "mean":
        return values[mask].mean(0).expand_as(values)
    if kind == "position mean":
        return values.mean(0, keepdim=True).expand_as(values)
    return values.roll(1, dims=0)
    ### END SOLUTION


# %%
replacement = check("causal.replacement", replacement)

# %% [markdown]
# First where the answer is known. In the model `constant_bias`, head L0H0 writes the same on every input; what tells the prompts apart comes
# through L0H1. Then the heads of `lab` on which the kinds disagree most.

# %% label="kinds" tags=["nbval-check-output"]
fixed = compiled.constant_bias()
small = fixed.wrap()
cache = mi.record(small, fixed.task.prompts, ["L0H0.z"])
for kind in causal.KINDS:
    new = replacement(cache["L0H0.z"], cache.batch.mask.bool(), kind)
    with mi.intervene(small, mi.patch("L0H0.z", new)):
        changed = fixed.task.measure(small)
    effect = (changed - fixed.task.measure(small)).mean().item()
    print(f"constant head, {kind:14} {effect + 0.0:+.1f}".replace("-0.0", "+0.0"))
    assert abs(effect - (fixed.expected["zero L0H0"] if kind == "zero" else 0)) < 1e-2

ablations = {kind: causal.ablate_each(model, ioi, heads, kind) for kind in causal.KINDS}
print("\nlab, IOI   " + "".join(f"{kind:>15}" for kind in [*causal.KINDS, "noising"]))
for head in ("L0H3.z", "L0H0.z", "L4H0.z", "L3H1.z", "L2H3.z"):
    row = [ablations[kind][head] for kind in causal.KINDS] + [noising[head]]
    print(f"{head[:-2]:10} " + "".join(f"{value:15.1f}" for value in row))
assert ablations["zero"]["L0H3.z"] > 1 and abs(ablations["mean"]["L0H3.z"]) < 0.5
assert noising["L0H0.z"] < -3 and ablations["zero"]["L0H0.z"] > -1

# %% [markdown]
# Zeroing L0H3 makes the model *better* by almost two logits, its mean costs almost nothing: what it does here is a constant, and removing a
# constant is off-distribution. L0H0 is the opposite case: zero hardly hurts, a mean or another prompt's value costs about a logit, and the
# twin's value costs four. An ablated L0H0 says nothing, and others fill in; a noised one says the wrong thing. None of these numbers is *the*
# effect of the head.
#
# **Pruning** for good, by zeroing weights, is the same as zero ablation when all weights and biases of a unit go, and is another thing
# when biases stay [@yu-ananiadou-2024-interpreting]: FFN 0 then still writes its output bias. The last row zeroes only what the FFN reads with: it then writes
# another constant, and a wrong constant costs more here than nothing.

# %% label="pruning" tags=["nbval-check-output"]
zeroed = causal.ablate_each(model, ioi, ["mlp0"])["mlp0"]
base = ioi.measure(model).mean()
print(f"FFN 0, activation zeroed:         {zeroed:+.2f}")
for what in ("all", "matrices", "reading"):
    with causal.pruned(model, ["mlp0"], what):
        change = (ioi.measure(model).mean() - base).item()
    print(f"FFN 0, weights zeroed, {what:10} {change:+.2f}")
    assert (abs(change - zeroed) < 1e-3) == (what == "all")
    assert what == "all" or change < zeroed - 0.1
assert ioi.measure(model).mean() == base  # the weights are back

# %% [markdown]
# ## 3. One at a time is not enough
# In the model `backup`, L0H0 names the answer and L1H0 does so only when L0H0 did not. Ablated singly, both score 0. A **greedy** search asks
# again after each choice: which object matters now that the chosen ones are gone? This is how Sahara collects safety heads [@zhou2025on],
# with a score of its own.

# %% [markdown] exercise="causal.greedy" difficulty=3 minutes=10
# ### Exercise: a greedy group
# Write `greedy(effect, objects, size)`: `effect(list)` is the change of F when the objects in the list are ablated together (helpful: negative).
# Return `size` objects in the order of choice; each round takes the one that makes the effect lowest.


# %%
def greedy(effect, objects, size):
    """The objects chosen one after another, each given those before it."""
    ### BEGIN SOLUTION
    chosen = []
    for _ in range(size):
        left = [o for o in objects if o not in chosen]
        chosen.append(min(left, key=lambda o: effect([*chosen, o])))
    return chosen
    ### END SOLUTION


# %%
greedy = check("causal.greedy", greedy)

# %% label="joint" tags=["nbval-check-output"]
spare = compiled.backup()
two = spare.wrap()
for group in (["L0H0.z"], ["L1H0.z"], ["L0H0.z", "L1H0.z"]):
    effect = causal.ablate_together(two, spare.task, group).mean() + 0.0
    print(f"backup model, {' and '.join(group):17} {effect:+.1f}")

train = world.task("ioi", split="train", n=32)
means = causal.references(model, train, heads, "mean")
on_train, on_test = causal.Sweep(model, train), causal.Sweep(model, ioi)  # each prepares its prompts once


def train_effect(group):
    return on_train.effects([causal.ablation(group, "mean", means)])[0].mean().item()


def test_effect(group):
    return on_test.effects([causal.ablation(group, "mean", means)])[0].mean().item()


chosen = greedy(train_effect, heads, 6)


everything, joint = test_effect(heads), test_effect(chosen)
alone = [test_effect([head]) for head in chosen]
singles = causal.ablate_each(model, train, heads, "mean", means).top(6, by="negative")
rng = random.Random(0)
null = [test_effect(rng.sample([h for h in heads if h not in chosen], 6)) for _ in range(20)]
print(f"\nlab, IOI, mean ablation: all 24 heads {everything:+.1f}")
print(f"greedy six ({', '.join(h[:-2] for h in chosen)}): together {joint:+.1f}")
print(f"  the same six, ablated one by one and added up: {sum(alone):+.1f}")
print(f"six strongest single heads, together: {test_effect(singles):+.1f}")
print(f"six random others, together: {min(null):+.1f} to {max(null):+.1f}")
assert joint / everything > 0.9 and sum(alone) / everything < 0.5 and joint < min(null) - 5

# %% [markdown]
# The six heads carry almost everything together, and less than half when the single effects are added up. That is what backups would do, which Wang et al. found in
# GPT-2. Six strong single heads are not the best six. They were chosen on train prompts and measured on test prompts. Greedy is no guarantee either: where two objects are idle alone, as
# in `backup`, the first of them is chosen only when nothing better is left.
#
# The choice of $F$ matters as well. A probability saturates: once it is near 1, more logits change nothing.

# %% label="metrics" tags=["nbval-check-output"]
metrics = ("logit_diff", "logprob", "prob")
by_metric = {m: causal.ablate_each(model, replace(ioi, metric=m), heads) for m in metrics[1:]}
by_metric = {"logit_diff": ablations["zero"]} | by_metric
for metric, scores in by_metric.items():
    strongest = ", ".join(s[:-2] for s in scores.top(4))
    print(f"{metric:10} strongest: {strongest:28} L0H3: {scores['L0H3.z']:+.4f}")
clear = by_metric["logit_diff"].top(4)
assert clear != by_metric["prob"].top(4) and abs(by_metric["prob"].values).max() < 0.2

# %% [markdown]
# ## 4. Causal tracing
# Where is a fact looked up? Meng et al. [@meng2022ccs] corrupt the subject with noise on its embeddings, so that the probability $P$ of the right
# object falls, and then restore single states from the clean run:
#
# $$\mathrm{TE} = P_{clean} - P_{corr}, \qquad \mathrm{IE}(l, i) = P_{restored(l, i)} - P_{corr}$$
#
# averaged over prompts (ATE, AIE). The prompts are about landmarks: who built one,
# of what, where it stands, what it is famous for. The subject, such as `quiet bridge`, has two tokens.

# %% [markdown] exercise="causal.tracing_effects" difficulty=1 minutes=6
# ### Exercise: total and indirect effects
# Write `tracing_effects(clean, corrupted, restored)`: probabilities `[n]`, `[n]` and `[n, L]`, where `restored` is NaN for an item that lacks the
# position. Return the average total effect and the `L` average indirect effects.


# %%
def tracing_effects(clean, corrupted, restored):
    """(average total effect, average indirect effects [L])."""
    ### BEGIN SOLUTION
    return (clean - corrupted).mean(), (restored - corrupted[:, None]).nanmean(0)
    ### END SOLUTION


# %%
tracing_effects = check("causal.tracing_effects", tracing_effects)

# %% label="tracing"
facts = replace(world.task("facts", split="test", n=48), metric="prob")
spans = [tuple(place + 1 for place in label["subject"]) for label in facts.labels]  # <bos> is at 0
last = [len(prompt.split()) for prompt in facts.prompts]
roles = {
    "first of subject": [a if b - a > 1 else None for a, b in spans],
    "last of subject": [b - 1 for _, b in spans],
    "after subject": [b if b < z else None for (_, b), z in zip(spans, last)],
    "last token": last,
}
trace = causal.causal_trace(model, facts, spans, roles, noise=3.0, draws=2)
restored = trace.effects[:, :, 1] + trace.corrupted[:, None]  # P with the last subject token's state restored
total, indirect = tracing_effects(trace.clean, trace.corrupted, restored)
assert abs(total - trace.total) < 1e-4 and torch.allclose(indirect, trace.average[:, 1], atol=1e-4)
p_clean, p_corrupted = trace.clean.mean(), trace.corrupted.mean()
print(f"P clean {p_clean:.2f}, P corrupted {p_corrupted:.2f}, total effect {total:.2f}")
print(f"x1 at the last subject token restores {indirect[1]:.2f}, after it {trace.average[1, 2]:.2f}")
assert indirect[1] > 0.9 * total and trace.average[1, 2].abs() < 0.05
show(
    heatmap(trace.average, trace.sites, trace.roles, unit="indirect effect", ylabel="restored state"),
    alt="Grid of states x0 to x6 by four positions. High at the last subject token in x1 and x2, falling "
    "later; high at the last token from x3 on; zero at the token after the subject.",
    reading="An early site at the last subject token and a late site at the last token, as Meng et al. "
    "report for GPT-2 XL.",
)

# %% [markdown]
# The two sites of the paper are there. Which part fills the early one? Two more experiments of the paper: restore FFN or attention outputs in
# place of states, and **sever** a branch: restore the state, but hold the later FFN (or attention) outputs at that token at their corrupted values.
# The paper found that without FFNs the early site loses its effect.

# %% label="severed" tags=["nbval-check-output"]
restored_by = {
    kind: causal.causal_trace(model, facts, spans, roles, kind=kind, draws=2).average[:, 1]
    for kind in ("mlp", "attn")
}
for kind, effect in restored_by.items():
    row = " ".join(f"{e + 0.0:5.2f}" for e in effect.round(decimals=2))
    print(f"{kind:4} output restored at the last subject token: {row}")
severed = {
    branch: causal.causal_trace(model, facts, spans, roles, severed=branch, draws=2).average[:, 1]
    for branch in ("mlp", "attn")
}
for branch, effect in severed.items():
    row = " ".join(f"{e:5.2f}" for e in effect[:3])
    print(f"x0, x1, x2 restored, later {branch:4} severed:    {row}")
for noise in (2, 3, 4):
    t = causal.causal_trace(model, facts, spans, {"s": roles["last of subject"]}, noise=noise, draws=2)
    print(f"noise {noise} s.d.: total {t.total:.2f}, share that x1 restores {t.average[1, 0] / t.total:.2f}")
    assert t.average[1, 0] > 0.9 * t.total
assert restored_by["mlp"][0] > 0.6 > 0.1 > restored_by["mlp"][1:].max()
assert severed["mlp"][0] < 0.1 < severed["attn"][0] and severed["mlp"][1] > 0.6

# %% [markdown]
# In `lab` **one** FFN fills the early site: the output of FFN 0 alone restores everything, and without it restoring the embedding restores nothing. Above
# layer 0 the early site does not depend on FFNs: `x1` keeps its effect when they are severed. In GPT-2 XL the range is wide, in the middle
# layers; in a model of six layers it is the first. The noise level changes the total effect and leaves this picture as it is.
#
# A caution: tracing says where a state is *sufficient*. It does not say what the state holds. The noise destroys the name, so whatever brings back
# *which landmark it is* brings back the answer: FFN 0 may do no more than join the two tokens of the name, and the fact may be looked up later.
# (Chapter 08 finds no city in these early states that a linear probe could read for new names.) Nor does it say where an edit of weights works
# best (chapter 13).

# %% [markdown]
# ## 5. Attention knock-out
# How does the answer get from the subject to the last token? Geva et al. [@geva-etal-2023-dissecting] forbid attention from one position to
# others in a window of layers. (The survey sums this paper up as a dissection of FFN value vectors; its main tool is this one.)

# %% [markdown] exercise="causal.knock_out" difficulty=3 minutes=8
# ### Exercise: forbid attention
# Write `knock_out(scores, queries, keys)`: scores `[n, H, T, T]` (query before key) before the softmax, and truth values `[n, T]` that say which
# positions must not see which. Return new scores after which the softmax gives those pairs nothing.


# %%
def knock_out(scores, queries, keys):
    """Scores with every pair (query in `queries`, key in `keys`) at minus infinity, in all heads."""
    ### BEGIN SOLUTION
    pairs = queries[:, None, :, None] & keys[:, None, None, :]
    return scores.masked_fill(pairs, -torch.inf)
    ### END SOLUTION


# %%
knock_out = check("causal.knock_out", knock_out)

# %% label="knock_out_sweep"
batch = model.tokenize(facts.prompts)
final, subject = causal.position_mask(batch, -1), causal.span_mask(batch, spans)
other = batch.mask.bool() & ~subject & ~final
with mi.intervene(model, mi.edit("scores2", lambda s: knock_out(s, final, subject))):
    by_hand = (facts.measure(model)).mean().item()
from_subject, from_other = (
    causal.knock_out_sweep(model, facts, final, keys, window=3) for keys in (subject, other)
)
single = causal.knock_out_sweep(model, facts, final, subject)
assert abs(by_hand - facts.measure(model).mean().item() - single.values[2]) < 1e-4
row = " ".join(f"{v:+.2f}" for v in single.values)
print(f"last token must not see the subject, single layers: {row}")
assert single.values.argmin() == 2 and from_subject.values.min() < 2 * from_other.values.min()
show(
    curves(
        range(model.n_layers),
        {"subject blocked": from_subject.values, "all other tokens blocked": from_other.values},
        xlabel="centre of the window of three layers",
        ylabel="change of P(object)",
    ),
    alt="Two lines over six layers. Blocking the subject costs most with the window around layer 3, about "
    "0.6; blocking all other tokens costs about 0.2 in the first layers and little later.",
    reading="The last token fetches what it needs from the subject in layers 2 to 4, and what it needs from "
    "other tokens early.",
)

# %% [markdown]
# This agrees with the tracing map: the early site suffices from `x1` on, the late one from `x3` on, and attention in between moves what the answer
# needs. Neither experiment says whether that is the object or still the name.
#
# ## 6. Total, direct, indirect
# The survey says that "all other causal factors" are held constant. An ablation or a patch does not do that: everything downstream computes
# again, so the effects so far are **total**. Holding downstream parts at their clean values leaves the **direct** effect, what the object writes
# straight into the final state; giving them the values that the change caused, with the object left as it was, is the **indirect** one.

# %% [markdown] exercise="causal.direct_effect" difficulty=3 minutes=8
# ### Exercise: a direct effect
# Write `direct_effect(model, x, change, target, foil)`: final states $x^L$ and what is added to them, `[n, d]` each, and token ids `[n]`. Return the
# `n` changes of logit(target) - logit(foil).


# %%
def direct_effect(model, x, change, target, foil):
    """[n] change of the logit difference when `change` is added to the final state and nothing else moves."""
    ### BEGIN SOLUTION
    rows = torch.arange(len(x))
    with_it, without = model.unembed(x + change), model.unembed(x)
    return (with_it - without)[rows, target] - (with_it - without)[rows, foil]
    ### END SOLUTION


# %%
direct_effect = check("causal.direct_effect", direct_effect)

# %% [markdown]
# A linear model with two paths from L0H0 to the answer, one direct and one through L1H0, has a known split; there the effects add up. In
# `lab` they do not have to.

# %% label="direct" tags=["nbval-check-output"]
linear = compiled.mediation()
split = mediation(linear.wrap(), linear.task, ["L0H0.z"])
parts = [e.mean().item() for e in (split.total, split.direct, split.indirect)]
print("linear model, L0H0:  total {:+.1f} = direct {:+.1f} + indirect {:+.1f}".format(*parts))
assert [round(p, 2) for p in parts] == [-5.0, -3.0, -2.0]

effects = mediation(model, ioi, heads)
for head in ("L3H1", "L4H0", "L2H3", "L0H0", "L0H2"):
    i = heads.index(f"{head}.z")
    total, direct, indirect = (e[i].mean().item() for e in (effects.total, effects.direct, effects.indirect))
    print(f"lab, {head}:  total {total:+5.1f}   direct {direct:+5.1f}   indirect {indirect:+5.1f}")

old, new = (mi.record(model, prompts, ["L3H1@-1", "x6@-1"]) for prompts in (ioi.prompts, ioi.corrupted))
ids = ioi.target_ids(model), ioi.foil_ids(model)
by_hand = direct_effect(model, old["x6@-1"], new["L3H1@-1"] - old["L3H1@-1"], *ids)
assert torch.allclose(by_hand, effects.direct[heads.index("L3H1.z")], atol=1e-3)
assert effects.direct.mean(1).argmin() == heads.index("L3H1.z")
assert effects.direct[heads.index("L0H0.z")].abs().mean() < 0.5

# %% [markdown]
# L3H1 and L4H0 write the name: they have large direct effects, like the name movers of Wang et al. L0H0 and L0H2 act through others
# alone. Through whom? **Path patching** lets a change reach only chosen inputs of later heads: the queries, keys or values of L3H1.

# %% label="paths" tags=["nbval-check-output"]
early = [head for head in heads if int(head[1]) < 3]
strongest = {}
for part in "qkv":
    paths = path_patching(model, ioi, early, [f"L3H1.{part}"])
    strongest[part] = (paths.top(1)[0], paths.values.min())
    print(f"earlier heads -> L3H1.{part}: strongest {strongest[part][0][:-2]} {strongest[part][1]:+.2f}")
assert strongest["q"][0] == "L2H3.z" and strongest["q"][1] < 2 * min(strongest["k"][1], strongest["v"][1])

# %% [markdown]
# L2H3 tells L3H1 *where to look*, through its query, and that is the role of the S-inhibition heads of the IOI circuit, which tell name movers where not to look. The single path
# carries about one logit of the six that L2H3 moves in total; the rest takes other ways.
#
# ## 7. Ships: an effect without an answer
# Zhou et al. [@zhou2025on] score safety heads by how much the whole next-token distribution changes when a head is gone:
# $\mathrm{Ships}(h) = \mathrm{KL}(p \,\|\, p_{\setminus h})$. The survey files this under magnitude analysis, as attention weights on refusal
# tokens; it is an ablation.

# %% [markdown] exercise="causal.ships" difficulty=2 minutes=6
# ### Exercise: Ships
# Write `ships(base, ablated)`: logits `[n, V]` without and with the ablation. Return the `n` divergences KL(base || ablated), in nats.


# %%
def ships(base, ablated):
    """[n] KL divergence of the next-token distribution with the ablation from the one without."""
    ### BEGIN SOLUTION
    p, q = base.log_softmax(-1), ablated.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
    ### END SOLUTION


# %%
ships = check("causal.ships", ships)

# %% label="ships_lab" tags=["nbval-check-output"]
harmful, harmless = (world.task(f"refusal_{kind}", n=32) for kind in ("harmful", "harmless"))
with mi.intervene(model, mi.zero("L3H1.z")):
    without = model.last_logits(harmful.prompts)
mine = ships(model.last_logits(harmful.prompts), without).mean().item()
scores = {task.name: causal.ships(model, task, heads) for task in (harmful, harmless)}
assert abs(mine - scores["refusal_harmful"]["L3H1.z"]) < 1e-4
for name, found in scores.items():
    print(f"{name:17}" + "  ".join(f"{s[:-2]} {found[s]:.2f}" for s in found.top(4)))
sign = causal.ablate_each(model, harmful, heads)
helps = [s for s in scores["refusal_harmful"].top(4) if sign[s] < 0]
print(f"of the top four on harmful requests, ablation lowers the refusal for {len(helps)}")
with_it = harmless.accuracy(model)
with mi.intervene(model, mi.zero("L1H0.z")):
    without_it = harmless.accuracy(model)
print(f"share of harmless requests granted: {with_it:.2f}, without L1H0 {without_it:.2f}")
assert min(scores["refusal_harmful"].values) >= 0 and without_it < 0.4
assert max(scores["refusal_harmful"].values) < 0.5 < scores["refusal_harmless"]["L1H0.z"]

# %% [markdown]
# On harmful requests, no single head of `lab` carries the refusal: the largest divergence is small, and the head is on both lists. The strong
# head shows on *harmless* requests, which are refused without it: L1H0 stands between a harmless request and a refusal. Ships is never
# negative, so it says neither that nor which way an effect goes; run it on the contrast too, and look at the answers.
#
# ## 8. Spending fewer forwards
# The cost of all this is one forward pass per object. A **hierarchical** search ablates whole branches first and goes down only where something
# happens: attention to heads, an FFN to halves of its neurons, quarters, and so on. `lookup` is a model with known memory neurons.

# %% label="hierarchical" tags=["nbval-check-output"]
memory = compiled.lookup()
memory_model = memory.wrap()
found = search.hierarchical_search(memory_model, memory.task, threshold=1.0)
print(f"lookup: {len(found.sites)} objects, {found.rows} prompt rows; one by one: {found.exhaustive_rows}")
wide = replace(facts.subset(6), metric="logit_diff")
found = search.hierarchical_search(model, wide, threshold=0.7)
exact = causal.ablate_each(model, wide, [f"L{layer}N{j}" for layer in (0, 4) for j in range(model.d_ffn)])
strong = [s for s, v in zip(exact.sites, exact.values) if abs(v) >= 0.7]
print(f"lab, facts: {', '.join(found.sites)}; {found.rows} rows of {found.exhaustive_rows}")
print(f"neurons of layers 0 and 4 with an effect of at least 0.7, one by one: {len(strong)}")
assert found.rows < found.exhaustive_rows / 20

# %% [markdown]
# It saves a lot where little is strong, and hardly anything in `lookup`, where half of what there is matters. It finds no neuron in `lab`; the
# check on two layers agrees that no single neuron is that strong. What cancels inside a branch it never sees.

# %% [markdown] label="scoreboard_text"
# ## 9. Ground-truth scoreboard
# Four behaviours were trained into known heads of `lab` (chapter 11 has all of them). A method ranks all 24 heads; the answer key says which
# one or two are needed; AUROC is 1 for a perfect ranking and 0.5 by chance. Scores are effects in the installed model minus those in `lab`,
# since `lab` needs heads for these prompts anyway.

# %% label="scoreboard" tags=["nbval-check-output"]
methods = {
    "zero": (causal.ablate_each, {"kind": "zero"}),
    "mean": (causal.ablate_each, {"kind": "mean"}),
    "noising": (causal.patch_each, {"direction": "noising"}),
    "denoising": (causal.patch_each, {"direction": "denoising"}),
    "Ships": (causal.ships, {}),
}
names = ("refusal-a", "refusal-b", "sycophancy-a", "sycophancy-b")
board = {name: {} for name in names}
for name in names:
    task = installed_tasks.installed_task(name, n=12)
    for method, (localizer, arguments) in methods.items():
        scores = installed_tasks.installed_effect(localizer, name, task, base=model, **arguments)
        board[name][method] = installed_tasks.against_key(scores, name)["auroc"]
print("AUROC         " + "".join(f"{method:>11}" for method in methods) + "   chance +- s.d.")
for name, row in board.items():
    band = random_rankings(24, len(installed_tasks.answer_key(name)))["auroc"]
    cells = "".join(f"{v:11.2f}" for v in row.values())
    print(f"{name:13} {cells}     {band.mean:.2f} +- {band.sd:.2f}")
average = {method: sum(board[name][method] for name in names) / 4 for method in methods}
assert min(board["refusal-a"].values()) > 0.9 and min(board["refusal-b"].values()) > 0.9
assert average["mean"] > 0.9 and average["noising"] < average["mean"] - 0.05

# %% [markdown]
# Refusal is found by everything. Zero and mean ablation find sycophancy too; patching and Ships lose it in one of the two models. For patching,
# the reason is in the twins: they state the true claim, with which the model agrees as well, so what makes it agree does not differ between the
# two runs. **A patch sees only what differs between the twins.** With one or two heads in the key, chance is wide: one line of this table is no
# evidence, four are a little.
#
# Where causal scores fail even with the right contrast, the compiled models say exactly:

# %% label="failures" tags=["nbval-check-output"]
cases = {
    "backup": (compiled.backup(), "zero", ["L0H0.z"]),
    "cancelling": (compiled.cancelling(), "zero", ["L0H0.z", "L1H0.z"]),
    "OR gate": (compiled.or_gate(), "noising", ["L0H0.z"]),
    "AND gate": (compiled.and_gate(), "denoising", ["L0H0.z"]),
    "constant bias": (compiled.constant_bias(), "zero", ["L0H0.z"]),
}
for name, (case, kind, group) in cases.items():
    toy = case.wrap()
    if kind == "zero":
        value = causal.ablate_together(toy, case.task, group).mean().item()
    else:
        value = causal.patch_each(toy, case.task, group, kind).values[0]
    who = " and ".join(site[:-2] for site in group)
    print(f"{name:14} {kind:10} {who:14} {value + 0.0:+.1f}".replace("-0.0", "+0.0"))
    key = f"{kind} {' '.join(site[:-2] for site in group)}"
    assert abs(value - case.expected[key]) < 1e-2

# %% [markdown]
# The first four are at work and score 0; the last one does the same on every prompt and scores -10.
#
# ## 10. What the survey says, and where it is loose
# - Eq. 12 has one sign and one base run. Ablation and causal tracing differ in both; the table of section 1 has all four.
# - "All other causal factors held constant" describes direct effects. What is run, there and here, are total effects.
# - "Patching" is described as an activation from a counterfactual input (noising); the causal tracing that follows is denoising.
# - "Gold standard" and "definitive": backups, the choice of the replacement, the direction and the metric each change the answer.
# - Ships is filed under magnitude analysis; Geva et al. 2023 is known for attention knock-out, not for value vectors.
# - "Indirect effect" means two things: in Vig et al. [@vig2020gender] the input is changed and the effect through one object is kept (noising);
#   in Meng et al. the input is corrupted and one object is restored (denoising).
#
# ## 11. Papers that use this
# - causal tracing and editing: [@meng2022ccs]; mediation: [@vig2020gender], for arithmetic [@stolfo-etal-2023-mechanistic]
# - circuits by patching: [@wang2023interpretability]; knock-out: [@geva-etal-2023-dissecting]; how to patch: [@zhang2023best]
# - safety heads: [@zhou2025on]; language neurons switched off: [@tang-etal-2024-language]
#
# ## 12. The same on a real model
# One function, on `lab-llama` as it stands. Put the name of a Hugging Face model or a local folder into `REAL` for the same there. The
# targets must be single tokens of that model; `Task.validate` checks it.


# %% label="real"
def name_movers(which, prompts, twins, targets, foils):
    """Print the heads with the strongest noising effects, and their direct effects."""
    task = Task("ioi", prompts, targets, corrupted=twins, foils=foils)
    task.validate(which)
    found = causal.patch_each(which, task, causal.heads(which), "noising")
    top = found.top(4, by="negative")
    direct = mediation(which, task, top).direct.mean(1)
    for head, value in zip(top, direct):
        print(f"  {which.config.model_type} {head[:-2]:6} noising {found[head]:+.2f}   direct {value:+.2f}")
    return found


some = ioi.subset(16)
found = name_movers(mi.load("lab-llama"), some.prompts, some.corrupted, some.targets, some.foils)
assert found.values.min() < -2
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    people = [("Mary", "John"), ("Tom", "Anna"), ("Paul", "Sarah"), ("Lisa", "Mark")]
    frame = "When {a} and {b} went to the store, {s} gave a drink to"
    clean = [frame.format(a=a, b=b, s=b) for a, b in people]
    twins = [frame.format(a=a, b=b, s=a) for a, b in people]
    name_movers(mi.load(REAL), clean, twins, [f" {a}" for a, _ in people], [f" {b}" for _, b in people])

# %% [markdown]
# ## 13. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "A head has a denoising effect of 0 and a noising effect of -8. What fits?",
            [
                (
                    "It is needed together with something else.",
                    "Like an input of an AND: the answer is lost without it, and does not come back with it alone.",
                    True,
                ),
                ("It has a backup.", "Then noising would show nothing, since the backup would step in."),
                (
                    "The two must agree; one is a mistake.",
                    "They ask different questions: necessary, and sufficient.",
                ),
            ],
        ),
        Question(
            "Zero ablation of a head costs 5 logits, mean ablation 0. What do you conclude?",
            [
                (
                    "The head carries information about the prompt.",
                    "Then replacing it by its mean would cost something.",
                ),
                (
                    "The head writes something constant that later parts rely on.",
                    "The mean keeps the constant; zero removes it.",
                    True,
                ),
                (
                    "Mean ablation is too weak to see its effect.",
                    "It removes all that the head says about this prompt. If that costs nothing, it said nothing.",
                ),
            ],
        ),
        Question(
            "In causal tracing, restoring x3 at the last subject token brings P back. What has been shown?",
            [
                (
                    "The fact is stored in layer 3.",
                    "The state may have been filled by any layer below, and is only carried here.",
                ),
                (
                    "That this state is sufficient to bring the answer back in the corrupted run.",
                    "That is what denoising tests.",
                    True,
                ),
                (
                    "That an edit of layer 3 will change the fact.",
                    "Where a state carries a fact and where an edit works are different questions.",
                ),
            ],
        ),
        Question(
            "Six heads are ablated one at a time; the effects add up to 40 % of the joint effect. Why?",
            [
                (
                    "The measurement is noisy.",
                    "Both numbers are means over the same prompts; noise does not make a gap of this size.",
                ),
                (
                    "Each head's work is partly done by the others when it alone is gone.",
                    "Single ablations understate what has a backup.",
                    True,
                ),
                (
                    "The heads have no direct effect.",
                    "Total effects were measured, direct and indirect together.",
                ),
            ],
        ),
    ]
)
