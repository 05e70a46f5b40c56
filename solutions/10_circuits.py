# %% [markdown]
# # 10 Circuits
# The earlier chapters scored parts. A circuit also says how they are wired: which part reads what which other part wrote. This chapter builds
# the graph of a model, measures single edges, estimates all of them at once, cuts out a circuit, and asks what a circuit is worth. Survey
# ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 3.6, Eq. 17 and 18.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - write down the graph of a transformer and count its edges
# - measure one edge exactly, and say how that differs from patching its sender
# - estimate all edges with one backward pass (EAP), say with which sign, and where it must fail
# - average gradients on a path (EAP-IG), and know which sum it preserves and which it does not
# - prune a graph edge by edge (ACDC) and count the passes
# - run a circuit alone, and judge it: faithfulness over size, completeness, minimality, random circuits, stability
#
# **The claim.** In `lab`, the choice of the receiver in sentences such as *johan and tara went to the market, johan gave a ring to* (answer:
# *tara*) is carried by about a twentieth of the edges: alone, with all other edges patched from the twin sentence, they keep nine
# tenths of the effect, while as many random edges keep nothing (survey, section 3.6). What stands in place of the other edges decides how
# true that is.

# %% label="setup"
import math
from dataclasses import replace

import numpy as np
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import circuits as ev
from mi_course.evaluate import null_band
from mi_course.evaluate.localizers import random_rankings
from mi_course.locate import eap
from mi_course.locate.acdc import acdc
from mi_course.locate.circuit import CircuitRunner
from mi_course.locate.edges import ablate_edges
from mi_course.locate.feature_circuits import error_share, feature_effects
from mi_course.locate.graph import Graph
from mi_course.locate.head_report import head_reports
from mi_course.models import weights
from mi_course.objects.weights import head
from mi_course.teach import Question, check, curves, heatmap, quiz, show
from mi_course.world import compiled, installed_tasks, scoreboard

torch.manual_seed(0)
model = mi.load()
graph = Graph(model)
print(graph)

# %% [markdown]
# ## 1. The graph
# The residual stream is a sum, so whoever reads it reads every earlier writer separately. That makes a graph:
#
# - **senders** write to the stream: `x0` (embedding plus position, the input of block 0), every head (`L0H1`), every FFN (`mlp2`). Chapter 02
#   called this the *write* of a head;
# - **receivers** read from it: each head three times, for its queries, keys and values (`L3H1.q`, `L3H1.k`, `L3H1.v`), each FFN, and the
#   unembedding (`logits`);
# - an **edge** `L0H1->L3H1.q` is what one sender contributes to what one receiver reads, *before* the receiver's norm.
#
# An edge exists where the sender is computed first. In blocks that work in sequence, as GPT-2's, the FFN reads the heads of its own layer; in
# parallel blocks (GPT-J, Pythia) both read $x^l$. The biases of the output projections belong to no sender: they are the same in every run.

# %% [markdown] exercise="circuits.count_edges" difficulty=2 minutes=6
# ### Exercise: count the edges
# Write `count_edges(n_layers, n_heads, parallel=False)`: how many edges does a transformer have whose heads all have their own keys and values?


# %%
def count_edges(n_layers, n_heads, parallel=False):
    """Number of edges from x0, heads and FFNs to the q, k, v of heads, FFNs and the logits."""
    ### BEGIN SOLUTION
    edges, senders = 0, 1
    for _ in range(n_layers):
        edges += 3 * n_heads * senders + senders + (0 if parallel else n_heads)
        senders += n_heads + 1
    return edges + senders
    ### END SOLUTION


# %%
count_edges = check("circuits.count_edges", count_edges)

# %% label="counts" tags=["nbval-check-output"]
print("lab:        ", count_edges(6, 4), "edges;", f"Graph(model) has {len(graph)}")
print("GPT-2 small:", f"{count_edges(12, 12):,}", "edges (Conmy et al.: about 32,000)")
assert count_edges(6, 4) == len(graph) == len(graph.edges) and count_edges(12, 12) == 32_491

# %% [markdown]
# In code, anything over edges is a matrix with a row for each sender and a column for each receiver: scores are numbers in it, a circuit is
# True and False. `graph.names` and `graph.mask` translate.
#
# ## 2. One edge, exactly
# Patching a head (chapter 06) changes what *everybody* after it reads. Patching an edge changes what one receiver reads, $x - a_u + a_u'$,
# where $a_u$ is the sender's write in this run and $a_u'$ its write in another run, here that of the corrupted **twin**. All that follows the
# receiver computes again. For a chain of edges this is called path patching ([@wang2023interpretability; @stolfo-etal-2023-mechanistic]).

# %% [markdown] exercise="circuits.value_edge" difficulty=3 minutes=12
# ### Exercise: patch one edge
# Write `value_edge(model, task, change, layer, head_index)`: the values of one head, and nobody else, read $x^{layer}$ plus `change`, a tensor
# `[n, T, d]` (the sender's other write minus its own). Return F(changed) - F(clean) for each item, `[n]`. `weights.attn_norm(model, layer)` is
# the norm in front of the head, `head(model, layer, head_index)` has its `W_V` and `b_V`, and the site of its values is `L1H0.v`.


# %%
def value_edge(model, task, change, layer, head_index):
    """[n]: F(edge changed) - F(clean) when only the values of one head read x^layer + change."""
    ### BEGIN SOLUTION
    x = mi.record(model, task.prompts, [f"x{layer}"])[f"x{layer}"]
    w = head(model, layer, head_index)
    values = weights.attn_norm(model, layer)(x + change) @ w.W_V + w.b_V
    clean = task.measure(model)
    with mi.intervene(model, mi.patch(f"L{layer}H{head_index}.v", values)):
        return task.measure(model) - clean
    ### END SOLUTION


# %%
value_edge = check("circuits.value_edge", value_edge)

# %% [markdown]
# `compiled.mediation()` is a small GPT-2 with hand-set weights. Its head L0H0 reaches the logits on two ways: directly (3 per unit), and
# through the values of L1H0 (2 per unit). `ablate_edges` measures any edges of any model; here it does all of this one.

# %% label="mediation" tags=["nbval-check-output"]
known = compiled.mediation()
tiny = known.wrap()
with torch.no_grad():
    twin, own = (mi.record(tiny, p, ["L0H0"])["L0H0"] for p in (known.task.corrupted, known.task.prompts))
    by_hand = value_edge(tiny, known.task, twin - own, 1, 0)
print("by hand, L0H0->L1H0.v:", [round(v, 3) for v in by_hand.tolist()])
exact_tiny = ablate_edges(tiny, known.task)
for edge in exact_tiny.top(4):
    print(f"  {str(edge):16} {exact_tiny[edge]:+.2f}")
others = [v for e, v in zip(exact_tiny.sites, exact_tiny.values) if e not in exact_tiny.top(4)]
print("largest of the other", len(others), "edges:", round(max(map(abs, others)), 4))
assert set(exact_tiny.top(4)) == set(known.edges) and torch.allclose(
    by_hand, torch.tensor([-2.0, -2.0]), atol=1e-3
)

# %% [markdown]
# The two ways out of L0H0 add up to the total effect of patching the head, -5, as they must in a linear model, and `x0->L0H0.v` carries all
# of it. Every other edge carries nothing. This is what a correct answer looks like.
#
# ## 3. All edges at once: EAP
# Exact patching costs a pass for each edge. **Edge attribution patching** ([@syed2024attribution]) estimates them all from two
# forward passes and one backward pass. To first order, the effect of a change is the change times the slope:
#
# $$S(u \to v) = \big(a_u^{corr} - a_u^{clean}\big) \cdot \frac{\partial F}{\partial z_v}\Big|_{clean}$$
#
# with $z_v$ what receiver $v$ reads. The product runs over tokens and dimensions, and items are averaged. This is chapter 07's attribution
# patching for edges: the writes come from two recorded runs, the gradients at all receivers from one backward pass.

# %% [markdown] exercise="circuits.eap_scores" difficulty=2 minutes=8
# ### Exercise: score every edge
# Write `eap_scores(clean, corrupted, gradients)`: writes of `s` senders in the two runs, `[s, B, T, d]`, and for `r` receivers the
# gradient at what they read, `[r, B, T, d]`. Return the estimate of F(edge corrupted) - F(clean), averaged over the B items, for every pair: `[s, r]`.


# %%
def eap_scores(clean, corrupted, gradients):
    """Estimate of F(edge corrupted) - F(clean), mean over items: [n_senders, n_receivers]."""
    ### BEGIN SOLUTION
    change = corrupted - clean
    return torch.einsum("sbtd,rbtd->sr", change, gradients) / clean.shape[1]
    ### END SOLUTION


# %%
eap_scores = check("circuits.eap_scores", eap_scores)

# %% [markdown]
# Your function on `lab`, for one receiver whose gradient is easy to get: the logits read $x^L$. `eap.eap` does the same for all
# receivers. It takes the gradients at q, k, v and FFN from one backward pass and goes back through each norm by formula.

# %% label="eap_by_hand" tags=["nbval-check-output"]
task = world.task("ioi", split="train", n=16)
clean_run, twin_run = (mi.record(model, p, [f"x{model.n_layers}", "x0", *graph.senders[1:]], grad=True)
                       for p in (task.prompts, task.corrupted))  # fmt: skip
F = task.metric_of(clean_run.logits[torch.arange(len(task)), clean_run.batch.last], model)
gradient = torch.autograd.grad(F.sum(), clean_run[f"x{model.n_layers}"])[0]
writes = [torch.stack([run[sender].detach() for sender in graph.senders]) for run in (clean_run, twin_run)]
by_hand = eap_scores(*writes, gradient[None])[:, 0]

scores = {"EAP": eap.eap(model, task)}
into_logits = graph.matrix(scores["EAP"])[:, -1]
print(
    "largest edge into the logits:",
    graph.senders[into_logits.abs().argmax()],
    round(into_logits.abs().max().item(), 2),
)
print("same as the library:", torch.allclose(by_hand, into_logits, atol=1e-3))
print(
    f"passes for all {len(graph)} edges: {scores['EAP'].forwards} forwards, "
    f"{scores['EAP'].backwards} backwards of {len(task)} prompts"
)
assert torch.allclose(by_hand, into_logits, atol=1e-3)

# %% [markdown]
# **The sign.** Here a negative score means: corrupting this edge hurts, so it helps. The survey's Eq. 17 has clean minus corrupted,
# which is *minus* the first-order effect of corrupting the edge; the released EAP-IG code has corrupted minus clean. For rankings by size it
# does not matter; for thresholds and sums it does. In the linear model the estimate is exact, so the sign can be tested:

# %% label="sign" tags=["nbval-check-output"]
estimate = eap.eap(tiny, known.task)
for edge in ("L0H0->logits", "L0H0->L1H0.v"):
    print(
        f"{edge:14} exact {exact_tiny[edge]:+.2f}   EAP {estimate[edge]:+.2f}   "
        f"the survey's sign {-estimate[edge]:+.2f}"
    )
assert np.allclose(estimate.values, exact_tiny.values, atol=1e-2)

# %% [markdown]
# ## 4. Where the slope is zero: EAP-IG
# A first-order estimate is blind on a plateau. In `compiled.saturated()` a word such as *first* decides which of two fruits to pick. Its head
# L0H0 sets the query of L1H0, whose softmax is saturated: a small change of the query changes nothing, the whole change turns the choice round.
# **EAP-IG** ([@hanna2024faith]) takes the gradient at several inputs on the straight way between the twins and averages:
#
# $$x_k = x^{corr} + \alpha_k\,(x^{clean} - x^{corr}), \qquad S(u \to v) = \big(a_u^{corr} - a_u^{clean}\big) \cdot \frac{1}{n} \sum_{k}
# \frac{\partial F}{\partial z_v}\Big|_{x_k}$$
#
# Token ids cannot be mixed, so $x$ is the *embedded* input x0, and the twins must have the same length. The survey's Eq. 18 has $\alpha_k = k/n$, $k = 1 \dots n$
# (`right`); the released code starts at 0 and leaves the clean end out (`left`). In general the midpoint rule needs the fewest steps; in the numbers below `left` happens to come as near or nearer.

# %% [markdown] exercise="circuits.path_average" difficulty=2 minutes=8
# ### Exercise: the mean gradient on a path
# Write `path_average(gradient, clean, corrupted, steps, rule)`: `gradient(x)` gives a tensor like `x`. Return its mean over `steps` points
# corrupted + alpha (clean - corrupted), with alpha = k/steps (`"left"`), (k + 1)/steps (`"right"`) or (k + 1/2)/steps (`"midpoint"`) for
# k = 0 ... steps - 1.


# %%
def path_average(gradient, clean, corrupted, steps, rule="midpoint"):
    """Mean of gradient(x) over points between corrupted and clean, shaped like clean."""
    ### BEGIN SOLUTION
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    alphas = [(k + shift) / steps for k in range(steps)]
    return sum(gradient(corrupted + alpha * (clean - corrupted)) for alpha in alphas) / steps
    ### END SOLUTION


# %%
path_average = check("circuits.path_average", path_average)

# %% [markdown]
# The same thing on the saturated model. We also use your function to integrate the gradient at the input of `lab`: times the change of the input
# it must give the whole change of F. On the saturated model watch how many steps it takes: the slope is steep on a short piece of the way, and five points
# hit or miss it.

# %% label="saturated" tags=["nbval-check-output"]
flat = compiled.saturated()
blind = flat.wrap()
edge = "L0H0->L1H0.q"
print(
    f"{edge}: exact {ablate_edges(blind, flat.task, [edge])[edge]:+.1f}, "
    f"EAP {abs(eap.eap(blind, flat.task)[edge]):.4f}"
)
for steps in (5, 20):
    print(f"  EAP-IG with {steps:2} steps {eap.eap_ig(blind, flat.task, steps=steps)[edge]:+.1f}")
assert abs(eap.eap(blind, flat.task)[edge]) < 1e-4 and eap.eap_ig(blind, flat.task, steps=20)[edge] < -10


def input_gradient(x0):
    """Gradient of the summed metric with respect to x0, for the clean prompts of the task."""
    x0 = x0.requires_grad_()
    logits = model.resume(0, x0, task.prompts, grad=True, last=True)
    return torch.autograd.grad(task.metric_of(logits, model).sum(), x0)[0]


x_clean, x_corr = writes[0][0], writes[1][0]
change_of_F = (task.measure(model, on="corrupted") - task.measure(model)).sum().item()
print(f"lab: F(corrupted) - F(clean), summed: {change_of_F:.1f}; from gradients at the input:")
for steps in (2, 8):
    sums = [((x_corr - x_clean) * path_average(input_gradient, x_clean, x_corr, steps, rule)).sum().item()
            for rule in ("left", "midpoint", "right")]  # fmt: skip
    print(f"  {steps:2} steps: left {sums[0]:.1f}, midpoint {sums[1]:.1f}, right {sums[2]:.1f}")
assert abs(sums[1] - change_of_F) < 0.05 * abs(change_of_F)

# %% [markdown]
# Integrated gradients on the *input* keep the sum (chapter 07). The survey's text suggests that the edge scores inherit this completeness. They
# do not: only the gradient is averaged on the path, while $a_u^{corr} - a_u^{clean}$ is the whole difference. What is preserved is the sum over the edges that
# *leave the input*, because their write is the thing that moves on the path.

# %% label="identity" tags=["nbval-check-output"]
many = eap.eap_ig(model, task, steps=12)
total = change_of_F / len(task)
print(f"F(corrupted) - F(clean) = {total:.2f}; sums of EAP-IG scores with 12 steps:")
for name, ends in {
    "edges that leave x0": "x0->",
    "edges into the logits": "->logits",
    "all edges": "->",
}.items():
    print(f"  {name:22} {sum(v for e, v in zip(many.sites, many.values) if ends in e):8.2f}")
from_input = sum(v for e, v in zip(many.sites, many.values) if e.startswith("x0->"))
assert abs(from_input - total) < 0.02 * abs(total)

# %% [markdown]
# So a share such as "these edges explain 80 % of the score" has no meaning in general. `eap_ig(..., path="activations")` moves one sender's
# write at a time instead; then all edges that leave a sender sum to the effect of patching that sender. It needs a path for every sender.
#
# ## 5. A behaviour of `lab`, edge by edge
# The task is the choice of the receiver, called indirect object identification (IOI) after the study of GPT-2 ([@wang2023interpretability]):
# two names, one is repeated, the answer is the other one. The twin repeats the other name, so its answer is the foil. F is logit(answer) - logit(foil).
# We measure all 1,108 edges exactly on 16 training prompts, as the reference, and compare.

# %% label="exact" tags=["nbval-check-output"]
print(task.prompts[0], "->", task.targets[0])
print(task.corrupted[0], "->", task.foils[0])
print(f"F: clean {task.measure(model).mean():.1f}, twins {task.measure(model, on='corrupted').mean():.1f}")
exact = ablate_edges(model, task)
scores |= {
    "clean-corrupted EAP": eap.clean_corrupted(model, task),
    "EAP-IG, 5 steps": eap.eap_ig(model, task),
    "EAP-IG on activations": eap.eap_ig(model, task, steps=2, path="activations"),
    "random": graph.scores(torch.randn(graph.allowed.shape), "random", "magnitude"),
}
important = exact.top(55)  # the 5 % that matter most
print("the largest exact effects:", ", ".join(f"{e} {exact[e]:+.1f}" for e in exact.top(5)))
print(f"{'':22} rank corr.  of sizes  AUROC  slope  ")
quality = {}
for name, found in scores.items():
    ranks = found.spearman(exact, by="positive"), found.spearman(exact, by="abs")
    quality[name] = *ranks, found.against(important)["auroc"]
    slope = (found.values @ exact.values) / (exact.values @ exact.values)
    print(f"{name:22} {quality[name][0]:8.2f} {quality[name][1]:10.2f} {quality[name][2]:7.2f} {slope:6.2f}")
assert quality["EAP"][0] > quality["EAP-IG, 5 steps"][0] > 0.6 and quality["random"][2] < 0.7

# %% [markdown]
# Rank correlation (Spearman) with the exact effects, of the signed values and of their sizes; AUROC for the 5 % of edges with the largest exact effect;
# and the slope of the best line through 0 from exact to estimated. Every method finds the important edges. The rest did not come out as the papers lead one
# to expect: over all edges plain EAP ranks *better* than EAP-IG, while its values are less than half as large as they should be, and those of EAP-IG about right.
# EAP's slope is the saturation of section 4, seen in a trained model: near the clean run the model is sure, and the gradient is small. Most of the 1,108 edges,
# though, have small effects, and an exact patch of one edge leaves the rest of the clean run in place: for those the gradient at the clean run is the better guide. (The EAP paper reports $R^2$ 0.27
# and a slope of 0.53 on its docstring task.)
#
# ## 6. Running a circuit alone
# Take a set of edges. Its edges carry what they compute in this run, all others what they carry in the twin's run:
#
# $$\text{what receiver } v \text{ reads} = x' + \sum_{u \to v\ \text{in the circuit}} (a_u - a_u')$$
#
# with $x'$ the stream of the twin's run, $a_u'$ its writes, and $a_u$ the writes of this very run, in which earlier receivers already read something else.

# %% [markdown] exercise="circuits.circuit_input" difficulty=2 minutes=8
# ### Exercise: what a receiver reads
# Write `circuit_input(other_stream, writes, other_writes, kept)`: the other run's stream `[B, T, d]`, the writes of `s` senders in this run and in the other,
# `[s, B, T, d]`, and which of their edges to the receiver are in the circuit, truth values `[s]`. Return what it reads, `[B, T, d]`.


# %%
def circuit_input(other_stream, writes, other_writes, kept):
    """What a receiver reads when only the edges from `kept` senders are in the circuit: [B, T, d]."""
    ### BEGIN SOLUTION
    exchanged = writes[kept] - other_writes[kept]
    return other_stream + exchanged.sum(0)
    ### END SOLUTION


# %%
circuit_input = check("circuits.circuit_input", circuit_input)

# %% [markdown]
# With your function for the logits: keep no edge into them, all, or those from the FFNs. `CircuitRunner` does this at every receiver, in one forward
# pass for any circuit. A circuit of all edges but one must then equal the exact patch of that edge.

# %% label="runner" tags=["nbval-check-output"]
last = torch.arange(len(task)), clean_run.batch.last
x_twin = twin_run[f"x{model.n_layers}"].detach()
for name, kept in {
    "no edge": torch.zeros(31, dtype=torch.bool),
    "all edges": torch.ones(31, dtype=torch.bool),
    "FFNs only": torch.tensor([sender.startswith("mlp") for sender in graph.senders]),
}.items():
    read = circuit_input(x_twin, writes[0], writes[1], kept)
    value = task.metric_of(model.unembed(read[last]).detach(), model).mean()
    print(f"into the logits: {name:10} F = {value:6.2f}")

run_train = CircuitRunner(model, task)
for edge in exact.top(3):
    gone = (run_train(graph.allowed & ~graph.mask([edge])) - task.measure(model)).mean().item()
    print(f"all but {edge:15} {gone:+.3f}   exact patch {exact[edge]:+.3f}")
    assert abs(gone - exact[edge]) < 1e-2

# %% [markdown]
# The survey asks that a circuit be **faithful** and does not say in what units. We use
#
# $$\text{faithfulness}(C) = \frac{F(C) - F(\emptyset)}{F(\text{all}) - F(\emptyset)}$$
#
# with means over items: 1 is the whole model, 0 the run with every edge replaced. One circuit proves little, since it can be chosen at the size that looks best. The
# **MIB benchmark** ([@mueller2025mib]) takes the best edges at ten sizes from 0.1 % to 100 % and computes two areas: CPR under the curve, and CMD between the curve and 1.

# %% [markdown] exercise="circuits.areas" difficulty=2 minutes=8
# ### Exercise: two areas
# Write `areas(shares, faithfulness)`, two tensors `[n]` with rising shares of edges: return CPR, the area under faithfulness over shares, and CMD, the area between
# faithfulness and 1, both by trapezoids.


# %%
def areas(shares, faithfulness):
    """(CPR, CMD): area under the curve, and between the curve and 1; trapezoids."""
    ### BEGIN SOLUTION
    width = shares.diff()

    def area(height):
        return (width * (height[1:] + height[:-1]) / 2).sum()

    return area(faithfulness), area((1 - faithfulness).abs())
    ### END SOLUTION


# %%
areas = check("circuits.areas", areas)

# %% [markdown]
# Edges are ranked on the training prompts, circuits run on 20 *test* prompts with other names and sentences. The null: random edges, as many. The figure shows
# faithfulness over the share of edges kept, on a logarithmic axis; the grey band is the null.

# %% label="curves"
test = world.task("ioi", split="test", n=20)
run = CircuitRunner(model, test)
shares = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
ranked = {"exact": exact} | {name: s for name, s in scores.items() if name != "random"}
lines = {
    name: ev.faithfulness_curve(run, graph.matrix(s), graph.allowed, shares) for name, s in ranked.items()
}
null_lines = []
for seed in range(3):
    random_ones = [ev.random_circuit(graph.allowed, int(k), seed) for k in lines["exact"].sizes]
    null_lines.append(ev.circuits_curve(run, random_ones, graph.allowed))
figure = curves(
    shares,
    {name: line.faithfulness for name, line in lines.items()}
    | {"random": np.mean([line.faithfulness for line in null_lines], axis=0)},
    null=[line.faithfulness for line in null_lines],
    xlabel="share of edges in the circuit",
    ylabel="faithfulness",
    title="IOI in lab",
)
figure.axes[0].set_xscale("log")
show(
    figure,
    alt="Faithfulness against the share of edges, logarithmic. All five methods rise together from 0 at one "
    "percent to about 0.9 at five percent and 1 at twenty; random edges stay near 0 until half of the edges "
    "are in.",
    reading="Left to right: larger circuits. The five rankings rise together; random edges do not rise until "
    "almost all are there.",
)
print(f"{'':22} 2 % of edges  5 %    CPR    CMD")
for name, line in (lines | {"random": null_lines[0]}).items():
    cpr, cmd = areas(torch.tensor(line.shares), torch.tensor(line.faithfulness))
    print(f"{name:22} {line.faithfulness[2]:8.2f} {line.faithfulness[4]:8.2f} {cpr:6.3f} {cmd:6.3f}")
    assert abs(float(cpr) - line.cpr) < 1e-6
at_5 = {name: line.faithfulness[4] for name, line in lines.items()}
assert min(at_5.values()) > 0.7 and max(line.faithfulness[4] for line in null_lines) < 0.1

# %% [markdown]
# A twentieth of the edges does nearly the whole job, on sentences that played no part in the choice. Among the methods the differences are small; at 5 % EAP-IG is a
# little ahead, although it ranks all edges worse (section 5): for a circuit only the order at the top counts. On GPT-2 small, MIB has CPR 1.20 for EAP and 1.85 for EAP-IG on IOI, and 0.25 for
# random. CPR above 1 means circuits that overdo the behaviour, because edges that work against it were left out. Ours are ranked by size, so edges
# of both signs come in.
#
# ## 7. The circuit, and what it is worth
# Take EAP-IG's best 60 edges. Which nodes take part? The figure shows the edges between them: row = who writes, column = who reads, colour = EAP-IG score (its root, so that small ones can be seen).

# %% label="circuit"
matrix = graph.matrix(scores["EAP-IG, 5 steps"])
circuit = ev.top_edges(matrix, graph.allowed, 60)
rows = circuit.any(1).nonzero().flatten().tolist()
columns = circuit.any(0).nonzero().flatten().tolist()
show(
    heatmap(
        (matrix.sign() * matrix.abs().sqrt() * circuit)[rows][:, columns],
        [graph.senders[r] for r in rows],
        [graph.receivers[c] for c in columns],
        xlabel="reads",
        ylabel="writes",
        unit="signed root of the score",
        title="60 of 1,108 edges",
    ),
    alt="Matrix of writers by readers. x0 writes to layer 0 heads and to mlp0; mlp0 writes to most readers; "
    "heads of layers 1 and 2 write to the query of L3H1 and the FFNs; the right columns, the last FFN and "
    "the logits, are read from all layers.",
    reading="Purple: corrupting the edge hurts. From bottom left to top right the information moves up. "
    "Few heads take part; all FFNs do.",
)
heads_in = [graph.senders[r] for r in rows if graph.senders[r].startswith("L")]
print(f"{len(rows)} of {len(graph.senders)} senders take part, of the 24 heads:", " ".join(heads_in))
faithful = ev.faithfulness(run, circuit, graph.allowed)
print(
    f"faithfulness on test prompts {faithful:.2f}; right answers with the circuit alone "
    f"{(run(circuit) > 0).float().mean():.2f}"
)
assert faithful > 0.85

# %% [markdown]
# **Controls.** Random edges are a weak opponent, as few of them form a path from the input to the logits. Three stronger ones: the same degrees (pairs of edges exchange
# their receivers), the same wiring with the heads of each layer dealt anew, and the circuit of the same *nodes* with all edges among them.

# %% label="controls" tags=["nbval-check-output"]
rewired = [ev.rewire(circuit, graph.allowed, seed) for seed in range(5)]
dealt = [graph.shuffle_heads(circuit, seed) for seed in range(8)]
nodes = graph.of_nodes([graph.senders[r] for r in rows if graph.senders[r] != "x0"])


def faithful_to(circuits):
    return ev.circuits_curve(run, circuits, graph.allowed).faithfulness


same_degree, other_heads = faithful_to(rewired), faithful_to(dealt)
overlap = np.mean([ev.iou(circuit, r) for r in rewired])
print(f"the circuit                       {faithful:.2f}")
print(f"equal degrees                     {same_degree.mean():.2f}, overlap with the circuit {overlap:.2f}")
band = null_band(other_heads)
print(f"other heads, equal wiring         {band.mean:.2f} (band {band.low:.2f} to {band.high:.2f})")
print(f"all {int(nodes.sum())} edges among its nodes     {faithful_to([nodes])[0]:.2f}")
assert faithful > band.high and overlap > 0.9

# %% [markdown]
# The equal-degree control tells nothing here, and its overlap says why: the circuit is so dense on its few nodes that hardly any other set of edges has the same degrees. Dealing the heads anew
# is the control that bites. What it keeps, the FFNs and their edges, is not enough.
#
# **Complete?** A circuit can be faithful and still lack a backup that the model has. Wang et al. test it by removing the same edges K from both: if the model without K does better
# than the circuit without K, something outside helped. **Minimal?** Take out each edge alone and see whether F falls.

# %% label="complete" tags=["nbval-check-output"]
subsets = [*ev.random_subsets(circuit, 5, share=0.25), circuit]
without = ev.completeness(run, circuit, graph.allowed, subsets)
for (alone, whole), k in zip(without, subsets):
    print(f"without {int(k.sum()):2} of its edges: circuit {alone:6.1f}, whole model {whole:6.1f}")
gaps = [whole - alone for alone, whole in without]
drops = ev.minimality(run_train, circuit)
idle = [e for e, d in zip(graph.names(circuit), drops) if d.abs() < 0.1]
print(
    f"removing one edge: F falls by {-drops.min():.1f} at most; "
    f"{len(idle)} of 60 edges move F by less than 0.1:"
)
print("  ", " ".join(idle))
assert 0 < max(gaps) < 4 and len(idle) < 15

# %% [markdown]
# F runs from about -15 to 14. With random parts of the circuit gone, the whole model stays up to a few logits above the circuit: there is some backup outside, so it is not quite complete. And a few edges
# are idle while all others are there. Single removals understate edges that back each other up (chapter 06), so "idle" does not mean "useless".
#
# **Instead of what?** Until now the other edges carried the twin's values. That keeps all that both sentences have in common: names, grammar, that a name must come. Replace them with
# zeros, with mean writes, or with writes from other prompts of the task, and rank the edges by EAP-IG for that very replacement.

# %% label="complement" tags=["nbval-check-output"]
print("faithfulness of 60 edges      twin's circuit   own circuit   overlap of the two")
kept_by = {}
for kind in ("noising", "zero", "mean", "resample"):
    runner = CircuitRunner(model, test, kind)
    own = ev.top_edges(graph.matrix(eap.eap_ig(model, task, kind=kind)), graph.allowed, 60)
    kept_by[kind] = [ev.faithfulness(runner, c, graph.allowed) for c in (circuit, own)]
    print(f"  {kind:26} {kept_by[kind][0]:10.2f} {kept_by[kind][1]:14.2f} {ev.iou(circuit, own):14.2f}")
assert kept_by["noising"][0] > 0.85 > 0.6 > kept_by["mean"][0]

# %% [markdown]
# **Where it fails.** The same 60 edges that keep nine tenths against the twin keep about half against other prompts, and little against zeros or means; nor do 60 edges that were ranked for zeros or means. They are the circuit for *which of two names*, given a run that already knows that a
# name is due and where the names stand. A paper that says "faithfulness 0.9" without the replacement says little.
#
# ## 8. ACDC: edge by edge
# **ACDC** ([@conmy2023automated]) does not estimate. It starts from all edges, goes from the logits back to the input, tries the circuit without each edge, and drops the edge if the distance to
# the whole model grows by less than a threshold. The survey says it "avoids brute force" over edges. It tries them one at a time, a forward pass each; what it avoids are the $2^{1108}$
# subsets. Edges into a node that nothing reads any more go without a try.

# %% [markdown] exercise="circuits.prune" difficulty=3 minutes=10
# ### Exercise: prune
# Write `prune(edges, distance, threshold)`: `edges` in the order in which they are tried; `distance(kept)` says how far the circuit of these edges is from the whole model. Return the list of edges that
# stay. An edge goes when the distance grows by less than the threshold, compared with the circuit as it is then.


# %%
def prune(edges, distance, threshold):
    """The edges that stay, in their order."""
    ### BEGIN SOLUTION
    kept = list(edges)
    now = distance(kept)
    for edge in edges:
        trial = [other for other in kept if other != edge]
        new = distance(trial)
        if new - now < threshold:
            kept, now = trial, new
    return kept
    ### END SOLUTION


# %%
prune = check("circuits.prune", prune)

# %% [markdown]
# First on the compiled model with the saturated softmax, with your function, where the answer is known; then `acdc` on `lab` with 4 prompts, with two distances: the change of the mean metric, and the KL
# divergence of the next-token distribution, as published.

# %% label="acdc" tags=["nbval-check-output"]
small = Graph(blind)
run_small = CircuitRunner(blind, flat.task)
full_metric = run_small(small.allowed).mean()
left = prune(small.edges[::-1], lambda kept: (run_small(kept).mean() - full_metric).abs().item(), 0.01)
print("compiled:", *left[::-1])
assert set(left) <= set(flat.edges)


def divergence(circuit):
    """KL(whole model || circuit) of the next token on the test prompts, in nats."""
    log_p, log_q = (logits.log_softmax(-1) for logits in (run.clean_logits, run.logits(circuit)))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


pruned = {}
for distance, threshold in (("metric", 0.2), ("kl", 0.01)):
    found = acdc(model, task.subset(4), threshold, distance=distance)
    same_size = ev.top_edges(matrix, graph.allowed, len(found.edges))
    value, rival = (ev.faithfulness(run, c, graph.allowed) for c in (found.circuit, same_size))
    pruned[distance] = found, value
    print(
        f"{distance:6} threshold {threshold}: {len(found.edges)} edges, {found.tries} circuits tried for "
        f"{found.n_edges} edges;\n       faithfulness {value:.2f} (EAP-IG at that size {rival:.2f}, "
        f"overlap {ev.iou(found.circuit, same_size):.2f}), "
        f"KL {divergence(found.circuit):.2f} (EAP-IG {divergence(same_size):.2f})"
    )
assert pruned["metric"][1] > 0.8 and pruned["metric"][0].tries < len(graph)

# %% [markdown]
# With the metric as distance, ACDC's circuit, chosen on 4 prompts, is somewhat less faithful on new ones than EAP-IG's of the same size, chosen on 16, and it took hundreds of passes for each prompt instead of 7 forward and 5 backward. It had to try about a third of the edges: most belong to nodes that nothing reads any more. With KL as the distance, the circuit is worse on new prompts by both measures, KL included. A likely
# reason: KL between two sure predictions is near 0 however far the logits are apart, so with 4 prompts many edges seem to cost nothing.
#
# ## 9. Would you find it again?
# Another sample of prompts, other names, another metric: how much do the best 60 edges overlap (IoU, edges in both over edges in either)? For the first row prompts are drawn again with replacement
# (bootstrap). Two unrelated random circuits have an IoU of 0.03.

# %% label="stability" tags=["nbval-check-output"]
per_item = {
    "EAP": eap.eap_items(model, task),
    "EAP-IG": eap.eap_items(model, task, eap.path_points(5, "midpoint")),
}
again = {name: ev.bootstrap_iou(items, graph.allowed, 60) for name, items in per_item.items()}
for name, value in again.items():
    print(f"bootstrap over 16 prompts, {name:7} IoU {value:.2f}")


def best_60(task):
    return ev.top_edges(graph.matrix(eap.eap_ig(model, task)), graph.allowed, 60)


third = replace(task, corrupted=[label["abc"] for label in task.labels])
variants = {
    "other prompts": world.task("ioi", split="train", n=16, seed=1),
    "metric log p(answer)": replace(task, metric="logprob"),
    "twin with a third name": third,
    "another behaviour: greater_than": world.task("greater_than", split="train", n=16),
    "another behaviour: copying": world.task("copying", split="train", n=16),
}
overlap_with = {name: ev.iou(circuit, best_60(other)) for name, other in variants.items()}
for name, value in overlap_with.items():
    print(f"{name:32} IoU {value:.2f}")
top_eap = ev.top_edges(per_item["EAP"].mean(0), graph.allowed, 60)
print(f"EAP against EAP-IG               IoU {ev.iou(top_eap, circuit):.2f}")
assert (
    again["EAP-IG"] > 0.8
    and overlap_with["other prompts"] > 0.7 > overlap_with["another behaviour: greater_than"]
)

# %% [markdown]
# EAP's choice depends more on the prompts than EAP-IG's. In `lab`, whose sentences come from few templates, the circuit is found again. In GPT-2 small the bootstrap overlap for IOI is about 0.67, and in Llama-3.2-1B 0.39 ([@meloux2025mechanistic]). Note the last
# rows as well: part of "the IOI circuit" is edges that other behaviours use too.
#
# **Where in the sentence?** An edge scored over all tokens hides at which token it works ([@haklay2025position]). `eap_spans` splits each score by token; here, the edges of the circuit by where they are written and read.

# %% label="positions" tags=["nbval-check-output"]
same_length = task.subset([i for i, p in enumerate(task.prompts) if len(model.tokens(p)) == 15])
tokens = model.tokens(same_length.prompts[0])
where = {f"{i}": [i] * len(same_length) for i in range(15)}
by_token = eap.eap_spans(model, same_length, where, points=eap.path_points(2, "midpoint"))
parts = torch.stack([graph.matrix(s) for s in by_token.values()])
assert torch.allclose(parts.sum(0), graph.matrix(eap.eap_ig(model, same_length, steps=2)), atol=1e-3)
size = (parts.abs() * circuit).sum((1, 2))
for i in size.argsort(descending=True)[:4].tolist():
    row, column = divmod(int((parts[i].abs() * circuit).argmax()), len(graph.receivers))
    largest = f"{graph.senders[row]}->{graph.receivers[column]}"
    print(f"token {i:2} ({tokens[i]:6}) {size[i] / size.sum():.2f} of all scores; largest {largest}")
print("tokens before the first difference:", round(size[:10].sum().item(), 4))

# %% [markdown]
# Nothing happens before the repeated name, where the twins are still the same. The work is at that name and at the last token, which fetches what was found there.
#
# ## 10. What do the retained heads do? Heads and features
# A circuit names parts; it does not say what they do. Chapter 02's tools put into one report (`head_reports`, as in Fig. 9 of [@yao2024circuits]): where a head looks from the last token, and which words its
# write raises. Three heads of the circuit:

# %% label="reports" tags=["nbval-check-output"]
for report in head_reports(model, task.prompts[0], ["L2H3", "L3H1", "L4H0"], k=3):
    print(report)

# %% [markdown]
# Together with the edges this is a mechanism one can test: at the last token L2H3 looks at the repeated name; its write does not say a name by itself, but reaches the queries of L3H1 and L4H0. These look at the *other* name and
# raise it. A report only describes; that these edges matter was measured above.
#
# And finer units than heads: `feature_effects` is attribution patching over SAE features (chapter 04; [@Markscircuts_iclr2025]), and `feature_graph.attribution_graph` does it with transcoders in
# place of the FFNs. Both must report what their dictionary leaves out, the share of the error. For the SAE of x3 that ships with `lab`:

# %% label="features" tags=["nbval-check-output"]
model.saes["x3"] = world.sae("x3-topk")
effects = feature_effects(model, task, ["x3"])
share = error_share(effects)["x3"]
print(
    "largest features:",
    ", ".join(f"{site} {effects[site]:+.2f}" for site in effects.top(6) if not str(site).endswith("error")),
)
print(f"carried by the error: {share:.2f} of all effects")
del model.saes["x3"]
assert 0 < share < 1

# %% [markdown]
# ## 11. Scoreboard on known circuits
# Five compiled models whose edges are known. For each method: how many true edges have a score above 1 % of its largest, and how many others do. (A ranking alone would flatter EAP: a score
# of 0.0000002 still ranks above exact zeros.) An edge that carries the same in both twins cannot show under patching from the twin, so we ask for those edges of the key that have an exact
# effect under noising or under denoising.

# %% label="scoreboard" tags=["nbval-check-output"]
table = {}
columns = ("exact, noising", "exact, denoising", "EAP", "EAP-IG")
print("edges found + false " + "".join(f"{name:>17}" for name in columns))
for make in (compiled.mediation, compiled.induction, compiled.and_gate, compiled.or_gate, compiled.saturated):
    c = make()
    m = c.wrap()
    both = [ablate_edges(m, c.task, kind=kind) for kind in ("noising", "denoising")]
    truth = {e for e in c.edges if max(abs(b[e]) for b in both) > 1e-3}
    methods = dict(zip(columns, [*both, eap.eap(m, c.task), eap.eap_ig(m, c.task, steps=20)]))
    table[c.name], cells = {}, []
    for name, found in methods.items():
        bar = max(0.01 * abs(found.values).max(), 1e-3)
        seen = {e for e, v in zip(found.sites, found.values) if abs(v) > bar}
        table[c.name][name] = len(seen & truth) / len(truth)
        cells.append(f"{len(seen & truth)} + {len(seen - truth)}")
    print(f"{c.name:12}of {len(truth)}    " + "".join(f"{cell:>17}" for cell in cells))
assert table["saturated"]["EAP"] < table["saturated"]["EAP-IG"] == 1.0
assert table["or_gate"]["exact, noising"] < 1.0 == table["or_gate"]["exact, denoising"]
assert table["or_gate"]["EAP"] < 1.0 == table["or_gate"]["EAP-IG"]

# %% [markdown]
# Failures by design. On the saturated softmax EAP misses two of three edges, which the path finds. On the or-gate even the *exact* effects under noising miss the two inputs, since either is enough; the other direction finds them,
# and so does the path, which gives each input half of the credit. On the and-gate it is denoising that misses both inputs and all before them. No score of single edges sees redundancy from every side.
#
# **And in a trained model?** `refusal-b` was trained into one head of `lab`, L3H0 (chapter 11 says how its key was found). Only edges that enter or leave that head *touch* what was changed.
# Not all of them are used: we call those **used** whose exact effect differs between the two models, installed minus `lab`, by 5 % of the behaviour or more (under noising or under mean ablation).
# Scores are taken as installed minus `lab`, too, on other prompts. The controls: the band of random rankings, and the ranking by the size of the scores in `lab` alone, which does not have the behaviour.

# %% label="used_edges" tags=["nbval-check-output"]
touch, used = installed_tasks.touching("refusal-b", graph), installed_tasks.used_edges("refusal-b")
print(f"{len(touch)} of {len(graph):,} edges touch L3H0; {len(used)} are used: {', '.join(used)}")
boats = installed_tasks.installed_task("refusal-b", n=16)
without = eap.eap_ig(model, boats)
with installed_tasks.behaving("refusal-b", model):
    with_it = eap.eap_ig(model, boats)
rise = replace(with_it, values=with_it.values - without.values)
print("largest changes:", ", ".join(f"{e} {rise[e]:+.1f}" for e in rise.top(6)))
for name, truth in (("used", used), ("touch", touch)):
    band = random_rankings(len(graph), len(truth), draws=100)
    marks = {end: found.against(truth) for end, found in (("minus lab", rise), ("lab alone", without))}
    for key, title in (("auroc", "AUROC"), ("recall_at_k", "recall")):
        print(
            f"{name:6} {title:7}"
            + "   ".join(f"{end} {mark[key]:.2f}" for end, mark in marks.items())
            + f"   random {band[key].low:.2f} to {band[key].high:.2f}"
        )
        assert marks["minus lab"][key] > max(band[key].high, marks["lab alone"][key])
    if name == "used":
        assert marks["minus lab"]["auroc"] > 0.95 and marks["lab alone"]["auroc"] > band["auroc"].low
assert {"mlp0->L3H0.k", "L3H0->mlp4"} <= set(used) and {"x0->mlp0", "mlp5->logits"} <= set(rise.top(4))

# %% [markdown]
# EAP-IG ranks the used edges near the top, but not first: the largest changes include `x0->mlp0` and `mlp5->logits`, which touch no trained weight. The behaviour runs through them all the same, as everything does.
# What differs between two models is a path, and the part that was trained is one stretch of it. All methods on the eight behaviours that were installed in heads, neurons (for the graph, in their FFN) and FFNs,
# three prompt seeds (exact methods: one seed, 8 prompts), from the stored scoreboard (`mi-course benchmark localizers --edges`; with `--fn`, yours, too):

# %% label="installed_edges" tags=["nbval-check-output"]
print(f"{'':22}recall   in lab alone    AUROC   in lab alone    passes")
board = {line["localizer"]: line for line in scoreboard.summary(scoreboard.stored(edges=True))}
for name, line in sorted(board.items(), key=lambda item: -item[1]["recall"]):
    print(
        f"{name:22}{line['recall']:.2f} ± {line['recall_error']:.2f}    {line['recall_base']:.2f}       "
        f"{line['auroc']:.2f} ± {line['auroc_error']:.2f}    {line['auroc_base']:.2f}"
        f"   {line['forwards'] + 2 * line['backwards']:9.0f}"
    )
assert all(line["recall_base"] < 0.15 < line["recall"] < 0.5 for line in board.values())
assert all(line["auroc"] > 0.9 and line["auroc_base"] > 0.7 for line in board.values())
for cheap, full in (("EAP-IG", "exact noising"), ("EAP-IG mean", "exact mean")):
    gap = board[full]["recall"] - board[cheap]["recall"]
    assert abs(gap) < math.hypot(board[full]["recall_error"], board[cheap]["recall_error"])

# %% [markdown]
# - **AUROC flatters.** With 1,108 edges, most of them idle, whoever prefers the busy ones gets 0.75 to 0.9 without ever seeing the behaviour. Read recall.
# - **Nobody finds half of the used edges,** not even exact patching of the very kind that defines them: the rest of the top k are edges of the same path that touch nothing that was trained.
# - EAP-IG, at 17 passes, is level with exact patching of the same kind, at about 440: the gaps lie within the standard errors over the eight placements. These errors are too wide to order the rest.
#
# ## 12. What the survey says, and where it is loose
# - **Sign** (Eq. 17): clean minus corrupted with the clean gradient is minus the effect of corrupting. Harmless for rankings by size only (section 3).
# - **EAP-IG** (Eq. 18): the path is over embeddings, the twins must be aligned, and completeness holds for the edges that leave the input, not for edges in general (section 4).
# - **ACDC** still tries edges one by one. It avoids subsets, not edges (section 8).
# - **Faithful** is not defined there: no replacement for the other edges, no units, no completeness or minimality (sections 6 and 7).
# - **Cost.** EAP-IG with n steps needs n forward passes *and* n backward passes, beside the two runs that give the writes.
#
# ## 13. Papers that use this
# - greater-than in GPT-2: [@Hannacicuits_nips2023]; arithmetic: [@stolfo-etal-2023-mechanistic], and as a bag of heuristics [@Nikankincircuits_iclr2025]
# - knowledge circuits: [@yao2024circuits]; overshadowed knowledge found and mended with edges [@huang-etal-2025-pierce]
# - features as nodes: [@Markscircuts_iclr2025]; circuits that form during training: [@minegishi2025context]; fine-tuning as a search over subgraphs: [@li2025finetuningsubgraphsearchnew]
#
# ## 14. The same on a real model
# The function below ranks all edges of a model on one pair of prompts with EAP-IG and runs the best 5 %. It runs on `lab-llama` (grouped keys and values, gated FFN) as it stands. Put the name of a
# Hugging Face model into `REAL` for the same on that one; take many prompts and the controls of section 7 before you believe it.


# %% label="real"
def circuit_of(model, prompt, twin, target, foil, share=0.05):
    """Rank all edges on one pair of prompts; print the best and the faithfulness of the best 5 %."""
    pair = mi.Task("one pair", [prompt], [target], [twin], [foil])
    pair.validate(model)  # targets must be single tokens, twins equally long
    edges = Graph(model)
    found = eap.eap_ig(model, pair)
    alone = CircuitRunner(model, pair)
    k = round(share * len(edges))
    best, random_one = (
        ev.top_edges(edges.matrix(found), edges.allowed, k),
        ev.random_circuit(edges.allowed, k),
    )
    value, chance = (ev.faithfulness(alone, c, edges.allowed) for c in (best, random_one))
    print(f"{model.config.model_type}: {edges}")
    print("  largest:", ", ".join(f"{e} {found[e]:+.2f}" for e in found.top(4)))
    print(f"  {k} edges: faithfulness {value:.2f}; as many random ones: {chance:.2f}")
    return value, chance


value, chance = circuit_of(
    mi.load("lab-llama"), test.prompts[0], test.corrupted[0], test.targets[0], test.foils[0]
)
assert value > chance + 0.3
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    circuit_of(
        mi.load(REAL),
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        " Mary",
        " John",
    )

# %% [markdown]
# ## 15. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "EAP, as the survey writes it (clean minus corrupted, clean gradient), gives an edge the score +2. What "
            "does corrupting this edge do to F, to first order?",
            [
                (
                    "It raises F by 2.",
                    "That would be the score with the difference taken the other way round.",
                ),
                (
                    "It lowers F by 2.",
                    "The change of the edge is corrupted minus clean, so its effect is minus the score.",
                    True,
                ),
                (
                    "It changes F by 2, the direction is unknown.",
                    "The direction is known from the sign and the convention.",
                ),
            ],
        ),
        Question(
            "EAP-IG scores of the edges into the logits sum to 0.8 of F(corrupted) - F(clean). What follows?",
            [
                (
                    "These edges explain 80 % of the behaviour.",
                    "Only the edges that leave the input have a sum with a meaning; section 4 shows others that miss the total by far.",
                ),
                (
                    "20 % of the work is done elsewhere.",
                    "Every effect on F goes through the logits. The sum is simply no share.",
                ),
                (
                    "Nothing: the sum over these edges is not preserved.",
                    "Only the gradient is averaged on the path; completeness holds for the edges that leave x0.",
                    True,
                ),
            ],
        ),
        Question(
            "A circuit of 3 % of the edges has faithfulness 0.95, with the other edges patched from twins that differ in one name. With mean "
            "ablation instead it has 0.1. Which sentence is right?",
            [
                (
                    "The circuit carries what differs between the twins.",
                    "All that the twins share, grammar for example, was delivered by the patched edges.",
                    True,
                ),
                (
                    "The circuit implements the whole behaviour.",
                    "Then it would not need the rest to be so close to a proper run.",
                ),
                (
                    "Mean ablation is broken.",
                    "It answers another question: what is needed when nothing about this prompt is known.",
                ),
            ],
        ),
        Question(
            "A faithful circuit is found. Without half of it, the whole model still works well, the circuit does not. What is wrong?",
            [
                ("It is not minimal.", "Minimality asks for edges of the circuit that could be left out."),
                (
                    "It is not complete.",
                    "The model has other edges that do the job; the circuit lacks them.",
                    True,
                ),
                (
                    "Nothing, it was faithful.",
                    "Faithfulness is measured with all of the circuit there, so it cannot see a missing backup.",
                ),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 11 puts all localizers side by side.
