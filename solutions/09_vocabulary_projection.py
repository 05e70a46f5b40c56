# %% [markdown]
# # 09 Vocabulary projection
# A state is a list of 128 numbers. The model itself has a dictionary for such lists: the unembedding, which turns the last state into a score
# for each word. **Vocabulary projection** uses that dictionary on anything of the same length: states of earlier layers, what a head
# writes, the value of a neuron, a feature, even a gradient. It needs no training and no labels, and its output is words, which makes it the
# most tempting method of this part. This chapter shows what it can carry. Survey ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)),
# section 3.5, Eq. 16.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - read a prediction layer by layer with the logit lens, and train a tuned lens for where it fails
# - say why an intermediate word of another language need not mean that the model "thinks" in it
# - split an answer's logit exactly over heads or SAE features, and say what the split cannot see
# - put a null beside the sentence "this neuron means cities"
# - let the model read its own states (Patchscopes), contrast layers (DoLa), read a gradient
#
# **The claim.** The output's dictionary often fits inner states well enough to see a prediction form (survey, section 3.5). But it assumes that
# they are written in the output's basis, and it sees only what reaches the output directly. In `lab` it thereby underrates, by a factor of eight, the head that matters
# most for the indirect object.

# %% label="setup"
import random
from dataclasses import replace

import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import null_band
from mi_course.locate import backward_lens, causal, direct, patchscopes, projection, token_lists
from mi_course.locate.tuned_lens import lens_kl, train_tuned_lens
from mi_course.models import weights
from mi_course.objects.sae_features import stream_directions
from mi_course.objects.weights import folded_unembedding, neuron_values
from mi_course.teach import Question, bars, check, curves, quiz, show
from mi_course.world import compiled, installed_tasks, lexicon

torch.manual_seed(0)
torch.set_grad_enabled(False)
model = mi.load()
L, H = model.n_layers, model.n_heads
unembedding = weights.unembedding(model)
print(f"{L} layers, d = {model.d_model}, {model.n_vocab} words in the vocabulary")

# %% [markdown]
# ## 1. The logit lens
# At the end of the model stand two steps, the final norm and the unembedding. The **logit lens** [@nostalgebraist2020logit] applies them to a
# state $z$ of any layer:
#
# $$p = \mathrm{softmax}\big(\mathrm{norm}_f(z)\, W_U\big)$$
#
# Eq. 16 of the survey prints it without the norm; chapter 01 showed that it then disagrees with the model even at the last layer. Here it is on
# one prompt, with the leading word of each layer.

# %% label="by_hand" tags=["nbval-check-output"]
facts = world.task("facts", split="test", n=150)
prompt, answer = facts.prompts[0], facts.targets[0]
print(f"{prompt} ...   (right: {answer})")
states = mi.record(model, [prompt], [f"x{layer}@-1" for layer in range(L + 1)])
for layer in range(L + 1):
    z = states[f"x{layer}@-1"][0]
    p = (unembedding.norm(z) @ unembedding.W_U).softmax(-1)
    word = model.tokenizer.decode([p.argmax().item()])
    print(f"x{layer}   {word:10} {p.max():.2f}    p({answer}) = {p[model.token_id(answer)]:.2f}")
assert torch.allclose(p, model.last_logits([prompt])[0].softmax(-1), atol=1e-5)

# %% [markdown]
# One prompt is an anecdote. To follow many, we need two numbers for each layer and prompt: the probability of the right token, and its **rank**,
# the number of tokens that stand above it.

# %% [markdown] exercise="projection.lens_reading" difficulty=2 minutes=8
# ### Exercise: probability and rank by layer
# Write `lens_reading(x, norm, W_U, tokens)`. `x` is `[L, B, d]`: states of L layers for B prompts. `norm` is a function, `W_U` is `[d, V]`,
# `tokens` `[B]`, one id per prompt. Return `(prob, rank)`, two tensors `[L, B]`. Rank 0 means that no token has a larger logit.


# %%
def lens_reading(x, norm, W_U, tokens):
    """Probability and rank of one token per prompt by layer: x [L, B, d] -> two tensors [L, B]."""
    ### BEGIN SOLUTION
    logits = norm(x) @ W_U
    at = tokens.expand(len(x), -1)[..., None]
    own = logits.gather(-1, at)
    return logits.softmax(-1).gather(-1, at)[..., 0], (logits > own).sum(-1)
    ### END SOLUTION


# %%
lens_reading = check("projection.lens_reading", lens_reading)

# %% [markdown]
# The median rank of the right token in four behaviours, and as a control that of the **foil**, a wrong answer of the same kind. If the
# foil rises as well, the lens shows the kind of answer, not the answer. (The library's function for this is `projection.read_tokens`.)

# %% label="trajectories" tags=["nbval-check-output"]
def stacked(prompts):
    """x^0 ... x^L at the last token: [L + 1, B, d]."""
    cache = mi.record(model, prompts, [f"x{layer}@-1" for layer in range(L + 1)])
    return torch.stack([cache[f"x{layer}@-1"] for layer in range(L + 1)])


print("median rank at      " + "".join(f"x{layer:<6}" for layer in range(L + 1)))
ranks = {}
for name in ("facts", "ioi", "translation", "sentiment"):
    task = world.task(name, split="test", n=150)
    x = stacked(task.prompts)
    for kind, tokens in (("target", task.target_ids(model)), ("foil", task.foil_ids(model))):
        prob, rank = lens_reading(x, unembedding.norm, unembedding.W_U, tokens)
        ranks[name, kind] = rank.float().median(1).values
        print(f"{name:12} {kind:6} " + "".join(f"{int(r):<7}" for r in ranks[name, kind]))
assert all(ranks[name, "target"][-1] == 0 for name in ("facts", "ioi", "translation", "sentiment"))
assert ranks["facts", "foil"][1] < 60 and ranks["facts", "target"][3] < ranks["facts", "foil"][3]

# %% [markdown]
# The answer comes up gradually and leads from $x^4$ on, as it does in large models [@nostalgebraist2020logit]. For facts and sentiment the
# target is among the first few dozen from $x^1$ on, but so is the foil: what is visible there is that *some* name or *some* verdict is asked for.
# Target and foil part later.
#
# ## 2. A basis that the lens cannot read
# The lens compares each state with the output's dictionary. Nothing forces a model to use that dictionary inside. `compiled.rotated_basis()`
# is a GPT-2 whose weights were set by hand: layer 0 finds the answer and writes it in a code, as the output direction of *another* word; layer 3
# decodes. So the answer is in the state from $x^1$ on.

# %% label="rotated" tags=["nbval-check-output"]
coded = compiled.rotated_basis()
small, code_task = coded.wrap(), coded.task
sites = [f"x{layer}@-1" for layer in range(5)]
code_words = [label["lens_reads"] for label in code_task.labels]
right = projection.read_tokens(small, code_task.prompts, code_task.targets, sites)
wrong = projection.read_tokens(small, code_task.prompts, code_words, sites)
print("mean probability at " + " ".join(f"x{layer}  " for layer in range(5)))
print("right answer       " + " ".join(f"{p:.2f}" for p in right.prob.mean(1)))
print("code word          " + " ".join(f"{p:.2f}" for p in wrong.prob.mean(1)))
assert wrong.prob[1:4].min() > 0.99 and right.prob[1:4].max() < 0.01 and right.prob[4].min() > 0.99

# %% [markdown]
# In three of five layers the lens is sure, and wrong. It does not say "I cannot read this"; a high probability is no sign that the basis fits.
#
# ## 3. The tuned lens
# The remedy of [@belrose2023eliciting]: before the lens, a learned affine map for each layer, trained so that the reading comes close to the
# model's final prediction. The model stays as it is.
#
# $$\mathrm{tuned}_l(x) = \mathrm{unembed}(x + x A_l + b_l), \qquad \text{loss} = \mathrm{mean\ over\ tokens\ of\ } \mathrm{KL}(p_{final} \,\|\, \mathrm{tuned}_l(x^l))$$
#
# KL is the Kullback-Leibler divergence, $\mathrm{KL}(p\|q) = \sum_t p_t \log(p_t / q_t)$, in nats: 0 when the two distributions are the same.

# %% [markdown] exercise="projection.tuned_loss" difficulty=2 minutes=7
# ### Exercise: the loss of the tuned lens
# Write `tuned_loss(x, A, b, unembed, final)`: states `[n, d]`, a matrix `[d, d]`, a bias `[d]`, a function from states to logits, and the
# model's final logits `[n, V]`. Return one number. With `A = 0` and `b = 0` it is the loss of the logit lens.


# %%
def tuned_loss(x, A, b, unembed, final):
    """Mean over tokens of KL(softmax(final) || softmax(unembed(x + x A + b))), in nats."""
    ### BEGIN SOLUTION
    p = final.log_softmax(-1)
    q = unembed(x + x @ A + b).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()
    ### END SOLUTION


# %%
tuned_loss = check("projection.tuned_loss", tuned_loss)

# %% [markdown]
# Trained on 40 prompts of the coded model, for $x^2$, and read on 24 others.

# %% label="tuned_code" tags=["nbval-check-output"]
x2 = mi.record(small, code_task.prompts, ["x2@-1"])["x2@-1"]
final = small.last_logits(code_task.prompts)
d = small.d_model
A, b = torch.zeros(d, d, requires_grad=True), torch.zeros(d, requires_grad=True)
optimizer = torch.optim.Adam([A, b], lr=0.02)
with torch.enable_grad():
    for _ in range(100):
        loss = tuned_loss(x2[:40], A, b, small.unembed, final[:40])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
read = small.unembed(x2[40:] + x2[40:] @ A.detach() + b.detach()).argmax(-1)
hits = (read == code_task.target_ids(small)[40:]).float().mean().item()
blind = (small.unembed(x2[40:]).argmax(-1) == code_task.target_ids(small)[40:]).float().mean().item()
print(f"held-out prompts read rightly at x2: logit lens {blind:.2f}, tuned lens {hits:.2f}")
assert hits > 0.99 and blind < 0.01

# %% [markdown]
# Now `lab`, all layers at once, on documents of all domains; what counts is the KL on documents that it was not trained on.

# %% label="tuned_lab" tags=["nbval-check-output"]
train = [text for texts in world.documents("train", n=20).values() for text in texts]
held_out = [text for texts in world.documents("test", n=6).values() for text in texts]
lens = train_tuned_lens(model, train, steps=100, batch=128)
kl = {name: lens_kl(model, held_out, reader) for name, reader in (("logit lens", None), ("tuned lens", lens))}
kl["tuned, on its training text"] = lens_kl(model, train[::3], lens)
print(" " * 29 + "".join(f"x{layer:<6}" for layer in range(L)))
for name, scores in kl.items():
    print(f"{name:28} " + "".join(f"{value:<7.2f}" for value in scores.values))
assert (kl["tuned lens"].values < kl["logit lens"].values).all()
assert (kl["tuned lens"].values[1:] < kl["tuned lens"].values[:-1]).all()

# %% [markdown]
# The tuned lens is far closer everywhere, and both close in on the output with depth. At $x^0$, where tied embeddings make the logit lens
# read back the word that is already there, the gap is largest.
#
# But note what was bought. The logit lens is a fixed reader; the tuned lens is a **probe**, trained on the model's own answers. It
# finds whatever a linear map can predict of the output, used by the model or not. It answers "what could be known here?", not "what
# does the model hold here?".
#
# ## 4. Does `lab` think in English?
# [@wendler2024llamas] asked Llama 2 for translations from French to Chinese and saw, in middle layers, the *English* word in the logit lens.
# The world of `lab` has three languages, and English is its **pivot**: 60 % of the multilingual text. Ask for the German word for a French one,
# and read three words of the same concept at each layer. The grey band is the control: the English words of ten *other* concepts.

# %% label="pivot"
translation = world.task("translation", split="test", n=400)
keep = [label["source"] == "fr" and label["language"] == "de" for label in translation.labels]
german = translation.subset(keep)
layers = [f"x{layer}@-1" for layer in range(L + 1)]
concepts = [label["by_language"] for label in german.labels]


def by_layer(words, lens=None):
    """Mean probability of one word per prompt at each layer."""
    return projection.read_tokens(model, german.prompts, words, layers, lens=lens).prob.mean(1)


rng = random.Random(0)
others = [[rng.choice([c for c in concepts if c != own])["en"] for own in concepts] for _ in range(10)]
null = torch.stack([by_layer(words) for words in others])
names = {"de": "German (the answer)", "en": "English (the pivot)", "fr": "French (in the prompt)"}
plain = {names[lang]: by_layer([c[lang] for c in concepts]) for lang in names}
tuned = {names[lang]: by_layer([c[lang] for c in concepts], lens) for lang in names}
show(
    curves(
        range(L + 1),
        plain,
        null=null,
        xlabel="state x^l",
        ylabel="mean probability",
        title=f"French to German, logit lens, {len(german)} prompts",
    ),
    alt="Probability by layer. The English word rises to about a quarter at x4 and a third at x5, above "
    "the German "
    "one at x4, then falls to zero, while German reaches one. French stays low; other English words stay "
    "at zero.",
    reading="The logit lens shows the English word on the way to the German answer, and no other English "
    "word.",
)
assert plain[names["en"]][4] > plain[names["de"]][4] + 0.1 and plain[names["en"]][6] < 0.01

# %% [markdown]
# As published: on the way from French to German stands the right English word, at $x^4$ ahead of the answer, while English words of other
# concepts (the band) are not there at all. Before we conclude that `lab` translates through English, three more readings.

# %% label="pivot_controls" tags=["nbval-check-output"]
print("probability at x4        logit lens   tuned lens")
for name in plain:
    print(f"{name:24} {plain[name][4]:10.2f} {tuned[name][4]:12.2f}")
print("\nlogit lens at x4, by direction    answer   third language")
for source, target in (("fr", "de"), ("de", "fr"), ("fr", "en"), ("de", "en")):
    some = [label["source"] == source and label["language"] == target for label in translation.labels]
    task, third = translation.subset(some), ({"en", "fr", "de"} - {source, target}).pop()
    p = [
        projection.read_tokens(
            model, task.prompts, [label["by_language"][lang] for label in task.labels], ["x4@-1"]
        )
        for lang in (target, third)
    ]
    print(
        f"{source} -> {target}, third: {third}, n = {len(task):3} {p[0].prob.mean():16.2f} "
        f"{p[1].prob.mean():16.2f}"
    )
    if (source, target) == ("de", "fr"):
        french_pivot = p[1].prob.mean()
assert tuned[names["en"]][4] < 0.1 < 0.4 < tuned[names["de"]][4] and french_pivot < 0.1

# %% [markdown]
# 1. The tuned lens reads German at the same layer, and hardly any English. So at $x^4$ the state already tells a trained reader that the answer is
#    German; it merely lies closer to the *output direction* of the English word than to that of the German one.
# 2. From German to French, English hardly appears. If the model translated through English, one would expect it in both
#    directions.
# 3. English can only be the pivot where it is neither source nor target. The last two rows show how much of a third language one sees anyway.
#
# Wendler et al. read their own curves in this careful way: a space of concepts, whose output coordinates lie closer to English. The survey
# takes the pivot as confirmed (section 5.2.1). What would decide it is a model trained on a balanced corpus: its bump should go. No
# such model ships with this version of the course, so here the question stays open.
#
# ## 5. Who wrote the answer?
# The lens reads whole states. Since a state is a sum of writes, its logits are a sum too: **direct logit attribution** (DLA), from chapter 01.
# For head $h$, with $u$ the column of the unembedding for the target minus that for the foil (final norm's gain and centring folded in),
#
# $$\mathrm{DLA}_h = \frac{(z_h W_{O,h}) \cdot u}{s}$$
#
# with $1/s$ the final norm's scale, frozen at the actual run. Only the last token's writes reach the last logit, so it takes $z$ at one
# position and one forward pass for all heads. In front of the product you have a choice: form each head's result first, or carry $u$ back
# through $W_O$.

# %% [markdown] exercise="projection.head_attribution" difficulty=3 minutes=10
# ### Exercise: what each head adds to the answer
# Write `head_attribution(z, W_O, u, scale)`: `z` is `[B, H, d_head]`, `W_O` `[H, d_head, d]`, `u` `[B, d]`, `scale` `[B, 1]`, the factor
# $1/s$ of each prompt. Return `[B, H]`.


# %%
def head_attribution(z, W_O, u, scale):
    """What each head adds directly to the answer's logit: [B, H]."""
    ### BEGIN SOLUTION
    return torch.einsum("bhn,hnd,bd->bh", z, W_O, u) * scale
    ### END SOLUTION


# %%
head_attribution = check("projection.head_attribution", head_attribution)

# %% [markdown]
# On 100 prompts of the indirect-object task [@wang2022interpretability]: `anna and ben met at the market and anna handed the ring to` ... `ben`.
# First, does everything sum up? `direct.split_logit` splits the logit difference over heads, FFNs, embeddings and biases.

# %% label="ioi_split" tags=["nbval-check-output"]
ioi = world.task("ioi", split="test", n=100)
cache = mi.record(model, ioi.prompts, [f"z{layer}@-1" for layer in range(L)] + [f"x{L}@-1"])
columns = unembedding.W_U.T[ioi.target_ids(model)] - unembedding.W_U.T[ioi.foil_ids(model)]
u = unembedding.norm.centre(unembedding.norm.gain * columns)  # [B, d]
scale = unembedding.norm.scale(cache[f"x{L}@-1"])  # [B, 1]
by_head = torch.stack(
    [head_attribution(cache[f"z{l}@-1"], weights.attention_output(model, l)[0], u, scale) for l in range(L)],
    1,
)  # [B, L, H]

split = direct.split_logit(model, ioi.prompts, ioi.targets, ioi.foils, units="heads")
same = torch.stack([split[f"L{l}H{h}"] for l in range(L) for h in range(H)], 1).view(-1, L, H)
gap = (split.values.sum(0) - ioi.measure(model)).abs().max()
print(f"{len(split.names)} parts; sum = logit difference of the model: {bool(gap < 1e-3)}")
print(f"heads as yours: {torch.allclose(same, by_head, atol=1e-4)}")
for group in ("heads", "attn biases", "FFNs", "embedding", "position", "norm bias"):
    chosen = {
        "heads": lambda n: n[0] == "L",
        "attn biases": lambda n: n.startswith("attn"),
        "FFNs": lambda n: n.startswith("mlp"),
        "embedding": lambda n: n == "embed",
        "position": lambda n: n == "pos",
        "norm bias": lambda n: n == "bias",
    }[group]
    total = sum(split[name].mean() for name in split.names if chosen(name))
    print(f"   {group:12} {round(total.item(), 2) + 0.0:+6.2f}")
assert gap < 1e-3 and torch.allclose(same, by_head, atol=1e-4)

# %% [markdown]
# Now compare with what happens when a head is really removed (mean ablation, chapter 06). DLA predicts that removing a head takes away its
# share, so the prediction is minus the DLA. The band is the null of the predictions (a star: outside it): what DLA gives for a question that no head answers, with
# target and foil replaced by two random first names.

# %% label="ioi_heads"
sites = causal.heads(model)
dla, exact = direct.direct_effects(model, ioi, sites), causal.ablate_each(model, ioi, sites, "mean")
draws = []
for seed in range(20):
    rng = random.Random(seed)
    pairs = [rng.sample(lexicon.FIRST, 2) for _ in range(len(ioi))]
    unrelated = replace(ioi, targets=[a for a, _ in pairs], foils=[b for _, b in pairs], corrupted=None)
    draws.append(direct.direct_effects(model, unrelated, sites).values)
band = null_band([value for draw in draws for value in draw])
top = exact.top(8)
pairs = {f"{s[:-2]}, {what}": value for s in top for what, value in (("DLA", -dla[s]), ("removed", exact[s]))}
show(
    bars(
        pairs,
        null=band,
        xlabel="change of the logit difference",
        title="Indirect object: predicted by DLA, and measured",
    ),
    alt="Pairs of bars for the eight heads with the largest ablation effect: predicted by direct logit "
    "attribution, and removed. L2H3 is predicted to cost 0.4 and costs 3.4; L3H1 is predicted to cost 1.7 "
    "and costs 0.8; for L0H0 and L2H0 the prediction is nothing.",
    reading="The head that matters most, L2H3, adds little directly: others carry its message on.",
)
print(f"rank correlation of |DLA| and |effect| over {len(sites)} heads: {dla.spearman(exact):.2f}")
for layer in range(L):
    own = [s for s in sites if s.startswith(f"L{layer}")]
    real, predicted = (sum(scores[s] for s in own) for scores in (exact, dla))
    print(f"layer {layer}: removed {real:+.2f}, predicted {-predicted:+.2f}")
assert exact["L2H3.z"] < -2.5 and abs(dla["L2H3.z"]) < 1 and dla.spearman(exact) < 0.7
assert 0.4 < -exact["L3H1.z"] / dla["L3H1.z"] < 0.6
assert all(dla[s] < 0 and exact[s] > 2 * -dla[s] for s in ("L5H2.z", "L4H2.z"))

# %% [markdown]
# L2H3 is decisive, and DLA credits it with little more than a tenth of its effect: what it writes is read by later layers, which then move the logit. Heads of layer 0 stand no
# chance. The reverse is L3H1: DLA promises a loss of 1.7 logits and half of that comes, since what follows reacts to the loss. L5H2 and L4H2 write *against* the answer, and
# removing them helps, by twice and by eight times what DLA says; Wang et al. call such heads of GPT-2 negative name movers. DLA has its place: it is exact about the last step,
# and it costs one forward pass instead of one per head. It is no measure of importance.
#
# **Features.** The same split works for an SAE (chapter 04), if one remembers what an SAE does not explain: $x = \sum_j a_j f_j + b_{dec} + e$. The
# error $e$ is a term of its own; leave it out and the sum is wrong.

# %% [markdown] exercise="projection.feature_attribution" difficulty=3 minutes=10
# ### Exercise: what each feature adds to the answer
# Write `feature_attribution(x, sae, u)`: states `[B, d]`, an SAE (with `encode`, `decode`, `W_dec` `[m, d]`, `b_dec` `[d]`) and directions
# `[B, d]`. Return three tensors, features `[B, m]`, error `[B]`, bias `[B]`, which add up to $x \cdot u$.


# %%
def feature_attribution(x, sae, u):
    """x . u as a sum over features [B, m], the SAE's error [B] and its bias [B]."""
    ### BEGIN SOLUTION
    a = sae.encode(x)
    features = a * (u @ sae.W_dec.T)
    return features, ((x - sae.decode(a)) * u).sum(-1), u @ sae.b_dec
    ### END SOLUTION


# %%
feature_attribution = check("projection.feature_attribution", feature_attribution)

# %% [markdown]
# For the facts, the SAE of $x^3$ and the blocks above it. What comes directly from $x^3$, and how much of that do the features own?

# %% label="features" tags=["nbval-check-output"]
sae = world.sae("x3-topk")
model.saes["sae"] = sae
cache = mi.record(model, facts.prompts, ["x3@-1", f"x{L}@-1"])
reader, bias = direct.answer_reader(
    model, cache[f"x{L}@-1"], facts.target_ids(model).tolist(), facts.foil_ids(model).tolist(), len(facts)
)
features, error, b_dec = feature_attribution(cache["x3@-1"], sae, reader)
split = direct.split_logit(model, facts.prompts, facts.targets, facts.foils, units="sae")
assert torch.allclose(split["sae.error"], error, atol=1e-4)
later = sum(split[name] for name in split.names if name[:3] in ("att", "mlp"))
print(f"logit difference {facts.measure(model).mean():6.2f}")
for name, part in (
    (f"{int((features != 0).sum(1).float().mean())} features", features.sum(1)),
    ("error", error),
    ("b_dec", b_dec),
    ("later blocks", later),
    ("norm bias", bias),
):
    print(f"   {name:14} {part.mean() + 0.0:6.2f}")
total = features.sum(1) + error + b_dec + later + bias
print(f"sums to the logit: {torch.allclose(total, facts.measure(model), atol=1e-3)}")
assert torch.allclose(total, facts.measure(model), atol=1e-3) and later.mean() > features.sum(1).mean()

# %% [markdown]
# Most of the answer is written after $x^3$: features that start those writes get no credit. Chapter 10 follows such paths.
#
# ## 6. What does this neuron mean?
# A neuron writes its value $v_j$ times its activation (chapter 03). Project $v_j$, and out come words: those the neuron raises
# [@geva2021transformer]. The same with a feature $f_j$. It is customary to print the top ten and give it a name. But *any* vector has a
# top ten, and people find a theme in any ten words. So we need a number for "one theme", and its null. Ours: label the words by kind, and take the
# share of the commonest kind in the list, its **purity**.

# %% [markdown] exercise="projection.purity" difficulty=2 minutes=7
# ### Exercise: the purity of a list
# Write `purity(ids, labels)`: token ids `[n, k]`, n lists of k tokens; labels `[V]`, the kind of each token, below 0 where it has none. Return
# `[n]`: the share of the commonest kind in each list. Tokens without a kind belong to no group.


# %%
def purity(ids, labels):
    """Share of the commonest label in each list of tokens: ids [n, k], labels [V] -> [n]."""
    ### BEGIN SOLUTION
    found = labels[ids]
    counts = torch.stack([(found == label).sum(1) for label in labels[labels >= 0].unique()])
    return counts.amax(0) / ids.shape[1]
    ### END SOLUTION


# %%
purity = check("projection.purity", purity)

# %% [markdown]
# Two nulls. *Random mixtures*: random sums of all values of the layer, so any direction that the layer can write. *Frequency*: lists drawn at random
# by how often words occur. "Above" is the share of lists purer than 95 % of the mixtures; 0.05 is chance. The last two columns compare the
# purest lists: the mean of the ten purest of 512.

# %% label="token_purity" tags=["nbval-check-output"]
lx = lexicon
groups = {"first names": lx.FIRST, "last names": lx.LAST, "jobs": lx.PROFESSIONS, "countries": lx.COUNTRIES}
groups |= {"cities": lx.CITIES, "sports": lx.SPORTS, "drinks": lx.DRINKS, "pets": lx.PETS, "years": lx.YEARS}
groups |= {
    "materials": lx.MATERIALS,
    "sights": lx.FAMOUS,
    "digits": lx.DIGITS,
    "good": lx.GOOD,
    "bad": lx.BAD,
}
for i, lang in enumerate(lx.LANGUAGES):
    groups[f"nouns {lang}"] = [word[i] for word in lx.NOUNS.values()]
    groups[f"verbs {lang}"] = [word[i] for word in lx.VERBS.values()]
    groups[f"adjectives {lang}"] = [word[i] for pair in lx.ANTONYMS for word in pair]
taken = {}
for name, words in groups.items():  # a word keeps the first kind that lists it
    groups[name] = [word for word in words if taken.setdefault(word, name) == name]
labels = token_lists.label_tokens(model, groups)
ids = model.tokenize(train)
counts = torch.bincount(ids.ids[ids.mask.bool()], minlength=model.n_vocab)
k = 8
frequent = purity(token_lists.frequency_lists(counts, k, 512), labels)
print(f"{int((labels >= 0).sum())} words in {len(groups)} kinds; lists by frequency: {frequent.mean():.2f}")
print("                mean   mixtures   above   ten purest   of mixtures, mean and s.d.")
vectors = {f"neurons {layer}": neuron_values(model, layer) for layer in range(L)}
vectors["x3 features"] = stream_directions(model, sae)
own_purity, above, best, luck = {}, {}, {}, {}
for name, rows in vectors.items():
    own = purity(token_lists.top_tokens(model, rows, k), labels)
    mixed = [
        purity(token_lists.top_tokens(model, token_lists.random_directions(512, rows, seed=seed), k), labels)
        for seed in range(10)
    ]
    own_purity[name], above[name] = own, (own > torch.cat(mixed).quantile(0.95)).float().mean()
    best[name] = own.topk(10).values.mean().item()
    luck[name] = null_band([draw.topk(10).values.mean() for draw in mixed])
    mean = torch.cat(mixed).mean()
    print(f"{name:14} {own.mean():5.2f} {mean:10.2f} {above[name]:7.2f} {best[name]:12.2f}", end="")
    print(f"{luck[name].mean:13.2f} {luck[name].sd:.2f}")
for name in ("neurons 5", "x3 features"):
    ids = token_lists.top_tokens(model, vectors[name], k)[own_purity[name].topk(3).indices]
    print(f"purest of {name}:", " | ".join(" ".join(row[:4]) for row in token_lists.words(model, ids)))
assert max(above.values()) < 0.2
assert all(best[name] > luck[name].high + 0.1 for name in ("neurons 4", "neurons 5", "x3 features"))

# %% [markdown]
# Both halves of that table matter. In layers 4 and 5, and among the features, the purest lists are far purer than the purest of as many random
# directions: lists such as "eight last names" are real. But they are the exception. The average list is hardly purer than that of a random
# direction, nine in ten vectors or more lie within the null, and in layers 0 and 2 even the ten purest are only just beyond luck.
# Printing the best lists, as papers do, is a choice from 3,072; say from how many, and what luck gives.
#
# Is a clean list true? The causal check: turn the neuron up where it fires most, and see whether *its* words gain. The control is the same change,
# read on the lists of 200 other neurons of the layer.

# %% label="amplify" tags=["nbval-check-output"]
print("neuron    words it raises (first five)         they gain   other lists, mean and s.d.")
for layer in (3, 4, 5):
    lists = token_lists.top_tokens(model, neuron_values(model, layer), k)
    j = int(own_purity[f"neurons {layer}"].argmax())
    site = f"L{layer}N{j}"
    activation = mi.record(model, held_out, [f"{site}@-1"])[f"{site}@-1"]
    chosen = [held_out[i] for i in activation.topk(10).indices.tolist()]
    before = model.last_logits(chosen)
    with mi.intervene(model, mi.scale(site, 5.0, positions="last")):
        change = model.last_logits(chosen) - before  # [10, V]
    change = (change - change.mean(1, keepdim=True)).mean(0)
    others = null_band([change[lists[rng.randrange(model.d_ffn)]].mean() for _ in range(200)])
    words = " ".join(token_lists.words(model, lists[j][None])[0][:5])
    print(f"{site:8}  {words:38} {change[lists[j]].mean():+.2f}   {others.mean:+.2f} {others.sd:.2f}")
    assert change[lists[j]].mean() > others.high

# %% [markdown]
# Turned up five times, each of the three raises its own words, in layer 3 by little, and not those of other neurons' lists. That is what the projection promised:
# the direct effect. It is also all it promised; for a neuron of layer 0 the way through the layers above can do something else.
#
# ## 7. Patchscopes: let the model read
# Instead of a fixed dictionary, use the model: put the state into *another* prompt, one that asks for what you want to know, and see what it
# says [@ghandeharioun2024patchscopes] (the survey lists a later study of personas that uses it,
# [@ghandeharioun2024whos]). Here is a prompt that makes `lab` repeat a word: `note : paul . we read that` is continued by `paul`. Put a
# state in the place of `paul`, and the model must say what it finds in it.

# %% [markdown] exercise="projection.patchscope" difficulty=3 minutes=10
# ### Exercise: a Patchscope
# Write `patchscope(model, source, target, layer, position)`. Take $x^{layer}$ of the last token of the prompt `source`, put it in at the same layer
# and at `position` of the prompt `target`, and return the logits `[V]` for the next token of `target`. You need `mi.record`, `mi.intervene`
# and `mi.patch(site, value, positions=...)`.


# %%
def patchscope(model, source, target, layer, position):
    """Next-token logits [V] of `target` with the source's last state in place of its own at `position`."""
    ### BEGIN SOLUTION
    state = mi.record(model, [source], [f"x{layer}@-1"])[f"x{layer}@-1"]
    with mi.intervene(model, mi.patch(f"x{layer}@{position}", state)):
        return model.last_logits([target])[0]
    ### END SOLUTION


# %%
patchscope = check("projection.patchscope", patchscope)

# %% [markdown]
# How often does the model name the source's last word, by the layer of the state? We put the state in at its own layer, as published, and also at
# $x^1$. The null is the state of another word. (`<bos>` is at position 0, so `paul` is at 3.)

# %% label="identity"
repeat = "note : paul . we read that"
print(
    "x1 of `the dog`:", model.tokenizer.decode([patchscope(model, "the dog", repeat, 1, 3).argmax().item()])
)
words = [word[0] for word in lx.NOUNS.values()] + lx.GIFTS + lx.DRINKS
sources = [f"the {word}" for word in words]
put_in = {"its own state, same layer": {}, "its own state, at x1": {"target_layer": 1}}
put_in["another word's state, at x1"] = {"target_layer": 1, "null": True}
named = {
    name: patchscopes.recovery(model, sources, words, repeat, target_position=3, **how).values
    for name, how in put_in.items()
}
named["logit lens"] = projection.read_tokens(model, sources, words, layers).rank.eq(0).float().mean(1)
show(
    curves(
        range(L + 1),
        named,
        xlabel="state x^l",
        ylabel="share of words named",
        title=f"Which word is this? {len(words)} words",
    ),
    alt="Share of words named by layer of the state. Patched at its own layer: from 1 at x0 to about two "
    "thirds at x3, then zero. Patched at x1: 0.9 to 1 from x1 to x3, about 0.7 at x4, 0.2 at x5, and zero "
    "for x0. Another word's state: zero. The logit lens: 1 at x0, then zero.",
    reading="The word stays readable far up, if the layers that can read it still lie ahead; the logit lens "
    "loses it at once.",
)
same, at_1, other, by_lens = named.values()
assert same[1] > 0.7 and same[4] < 0.1 and at_1[4] > 0.5 and other.max() < 0.1 and by_lens[1] < 0.1

# %% [markdown]
# The logit lens reads what comes *next*; which word stands *here* it loses at once. The Patchscope recovers it. But look at where the state was put
# in. At its own layer, as is usual, the curve falls to zero at $x^4$, and one might conclude that the word is gone. Put in at $x^1$, the same
# states still give it away in seven of ten cases: what repeats a word in the target apparently happens below layer 4, and a state put in above
# that comes too late. (At $x^0$ it is the other way round: $x^1$ is not where a raw embedding belongs.) So a Patchscope that reads nothing may only say that the *target* could not read. And one that reads
# something shows that these layers can turn the state into the word, not that the source run does so.
#
# ## 8. Contrasting layers
# If early layers propose the usual and late layers correct it, then the *change* may be worth more than the result. DoLa
# [@chuang2024dola] decodes with it: among the tokens that the final layer finds plausible, $p_{final}(t) \geq \alpha \max p_{final}$, take the
# softmax of $\log p_{final}(t) - \log p_{M}(t)$. The layer $M$ is the one farthest from the final one by the Jensen-Shannon divergence,
# $\mathrm{JSD}(p, q) = \frac12 \mathrm{KL}(p \| m) + \frac12 \mathrm{KL}(q \| m)$ with $m = \frac12(p + q)$.

# %% [markdown] exercise="projection.layer_contrast" difficulty=4 minutes=12
# ### Exercise: contrast two layers
# Write `layer_contrast(p, alpha)`: `p` is `[L, V]`, the distributions read at L layers, the last of which is the final one. Return
# `(distribution, layer)`: the decoding distribution `[V]`, 0 for implausible tokens, and the number of the layer that was contrasted.


# %%
def layer_contrast(p, alpha):
    """DoLa for one prompt: p [L, V] -> (distribution [V], contrasted layer)."""
    ### BEGIN SOLUTION
    final, early = p[-1], p[:-1]
    middle = (early + final) / 2
    divergence = (torch.xlogy(final, final / middle) + torch.xlogy(early, early / middle)).sum(-1)
    layer = int(divergence.argmax())
    scores = (final / early[layer]).log()
    return scores.masked_fill(final < alpha * final.max(), -torch.inf).softmax(-1), layer
    ### END SOLUTION


# %%
layer_contrast = check("projection.layer_contrast", layer_contrast)

# %% [markdown]
# Does it help `lab`? On facts it makes no mistakes, so there is nothing to gain; we add questions about people of whom it knows nothing
# (`unknown`, where `i do not know` is right) and chains of look-ups without a scratchpad, of which it gets half. The control contrasts with a random layer.

# %% label="dola" tags=["nbval-check-output"]
print("task           n    final layer   DoLa   random layer   (accuracy, alpha = 0.1)")
change = {}
for name in ("facts", "unknown", "chain_direct"):
    task = world.task(name, split="test", n=200)
    p = projection.logit_lens(model, task.prompts)[1:]  # x1 ... xL; x0 reads back the word that is there
    ids = task.target_ids(model)
    plainly = (p[-1].argmax(-1) == ids).float().mean().item()
    contrasted = [int(layer_contrast(p[:, i], 0.1)[0].argmax()) for i in range(len(task))]
    anyhow = [
        int(layer_contrast(p[[rng.randrange(L - 1), -1], i], 0.1)[0].argmax()) for i in range(len(task))
    ]
    hit = [(torch.tensor(said) == ids).float().mean().item() for said in (contrasted, anyhow)]
    change[name] = hit[0] - plainly
    print(f"{name:12} {len(task):4} {plainly:12.3f} {hit[0]:8.3f} {hit[1]:10.3f}")
assert all(difference < 0.01 for difference in change.values())
overlap = projection.top_overlap(model, facts.prompts, k=10).mean(1)
print("overlap of the ten top tokens, block by block:", " ".join(f"{value:.2f}" for value in overlap))
assert overlap.argmin() == 0

# %% [markdown]
# It does not help. It costs a few points on each task, as many as contrasting with a random layer. Where `lab` is right, the contrast can only
# lose, and where it guesses, early layers hold no typical mistake to be taken away. The paper's gains are on long answers of large models;
# a decoding trick is a claim about a model and a kind of text.
#
# The last line is another comparison of layers, the **Jaccard overlap** of their top tokens (size of the intersection over size of the
# union). [@zeng2024lsaq] gives layers that change the list much, such as block 0, more bits. Chapter 23 uses it.
#
# ## 9. The backward lens
# A gradient that comes back to an FFN is a vector of the stream too. On one prompt, the gradient of $W_{out}$ is $\sum_i s_i^\top \delta_i$: activations
# $s_i$ that came in at token $i$, times $\delta_i$, the derivative of the loss by what the FFN wrote there. A gradient step subtracts it, so wherever the same
# activations come back, the FFN will write a multiple of $-\delta$ in addition. [@katz2024backwardlens] read $-\delta$ as words. We ask `lab` to learn
# something false: the foil in place of the answer.

# %% label="backward" tags=["nbval-check-output"]
false_facts = replace(facts.subset(60), targets=facts.targets[:60], foils=facts.foils[:60], metric="logprob")
false_facts = replace(false_facts, targets=false_facts.foils, foils=false_facts.targets)
deltas = backward_lens.vjps(model, false_facts)
W, last = folded_unembedding(model)[0], torch.arange(60)
step_reads = {
    f"mlp{l}": -deltas[f"mlp{l}"][last, model.tokenize(false_facts.prompts).last] @ W for l in range(L)
}
random_words = [rng.choice(list(taken)) for _ in range(60)]
asked = {"new answer": false_facts.targets, "old answer": false_facts.foils, "random word": random_words}
print(f"median rank, of {model.n_vocab}, among the tokens of -delta at the last token")
print("               " + "".join(f"mlp{l:<5}" for l in range(L)))
for name, words in asked.items():
    ids = torch.tensor([model.token_id(word) for word in words])[:, None]
    row = [projection.rank_of(reads, ids).median().item() for reads in step_reads.values()]
    print(f"{name:15}" + "".join(f"{int(r):<8}" for r in row))
    assert max(row) == 0 if name == "new answer" else min(row) > 50
elsewhere = backward_lens.backward_lens(model, false_facts, positions=[-2]).scores("rank")
print("new answer, one token earlier: " + " ".join(f"{int(r)}" for r in elsewhere.values))

one = false_facts.subset([0])
step = backward_lens.ffn_gradient(model, one, 4)["out"]  # [d_ffn, d], as W_out
W_out, lr = model.block(4).mlp.c_proj.weight, 3e-4
as_it_was, before = W_out.clone(), one.measure(model)
W_out -= lr * step
gained, predicted = (one.measure(model) - before).item(), (lr * step.pow(2).sum()).item()
W_out.copy_(as_it_was)
print(
    f"a step of size {lr} on W_out of FFN 4 raises log p(new answer) by {gained:.3f}; first order: "
    f"{predicted:.3f}"
)
assert abs(gained / predicted - 1) < 0.2

# %% [markdown]
# At the last token the new answer leads in every layer: each FFN is told to say it, and those of the last three layers to
# unsay the old one. One token earlier it stands near the
# end of the list (the last FFN gets no gradient there, so it reads nothing: the middle). This says how a step would *store* the fact, at the
# very place where it is asked. It does not say where the old fact is kept, which is what localizing would mean (chapter 20 edits facts).
#
# ## 10. The scoreboard
# Where the mechanism is known, how good is DLA at finding it? First the compiled models: **AUROC** (the chance that a true site outranks another;
# 0.5 is guessing) against their answer keys, over all heads and neurons, beside zero ablation.

# %% label="compiled_board" tags=["nbval-check-output"]
print("compiled model      DLA   zero ablation   true sites whose direct effect is 0")
direct_auroc = {}
for name in (
    "induction",
    "lookup",
    "cancelling",
    "backup",
    "saturated",
    "constant_bias",
    "polysemantic",
    "mediation",
):
    known = compiled.ALL[name]()
    toy = known.wrap()
    sites = causal.heads(toy) + [site for layer in range(toy.n_layers) for site in causal.neurons(toy, layer)]
    key = [f"{site}.z" if "H" in site else site for site in known.answer]
    scores, removed = (
        direct.direct_effects(toy, known.task, sites),
        causal.ablate_each(toy, known.task, sites),
    )
    direct_auroc[name] = scores.against(key)["auroc"]
    silent = sum(abs(scores[site]) < 1e-3 for site in key)
    row = f"{direct_auroc[name]:7.2f} {removed.against(key)['auroc']:12.2f}"
    print(f"{name:14} {row} {silent:10} of {len(key)}")
assert direct_auroc["induction"] < 1 and direct_auroc["lookup"] < 0.7 and direct_auroc["cancelling"] == 1

# %% [markdown]
# Early parts (the first head of induction, all look-up neurons) act through others, have no direct effect, and are missed. In `constant_bias` DLA does worse than guessing: the
# true head acts through neurons, and these, which are not in the key, get all the credit. In `backup` DLA beats
# ablation: it sees a head whose loss another head makes up for.
#
# Then the installed behaviours: put into known units of `lab` by training. Scores are the installed model's minus those of `lab`. The null is the
# AUROC of the same scores for random keys of the same size. The last columns show the sizes: what DLA says of the installed unit, and
# what removing it does.

# %% label="installed_board" tags=["nbval-check-output"]
print("behaviour      key       DLA  null (95 %)  ablation  |rank corr.|  DLA of the key   real effect")
board = {}
for name in ("refusal-a", "refusal-b", "sycophancy-a", "sycophancy-b", "bias-a", "bias-b"):
    task, key = installed_tasks.installed_task(name), installed_tasks.answer_key(name)
    scores = installed_tasks.installed_effect(direct.direct_effects, name, task, base=model)
    removed = installed_tasks.installed_effect(causal.ablate_each, name, task, base=model, kind="mean")
    hit, real = (installed_tasks.against_key(s, name)["auroc"] for s in (scores, removed))
    lucky = sorted(scores.against(rng.sample(scores.sites, len(key)))["auroc"] for _ in range(100))[95]
    board[name] = (
        hit,
        real,
        scores.spearman(removed),
        sum(scores[s] for s in key),
        sum(removed[s] for s in key),
    )
    print(
        f"{name:14} {' '.join(k.removesuffix('.z') for k in key):10} {hit:.2f} {lucky:10.2f} {real:10.2f}"
        f" {board[name][2]:10.2f} {board[name][3]:+14.2f} {board[name][4]:+14.2f}"
    )
assert (
    board["refusal-a"][0] < board["refusal-a"][1] and abs(board["refusal-a"][3]) < 1 < -board["refusal-a"][4]
)

# %% [markdown]
# - **It finds what speaks to the output.** The sycophancy heads write the answer, and DLA puts them first. (With six FFNs to choose from, as for
#   `bias`, coming first is worth little: one random key in six does as well.)
# - **It misses what acts through others.** The refusal heads sit in layers 2 and 3. Removing them costs 17 to 19 logits, of which DLA sees a third of *one*; for
#   `refusal-a` the ranking is within luck.
# - **Its sizes are not effects.** Over all units, its rank correlation with ablation never reaches 0.5, not even where it finds the key.
#
# ## 11. What the survey says, and where it is loose
# - **Eq. 16 has no final norm**; section 1.
# - **The softmax of a weight vector.** Eq. 16 invites to take one of $v_j W_U$ and $f_j W_U$ too. A static vector is never alone in the stream, so
#   that would be the probability of nothing. Report logits or ranks, with a null; section 6.
# - **Decomposing the prediction** (section 2.2): the last state is a sum of writes; its logits are one only after the final norm's scale is frozen.
# - **Tuned lens** is cited as an example of projecting states. It is a trained probe and needs held-out text; section 3.
# - **English as a pivot** is taken as confirmed; section 4.
# - The survey says itself that projection is weak where the basis changes with depth and for parts of a layer. Add: it never says so when it fails.
#
# ## 12. Papers that use this
# - the lens [@nostalgebraist2020logit] and its trained form [@belrose2023eliciting]; Patchscopes used to see what a refusing model
#   would have said [@ghandeharioun2024whos]
# - languages: [@wendler2024llamas], [@wu2025the], [@wang-etal-2025-lost-multilinguality], [@nie-etal-2025-mechanistic]
# - decoding with layers: [@chuang2024dola], [@chen2024incontext]; heads and neurons behind an option bias: [@liAnchoredAnswersUnravelling2025]
# - gradients as words: [@katz2024backwardlens]; layer importance for quantization: [@zeng2024lsaq]; policies of inner layers:
#   [@tanvocab_2025arxiv]
#
# ## 13. The same on a real model
# The function prints the lens of a prompt and the heads with the largest direct attribution. It runs on `lab-llama` as it stands; put a
# Hugging Face name into `REAL` for another.


# %% label="real"
def look_inside(model, prompt, target, foil):
    """Print p(target) and its rank by layer, and the three heads that add most to target minus foil."""
    sites = [f"x{layer}@-1" for layer in range(model.n_layers + 1)]
    reading = projection.read_tokens(model, [prompt], [target], sites)
    print(f"{model.config.model_type}: {prompt} -> {target}")
    print("  rank by layer:", " ".join(str(int(r)) for r in reading.rank[:, 0]))
    task = mi.Task("one", [prompt], [target], foils=[foil])
    scores = direct.direct_effects(model, task)
    print("  heads:", ", ".join(f"{site} {scores[site]:+.2f}" for site in scores.top(3)))
    return reading


llama = mi.load("lab-llama")
reading = look_inside(llama, facts.prompts[0], facts.targets[0], facts.foils[0])
assert reading.rank[-1, 0] == 0
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    real = mi.load(REAL)
    look_inside(real, "The Eiffel Tower is in the city of", " Paris", " Rome")
    ask = patchscopes.identity_prompt([" cat", " sun", " tree"], "{w} :{w}", " ;", " x")
    for layer in range(0, real.n_layers, max(1, real.n_layers // 6)):
        state = patchscopes.source_states(real, ["The Eiffel Tower is in the city of Paris"], layer)
        print(f"  x{layer} says {patchscopes.patchscope_generate(real, state, layer, ask)}")

# %% [markdown]
# ## 14. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "The logit lens at layer 10 of 32 shows a wrong word with probability 0.97. What do you know?",
            [
                (
                    "The model believes in the wrong word at layer 10.",
                    "Only if the state is written in the output's basis there. The coded model of section 2 gives 1.00 for a wrong word "
                    "in every middle layer.",
                ),
                (
                    "The state lies close to that word's output direction; whether the model treats it so is open.",
                    "A trained reader for that layer, or a patch, would tell whether other information stands there in another code.",
                    True,
                ),
                ("The lens is broken at that layer.", "It may be right. Its certainty says nothing either way."),
            ],
        ),
        Question(
            "A head has a direct logit attribution of 0.0 on every prompt. May you prune it?",
            [
                ("Yes: it adds nothing to the answer.", "Nothing directly. The first head of the induction circuit has 0 and everything hangs on it."),
                (
                    "No: it may act through later layers.",
                    "DLA counts only the way from the head straight to the output. Ablation counts all ways.",
                    True,
                ),
                ("Only if its attention is uniform as well.", "Where it looks does not show whether its message is used."),
            ],
        ),
        Question(
            "The ten top tokens of neuron 1,234 are all cities. Which comparison says whether that is remarkable?",
            [
                ("With the ten top tokens of a random neuron.", "One comparison. And neuron 1,234 was probably not chosen at random."),
                (
                    "With the purest of as many random directions of the layer as neurons were looked at.",
                    "The choice of the best is part of the procedure, so the null must contain it.",
                    True,
                ),
                ("With the probability softmax(v W_U) of the cities.", "A static vector has no probabilities: its length is arbitrary."),
            ],
        ),
        Question(
            "A tuned lens reads the right answer at layer 3, the logit lens at layer 20. When does the model know the answer?",
            [
                ("At layer 3.", "A linear reader trained on the answers can find it there. A probe of any kind shows what could be known."),
                ("At layer 20.", "The output's own basis is reached then; nothing says that later layers did not use it before, in another basis."),
                (
                    "Neither lens says. Patch or ablate the state at layer 3 and see whether the answer follows.",
                    "Information and use are different questions; only an intervention answers the second.",
                    True,
                ),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 10 follows the indirect paths that this chapter could not see.
