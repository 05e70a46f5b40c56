# %% [markdown]
# # 07 Gradient detection
# Chapter 06 intervened on one object after the other. That is the best evidence there is, and it costs one run of the model for each
# object. A derivative is cheaper: one backward pass says, for every object at once, how the behaviour would change if the object changed a
# little. This chapter is about what such a prediction is worth. Survey ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 3.3.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - score every head, neuron, token and weight of a model with one forward and one backward pass, and say what the score predicts
# - say where the prediction fails, and mend it: integrated gradients, the QK fix, relevance rules
# - tell the two versions of integrated gradients apart that go under one name, and know what each computes
# - find the "knowledge neurons" of a fact by the published recipe, and test what they are
# - do attribution patching in both directions, and compare it with exact patching
# - judge all of them against answers that are known, beside chance and cost
#
# **The claim.** First-order scores are a cheap local stand-in for interventions (survey, section 3.3, Eq. 13). In `lab` the stand-in is good for
# single neurons, fair for whole heads, and blind where the model is saturated; the norm of the gradient predicts no intervention.

# %% label="setup"
import copy
import random
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import null_band
from mi_course.evaluate.localizers import random_rankings
from mi_course.locate import causal, gradient
from mi_course.locate.attribution_patching import attribution_patching
from mi_course.locate.integrated_gradients import integrated_gradients, token_attributions
from mi_course.locate.knowledge_neurons import context_neurons, knowledge_neurons, select
from mi_course.locate.parameters import parameter_saliency
from mi_course.objects.neurons import direct_contributions
from mi_course.teach import Question, check, curves, heatmap, quiz, show
from mi_course.world import compiled
from mi_course.world.installed_tasks import (
    against_key,
    candidates,
    installed_effect,
    installed_task,
)

torch.manual_seed(0)
model = mi.load()
facts = world.task("facts", split="test", n=60)
print(facts.prompts[0], "->", facts.targets[0], "   twin:", facts.corrupted[0], "->", facts.foils[0])
print(f"{len(facts)} facts, accuracy {facts.accuracy(model):.2f}, F = logit(target) - logit(foil)")

# %% [markdown]
# ## 1. A derivative predicts an intervention
# Let $F$ be the metric of the behaviour and $o$ an object inside the model, such as the state $z$ of a head (chapter 02). If $o$ is changed by
# $\Delta$, then
#
# $$F(o + \Delta) - F(o) = \nabla_{o} F \cdot \Delta + O(\lVert\Delta\rVert^2)$$
#
# Everything in this chapter is this line with one or another $\Delta$. To remove the object means $\Delta = -o$, so the predicted effect is
# $-\nabla F \cdot o$. To put in the value from another prompt means $\Delta = o_{other} - o$. We keep the sign of chapter 06: a score predicts
# $F(\text{intervened}) - F(\text{base})$, so what helps the answer has a negative effect when it is removed. The survey's $\nabla F^\top o$ is
# minus that: there, positive means that removal *lowers* F.
#
# In code: record with `grad=True`, so that the graph is kept, and ask for the derivative of F with respect to what was recorded.

# %% label="ten_lines" tags=["nbval-check-output"]
cache = mi.record(model, facts.prompts, [f"z{l}" for l in range(model.n_layers)], grad=True)
F = facts.metric_of(cache.logits[:, -1], model)  # [60]
grads = torch.autograd.grad(F.sum(), list(cache.values()))  # one backward pass, six derivatives
values, grads = torch.stack([v.detach() for v in cache.values()]), torch.stack(grads)
mask = cache.batch.mask
print("values and gradients [layer, prompt, token, head, d_head]:", tuple(values.shape), tuple(grads.shape))
print("largest gradient at a padding token:", grads[:, mask == 0].abs().max().item())

# %% [markdown]
# `F.sum()` is no shortcut: prompts do not see each other, so the derivative of the sum with respect to one prompt's states is that prompt's
# own derivative. And these are *total* derivatives: a head of layer 0 acts through all that follows, and `grads[0]` has all of it.

# %% [markdown] exercise="gradient.zero_effect" difficulty=2 minutes=6
# ### Exercise: what would removing a head do?
# Write `zero_effect(value, grad, mask)`: values and gradients of one layer, `[n, T, H, d_head]`, and the mask of real tokens, `[n, T]`. Return
# the first-order estimate of F(head at zero) - F, `[n, H]`. The head is removed at all real tokens.


# %%
def zero_effect(value, grad, mask):
    """Estimate of F(head set to zero) - F: value, grad [n, T, H, d_head], mask [n, T] -> [n, H]."""
    ### BEGIN SOLUTION
    return -(value * grad * mask[:, :, None, None]).sum((1, 3))
    ### END SOLUTION


# %%
zero_effect = check("gradient.zero_effect", zero_effect)

# %% [markdown]
# All 24 heads of `lab`, against what really happens when each is set to zero. The norm of the gradient, which the survey lists first, is there
# for comparison. The figure has a dot for each head; on the dashed line the estimate is exact.

# %% label="heads"
heads = causal.heads(model)
exact = causal.ablate_each(model, facts, heads)
estimate = torch.stack([zero_effect(v, g, mask) for v, g in zip(values, grads)], dim=1).mean(0).flatten()
first = gradient.gradient_times_input(model, facts, heads)  # the package's version of the same
norm = gradient.gradient_norm(model, facts, heads)
assert np.allclose(first.values, estimate, atol=1e-3)


def scatter(pairs, xlabel, ylabel):
    """One panel for each name -> (x, y); the dashed line is y = x."""
    size = (3.7 * len(pairs), 3.3)
    figure, axes = plt.subplots(1, len(pairs), figsize=size, layout="constrained", squeeze=False)
    for ax, (name, (x, y)) in zip(axes[0], pairs.items()):
        if "norm" not in name:  # a norm estimates no effect, so it has no such line
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            ax.plot(ends, ends, ls="--", lw=0.8, color="grey")
        ax.plot(x, y, "o", ms=4, color="#0072B2", alpha=0.6)
        ax.set(title=name, xlabel=xlabel, ylabel=ylabel)
    return figure


figure = scatter(
    {"gradient x input": (exact.values, first.values), "gradient norm": (exact.values, norm.values)},
    "exact effect of removal",
    "score",
)
show(
    figure,
    alt="Two scatter plots over 24 heads. Left: estimates by gradient times input against exact "
    "effects; most dots lie near the dashed line close to zero, the heads with the largest effects lie "
    "far above it. Right: the gradient norm against exact effects, without a visible relation.",
    reading="Left: small effects are estimated well, the largest far too small. Right: no estimate at all.",
)
print(
    f"rank correlation with exact: first order {first.spearman(exact):+.2f}, norm {norm.spearman(exact):+.2f}"
)
print(f"largest effect: {exact.top(1)[0]} {exact.values.min():+.2f}, estimated {first[exact.top(1)[0]]:+.2f}")
print(f"cost: {first.forwards:.0f} forward and {first.backwards:.0f} backward passes of a prompt;", end=" ")
print(f"exact {exact.forwards:.0f} forward passes")
assert first.spearman(exact) > 0.5 and first.spearman(exact) > norm.spearman(exact) + 0.15

# %% [markdown]
# How wrong is the line? Its error is of second order: halve the step and a quarter is left. So we do not remove layer 2's heads altogether but
# move them by a share $\varepsilon$ of the way to zero, and look at the error against $\varepsilon$. On log-log axes the slope should be 2.

# %% label="second_order" tags=["nbval-check-output"]
step = torch.tensor([0.4, 0.2, 0.1, 0.05])
errors = []
for e in step.tolist():
    with mi.intervene(model, mi.scale("z2", 1 - e)):
        change = facts.measure(model) - F.detach()
    errors.append((change - e * zero_effect(values[2], grads[2], mask).sum(1)).abs().mean())
slope = np.polyfit(step.log().numpy(), torch.stack(errors).log().numpy(), 1)[0]
print(
    "error at", ", ".join(f"{e:.2f}: {x:.4f}" for e, x in zip(step.tolist(), errors)), f"  slope {slope:.1f}"
)
assert 1.7 < slope < 2.3

# %% [markdown]
# Near the clean run the prediction is as good as one likes. But nobody removes five percent of a head: the question is always how far the
# line can be trusted, and no gradient answers that.
#
# ## 2. Where in the input?
# The oldest use of gradients is saliency of the input: which words made the model say this? The object is the embedding of each token (site
# `embed`). What is a word replaced by? With the twin at hand, by the word that stands there in the twin.

# %% [markdown] exercise="gradient.token_saliency" difficulty=3 minutes=10
# ### Exercise: saliency of tokens
# Write `token_saliency(model, task)`: for every prompt and token the first-order change of F when the token's embedding is replaced by the
# embedding that stands there in the twin, `[n, T]`. `task.prompts` and `task.corrupted` have equal lengths; all prompts of the check are of
# one length, so `cache.logits[:, -1]` holds the logits that `task.metric_of(logits, model)` needs.


# %%
def token_saliency(model, task):
    """grad . (twin's embedding - embedding) of every token, [n, T]; F: task.metric_of(last logits, model)."""
    ### BEGIN SOLUTION
    clean = mi.record(model, task.prompts, ["embed"], grad=True)
    twin = mi.record(model, task.corrupted, ["embed"])["embed"]
    F = task.metric_of(clean.logits[:, -1], model)
    (grad,) = torch.autograd.grad(F.sum(), clean["embed"])
    return (grad * (twin - clean["embed"])).sum(-1).detach()
    ### END SOLUTION


# %%
token_saliency = check("gradient.token_saliency", token_saliency)

# %% [markdown]
# Prompt and twin differ in the subject alone, so your function is 0 elsewhere by construction, and "the subject is most salient" would be
# no finding. For an honest test every word needs the same replacement: the mean embedding of all tokens of the prompts. Then we can ask how
# often the most salient token is in the subject, and whether the tokens come in the order of the exact effects. *Integrated gradients* is
# the subject of section 3; it averages the gradient on the way from the mean to the actual embedding.

# %% label="tokens" tags=["nbval-check-output"]
batch = model.tokenize(facts.prompts)
spans = [tuple(1 + place for place in label["subject"]) for label in facts.labels]  # <bos> is token 0
subject = causal.span_mask(batch, spans)
mean_embedding = causal.site_means(model, facts.prompts, ["embed"])["embed"]
base = facts.measure(model)
saliency = {"exact": torch.zeros(batch.ids.shape)}
for column in range(batch.ids.shape[1]):
    here = torch.zeros_like(subject)
    here[:, column] = batch.mask[:, column].bool()
    with mi.intervene(model, mi.mean("embed", mean_embedding, positions=here)):
        saliency["exact"][:, column] = facts.measure(model) - base
for method in ("integrated gradients", "gradient x input", "gradient norm"):
    saliency[method] = token_attributions(model, facts, method, baseline="mean", steps=8)
    if method == "gradient norm":  # has no sign: large means important
        saliency[method] = -saliency[method]


def spearman(a, b):
    """Rank correlation of two lists of numbers."""
    ranks = np.stack([np.argsort(np.argsort(np.asarray(v))) for v in (a, b)])
    return np.corrcoef(ranks)[0, 1]


real = batch.mask.bool()
hit = {}
for method, score in saliency.items():
    most = score.masked_fill(~real, torch.inf).argmin(1)
    hit[method] = subject[torch.arange(len(facts)), most].float().mean().item()
    order = np.mean([spearman(s[r], e[r]) for s, e, r in zip(score, saliency["exact"], real)])
    print(
        f"{method:22} most salient token is in the subject: {hit[method]:.2f}   order as exact: {order:+.2f}"
    )
share = (subject.sum(1) / real.sum(1)).mean().item()
print(f"{'a random token':22} {share:.2f}")
assert hit["integrated gradients"] > hit["gradient norm"] > share + 0.2

# %% [markdown]
# The path comes closest to the exact effects; the gradient at the prompt finds the subject less often. In the one prompt below it has even the
# wrong sign there. Negative (purple) means that the answer loses when this word is made average. The rows are divided by their
# largest entry, since only their order is compared. (The norm has no sign; it is drawn as if all of it were loss.)

# %% label="one_prompt"
row = 0
names = list(saliency)[::-1]
grid = torch.stack([saliency[name][row][real[row]] for name in names])
show(
    heatmap(
        grid / grid.abs().amax(1, keepdim=True),
        rows=names,
        columns=model.tokens(facts.prompts[row]),
        unit="share of the row's largest",
        title="What made the model answer",
    ),
    alt="Grid of four methods by the tokens of one prompt. The exact row and integrated gradients are "
    "most negative at the words of the subject; the norm spreads over more words; gradient times input is "
    "positive at the subject.",
    reading="Rows: method, exact at the top. Dark purple: without this word the answer would lose most.",
)

# %% [markdown]
# ## 3. Where the line breaks: saturation
# `compiled.saturated()` is a model set by hand. It reads "apple pear first pick" and answers apple: head L0H0 fetches the word "first", head
# L1H0 uses it to choose an item. Without L0H0 there is no choice at all. But the choice is *sharp*: the attention of L1H0 sits on its item
# with a margin of 20, and a slightly weaker "first" changes nothing. So the derivative is nearly 0 where the effect is largest.
#
# The remedy is to look at the whole way, not only at its end. **Integrated gradients** [@sundararajan2017axiomatic] walks from a baseline
# $\tilde o$ to the actual value $o$ and averages the gradient:
#
# $$IG_k = (o - \tilde o)_k \int_0^1 \frac{\partial F(\gamma(\alpha))}{\partial \gamma_k} d\alpha, \qquad \gamma(\alpha) = \tilde o + \alpha (o - \tilde o), \qquad
# \sum_k IG_k = F(o) - F(\tilde o)$$
#
# The last equation is called **completeness**: nothing is lost on the way. The integral becomes a sum over $m$ points. We put each point in
# the middle of its piece, $\alpha = (t - \tfrac12)/m$; the survey writes $\alpha = t/m$, the right ends.

# %% [markdown] exercise="gradient.integrate" difficulty=3 minutes=10
# ### Exercise: integrated gradients
# Write `integrate(f, start, end, steps)`: `f` takes points `[m, d]` and returns one number for each. Return the attributions `[d]` of the way
# from `start` to `end`, with `steps` points in the middle of equal pieces.


# %%
def integrate(f, start, end, steps):
    """Integrated gradients [d] of f on the straight path from start [d] to end [d], midpoint rule."""
    ### BEGIN SOLUTION
    alphas = (torch.arange(steps) + 0.5) / steps
    points = (start + alphas[:, None] * (end - start)).requires_grad_()
    (grad,) = torch.autograd.grad(f(points).sum(), points)
    return (end - start) * grad.mean(0)
    ### END SOLUTION


# %%
integrate = check("gradient.integrate", integrate)

# %% [markdown]
# Now a part of this model as `f`: the output of head L0H0 at the last token, on its way from what it is in the twin ("second") to what it
# is here ("first"). The figure shows F along the way, and its derivative.

# %% label="saturation"
c = compiled.saturated()
tiny = c.wrap()
one = c.task.subset([0])
site = "L0H0.z@-1"
start, end = (mi.record(tiny, prompts, [site])[site][0] for prompts in (one.corrupted, one.prompts))


def f(points):
    """F with each of the points [m, d_head] put in at the head: [m]."""
    copies = mi.Task(
        "copies", one.prompts * len(points), one.targets * len(points), foils=one.foils * len(points)
    )
    with mi.intervene(tiny, mi.patch(site, points)):
        return copies.measure(tiny, grad=True)


alpha = torch.linspace(0, 1, 81)
path = (start + alpha[:, None] * (end - start)).requires_grad_()
along = f(path)
(slope_along,) = torch.autograd.grad(along.sum(), path)
slope_along = slope_along @ (end - start)
figure, axes = plt.subplots(1, 2, figsize=(7.4, 3), layout="constrained")
for ax, y, name in ((axes[0], along.detach(), "F"), (axes[1], slope_along, "dF / d alpha")):
    ax.plot(alpha, y, color="#0072B2", lw=1.8)
    ax.set(xlabel="alpha (0: twin, 1: clean)", ylabel=name)
show(
    figure,
    alt="Left: F along the path stays at minus 10, jumps at the middle, and stays at plus 10. Right: its "
    "derivative is zero except for a sharp peak in the middle.",
    reading="At both ends F is flat: the gradient there is zero. All of the change happens in the middle.",
)
attributed = integrate(f, start, end, 64).sum().item()
print(f"F(clean) - F(twin) = {(along[-1] - along[0]).item():.2f}")
print(f"gradient at the end times step: {slope_along[-1].item():.2f}; integrated gradients: {attributed:.2f}")
assert abs(slope_along[-1]) < 0.01 and abs(attributed - 20) < 0.5

# %% [markdown]
# How many points does it take? On `lab`, with layer 2's heads walking from zero to their values, we measure the **completeness residual**: the sum
# of the attributions minus the exact change of F. Three rules: left ends (the code of the knowledge-neurons paper), right ends (the survey), and
# middles.

# %% label="completeness"
few = facts.subset(6)
steps = [2, 4, 8, 16, 32]
residual = {
    rule: [
        np.abs(integrated_gradients(model, few, ["z2"], rule=rule, steps=m).residual["z2"]).mean()
        for m in steps
    ]
    for rule in ("left", "right", "midpoint")
}
figure = curves(steps, residual, xlabel="points m", ylabel="completeness residual", title="How many points?")
figure.axes[0].set(xscale="log", yscale="log")
figure.axes[0].minorticks_off()
figure.axes[0].set_xticks(steps, steps)
show(
    figure,
    alt="Residual against the number of points on log-log axes, for three rules. Left and right ends fall "
    "slowly and together, midpoints fall about twice as steeply.",
    reading="Lower is better. Middles need far fewer points than either end.",
)
fall = {rule: -np.polyfit(np.log(steps), np.log(r), 1)[0] for rule, r in residual.items()}
for rule in residual:
    print(f"{rule:9} residual at m = 16: {residual[rule][3]:.3f}   falls like m^-{fall[rule]:.1f}")
assert fall["midpoint"] > 1.6 > 1.3 > fall["right"] and residual["midpoint"][3] < residual["right"][3] / 5

# %% [markdown]
# Print the residual whenever you integrate: it says whether you took enough points, and it costs one run.
#
# ## 4. What moves?
# For inputs the path is clear: all tokens walk together. For the neurons of a layer there are two paths, and they are easily mixed up. The
# paper on knowledge neurons [@dai2022knowledge] writes that *one* neuron walks while the others stay. Its code scales the *whole* layer.
#
# - **Own path.** One neuron walks from 0 to its value. By the fundamental theorem of calculus the integral of a derivative is the difference at
#   the ends. So the attribution *is* the exact effect of ablating the neuron, approached with m runs where one would do.
# - **Joint path.** All neurons of the layer walk together. One path serves them all, and the attributions add up to the effect of removing the
#   whole layer. But what one neuron gets is measured on the way, in models whose other neurons are half off, and is no one's ablation effect.
#
# Which predicts the ablation of single neurons better, the joint path or the plain gradient? We ablate all 3,072 neurons at the last token, one
# by one, on six facts.

# %% [markdown] exercise="gradient.precision_at_k" difficulty=1 minutes=4
# ### Exercise: precision at k
# Write `precision_at_k(estimate, exact, k)`: of the k objects with the largest estimates (in size, whatever the sign), which share is among
# the k with the largest exact effects?


# %%
def precision_at_k(estimate, exact, k):
    """Share of the top k by |estimate| [m] that are in the top k by |exact| [m]."""
    ### BEGIN SOLUTION
    top = [set(values.abs().topk(k).indices.tolist()) for values in (estimate, exact)]
    return len(top[0] & top[1]) / k
    ### END SOLUTION


# %%
precision_at_k = check("gradient.precision_at_k", precision_at_k)

# %% label="paths" tags=["nbval-check-output"]
six = facts.subset(6)
print("layer   rank correlation with exact      precision at 20")
print("        gradient   joint path            gradient   joint path")
found = {}
for layer in range(model.n_layers):
    sites = [f"L{layer}N{j}@-1" for j in range(model.d_ffn)]
    removed = causal.ablate_each(model, six, sites)
    single = gradient.gradient_times_input(model, six, sites)
    joint = integrated_gradients(model, six, sites, steps=8)
    found[layer] = [s.spearman(removed) for s in (single, joint)] + [
        precision_at_k(torch.tensor(s.values), torch.tensor(removed.values), 20) for s in (single, joint)
    ]
    print("{:5}   {:8.2f}   {:10.2f}            {:8.2f}   {:10.2f}".format(layer, *found[layer]))
loud = removed.top(3)
own = integrated_gradients(model, six, loud, path="own", steps=16)
for site in loud:
    print(f"{site}: exact {removed[site]:+.3f}   own path {own[site]:+.3f}   joint path {joint[site]:+.3f}")
assert all(row[0] > 0.9 for row in found.values()) and found[0][1] < found[0][0] - 0.2
assert np.allclose(own.values, [removed[site] for site in loud], atol=0.01)

# %% [markdown]
# For single neurons the plain gradient ranks nearly as exact ablation does, in every layer: one neuron is a small step. The joint path is nowhere
# better, and in layer 0 much worse, since there the layer as a whole is a *large* step, and a half-removed layer is a strange place to measure
# at. Integrated gradients along the joint path answers a question about the layer; for one neuron at a time it is the wrong tool, and the dearer one.
#
# ## 5. Knowledge neurons
# The recipe [@dai2022knowledge]: take several wordings of one fact; in each, attribute the probability of the answer to the neurons of
# every layer (joint path from 0, left ends, last token); in each wording keep the neurons above a share of the largest attribution; of these
# keep the ones that most wordings share. The wordings are there to wash out what belongs to the words and not to the fact.

# %% [markdown] exercise="gradient.select_neurons" difficulty=2 minutes=6
# ### Exercise: the selection
# Write `select_neurons(attributions, threshold, share)`: attributions `[n_prompts, m]`. A neuron is kept in a prompt if its attribution is above
# `threshold` times the largest of that prompt. Return bool `[m]`: kept in more than `share` of the prompts.


# %%
def select_neurons(attributions, threshold, share):
    """bool [m]: above threshold * (largest of the prompt) in more than `share` of the prompts [n, m]."""
    ### BEGIN SOLUTION
    kept = attributions > threshold * attributions.amax(1, keepdim=True)
    return kept.float().mean(0) > share
    ### END SOLUTION


# %%
select_neurons = check("gradient.select_neurons", select_neurons)

# %% [markdown]
# Ten facts, with a threshold of 0.2 and a share of 0.7. The neurons are chosen on four wordings and removed in a **fifth one**, at the
# last token. Beside them, equal numbers: random neurons of the same layers, the neurons with the largest direct contribution (chapter 03),
# and those with the most negative gradient x input of the logit difference, which costs one backward pass in place of ten for each layer.

# %% label="knowledge_neurons" tags=["nbval-check-output"]
rng = random.Random(0)
results, kept_by_fact, random_log = [], [], []
for i in range(10):
    wordings = [facts.prompts[i], *facts.labels[i]["paraphrases"]]
    fact = mi.Task("fact", wordings, [facts.targets[i]] * 5, foils=[facts.foils[i]] * 5)
    chosen_on, held_out = fact.subset(4), replace(fact.subset([4]), metric="prob")
    scores = knowledge_neurons(model, chosen_on, steps=10)
    keep = select_neurons(torch.tensor(-scores.per_item.T, dtype=torch.float32), 0.2, 0.7)
    neurons = [scores.sites[j] for j in keep.nonzero().flatten().tolist()]
    assert set(neurons) == set(select(scores))  # the package's version
    direct = direct_contributions(model, chosen_on.prompts, chosen_on.targets, chosen_on.foils).mean(0)
    top = direct.flatten().topk(len(neurons)).indices.tolist()
    sets = {
        "knowledge neurons": neurons,
        "gradient x input": gradient.gradient_times_input(model, chosen_on, scores.sites).top(
            len(neurons), "negative"
        ),
        "direct contribution": [scores.sites[j] for j in top],
        "random": [
            f"L{site[1]}N{j}@-1" for site, j in zip(neurons, rng.sample(range(model.d_ffn), len(neurons)))
        ],
    }
    near = facts.labels[i]["neighbours"]
    others = mi.Task("neighbours", [prompt for prompt, _ in near], [word for _, word in near], metric="prob")
    before, near_before, effects = held_out.measure(model).item(), others.measure(model).mean().item(), {}
    for name, sites in sets.items():
        with mi.intervene(model, mi.zero(sites)):
            effects[name] = held_out.measure(model).item() - before
            effects[f"{name}, neighbours"] = others.measure(model).mean().item() - near_before
    results.append(effects)
    kept_by_fact.append(neurons)
print(f"neurons for each fact: {np.mean([len(n) for n in kept_by_fact]):.1f} on average")
print("mean change of p(answer)      held-out wording    other facts of the relation")
drop = {name: np.mean([r[name] for r in results]) for name in results[0]}
for name in sets:
    print(f"  {name:22} {drop[name]:+18.2f} {drop[name + ', neighbours']:+20.2f}")
assert drop["knowledge neurons"] < drop["random"] - 0.1

# %% [markdown]
# As the paper says: some ten neurons out of 3,072, chosen on other wordings, take 0.26 off the probability of the fact, random ones do
# nothing, and other facts of the relation hardly suffer. As the paper does not say: two plain rankings, with one backward pass or none, do at
# least as well. And the mean hides two kinds of facts. Look at them one by one, and at the layers.

# %% label="kn_layers" tags=["nbval-check-output"]
known_well = replace(facts.subset(10), metric="prob").measure(model).mean().item()
early = [{site for site in neurons if site[1] == "0"} for neurons in kept_by_fact]
late_share = [1 - len(first_layer) / len(neurons) for first_layer, neurons in zip(early, kept_by_fact)]
for i in np.argsort(late_share)[[0, 1, -2, -1]]:
    effect = results[i]["knowledge neurons"]
    print(f"{facts.prompts[i]:44} p {effect:+.2f}   {late_share[i]:.0%} above layer 0")
print(f"share of selected neurons in layer 0: {1 - np.mean(late_share):.2f}")
relation = np.corrcoef(late_share, [r["knowledge neurons"] for r in results])[0, 1]
print(f"correlation of (share above layer 0) with (change of p): {relation:+.2f}")


def overlap(a, b):
    return len(a & b) / min(len(a), len(b))


last = [{p.split()[-1] for p in [facts.prompts[i], *facts.labels[i]["paraphrases"][:3]]} for i in range(10)]
pairs = {True: [], False: []}
for i in range(10):
    for j in range(i):
        if early[i] and early[j] and facts.targets[i] != facts.targets[j]:
            pairs[bool(last[i] & last[j])].append(overlap(early[i], early[j]))
same_end, other_end = (np.mean(pairs[end]) for end in (True, False))
off = []
for layer in range(model.n_layers):
    with mi.intervene(model, mi.zero(f"neurons{layer}@-1")):
        off.append(replace(facts.subset(10), metric="prob").measure(model).mean().item() - known_well)
print("p when all neurons of a layer go:", "  ".join(f"L{layer} {p:+.2f}" for layer, p in enumerate(off)))
print("layer-0 neurons shared by facts with different answers:")
print(f"  {same_end:.2f} if some wordings end in the same word, {other_end:.2f} if none do")
assert np.argmin(off) == 0 and np.mean(late_share) < 0.7 and relation < -0.5 and same_end > other_end + 0.2

# %% [markdown]
# More than half of what the recipe finds lies in layer 0. At the last token, layer 0 has seen little more than the last word, and facts with quite
# different answers mostly share their neurons there when some wordings end in the same word ("by", "in"): these neurons belong to the
# *question*. They get large attributions because removing the whole FFN 0 costs most of the probability, while a few of its neurons cost
# little. Where the recipe picks later neurons, the fact goes. Two lessons: attributions of different layers come from different paths and are
# not on one scale, and wordings wash out only what differs between them.
#
# **Context-aware neurons.** A relative for another question [@ircan_neurips2024]: which neurons bring in what the *context* says? Here the path runs from
# the activations without the context to those with it, in the run with the context. `lab` knows where landmarks stand; a note says that one
# has moved.

# %% label="context" tags=["nbval-check-output"]
notes = world.task("context", split="test", n=100).where(conflict=True)
moved = mi.Task(
    "context",
    notes.prompts,
    [label["context"] for label in notes.labels],
    foils=[label["memory"] for label in notes.labels],
)
bare = [prompt.split(" . ")[1].removeprefix("so ") for prompt in notes.prompts]
print(moved.prompts[0], "   without:", bare[0])
train, test = moved.subset(20), moved.subset(slice(20, None))
aware = context_neurons(model, train, bare[:20], steps=8)
chosen = aware.top(16, by="negative")
noise = [[f"L{s[1]}N{rng.randrange(model.d_ffn)}@-1" for s in chosen] for _ in range(6)]
at_1 = test.measure(model).mean().item()
print(f"F on {len(test)} new notes, logit(context) - logit(memory): {at_1:+.2f}")
moves = {}
for factor in (0, 2):
    change = []
    for sites in [chosen, *noise]:
        with mi.intervene(model, mi.scale(sites, factor)):
            change.append(test.measure(model).mean().item() - at_1)
    band = null_band(change[1:])
    moves[factor] = change[0]
    print(f"16 neurons times {factor}: {change[0]:+.2f}   random ones {band.low:+.2f} to {band.high:+.2f}")
    assert not band.contains(change[0])
assert moves[0] < 0 < moves[2]

# %% [markdown]
# Turned off, the model trusts its memory more, turned up, the note. That is a steering method as well; chapter 20 returns to it.
#
# ## 6. Attribution patching
# With a twin, $\Delta$ is the difference between the two runs, and first order becomes **attribution patching** [@nanda2023attribution]. There are two
# directions, and they are two different quantities:
#
# $$\text{noising: } (o_{twin} - o_{clean}) \cdot \nabla F|_{clean} \qquad\qquad \text{denoising: } (o_{clean} - o_{twin}) \cdot \nabla F|_{twin}$$

# %% [markdown] exercise="gradient.attribution_patch" difficulty=4 minutes=12
# ### Exercise: attribution patching
# Write `attribution_patch(model, task, sites, direction)`: for each site (without position, so the whole sequence is patched) the estimate, averaged
# over the prompts, `[n_sites]`. As in `token_saliency`, `cache.logits[:, -1]` are the logits for `task.metric_of`.


# %%
def attribution_patch(model, task, sites, direction):
    """Mean over prompts of delta . gradient for every site, [n_sites]; direction "noising" or "denoising"."""
    ### BEGIN SOLUTION
    here, there = task.prompts, task.corrupted
    if direction == "denoising":
        here, there = there, here
    run, other = mi.record(model, here, sites, grad=True), mi.record(model, there, sites)
    F = task.metric_of(run.logits[:, -1], model)
    grads = torch.autograd.grad(F.sum(), [run[site] for site in sites])
    estimates = [(g * (other[site] - run[site])).sum() / len(task) for g, site in zip(grads, sites)]
    return torch.stack(estimates).detach()
    ### END SOLUTION


# %%
attribution_patch = check("gradient.attribution_patch", attribution_patch)

# %% [markdown]
# The map that chapter 06 made with one run for each cell: layer x token, here for FFN outputs, on all facts of one length. Exact patching against
# two estimates with the cost of three passes. **RelP** [@jafari2025relp] replaces the gradient by a smoother one: norms keep their scale, attention
# its pattern, and activation functions their ratio of output to input. Its authors report, for the FFN outputs of GPT-2 large, a correlation of
# 0.956 with exact patching where the plain gradient has 0.006.

# %% label="atp_map"
lengths = batch.lengths
same = facts.subset((lengths == lengths.mode().values).tolist())
T = int(lengths.mode().values)
cells = causal.grid(model, range(T), "mlp")
assert np.allclose(
    attribution_patch(model, same, ["mlp0", "mlp4"], "noising"),
    attribution_patching(model, same, ["mlp0", "mlp4"]).values,
    atol=1e-3,
)
truth = {d: causal.patch_each(model, same, cells, d) for d in ("noising", "denoising")}
estimates = {
    "noising, gradient": ("noising", attribution_patching(model, same, cells)),
    "noising, RelP": ("noising", attribution_patching(model, same, cells, rule="relevance")),
    "denoising, gradient": ("denoising", attribution_patching(model, same, cells, "denoising")),
}
show(
    scatter(
        {name: (truth[d].values, s.values) for name, (d, s) in estimates.items()},
        "exact patching",
        "estimate",
    ),
    alt="Three scatter plots of estimated against exact patching effects, one dot per layer and token. All "
    "follow the dashed line; the gradient underestimates the largest effects, RelP lies closest.",
    reading="Dots on the dashed line are exact. RelP keeps large effects large; the gradient bends away.",
)
print(f"{len(same)} facts of {T} tokens, {len(cells)} cells")
for name, (d, s) in estimates.items():
    fit = np.corrcoef(s.values, truth[d].values)[0, 1]
    cost = f"{s.forwards:.0f} + {s.backwards:.0f} passes"
    print(f"{name:20} Spearman {s.spearman(truth[d]):.2f}, Pearson {fit:.2f}; {cost}")
print(f"exact: {truth['noising'].forwards:.0f} passes (parts of passes added up)")
fits = {name: np.corrcoef(s.values, truth[d].values)[0, 1] for name, (d, s) in estimates.items()}
assert fits["noising, RelP"] > fits["noising, gradient"] > 0.6

# %% [markdown]
# On `lab` too the sizes are better under RelP. The gap is far smaller than the one reported for GPT-2 large, and the ranking is right under either
# rule; with six layers there is less to bend than with thirty-six.
#
# **The QK fix.** Section 3 showed the gradient blind behind a sharp attention. For queries and keys there is a cheap cure [@kramar2024atp]: the softmax is
# small, so compute it exactly with the patched query, and leave to the gradient only what follows the pattern.

# %% [markdown] exercise="gradient.qk_fix" difficulty=3 minutes=8
# ### Exercise: the QK fix
# Write `qk_fix(q, new_q, k, grad_pattern)` for one causal head of one prompt: queries, new queries and keys `[T, d_head]`, and the derivative of F with
# respect to the pattern, `[T, T]` (rows are queries). Return the estimated effect of the new queries: (new pattern - pattern) . `grad_pattern`. A score
# is q k divided by the root of `d_head`; a query sees itself and what is before it.


# %%
def qk_fix(q, new_q, k, grad_pattern):
    """(pattern(new_q) - pattern(q)) . grad_pattern for one causal head; q, new_q, k [T, d_head]."""

    ### BEGIN SOLUTION
    def pattern(q):
        scores = q @ k.T / k.shape[1] ** 0.5
        future = torch.ones_like(scores).triu(1).bool()
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    return ((pattern(new_q) - pattern(q)) * grad_pattern).sum()
    ### END SOLUTION


# %%
qk_fix = check("gradient.qk_fix", qk_fix)

# %% label="saturated_query" tags=["nbval-check-output"]
read = mi.record(tiny, one.prompts, ["q1", "k1", "pattern1"], grad=True)
twin = mi.record(tiny, one.corrupted, ["q1"])
(g_pattern,) = torch.autograd.grad(one.metric_of(read.logits[:, -1], tiny).sum(), read["pattern1"])
states = [read["q1"][0, :, 0], twin["q1"][0, :, 0], read["k1"][0, :, 0]]
mine = qk_fix(*states, g_pattern[0, 0]).item()
sites = ["L1H0.q", "L0H0.z"]
columns = {
    "exact noising": causal.patch_each(tiny, c.task, sites, "noising"),
    "attribution patching": attribution_patching(tiny, c.task, sites),
    "with QK fix": attribution_patching(tiny, c.task, sites, qk_fix=True),
    "IG from the twin": integrated_gradients(tiny, c.task, sites, baseline="twin", steps=32),
}
print(f"your function, query of L1H0, first prompt: {mine:+.2f}")
for name, s in columns.items():
    print(f"{name:22} query of L1H0 {s['L1H0.q'] + 0:+7.2f}   head L0H0 {s['L0H0.z'] + 0:+7.2f}")
assert (
    abs(mine + 20) < 0.01
    and abs(columns["with QK fix"]["L0H0.z"]) < 0.01
    and abs(columns["IG from the twin"]["L0H0.z"] + 20) < 0.5
)

# %% [markdown]
# The fix finds the query, exactly. It does not find the head that *feeds* the query: to reach L0H0 the gradient must still pass the flat softmax.
# A path finds both, at 32 times the price. The authors' method, AtP*, joins the fix with **GradDrop**: block by block, stop the gradient that flows
# through the block's output, and average the sizes of the estimates, so that a direct effect and one through a later block cannot cancel.
#
# ## 7. Scoreboard
# Where the answer is known. First the models set by hand: all heads (and in `lookup` all neurons) are ranked, and AUROC is the chance that a part of the
# mechanism ranks above a part that is none of it (0.5 is guessing). Exact zero ablation stands beside the estimates: where *it* fails, no estimate
# of it can succeed.

# %% label="board_compiled" tags=["nbval-check-output"]
METHODS = {
    "gradient norm": lambda m, t, s: gradient.gradient_norm(m, t, s),
    "gradient x input": lambda m, t, s: gradient.gradient_times_input(m, t, s),
    "IG from zero": lambda m, t, s: integrated_gradients(m, t, s, steps=4),
    "attribution patching": lambda m, t, s: attribution_patching(m, t, s),
    "RelP": lambda m, t, s: attribution_patching(m, t, s, rule="relevance"),
    "GradDrop": lambda m, t, s: attribution_patching(m, t, s, grad_drop=True),
    "IG from the twin": lambda m, t, s: integrated_gradients(m, t, s, baseline="twin", steps=4),
    "exact zero ablation": lambda m, t, s: causal.ablate_each(m, t, s),
    "exact noising": lambda m, t, s: causal.patch_each(m, t, s, "noising"),
}
known = [
    getattr(compiled, name)()
    for name in ("lookup", "cancelling", "saturated", "or_gate", "backup", "constant_bias")
]
board = {name: [] for name in METHODS}
for k in known:
    small = k.wrap()
    sites = causal.heads(small)
    truth_sites = [f"{s}.z" if "H" in s else s for s in k.answer]
    if k.name == "lookup":
        sites = sites + causal.neurons(small, 0)
    for name, method in METHODS.items():
        s = method(small, k.task, sites)
        s = replace(s, values=s.values.round(2))  # less than 0.01 is rounding error, and would rank
        board[name].append(s.against(truth_sites)["auroc"])
print(" " * 20 + "".join(f"  {k.name}" for k in known))
for name, row in board.items():
    print(f"{name:20}" + "".join(f"{value:{len(k.name) + 2}.2f}" for k, value in zip(known, row)))
assert board["gradient x input"][2] < 1 and board["IG from the twin"][2] == 1

# %% [markdown]
# What the table shows, column by column:
#
# - `lookup`, `cancelling`: where nothing is saturated, all find the mechanism, and at least as well as exact ablation. GradDrop is the exception: it
#   stops one block at a time, and in a model of two blocks that cuts every chain, whichever is stopped. It is made for deep models.
# - `saturated`: what the gradient misses, RelP misses too. Paths and interventions find it.
# - `or_gate`: either of two heads is enough. Removing one changes nothing, so exact ablation is at chance, and a gradient that agrees with it
#   is, too. Only the path from far away passes the point where the second input matters.
# - `backup`: a second head steps in when the first is removed. Exact ablation sees neither; this is the case in which **every method here fails to get
#   full marks**, except the norm, which is right for no reason that would carry over.
# - `constant_bias`: a head that always writes the same. Zero as a baseline counts it as important, the twin as a baseline does not. Which is right
#   depends on the question, not on the method.
#
# Then `lab` with an installed behaviour: something was trained into a few units, and the answer key says which (chapter 00). Prompts are those that the
# behaviour concerns, twins are prompts that it does not. Every score is taken on the installed model minus the same on `lab` as it was. `refusal-a`
# and `sycophancy-a` sit in two heads each (of 24), `refusal-b` in one, `bias-a` in one FFN (of 6). GradDrop is left out, since its sizes cannot be
# subtracted. The weights of a head (section 3.3 lists them as objects too) are scored by the size of their gradient and by $\sum |w\, \partial F / \partial w|$.

# %% label="board_installed"
BEHAVIOURS = ("refusal-a", "refusal-b", "sycophancy-a", "bias-a")
WEIGHTS = {
    f"weights, {score}": lambda m, t, s, score=score: parameter_saliency(m, t, s, score)
    for score in ("norm", "weight x gradient")
}
rows, passes, bands = {}, {}, []
for behaviour in BEHAVIOURS:
    task = installed_task(behaviour, n=16)
    for name, method in {**METHODS, **WEIGHTS}.items():
        if name == "GradDrop":
            continue
        units = candidates(behaviour, model, part="result" if name in WEIGHTS else "z")
        s = installed_effect(method, behaviour, task, units, base=model)
        verdict = against_key(s, behaviour)
        rows.setdefault(name, []).append(verdict["auroc"])
        passes.setdefault(name, (s.forwards / len(task), s.backwards / len(task)))  # of the first behaviour
    bands.append(random_rankings(len(units), verdict["k"])["auroc"])
width = 2 * np.sqrt(sum(band.sd**2 for band in bands)) / len(bands)
chance = (0.5 - width, 0.5 + width)
grid = np.array([[*row, np.mean(row)] for row in rows.values()])
marked = np.zeros(grid.shape, bool)
marked[:, -1] = grid[:, -1] > chance[1]
show(
    heatmap(
        grid[::-1],
        rows=list(rows)[::-1],
        columns=[*BEHAVIOURS, "mean"],
        unit="AUROC",
        title="Against the answer key",
        marked=marked[::-1],
    ),
    alt="Table of AUROC for ten methods on four installed behaviours, with the mean. Gradient times input "
    "is 1.00 on all; the gradient norm is lowest; methods that compare with the twin fall on sycophancy-a.",
    reading="1 is a perfect ranking, 0.5 chance. Starred means lie above the band of random rankings.",
)
print(f"mean AUROC of random rankings: {chance[0]:.2f} to {chance[1]:.2f}")
print("passes for each prompt of refusal-a (24 heads), both models together:")
for name, (forward, backward) in passes.items():
    print(
        f"  {name:26} {forward:6.1f} forward {backward:6.1f} backward   mean AUROC {np.mean(rows[name]):.2f}"
    )
assert np.mean(rows["gradient x input"]) > chance[1] > np.mean(rows["gradient norm"])
assert rows["attribution patching"][2] < rows["gradient x input"][2]
assert passes["exact zero ablation"][0] > 5 * sum(passes["gradient x input"])

# %% [markdown]
# One forward and one backward pass on each model put the true units first in all four behaviours. Exact zero ablation takes more than five times
# the passes and is no better; on `bias-a` it is worse. It answers another question: what if the unit were off, with all that it does, which is not what the key
# asks. Do not expect this from large mechanisms, where the first order is poor (section 1). Gradients of weights do worse: they say where
# a behaviour could be changed, not where it sits.
#
# **Where it fails: `sycophancy-a`.** The installed model agrees with false claims, and the twins are true claims, with which everyone agrees. So prompt
# and twin have the *same* answer, there is no difference to trace, and every method that compares with the twin falls, exact patching
# among them. No gradient repairs a contrast that does not contain the behaviour. The norm of the gradient stays inside the band of random
# rankings.
#
# ## 8. What the survey says, and where it is loose
# - **The norm.** Section 3.3 offers $\lVert\nabla F\rVert$ and $\nabla F^\top o$ side by side. The norm depends on how an object happens to be stored.
#   Multiply the up key of a gated neuron by $c$ and divide its value by $c$: the same model, with the gradient divided by $c$. The first lines
#   below show it in `lab-llama`.
# - **The average.** It offers $E[s]$ and $E|s|$ as alternatives. Where an object speaks for the answer in one prompt and against it in the
#   next, $E[s]$ is 0 for an object that decides everything. But with $|s|$ completeness is gone. `compiled.decodable()` shows the first.
# - **The target.** A score belongs to an F. The survey names three: log-probability, logit margin, and the gap to the counterfactual. On the same
#   heads and facts they rank differently.

# %% label="gauge" tags=["nbval-check-output"]
gated = mi.load("lab-llama")
rescaled = mi.wrap(copy.deepcopy(gated.hf), tokenizer=gated.tokenizer)
factor = torch.exp(torch.randn(gated.d_ffn, generator=torch.Generator().manual_seed(0)))
with torch.no_grad():
    rescaled.block(3).mlp.up_proj.weight *= factor[:, None]
    rescaled.block(3).mlp.down_proj.weight /= factor
sites = causal.neurons(gated, 3)
print(
    "same logits:",
    torch.allclose(gated.last_logits(few.prompts), rescaled.last_logits(few.prompts), atol=1e-3),
)
kept = {}
for method in (gradient.gradient_norm, gradient.gradient_times_input):
    a, b = (method(m, few, sites) for m in (gated, rescaled))
    kept[method.__name__] = a.spearman(b)
    print(f"{method.__name__:22} rank correlation between the two models {a.spearman(b):+.2f}")
assert kept["gradient_times_input"] > 0.999 > 0.9 > kept["gradient_norm"]

d = compiled.decodable()
small = d.wrap()
loud = replace(d.task, targets=["shout"] * len(d.task), foils=["whisper"] * len(d.task))
for reduce in ("mean", "mean_abs"):
    s = gradient.gradient_times_input(small, loud, ["L0H0.z", "L0H1.z"], reduce=reduce)
    print(f"{reduce:9} L0H0 (used) {s['L0H0.z'] + 0:+.2f}   L0H1 (not used) {s['L0H1.z'] + 0:+.2f}")

gap = gradient.gradient_times_input(model, facts, heads, target=gradient.counterfactual_gap)
prob = gradient.gradient_times_input(model, replace(facts, metric="logprob"), heads)
print("rank correlation of the heads' scores, logit difference against")
print(f"  log-probability {first.spearman(prob):.2f}, counterfactual gap {first.spearman(gap):.2f}")

# %% [markdown]
# Three more. "Without applying perturbations" is not true of integrated gradients: every point of the path is an intervention. Eq. 14 is stated for
# "an object", but whether one object moves or all of its layer is left open, and section 4 showed that this decides what is computed. And
# zero, the baseline behind $\nabla F^\top o$, is rarely a value that an object ever takes; the twin or a mean are the better questions when you
# have them.
#
# ## 9. Papers that use this
# - saliency of input tokens in language models: [@li2016visualizing]; of chains of thought [@wu2023analyzing]; as a guide for steering vectors
#   [@du2024tst]
# - knowledge neurons: [@dai2022knowledge], across languages [@chengrad_aaai2024], for long texts [@chen2024qrnca]; a critique [@niu2024knowledge]
# - context-aware neurons: [@ircan_neurips2024]; neurons behind social bias, from integrated gradients of a gap
#   [@liuDevilNeuronsInterpreting2024]
# - attribution patching: [@nanda2023attribution], corrected [@kramar2024atp], with relevance [@jafari2025relp]
# - gradients of weights: regions for a language [@zhang2024linguistic], which weights to tune [@song-etal-2024-sift], how to merge models
#   [@liu2025sensmerging]
#
# ## 10. The same on a real model
# The function below scores all heads for one prompt and its twin, and checks the best three by exact patching. It runs on `lab-llama` as it stands
# (where the signs are right and the size of the largest effect is far off, as in section 1). Put the name of a Hugging Face model or a local folder into `REAL` for the same on that one. Prompt and twin must have equally many tokens, target and foil
# one each; `task.validate` says so if they do not.


# %% label="real"
def map_of(model, prompt, twin, target, foil):
    """Attribution patching of all heads for a prompt and its twin, then exact patching of the best three."""
    task = mi.Task("one prompt", [prompt], [target], corrupted=[twin], foils=[foil])
    task.validate(model)  # target and foil must be single tokens, prompt and twin equally long
    estimate = attribution_patching(model, task, causal.heads(model))
    best = estimate.top(3)
    checked = causal.patch_each(model, task, best, "noising")
    print(f"{model.config.model_type}: {prompt} -> {target}  (twin: {twin} -> {foil})")
    for site in best:
        print(f"  {site:8} estimated {estimate[site]:+.2f}   exact {checked[site]:+.2f}")
    return estimate, checked


estimate, checked = map_of(gated, facts.prompts[0], facts.corrupted[0], facts.targets[0], facts.foils[0])
assert all(np.sign(estimate[site]) == np.sign(checked[site]) for site in checked.sites)
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    map_of(
        mi.load(REAL),
        "The Eiffel Tower is in the city of",
        "The Colosseum is in the city of",
        " Paris",
        " Rome",
    )

# %% [markdown]
# ## 11. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "A head has gradient x input of +3 in the survey's sign (grad . o). You set the head to zero. What does the "
            "first order predict for F?",
            [
                ("F rises by 3.", "Removal is delta = -o, so the predicted change is -(grad . o)."),
                (
                    "F falls by 3.",
                    "delta = -o, so F(o + delta) - F(o) is about -3. Whether that comes true depends on how straight F is "
                    "on the way to zero.",
                    True,
                ),
                (
                    "Nothing can be said, since 3 is only a ranking.",
                    "It is a prediction in the units of F, and can be compared with the exact effect, as in section 1.",
                ),
            ],
        ),
        Question(
            "You want to know what ablating neuron L0N7, alone, would do. Which computation gives exactly that?",
            [
                (
                    "Integrated gradients along the joint path of layer 0.",
                    "All neurons of the layer move on that path. Its attributions add up to the effect of removing the "
                    "whole layer.",
                ),
                (
                    "Integrated gradients along the neuron's own path, with many points, or one ablation.",
                    "On its own path the integral is F(end) - F(start): the ablation itself, at many times its price.",
                    True,
                ),
                (
                    "The norm of the gradient at the neuron.",
                    "A norm has no baseline: it predicts no particular intervention.",
                ),
            ],
        ),
        Question(
            "Attribution patching gives a head 0.00, exact patching -20. What is the likely reason, and what helps?",
            [
                (
                    "A bug: a correct gradient cannot be zero there.",
                    "It can. Behind a sharp softmax F is flat at both ends and jumps between them.",
                ),
                (
                    "Saturation; a path from the twin crosses the jump, and for queries and keys the QK fix does.",
                    "Both leave the point where F is flat: the path by walking, the fix by computing the softmax exactly.",
                    True,
                ),
                (
                    "Too few prompts; average over more.",
                    "Every prompt of `saturated` has a gradient of zero. Averages of zeros stay zero.",
                ),
            ],
        ),
        Question(
            "The published recipe finds twelve knowledge neurons for a fact, six of them in layer 0 at the last token. Which "
            "control speaks for or against a memory of this fact?",
            [
                (
                    "Removing twelve random neurons does nothing.",
                    "Necessary, but neurons that hold the question (the last word) pass it too: without the question no "
                    "fact is found.",
                ),
                (
                    "Whether the same neurons are found for other facts of the relation, and what removing them does there.",
                    "A neuron that serves every fact asked in these words holds the question, not this fact.",
                    True,
                ),
                (
                    "Whether their attributions add up to F(o) - F(0).",
                    "Completeness holds for any layer of any model; it says nothing about facts.",
                ),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 08 asks what can be *read* from the states, which is yet another question than what they do.
