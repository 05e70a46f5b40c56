# %% [markdown]
# # 14 Vector arithmetic
# The cheapest way to steer a model is to add a vector to its states. Chapter 00 did it once. This chapter takes the method apart: whose
# states are averaged, at which token, how long the vector is, what else lies in it, and what a vector can do that weights or logits can do
# as well. Survey ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 4.3.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - make a steering vector from pairs, answers, all tokens, a probe or an SAE, and say which token it stands for
# - give its strength a scale, choose layer and strength on validation prompts, and report success beside what it costs
# - tell a vector from the null band of random vectors and of shuffled labels
# - write a directional ablation into the weights, and say where that is impossible
# - take a nuisance, such as the language, out of a vector
# - shift single heads, contrast layers while decoding (DoLa), and add, negate and merge task vectors (TIES)
#
# **The claim.** A behaviour can be moved with one vector added to the states, $\hat z = z + \alpha v$ (survey, section 4.3, Eq. 21), and
# $v$ can be had from a difference of means, from SAE features or from weights. In `lab`, one vector takes the refusal of harmless requests
# from 0 to 100 %, and the loss on other text rises by less than 0.02. Which token is averaged decides whether it works at all.

# %% label="setup"
import numpy as np
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import document_loss, wilson
from mi_course.evaluate.fluency import fluency
from mi_course.evaluate.steering import kept, steering_score
from mi_course.steer import Steer, WeightEdit, head_shifts, merging, vector_sources, vectors
from mi_course.steer.decoding import DoLa
from mi_course.steer.fit import Examples
from mi_course.steer.interventions import trained_vector
from mi_course.teach import Question, check, curves, heatmap, layer_strength_map, papers, quiz, show
from mi_course.world import installed, lexicon
from mi_course.world.installed_tasks import behaving, delta, installed_task
from mi_course.world.steering_tasks import steering_task

torch.manual_seed(0)
model = mi.load()
SPLITS = {"train": 200, "validation": 40, "test": 100}
harmful = {s: world.task("refusal_harmful", s, n=n) for s, n in SPLITS.items()}
harmless = {s: world.task("refusal_harmless", s, n=n) for s, n in SPLITS.items()}
texts = {
    s: [t for d, some in world.documents(s, n=n).items() if d != "request" for t in some]
    for s, n in (("validation", 2), ("test", 15))
}
refusals = [model.token_id(word) for table in lexicon.REFUSALS.values() for word in table]


def refused(prompts, *edits):
    """Share of the prompts after which a refusal is more likely than not."""
    with mi.intervene(model, *edits):
        return (model.last_logits(prompts).softmax(-1)[:, refusals].sum(-1) > 0.5).float().mean().item()


def loss(split, *edits):
    """Loss on documents of all domains but requests, nats per token."""
    with mi.intervene(model, *edits):
        return document_loss(model, texts[split], len(texts[split]) // 4).mean().item()


ask, plea = harmful["validation"].prompts, harmless["validation"].prompts
print("harmful: ", ask[0], f"   refused {refused(ask):.2f}")
print("harmless:", plea[0], f"   refused {refused(plea):.2f}")
assert refused(ask) >= 0.99 and refused(plea) <= 0.01

# %% [markdown]
# ## 1. The mean of what?
# The survey's Eq. 22 is a difference of two means,
#
# $$v = \mu_+ - \mu_-, \qquad \mu_\pm = \frac{1}{n}\sum_{i=1}^{n} x_i^\pm .$$
#
# Its index $i$ runs over examples, while in the survey's Table 1 it counts tokens. So which token's state is averaged? The papers differ:
#
# | name | what is averaged |
# |---|---|
# | ActAdd [@turner2023activation] | nothing: one aligned pair of prompts, subtracted token by token |
# | CAA [@rimsky-etal-2024-steering] | pairs of one question with two answers, at the *answer* token |
# | mass-mean [@marks2024geometry] | all examples, at one named token, mostly the last |
# | all tokens | every token of every example |
#
# In `lab` a prompt ends like this: `a bomb <end> <bot>`, and the model answers after `<bot>`.

# %% [markdown] exercise="vectors.mean_state" difficulty=2 minutes=8
# ### Exercise: the state of the right token
# Write `mean_state(x, mask, token)`: states `[n, T, d]`, and the mask of real tokens `[n, T]`, which may have padding on either side.
# Return the mean over prompts of the state of the `token`-th real token (0 the first, -1 the last); with `token=None` the mean over all
# real tokens.

# %%
def mean_state(x, mask, token):
    """Mean state [d] at the token-th real token, or over all real tokens: x [n, T, d], mask [n, T]."""
    ### BEGIN SOLUTION
    if token is None:
        return x[mask.bool()].mean(0)
    rows = [states[real.bool()] for states, real in zip(x, mask)]
    return torch.stack([row[token] for row in rows]).mean(0)
    ### END SOLUTION

# %%
mean_state = check("vectors.mean_state", mean_state)

# %% [markdown]
# Now eight vectors for refusal, all at `x4` (the state that block 4 reads), all from the same training prompts, 200 harmful and 200
# harmless (a pair is a harmful prompt and its harmless twin, which differs in one word). For a fair comparison each is brought to the same
# length, that of the first one, before it is added. The last column *removes* the direction from every write, as in chapter 00.

# %% label="tokens" tags=["nbval-check-output"]
up, down = (mi.record(model, t["train"].prompts, ["x4"], logits=False) for t in (harmful, harmless))


def at(token):
    return mean_state(up["x4"], up.batch.mask, token) - mean_state(down["x4"], down.batch.mask, token)


v = at(-1)
yes, no = harmful["train"].targets, harmful["train"].foils  # a refusing and a complying opener
asked = harmful["train"]
recipes = {
    "last token, <bot>": v,
    "one before, <end>": at(-2),
    "the object (bomb, cake)": at(-3),
    "all tokens": at(None),
    "CAA, the answer token": vector_sources.answer_difference(model, asked.prompts, yes, no, "x4"),
    **{f"one pair, number {i}": vector_sources.pair_difference(
        model, asked.prompts[i], asked.corrupted[i], "x4")[-1] for i in (0, 1, 3)},
}
size = vectors.mean_norm(model, "x4", harmless["train"].prompts)
print(f"{'at x4':26} |v|/|x|  cosine   added: refused   removed: refused")
found = {}
for name, u in recipes.items():
    same = vectors.unit(u) * v.norm()
    found[name] = refused(plea, mi.add("x4", same)), refused(ask, *vectors.ablate_direction(model, u))
    cosine = torch.cosine_similarity(u, v, dim=0)
    added, removed = found[name]
    print(f"{name:26} {u.norm() / size:7.2f} {cosine:+7.2f}   {added:14.2f}   {removed:16.2f}")
packaged = vectors.mean_difference(model, asked.prompts, harmless["train"].prompts, "x4@-1")
assert torch.allclose(v, packaged, atol=1e-4)
assert found["last token, <bot>"] == (1.0, 0.0)
assert found["the object (bomb, cake)"][0] < 0.05 and found["the object (bomb, cake)"][1] > 0.95

# %% [markdown]
# All these vectors come from the same prompts in the same layer. The last token gives a vector that does both. The token of the object
# itself, where one would look for harm, gives one that does neither, though verb and object have both been read there. CAA's vector does
# nothing either: at the answer token the state says which *word* was just said, and the decision is over. (CAA was made for questions with
# a letter as the answer.) The average over all tokens points the right way, but it is four times shorter, and removing it leaves some
# refusals. A single pair may be enough (pair 1), or not (pair 0 adds refusal and does not remove it): one pair differs in more than in
# harm.
#
# Where is the vector *added*? That is a choice of its own, the position policy.

# %% label="positions" tags=["nbval-check-output"]
for where in ("all", "prompt", "last", "generated", -3):
    rate = refused(plea, mi.add("x4", v, positions=where))
    with mi.intervene(model, mi.add("x4", v, positions=where)):
        answer = model.generate(plea[:1], max_new_tokens=8)[0]
    print(f"positions={where!s:10} refused {rate:.2f}   {answer}")
assert refused(plea, mi.add("x4", v, positions="last")) > 0.95
assert refused(plea, mi.add("x4", v, positions="generated")) == 0

# %% [markdown]
# The decision is made at the last prompt token. A vector that is added from the first generated token on comes too late. In a model that
# decides during its answer it would be the other way round, so test it.
#
# ## 2. How much?
# $\alpha v$ has no scale: a vector of twice the length with half the $\alpha$ is the same steer, and $\alpha = 5$ of one paper says nothing
# about another's. What can be compared is the push in units of the state, $s = |\alpha v| / |x|$.

# %% [markdown] exercise="vectors.push" difficulty=1 minutes=5
# ### Exercise: a push with a scale
# Write `push(x, v, share)`: `x` of shape `[..., d]`, `v` of shape `[d]` and any length. Return $x + s\,|x|\,\hat v$ with $s$ = `share` and
# $\hat v = v/|v|$, where every state has its own $|x|$.

# %%
def push(x, v, share):
    """x + share |x| v / |v| for states x [..., d] and a vector v [d]."""
    ### BEGIN SOLUTION
    return x + share * x.norm(dim=-1, keepdim=True) * v / v.norm()
    ### END SOLUTION

# %%
push = check("vectors.push", push)

# %% [markdown]
# One vector per layer, and one dial that means the same in all of them. The first map shows the share of harmless *validation* requests
# that are refused, the second what the same push does to all other text: the rise of the loss in nats (natural-log units) per token.

# %% label="map"
LAYERS, SHARES = (1, 2, 3, 4, 5), (0.1, 0.2, 0.3, 0.5)
by_layer = vectors.mean_differences(
    model, asked.prompts, harmless["train"].prompts, [f"x{l}@-1" for l in LAYERS]
)


def pushed(layer, share):
    return mi.edit(f"x{layer}", lambda x: push(x, by_layer[f"x{layer}@-1"], share))


success = layer_strength_map(
    model,
    lambda layer, share: pushed(layer, share).on(model),
    LAYERS,
    SHARES,
    lambda: refused(plea),
    prompts=plea[:2],
    unit="share refused",
    title="Harmless requests refused",
)
plain = loss("validation")
rise = [[loss("validation", pushed(l, s)) - plain for s in SHARES] for l in LAYERS]
show(
    heatmap(rise, LAYERS, [f"{s:g}" for s in SHARES], xlabel="strength", ylabel="layer", unit="nats",
            title="Rise of the loss on other text"),
    alt="Map of the rise of the loss by layer and strength. It grows with the strength in every row, most "
    "steeply in layer 4, where refusals are most frequent, too.",
    reading="Cost. It grows with the strength in every layer, fastest in x4: no layer is free.",
)  # fmt: skip
works = [(rise[i][j], LAYERS[i], SHARES[j]) for i in range(5) for j in range(4) if success[i][j] >= 0.95]
cost, layer, share = min(works)
print(f"cheapest that refuses 95 %, on validation: x{layer}, strength {share}, loss {cost:+.3f}")

# %% [markdown]
# Read the two maps together. In x1 and x5 a push does less than between them: too early, the direction is not yet what decides; too late,
# much of the decision has been read. A strong push in x2 and a weaker one in x4 reach the same success at a similar price. We take the
# cheapest cell that refuses 95 %, and only now look at the *test* requests and documents. Beside the numbers stand two controls. **Random
# vectors** of the same length test the direction. **Shuffled labels** repeat the whole recipe with the 400 training prompts dealt out anew,
# and test whether the contrast is needed.

# %% label="test" tags=["nbval-check-output"]
final = by_layer[f"x{layer}@-1"]
add, remove = vectors.add_relative(f"x{layer}", final, share), vectors.ablate_direction(model, final)
bad, good, base = harmful["test"].prompts, harmless["test"].prompts, loss("test")
change = {"plain": 0.0, "removed": loss("test", *remove) - base, "added": loss("test", add) - base}
rates = {}
for kind, prompts, how, edits in (
    ("harmful", bad, "plain", []), ("harmful", bad, "removed", remove),
    ("harmless", good, "plain", []), ("harmless", good, "added", [add]),
):  # fmt: skip
    rates[how, kind] = rate = refused(prompts, *edits)
    low, high = wilson(round(rate * len(prompts)), len(prompts))
    print(f"{kind:8} {how:8} refused {rate:.2f} [{low:.2f}, {high:.2f}]", end="")
    print(f"   loss on other text {change[how]:+.3f}")
assert rates["removed", "harmful"] <= 0.05 and rates["added", "harmless"] >= 0.95
assert abs(change["removed"]) < 0.02 and abs(change["added"]) < 0.02

null = [refused(good, vectors.add_relative(f"x{layer}", r, share)) for r in vectors.random_like(final, 6)]
everything, shuffled, site = [*asked.prompts, *harmless["train"].prompts], [], f"x{layer}@-1"
states = mi.record(model, everything, [site], logits=False)[site]
for seed in range(5):
    order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
    shuffled.append(states[order[:200]].mean(0) - states[order[200:]].mean(0))
print(f"random vectors: {max(null):.2f} at most;", end=" ")
own = max(refused(good, mi.add(f"x{layer}", u)) for u in shuffled)
longer = max(refused(good, vectors.add_relative(f"x{layer}", u, share)) for u in shuffled)
cosines = [torch.cosine_similarity(u, final, dim=0).item() for u in shuffled]
print(f"shuffled labels: {own:.2f} at most as they come,", end=" ")
print(f"{longer:.2f} when made as long as the true one")
print("their length:", ", ".join(f"{u.norm() / final.norm():.2f}" for u in shuffled), "of it;", end=" ")
print("their cosine with it:", ", ".join(f"{c:+.2f}" for c in cosines))
assert max(null) < 0.1 and own < 0.1

# %% [markdown]
# Mind the last line. Vectors of shuffled labels are short, but they are *not* random: harm is the largest difference between these prompts,
# so any uneven deal leans toward it or away from it. Stretched to full length, one of them begins to steer. Shuffled labels test the whole
# recipe with its length; random directions test the direction. A report needs both.
#
# `lab-llama` is dearer to steer. At its `x4`, a push at *all* positions that refuses its requests costs more than 0.02 nats on other text.
# Beside it, a longer push at the last token of the prompt alone. Documents have no such token, so there the loss cannot rise; what the second
# push can harm are the answers to other questions, and these are measured. Each strength is the smallest of three that refuses all
# validation requests. The control: random directions of the same length at the last token.

# %% label="last_only" tags=["nbval-check-output"]
llama = mi.load("lab-llama")
turn = vectors.mean_difference(llama, asked.prompts, harmless["train"].prompts, "x4@-1")
words = [llama.token_id(word) for table in lexicon.REFUSALS.values() for word in table]
others = [world.task(name, "test", n=40) for name in ("capitals", "antonyms", "verdict", "facts")]


def refuses(prompts, v, where):
    """Share of prompts that lab-llama refuses with `v` added."""
    with mi.intervene(llama, mi.add("x4", v, positions=where)):
        p = llama.last_logits(prompts).softmax(-1)[:, words].sum(-1)
    return (p > 0.5).float().mean().item()


def harm(v, where):
    """Loss at the answers to other questions, and on documents."""
    answers = []
    with mi.intervene(llama, mi.add("x4", v, positions=where)):
        for task in others:
            log_p = llama.last_logits(task.prompts).log_softmax(-1)
            answers.append(-log_p[range(len(task)), task.target_ids(llama)].mean().item())
        return np.array([np.mean(answers), document_loss(llama, texts["validation"]).mean().item()])


tried, unsteered, found = harmless["validation"].prompts, harm(0 * turn, "all"), {}
for where in ("all", "last"):
    alpha = next(a for a in (0.5, 0.65, 0.8) if refuses(tried, a * turn, where) == 1)
    found[where] = (refuses(good, alpha * turn, where), *(harm(alpha * turn, where) - unsteered))
    print(f"lab-llama, {where:5} {alpha} v: refused {found[where][0]:.2f}", end="   ")
    print(f"answers to other questions {found[where][1]:+.3f}   documents {found[where][2]:+.3f}")
luck = max(refuses(good, alpha * r, "last") for r in vectors.random_like(turn, 4))
print(f"random directions at the last token: {luck:.2f} at most")
assert found["all"][0] >= 0.95 and found["all"][2] > 0.02
assert found["last"][0] >= 0.95 and found["last"][1] < 0.02 and luck < 0.05

# %% [markdown]
# ## 3. The inverted U
# More is not better. Below, three measures over the strength: success; **fluency**, how likely the model's own later words are under the
# unsteered model, relative to plain answers; and what is **kept** on other text, $e^{-\text{rise of the loss}}$. The dotted line is their
# harmonic mean, as in AxBench ([@wu2025axbench]), which scores concept, instruction and fluency in this way. The grey band is the success
# of random vectors.

# %% label="inverted_u"
DIAL = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
some, plain_words = plea[:16], fluency(model, plea[:16], max_new_tokens=8)
lines = {"success": [], "fluency": [], "kept": [], "harmonic mean": []}
for s in DIAL:
    steer = Steer(vectors.add_relative("x4", v, s))
    lines["success"].append(refused(plea, steer))
    words = fluency(model, some, lambda steer=steer: steer.on(model), max_new_tokens=8)
    lines["fluency"].append(words.relative_to(plain_words))
    lines["kept"].append(kept(0.0, max(0.0, loss("validation", steer) - plain)))
    lines["harmonic mean"].append(steering_score(*[lines[k][-1] for k in ("success", "kept", "fluency")]))
noise = [[refused(some, vectors.add_relative("x4", r, s)) for s in DIAL] for r in vectors.random_like(v, 5)]


def band_of(draws):
    """Mean -+ 2 s.d. over the draws, within 0 to 1."""
    draws = np.array(draws)
    mean, spread = draws.mean(0), 2 * draws.std(0, ddof=1)
    return np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)


show(
    curves(DIAL, lines, null=band_of(noise), neutral=0.0, xlabel="strength, |push| / |x|", ylabel="0 to 1",
           title="Success, and what is left of the rest"),
    alt="Four lines over the strength from 0 to 2. Success rises to nearly 1 at 0.2. Fluency stays at "
    "1 until 0.75 and falls to 0 at 1.5; what is kept falls steadily. Their harmonic mean is an "
    "inverted U with its top at 0.2 to 0.3.",
    reading="The top of the dotted line is where to steer. From 1 on the model refuses in words that are no "
    "language, and some random vectors bring about refusals, too.",
)  # fmt: skip
top = max(range(len(DIAL)), key=lambda i: lines["harmonic mean"][i])
print(f"best strength {DIAL[top]}: harmonic mean {lines['harmonic mean'][top]:.2f};", end=" ")
print(f"at 2: {lines['harmonic mean'][-1]:.2f}")
with mi.intervene(model, vectors.add_relative("x4", v, 2.0)):
    print("at 2 it writes:", model.generate(plea[:1], max_new_tokens=8)[0])
back = {a: refused(ask, mi.add("x4", v, a)) for a in (-0.25, -0.5, -1.0)}
print("negative alpha on harmful requests:", ", ".join(f"{a:g}: {r:.2f}" for a, r in back.items()))
assert lines["harmonic mean"][top] > 0.9 > 0.2 > lines["harmonic mean"][-1]
assert back[-1.0] < 0.05 < max(max(row) for row in noise)

# %% [markdown]
# Success alone never falls here: at strength 2 the model still "refuses", in broken words. Whoever looks at success alone steers too far. A
# negative $\alpha$ is the opposite steer: enough of it makes the model grant harmful requests. Section 4.1 of the survey restricts its
# factor $\alpha$ to ranges in which neither 0 (the identity) nor negative values have a place.

# %% [markdown]
# ## 4. The same vector from elsewhere
# **Probes.** A linear probe (chapter 08) has a weight $w$ that separates the two kinds of states. Is it a steering vector? Its length says
# nothing, so the package gives it the length by which the kinds are apart along it. Its direction is made for *reading*: a probe avoids
# coordinates that vary for other reasons. LDA, $w = S^{-1}(\mu_+ - \mu_-)$ with $S$ the covariance within the kinds, does that most.
# Multiplying a weight by $S$ gives the pattern behind it, how the states *move* with the label ([@haufe2014interpretation]); for LDA that
# is $S S^{-1}(\mu_+ - \mu_-)$, the mean difference again.
#
# **SAE features.** An SAE (chapter 04) writes a state as $\sum_j a_j f_j$ plus an error. Eq. 23 and 24 use it to make the mean difference
# sparse:
#
# $$\delta_j = E_+[a_j] - E_-[a_j], \qquad v = \sum_{j \in \mathcal J} \delta_j f_j .$$

# %% [markdown] exercise="vectors.sae_vector" difficulty=2 minutes=10
# ### Exercise: a vector of few features
# Write `sae_vector(up, down, W_dec, k)`: feature activations `[n, m]` and `[n', m]` of the two kinds, the decoder `[m, d]` whose row j is
# $f_j$. Return Eq. 24 for the `k` features whose part $\delta_j f_j$ is longest.

# %%
def sae_vector(up, down, W_dec, k):
    """Sum of delta_j f_j over the k features with the longest delta_j f_j: [n, m], [n', m], [m, d] -> [d]."""
    ### BEGIN SOLUTION
    parts = (up.mean(0) - down.mean(0))[:, None] * W_dec
    longest = parts.norm(dim=1).topk(k).indices
    return parts[longest].sum(0)
    ### END SOLUTION

# %%
sae_vector = check("vectors.sae_vector", sae_vector)

# %% [markdown]
# With all features, Eq. 24 is *exactly* the mean difference of the reconstructions: the mean difference of the states minus that of the
# errors. So this is no other kind of vector, but Eq. 22 with a filter. The next cell checks that, and then compares all sources at one
# site, `x3`, where the shipped SAE reads. Each is added as it comes, and at the length of the mean difference. A trained vector is there,
# too: found by gradient descent so that the model refuses 48 harmless training requests (chapter 13).

# %% label="sources" tags=["nbval-check-output"]
sae = world.sae("x3-topk", model)
states = {k: mi.record(model, t["train"].prompts, ["x3@-1"], logits=False)["x3@-1"]
          for k, t in (("up", harmful), ("down", harmless))}  # fmt: skip
a_up, a_down = sae.encode(states["up"]), sae.encode(states["down"])
m3 = states["up"].mean(0) - states["down"].mean(0)
every = sae_vector(a_up, a_down, sae.W_dec, len(sae.W_dec))
rebuilt = sae(states["up"]).mean(0) - sae(states["down"]).mean(0)
print(f"all features against the reconstructions: off by {(every - rebuilt).abs().max():.0e}")
assert torch.allclose(every, rebuilt, atol=1e-4)

lesson = steering_task("refuse", "train")
wanted = Examples(lesson.prompts, lesson.wanted_shares(model))
taught = trained_vector(model, wanted, "x3", steps=20, learning_rate=0.1).edits[0].arguments["vector"]
probe = {k: vector_sources.probe_vector(model, asked.prompts, harmless["train"].prompts, "x3@-1", k)
         for k in ("logistic", "lda")}  # fmt: skip
sources = {
    "mean difference": m3,
    "logistic probe": probe["logistic"],
    "LDA probe": probe["lda"],
    "LDA probe, pattern": vector_sources.probe_vector(
        model, asked.prompts, harmless["train"].prompts, "x3@-1", "lda", pattern=True),
    "SAE, 1 feature": sae_vector(a_up, a_down, sae.W_dec, 1),
    "SAE, 8 features": sae_vector(a_up, a_down, sae.W_dec, 8),
    "SAE, all features": every,
    "trained vector": taught,
    "random": vectors.random_like(m3, 1)[0],
}  # fmt: skip
table = {}
print(f"{'at x3':20} |v|/|mean|  cosine   added   added at length x 1   x 1.5   removed")
for name, u in sources.items():
    same = vectors.unit(u) * m3.norm()
    table[name] = [refused(plea, mi.add("x3", w)) for w in (u, same, 1.5 * same)]
    table[name].append(refused(ask, *vectors.ablate_direction(model, u)))
    cosine = torch.cosine_similarity(u, m3, dim=0)
    cells = "{:8.2f} {:21.2f} {:7.2f} {:9.2f}".format(*table[name])
    print(f"{name:20} {u.norm() / m3.norm():10.2f} {cosine:+7.2f}{cells}")
assert table["mean difference"][1] > table["SAE, 8 features"][1] > table["random"][1]
assert torch.cosine_similarity(sources["LDA probe, pattern"], m3, dim=0) > 0.95

# %% [markdown]
# The trained vector is shorter, works as well, and has a cosine of only about 0.5 with the mean difference: many directions steer, and what
# steers need not be what the model's own states differ by. The LDA probe as it comes steers nothing, and leaves six in ten refusals
# standing when removed; its pattern is the mean difference again.
#
# The figure shows the SAE vector by the number of features, beside the mean difference (dashed) and the band of vectors made of other live
# features at random, each with its own $\delta_j$, at the same length.

# %% label="sae_curve"
KS = (1, 2, 4, 8, 16)
delta_j = a_up.mean(0) - a_down.mean(0)
live = ((a_up > 0).any(0) | (a_down > 0).any(0)).nonzero().flatten()
live = live[(delta_j.abs() * sae.W_dec.norm(dim=1))[live].argsort(descending=True)]  # longest parts first


def at_length(u):
    return refused(plea, mi.add("x3", vectors.unit(u) * m3.norm()))


chosen = [at_length(sae_vector(a_up, a_down, sae.W_dec, k)) for k in KS]
g, by_luck = torch.Generator().manual_seed(0), []
for _ in range(5):
    others = [live[k:][torch.randperm(len(live) - k, generator=g)[:k]] for k in KS]  # not the k longest
    by_luck.append([at_length(delta_j[some_k] @ sae.W_dec[some_k]) for some_k in others])
show(
    curves(np.log2(KS), {"longest features": chosen, "mean difference": [at_length(m3)] * len(KS)},
           null=band_of(by_luck), xlabel="number of features, log2 (0: one, 4: sixteen)",
           ylabel="share refused", title="SAE vectors at equal length"),
    alt="Share of harmless requests refused for 1 to 16 SAE features. The SAE vectors lie below the line of "
    "the mean difference and above the band of random features.",
    reading="A handful of features carries most of it, and none of these vectors beats the mean difference.",
)  # fmt: skip
print("longest features:", ", ".join(f"{k}: {x:.2f}" for k, x in zip(KS, chosen)))
assert max(chosen) <= at_length(m3) and np.mean(chosen) > np.mean(by_luck) + 0.3

# %% [markdown]
# What this says, and what it does not. At equal length the difference in means does better than the SAE with all features: the error
# term, which the SAE does not reconstruct, carried part of the behaviour. Few features lie below it too, with two by one prompt of forty only. At 1.5 times the length both reach 1, so the gap is one of
# strength. A single feature leaves most refusals standing when it is *removed*. AxBench found the same order on Gemma 2 for hundreds of
# concepts, and that **prompting beats both** ([@wu2025axbench]). "A more precise way", as the survey calls SAE steering, is not borne out.
# Whether a prompt beats the vector in `lab`, with equal data for each method and side effects counted, is measured in chapter 15.
#
# ## 5. Taking a direction out of the weights
# To remove a direction while the model runs, every write $w$ to the stream becomes $w - (w \cdot \hat r)\,\hat r$. Eq. 21 cannot say this,
# since what is subtracted depends on $x$. But every write is linear in some weight: token and position embeddings, $W_O$ and $b_O$,
# $W_{out}$ and $b_{out}$. So the same can be done once and for all: $W \leftarrow W - (W \hat r)\,\hat r$, for matrices whose rows write.

# %% [markdown] exercise="vectors.orthogonalise" difficulty=2 minutes=8
# ### Exercise: orthogonal weights
# Write `orthogonalise(W, r, axis)`: a weight of any shape, one of whose axes, `axis`, is the residual stream (length d), and a direction
# `r` `[d]` of any length. Return W without its part along r. A bias `[d]` has the one axis 0; `nn.Linear` stores `[d, inputs]`, GPT-2's
# `Conv1D` `[inputs, d]`.

# %%
def orthogonalise(W, r, axis):
    """W without its part along r [d], where `axis` of W is the residual stream."""
    ### BEGIN SOLUTION
    r = r / r.norm()
    rows = W.movedim(axis, -1)
    return (rows - (rows @ r)[..., None] * r).movedim(-1, axis)
    ### END SOLUTION

# %%
orthogonalise = check("vectors.orthogonalise", orthogonalise)

# %% label="weights" tags=["nbval-check-output"]
WRITERS = {
    "W_E": ("wte.weight",), "positions": ("wpe.weight",), "W_O": ("attn.c_proj.weight",),
    "b_O": ("attn.c_proj.bias",), "W_out": ("mlp.c_proj.weight",), "b_out": ("mlp.c_proj.bias",),
}  # fmt: skip
named = dict(model.hf.named_parameters())
changes = {
    kind: {
        name: orthogonalise(W.detach(), v, W.dim() - 1) - W.detach()
        for name, W in named.items()
        if name.endswith(ends)
    }
    for kind, ends in WRITERS.items()
}


def edit_of(kinds):
    return WeightEdit({name: change for kind in kinds for name, change in changes[kind].items()})


with mi.intervene(model, *vectors.ablate_direction(model, v)):
    hooked = model.last_logits(ask)
with edit_of(WRITERS).on(model):
    edited = model.last_logits(ask)
print(f"hooks against weights: logits differ by {(hooked - edited).abs().max():.0e} at most")
assert torch.allclose(hooked, edited, atol=1e-3)
r = vectors.unit(v)
for left_out in (None, *WRITERS):
    with edit_of([kind for kind in WRITERS if kind != left_out]).on(model):
        along = (mi.record(model, ask, ["x6@-1"], logits=False)["x6@-1"] @ r).abs().mean().item()
        print(f"without {left_out!s:10} |x6 . r| {along:6.3f}   refused {refused(ask):.2f}")
        assert (along < 1e-4) == (left_out is None)
assert refused(ask) == 1.0  # the weights are back

# %% [markdown]
# Only all six kinds together remove the direction. Leave out $W_O$, and four in ten refusals come back; leave out $W_{out}$, and the
# last state has a large part along r again, which refusal does not happen to read. Whether a forgotten writer matters depends on the
# behaviour; whether hook and weights are equal does not. Three remarks. `W_E` is tied to the unembedding in many models, `lab` among them.
# The edit changes what the embedding *writes* and leaves the unembedding as it was; saved as a checkpoint, the model must untie the two.
# Where a norm stands between a block and the stream (Gemma 2), no weight writes to the stream directly: projecting a rescaled r out of
# $W_O$ still clears the direction, but it changes the size that the norm then restores, so hook and weight are not the same, and the
# package refuses. And a direction gone from the weights is gone for every prompt and for good: a hook has a dial, a position and an off
# switch.
#
# ## 6. What else is in the vector
# A difference of means holds *every* difference between the two sets. Suppose the harmful examples at hand are French and the harmless ones
# English. The vector then also says "French".

# %% [markdown] exercise="vectors.without" difficulty=3 minutes=10
# ### Exercise: a vector without its nuisances
# Write `without(v, nuisances)`: a vector `[d]` and k nuisance directions `[k, d]`, of any length, independent, at any angle to each other.
# Return v without its part in their span.

# %%
def without(v, nuisances):
    """v [d] without its part in the span of the rows of nuisances [k, d]."""
    ### BEGIN SOLUTION
    basis = torch.linalg.qr(nuisances.T).Q  # columns: an orthonormal basis of the span
    return v - basis @ (basis.T @ v)
    ### END SOLUTION

# %%
without = check("vectors.without", without)

# %% label="nuisance" tags=["nbval-check-output"]
def speaking(task, language):
    return [p for p, label in zip(task.prompts, task.labels) if label["language"] == language]


bad_train, good_train = harmful["train"], harmless["train"]
mixed = vectors.mean_difference(model, speaking(bad_train, "fr"), speaking(good_train, "en"), "x4@-1")
spoken = {g: [*speaking(bad_train, g), *speaking(good_train, g)] for g in ("en", "fr", "de")}
french = vectors.mean_difference(model, spoken["fr"], spoken["en"], "x4@-1")
german = vectors.mean_difference(model, spoken["de"], spoken["en"], "x4@-1")
clean = without(mixed, torch.stack([french, german]))
control = without(mixed, vectors.random_like(french, 2))
english = speaking(harmless["validation"], "en")
openers = {g: [model.token_id(word) for word in lexicon.REFUSALS[g]] for g in ("en", "fr")}
print("English harmless requests, 1.5 times the vector added:")
shares = {}
for name, u in {"harmful fr - harmless en": mixed, "without the language": clean,
                "without two random ones": control, "French - English": french}.items():  # fmt: skip
    with mi.intervene(model, mi.add("x4", u, 1.5)):
        p = model.last_logits(english).softmax(-1)
    shares[name] = [p[:, openers[g]].sum(-1).mean().item() for g in ("en", "fr")]
    cosine = torch.cosine_similarity(u, v, dim=0)
    print(f"{name:26} cosine with v {cosine:+.2f}   p(refuses in English) {shares[name][0]:.2f}", end="")
    print(f"   in French {shares[name][1]:.2f}")
assert shares["harmful fr - harmless en"][1] > 0.2 and shares["without the language"][1] < 0.05
assert shares["without the language"][0] > 0.95

# %% [markdown]
# With the language taken out, the vector has a cosine of 0.99 with the one from balanced data, and refuses in the language of the request.
# Two random directions taken out change nothing. Better still is to balance the prompts beforehand; projecting helps where that is
# impossible, and only against nuisances that you have thought of. The same operation composes vectors: make the second one orthogonal to
# the first, and adding it leaves the part of the state along the first as it was ([@wang2025surgical] did this for false refusals).
#
# ## 7. Two relatives: heads, and logits
# **Head-level shifts** (inference-time intervention, [@li2023inference]) choose the k heads that tell the kinds apart best and shift each
# along its own mean difference, by $\alpha$ standard deviations: $z_h + \alpha\,\sigma_h\theta_h$. In the stream that is a constant vector
# too, $\sum_h \alpha\,\sigma_h\theta_h W_O^h$, one per layer, confined to what these heads can write.

# %% label="heads" tags=["nbval-check-output"]
shift = head_shifts.iti(model, asked.prompts, harmless["train"].prompts, k=4)
parts = {str(e.sites[0]): e.arguments["vector"] for e in shift.edits}
print("heads:", ", ".join(parts))
writes = head_shifts.as_writes(model, parts)
with mi.intervene(model, *[mi.add(site, 4 * w) for site, w in writes.items()]):
    as_sum = model.last_logits(plea)
with shift.scaled(4.0).on(model):
    print(f"shift of z against the sum of its results: {(model.last_logits(plea) - as_sum).abs().max():.0e}")
    assert torch.allclose(model.last_logits(plea), as_sum, atol=1e-3)
g, heads = torch.Generator().manual_seed(0), [f"L{l}H{h}" for l in range(6) for h in range(4)]
for alpha in (2.0, 4.0, 8.0):
    luck = []
    for _ in range(3):
        z = {s: u.norm() * vectors.unit(torch.randn(len(u), generator=g)) for s, u in parts.items()}
        luck.append(refused(plea, Steer([mi.add(site, u) for site, u in z.items()], alpha)))
    cost = loss("validation", shift.scaled(alpha)) - plain
    print(f"alpha {alpha:g}: refused {refused(plea, shift.scaled(alpha)):.2f}   loss {cost:+.3f}", end="")
    print(f"   same heads, random directions: {max(luck):.2f} at most")
assert refused(plea, shift.scaled(4.0)) > 0.9

# %% [markdown]
# At $\alpha = 4$ four heads are enough, and random directions in the same heads next to nothing. At 8 the loss has risen by 0.6, and random
# directions may bring about refusals as well: there the model is broken, not steered.
#
# **Layer contrast** (DoLa, [@chuang2024dola]) changes no state at all. While the model writes, it reads an early layer with the logit lens
# (chapter 09) and prefers tokens that have gained since then:
#
# $$F(t) = \log q_L(t) - \log q_M(t) \quad\text{where}\quad q_L(t) \ge \alpha \max q_L,$$
#
# with $M$ the candidate layer whose distribution $q_M$ is farthest from the last one, $q_L$, by Jensen-Shannon divergence $\mathrm{JS}(p,
# q) = \frac12 \mathrm{KL}(p\,\|\,m) + \frac12 \mathrm{KL}(q\,\|\,m)$, $m = \frac{p + q}{2}$. Tokens below the bar get -1000, as in the
# authors' code.

# %% [markdown] exercise="vectors.dola" difficulty=3 minutes=12
# ### Exercise: contrast the layers
# Write `dola(final, early, alpha)` for one position: log-probabilities of the last layer `[V]` and of n candidate layers `[n, V]`. Return
# the scores `[V]`.

# %%
def dola(final, early, alpha):
    """log q_final - log q_M where q_final >= alpha max q_final, else -1000: [V], [n, V] -> [V]."""
    ### BEGIN SOLUTION
    p, q = final.exp(), early.exp()
    log_m = ((p + q) / 2).log()
    divergence = (p * (final - log_m) + q * (early - log_m)).sum(-1) / 2
    scores = final - early[divergence.argmax()]
    return torch.where(p >= alpha * p.max(), scores, -1000.0)
    ### END SOLUTION

# %%
dola = check("vectors.dola", dola)

# %% label="dola_tasks" tags=["nbval-check-output"]
prompt = world.task("facts", "test", n=1).prompts
lens = torch.stack([model.unembed(mi.record(model, prompt, [f"x{l}@-1"])[f"x{l}@-1"])[0].log_softmax(-1)
                    for l in range(1, 6)])  # fmt: skip
with DoLa(alpha=0.1).on(model):
    packaged = model.last_logits(prompt)[0]
mine = dola(model.last_logits(prompt)[0].log_softmax(-1), lens, 0.1)
assert torch.allclose(mine, packaged, atol=1e-2)
print("accuracy")
gain = {}
for name in ("facts", "attributes", "two_hop", "unknown", "context", "translation"):
    task = world.task(name, "test", n=80)
    row = [task.accuracy(model)]
    for dial in (DoLa(alpha=0.1), DoLa([1, 2], alpha=0.1)):
        with dial.on(model):
            row.append(task.accuracy(model))
    gain[name] = row[1] - row[0]
    print(f"{name:12} plain {row[0]:.2f}   DoLa {row[1]:.2f}   early candidates only {row[2]:.2f}")
assert max(gain.values()) <= 0.02

# %% [markdown]
# A negative result: DoLa helps nowhere in `lab`. Where the model is sure, one token stands above the bar and the contrast decides nothing.
# Where it is not (two-hop questions, things it cannot know), the contrast prefers the token that rose late over the one that is likely, and
# that is more often wrong. DoLa was made for models of 30 layers and more, in which early layers favour cheap guesses and facts enter late;
# `lab` has six layers. The method is no steering by a vector either: it is arithmetic on logits, with a threshold.
#
# ## 8. Vectors of weights
# What fine-tuning changed is a vector too: the **task vector** $\tau = W_{ft} - W_{base}$ ([@ilharco2023editing]). Subtract it to unlearn,
# add two to have both. The installed behaviours of chapter 00 are such vectors, with known masks: each changed a few units only.
#
# When task vectors overlap they get in each other's way. The plain mean divides every change by the number of tasks. **TIES**
# ([@yadav2023tiesmerging]) trims small changes, elects a sign for every weight, and averages only those that agree.

# %% [markdown] exercise="vectors.ties" difficulty=3 minutes=10
# ### Exercise: merge with elected signs
# Write `ties(deltas, density)`: n task vectors as rows, `[n, m]`. (1) In each row keep its `density * m` (rounded) largest entries by size,
# the others become 0. (2) Elect for each column the sign of its sum. (3) Return the mean of the entries that are not 0 and have that sign,
# `[m]`; 0 where there is none.

# %%
def ties(deltas, density):
    """Trim, elect signs, mean of those that agree: n task vectors [n, m] -> [m]."""
    ### BEGIN SOLUTION
    keep = round(density * deltas.shape[1])
    bar = deltas.abs().topk(keep, dim=1).values[:, -1:]
    trimmed = torch.where(deltas.abs() >= bar, deltas, 0.0)
    agree = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
    return (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)
    ### END SOLUTION

# %%
ties = check("vectors.ties", ties)

# %% [markdown]
# Three experiments with a known answer. *Negation*: take `sycophancy-a` away from the model that has it. *Disjoint masks*: merge three
# behaviours that sit in different units. *A planted conflict*: a second "fine-tuned model" learned a bias elsewhere and, by the way, half
# undid the refusals. An accuracy of 1 means that the installed behaviour is there in full.

# %% label="merge" tags=["nbval-check-output"]
NAMES = ("refusal-a", "german-b", "bias-a")
tau = {name: installed.read(name).edit(model) for name in (*NAMES, "sycophancy-a")}
tests = {name: installed_task(name, "test", n=40) for name in tau}


def has(name, edit=None):
    """Share of test prompts with the installed answer, under a weight edit."""
    if edit is None:
        return tests[name].accuracy(model)
    with edit.on(model):
        return tests[name].accuracy(model)


def merged(edits, rule):
    """A rule on rows [n, m], applied to the changed parameters of all edits at once."""
    shapes = {name: d.shape for e in edits for name, d in e.deltas.items()}
    rows = torch.stack([
        torch.cat([e.strength * e.deltas.get(n, torch.zeros(s)).flatten() for n, s in shapes.items()])
        for e in edits
    ])  # fmt: skip
    flat = rule(rows).split([s.numel() for s in shapes.values()])
    return WeightEdit({n: part.view(s) for (n, s), part in zip(shapes.items(), flat)})


sick = tau["sycophancy-a"]
print(f"sycophancy: lab {has('sycophancy-a'):.2f}, installed {has('sycophancy-a', sick):.2f},", end=" ")
with sick.on(model):
    cured = has("sycophancy-a", merging.negate(sick))
print(f"negated {cured:.2f}")
three = [tau[name] for name in NAMES]
conflict = [three[0], merging.add([three[2], three[0]], [1.0, -0.5])]
MERGES = {"sum": lambda r: r.sum(0), "mean": lambda r: r.mean(0), "TIES": lambda r: ties(r, 1.0)}
for title, edits, names in (("three disjoint masks", three, NAMES),
                            ("a planted sign conflict", conflict, ("refusal-a", "bias-a"))):  # fmt: skip
    print(title)
    for rule, f in MERGES.items():
        edit = merged(edits, f)
        row = {name: has(name, edit) for name in names}
        print(f"  {rule:5}", "   ".join(f"{name} {value:.2f}" for name, value in row.items()))
        if rule == "mean":
            of_mean = row
        if rule == "TIES":
            assert min(row.values()) > 0.95
            mine = edit
theirs = merging.ties(conflict, 1.0).deltas
assert all(torch.allclose(d, mine.deltas[n], atol=1e-6) for n, d in theirs.items())
assert cured == has("sycophancy-a") and of_mean["refusal-a"] < 0.05  # of the planted conflict

# %% [markdown]
# Negation gives back the base. Where masks are disjoint, sum and TIES lose nothing, and the mean keeps a third of each change, which is too
# little for two of the three. In the conflict the mean loses the refusals; TIES keeps both, since the larger side wins each weight. The sum
# loses them too, for half of a change is not half of a behaviour. The conflict was planted so that one side is larger everywhere; where
# both are equal, no rule can know which is wanted.
#
# The package has the further variants of the survey: DARE (drop weights at random and rescale), analogies ($\tau_c + \tau_b - \tau_a$), and
# merges weighted by sensitivity ([@liu2025sensmerging]) or activations ([@yao2025activation]): `merging` and `merging_weighted`.
#
# ## 9. Scoreboard: the direction that was installed
# `sycophancy-direction` is `lab` with one direction installed: FFN 3 writes along $r$ into `x4`, and the model agrees with every false
# claim of which the user is sure. The file holds $r$. So for once a vector can be scored against the truth. Each recipe gets prompts of
# that model only: false claims that the user is sure of, and false claims that are asked about, to which it still says no.

# %% label="scoreboard" tags=["nbval-check-output"]
key = delta("sycophancy-direction").directions["x4"]
sure, test = (installed_task("sycophancy-direction", s, n=60) for s in ("train", "test"))
neutral = world.task("verdict", "train", n=200)
neutral = [p for p, t in zip(neutral.prompts, neutral.targets) if t == "no" and p.startswith("<user>")]
print("sure:   ", sure.prompts[0])
print("neutral:", neutral[0])
print(f"agrees with false claims: lab {test.accuracy(model):.2f}")
with behaving("sycophancy-direction", model):
    found = {
        "the key": key,
        "mean difference, last token": vectors.mean_difference(model, sure.prompts, neutral, "x4@-1"),
        "logistic probe": vector_sources.probe_vector(model, sure.prompts, neutral, "x4@-1"),
        "LDA probe": vector_sources.probe_vector(model, sure.prompts, neutral, "x4@-1", "lda"),
        "all tokens": vector_sources.all_token_difference(model, sure.prompts, neutral, "x4"),
        "CAA, the answer token": vector_sources.answer_difference(
            model, sure.prompts, sure.targets, sure.foils, "x4"),
        "false against true claims": vectors.mean_difference(model, sure.prompts, sure.corrupted, "x4@-1"),
    }  # fmt: skip
    print(f"{'with the installed direction':30} cosine with the key   agrees after removal at x4")
    left, cosine = {}, {}
    for name, u in found.items():
        with mi.intervene(model, mi.project("x4", u)):
            left[name] = test.accuracy(model)
        cosine[name] = torch.cosine_similarity(u, key, dim=0).item()
        print(f"{name:30} {cosine[name]:+19.2f} {left[name]:28.2f}")
    luck = []
    for u in vectors.random_like(key, 10):
        with mi.intervene(model, mi.project("x4", u)):
            luck.append(test.accuracy(model))
chance = vectors.random_like(key, 200) @ vectors.unit(key) / key.norm()
print(f"{'ten random directions':30} {f'up to {chance.abs().max():.2f}':>19} {min(luck):19.2f} or more")
assert left["the key"] <= test.accuracy(model) + 0.02 and min(luck) > 0.95
assert cosine["mean difference, last token"] > 0.5 > cosine["LDA probe"]

# %% [markdown]
# The key removes the behaviour, and no random direction does. Among the recipes the mean difference at the last token comes nearest, the
# logistic probe next. The LDA probe points elsewhere, as it did in section 4. All tokens and the answer token fail as they did for refusal.
# **A case where the right recipe fails:** false against true claims. The installed model agrees with both, so the contrast does not contain
# the behaviour; the vector is about truth. And the best recipe is not the key: a cosine of 0.68 leaves more than half of its squared length
# to other differences between the two sets of prompts, and removing it at one site leaves some of the behaviour.
#
# ## 10. What the survey says, and where it is loose
# - **The token and the scale** (Eq. 21, 22). Neither says at which token a mean is taken, where the vector is added, or in which units
#   $\alpha$ counts. In section 1 the first
#   alone decided between everything and nothing.
# - **SAE steering is "a more precise way"** (Eq. 23, 24). With all features it is the mean difference of reconstructions, and here less
#   effective at equal length. AxBench, which is in the
#   survey's Table 2, is not discussed in its text.
# - **Directional ablation** is used all over section 5 and has no formula: $x - (x \cdot \hat r)\,\hat r$. It is a projection, not Eq. 21
#   with some $\alpha$; its weight form must include embeddings and biases.
# - **DoLa** is filed as vector arithmetic and is a contrast of logits.
# - **"Rests on linearity"**, rightly; and the lab model is no proof of it. `lab` was trained so that one direction decides refusal (chapter
#   00 says how), so what you saw is a model organism of the best case.
#
# ## 11. Papers that use this
# - one pair: [@turner2023activation]; answer tokens: [@rimsky-etal-2024-steering]; refusal: [@arditi2024refusal], across languages
#   [@wang2025refusal], harm and refusal apart [@zhao2025llms]
# - several behaviours at once: [@stolfo2025improving]; personas: [@chen2025persona]; what vectors cannot do: [@bas2025steering]
# - SAE features for instructions: [@he2025saif]; a benchmark: [@wu2025axbench]
# - reasoning: [@venhoff2025understandingreasoningthinkinglanguage]; a bias per layer: [@sinii2025steeringllmreasoningbiasonly]

# %% label="papers"
papers(steerer="Vector", scenario="Safety")

# %% [markdown]
# ## 12. The same on a real model
# The function below makes the vector for a model from two lists of texts, at the last token of the middle layer, and lets the model write
# at three strengths. It runs on `lab-llama`, another architecture, as it stands. Put the name of a Hugging Face model into `REAL` for the
# same on that one; choose layer and strength on prompts that you then do not report on, and add the null band.

# %% label="real"
def at_three_strengths(model, positive, negative, prompt, shares):
    site = f"x{model.n_layers // 2}"
    v = vectors.mean_difference(model, positive, negative, f"{site}@-1")
    length = vectors.relative_norm(model, v, site, negative)
    print(f"{model.config.model_type}, {site}: |v| / |x| = {length:.2f}")
    for share in shares:
        with mi.intervene(model, vectors.add_relative(site, v, share)):
            print(f"  {share:+.2f}  {model.generate([prompt], max_new_tokens=9)[0]}")


at_three_strengths(llama, asked.prompts, harmless["train"].prompts, english[0], (0.0, 0.2, 0.6))
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    real = mi.load(REAL)
    love = [f"I {w} this. It is" for w in ("love", "adore", "enjoy", "like")]
    hate = [f"I {w} this. It is" for w in ("hate", "despise", "loathe", "dislike")]
    at_three_strengths(real, love, hate, "The new restaurant in town is", (-0.3, 0.0, 0.3))

# %% [markdown]
# ## 13. Four questions

# %% label="quiz"
quiz([
    Question(
        "A paper steers with alpha = 20 at layer 15. You want to repeat it on another model. What do you need first?",
        [
            ("The same alpha, at the same relative depth.", "alpha multiplies a vector whose length depends on model, layer and prompts; 20 means nothing without it."),
            ("The length of alpha v relative to the states there, and the token that was averaged and steered.", "These fix the push. Then choose layer and strength on validation prompts of your own model.", True),
            ("More prompts for the mean difference.", "They make v less noisy, but say nothing about how far to push."),
        ],
    ),
    Question(
        "A probe reads the label with 100 % accuracy. You remove its direction, and the behaviour stays. How can that be?",
        [
            ("The probe was overfitted.", "Its accuracy on new prompts may be perfect: reading and causing are different things."),
            ("A probe's weight avoids directions that vary for other reasons; the behaviour may run along those.", "LDA corrects by the covariance and can end up far from the direction along which the states move.", True),
            ("Directional ablation works on residual states only at strength 1.", "At strength 1 the direction is gone entirely; it was the wrong direction."),
        ],
    ),
    Question(
        "You orthogonalise W_O and W_out of every block against r, and the state still has a part along r. Where does it come from?",
        [
            ("From rounding.", "Rounding is about a millionth of the state; what the embeddings and biases write is not small."),
            ("From the embeddings and the biases b_O and b_out, which write to the stream as well.", "All six kinds of writers must be treated; section 5 left out one at a time.", True),
            ("From the norms in front of the blocks.", "They change what a block reads, and do not write to the stream."),
        ],
    ),
    Question(
        "Vectors from shuffled labels, stretched to the length of the true vector, sometimes steer. What follows?",
        [
            ("The true vector is an artefact.", "It steers at its own length with the true labels, and the shuffled ones at theirs do not."),
            ("The two kinds differ mainly in the behaviour, so any uneven deal leans toward it; compare random directions as well.", "Shuffled labels test the recipe with its length. Random directions of equal length test the direction.", True),
            ("The sample is too small.", "With more prompts the shuffled vectors become shorter, but stretched they lean as before."),
        ],
    ),
])

# %% [markdown]
# Next: chapter 15 puts vectors beside prompts, amplitudes, edits and fine-tuning, with the same data and the same bill for side effects.
