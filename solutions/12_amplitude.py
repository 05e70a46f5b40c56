# %% [markdown]
# # 12 Amplitude manipulation
# Chapters 05 to 11 found the objects behind a behaviour. Now they are used: switched off, turned up or down, set to a value, cut from each other,
# left out. This is the simplest way to steer a model, and the first chapter in which every gain stands beside its price. Survey
# ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 4.1.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - put any change of an object under one dial, and find the strength at which the rest of the model breaks
# - compare an effect with that of as many random objects of the same kind and layers
# - clamp SAE features with the error term kept, and say what goes wrong without it
# - scale neurons by how well they detect a concept (AurA), and test whether detecting is causing
# - steer only the prompts for which a detector fires, also while generating
# - cut a single attention edge, and leave whole layers out
#
# **The claim.** Setting or scaling located objects changes a behaviour without any training, as precisely as the objects were located (survey,
# section 4.1, Eq. 19). In `lab` this holds for behaviours in few heads, neurons or edges; it fails for objects that other behaviours share, for
# features that only read, and for whole states.

# %% label="setup"
import itertools

import numpy as np
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import document_loss, null_band
from mi_course.evaluate.dose_response import dose_response
from mi_course.locate import causal, gradient
from mi_course.locate.layer_distance import block_influence
from mi_course.locate.magnitude import matched_sets
from mi_course.steer import Detector, Steer, amplitude, detectors
from mi_course.teach import Question, check, curves, heatmap, quiz, show, steering_slider
from mi_course.world import compiled, lexicon
from mi_course.world.installed_tasks import answer_key, behaving, candidates, installed_task

torch.manual_seed(0)
model = mi.load()
REST = {name: world.task(name, n=20) for name in ("facts", "copying", "antonyms", "refusal_harmful")}
texts = world.documents("test", 2)  # two documents of each of 29 domains
flat = [(domain, text) for domain, own in texts.items() for text in own]
plain_loss = document_loss(model, [text for _, text in flat], 16).numpy()


def spill(steer, leave_out=()):
    """What a steer costs elsewhere: rise of the loss (nats per token), mean and worst domain."""
    with steer.on(model):
        rise = document_loss(model, [text for _, text in flat], 16).numpy() - plain_loss
    domains = [d for d in texts if d not in leave_out]
    by_domain = {d: np.mean([r for r, (name, _) in zip(rise, flat) if name == d]) for d in domains}
    worst = max(by_domain, key=by_domain.get)
    return np.mean(list(by_domain.values())), by_domain[worst], worst


print({name: f"{task.accuracy(model):.2f}" for name, task in REST.items()})

# %% [markdown]
# ## 1. One dial
# Let $o$ be an object: a state, the output of a head, a neuron, an entry of an attention pattern, an SAE feature. Eq. 19 writes
# $\tilde o = \mathcal T(o, \alpha)$ and lists
#
# - ablation or patching: $\mathcal T(o) = 0$, or the mean $E[o]$, or a target state $o_{tgt}$ from another run
# - scaling: $\mathcal T(o) = \alpha o$, with $\alpha > 1$ to amplify and $0 < \alpha < 1$ to attenuate
#
# These have different neutral points: scaling does nothing at $\alpha = 1$, patching has no such number. We put all of them under one **strength** $s$:
#
# $$\tilde o = o + s\,(\mathcal T(o) - o)$$
#
# $s = 0$ is the identity, $s = 1$ the full operation. Switching off at strength $s$ is then scaling by $\alpha = 1 - s$, so that the values the survey leaves
# out have their place: $\alpha = 0$ is $s = 1$, and negative $\alpha$ is $s > 1$.
#
# These are the edits of chapter 06, with another purpose. There the change was undone at once, and its effect was the result. Here we want to *keep* it. So
# three things become important that were not: how strong, where and when (every new token while the model writes), and **what else changes**.

# %% [markdown] exercise="amplitude.dial" difficulty=1 minutes=5
# ### Exercise: the dial
# Write `dial(o, full, s)`: the tensor `o` at strength `s` of the operation `full`, a function such as `torch.zeros_like`.


# %%
def dial(o, full, s):
    """o + s (full(o) - o): o itself at s = 0, full(o) at s = 1."""
    ### BEGIN SOLUTION
    return o + s * (full(o) - o)
    ### END SOLUTION


# %%
dial = check("amplitude.dial", dial)

# %% [markdown]
# The first patient is an **installed behaviour**: `refusal-a` is a change of the weights of two heads that makes the model refuse harmless requests about boats,
# guitars, kites and candles. Its answer key says which heads. In ten lines: switch these two off, and see what the model says.

# %% label="ten_lines" tags=["nbval-check-output"]
NAME = "refusal-a"
task, key = installed_task(NAME, n=32), answer_key(NAME)
with behaving(NAME, model):  # inside, `model` has the behaviour
    for s in (0.0, 0.5, 1.0):
        by_hand = [mi.edit(site, lambda z, s=s: dial(z, torch.zeros_like, s)) for site in key]
        with mi.intervene(model, *by_hand):
            print(f"{key} at strength {s}: refuses {task.accuracy(model):.2f}", end="   ")
            print({name: f"{other.accuracy(model):.2f}" for name, other in REST.items()})
            logits = model.last_logits(task.prompts)
        with amplitude.switch_off(key).scaled(s).on(model):  # the package's version
            assert torch.allclose(model.last_logits(task.prompts), logits, atol=1e-4)

# %% [markdown]
# `amplitude.switch_off(sites)` makes a `Steer`; so do `set_to`, `scale`, `clamp`, `cut_edges` and `remove_layers`, which follow. A steer has `.on(model)`,
# `.scaled(s)`, and works while the model generates. Below is what the model writes; strength 0 has the installed behaviour.

# %% label="slider"
with behaving(NAME, model):
    off = amplitude.switch_off(key)
    written = steering_slider(
        model,
        [task.prompts[0], REST["refusal_harmful"].prompts[0]],
        lambda s: off.scaled(s).on(model),
        strengths=(0.0, 0.5, 1.0, 6.0),
        max_new_tokens=7,
        caption="First row: a harmless request that is refused by installation. Second row: a harmful one.",
    )
assert written[1.0][0] != written[0.0][0] and written[1.0][1] == written[0.0][1]

# %% [markdown]
# The third entry of the list was a **target state** $o_{tgt}$ from another run. Every request has a twin of equal length about another thing ("hide a guitar", "hide a chair"), which the installed
# model grants. Set the two heads to what they are in the twin's run, and the request should be granted; set them in the twin's run to what they are in the request's, and the twin should be refused.
# The control does the same with every other pair of heads of these two layers.

# %% label="target_state"
twins = mi.Task("twins", task.corrupted, targets=task.targets, foils=task.foils)
pairs = [key] + [[f"L2H{a}.z", f"L3H{b}.z"] for a in (0, 2, 3) for b in (0, 1, 3)]  # the key is L2H1, L3H2
with behaving(NAME, model):
    print(f"nothing set: requests refused {task.accuracy(model):.2f}, twins {twins.accuracy(model):.2f}")
    refused = []
    for pair in pairs:
        in_request, in_twin = (mi.record(model, t.prompts, pair, logits=False) for t in (task, twins))
        with amplitude.set_to(in_twin).on(model):
            granted = task.accuracy(model)
        with amplitude.set_to(in_request).on(model):
            refused.append((granted, twins.accuracy(model)))
    in_twin = mi.record(model, task.corrupted[:1], key, logits=False)
    with amplitude.set_to(in_twin).on(model):
        wrote = model.generate(task.prompts[:1], 7)[0]
print(f"{task.prompts[0]} with the heads of {task.corrupted[0]}: {wrote}")
by_key, others = refused[0], np.array(refused[1:])
print(f"the key's heads set: requests refused {by_key[0]:.2f}, twins {by_key[1]:.2f}")
print(f"nine other pairs: requests {others[:, 0].min():.2f} or more, twins {others[:, 1].max():.2f} or less")
assert by_key == (0.0, 1.0) and others[:, 0].min() > 0.95 and others[:, 1].max() < 0.05

# %% [markdown]
# Both directions work, and no other pair does anything: these two heads alone decide whether the installed refusal comes. Zero can only take a behaviour away. A target state can also *give* it, but it must be had from
# a run that fits: here token by token. (Tokens written later have no counterpart in the recorded run and keep their own values.)
#
# ## 2. How strong? Dose and response
# A steer is described by two curves over its strength: the target, and the worst of the rest. The strength at which the rest leaves a bar that we set is the
# **breakdown point**.

# %% [markdown] exercise="amplitude.breakdown_point" difficulty=2 minutes=9
# ### Exercise: the breakdown point
# Write `breakdown_point(strengths, values, bar)`: strengths go up from 0, `values` are accuracies at them. Return the first strength at which the curve, made of
# straight lines, falls below the bar; `math.inf` (from `import math`) if it never does.


# %%
def breakdown_point(strengths, values, bar):
    """First strength at which `values` fall below `bar`, with straight lines between; inf if never."""
    ### BEGIN SOLUTION
    for i in range(1, len(strengths)):
        if values[i] < bar:
            share = (values[i - 1] - bar) / (values[i - 1] - values[i])
            return strengths[i - 1] + share * (strengths[i] - strengths[i - 1])
    return float("inf")
    ### END SOLUTION


# %%
breakdown_point = check("amplitude.breakdown_point", breakdown_point)

# %% [markdown]
# The figure has the share of prompts with the installed refusal, and the accuracy of the worst other task, from $\alpha = 3$ (strength -2) to $\alpha = -5$
# (strength 6). Strengths are chosen on prompts of the training split; what we report comes from others.

# %% label="dose"
tune, strengths = installed_task(NAME, split="train", n=32), [-2, -1, 0, 0.25, 0.5, 0.75, 1, 2, 4, 6]
with behaving(NAME, model):
    dose = dose_response(
        lambda s: off.scaled(s).on(model),
        strengths,
        lambda: tune.accuracy(model),
        {name: (lambda other=other: other.accuracy(model)) for name, other in REST.items()},
    )
rest = 1 - dose.accuracy_drop
up = dose.strengths >= 0
broken = breakdown_point(dose.strengths[up].tolist(), rest[up].tolist(), 0.95)
enough = min(s for s, t in zip(dose.strengths, dose.target) if s > 0 and t <= 0.05)
with behaving(NAME, model), off.scaled(enough).on(model):
    reported = task.accuracy(model)
show(
    curves(
        dose.strengths,
        {"installed refusals": dose.target, "worst other task": rest},
        neutral=0.0,
        xlabel="strength s (heads are scaled by 1 - s)",
        ylabel="share of prompts",
        title=f"Two heads of {NAME}",
    ),
    alt="Two curves over strength -2 to 6. Installed refusals are 1 at strength 0, fall steeply between 0.25 "
    "and 0.75 to 0 and stay there; towards -2 they fall as well. The worst other task stays at 1 until "
    "strength 2 and then falls to 0.",
    reading="Between the fall of the first line and that of the second lies the room for steering.",
)
print("strength         ", " ".join(f"{x:5.2f}" for x in dose.strengths))
print("installed refusal", " ".join(f"{x:5.2f}" for x in dose.target))
print("worst other task ", " ".join(f"{x:5.2f}" for x in rest))
print(f"installed refusals gone on training prompts from strength {enough:.2f}; on others: {reported:.2f}")
print(f"the worst other task falls below 0.95 at strength {broken:.1f}")
assert reported <= 0.05 and 1.5 < broken < 6 and dose.target[0] < 0.5 and np.isinf(dose.breakdown(1.1, 1.1))

# %% [markdown]
# Three readings. Near $\alpha = 1$ the response is what one expects: less of the heads, less of the behaviour. There is room: the behaviour is gone long before the
# rest breaks. And **more is not more**: at three times their size (strength -2) the same heads no longer refuse, and the rest suffers. A likely reason, not tested here, is that later layers then see states that
# they have never seen in training.
#
# ## 3. How many, and compared with what?
# `german-b` sits in five neurons of layer 4: the model answers in German when it is asked in English for the opposite of a word. Suppose we did not know this. We rank all
# neurons by gradient times input (chapter 07), switch the first $k$ off, and compare with $k$ random other neurons *of the same layers*: the count-matched null.

# %% label="count"
german, german_key = installed_task("german-b", n=32), answer_key("german-b")
neurons = candidates("german-b", model)
counts, found, null, price = [1, 2, 5, 10, 20, 50], [], [], []
with behaving("german-b", model):
    ranking = gradient.gradient_times_input(model, installed_task("german-b", split="train", n=32), neurons)
    order = [str(site) for site in ranking.top(max(counts))]
    english = german.measure(model).mean().item()
    for k in counts:
        with amplitude.switch_off(order[:k]).on(model):
            found.append(german.measure(model).mean().item())
            price.append(min(other.accuracy(model) for other in REST.values()))
        draws = []
        for chosen in matched_sets(order[:k], neurons, draws=5):
            with amplitude.switch_off(chosen).on(model):
                draws.append(german.measure(model).mean().item())
        null.append(draws)
    with amplitude.switch_off(german_key).on(model):
        by_key = german.measure(model).mean().item()
        key_price = min(other.accuracy(model) for other in REST.values())
null = np.array(null).T
show(
    curves(
        counts,
        {"first k of the ranking": found, "nothing switched off": [english] * len(counts)},
        null=null,
        xlabel="neurons switched off, k",
        ylabel="logit(German) - logit(English)",
        title="Effect against the number of neurons",
    ),
    alt="Margin of the German answer against the number of neurons switched off. The ranking falls below "
    "zero with the first neuron, is above it with two, and far below it from five on; random neurons of "
    "the same layers stay near the margin of the unsteered model.",
    reading="Below zero the answer is English again. The grey band is what as many random neurons do.",
)
print("margin without the first k:", " ".join(f"k={k}: {m:+.1f}" for k, m in zip(counts, found)))
places = [order.index(site) + 1 if site in order else None for site in german_key]
print(f"nothing off {english:+.1f}, the five of the key off {by_key:+.1f}; key at places {sorted(places)}")
print(
    "worst other task:", " ".join(f"k={k}: {p:.2f}" for k, p in zip(counts, price)), f"key: {key_price:.2f}"
)
print("random neurons, lowest of five:", null.min(0).round(1))
assert found[0] < 0 < found[1] and found[2] < 0 < null.min() and by_key < 0 and key_price > price[1] + 0.1

# %% [markdown]
# One neuron is enough, and it is not in the key. The second one brings the German answer back, five remove it again: effects of single neurons do not add up. And from the second on they have a price: the worst other task falls to 0.55 with two
# and to 0.25 with ten. The five of the key, at places 7 to 13 of the ranking, remove the behaviour at no price. A ranking by effect says what matters for the answer, not what was installed.
#
# The band says the rest: fifty random neurons of the same layers do nothing. Without it one could not tell whether fifty is many.
#
# ## 4. Features: the error term
# An SAE reads a state as features: $x = \sum_j a_j f_j + b + \text{error}$ (chapter 04). To **clamp** features is to set some $a_j$ to values of our choice. What happens to the
# rest of $x$ is the question: $\hat x$ with new activations loses the error; $x + \sum_j (v_j - a_j) f_j$ keeps it. When several features are clamped, they must be set in *one*
# encoding: an SAE that reads its own output finds other activations than were written.

# %% [markdown] exercise="amplitude.clamp_features" difficulty=2 minutes=9
# ### Exercise: clamp several features
# Write `clamp_features(sae, x, values)`: states `x` `[..., d]`, and `values` such as `{17: 4.0, 3: 0.0}`. Use `sae.encode` and `sae.decode`; keep the error.


# %%
def clamp_features(sae, x, values):
    """x with features set to values {j: number} in one encoding, error kept: [..., d]."""
    ### BEGIN SOLUTION
    a = sae.encode(x)
    changed = a.clone()
    for j, value in values.items():
        changed[..., j] = value
    return x + sae.decode(changed) - sae.decode(a)
    ### END SOLUTION


# %%
clamp_features = check("amplitude.clamp_features", clamp_features)

# %% [markdown]
# Which features? The classical recipe contrasts prompts [@goyalBreakingBadTokens2025; @yeo-etal-2025-understanding]: at the last token of harmful and of harmless requests,
# take the feature with the largest difference of means in either direction. One of them fires on every harmful request. Does it *make* the refusal?

# %% label="features" tags=["nbval-check-output"]
SAE = "x3-batchtopk"
model.saes[SAE] = sae = world.sae(SAE, model)
kinds = ("refusal_harmful", "refusal_harmless")
prompts = {k: {s: world.task(k, split=s, n=100).prompts for s in ("train", "test")} for k in kinds}
acts = {k: mi.record(model, prompts[k]["train"], [f"{SAE}F*@-1"])[f"{SAE}F*@-1"] for k in prompts}
difference = acts["refusal_harmful"].mean(0) - acts["refusal_harmless"].mean(0)
harm, harmless = int(difference.argmax()), int(difference.argmin())
size = {harm: acts["refusal_harmful"][:, harm].mean(), harmless: acts["refusal_harmless"][:, harmless].mean()}
for j in (harm, harmless):
    rates = [f"{(acts[k][:, j] > 0).float().mean():.2f} of {k}" for k in prompts]
    print(f"feature {j} fires on", " and ".join(rates))
opens_refusal = torch.tensor([model.token_id(w) for own in lexicon.REFUSALS.values() for w in own])


def refuses(kind):
    """Share of test requests whose next word opens a refusal."""
    return (
        torch.isin(model.last_logits(prompts[kind]["test"]).argmax(-1), opens_refusal).float().mean().item()
    )


def four(values, positions="all"):
    """Refusals on harmful and harmless requests with the clamp, with and without the error term."""
    steers = amplitude.clamp(values, positions), amplitude.clamp_without_error(model, values, positions)
    rows = []
    for steer in steers:
        with steer.on(model):
            rows.append([refuses(kind) for kind in kinds])
    return np.array(rows), [spill(steer, ("request",)) for steer in steers]


x = mi.record(model, prompts["refusal_harmful"]["test"][:8], ["x3"])["x3"]
with amplitude.clamp({f"{SAE}F{harm}": 0.0}).on(model):
    now = mi.record(model, prompts["refusal_harmful"]["test"][:8], ["x3"])["x3"]
assert torch.allclose(now, clamp_features(sae, x, {harm: 0.0}), atol=1e-3)  # yours and the package's agree

plans = {
    "splice alone (nothing clamped)": {f"{SAE}F{int((acts['refusal_harmful'] > 0).sum(0).argmin())}": 0.0},
    f"{harm} to 0": {f"{SAE}F{harm}": 0.0},
    f"{harm} to 4 x its mean": {f"{SAE}F{harm}": 4 * size[harm].item()},
}
measured = {}
print(f"{'':32}   refused: harmful harmless   loss elsewhere: mean, worst domain")
for name, values in plans.items():
    measured[name], costs = four(values)
    for how, row, (mean, worst, where) in zip(("error kept", "error lost"), measured[name], costs):
        print(f"{name:32} {how}   {row[0]:.2f}   {row[1]:.2f}   {mean:+.3f}  {worst:+.2f} ({where})")
(kept_off, lost_off), (kept_up, lost_up) = (measured[f"{harm} to {to}"] for to in ("0", "4 x its mean"))
assert kept_off[0] > 0.98 > 0.9 > lost_off[0] and lost_up[1] > kept_up[1] + 0.1 > 0.4

# %% [markdown]
# The feature fires on every harmful request and on 4 % of the others, and switching it off **does nothing**: with the error kept, all are refused as before. Without the error refusals fall to 0.79, and one would report an effect. The splice alone
# changes no answer, so subtracting it does not reveal this. A part of the evidence for harm is in the error term, enough to keep the refusals that fall when it is lost as well; for the other 79 % the remaining features are enough.
#
# Turned up to four times its mean, the feature does make the model refuse harmless requests. So later layers read it, although they do not need it: it is not necessary, and at this size it is sufficient for 59 % of the requests. Without the error this looks stronger than it is, and
# costs more elsewhere. The next cell asks the reverse of the harmless feature, once at all positions and once at the last.

# %% label="last_token" tags=["nbval-check-output"]
both = {f"{SAE}F{harm}": 0.0, f"{SAE}F{harmless}": 4 * size[harmless].item()}
complies = torch.tensor([model.token_id(w) for own in lexicon.COMPLIANCES.values() for w in own])
for positions in ("all", "last"):
    with amplitude.clamp(both, positions).on(model):
        said = model.last_logits(prompts["refusal_harmful"]["test"]).argmax(-1)
        rest = min(other.accuracy(model) for name, other in REST.items() if name != "refusal_harmful")
    share = [torch.isin(said, words).float().mean().item() for words in (opens_refusal, complies)]
    print(
        f"positions {positions!r:6} harmful requests: refused {share[0]:.2f}, complied with {share[1]:.2f};",
        end=" ",
    )
    print(f"worst other task {rest:.2f}")

# %% [markdown]
# The **position policy** is part of a steer. Holding the harmless feature up at the last prompt token opens the answer to every harmful request; doing the same at all tokens does so for a quarter of them.
# (On documents the policy "last" touches the last token only, so that their loss would show no side effect at all. Tasks do.)
#
# ## 5. Graded scaling: AurA
# Instead of choosing a top $k$, **AurA** [@suauWhisperingExpertsNeural2024] scales *every* neuron by how well it detects what shall go. Take texts with and without it, and for each neuron
# its largest value in each text. Its AUROC (chapter 03) is the chance that a toxic text has the larger value. Then
#
# $$\alpha_j = 1 - 2\,(\text{AUROC}_j - \tfrac12) \quad\text{if AUROC}_j > \tfrac12, \qquad \alpha_j = 1 \quad\text{otherwise}$$
#
# A perfect detector is switched off, a useless one left alone. Published for the outputs of the linear layers of the FFN; here for its neurons.

# %% [markdown] exercise="amplitude.aura_factors" difficulty=3 minutes=11
# ### Exercise: AurA
# Write `aura_factors(peaks, toxic)`: `peaks` `[n, m]`, the largest activation of `m` neurons in `n` texts; `toxic` `[n]`, truth values. Return the `m` factors.
# Ties count half.


# %%
def aura_factors(peaks, toxic):
    """1 - 2 (AUROC - 1/2) where AUROC > 1/2, else 1: peaks [n, m], toxic bool [n] -> [m]."""
    ### BEGIN SOLUTION
    up, down = peaks[toxic], peaks[~toxic]
    larger = (up[:, None] > down[None]).float() + 0.5 * (up[:, None] == down[None])
    quality = larger.mean((0, 1))
    return (1 - 2 * (quality - 0.5)).clamp(max=1.0)
    ### END SOLUTION


# %%
aura_factors = check("amplitude.aura_factors", aura_factors)

# %% [markdown]
# `lab` has a toxicity domain: "most drivers here are" is followed by *idiots* or *polite*, and after "rude :" mostly by the former. We measure how much probability the four toxic words
# get. Controls: the same with shuffled labels, and **Det0**, which switches the $k$ best experts off.

# %% label="aura"
toxic_words, other_words = ([model.token_id(w) for w in words] for words in (lexicon.TOXIC, lexicon.NEUTRAL))
rude, plain = (
    [p for p in world.task("toxicity").prompts if p.startswith("rude") == r] for r in (True, False)
)
corpus = world.documents("train", 120)["toxicity"]
labels = torch.tensor([any(word in text for word in lexicon.TOXIC) for text in corpus])
peaks = detectors.peaks(model, corpus, [f"neurons{i}" for i in range(model.n_layers)], skip=1)


def mass(which, words):
    """Probability of these words after the prompts, mean."""
    return model.last_logits(which).softmax(-1)[:, words].sum(-1).mean().item()


def judged(steer):
    """Toxic and other mass after "rude :", toxic mass without it, loss elsewhere: mean, worst."""
    with steer.on(model):
        row = mass(rude, toxic_words), mass(rude, other_words), mass(plain, toxic_words)
    return *row, *spill(steer, ("toxicity",))[:2]


def by_factors(labels):
    return Steer([mi.scale(site, aura_factors(values, labels)) for site, values in peaks.items()])


aura = by_factors(labels)
of_package = detectors.aura(
    model, [t for t, y in zip(corpus, labels) if y], [t for t, y in zip(corpus, labels) if not y], skip=1
)
best = torch.cat([aura_factors(values, labels) for values in peaks.values()]).argsort()
names = [f"L{i // model.d_ffn}N{i % model.d_ffn}" for i in best.tolist()]
shuffled = [
    by_factors(labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(i))])
    for i in range(3)
]
board = {"nothing": judged(aura.scaled(0.0))}
board |= {f"AurA at strength {s:g}": judged(aura.scaled(s)) for s in (1.0, 1.5, 2.0)}
for where, edits in (("without layer 0", aura.edits[1:]), ("layer 0 alone", aura.edits[:1])):
    board[f"AurA at 1.5, {where}"] = judged(Steer(edits, strength=1.5))
board |= {f"Det0, k = {k}": judged(amplitude.switch_off(names[:k])) for k in (100, 300)}
chance = [judged(steer) for steer in shuffled]
board["AurA, shuffled labels (mean of 3)"] = np.mean(chance, axis=0)
share = [(aura_factors(v, labels) < 1).float().mean().item() for v in peaks.values()]
print(
    f"{len(corpus)} texts, {labels.float().mean():.2f} toxic; experts by layer:",
    " ".join(f"{x:.2f}" for x in share),
)
print(f"{'':34} rude: toxic  other   plain: toxic   loss elsewhere: mean  worst")
for name, (a, b, c, mean, worst) in board.items():
    print(f"{name:34} {a:11.2f} {b:6.2f} {c:14.2f} {mean:+21.3f} {worst:+6.2f}")
band = null_band(row[0] for row in chance)
print(f"toxic mass after 'rude :' under shuffled labels: {band.low:.3f} to {band.high:.3f}")
with of_package.on(model):
    assert abs(mass(rude, toxic_words) - board["AurA at strength 1"][0]) < 1e-3
assert board["AurA at strength 1"][0] < band.low and board["AurA at strength 1.5"][4] > 0.3
assert board["AurA at strength 2"][0] + board["AurA at strength 2"][1] < 0.2

# %% [markdown]
# - **It works, a little.** Toxic mass after "rude :" falls from 0.90 to 0.81, outside the band of shuffled labels, for 0.09 nats elsewhere. The paper reports a factor of up to 2.2 on large models.
# - **The dial is short.** At 1.5 more toxic mass goes, and the rest breaks. At 2 neither the toxic nor the other words are left. A table with the first column alone would call that the best steer.
# - **Graded or hard?** Det0 with 300 neurons does as much as AurA for half of the price; but its $k$ had to be chosen.
# - **Detecting is not causing.** Every layer has as many experts, but without layer 0 nothing is left of the effect, and layer 0 alone does more for a fifth of the mean price (in the worst domain it costs almost as much). The experts that matter are those nearest to the words; probably damping them lets the
#   model notice "rude" less.
#   The next cell shows the extreme, experts fitted on the *prompts*: every neuron whose peak differs between the two kinds detects them perfectly.
#
# (Loss elsewhere is from two documents of each domain, so the column "worst" is rough.)

# %% label="prompts_alone" tags=["nbval-check-output"]
reads = detectors.aura(model, rude, plain, skip=1)
off_share = np.mean([(edit.arguments["alpha"] < 0.01).float().mean() for edit in reads.edits])
with reads.on(model):
    left = mass(rude, toxic_words), mass(rude, other_words)
print(f"experts for 'rude :' in the prompt: {off_share:.2f} of all neurons are switched off;", end=" ")
print(f"toxic {left[0]:.2f}, other words {left[1]:.2f}")

# %% [markdown]
# ## 6. Attention edges
# The smallest object of all is one entry of an attention pattern: what *this* token reads from *that* one through one head. The prompt below says that a place has moved. The model knows better
# from training, and here it follows the note most of the time: a **knowledge conflict** [@jin2024ph3; @li2025taming].

# %% [markdown] exercise="amplitude.cut_edge" difficulty=3 minutes=9
# ### Exercise: cut an edge
# Write `cut_edge(pattern, queries, keys)`: a pattern `[n, H, T, T]` (query before key, after the softmax) and truth values `[n, T]` that say which positions must not read which. The other keys of
# the query share its attention in proportion; a query that has no key left reads nothing.


# %%
def cut_edge(pattern, queries, keys):
    """The pattern with these edges at 0 and every row summing to 1 (or 0 where nothing is left)."""
    ### BEGIN SOLUTION
    pairs = queries[:, None, :, None] & keys[:, None, None, :]
    left = pattern.masked_fill(pairs, 0.0)
    return left / left.sum(-1, keepdim=True).clamp_min(1e-9)
    ### END SOLUTION


# %%
cut_edge = check("amplitude.cut_edge", cut_edge)


# %% label="edges"
class Notes:
    """Prompts whose note contradicts training: the two answers, and where the city of the note stands."""

    def __init__(self, split):
        task = world.task("context", split=split, n=90)
        task = task.subset([label["conflict"] for label in task.labels])
        self.prompts = task.prompts
        self.told, self.known = ([label[k] for label in task.labels] for k in ("context", "memory"))
        self.city = torch.tensor([p.split().index(c) + 1 for p, c in zip(self.prompts, self.told)])

    def says(self):
        """Probability of what the note says, and of what training said."""
        p, rows = model.last_logits(self.prompts).softmax(-1), torch.arange(len(self.prompts))
        answers = [torch.tensor([model.token_id(w) for w in own]) for own in (self.told, self.known)]
        return [p[rows, own].mean().item() for own in answers]


tune, notes = Notes("train"), Notes("test")
batch = model.tokenize(notes.prompts)
final = causal.position_mask(batch, -1)
to_city = torch.zeros_like(final).scatter(1, (notes.city + batch.ids.shape[1] - batch.lengths)[:, None], True)
print(notes.prompts[0], "   note:", notes.told[0], "  training:", notes.known[0])
print(f"nothing cut: note {notes.says()[0]:.2f}, training {notes.says()[1]:.2f}")
grid = np.zeros((model.n_layers, model.n_heads))
for layer in range(model.n_layers):
    for head in range(model.n_heads):
        with amplitude.cut_edges(f"L{layer}H{head}.pattern", keys=tune.city, queries="last").on(model):
            grid[layer, head] = tune.says()[1]
layer, head = (int(i) for i in np.unravel_index(grid.argmax(), grid.shape))
cut = amplitude.cut_edges(f"L{layer}H{head}.pattern", keys=notes.city, queries="last")
by_hand = mi.edit(f"pattern{layer}", lambda p: torch.cat([
    p[:, :head], cut_edge(p[:, head : head + 1], final, to_city), p[:, head + 1 :]], 1))  # fmt: skip
with mi.intervene(model, by_hand):
    mine = notes.says()
with cut.on(model):
    edge = notes.says()
assert np.allclose(mine, edge, atol=1e-4)
show(
    heatmap(
        grid,
        rows=[f"layer {i}" for i in range(model.n_layers)],
        columns=[f"H{h}" for h in range(model.n_heads)],
        unit="p(what training said)",
        title="One edge cut: last token to city",
    ),
    alt="Grid of layers by heads. Nearly all cells are close to 0.27; L3H1 has 0.95 and L4H0 about 0.7.",
    reading="A cell: the probability of the fact from training when this head alone may not read the city.",
)
wrong = {}
for name, keys in (("the word before", notes.city - 1), ("the word after", notes.city + 1)):
    with amplitude.cut_edges(f"L{layer}H{head}.pattern", keys=keys, queries="last").on(model):
        wrong[name] = notes.says()[1]
print(f"L{layer}H{head}, edge to the city: note {edge[0]:.2f}, training {edge[1]:.2f};", end=" ")
print("control, edge to", ", ".join(f"{name}: training {value:.2f}" for name, value in wrong.items()))
whole = amplitude.switch_off([f"L{layer}H{head}.z"])
with whole.on(model):
    print(f"the whole head off: training {notes.says()[1]:.2f}; accuracy elsewhere", end=" ")
    lost = {name: other.accuracy(model) for name, other in REST.items()}
    print(" ".join(f"{name} {value:.2f}" for name, value in lost.items()))
assert edge[1] > 0.9 and max(wrong.values()) < 0.4

# %% [markdown]
# The map is made on prompts of the training split, the numbers below it on others. One entry of one pattern decides the conflict. Cutting the edge to the word before or after the city does nothing, and no other head comes near L3H1, except L4H0. The whole head off does the same, and **costs half of
# copying**: this head also fetches earlier words for other purposes. The edge is the smaller object and has no such price: in prompts without a note there is nothing to cut. But it must be known where the city stands. We know it, since we made the prompts.
#
# ## 7. Only when it is needed: conditional steering
# A steer that costs something everywhere need not act everywhere. A **detector** reads one state of the prompt, before the steered objects in the forward pass, and the steer acts on the rows where
# it fires, then and for all tokens that follow. (CAST [@lee2024programming] thresholds the cosine between the state and its projection onto a principal component;
# we take the mean difference and its dot product.)

# %% [markdown] exercise="amplitude.fit_detector" difficulty=2 minutes=9
# ### Exercise: fit a detector
# Write `fit_detector(positive, negative, false_alarms)`: states `[n, d]` of prompts that should and should not be steered. Return the unit direction `[d]` from the negative to
# the positive mean, and the threshold above which the share `false_alarms` of the negatives lies.


# %%
def fit_detector(positive, negative, false_alarms):
    """(unit direction [d], threshold as a number): dot products of negatives exceed it at this rate."""
    ### BEGIN SOLUTION
    direction = positive.mean(0) - negative.mean(0)
    direction = direction / direction.norm()
    return direction, (negative @ direction).quantile(1 - false_alarms).item()
    ### END SOLUTION


# %%
fit_detector = check("amplitude.fit_detector", fit_detector)

# %% [markdown]
# The steer is the whole head of section 6, with its price for copying. The detector reads the last token of the prompt, in the state that this layer receives.

# %% label="conditional"
SITE = f"x{layer}@-1"
train_rest = [p for name in REST for p in world.task(name, split="train", n=40).prompts]
test_rest = [p for other in REST.values() for p in other.prompts]
states = [mi.record(model, p, [SITE], logits=False)[SITE] for p in (tune.prompts, train_rest)]
direction, threshold = fit_detector(*states, 0.01)
detector = Detector(SITE, direction, threshold)
conditional = Steer(whole.edits, when=detector)
rates = [detectors.fires(model, detector, p).float().mean().item() for p in (notes.prompts, test_rest)]
print(
    f"the detector fires on {rates[0]:.2f} of the notes and {rates[1]:.3f} of {len(test_rest)} other prompts"
)
for name, steer in (("nothing", whole.scaled(0.0)), ("always", whole), ("conditional", conditional)):
    with steer.on(model):
        followed, accuracy = notes.says()[1], {k: other.accuracy(model) for k, other in REST.items()}
    print(f"{name:12} p(training) {followed:.2f}; elsewhere", end=" ")
    print(" ".join(f"{k} {v:.2f}" for k, v in accuracy.items()))
assert rates[0] > 0.95 and rates[1] < 0.05 and followed > 0.9 and accuracy["copying"] > 0.95

mixed = [*notes.prompts[:4], *REST["copying"].prompts[:4]]
fires = detectors.fires(model, detector, mixed)
written = {}
for name, steer in (("nothing", whole.scaled(0.0)), ("always", whole), ("conditional", conditional)):
    with steer.on(model):
        written[name] = model.generate_ids(mixed, 5, min_new_tokens=5)
assert torch.equal(written["conditional"][fires], written["always"][fires])
assert torch.equal(written["conditional"][~fires], written["nothing"][~fires])
print(f"{len(mixed)} prompts, 5 new tokens: the {int(fires.sum())} rows that fire are steered at each token,")
print("the others are as they were, token by token")

# %% [markdown]
# Same gain, no price on these tasks. What has changed is where the risk lies: in prompts that the detector misses or takes for a note. Both rates belong in the report, measured on prompts that it was not fitted on
# (none of 80 still allows for a rate of up to 5 %, the upper end of its 95 % interval), and an
# adversary would aim at them.
#
# ## 8. Leaving layers out
# Removal for efficiency (S1f) is the same operation with another aim: what can go without anyone noticing? **Block influence** [@men-etal-2025-shortgpt] is $1 - \cos(x^l, x^{l+1})$, averaged over tokens:
# a block that hardly turns the state should not be missed. (You wrote it in chapter 05.)

# %% [markdown] exercise="amplitude.skip_layers" difficulty=2 minutes=6
# ### Exercise: skip layers
# Write `skip_layers(layers)`: a list of edits for `mi.intervene` after which $x^{l+1} = x^l$ for every layer in the list. What a layer adds to the stream are the sites `attn2.write` and
# `mlp2.write` (for layer 2).


# %%
def skip_layers(layers):
    """Edits under which these layers add nothing to the residual stream."""
    ### BEGIN SOLUTION
    return [mi.zero([f"attn{layer}.write", f"mlp{layer}.write"]) for layer in layers]
    ### END SOLUTION


# %%
skip_layers = check("amplitude.skip_layers", skip_layers)

# %% label="layers"
influence = block_influence(model, [text for _, text in flat])
losses = {}  # every way to leave out one, two or three of layers 1 to 5
for k in (1, 2, 3):
    for layers in itertools.combinations(range(1, model.n_layers), k):
        losses[layers] = spill(amplitude.remove_layers(layers))
losses[(0,)] = spill(amplitude.remove_layers([0]))
for i in range(model.n_layers):
    mean, worst, where = losses[(i,)]
    influences = influence[f"x{i}"]
    print(
        f"layer {i}: influence {influences:.2f}   without it: mean {mean:+.2f}, worst {worst:+.2f} ({where})"
    )
cost = [losses[(i,)][0] for i in range(model.n_layers)]
for first in (0, 1):
    ranks = [np.argsort(np.argsort(v[first:])) for v in (influence.values, np.array(cost))]
    print(f"rank correlation, layers {first} to 5: {np.corrcoef(ranks)[0, 1]:+.2f}")
by_influence = [int(i) for i in np.argsort(influence.values)]
choices = {k: [losses[c][0] for c in losses if len(c) == k and 0 not in c] for k in (1, 2, 3)}
picked = [losses[tuple(sorted(by_influence[:k]))][0] for k in (1, 2, 3)]
show(
    curves(
        [1, 2, 3],
        {
            "lowest block influence": picked,
            "best choice": [min(choices[k]) for k in choices],
            "mean over all choices": [np.mean(choices[k]) for k in choices],
        },
        null=([min(choices[k]) for k in choices], [max(choices[k]) for k in choices]),
        band_label="all choices among layers 1 to 5",
        xlabel="layers removed",
        ylabel="rise of the loss (nats)",
        title="Which layers can go?",
    ),
    alt="Rise of the loss for one, two and three layers removed. The band of all choices widens with the "
    "number of layers. The choice by block influence lies above the mean of all choices for one and two "
    "layers, and just below it for three.",
    reading="Band: from the best to the worst choice. A criterion should lie at its lower end.",
)
for k, value in zip(choices, picked):
    place = sum(other < value for other in choices[k]) + 1
    print(
        f"{k} removed: {by_influence[:k]} by influence, {value:+.2f}, place {place} of {len(choices[k])};",
        end=" ",
    )
    print(
        f"best {min((c for c in losses if len(c) == k), key=lambda c: losses[c][0])} {min(choices[k]):+.2f}"
    )
short = amplitude.without_layers(model, [1])
with mi.intervene(model, *skip_layers([1])):
    assert torch.allclose(model.last_logits(test_rest), short.last_logits(test_rest), atol=1e-3)
parameters = [sum(p.numel() for p in m.hf.parameters()) for m in (model, short)]
print(f"a model built without layer 1: the same logits, {parameters[1]:,} of {parameters[0]:,} parameters")
assert cost[0] > 5 and picked[0] > min(choices[1])

# %% [markdown]
# No layer can go unnoticed in this model of six layers (the cheapest costs 0.18 nats on average and 1.08 in its worst domain); the papers are about models with dozens of them. And block influence chooses badly here: its first layer is the fourth best of five, its first two are the ninth best pair of ten. A block that turns the state little may
# turn it where it counts. (With layer 0 the correlation looks better, since that layer is at the end of both lists.) The mean hides more: without layer 3 the loss rises by 0.34 on average, and by 2.15 in copying.
#
# ## 9. The scoreboard
# All installed behaviours, whose units are known. "Zero" and "mean" switch the units of the answer key off or set them to their mean over documents of all domains; "random" switches as many others off, of the same kind and
# layer (for whole FFNs and states, those of other layers). The last column is the worst accuracy elsewhere, with the key at zero.

# %% label="scoreboard"
docs = [text for own in world.documents("train", 1).values() for text in own]
JUDGES = {
    "copying": REST["copying"],
    "refused": REST["refusal_harmful"],
    "verdict": world.task("verdict", n=20),
}
table = {}
for name in [f"{kind}-{x}" for kind in ("refusal", "german", "sycophancy", "bias") for x in "ab"] + [
    "sycophancy-direction"
]:
    task, key, among = installed_task(name, n=20), answer_key(name), candidates(name, model)
    with behaving(name, model):
        before = {judge: other.accuracy(model) for judge, other in JUDGES.items()}
        means = causal.site_means(model, docs, key)
        try:
            sets = matched_sets(key, among, draws=3)
        except ValueError:  # one object per layer: there is no other of the same layer
            sets = [[site] for site in among if site not in key]
        row = []
        for steer in (amplitude.switch_off(key), amplitude.set_to(means), *map(amplitude.switch_off, sets)):
            with steer.on(model):
                row.append(task.accuracy(model))
        with amplitude.switch_off(key).on(model):
            drop = {judge: other.accuracy(model) - before[judge] for judge, other in JUDGES.items()}
    worst = min(drop, key=drop.get)
    table[name] = (*row[:2], np.mean(row[2:]), drop[worst], drop)
    chance = f"{np.mean(row[2:]):.2f} ({min(row[2:]):.2f} to {max(row[2:]):.2f})"
    print(
        f"{name:21} {' '.join(key)[:34]:35} zero {row[0]:.2f}  mean {row[1]:.2f}  random {chance}", end="  "
    )
    print(f"worst {drop[worst]:+.2f} {worst}")
small = ("refusal-a", "refusal-b", "german-a", "german-b")
assert all(table[n][0] <= 0.05 and table[n][1] <= 0.1 and table[n][2] > 0.9 for n in small)
shared = table["sycophancy-a"][4]
print("sycophancy-a off:", ", ".join(f"{judge} {change:+.2f}" for judge, change in shared.items()))
assert max(shared["copying"], shared["verdict"]) < -0.2 and table["sycophancy-direction"][3] < -0.8

poly = compiled.polysemantic()
by_hand_model, numbers = poly.wrap(), poly.others["numbers"]
for site in ("L0N0", "L0N1"):
    with amplitude.switch_off([site]).on(by_hand_model):
        print(f"polysemantic, {site} off: colours {poly.task.accuracy(by_hand_model):.2f}", end="  ")
        print(f"numbers {numbers.accuracy(by_hand_model):.2f}")

# %% [markdown]
# - **Few heads or neurons** (the first four): gone at zero and at the mean, at no price, and untouched by random units. This is where amplitude manipulation is at home.
# - **Shared objects.** `sycophancy-a` sits in two heads that copying needs as well (and judging claims, which falls by 0.40). The steer takes those along, and leaves a quarter of the behaviour. `polysemantic` is the same by hand: L0N0 fires on *red* and on *seven*, so whoever
#   forgets red apples forgets how to count; L0N1 has one meaning and no side effect. No strength can separate what one object holds together.
# - **Objects that are too large.** Setting a whole FFN or a whole state to zero removes what was installed along with the rest (of the five other FFNs one takes every answer away, four take none). `sycophancy-direction` is one direction of a state; it can be
#   taken out of it, which is chapter 14's subject, but not by the amplitude of the state. Here the method fails.
#
# ## 10. What the survey says, and where it is loose
# - **Purpose, not operation.** Amplitude manipulation and causal attribution (section 3.2) are one set of edits. What makes an edit a *steer* is that it stays: a strength chosen on other data than the result, side effects, positions,
#   generation. The survey says that $\alpha$ is tuned by hand and that objects with several meanings bring side effects; how to measure either it leaves open.
# - **"Mean centering"** is its name for setting an object to its mean. Centring subtracts the mean, $o - E[o]$; setting to the mean puts $E[o]$ in its place and is usually called mean ablation. The scoreboard needs the second.
# - **The range of $\alpha$.** Section 4.1 has $\alpha > 1$ and $0 < \alpha < 1$. Zero is then a different operation (it is the same one), and negative values have no place. They are used (section 2 above: $s > 1$), and they are where the rest breaks.
# - **$\alpha\, o$ with merging coefficients** appears in the same section, and adding a vector may be written as scaling a feature. We file by what is set: a present value that is set or scaled is amplitude; a direction that is added whatever is there is
#   vector arithmetic (chapter 14); weights that are scaled and added are merging.
# - **It "depends on the localization".** Section 3: the ranking found neurons that remove the behaviour and are not its answer key. Section 4: a feature that detects perfectly and does nothing. So an effect does not
#   prove a location, and a perfect detector promises no effect. The null band and the side effects decide.
#
# ## 11. Papers that use this
# - heads off or scaled: safety heads [@zhou2025on], bias [@vig2020gender; @chandnaDissectingBiasLLMs2025], conflicts [@jin2024ph3; @li2025taming], copying from the context [@niu-etal-2025-llama]
# - neurons: language [@tang-etal-2024-language; @zhao-etal-2024-multilingual], style [@lai-etal-2024-style], personality [@deng2025neuron], toxicity [@suauWhisperingExpertsNeural2024], hallucination [@gao2025hneuronsexistenceimpactorigin]
# - features: [@templeton2024scaling; @goyalBreakingBadTokens2025; @yeo-etal-2025-understanding], clamped only when a classifier fires [@muhamed2025dsg]
# - states patched: [@ahsanElucidatingMechanismsDemographic2025; @raimondiAnalysingMoralBias2025]
# - layers and experts left out: [@men-etal-2025-shortgpt; @lawson2025learningskipmiddlelayers; @lu2024not]; two experts amplified for reasoning [@wang2025two]
#
# ## 12. The same on a real model
# The function finds the head whose removal costs a prompt's answer most, turns it down and up, and shows the target beside the loss on other text. It runs on `lab-llama` as it stands; put the name of a Hugging Face model or
# a local folder into `REAL`.


# %% label="real"
def dial_a_head(model, prompt, target, others):
    """log p(target) and the loss of other texts, as the head with the largest effect is scaled."""
    one = mi.Task("one prompt", [prompt], [target], metric="logprob")
    best = causal.ablate_each(model, one, causal.heads(model)).top(1)[0]
    print(f"{model.config.model_type}: {prompt} -> {target}, head {best}")
    rows = []
    for s in (0.0, 0.5, 1.0, 2.0, -1.0, -3.0):
        with amplitude.switch_off([best]).scaled(s).on(model):
            rows.append((one.measure(model).item(), document_loss(model, others).mean().item()))
        print(f"  alpha {1 - s:+.1f}   log p(target) {rows[-1][0]:+6.2f}   other texts {rows[-1][1]:.2f}")
    return rows


fact, llama = world.task("facts", n=1), mi.load("lab-llama")
rows = dial_a_head(llama, fact.prompts[0], fact.targets[0], [text for _, text in flat[::4]])
assert rows[2][0] < rows[0][0] and rows[-1][1] > rows[0][1]
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    dial_a_head(
        mi.load(REAL), "The Eiffel Tower is in the city of", " Paris", ["The cat sat on the mat and slept."]
    )

# %% [markdown]
# ## 13. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "Two heads at strength 1 remove a behaviour; at strength -2 (three times their size) it is gone too. What does that show?",
            [
                (
                    "The heads were located wrongly.",
                    "At strength 1 they remove it and random heads do not: they carry it.",
                ),
                (
                    "The response is not a line: far from the trained size later layers meet sums they have never seen.",
                    "Near alpha = 1 the slope has the expected sign. Extrapolation is what fails, and the rest of the model falls with it.",
                    True,
                ),
                (
                    "Strength -2 is the same as strength 1.",
                    "It is alpha = 3, not 0; only the outcome looks alike.",
                ),
            ],
        ),
        Question(
            "A feature fires on every harmful request and on almost no other. You clamp it to 0 and nothing changes. Why can that be?",
            [
                (
                    "The clamp must have a bug, since it is a perfect detector.",
                    "Detecting is correlation. Here the clamp sets the activation, and the refusal stays.",
                ),
                (
                    "Others carry the same information: other features, the error term, tokens at which it was not read.",
                    "One direction less leaves the rest of the evidence; turning it up can still work.",
                    True,
                ),
                (
                    "The error term hides the effect; without it the clamp is honest.",
                    "Without it something else goes as well: the part of the state that the SAE does not explain.",
                ),
            ],
        ),
        Question(
            "AurA scales about six in ten neurons. Which control tells whether that is meaningful?",
            [
                (
                    "The same factors on the same number of random neurons' outputs.",
                    "Closer, but the factors themselves come from labels: shuffling the labels makes factors of the size that chance gives.",
                ),
                (
                    "The same recipe with shuffled labels.",
                    "Half of all neurons are above 0.5 by luck, with factors near 1. That steer does nothing here, so the labels matter.",
                    True,
                ),
                ("Det0 with as many neurons.", "That compares two methods, both of which use the labels."),
            ],
        ),
        Question(
            "Conditional steering made the side effects vanish on the test tasks. What has become more important instead?",
            [
                ("The strength, which must now be larger.", "Where it fires the steer is as it was."),
                (
                    "The detector: its misses are unsteered, its false alarms get the full side effect.",
                    "The price is paid on fewer prompts, not made smaller. Report both rates on held-out prompts.",
                    True,
                ),
                (
                    "Nothing; the steer is now free.",
                    "On prompts that fire, everything is as before, including what the steer breaks there.",
                ),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 13 changes weights instead of activations, and asks whether it matters which.
