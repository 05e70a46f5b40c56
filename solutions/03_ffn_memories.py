# %% [markdown]
# # 03 FFN neurons as memories
# Two thirds of a block's weights sit in its feed-forward network (FFN). It works on each token by itself, and it is a sum of small parts,
# called neurons: each looks for something in the state (its **key**) and, when it finds it, adds something to the state (its **value**).
# This chapter takes that picture, which is exact, and the claim built on it, that neurons are *memories*, which has to be tested. Survey
# ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 2.4, Eq. 6.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - read key and value of any neuron off the weights, in both ways that models store them, and rebuild the FFN from them
# - do the same for gated FFNs (Llama and most newer models), where a neuron has two keys
# - say what "active" means, and why two meanings give two rankings
# - find the neurons that write a fact, remove them beside a null band, and say how concentrated the memory is
# - read a neuron by its contexts, by its value, and as a detector, each against chance
# - recognise a neuron with several meanings
#
# **The claim.** An FFN is exactly a sum of neurons, activation times value (survey, section 2.4). In `lab`, a fact of the world is written
# mainly by some tens of neurons out of thousands: removing 30 for each fact breaks about half of the facts, in other wordings too, and
# leaves other facts almost alone.

# %% label="setup"
import copy
import random
from dataclasses import replace

import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import document_loss, null_band
from mi_course.locate import causal
from mi_course.models import weights
from mi_course.objects import Scores, neurons
from mi_course.objects.weights import folded_unembedding, head, neuron_keys, neuron_values
from mi_course.teach import Question, bars, check, curves, heatmap, quiz, show, side_effects
from mi_course.world import compiled, lexicon
from mi_course.world.generate import LANDMARK_BODIES, World

torch.manual_seed(0)
torch.set_grad_enabled(False)  # nothing is trained in this chapter
model, gated = mi.load(), mi.load("lab-llama")
print(f"lab:       {model.n_layers} layers x {model.d_ffn} neurons, d = {model.d_model}")
print(f"lab-llama: {gated.n_layers} layers x {gated.d_ffn} neurons, d = {gated.d_model}, gated")

# %% [markdown]
# ## 1. A neuron is two vectors
# The FFN of block $l$ reads the state after the attention, normed, $\hat x = \mathrm{LN}(x^{l,mid})$, and adds to the stream
#
# $$\mathrm{FFN}(\hat x) = \sigma(\hat x\, W_{in} + b_{in})\; W_{out} + b_{out}, \qquad W_{in} \in \mathbb{R}^{d \times d_{ffn}},\; W_{out} \in
# \mathbb{R}^{d_{ffn} \times d}$$
#
# with $\sigma$ the activation function (GELU in `lab`). Now cut the matrices into neurons. Neuron $j$ has the key $k_j$, **column** $j$ of
# $W_{in}$, and the value $v_j$, **row** $j$ of $W_{out}$; both have $d$ numbers, as the state has. Its **activation** is one number per
# token, and the output is a sum:
#
# $$s_j = \sigma(\hat x \cdot k_j + b_j), \qquad \mathrm{FFN}(\hat x) = \sum_j s_j\, v_j + b_{out}$$
#
# The key is a question to the state, the value an answer to add, and the activation says how loudly. [@geva2021transformer] read this as a
# memory: a key per pattern, a value per pattern. Here it is with an explicit sum over the neurons, beside what the model computed. The
# sites to record are `mid4` (the state that the FFN of layer 4 reads, before the norm), `neurons4` (its activations) and `mlp4` (its output).

# %% label="by_hand" tags=["nbval-check-output"]
facts = world.task("facts", split="test", n=100)
prompt, layer = facts.prompts[0], 4
cache = mi.record(model, [prompt], [f"mid{layer}", f"neurons{layer}", f"mlp{layer}"])
x = weights.mlp_norm(model, layer)(cache[f"mid{layer}"])  # what the FFN reads: [1, T, d]
ffn = weights.ffn(model, layer)

keys, values = neuron_keys(model, layer), neuron_values(model, layer)  # [d_ffn, d] each
s = ffn.act(x @ keys.T + ffn.b_in)  # [1, T, d_ffn]
output = sum(s[..., j, None] * values[j] for j in range(model.d_ffn)) + ffn.b_out

print("keys", tuple(keys.shape), " values", tuple(values.shape), " activations", tuple(s.shape))
print("activations as recorded:", torch.allclose(s, cache[f"neurons{layer}"], atol=1e-4))
print("output as recorded:     ", torch.allclose(output, cache[f"mlp{layer}"], atol=1e-3))
print("without b_out:          ", torch.allclose(output - ffn.b_out, cache[f"mlp{layer}"], atol=1e-3))
assert torch.allclose(output, cache[f"mlp{layer}"], atol=1e-3)

# %% [markdown]
# The last line is a warning: $b_{out}$ belongs to no neuron and is always written. The survey's Eq. 6 leaves all biases out.
#
# `neuron_keys` did the cutting. Doing it yourself has a catch: PyTorch's `nn.Linear` keeps its matrix transposed, as `[out, in]`, while
# GPT-2's `Conv1D` keeps it as `[in, out]`.

# %% [markdown] exercise="neurons.key_and_value" difficulty=2 minutes=8
# ### Exercise: key and value from the stored weights
# Write `key_and_value(mlp_in, mlp_out, j)`: two modules in, the first with $W_{in}$ and the second with $W_{out}$ in `.weight`. Each is an
# `nn.Linear` or a `Conv1D`. Return the key and the value of neuron `j`, two vectors of length $d$.


# %%
def key_and_value(mlp_in, mlp_out, j):
    """(key, value) of neuron j, [d] each. nn.Linear stores [out, in], Conv1D stores [in, out]."""
    ### BEGIN SOLUTION
    W_in, W_out = (m.weight.T if isinstance(m, torch.nn.Linear) else m.weight for m in (mlp_in, mlp_out))
    return W_in[:, j], W_out[j]
    ### END SOLUTION


# %%
key_and_value = check("neurons.key_and_value", key_and_value)

# %% [markdown]
# Your function on both models, every neuron of one layer. In `lab-llama`, $W_{up}$ takes the place of $W_{in}$ for now; section 3 says why.

# %% label="storage" tags=["nbval-check-output"]
for which, inner, outer, part in (
    (model, "mlp.c_fc", "mlp.c_proj", "in"),
    (gated, "mlp.up_proj", "mlp.down_proj", "up"),
):
    mlp_in, mlp_out = (which.block(layer).get_submodule(path) for path in (inner, outer))
    found = [key_and_value(mlp_in, mlp_out, j) for j in range(which.d_ffn)]
    same_keys = torch.equal(torch.stack([k for k, _ in found]), neuron_keys(which, layer, part))
    same_values = torch.equal(torch.stack([v for _, v in found]), neuron_values(which, layer))
    print(
        f"{type(mlp_in).__name__:7} weight {str(tuple(mlp_in.weight.shape)):11} same keys "
        f"{same_keys}, same values {same_values}"
    )
    assert same_keys and same_values

# %% [markdown]
# ## 2. Keeping some neurons
# Since the output is a sum, we can ask what a part of the neurons writes. That is the first step to finding out which of them matter.

# %% [markdown] exercise="neurons.partial_output" difficulty=2 minutes=8
# ### Exercise: the FFN with some of its neurons
# Write `partial_output(x, ffn, keep)`: normed states `[..., d]`, an FFN with `W_in`, `b_in`, `W_out`, `b_out` and `act`, and `keep`, truth
# values `[d_ffn]`. Return what the FFN writes when only those in `keep` are on: $\sum_{j \in keep} s_j v_j + b_{out}$.


# %%
def partial_output(x, ffn, keep):
    """What the FFN writes with the neurons in `keep` alone: x [..., d], keep bool [d_ffn] -> [..., d]."""
    ### BEGIN SOLUTION
    s = ffn.act(x @ ffn.W_in + ffn.b_in)
    return (s * keep) @ ffn.W_out + ffn.b_out
    ### END SOLUTION


# %%
partial_output = check("neurons.partial_output", partial_output)

# %% [markdown]
# How many neurons does one token need? Keep the n neurons that write most, $|s_j|\,|v_j|$, at the last token, and compare what they write
# with what all of them write (without $b_{out}$). As a control, keep n random ones. The number is the cosine of the two (1: same direction),
# averaged over 50 prompts.

# %% label="how_many" tags=["nbval-check-output"]
last = mi.record(model, facts.prompts[:50], [f"mid{layer}@-1"])[f"mid{layer}@-1"]
last = weights.mlp_norm(model, layer)(last)  # [50, d]
size = ffn.act(last @ keys.T + ffn.b_in).abs() * values.norm(dim=1)  # [50, d_ffn]
generator = torch.Generator().manual_seed(0)
orders = {
    "largest": size.argsort(dim=1, descending=True),
    "random": torch.rand(size.shape, generator=generator).argsort(1),
}


def likeness(order, n):
    """Mean cosine between the write of the first n neurons of each row's order and the write of all."""
    cosines = []
    for x, first in zip(last, order[:, :n]):
        keep = torch.isin(torch.arange(model.d_ffn), first)
        part, whole = (partial_output(x, ffn, some) - ffn.b_out for some in (keep, torch.ones_like(keep)))
        cosines.append(torch.cosine_similarity(part, whole, dim=0))
    return torch.stack(cosines).mean().item()


for n in (10, 30, 100, 300):
    row = {name: likeness(order, n) for name, order in orders.items()}
    print(
        f"{n:4} of {model.d_ffn} neurons: cosine {row['largest']:.2f} (largest), {row['random']:.2f} (random)"
    )
    assert row["largest"] > row["random"] + 0.05

# %% [markdown]
# The ten largest give most of the direction already, ten random ones little of it. At one token, few neurons matter.
#
# ## 3. Gated FFNs: two keys
# Llama, Qwen, Gemma and Mistral use another form [@shazeer2020glu], which the survey does not give:
#
# $$s_j = \sigma(\hat x \cdot g_j)\,(\hat x \cdot u_j), \qquad \mathrm{FFN}(\hat x) = \sum_j s_j\, v_j$$
#
# A neuron reads the state twice, with its **gate** key $g_j$ (is it on?) and its **up** key $u_j$ (how much, and with which sign?). So $s_j$
# may well be negative: then the neuron writes *minus* its value. The activation in the survey's sense is the product, the input of
# $W_{out}$ (often called `down_proj`).

# %% [markdown] exercise="neurons.gated_activation" difficulty=1 minutes=5
# ### Exercise: activations of a gated FFN
# Write `gated_activation(x, ffn)`: normed states `[..., d]` in, activations `[..., d_ffn]` out. The FFN has `W_gate`, `b_gate`, `W_up`,
# `b_up` (biases are zero in Llama, but not everywhere) and `act`.


# %%
def gated_activation(x, ffn):
    """s = act(x W_gate + b_gate) * (x W_up + b_up): [..., d] -> [..., d_ffn]."""
    ### BEGIN SOLUTION
    return ffn.act(x @ ffn.W_gate + ffn.b_gate) * (x @ ffn.W_up + ffn.b_up)
    ### END SOLUTION


# %%
gated_activation = check("neurons.gated_activation", gated_activation)

# %% [markdown]
# Against what `lab-llama` computes, in one layer of one prompt:

# %% label="gated" tags=["nbval-check-output"]
read = mi.record(gated, [prompt], [f"mid{layer}", f"neurons{layer}", f"mlp{layer}"])
signed = gated_activation(weights.mlp_norm(gated, layer)(read[f"mid{layer}"]), weights.ffn(gated, layer))
print("activations as recorded:", torch.allclose(signed, read[f"neurons{layer}"], atol=1e-3))
print(
    "sum of s_j v_j as recorded:",
    torch.allclose(signed @ neuron_values(gated, layer), read[f"mlp{layer}"], atol=1e-3),
)
print(f"share of negative activations: {(signed < 0).float().mean():.2f}")
assert torch.allclose(signed, read[f"neurons{layer}"], atol=1e-3)

# %% [markdown]
# ## 4. What does "active" mean?
# Many methods count how often a neuron is active: language neurons [@tang-etal-2024-language] are one example. Count what? We take
# documents of all domains of the world and try several meanings on both models. The second number is the rank correlation (Spearman) of
# the neurons' frequencies with those of the first meaning: 1 is the same ranking, 0 an unrelated one.

# %% label="active" tags=["nbval-check-output"]
documents = {domain: list(dict.fromkeys(texts)) for domain, texts in world.documents("test", n=10).items()}
texts = [text for domain in documents.values() for text in domain]


def states(model, kind):
    """The neurons (or gates) at every token of the documents: [tokens, n_layers, d_ffn]."""
    sites = [f"{kind}{layer}" for layer in range(model.n_layers)]
    cache = mi.record(model, texts, sites)
    return torch.stack([cache[site][cache.batch.mask.bool()] for site in sites], dim=1)


def spearman(a, b):
    """Rank correlation of two lists of numbers, -1 ... 1."""
    ranks = torch.stack([v.flatten().argsort().argsort().float() for v in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def value_norms(model):
    return torch.stack([neuron_values(model, layer).norm(dim=1) for layer in range(model.n_layers)])


def compare(meanings):
    rates = {name: on.float().mean(0) for name, on in meanings.items()}
    first = next(iter(rates.values()))
    for name, rate in rates.items():
        agreement = spearman(rate, first)
        print(f"  {name:16} active {rate.mean():.3f} of the time   rank correlation {agreement:+.2f}")
    return rates


s_lab, s_gated, gate = states(model, "neurons"), states(gated, "neurons"), states(gated, "gate")
print("lab (GELU)")
compare(
    {"s > 0": s_lab > 0, "s is not 0": s_lab != 0, "|s| |v| > 0.1": s_lab.abs() * value_norms(model) > 0.1}
)
print("lab-llama (SiLU gate)")
rates = compare(
    {"gate > 0": gate > 0, "s > 0": s_gated > 0, "|s| |v| > 0.1": s_gated.abs() * value_norms(gated) > 0.1}
)
assert (s_lab == 0).float().mean() < 0.01 and abs(spearman(rates["s > 0"], rates["gate > 0"])) < 0.3

# %% [markdown]
# Three lessons.
#
# - GELU is almost never exactly 0 (the rare zeros are rounding): for inputs below 0 it is a small negative number, at least -0.17. So "not
#   0" is no meaning of active, "s > 0" is a choice, and what is not active still writes.
# - In the gated model "gate > 0" and "s > 0" rank the neurons in unrelated ways. The released code for language neurons counts gate > 0; a
#   reader of the survey would count s > 0.
# - Frequency and size disagree as well: how often a neuron writes more than 0.1 is yet another ranking, in both models.
#
# Does what the "inactive" neurons write matter? Cut every activation of `lab` off at 0, which leaves neurons with s > 0 as they are, and
# look at the loss on the documents (nats per token).

# %% label="not_off" tags=["nbval-check-output"]
some = texts[::4]
loss = document_loss(model, some).mean().item()
with mi.intervene(
    model, *[mi.edit(f"neurons{layer}", lambda s: s.clamp_min(0)) for layer in range(model.n_layers)]
):
    cut = document_loss(model, some).mean().item()
print(f"loss {loss:.2f}; with the negative activations cut off {cut:.2f}")
assert cut > loss + 0.05

# %% [markdown]
# It does: in this model "off" neurons together carry part of the computation.
#
# ## 5. A memory whose content we know
# Before we ask what a trained model stores, let us see the picture where it is true by construction. `compiled.lookup()` is a real GPT-2 of
# two layers whose weights were set by hand: at a country, one neuron of layer 0 fires and writes the capital into the stream; at the last
# word a head of layer 1 (L1H0) fetches it. Two more neurons are **decoys**: they fire a lot, write a lot, and nobody reads it. Your task is
# to recover the table from the weights, without running the model.

# %% label="lookup" tags=["nbval-check-output"]
known = compiled.lookup()
tiny = known.wrap()
table = dict(zip((label["subject"] for label in known.task.labels), known.task.targets))
print(known.task.prompts[0], "->", known.task.targets[0], f"   accuracy {known.task.accuracy(tiny):.2f}")
print(len(neuron_keys(tiny, 0)), "neurons in layer 0;", len(table), "facts")

# %% [markdown] exercise="neurons.read_memory" difficulty=2 minutes=8
# ### Exercise: read the table
# Write `read_memory(keys, values, E, U)`: keys and values `[m, d]`; `E` `[V, d]`, what each token looks like to a key; `U` `[d, V]`, which reads
# a value as tokens. Return for each neuron the id of the token that its key answers to most, and of the token that its value promotes most:
# two tensors `[m]`.


# %%
def read_memory(keys, values, E, U):
    """(inputs [m], outputs [m]): the best token for each key, E [V, d], and for each value, U [d, V]."""
    ### BEGIN SOLUTION
    return (keys @ E.T).argmax(-1), (values @ U).argmax(-1)
    ### END SOLUTION


# %%
read_memory = check("neurons.read_memory", read_memory)

# %% [markdown]
# Which `U`? The obvious reading sends the value straight through the unembedding, as if the neuron spoke to the output itself. But here a
# head stands between: the value passes its $W_V W_O$ (chapter 02) before the unembedding reads it. We try both, and score each against the
# table. The null: the same with the values dealt to other neurons.

# %% label="read_table" tags=["nbval-check-output"]
E, W_U = weights.embedding(tiny).W_E, folded_unembedding(tiny)[0]
K, V = neuron_keys(tiny, 0), neuron_values(tiny, 0)
readers = {
    "straight through the unembedding": W_U,
    "through L1H0, then the unembedding": head(tiny, 1, 0).W_OV @ W_U,
}


def facts_found(values, U):
    """How many facts of the table are among the pairs that the neurons give."""
    words = [tiny.tokenizer.convert_ids_to_tokens(ids) for ids in read_memory(K, values, E, U)]
    return len(set(zip(*words)) & set(table.items()))


for name, U in readers.items():
    shuffled = [facts_found(V[torch.randperm(len(V), generator=generator)], U) for _ in range(50)]
    print(f"{name:36} {facts_found(V, U)} of {len(table)} facts   shuffled: {sum(shuffled) / 50:.1f}")
assert facts_found(V, readers["through L1H0, then the unembedding"]) == len(table)
assert facts_found(V, W_U) == 0

# %% [markdown]
# All facts, or none: a value is written in whatever code its *readers* use. Reading it with the unembedding presupposes that the output is
# the reader. That is a fair guess in late layers and a poor one in early layers.
#
# **Scoreboard.** Which of the eight neurons carry the facts? Four rankings against the answer key (AUROC: the chance that a true neuron
# ranks above a decoy; 0.5 is guessing).

# %% label="scoreboard_known" tags=["nbval-check-output"]
sites = [f"L0N{j}" for j in range(len(K))]
truth = [site for site in known.answer if site in sites]
fired = mi.record(tiny, known.task.prompts, ["neurons0"])["neurons0"]
direct = neurons.direct_contributions(tiny, known.task.prompts, known.task.targets)
rankings = {
    "activation, mean |s|": fired.abs().mean((0, 1)),
    "size of the write, |s| |v|": fired.abs().mean((0, 1)) * V.norm(dim=1),
    "direct contribution to the answer": direct[:, 0].mean(0),
    "ablation": -torch.tensor(causal.ablate_each(tiny, known.task, sites).values),
}
scores = {}
for name, ranking in rankings.items():
    scores[name] = Scores(sites, ranking, method=name, sign="none").against(truth, by="positive")["auroc"]
    print(f"{name:36} AUROC {scores[name]:.2f}")
assert scores["ablation"] == 1 and scores["activation, mean |s|"] == 0
assert scores["direct contribution to the answer"] == 0.5

# %% [markdown]
# The two magnitudes are worse than guessing, since the decoys are the loudest neurons. The direct contribution, which is the tool of the
# next section, is blind here: the neurons fire at the country, and what they write reaches the last word only through a head.
#
# ## 6. A memory that was learned
# `lab` has read where landmarks stand, what they are made of, and who designed them. At the last token, neuron $j$ of any layer adds
# $s_j\,(v_j \cdot u)$ to the difference of two logits, where $u$ is what the unembedding reads for the right answer minus the same for the
# wrong one (the **foil**, another answer of the same kind). The final norm divides by the size of the state; frozen at its actual value,
# that is one factor `scale` for each prompt (chapter 01).

# %% [markdown] exercise="neurons.direct_contribution" difficulty=2 minutes=6
# ### Exercise: what a neuron adds to the answer
# Write `direct_contribution(s, V, u, scale)`: activations `[B, m]`, values `[m, d]`, one direction `u` for each prompt `[B, d]`, `scale` `[B, 1]`.
# Return $s_j\,(v_j \cdot u)$ times scale for every prompt and neuron, `[B, m]`.


# %%
def direct_contribution(s, V, u, scale):
    """s_j (v_j . u) * scale: s [B, m], V [m, d], u [B, d], scale [B, 1] -> [B, m], in logits."""
    ### BEGIN SOLUTION
    return s * (u @ V.T) * scale
    ### END SOLUTION


# %%
direct_contribution = check("neurons.direct_contribution", direct_contribution)

# %% [markdown]
# Applied to all layers, and to one fact: the five neurons that add most, with the words that their values promote. `L5N7` is neuron 7 of
# layer 5.

# %% label="one_fact" tags=["nbval-check-output"]
L, M = model.n_layers, model.d_ffn


def contributions(task):
    """What every neuron adds directly to logit(target) - logit(foil): [n, n_layers, d_ffn]."""
    cache = mi.record(model, task.prompts, [f"neurons{layer}@-1" for layer in range(L)] + [f"x{L}@-1"])
    columns = folded_unembedding(model)[0].T  # [V, d]
    u = columns[task.target_ids(model)] - columns[task.foil_ids(model)]
    scale = weights.unembedding(model).norm.scale(cache[f"x{L}@-1"])
    parts = [
        direct_contribution(cache[f"neurons{l}@-1"], neuron_values(model, l), u, scale) for l in range(L)
    ]
    return torch.stack(parts, dim=1)


added = contributions(facts)
assert torch.allclose(
    added, neurons.direct_contributions(model, facts.prompts, facts.targets, facts.foils), atol=1e-4
)
print(facts.prompts[0], "->", facts.targets[0], " (foil:", facts.foils[0] + ")")
for index in added[0].flatten().argsort(descending=True)[:5].tolist():
    l, j = divmod(index, M)
    words = neurons.promoted(model, neuron_values(model, l)[j : j + 1], k=6)[0]
    print(f"  L{l}N{j:<4} adds {added[0, l, j]:.2f} logits   its value promotes: {' '.join(words)}")
print("mean over all facts, by layer:", "  ".join(f"{value:.2f}" for value in added.sum(2).mean(0)))

# %% [markdown]
# Look at the word lists. Few of them show the answer: to raise a logit difference, a value only has to favour the answer over the foil, and
# it may favour other words more. And no neuron does it alone. The last line adds up the neurons of each layer: the late layers write
# the answer.
#
# How concentrated is the memory? Take the positive contributions of one fact. How many neurons make up half of them, and how many would
# there be if all counted the same (the participation ratio $(\sum c)^2 / \sum c^2$)?

# %% label="concentrated" tags=["nbval-check-output"]
positive = added.flatten(1).clamp_min(0).sort(dim=1, descending=True).values
half = (positive.cumsum(1) < positive.sum(1, keepdim=True) / 2).sum(1) + 1
ratio = positive.sum(1) ** 2 / positive.square().sum(1)
top_share = (positive[:, 0] / positive.sum(1)).mean()
print(
    f"of {L * M} neurons {half.float().median():.0f} make up half; share of the largest one: {top_share:.2f}"
)
print(f"participation ratio {ratio.median():.0f} (medians over {len(facts)} facts)")
assert 10 < half.float().median() < 300

# %% [markdown]
# Tens of neurons: neither one neuron per fact nor a smear over all of them.
#
# A contribution is computed from weights and one state. Whether the model *needs* these neurons is another question, and the next exercise
# answers it. Each fact has its own neurons, so each prompt of the batch needs its own list.

# %% [markdown] exercise="neurons.ablation_effect" difficulty=4 minutes=12
# ### Exercise: remove chosen neurons, fact by fact
# Write `ablation_effect(model, task, chosen)`: `chosen` is `[n, n_layers, d_ffn]`, True for the neurons to remove from prompt i. Set them to
# zero at all positions and return F(ablated) - F(base) for each prompt, `[n]`. F is the metric of the task (for the facts the difference of
# the two logits), and `task.measure(model)` gives it, `[n]`; `mi.edit("neurons2", f)` replaces
# the activations of layer 2, `[n, T, d_ffn]`, by `f` of them; `with mi.intervene(model, *edits):` makes it so.


# %%
def ablation_effect(model, task, chosen):
    """F(ablated) - F(base), [n]; each prompt has its own neurons at zero: bool [n, n_layers, d_ffn]."""
    ### BEGIN SOLUTION
    base = task.measure(model)
    edits = []
    for layer in range(model.n_layers):
        off = chosen[:, layer, None]  # [n, 1, d_ffn]: the same at all positions
        edits.append(mi.edit(f"neurons{layer}", lambda s, off=off: s.masked_fill(off, 0.0)))
    with mi.intervene(model, *edits):
        return task.measure(model) - base
    ### END SOLUTION


# %%
ablation_effect = check("neurons.ablation_effect", ablation_effect)

# %% [markdown]
# The dose-response curve: remove k neurons per fact, chosen in three ways, and count how many facts survive.
#
# - the k with the largest direct contribution to this fact
# - the k that write most, $|s_j|\,|v_j|$, at this prompt
# - the k with the largest contribution to *another* fact
#
# The null band: as many random neurons from the same layers.


# %% label="dose"
def largest(values, k):
    """True at the k largest of each row: [n, L, M] -> bool [n, L, M]."""
    flat = values.flatten(1)
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, flat.topk(k).indices, True).view_as(values)


def change(task, chosen):
    """Change of the share of right answers when the chosen neurons are removed."""
    return ablation_effect(model, replace(task, metric="accuracy"), chosen).mean().item()


cache = mi.record(model, facts.prompts, [f"neurons{l}@-1" for l in range(L)])
written = torch.stack([cache[f"neurons{l}@-1"] for l in range(L)], dim=1).abs() * value_norms(model)
other = [
    next(j for j in [*range(i + 1, 100), *range(i)] if facts.targets[j] != facts.targets[i])
    for i in range(100)
]
doses, base = [3, 10, 30, 100, 300], facts.accuracy(model)
lines = {
    "most for this fact": [base + change(facts, largest(added, k)) for k in doses],
    "writes most": [base + change(facts, largest(written, k)) for k in doses],
    "most for another fact": [base + change(facts, largest(added, k)[other]) for k in doses],
}
random_sets = [
    [base + change(facts, largest(added, k)[:, :, torch.randperm(M, generator=generator)]) for k in doses]
    for _ in range(4)
]
figure = curves(
    doses,
    lines,
    null=random_sets,
    xlabel="neurons removed per fact, of 3,072",
    ylabel="facts still right",
    title="Removing a memory",
)
figure.axes[0].set_xscale("log")
figure.axes[0].set_xticks(doses, doses)
show(
    figure,
    alt="Share of facts still right against the number of neurons removed, 3 to 300. The line for "
    "neurons that contribute most to the fact falls first and steeply; the line for the neurons that "
    "write most falls later; random neurons and those of another fact stay near the top.",
    reading="Left to right: more neurons removed. The fact's own neurons bring it down first.",
)
at_30 = doses.index(30)
chance = null_band([draw[at_30] for draw in random_sets])
print(f"right without any removal {base:.2f}; 30 neurons removed:")
for name, line in lines.items():
    print(f"  {name:24} {line[at_30]:.2f}")
print(f"  {'random, same layers':24} {chance.mean:.2f} (band {chance.low:.2f} to {chance.high:.2f})")
assert base > 0.85 and lines["most for this fact"][at_30] < base - 0.3 < chance.low
assert lines["most for this fact"][at_30] < lines["writes most"][at_30] - 0.1

# %% [markdown]
# One percent of the neurons, chosen per fact, brings half of the facts down; one percent at random does nothing visible. The neurons that
# write most hurt less than the fact's own, and those of another fact hardly at all.
#
# But careful: we removed what was measured to help *in this very prompt*, so something had to fall. Is it a memory of the fact? Then the
# same 30 neurons must matter in another wording, which played no part in the choice. And what else do they hold: the object (any landmark
# with this answer), the subject (other facts about this landmark), or the relation (other landmarks, other answers)?

# %% label="what_is_stored"
landmarks = World(0).landmarks
rng = random.Random(0)
chosen = largest(added, 30)


def ask(rewrite):
    """The facts as other questions: rewrite(label, prompt) gives (prompt, right answer)."""
    prompts, targets = zip(*map(rewrite, facts.labels, facts.prompts))
    return mi.Task("facts, asked differently", list(prompts), list(targets), metric="logprob")


def elsewhere(same_answer):
    """The same question about another landmark, with the same answer or with another one."""

    def rewrite(label, prompt):
        answers = {subject: about[label["relation"]] for subject, about in landmarks.items()}
        answers.pop(label["subject_text"])
        subject = rng.choice(
            [s for s, answer in answers.items() if (answer == label["object"]) == same_answer]
        )
        return prompt.replace(label["subject_text"], subject), answers[subject]

    return rewrite


def other_relation(label, prompt):
    """Another fact about the same landmark."""
    subject = label["subject_text"]
    relation = rng.choice([r for r in LANDMARK_BODIES if r != label["relation"]])
    return LANDMARK_BODIES[relation][0].format(s=subject), landmarks[subject][relation]


questions = {
    "the prompt itself": facts,
    "the fact in other words": ask(lambda label, prompt: (label["paraphrases"][0], label["object"])),
    "another subject, same answer": ask(elsewhere(True)),
    "same subject, another relation": ask(other_relation),
    "another subject, another answer": ask(elsewhere(False)),
}
before = {name: task.accuracy(model) for name, task in questions.items()}
lost = {name: change(task, chosen) for name, task in questions.items()}
shuffles = [chosen[:, :, torch.randperm(M, generator=generator)] for _ in range(8)]
null = null_band([change(questions["the fact in other words"], shuffle) for shuffle in shuffles])
show(
    bars(lost, null=null, xlabel="change of the share of right answers", title="What do these neurons hold?"),
    alt="Five bars of the change in accuracy. The prompt itself and the fact in other words lose by "
    "far the most; the same answer for another subject and the same subject with another "
    "relation lose less; another subject with another answer loses least.",
    reading="The null (30 random neurons of the same layers, on the fact in other words) is so narrow that "
    "its band is a line at 0.",
)
for name, loss in lost.items():
    print(f"{name:32} {loss:+.2f}  (right before: {before[name]:.2f})")
print(f"{'random neurons':32} {null.mean:+.2f} (band {null.low:+.2f} to {null.high:+.2f})")
assert min(before.values()) > 0.85
assert lost["the fact in other words"] < -0.25 and lost["the fact in other words"] < null.low
assert lost["another subject, another answer"] > 0.5 * lost["the fact in other words"]
assert lost["another subject, same answer"] > lost["the fact in other words"]

# %% [markdown]
# The fact in other words falls almost as deep as the prompt itself, so what we removed is no accident of one sentence. Little of it is
# about the answer alone or the subject alone, and nothing is lost for other subjects with other answers. What these neurons hold is
# mostly the *combination* of subject, relation and answer.
#
# **Scoreboard.** The model is small enough for the exact answer: remove every single neuron, all 3,072, one at a time, for six facts. The truth
# is the 30 whose removal hurts most. How many of them does each ranking have in its own top 30?


# %% label="exact" tags=["nbval-check-output"]
def exact_effects(task):
    """F(ablated) - F(base) for every neuron alone, on a task of one prompt: [n_layers, d_ffn]."""
    base = task.measure(model)
    rows = model.tokenize(model.tokenize(task.prompts).ids.expand(M, -1))
    states = mi.record(model, task.prompts, [f"x{l}" for l in range(L)])
    others, effects = ~torch.eye(M, dtype=torch.bool)[:, None], []
    for l in range(L):  # row j of the batch lacks neuron j; layers below are not computed again
        with mi.intervene(model, mi.edit(f"neurons{l}", lambda s: s * others)):
            logits = model.resume(l, states[f"x{l}"].expand(M, -1, -1), rows, last=True)
        effects.append((logits[:, task.target_ids(model)] - logits[:, task.foil_ids(model)])[:, 0] - base)
    return torch.stack(effects)


short = sorted(range(len(facts)), key=lambda i: len(facts.prompts[i].split()))[:6]
exact = torch.stack([exact_effects(facts.subset([i])) for i in short])
harmful = largest(-exact, 30)
guess = {
    "direct contribution": added[short],
    "size of the write, |s| |v|": written[short],
    "activation, |s|": (written / value_norms(model))[short],
    "random": torch.rand(exact.shape, generator=generator),
}
found = {
    name: (largest(score, 30) & harmful).sum().item() / harmful.sum().item() for name, score in guess.items()
}
for name, share in found.items():
    print(f"{name:28} finds {share:.2f} of the 30 neurons that matter most")
agree = [sum(spearman(added[i, l], -exact[n, l]) for n, i in enumerate(short)) / 6 for l in range(L)]
print(
    "direct contribution and exact effect, rank correlation in layers 0 to 5:\n  ",
    "  ".join(f"{r:.2f}" for r in agree),
)
assert found["direct contribution"] > found["size of the write, |s| |v|"] > found["random"]
assert agree[-1] > 0.7 > agree[0]

# %% [markdown]
# The direct contribution finds about half of them, the two magnitudes about a third. It follows the exact effect closely in the last layer,
# where only the final norm stands between the neuron and the output, and gets worse towards the bottom.
#
# **Where it fails.** It reads the last token only, and direct writes only. The heatmap removes *all* neurons of one layer at one place, and
# shows what the facts lose.

# %% label="where"
start = len(model.tokens(facts.prompts[0])) - len(facts.prompts[0].split())  # <bos> comes first
places = {
    "subject, first": torch.tensor([label["subject"][0] + start for label in facts.labels]),
    "subject, last": torch.tensor([label["subject"][1] - 1 + start for label in facts.labels]),
    "last token": "last",
}
difference = facts.measure(model).mean()
whole_layers = torch.zeros(L, len(places))
for column, positions in enumerate(places.values()):
    for l in range(L):
        with mi.intervene(model, mi.zero(f"neurons{l}", positions=positions)):
            whole_layers[l, column] = facts.measure(model).mean() - difference
show(
    heatmap(
        whole_layers,
        columns=list(places),
        ylabel="layer",
        title="A layer of neurons off",
        unit="logits",
    ),
    alt="Heat map of 6 layers by 3 places. The largest loss by far is in layer 0 at the last subject token; "
    "the upper layers lose at the last token; near zero elsewhere.",
    reading="Dark cell at the subject in the lowest layer: the answer is lost without the neurons there, "
    "though they add nothing directly to it.",
)
at_subject = whole_layers[:, :2].min().item()
worst = whole_layers[:, :2].amin(1).argmin()
print(f"mean logit difference {difference:.1f}; largest loss at the subject {at_subject:.1f}, layer {worst}")
assert at_subject < -1

# %% [markdown]
# So "the neurons that write the answer" are not the whole memory: others prepare the subject at its own tokens, long before, and no reading
# of the last token shows them. [@geva-etal-2023-dissecting] describe it in large models: early FFNs enrich the subject, later heads
# fetch from it. [@niu2024knowledge] call the knowledge-neuron picture an oversimplification, and ask to look beyond the FFN weights.
#
# ## 7. Reading a neuron, and doubting it
# Two common readings: the contexts in which the neuron fires most, and the tokens that its value promotes. Here are both, for the neuron
# that adds most to the facts on average. The token in brackets is the one at which the activation was read.

# %% label="read_one" tags=["nbval-check-output"]
best = int(added.mean(0).argmax())
site, value = f"L{best // M}N{best % M}", neuron_values(model, best // M)[best % M]
print(site, "promotes:", " ".join(neurons.promoted(model, value[None], k=8)[0]))
for context in neurons.top_contexts(model, texts, site, k=6, width=9):
    print("  ", context)
at_facts = mi.record(model, facts.prompts, [f"{site}@-1"])[f"{site}@-1"]
print(f"   at the last token of the facts: {at_facts.mean():+.2f} on average, {at_facts.max():+.2f} at most")

# %% [markdown]
# Would you have guessed from the list that this neuron helps with landmarks? Compare the activations with those at the facts, in the last
# line. A list of contexts shows the top of a distribution, and what you are after may sit in its middle. And any vector promotes *some*
# words, about which a story can be told.
#
# So let us count instead. The words of this world have known classes (cities, first names, French words ...). Call a value **readable**
# when at least 6 of its 8 top words are of one class. How many neurons are readable, and how many random mixtures of the same values (sums
# with random weights, which mean nothing)?

# %% label="readable"
concepts = [
    *lexicon.NOUNS.values(),
    *lexicon.VERBS.values(),
    *(word for pair in lexicon.ANTONYMS for word in pair),
]
classes = {
    "city": lexicon.CITIES, "country": lexicon.COUNTRIES, "job": lexicon.PROFESSIONS, "sport": lexicon.SPORTS,
    "drink": lexicon.DRINKS, "pet": lexicon.PETS, "material": lexicon.MATERIALS, "sight": lexicon.FAMOUS,
    "digit": lexicon.DIGITS, "year": lexicon.YEARS, "first name": lexicon.FIRST, "last name": lexicon.LAST,
}  # fmt: skip
for i, language in enumerate(lexicon.LANGUAGES):
    classes[f"{language} word"] = [word[i] for word in concepts]
members = torch.zeros(len(classes), model.n_vocab)
for row, words in enumerate(classes.values()):
    members[row, [model.token_id(word) for word in words]] = 1


def readable(vectors):
    """True where at least 6 of the 8 most promoted words are of one class: [n, d] -> bool [n]."""
    top = (vectors @ folded_unembedding(model)[0]).topk(8).indices
    return members[:, top].sum(-1).amax(0) >= 6


share = [readable(neuron_values(model, l)).float().mean().item() for l in range(L)]
luck = [readable(neurons.mixtures(neuron_values(model, l), 2000)).float().mean().item() for l in range(L)]
show(
    curves(
        range(L),
        {"neurons": share, "random mixtures": luck},
        xlabel="layer",
        ylabel="share that is readable",
        title="How many values can be read?",
    ),
    alt="Share of readable values by layer, for neurons and for random mixtures of them. Both are "
    "small; neurons lie above the mixtures, most clearly in the upper layers.",
    reading="A value is readable when 6 of its 8 top words are of one class. Neurons beat chance, "
    "but most are not readable.",
)
print("readable, by layer")
for name, shares in (("neurons", share), ("random mixtures", luck)):
    print(f"  {name:16}", "  ".join(f"{x:.3f}" for x in shares))
assert share[-1] > 2 * luck[-1] and max(share) < 0.5

# %% [markdown]
# More than chance, most clearly in the upper layers, and still a small part. One percent of 512 is five: whoever shows five convincing
# lists has shown about what random mixtures give too.
#
# ## 8. Neurons as detectors
# The other side, the key: does a neuron tell two kinds of prompts apart? AUROC is the chance that a prompt with the label has the larger
# activation. It needs no threshold, so it does not care what "active" means. Toxicity neurons were found and damped in this way
# [@suauWhisperingExpertsNeural2024], language neurons by a close relative, average precision [@kojima-etal-2024-multilingual].

# %% [markdown] exercise="neurons.detector_auroc" difficulty=3 minutes=10
# ### Exercise: how good a detector is each neuron?
# Write `detector_auroc(values, labels)`: activations `[n, m]`, truth values `[n]`. Return `[m]`: for each neuron the share of pairs (an item with
# the label, an item without) in which the first has the larger activation. A tie counts half.


# %%
def detector_auroc(values, labels):
    """Share of (positive, negative) pairs that a column ranks right, ties half: [n, m], bool [n] -> [m]."""
    ### BEGIN SOLUTION
    positives, negatives = values[labels], values[~labels]
    wins = torch.zeros(values.shape[1])
    for row in positives:
        wins += (row > negatives).float().sum(0) + (row == negatives).float().sum(0) / 2
    return wins / (len(positives) * len(negatives))
    ### END SOLUTION


# %%
detector_auroc = check("neurons.detector_auroc", detector_auroc)

# %% [markdown]
# Three labels for requests to the assistant: is it harmful (which depends on verb *and* object), is it in French, and, as a control, a
# label that means nothing (a coin toss). We choose the best of 3,072 neurons on training prompts and test it on other prompts. The null is
# the best neuron under shuffled labels, 200 times ("at most": the best of all): choosing among thousands must be part of the null.


# %% label="detectors" tags=["nbval-check-output"]
def requests(split):
    """Activations at the last token, [200, n_layers * d_ffn], and three labels of the prompts."""
    parts = [world.task(name, split=split, n=100) for name in ("refusal_harmful", "refusal_harmless")]
    labels = [label for part in parts for label in part.labels]
    cache = mi.record(
        model, [p for part in parts for p in part.prompts], [f"neurons{l}@-1" for l in range(L)]
    )
    coin = random.Random(split)
    return torch.cat([cache[f"neurons{l}@-1"] for l in range(L)], dim=1), {
        "harmful": torch.tensor([label["harmful"] for label in labels]),
        "in French": torch.tensor([label["language"] == "fr" for label in labels]),
        "coin toss": torch.tensor([coin.random() < 0.5 for _ in labels]),
    }


train, truths = requests("train")
held_out, answers = requests("test")
results = {}
for name, label in truths.items():
    area, luck = detector_auroc(train, label), neurons.best_by_luck(train, label)
    top = int(area.argmax())
    results[name] = (
        area.max().item(),
        detector_auroc(held_out[:, top : top + 1], answers[name]).item(),
        luck.max().item(),
    )
    print(
        f"{name:10} best: L{top // M}N{top % M:<4} AUROC {area[top]:.2f}, new prompts {results[name][1]:.2f}"
        f"   luck: at most {luck.max():.2f}; {int((area > luck.max()).sum())} beat it"
    )
assert results["harmful"][1] > 0.9 and results["in French"][1] > 0.9
assert results["coin toss"][0] > 0.55 and abs(results["coin toss"][1] - 0.5) < 0.15

# %% [markdown]
# The best neuron for a coin toss is far from 0.5, and as worthless on new prompts as it must be. The real labels have not one but hundreds
# of good detectors each. That is a lesson about detectors too: knowing the label is not the same as using it. Whether these neurons *do*
# anything is a matter for ablation (chapters 05 and 06; language neurons in chapter 19).
#
# ## 9. One neuron, several meanings
# A neuron that serves unrelated purposes is called **polysemantic**. First where it is true by construction: in `compiled.polysemantic()`,
# neuron L0N0 serves one colour and one number. We remove each neuron and look at both tasks.

# %% label="two_meanings" tags=["nbval-check-output"]
double = compiled.polysemantic()
small = double.wrap()
both = {"colours": double.task, "numbers": double.others["numbers"]}
removed = {
    name: causal.ablate_each(small, task, [f"L0N{j}" for j in range(5)]).values for name, task in both.items()
}
for j in range(5):
    print(f"L0N{j}   " + "   ".join(f"{name} {removed[name][j] + 0.0:+.2f}" for name in both))
assert removed["colours"][0] < -3 and removed["numbers"][0] < -3 and abs(removed["numbers"][1]) < 1e-4

# %% [markdown]
# Now `lab`. Take six domains that have little in common, and the neurons that are among the top 1 % by mean direct contribution in
# each of them. How many are in the top 1 % of several domains? By chance (the top lists shuffled within each layer) some are too.

# %% label="several" tags=["nbval-check-output"]
domains = {
    name: world.task(name, split="validation", n=50)
    for name in ("facts", "translation", "ioi", "greater_than", "sentiment", "refusal_harmful")
}
mean_added = torch.stack([contributions(task).mean(0) for task in domains.values()])  # [domains, L, M]
tops = largest(mean_added, L * M // 100)
count = tops.sum(0)
by_chance = [sum(top[:, torch.randperm(M, generator=generator)].int() for top in tops) for _ in range(20)]
for k in (1, 2, 3):
    chance = torch.stack([(c >= k).sum() for c in by_chance]).float()
    print(
        f"top 1 % in {k} or more of {len(domains)} domains: {(count >= k).sum()} neurons; by chance "
        f"{chance.mean():.1f}, s.d. {chance.std():.1f}"
    )
    if k == 2:
        assert (count >= k).sum() > chance.mean() + 2 * chance.std()

# %% [markdown]
# Few neurons are shared, but more than chance has it: strong in one domain is no safe bet for idle in another. (With three domains the
# numbers are too small to tell.)
#
# Take the neuron that is strongest in its *third-best* domain, and a specialist, strong in one domain alone. The figure shows the exact effect
# of removing each on all six domains, beside 10 random neurons of the first one's layer. Starred cells lie outside the band.

# %% label="spill"
strongest = mean_added.flatten(1).amax(1)[:, None, None]
relative = mean_added / strongest  # 1: the strongest neuron of the domain
ranked = relative.flatten(1).sort(dim=0, descending=True).values  # by neuron: its best domain first
generalist, specialist = int(ranked[2].argmax()), int((ranked[0] - 2 * ranked[1].clamp_min(0)).argmax())
base_of = {name: task.measure(model).mean() for name, task in domains.items()}


def removal(index):
    """F(ablated) - F(base) on every domain, for one neuron."""
    with mi.intervene(model, mi.zero(f"L{index // M}N{index % M}")):
        return [(task.measure(model).mean() - base_of[name]).item() for name, task in domains.items()]


pair = {f"L{index // M}N{index % M}": removal(index) for index in (generalist, specialist)}
draws = [removal(generalist // M * M + rng.randrange(M)) for _ in range(10)]
show(
    side_effects(
        list(pair.values()), list(pair), list(domains), null=draws, unit="logits", title="Removing one neuron"
    ),
    alt="Matrix of two neurons by six domains. The first neuron has starred losses in several unrelated "
    "domains, the second mainly in one.",
    reading="First row: a neuron that several domains lean on. Second row: a specialist. Starred: "
    "outside the band of 10 random neurons of the layer.",
)
print("contexts of", list(pair)[0])
for context in neurons.top_contexts(model, texts, list(pair)[0], k=6, width=7):
    print("  ", context)
low = torch.tensor(draws).mean(0) - 2 * torch.tensor(draws).std(0)
assert int((torch.tensor(pair[list(pair)[0]]) < low).sum()) >= 2

# %% [markdown]
# The effects of this one neuron are small, but they lie outside the band in domains of quite different kinds. Whoever removes such neurons
# to change one behaviour changes others. Why models do this (superposition), and how to find better units than neurons (sparse
# autoencoders), is chapter 04.
#
# ## 10. What the survey says, and where it is loose
# - **Rows and columns.** Section 2.4 calls the key the j-th *row* of $W_{in}$ and the value the j-th *column* of $W_{out}$. With its own
#   shapes these have $d_{ffn}$ numbers, not $d$. The words fit what PyTorch stores, and the first exercise shows what that costs when
#   $d = d_{ffn}$.
# - **One formula for all.** Eq. 6 has no gate and no biases; sections 1 and 3 gave both.
# - **"Active" and "large".** Scores such as $|s_j|$ or "how often is $s_j > 0$" (section 3.1) look like properties of a neuron. In a gated
#   FFN they are not. Multiply $u_j$ by any number $c$ and divide $v_j$ by it: the model is the same, while $s_j$ has become $c\,s_j$. Take
#   $c$ negative, and "active" has turned round. The next cell does this to `lab-llama`.

# %% label="gauge" tags=["nbval-check-output"]
twin = mi.wrap(copy.deepcopy(gated.hf), tokenizer=gated.tokenizer)
for l in range(twin.n_layers):
    c = (
        torch.exp(torch.randn(twin.d_ffn, generator=generator))
        * (torch.rand(twin.d_ffn, generator=generator) - 0.5).sign()
    )
    twin.block(l).mlp.up_proj.weight *= c[:, None]  # nn.Linear stores [out, in]: row j is u_j
    twin.block(l).mlp.down_proj.weight /= c  # column j is v_j
print("same logits:", torch.allclose(gated(facts.prompts), twin(facts.prompts), atol=1e-3))
s_twin, gate_twin = states(twin, "neurons"), states(twin, "gate")
rows = {
    "how often s > 0": ((s_gated > 0).float().mean(0), (s_twin > 0).float().mean(0)),
    "how often gate > 0": ((gate > 0).float().mean(0), (gate_twin > 0).float().mean(0)),
    "mean |s|": (s_gated.abs().mean(0), s_twin.abs().mean(0)),
    "mean |s| |v|": (s_gated.abs().mean(0) * value_norms(gated), s_twin.abs().mean(0) * value_norms(twin)),
}
kept = {name: spearman(a, b) for name, (a, b) in rows.items()}
for name, value in kept.items():
    print(f"{name:20} rank correlation between the two models {value:+.2f}")
assert torch.allclose(gated(facts.prompts), twin(facts.prompts), atol=1e-3)
assert (
    kept["how often gate > 0"] > 0.999
    and kept["mean |s| |v|"] > 0.999
    and kept["mean |s|"] < 0.8
    and abs(kept["how often s > 0"]) < 0.3
)

# %% [markdown]
# Two models that agree on every logit, and disagree on which neurons are large or often positive. What survives is $|s_j|\,|v_j|$, the size
# of what is written, and the gate. (With ReLU the same holds for positive $c$; with GELU the scale is fixed, but nothing makes a raw $s_j$
# comparable between neurons with values of different length.)
#
# ## 11. Papers that use this
# - FFN layers as key-value memories: [@geva2021transformer]; neurons that express facts, found with integrated gradients
#   [@dai2022knowledge]; a cheap static score for the neurons behind a fact [@yumaagnitude_emnlp2024]
# - doubts: the thesis oversimplifies [@niu2024knowledge]; a fact's neurons depend on the query [@chen2024querylocalization]; some facts have
#   redundant neurons [@chengrad_aaai2024]
# - neurons by relation: [@liu-etal-2025-relation-specific]; by language: [@tang-etal-2024-language], [@kojima-etal-2024-multilingual]
# - neurons as detectors of unsafe text, damped at inference: [@suauWhisperingExpertsNeural2024]; features in one neuron and in many, by sparse
#   probing: [@gurnee2023finding]
#
# ## 12. The same on a real model
# The function below finds the neurons that add most to an answer, and removes them beside as many random ones. It runs on `lab-llama` as it
# stands. Put the name of a Hugging Face model or a local folder into `REAL` for the same on that one. One prompt is an anecdote: take a
# list of facts and the controls of section 6 before you believe it.


# %% label="real"
def memory_of(model, prompt, target, foil, k=30):
    """Print the neurons that add most to logit(target) - logit(foil), and what removing k of them does."""
    task = mi.Task("one fact", [prompt], [target], foils=[foil])
    added = neurons.direct_contributions(model, [prompt], [target], [foil])
    print(f"{model.config.model_type}: {prompt} -> {target}  (foil: {foil})")
    for index in added.flatten().argsort(descending=True)[:3].tolist():
        l, j = divmod(index, model.d_ffn)
        words = neurons.promoted(model, neuron_values(model, l)[j : j + 1], k=5)[0]
        print(
            f"  L{l}N{j:<5} adds {added[0, l, j]:.2f} logits   promotes: {' '.join(w.strip() for w in words)}"
        )
    own = largest(added, k)
    noise = own[:, :, torch.randperm(model.d_ffn, generator=torch.Generator().manual_seed(0))]
    effects = [ablation_effect(model, task, chosen.to(model.device)).item() for chosen in (own, noise)]
    print(
        f"  effect of removing its top {k}: {effects[0]:+.2f} logits; of {k} random ones: {effects[1]:+.2f}"
    )
    return effects


own, noise = memory_of(gated, facts.prompts[0], facts.targets[0], facts.foils[0])
assert own < noise - 0.5
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    memory_of(mi.load(REAL), "The Eiffel Tower is in the city of", " Paris", " Rome")

# %% [markdown]
# ## 13. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "In a PyTorch Llama, down_proj.weight has shape [128, 344]. Where is the value of neuron 7?",
            [
                (
                    "In row 7.",
                    "A row of this weight has 344 numbers, one per neuron: it is what one dimension "
                    "of the state receives. A value has d = 128.",
                ),
                (
                    "In column 7.",
                    "nn.Linear stores [out, in] = [d, d_ffn], so row 7 of W_out in the formula is "
                    "column 7 of the stored weight.",
                    True,
                ),
                (
                    "It depends on the sign of the activation.",
                    "A negative activation writes minus the value, but the value itself is a fixed vector.",
                ),
            ],
        ),
        Question(
            "A neuron of a gated FFN has s > 0 on 90 % of French tokens and on 10 % of others. What "
            "may you conclude?",
            [
                (
                    "It is on in French and off elsewhere.",
                    "Its gate may be on everywhere, with an up reading that changes sign. Then it "
                    "writes in all languages, in opposite directions.",
                ),
                (
                    "Its activation tells French from the rest, but the sign has no meaning of its own.",
                    "Negating its up key and its value gives the same model with the counts turned "
                    "round. It detects; what it does is another question.",
                    True,
                ),
                (
                    "Nothing, since s is not interpretable.",
                    "As a detector it is good, whatever the sign means: AUROC would be far from 0.5.",
                ),
            ],
        ),
        Question(
            "The 30 neurons with the largest direct contribution to a fact are removed, and the fact "
            "is lost. Which control speaks best for a memory of this fact, and not only of the word?",
            [
                (
                    "Removing 30 random neurons.",
                    "Necessary, but any 30 neurons that push the answer up would pass, for example "
                    "neurons that say this word in every context.",
                ),
                (
                    "The fact in other words is lost too, while the same answer for other subjects stays.",
                    "The wording played no part in the choice, and an all-purpose writer of the word "
                    "would take the other subjects down with it.",
                    True,
                ),
                (
                    "The neurons promote the answer when their values are read through the unembedding.",
                    "They were chosen by exactly that product, so it cannot fail.",
                ),
            ],
        ),
        Question(
            "You test 3,072 neurons on 200 prompts, and the best one has AUROC 0.62. The null of a "
            "single neuron is 0.50 with s.d. 0.04. What now?",
            [
                (
                    "Significant: three standard deviations.",
                    "For one neuron named beforehand, yes. The best of 3,072 neurons without any "
                    "meaning is often this good.",
                ),
                (
                    "Compare with the best of 3,072 under shuffled labels, and test it on new prompts.",
                    "The choice is part of the procedure, so it must be part of the null. New "
                    "prompts undo it.",
                    True,
                ),
                (
                    "Nothing there: 0.62 is a weak detector.",
                    "Weak detectors can be real. What is missing is the right null, not strength.",
                ),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 04 looks for units that mean one thing, when neurons mean several.
