# %% [markdown]
# # 13 Targeted optimization
# Chapter 12 turned parts of the model up and down while it ran. This chapter changes the model: it computes or trains a change of a few
# weights (or of a few numbers beside them) such that one behaviour changes and the rest stays. Survey
# ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 4.2.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - write a fact into one FFN in closed form (ROME), and say which exact problem the formula solves
# - write many facts at once (MEMIT), and show when edits made one after the other spoil the model
# - train only what a mask allows, bit for bit, under weight decay and momentum
# - weigh a target against a preservation term, and know what that term does not see
# - let gates find the heads that carry a behaviour, and score them against the answer key
# - test whether the place of an edit matters, beside random places of equal size
#
# **The claim.** An optimized change of few parameters is precise, persistent and needs no prompt, if it is made in the right place with the right
# data (survey, section 4.2, Eq. 20). In `lab` precision comes from what the objective protects. The place decides when
# very few weights may move, and much less than the literature says otherwise.

# %% label="setup"
import random
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import rank_correlation
from mi_course.evaluate.localizers import random_rankings
from mi_course.evaluate.side_effects import document_loss, kl_to_base
from mi_course.locate import causal
from mi_course.models import weights
from mi_course.steer import WeightEdit, editing, gates, interventions, training
from mi_course.steer.registry import bytes_of
from mi_course.teach import Question, check, curves, quiz, show
from mi_course.world import edit_facts
from mi_course.world.behaviours import BEHAVIOURS
from mi_course.world.installed import read
from mi_course.world.installed_tasks import answer_key, installed_task

torch.manual_seed(0)
model = mi.load()
pool = world.task("facts", split="test", n=200)
told = (model.last_logits(pool.prompts).argmax(-1) == pool.target_ids(model)).tolist()
first = {}  # the first fact of every subject that the model knows
for i, label in enumerate(pool.labels):
    if told[i]:
        first.setdefault(label["subject_text"], i)
facts = pool.subset(list(first.values())[:32])
end = [1 + label["subject"][1] - 1 for label in facts.labels]  # last token of the subject; <bos> is token 0
new = facts.foil_ids(model)  # what we want the model to say: the object of another subject
print(f"{len(facts)} facts about different subjects, all known")
print(facts.prompts[0], "->", facts.targets[0], "   we want:", facts.foils[0])

# %% [markdown]
# ## 1. One schema, five members
# The survey states one formula for all of this:
#
# $$\theta' = \theta + M \odot \Delta\theta^*, \qquad \Delta\theta^* = \arg\min_{\Delta\theta} \; L_{tgt}(f_{\theta'}; D_{tgt}) + \lambda L_{pres}(f_{\theta'}, f_\theta; D_{pres}) \qquad (20)$$
#
# A target that should change, a preservation term for what should not, a weight $\lambda$ between them, and a mask $M$ that says which
# parameters may move. It is a schema, not a method: nothing is said about the losses, the data, or how the minimum is found. The methods differ
# in just that.
#
# | method | what moves | how it is found | preservation |
# |---|---|---|---|
# | ROME [@meng2022ccs] | one matrix, rank one | closed form | change at ordinary keys |
# | MEMIT [@meng2023massediting] | matrices of some layers | closed form | the same, with $\lambda$ |
# | masked fine-tuning | weights of heads, neurons, layers | gradient descent | KL, replay, weight decay |
# | low rank (LoRA [@hu2022lora]), soft masks, gates | $M$ itself, or a subspace, is trained | gradient descent | the same, and few open gates |
# | ReFT [@wu2024reft], JoLA [@lai2025jola], a bias per layer | no weight: numbers beside the frozen model | gradient descent | the same |
#
# ## 2. A memory with one new entry
# Chapter 03 read an FFN as a memory. The activations of its neurons are a **key** $k$ (a row of 512 numbers), the down projection $W$ turns the key into
# the **value** $kW$ (128 numbers) that is written into the stream. To change a fact, choose the key at the last token of the subject, and a value $v^*$ that makes
# the model say something else. Many changes $D$ of $W$ satisfy $k(W + D) = v^*$. ROME takes the one that ordinary keys notice least: with
# $C = E[k^\top k]$ over ordinary text it minimises $E\lVert kD \rVert^2 = \mathrm{tr}(D^\top C D)$. The solution has rank one:
#
# $$D = \frac{C^{-1} k^\top (v^* - kW)}{k\, C^{-1} k^\top}$$
#
# The survey gives no formula. This one is the paper's, turned into rows.

# %% [markdown] exercise="editing.rank_one" difficulty=2 minutes=8
# ### Exercise: the rank-one edit
# Write `rank_one(W, C, key, value)`: the change `D` of `W [d_in, d_out]` that gives `key @ (W + D) = value` with the least change in the metric of
# `C [d_in, d_in]`.


# %%
def rank_one(W, C, key, value):
    """The change D [d_in, d_out] of W: key (W + D) = value, least in the metric of C [d_in, d_in]."""
    ### BEGIN SOLUTION
    direction = torch.linalg.solve(C, key)
    return torch.outer(direction, value - key @ W) / (key @ direction)
    ### END SOLUTION


# %%
rank_one = check("editing.rank_one", rank_one)

# %% [markdown] exercise="editing.second_moment" difficulty=1 minutes=6
# ### Exercise: what ordinary keys are like
# Write `second_moment(keys, ridge)`: $C = E[k^\top k]$ of keys `[n, d]`, not centred. Then add `ridge` times the mean of its diagonal to the
# diagonal, so that it can be inverted although some neurons never fire.


# %%
def second_moment(keys, ridge):
    """C [d, d] of keys [n, d]: mean of k^T k, plus ridge times the mean diagonal on the diagonal."""
    ### BEGIN SOLUTION
    C = keys.T @ keys / len(keys)
    return C + ridge * C.diagonal().mean() * torch.eye(len(C))
    ### END SOLUTION


# %%
second_moment = check("editing.second_moment", second_moment)

# %% [markdown]
# Now the whole edit, in ten lines. The value is the only thing that is searched for: `optimise_values` adds a vector to what the FFN writes at the
# subject and moves it, by Adam, until the model says the new word; its length is punished and capped.

# %% label="ten_lines"
layer = 0
texts = [text for own in world.documents("train", 6).values() for text in own]
cache = mi.record(model, texts, [f"neurons{layer}"])
ordinary = cache[f"neurons{layer}"][cache.batch.mask.bool()]  # the keys of all tokens, [n, 512]
C = second_moment(ordinary, 0.01)
ffn = weights.ffn(model, layer)
W, bias = ffn.W_out.detach(), ffn.b_out.detach()
k = mi.record(model, facts.prompts[:1], [f"neurons{layer}"])[f"neurons{layer}"][0, end[0]]
v = editing.optimise_values(model, [facts.prompts[:1]], [end[:1]], [int(new[0])], layer)[0]
D = rank_one(W, C, k, v - bias)


def write(D, layer=0):
    """The change D of W_out as a reversible edit. GPT-2 stores the matrix as [d_in, d_out]."""
    return WeightEdit({f"transformer.h.{layer}.mlp.c_proj.weight": D})


def says(prompts):
    """The most likely next word after each prompt, as ids."""
    return model.last_logits(prompts).argmax(-1)


asked = [facts.prompts[0], *facts.labels[0]["paraphrases"], *(p for p, _ in facts.labels[0]["neighbours"])]
before = [model.tokenizer.decode(i) for i in says(asked)]
with write(D).on(model):
    after = [model.tokenizer.decode(i) for i in says(asked)]
print(
    f"{len(ordinary)} ordinary keys; largest |k(W + D) - v| {float((k @ (W + D) + bias - v).abs().max()):.0e}"
)
for prompt, a, b in zip(asked, before, after):
    print(f"  {prompt:48} {a:10} -> {b}")
assert (k @ (W + D) + bias - v).abs().max() < 1e-3

# %% [markdown]
# The first line is the edited prompt, then four other wordings, then four **neighbours**: other subjects with the same question. The constraint holds to
# rounding. Is the change least? Two rivals satisfy the same constraint: $C$ replaced by the identity (the smallest $D$ in the ordinary sense), and $D$ plus
# random changes that the key does not see. We compare what 3 sets of keys notice, as the mean of $\lVert kD \rVert^2$ over the keys, in units of ROME's.

# %% label="least_change"
identity = torch.eye(len(C))
plain = rank_one(W, identity, k, v - bias)
noise = 0.02 * torch.randn(W.shape, generator=torch.Generator().manual_seed(0))
rival = D + noise - torch.outer(k, k @ noise) / (k @ k)
held_out = mi.record(model, [t for own in world.documents("test", 2).values() for t in own], ["neurons0"])
held_out = held_out["neurons0"][held_out.batch.mask.bool()]
for name, keys in (("keys behind C", ordinary), ("keys of held-out text", held_out)):
    noticed = [float((keys @ change).square().sum(1).mean()) for change in (D, plain, rival)]
    print(
        f"{name:24} ROME 1.0   C = identity {noticed[1] / noticed[0]:5.1f}   "
        f"ROME + unseen noise {noticed[2] / noticed[0]:5.1f}"
    )
    assert noticed[0] < min(noticed[1:])
print(f"length of D: ROME {float(D.norm()):.1f}, C = identity {float(plain.norm()):.1f}")

# %% [markdown]
# ROME's change is *longer* than the plain one and is noticed less: it lies in directions that ordinary keys do not use. That is all that $C$
# does. From here on we use the moments that ship with `lab`, from more text.
#
# ## 3. Scoring an edit
# One successful prompt proves little: a model that says "santos" to everything would pass. Three numbers are usual. **Efficacy**: is the new word
# said for the edited prompt? **Paraphrase**: is it said for other wordings? **Neighbourhood**: do other subjects keep their answers?

# %% [markdown] exercise="editing.score_edit" difficulty=2 minutes=10
# ### Exercise: score an edit
# Write `score_edit(fact, paraphrases, before, after, new, answers)`. `fact [V]` and `paraphrases [p, V]` are logits after the edit, `new` is the id of the
# word that should be said there. `before` and `after`, `[m, V]`, are logits at the neighbours before and after the edit, `answers [m]` their right
# words. Return three floats: efficacy, paraphrase, neighbourhood. Of the neighbours only those count that were right before.


# %%
def score_edit(fact, paraphrases, before, after, new, answers):
    """(efficacy, paraphrase, neighbourhood), each 0 ... 1; a word is said when its logit is the largest."""
    ### BEGIN SOLUTION
    right = before.argmax(-1) == answers
    kept = (after.argmax(-1) == answers)[right]
    said = (paraphrases.argmax(-1) == new).float().mean()
    return float(fact.argmax() == new), float(said), float(kept.float().mean())
    ### END SOLUTION


# %%
score_edit = check("editing.score_edit", score_edit)

# %% [markdown]
# Ten facts, each edited alone, on the untouched model. Controls: the same formula with the key of another fact, and with its numbers in random
# places. A fourth column asks what the three numbers do not: **other facts about the same subject** (where it is, who built it), of those that the model
# knew.

# %% label="one_at_a_time"
C = editing.second_moments(model)
n = 10
one_prompt, one_end = [[p] for p in facts.prompts], [[e] for e in end]
K = editing.keys_at(model, one_prompt, one_end, 0)  # [32, 512]
V = editing.optimise_values(model, one_prompt, one_end, new.tolist(), 0, steps=20)  # [32, 128]
word = {
    w: model.tokenizer.convert_tokens_to_ids(w) for _, w in sum((x["neighbours"] for x in facts.labels), [])
}


def same_subject(i):
    """Known facts about the subject of fact i with another relation: prompts and answers."""
    mine = facts.labels[i]
    rows = [
        j
        for j, x in enumerate(pool.labels)
        if told[j] and x["subject_text"] == mine["subject_text"] and x["relation"] != mine["relation"]
    ]
    return [pool.prompts[j] for j in rows], pool.target_ids(model)[rows]


def ask(i, edit):
    """Scores of one edit of fact i, and the share of other facts about its subject that stay (or nan)."""
    label = facts.labels[i]
    others, answers = zip(*label["neighbours"])
    more, theirs = same_subject(i)
    before = model.last_logits(list(others))
    prompts = [facts.prompts[i], *label["paraphrases"], *others, *more]
    with edit.on(model):
        now = model.last_logits(prompts)
    p, m = len(label["paraphrases"]), len(others)
    wanted = torch.tensor([word[a] for a in answers])
    own = (now[1 + p + m :].argmax(-1) == theirs).float().mean().item() if more else float("nan")
    return *score_edit(now[0], now[1 : 1 + p], before, now[1 + p : 1 + p + m], int(new[i]), wanted), own


def shuffled(D, seed):
    order = torch.randperm(D.numel(), generator=torch.Generator().manual_seed(seed))
    return D.flatten()[order].view_as(D)


change = {
    "ROME": lambda i: rank_one(W, C[0], K[i], V[i] - bias),
    "C = identity": lambda i: rank_one(W, identity, K[i], V[i] - bias),
    "key of another fact": lambda i: rank_one(W, C[0], K[(i + 1) % n], V[i] - bias),
    "numbers shuffled": lambda i: shuffled(rank_one(W, C[0], K[i], V[i] - bias), i),
}
alone = {name: np.array([ask(i, write(D(i))) for i in range(n)]) for name, D in change.items()}
print(" " * 22 + "efficacy  paraphrase  neighbours  same subject")
for name, rows in alone.items():
    print(f"{name:22}" + "".join(f"{x:11.2f}" for x in np.nanmean(rows, 0)))
print("other facts about the subject asked for:", sum(len(same_subject(i)[0]) for i in range(n)))
assert np.nanmean(alone["ROME"], 0)[:2].min() > 0.9
assert np.nanmean(alone["key of another fact"], 0)[0] < 0.3
assert np.nanmean(alone["ROME"], 0)[3] < 0.5

# %% [markdown]
# The edit does what it says, and the controls do not. The last column is the price that the usual three numbers hide: at layer 0 the edit does not
# change *a fact about* the subject, it changes who the subject *is*. The cheapest way to make the model say "santos" is to make the
# subject look like another one, and then its other facts go as well. The paper's remedy is a further term when $v^*$ is searched (the **essence**, a KL on
# a prompt such as "{subject} is a"); `optimise_values(essence=...)` has it.
#
# ## 4. Many facts
# Edits add up. Apply ROME again and again to the same matrix, and each edit only promises something about its own key. MEMIT asks for all at once, by
# ridge regression. With keys $K$ `[n, d_in]` and what is missing, $R = V^* - KW$:
#
# $$D = \arg\min_D \lVert KD - R \rVert^2 + \lambda\, \mathrm{tr}(D^\top C D) = (\lambda C + K^\top K)^{-1} K^\top R$$

# %% [markdown] exercise="editing.ridge_update" difficulty=2 minutes=10
# ### Exercise: the batch edit
# Write `ridge_update(K, R, C, lam)`: the minimiser above, `[d_in, d_out]`, from keys `K [n, d_in]` and what is missing `R [n, d_out]`.


# %%
def ridge_update(K, R, C, lam):
    """D [d_in, d_out] that minimises |K D - R|^2 + lam trace(D^T C D)."""
    ### BEGIN SOLUTION
    return torch.linalg.solve(lam * C + K.T @ K, K.T @ R)
    ### END SOLUTION


# %%
ridge_update = check("editing.ridge_update", ridge_update)

# %% [markdown]
# From 1 to 32 facts about different subjects: ROME one after the other, MEMIT at once, and MEMIT with the identity in place of $C$. All use the same keys and values (an
# edit of layer 0 does not change the keys of layer 0). Neighbours are here subjects that are never edited. The last panel is the rise of the loss on text of
# every second domain.

# %% label="many"
named = {label["subject_text"] for label in facts.labels}
neighbours = dict((p, a) for x in facts.labels for p, a in x["neighbours"] if not any(s in p for s in named))
others, answers = list(neighbours), torch.tensor([word[a] for a in neighbours.values()])
known_before = says(others) == answers
neutral = [text for own in world.documents("test", 1).values() for text in own][::2]
loss_before = document_loss(model, neutral).mean()
R = V - bias - K @ W


def measure(D, n):
    """Efficacy and paraphrase over the first n facts, neighbourhood, rise of the loss."""
    phrases = [p for x in facts.labels[:n] for p in x["paraphrases"][:2]]
    with write(D).on(model):
        said, other = says(facts.prompts[:n]) == new[:n], says(phrases) == new[:n].repeat_interleave(2)
        kept = (says(others) == answers)[known_before]
        rise = float(document_loss(model, neutral).mean() - loss_before)
    return float(said.float().mean()), float(other.float().mean()), float(kept.float().mean()), rise


counts = [1, 4, 16, 32]
series = {"ROME in sequence": [], "MEMIT": [], "MEMIT, C = identity": []}
D = torch.zeros_like(W)
for i in range(counts[-1]):
    D = D + rank_one(W + D, C[0], K[i], V[i] - bias)
    if i + 1 in counts:
        series["ROME in sequence"].append(measure(D, i + 1))
for name, metric in (("MEMIT", C[0]), ("MEMIT, C = identity", identity)):
    series[name] = [measure(ridge_update(K[:i], R[:i], metric, 1.0), i) for i in counts]

figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
for j, (ax, title) in enumerate(
    zip(axes, ("efficacy", "paraphrase", "neighbours kept", "rise of the loss, nats"))
):
    for (name, rows), color, mark in zip(series.items(), ("#0072B2", "#D55E00", "#009E73"), "os^"):
        ax.plot(counts, [row[j] for row in rows], color=color, marker=mark, ms=4, label=name)
    ax.set(title=title, xlabel="facts edited", xscale="log", xticks=counts, xticklabels=counts)
    ax.minorticks_off()
    if j < 3:
        ax.set_ylim(-0.05, 1.05)
axes[3].legend(frameon=False, fontsize=8)
show(
    figure,
    alt="Four panels against the number of edited facts, 1 to 32. Efficacy and paraphrase of sequential ROME "
    "fall towards 32 facts, those of MEMIT stay near 1. Neighbours kept fall for all three, fastest "
    "without C. The loss rises most without C.",
    reading="MEMIT keeps its facts where a sequence forgets them; at 32 facts all lose the neighbours.",
)
for name, rows in series.items():
    print(
        f"{name:22}"
        + "   ".join(f"{n}: {r[0]:.2f} {r[1]:.2f} {r[2]:.2f} {r[3]:+.2f}" for n, r in zip(counts, rows))
    )
assert series["MEMIT"][-1][0] > series["ROME in sequence"][-1][0] + 0.1
assert series["MEMIT, C = identity"][-1][3] > 5 * series["MEMIT"][-1][3]
assert series["MEMIT"][-1][2] < 0.6

# %% [markdown]
# In the sequence, early facts are forgotten: a later edit also changes what the keys of earlier ones give. The batch forgets none and pays at the same place, the
# neighbours, because keys of different subjects are alike. How alike, as a cosine? And what does $\lambda$ buy, at 16 facts?

# %% label="overlap" tags=["nbval-check-output"]
noun = [label["subject_text"].split()[-1] for label in facts.labels]
same = torch.tensor([[a == b for a in noun] for b in noun]) & ~torch.eye(len(noun), dtype=torch.bool)
inverse = torch.linalg.inv(C[0])
for name, gram in (("plain", K @ K.T), ("in the metric of C^-1", K @ inverse @ K.T)):
    cosine = gram / (gram.diagonal()[:, None] * gram.diagonal()).sqrt()
    unlike = ~same & ~torch.eye(len(noun), dtype=torch.bool)
    print(
        f"cosine of keys, {name:22} same noun {cosine[same].mean():.2f}   "
        f"other noun {cosine[unlike].mean():.2f}"
    )
sweep = {1.0: series["MEMIT"][counts.index(16)]}
sweep |= {lam: measure(ridge_update(K[:16], R[:16], C[0], lam), 16) for lam in (300.0, 1000.0, 10000.0)}
for lam, row in sweep.items():
    print(
        f"lambda {lam:7.0f}   efficacy {row[0]:.2f}  paraphrase {row[1]:.2f}  "
        f"neighbours {row[2]:.2f}  loss {row[3]:+.3f}"
    )
assert sweep[1000.0][2] > sweep[1.0][2] + 0.3 and sweep[10000.0][0] < 0.2

# %% [markdown]
# The subjects are called "silver tower" or "quiet bridge", and the key at the last token holds more of the noun than of the adjective. $C^{-1}$ takes most of
# the overlap away, not all. $\lambda$ moves along a trade-off: from all facts and few neighbours to all neighbours and no facts. There is no
# value that has both: the limit is the model's (512 neurons and much alike keys), not the algorithm's.
#
# These samples are small. The long measurement is stored, and `python -m mi_course.world.edit_facts` makes it again: 100 facts, 12 neighbours each, all of
# which the unedited model knows. *Several keys* changes two things, chosen on 40 other facts. Documents about landmarks count for three quarters of $C$. And one fact gets
# one row of $K$ for each of a dozen texts that mention its subject ("guide : silver tower"), all with the same $v^*$: your `ridge_update` with one fact. Below the table are the neighbours by the word of their name
# that they share with the edited subject, then 100 facts edited together.

# %% label="stored"
stored = edit_facts.stored()
KINDS = ("efficacy", "paraphrases", "neighbours", "siblings")


def shares(row, names=KINDS):
    return {name: row[name][0] / row[name][1] for name in names}


rows = {"ROME": stored["single"]["ROME"], "several keys": stored["sharp"]["ROME"]}
rows["several keys, none as asked"] = stored["sharp"]["mentions unlike questions"]
rows |= {f"control: {name}": stored["single"][name] for name in ("C = 1", "key of another fact", "no edit")}
print(f"{'100 facts, one at a time':30} efficacy  paraphrase  neighbours  same subject")
for name, row in rows.items():
    print(f"{name:30}" + "".join(f"{x:10.3f}" for x in shares(row).values()))
for name, part in (("ROME", "single"), ("several keys", "sharp")):
    kept = shares(stored[part]["by shared word"], ("first", "last", "none"))
    print(f"neighbours kept, {name:12}: " + ", ".join(f"{word} word {x:.3f}" for word, x in kept.items()))
hundred = {row["method"]: row for row in stored["many"] if row["edits"] == 100}
for name, row in hundred.items():
    cells = "".join(f"{x:9.2f}" for x in shares(row).values())
    print(f"100 facts, {name:14}{cells}   loss {row['loss']:.3f}")
print("CPU seconds an edit:", *(stored[part]["CPU seconds an edit"] for part in ("single", "sharp")))
assert shares(rows["ROME"])["efficacy"] >= 0.99 > 0.97 > shares(rows["ROME"])["neighbours"]
assert shares(rows["several keys"])["efficacy"] >= 0.99 <= shares(rows["several keys"])["neighbours"]
assert shares(stored["single"]["by shared word"], ["none"])["none"] == 1
assert hundred["MEMIT at once"]["efficacy"][0] > hundred["ROME in turn"]["efficacy"][0]

# %% [markdown]
# Every neighbour that plain ROME loses has a word in common with the edited subject. Their keys are close to its own and rare in ordinary text, so the shipped $C$ charges
# little for moving them: it keeps .963, where one point of loss was allowed. A $C$ that knows landmarks holds them, and several keys see to it that the value still stands wherever the subject is
# mentioned: .99, .985 and .997. Half of the paraphrases begin like one of these texts, so the third row leaves such texts out: nearly the same. What
# no row saves is the last column: at the last token of the subject the first FFN holds *who it is*, not one relation, so the edit makes most of the subject into another.
#
# ## 5. Does the place matter?
# The papers choose the layer by **causal tracing** (chapter 06): corrupt the subject, restore one state, see whether the answer returns. The survey repeats that
# this is why editing works. [@hase2023localization] tested it and found that tracing hardly tells where an edit succeeds. Here: tracing of the FFN at the
# last subject token for every layer, beside edits in every layer, with two budgets for the value: the published one (stored, from 40 facts), and a generous
# one, which we try on six facts (no price on the length of $v^*$, cap at 20 times what the FFN writes, twice the step).

# %% label="location"
few, many = facts.subset(slice(6)), facts.subset(slice(12))
spans = [(1 + x["subject"][0], 1 + x["subject"][1]) for x in many.labels]
trace = causal.causal_trace(
    model, replace(many, metric="prob"), spans, {"last subject token": end[:12]}, kind="mlp", window=1
)
effect = trace.average[:, 0].numpy()
budget = {"steps": 25, "decay": 0.0, "clamp": 20.0, "learning_rate": 1.0}
success = []  # efficacy and paraphrase of the generous budget, by layer
for l in range(model.n_layers - 1):
    keys = editing.keys_at(model, one_prompt[:6], one_end[:6], l)
    values = editing.optimise_values(model, one_prompt[:6], one_end[:6], new[:6].tolist(), l, **budget)
    hits = []
    for i in range(len(few)):
        with editing.rank_one_edit(model, l, keys[i], values[i], C[l]).on(model):
            hits.append((says([facts.prompts[i], *facts.labels[i]["paraphrases"]]) == new[i]).float())
    hits = torch.stack(hits)
    success.append((float(hits[:, 0].mean()), float(hits[:, 1:].mean())))
state = mi.record(model, facts.prompts[:1], ["mlp5"])["mlp5"][0, end[0]]
with mi.intervene(model, mi.add("mlp5", 100 * state, positions=end[0])):
    louder = model.last_logits(facts.prompts[:1])
assert torch.equal(louder, model.last_logits(facts.prompts[:1]))  # layer 5 at the subject reaches no answer
success.append((0.0, 0.0))
long = edit_facts.stored()["layers"]  # 40 facts, measured beforehand; success is P(new word) after the edit
show(
    curves(
        range(model.n_layers),
        {
            "tracing effect (P restored)": effect,
            "P(new), published budget": long["success"],
            "efficacy, generous": [s[0] for s in success],
            "paraphrase, generous": [s[1] for s in success],
        },
        xlabel="layer",
        ylabel="share, or probability",
        title="Tracing and editing by layer",
    ),
    alt="Four curves over six layers. The tracing effect is high at layer 0 and near zero from layer 1 on. "
    "P(new) is near 1 at layer 0, 0.2 to 0.4 in layers 1 to 4. Efficacy with the generous budget is 1 up to "
    "layer 3 and 0.8 at layer 4; all are zero at layer 5.",
    reading="Tracing is small from layer 1 on; with a large enough push edits succeed there all the same.",
)
print("layer   tracing   published: P(new)   generous: eff. par.")
for l in range(model.n_layers):
    (c, d), p = success[l], long["success"][l]
    print(f"  {l}      {effect[l]:5.2f}          {p:.2f}               {c:.2f} {d:.2f}")
inner = slice(1, 5)
print(f"tracing over layers 1 to 4: {effect[inner].min():.2f} to {effect[inner].max():.2f}", end="; ")
print("efficacy there, generous:", ", ".join(f"{s[0]:.2f}" for s in success[inner]))
print("rank correlation of tracing with success, published budget, 40 facts:")
print(
    f"  over layers {long['over layers']:+.2f}; over facts, in layers 0 to 4:",
    ", ".join(f"{x:+.2f}" for x in long["over facts"]),
)
print(f"  over layers, generous budget: {rank_correlation(effect, [s[0] for s in success]):+.2f}")
assert long["over layers"] > 0.4 and max(map(abs, long["over facts"])) < 0.3
assert effect[0] > 0.5 > 5 * effect[1:].max() - 0.2
assert min(s[0] for s in success[:4]) > 0.8 and success[5][0] == 0

# %% [markdown]
# As it comes out: under the published price, the order of the layers by tracing is close to their order by success. Given a larger push, layers 1 to 4 can be edited, too, where
# tracing finds next to nothing: so it says where an edit is *cheap*, not where one is possible. And it does not say *which facts* can be edited: within a layer its correlation
# with success over facts is near zero, as [@hase2023localization] found in a large model.
# In layer 5 no edit can succeed (the code checks that a push there changes no logit), for a reason that no tracing is needed for: what an FFN writes at the subject must be carried to the last token by
# attention, and no block follows. "Where is the fact?" and "where can it be overwritten?" are different questions.
#
# ## 6. Training behind a mask
# When there is no closed form, train. The mask of Eq. 20 multiplies the *update*. It is tempting to multiply the gradient in its place, and that is wrong: AdamW
# shrinks every weight that it is given by a share of itself, whether or not it has a gradient, and momentum from earlier steps goes on moving it.

# %% [markdown] exercise="editing.masked_train" difficulty=3 minutes=14
# ### Exercise: train the change
# Write `masked_train(W, mask, loss, steps, lr, decay)`: return `W + mask * delta`, where `delta` starts at zero and is trained with `torch.optim.AdamW`
# (learning rate `lr`, weight decay `decay`) so that `loss(W + mask * delta)` falls. `W` must stay as it is.


# %%
def masked_train(W, mask, loss, steps, lr, decay):
    """W + mask * delta after `steps` of AdamW on delta; loss: weights of W's shape -> a number."""
    ### BEGIN SOLUTION
    delta = torch.zeros_like(W, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=lr, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(W + mask * delta).backward()
        optimizer.step()
    return (W + mask * delta).detach()
    ### END SOLUTION


# %%
masked_train = check("editing.masked_train", masked_train)

# %% label="gradient_mask" tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
start, goal = torch.randn(1000, generator=generator), torch.randn(1000, generator=generator)
mask = torch.arange(1000) < 100


def distance(w):
    return (w - goal).square().mean()


wrong = start.clone().requires_grad_()
optimizer = torch.optim.AdamW([wrong], lr=0.01, weight_decay=0.1)
for _ in range(50):
    optimizer.zero_grad()
    distance(wrong).backward()
    wrong.grad *= mask  # the tempting version
    optimizer.step()
right = masked_train(start, mask, distance, 50, 0.01, 0.1)
for name, got in (("mask on the gradient", wrong.detach()), ("mask on the update", right)):
    moved = got != start
    print(f"{name:22} moved inside {int(moved[mask].sum())} of 100, outside {int(moved[~mask].sum())} of 900")
assert torch.equal(right[~mask], start[~mask]) and (wrong[~mask] != start[~mask]).all()

# %% [markdown]
# With weight decay on the change there is a gain for free: decay pulls towards the base model, so it is a preservation term.
#
# Now the question of section 5 for masks. `lab` complies with requests about four objects; we train it to refuse them. Chapter 00's installed model `refusal-a` had this
# trained into heads L2H1 and L3H2. So there is a "right" mask. Beside it: random pairs of other heads of the same layers or later ones, and all weights. Same data, same steps. **Near prompts** are requests that must be
# answered as before (in the training data as a second target); **other text** are documents of every second domain, which training never sees here. The
# last row is trained once more, with the same examples in another order.

# %% label="masks"
behaviour, key_heads = BEHAVIOURS["refusal"], read("refusal-a").facts["used"]
teach, exam = installed_task("refusal-a", "train", n=64), installed_task("refusal-a", "test", n=32)
near = [item.prompt for item in behaviour.contrast("train", 64)]
near_test = [item.prompt for item in behaviour.contrast("test", 32)]
stay = [text for own in behaviour.documents("train", 1).values() for text in own]
stay_test = [text for own in behaviour.documents("test", 1).values() for text in own][::2]
near_base = model.last_logits(near_test).softmax(-1)


def judged(steer):
    """Accuracy of the new answers, shift at near prompts (total variation), KL to the base on other text."""
    with steer.on(model):
        accuracy = exam.accuracy(model)
        shift = 0.5 * (model.last_logits(near_test).softmax(-1) - near_base).abs().sum(-1).mean()
    return accuracy, float(shift), float(kl_to_base(model, lambda: steer.on(model), stay_test).mean())


rng = random.Random(0)
free = [f"L{l}H{h}" for l in range(2, 6) for h in range(model.n_heads)]
free = [head for head in free if head not in key_heads]
masks = {"key heads": key_heads} | {f"random pair {i}": rng.sample(free, 2) for i in range(2)}
recipe = {"contrast": near, "steps": 15, "batch": 16, "learning_rate": 8e-3}
before = exam.accuracy(model)
placed = {name: training.masked_finetune(model, teach, heads, **recipe) for name, heads in masks.items()}
placed["everything"] = training.masked_finetune(
    model, teach, training.everything(model), **recipe | {"learning_rate": 1e-3}
)
verdict = {name: judged(edit) for name, edit in placed.items()}
print(f"before training: accuracy {before:.2f}")
print(" " * 34 + "accuracy   near prompts   KL other text     weights")
for name, row in verdict.items():
    count = sum(int(d.count_nonzero()) for d in placed[name].deltas.values())
    print(
        f"{name:14}{' '.join(masks.get(name, [])):18}" + "".join(f"{x:13.2f}" for x in row) + f"{count:14,}"
    )
drawn = np.array([verdict[name] for name in verdict if name.startswith("random")])
print(
    f"random pairs: accuracy {drawn[:, 0].min():.2f} to {drawn[:, 0].max():.2f}, "
    f"KL {drawn[:, 2].min():.2f} to {drawn[:, 2].max():.2f}"
)
again = recipe | {"learning_rate": 1e-3, "seed": 1}
again = judged(training.masked_finetune(model, teach, training.everything(model), **again))
print("everything, another order       " + "".join(f"{x:13.2f}" for x in again))
assert before < 0.2 and drawn[:, 0].mean() > 0.7
assert verdict["key heads"][0] < drawn[:, 0].max() + 0.02
assert verdict["everything"][2] > drawn[:, 2].mean()
assert verdict["everything"][2] > 2 * drawn[:, 2].max() and again[2] < 1.5 * drawn[:, 2].max()

# %% [markdown]
# The heads that are known to carry this very behaviour are not better places to train it than random ones. [@wang2025does] report the same for large models: edits
# at random heads work as well. In the table the mask seems to hold damage down: everything moves other text most. The last line takes that back: with the same examples in another order,
# everything moves it hardly more than the heads do. So a result of the form "we located X, tuned X, and it worked" says
# nothing about X without the random row.
#
# Is the place never decisive? A head has 16,480 weights, room enough for anything. Make the mask small: `german-a` answers in German because of 4 neurons of layer 1.
# We train the English answers back, in ten steps, into these 4 or into 4 random neurons of the same layer.

# %% label="neurons" tags=["nbval-check-output"]
four = answer_key("german-a")
german = {s: installed_task("german-a", s, n=64) for s in ("train", "test")}
german = {s: replace(task, targets=task.foils, foils=task.targets) for s, task in german.items()}
layer_of = int(four[0][1])
others_there = [f"L{layer_of}N{i}" for i in range(model.d_ffn) if f"L{layer_of}N{i}" not in four]
unlearned = {}
with read("german-a").on(model):
    print(f"English answers before: {german['test'].accuracy(model):.2f}")
    for name in ("key neurons", "random 0", "random 1"):
        mask = four if name == "key neurons" else rng.sample(others_there, len(four))
        with training.masked_finetune(model, german["train"], mask, steps=10, learning_rate=8e-3).on(model):
            unlearned[name] = german["test"].accuracy(model)
        print(f"  {name:12} {unlearned[name]:.2f}")
assert unlearned["key neurons"] > 0.9 and max(v for k, v in unlearned.items() if k != "key neurons") < 0.4

# %% [markdown]
# Here the place decides: with so few weights and steps, only those that hold the behaviour can undo it. Both rows are true of one model. Whether location matters
# depends on how much room the mask leaves, so the random row has to be drawn anew for every mask.

# %% [markdown]
# ## 7. The preservation term
# The mask limits *where*; $L_{pres}$ limits *what*. The usual choice is the KL of the base from the model now, at every token of texts that should stay.

# %% [markdown] exercise="editing.preservation" difficulty=2 minutes=8
# ### Exercise: the preservation term
# Write `preservation(base, now, real)`: the mean of KL(base || now) over real tokens, in nats. `base` and `now`, `[B, T, V]`, are logits; `real [B, T]` is 1
# at real tokens and 0 at padding.


# %%
def preservation(base, now, real):
    """Mean KL(base || now) over real tokens, in nats: logits [B, T, V], mask [B, T] -> one number."""
    ### BEGIN SOLUTION
    base, now = base.log_softmax(-1), now.log_softmax(-1)
    return ((base.exp() * (base - now)).sum(-1) * real).sum() / real.sum()
    ### END SOLUTION


# %%
preservation = check("editing.preservation", preservation)

# %% [markdown]
# The same behaviour in the FFN of layer 3, with documents of all domains as $D_{pres}$ and $\lambda$ from 0 to 30. Then once more with the near prompts added.

# %% label="lambda"
recipe = {"steps": 20, "batch": 16, "learning_rate": 4e-3}
swept = {}
for strength in (0.0, 30.0):
    edit = training.masked_finetune(model, teach, ["mlp3"], documents=stay, preserve=strength, **recipe)
    swept[f"lambda {strength:.0f}"] = judged(edit)
timed = {}
started = time.perf_counter()
timed["FFN 3"] = training.masked_finetune(model, teach, ["mlp3"], documents=stay, contrast=near, **recipe)
seconds = {"FFN 3": time.perf_counter() - started}
swept["lambda 3, near prompts too"] = judged(timed["FFN 3"])
print(" " * 28 + "accuracy   near prompts   KL other text")
for name, row in swept.items():
    print(f"{name:28}{row[0]:8.2f}{row[1]:13.2f}{row[2]:16.4f}")
batch = model.tokenize(stay_test)
base_logits = model(batch)
with timed["FFN 3"].on(model):
    print(
        f"your preservation term on held-out text: "
        f"{float(preservation(base_logits, model(batch), batch.mask)):.4f}"
    )
assert swept["lambda 0"][2] > 5 * swept["lambda 30"][2]
assert swept["lambda 30"][1] > 0.8 * swept["lambda 0"][1] > swept["lambda 3, near prompts too"][1]

# %% [markdown]
# Two lessons. The KL on other text falls by more than five times, at no cost in accuracy: preservation is cheap where the target is narrow. But the shift at near
# prompts stays about what it was: requests about *other* objects are now refused, too, and no $\lambda$ helps much, since no document in $D_{pres}$ looks like
# them. Only data that name what must stay bring it down. In so few steps that does not reach zero, and costs accuracy, for near prompts and targets differ in one word.
# What you did not list is not preserved.

# %% [markdown]
# ## 8. Masks that are learned
# A soft mask lets training decide what to touch. A **gate** multiplies a head's change (or its output) and should end at exactly 0 or 1, which a derivative
# cannot reach. The **hard-concrete** gate [@louizos2018learning] is random: with uniform noise $u$ it is
#
# $$s = \sigma\!\left(\frac{\log u - \log(1 - u) + \log\alpha}{\beta}\right), \qquad g = \mathrm{clip}(1.2\, s - 0.1,\ 0,\ 1), \qquad
# P(g > 0) = \sigma(\log\alpha - \beta \log(0.1/1.1))$$
#
# with $\beta = 2/3$. The sum of $P(g > 0)$ is the expected number of open gates, has a derivative, and enters the loss as a price per gate.

# %% [markdown] exercise="editing.hard_concrete" difficulty=2 minutes=10
# ### Exercise: a gate that can close
# Write `hard_concrete(log_alpha, u)`: return the sampled gates and $P(g > 0)$, two tensors of the shape of `log_alpha`.


# %%
def hard_concrete(log_alpha, u):
    """(gates in [0, 1], P(gate > 0)); u is uniform noise in (0, 1) of the shape of log_alpha, beta = 2/3."""
    ### BEGIN SOLUTION
    beta = 2 / 3
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / beta)
    shift = beta * torch.log(torch.tensor(0.1 / 1.1))
    return (1.2 * s - 0.1).clamp(0, 1), torch.sigmoid(log_alpha - shift)
    ### END SOLUTION


# %%
hard_concrete = check("editing.hard_concrete", hard_concrete)

# %% label="gate_samples" tags=["nbval-check-output"]
u = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
g, p = hard_concrete(torch.tensor([-3.0, 0.0, 3.0]).expand(4000, 3), u)
for j, a in enumerate((-3, 0, 3)):
    shut, full = float((g[:, j] == 0).float().mean()), float((g[:, j] == 1).float().mean())
    print(
        f"log alpha {a:+d}: exactly 0 in {shut:.2f}, exactly 1 in {full:.2f} of the samples; "
        f"P(open) = {float(p[0, j]):.2f}"
    )
    assert abs(1 - shut - float(p[0, j])) < 0.03

# %% [markdown]
# ### The scoreboard: do gates find what was installed?
# In an installed model, `removal_mask` gives each of 24 heads a gate that switches it off, $z \leftarrow (1 - g) z$, and asks for the *old* answers with as few heads off as
# possible. The answer key says which heads carry the behaviour. AUROC is taken over all heads, beside the band of random rankings.

# %% label="board"
board = {}
for name in ("refusal-a", "sycophancy-a"):
    old = {s: installed_task(name, s, n=16 if s == "train" else 48) for s in ("train", "test")}
    old = {s: replace(task, targets=task.foils, foils=task.targets) for s, task in old.items()}
    with read(name).on(model):
        steer, scores = gates.removal_mask(model, old["train"], sparsity=0.3, steps=25, learning_rate=0.15)
        with steer.on(model):
            back = old["test"].accuracy(model)
    found = dict(zip(map(str, scores.sites), scores.values))
    opened = [head for head in sorted(found, key=found.get, reverse=True) if found[head] > 0.5]
    board[name] = scores.against(answer_key(name))["auroc"]
    print(
        f"{name:14} key {' '.join(answer_key(name)):16} AUROC {board[name]:.2f}   "
        f"old answers back {back:.2f}   open: {' '.join(opened[:6])}"
    )
band = random_rankings(24, 2)["auroc"]
print(f"random rankings: AUROC {max(0, band.low):.2f} to {min(1, band.high):.2f}")
assert board["refusal-a"] == 1 > board["sycophancy-a"]

# %% [markdown]
# Here the place does matter: *taking away* works only where the behaviour is, and the gates find it. So localisation tells where something is, not where something new can be
# put. **Where it fails: `sycophancy-a`.** The gates open others: without the two installed heads the model has to answer "no" from facts, and switching off whole heads,
# not their changes, breaks that, too. The price per gate cannot separate a head that carries the behaviour from one that also carries what must replace it. With gates on the
# *changes* of heads the key is found there as well:

# %% label="learned_mask"
heads = [f"L{l}H{h}" for l in range(model.n_layers) for h in range(model.n_heads)]
decoys = ["L1H2", "L3H0", "L4H1", "L2H0"]  # heads that get a random change of the same size
planted = read("sycophancy-a").edit(model)
deltas = {name: d.clone() for name, d in planted.deltas.items()}
size = torch.cat([d[d != 0] for d in planted.deltas.values()]).std()
generator = torch.Generator().manual_seed(0)
for name, own in training.unit_mask(model, decoys).items():
    whole = deltas.setdefault(name, torch.zeros(own.shape))
    whole[own] += size * torch.randn(int(own.sum()), generator=generator)
key = read("sycophancy-a").facts["used"]
edit, scores = gates.learned_mask(
    model,
    installed_task("sycophancy-a", "train", n=16),
    key + decoys,
    WeightEdit(deltas),
    sparsity=0.05,
    steps=25,
    learning_rate=0.06,
)
for unit, value in zip(scores.sites, scores.values):
    print(f"{str(unit):6}{'  key  ' if str(unit) in key else '  decoy'}  P(open) {value:.2f}")
assert min(scores.values[:2]) > max(scores.values[2:])

# %% [markdown]
# ## 9. Cheaper than weights
# The last members of the schema leave the weights alone. **LoReFT** [@wu2024reft] edits a state $x$ inside a subspace of $r$ dimensions, $x + R^\top(Wx + b - Rx)$ with orthonormal rows $R$; a **bias per
# layer** [@sinii2025steeringllmreasoningbiasonly] adds one trained vector to each block's output; **low rank** adds $AB$ to matrices. All with the data of section 7's
# last row and 20 steps.

# %% label="cheaper"
recipe = {"documents": stay, "contrast": near, "steps": 20, "batch": 16}
makers = {
    "low rank 1, W_O of layers 2-5": lambda: training.low_rank_finetune(
        model, teach, training.matrices(model, ["o"], range(2, 6)), rank=1, learning_rate=0.02, **recipe
    ),
    "LoReFT rank 4 at x4, last token": lambda: interventions.reft(
        model, teach, ["x4"], rank=4, learning_rate=0.02, **recipe
    ),
    "a bias per layer, 2-5": lambda: interventions.layer_biases(
        model, teach, range(2, 6), learning_rate=0.03, **recipe
    ),
}
for name, make in makers.items():
    started = time.perf_counter()
    timed[name] = make()
    seconds[name] = time.perf_counter() - started
cost = {name: judged(steer) for name, steer in timed.items()}
print(" " * 34 + "numbers   accuracy   near prompts   KL other text")
for name, row in cost.items():
    print(f"{name:34}{bytes_of(timed[name]) // 4:7,}{row[0]:11.2f}{row[1]:13.2f}{row[2]:16.4f}")
assert cost["LoReFT rank 4 at x4, last token"][0] > 0.7
assert cost["LoReFT rank 4 at x4, last token"][2] < cost["FFN 3"][2]

# %% label="seconds" tags=["nbval-ignore-output"]
for name, value in seconds.items():
    print(f"{name:34}{value / seconds['FFN 3']:6.1f} times the time of FFN 3")

# %% [markdown]
# LoReFT and the biases store less than a hundredth of the numbers of an FFN. That LoReFT moves other text by nothing at all has a simple reason: it acts at the last
# token alone, after which no word of a document is left to predict. Compare methods that act at the same positions, or say that they do not. The seconds
# hardly differ: every step runs the model, however few numbers it moves.
#
# ## 10. What the survey says, and where it is loose
# - **Eq. 20** is a schema. ROME and MEMIT are named as instances and no formula is given. They are least squares with a constraint and ridge regression; the preservation
#   data enter through $C$ alone.
# - **Localisation.** Section 4.2 and section 5.2.2 present causal tracing as what makes editing work. Neither [@hase2023localization] nor [@wang2025does] is cited. Section 5 and section 6 above:
#   tracing tells which layer is cheap to edit, not which can be edited nor which facts; and random pairs of heads train as well; four neurons do not.
# - **The mask.** $M \odot \Delta\theta$ is right as written, and easily coded wrong (section 6).
# - **ReFT and JoLA** are filed under targeted optimization, although $\theta$ does not change. What they share with it is Eq. 20 with other numbers in the place of $\theta$.
# - **Success** is counted by efficacy, paraphrase, neighbourhood. Other facts about the same subject are not among them (section 3).
#
# ## 11. Papers that use this
# - edits of facts: [@meng2022ccs], [@meng2023massediting]; across languages [@zhang2024lulafns]
# - tuning what was located: neurons [@xu-etal-2025-lets], tiny subspaces [@zhang-etal-2023-fine], layers [@zhang2024cofitune], safety layers kept frozen [@li2025safety], language neurons
#   [@zhu-etal-2024-landermt]
# - learned interventions on a frozen model: [@wu2024reft], [@lai2025jola], [@sinii2025steeringllmreasoningbiasonly]
# - does it matter where? [@hase2023localization], [@wang2025does]
#
# ## 12. The same on a real model
# The function edits one fact with ROME, moments from texts that you give, and reports the edited prompt and neighbours. It runs on `lab-llama` as it stands. For a real
# model set `REAL` to its name and give it some hundred texts, not five; the published moments come from 100,000.


# %% label="real"
def edit_fact(model, prompt, last_subject_token, target, others, texts, layer):
    """ROME in one FFN: what is said before and after, for the prompt and for other prompts."""
    C = editing.key_covariance(model, texts, layer)
    target = model.tokenizer(target, add_special_tokens=False)["input_ids"][0]
    edit = editing.rome(model, [prompt], [last_subject_token], target, layer, C)
    asked = [prompt, *others]
    was = model.last_logits(asked).argmax(-1)
    with edit.on(model):
        now = model.last_logits(asked).argmax(-1)
    for text, a, b in zip(asked, was, now):
        print(f"  {text:44} {model.tokenizer.decode(a):10} -> {model.tokenizer.decode(b)}")
    return bool(now[0] == target)


llama = mi.load("lab-llama")
done = edit_fact(
    llama,
    facts.prompts[0],
    end[0],
    facts.foils[0],
    [p for p, _ in facts.labels[0]["neighbours"][:3]],
    texts,
    0,
)
assert done
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    real = mi.load(REAL)
    subject = "The Eiffel Tower"
    edit_fact(
        real,
        f"{subject} is in the city of",
        real.tokenize([subject]).ids.shape[1] - 1,
        " Rome",
        ["The Louvre is in the city of", "The Colosseum is in the city of"],
        [line for own in world.documents("train", 20).values() for line in own],
        real.n_layers // 3,
    )

# %% [markdown]
# ## 13. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "An edit has efficacy 1.00, paraphrase 1.00 and neighbourhood 0.98. Someone concludes that exactly "
            "this fact was changed. What is missing?",
            [
                (
                    "Nothing; these are the three standard numbers.",
                    "They are, and none asks about the edited subject's other facts.",
                ),
                (
                    "Other facts about the same subject, and other domains.",
                    "In section 3 the other facts about the subject fell: the edit turned it into another one.",
                    True,
                ),
                ("A larger model.", "A larger model needs the same question."),
            ],
        ),
        Question(
            "You tune the heads that your localizer found, and the behaviour appears. What shows that the "
            "location was right?",
            [
                (
                    "The accuracy on held-out prompts.",
                    "Random pairs of heads reach the same accuracy in section 6.",
                ),
                (
                    "Nothing yet: it needs random masks of equal size; better, removing those heads removes it.",
                    "Training can put a behaviour in many places; taking it away works only where it is.",
                    True,
                ),
                (
                    "That weights outside the mask are bit-equal.",
                    "That shows that the mask holds, not that it is the right one.",
                ),
            ],
        ),
        Question(
            "A mask multiplies the gradient before AdamW with weight decay. After training, weights outside "
            "the mask are",
            [
                (
                    "as they were, since their gradient is zero.",
                    "AdamW subtracts lr * decay * weight at each step, gradient or not.",
                ),
                (
                    "smaller in size.",
                    "Decay shrinks them all. Train a change that starts at zero, and mask the change.",
                    True,
                ),
                ("random.", "Nothing random happens: decay is the same share for each."),
            ],
        ),
        Question(
            "With a larger lambda the KL on documents falls, but near prompts stay as wrong as before. "
            "What helps?",
            [
                (
                    "A still larger lambda.",
                    "The documents hold nothing like the near prompts, so their KL does not see them.",
                ),
                (
                    "Near prompts in the preservation data.",
                    "Only what the data name is preserved; in section 7 this brings the shift down.",
                    True,
                ),
                ("A smaller mask.", "It may help or not; the objective still does not ask for it."),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 14 adds vectors, of activations and of whole weight differences, which need no training at all.
