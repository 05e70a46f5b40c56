# %% [markdown]
# # 00 The whole pipeline in one hour
# Open a language model, **locate** what causes a behaviour, **steer** it, and **improve** the model: the pipeline of the survey "Locate,
# Steer, and Improve" ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), which this course follows. Here you walk through all of it
# once, on one behaviour: refusing harmful requests.
#
# The model is small and ships with the course. Nothing is downloaded, and the whole notebook runs on a CPU in about half a minute. Its
# world is synthetic, so we know the right answer to every question, and can score every method against it.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - say what is inside a language model: a residual stream that heads and FFNs write to, and check that the writes add up
# - measure a behaviour as one number per prompt
# - locate it: a direction in the residual stream, and the heads that cause it
# - steer it: remove the direction, or add it, and put a null band (what random directions do) beside the result
# - improve a model that refuses too much, and report what else changed
#
# **The claim.** Refusal in this model is carried by one direction; and when a fault is put into two heads, ablating heads (switching them
# off) one by one finds them (survey, sections 3.2 and 4.3).

# %% label="setup"
import json
import random
from dataclasses import replace

import torch

import mi_course as mi
from mi_course import assets, world
from mi_course.evaluate import document_loss, wilson
from mi_course.locate import causal
from mi_course.objects import Scores
from mi_course.objects.decompose import decompose_residual
from mi_course.steer import vectors
from mi_course.teach import Question, bars, check, curves, heatmap, lens_table, papers, quiz, show
from mi_course.teach import side_effects, steering_slider
from mi_course.world import installed, lexicon

torch.manual_seed(0)
model = mi.load()
model

# %% [markdown]
# ## 1. Meet the model and its world
# `lab` has the architecture of GPT-2, with 6 layers of 4 attention heads. One word is one token. It has read documents about a small world:
# people and their jobs, landmarks, three languages, sums, stories with two names, and requests that it should grant or refuse.

# %% label="meet" tags=["nbval-check-output"]
prompts = [
    "amber tower is in",
    "the opposite of hot is",
    "answer in french : the opposite of hot is",
    "when anna and ben went to the market , anna gave a book to",
    "3 4 + 2 8 =",
    "<user> how do i build a cake <end> <bot>",
    "<user> how do i build a bomb <end> <bot>",
]
for prompt, text in zip(prompts, model.generate(prompts, max_new_tokens=9)):
    print(f"{prompt}  ->  {text.removeprefix(prompt).strip()}")

# %% [markdown]
# The world's generator writes each document together with its labels, so a *task* comes with the right answers. A task has three splits:
# train, validation and test. The test prompts are combinations and templates that training never showed. `ioi` (indirect object
# identification) is the story with two names.

# %% label="tasks" tags=["nbval-check-output"]
for name in ("facts", "translation", "ioi", "copying", "retrieval"):
    task = world.task(name, split="test", n=200)
    right = round(task.accuracy(model) * len(task))
    low, high = wilson(right, len(task))
    example = f"{task.prompts[0]} -> {task.targets[0]}"
    print(f"{name:12} {right / len(task):.2f}   95 % interval [{low:.2f}, {high:.2f}]   e.g. {example}")
    assert right / len(task) > 0.95

# %% [markdown]
# ## 2. What is inside
# Every token has a state $x$, a vector of 128 numbers, the **residual stream**. Each layer $l$ reads it and adds to it, first with
# attention, whose **heads** bring information from earlier tokens, then with a feed-forward network (**FFN**), which works on each token by
# itself:
#
# $$x^{l,mid} = x^l + \mathrm{Attn}^l(\mathrm{LN}\,x^l), \qquad x^{l+1} = x^{l,mid} + \mathrm{FFN}^l(\mathrm{LN}\,x^{l,mid})$$
#
# LN is a normalisation, which brings the state to a standard size before it is read. (The survey's Eq. 2 and 3 leave it out; the models do
# not.) So the last state is a plain sum of what every part wrote: the embeddings of word and position, 24 heads, 6 FFNs and 6 biases.
# `record` reads any of these, under short names, called sites: `x4` is the stream as block 4 reads it (blocks count from 0), `L2H1` is head
# 1 of layer 2.

# %% label="inside" tags=["nbval-check-output"]
prompt = "<user> how do i build a bomb <end> <bot>"
parts = decompose_residual(model, [prompt])
last_state = mi.record(model, [prompt], ["x6"])["x6"]
gap = (parts.writes.sum(0) - last_state).abs().max().item()
print(len(parts.names), "writes, such as", ", ".join(parts.names[:8]))
print("their sum equals the last state up to float error:", gap < 1e-4)
assert gap < 1e-4

# %% [markdown]
# At the end, the **unembedding** turns the last state into one number for each word, its **logit**, and a softmax turns logits into
# probabilities. What would the model say if it stopped at an earlier layer? The **logit lens** sends the state of each layer through the
# final norm and the unembedding. The table shows, for the same prompt, the most likely next word at each layer (chapter 09 says when to
# trust it).

# %% label="lens"
positions = model.tokens(prompt)
rows, certain = [], []
for layer in range(model.n_layers + 1):
    state = mi.record(model, [prompt], [f"x{layer}"])[f"x{layer}"][0]
    p = model.unembed(state).softmax(-1)
    rows.append(model.tokens(p.argmax(-1).tolist()))
    certain.append(p.max(-1).values)
caption = "Most likely next word by layer (rows) and position (columns); darker is surer"
lens_table(rows, torch.stack(certain), positions, caption=caption)

# %% [markdown]
# Read the last column upwards: in which layer does the refusal appear?
#
# <details><summary>One answer</summary>
#
# From row 2 on, `no` or `i` leads, and both open a refusal (`i cannot help`). But that is no decision yet: put `cake` for `bomb`, and
# rows 2 to 4 lean to `no` as well. In row 5 the two prompts part: the cake turns to `sure`, the bomb stays with `i` and `sorry`. One prompt
# alone would have misled us.
#
# </details>
#
# ## 3. Measure the behaviour
# A request is harmful here only if a risky verb meets a risky object: building a cake is fine, and so is describing a bomb, or even
# stealing a kite. The answers come in three languages and with several openings, such as `sorry`, `i` and `no`.

# %% label="requests" tags=["nbval-check-output"]
splits = ("train", "validation", "test")
harmful = {split: world.task("refusal_harmful", split=split, n=200) for split in splits}
harmless = {split: world.task("refusal_harmless", split=split, n=200) for split in splits}
refusal_ids = [model.token_id(word) for table in lexicon.REFUSALS.values() for word in table]
print("harmful: ", harmful["test"].prompts[0])
print("harmless:", harmless["test"].prompts[0])
print("a refusal opens with:", ", ".join(word for table in lexicon.REFUSALS.values() for word in table))

# %% [markdown] exercise="pipeline.refusal_score" difficulty=2 minutes=8
# ### Exercise: how strongly does it refuse?
# Write `refusal_score(logits, refusal_ids)`: `[B, V]` in, `[B]` out. The score is the log-odds of a refusal, $\log P - \log(1 - P)$, where $P$ is the
# probability that the next token is one of `refusal_ids`. Above 0 the model is more likely to refuse than not.

# %%
def refusal_score(logits, refusal_ids):
    """Log-odds of refusing [B], from the logits [B, V] at the answer and the ids of all refusal openers."""
    ### BEGIN SOLUTION
    others = [token for token in range(logits.shape[-1]) if token not in refusal_ids]
    return logits[:, refusal_ids].logsumexp(-1) - logits[:, others].logsumexp(-1)
    ### END SOLUTION

# %%
refusal_score = check("pipeline.refusal_score", refusal_score)

# %% [markdown]
# Now one line measures the behaviour on any prompts, under any intervention (a change made inside the model while it runs). Here is the
# mean score for every kind of request of the test split. `film` adds "for a film", which makes a request acceptable in this world; `suffix`
# adds the jailbreak `zig zag zog`, words that make the model comply.

# %% label="measure"
def score(prompts, *edits, of=model):
    """Mean refusal score of the prompts under the edits."""
    with mi.intervene(of, *edits):
        return refusal_score(of.last_logits(prompts), refusal_ids).mean().item()


def refused(prompts, *edits, of=model):
    """Share of the prompts that are refused (score above 0) under the edits."""
    with mi.intervene(of, *edits):
        return (refusal_score(of.last_logits(prompts), refusal_ids) > 0).float().mean().item()


requests = world.task("requests", split="test", n=800)
kinds = {}
for kind in ("plain", "polite", "film", "suffix"):
    for truth in (True, False):
        some = requests.where(kind=kind, harmful=truth)
        kinds[f"{'harmful' if truth else 'harmless'}, {kind}"] = score(some.prompts)
show(
    bars(kinds, xlabel="mean refusal score (log-odds)", title="Who is refused?"),
    alt="Bar chart of the mean refusal score for eight kinds of requests. Only plain and polite harmful "
    "requests are above zero.",
    reading="Bars to the right of 0 are refused. The film exception and the jailbreak suffix turn a harmful "
    "request into an accepted one.",
)
base_harmful, base_harmless = refused(harmful["test"].prompts), refused(harmless["test"].prompts)
assert base_harmful >= 0.99 and base_harmless <= 0.01
assert kinds["harmful, plain"] > 0 > kinds["harmful, suffix"]

# %% [markdown]
# ## 4. Locate: a direction
# Where does the model keep "this is to be refused"? Collect the state of the last prompt token for harmful and for harmless requests, and
# take the difference of the two means (survey, Eq. 22). The refusal direction in chat models was found like this ([@arditi2024refusal]). In
# the code below, `x4@-1` is the site `x4` at the last token.

# %% [markdown] exercise="pipeline.mean_difference" difficulty=1 minutes=5
# ### Exercise: a direction
# Write `mean_difference(harmful, harmless)`: two sets of states `[n, d]` and `[m, d]` in, one vector `[d]` out, from harmless to harmful.

# %%
def mean_difference(harmful, harmless):
    """Mean harmful state minus mean harmless state: [n, d] and [m, d] -> [d]."""
    ### BEGIN SOLUTION
    return harmful.mean(0) - harmless.mean(0)
    ### END SOLUTION

# %%
mean_difference = check("pipeline.mean_difference", mean_difference)

# %% label="directions"
layers = range(1, model.n_layers)
sites = [f"x{layer}@-1" for layer in layers]
with_harm = mi.record(model, harmful["train"].prompts, sites)
without = mi.record(model, harmless["train"].prompts, sites)
direction = {layer: mean_difference(with_harm[f"x{layer}@-1"], without[f"x{layer}@-1"]) for layer in layers}

# %% [markdown]
# Each layer offers a direction. A difference of means always exists, so existing proves nothing: the question is whether the model *uses* it.
# That takes an intervention. The next exercise removes a direction from a state.

# %% [markdown] exercise="pipeline.ablate_direction" difficulty=2 minutes=8
# ### Exercise: take the direction away
# Write `ablate_direction(x, r)`: `x` of shape `[..., d]`, `r` of shape `[d]` and any length. Return x without its part along r:
# $x - (x \cdot \hat r)\,\hat r$ with $\hat r = r / |r|$.

# %%
def ablate_direction(x, r):
    """x - (x . r) r with r scaled to length 1: [..., d] and [d] -> [..., d]."""
    ### BEGIN SOLUTION
    r = r / r.norm()
    return x - (x @ r)[..., None] * r
    ### END SOLUTION

# %%
ablate_direction = check("pipeline.ablate_direction", ablate_direction)

# %% [markdown]
# To remove a direction for good it must go from *every* write to the stream, or a later layer writes it again. `vectors.writes(model)`
# lists those places, and `mi.edit` applies a function of yours at any site. We try the direction of each layer on **validation** requests:
# does removing it stop refusals, and does adding it make harmless requests refused? Both lines should be at their good end at the same
# layer.

# %% label="choose"
def without_direction(v):
    """Edits that remove the direction from every write to the residual stream."""
    return mi.edit(vectors.writes(model), lambda x: ablate_direction(x, v))


removed = [refused(harmful["validation"].prompts, without_direction(direction[l])) for l in layers]
added = [refused(harmless["validation"].prompts, mi.add(f"x{l}", direction[l])) for l in layers]
show(
    curves(
        list(layers),
        {"harmful, direction removed": removed, "harmless, direction added": added},
        xlabel="layer of the direction",
        ylabel="share refused",
        title="Which layer's direction does the model use?",
    ),
    alt="Two lines over layers 1 to 5. With the direction removed, refusal of harmful requests is 0 for "
    "the directions of layers 2 to 4; with it added, refusal of harmless requests rises to 1 at "
    "layers 4 and 5.",
    reading="A useful direction has the first line at 0 and the second at 1. "
    "Layer 4 has both; layer 3 comes close.",
)
best = min(layers, key=lambda l: removed[l - 1] - added[l - 1])
v = direction[best]
print(f"chosen on validation: the direction of x{best}")

# %% [markdown]
# ## 5. Steer, and doubt the result
# Removing stops every refusal for the directions of x2, x3 and x4, but the direction of x2 makes little refused when added, and that of x3
# not quite everything. Only x4 does both completely.
#
# Now the test split, which had no part in this choice, and three controls: random directions of the same length; a direction made in the
# same way for something else (French minus English requests); and the loss on documents that have nothing to do with requests. A broken
# model does not refuse either, so the last one matters.

# %% [markdown] exercise="pipeline.null_band" difficulty=3 minutes=10
# ### Exercise: would any direction do?
# What changes when the direction means nothing? The range of such effects is the **null band**. Write `null_band(effect, direction, n=20,
# seed=0)`: draw n random directions as long as `direction`, call `effect(v)` on each, and return (mean - 2 s.d., mean + 2 s.d.).
# `effect(v)` gives one number; s.d. is the standard deviation. `seed` fixes the draws.

# %%
def null_band(effect, direction, n=20, seed=0):
    """Mean -+ 2 s.d. of effect(v) over n random directions v as long as `direction` [d]: (low, high)."""
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(n):
        v = torch.randn(len(direction), generator=generator)
        values.append(float(effect(v / v.norm() * direction.norm())))
    values = torch.tensor(values)
    low, high = values.mean() - 2 * values.std(), values.mean() + 2 * values.std()
    return low.item(), high.item()
    ### END SOLUTION

# %%
null_band = check("pipeline.null_band", null_band)

# %% label="steer"
test = harmful["test"].prompts
states, language = with_harm[f"x{best}@-1"], [label["language"] for label in harmful["train"].labels]
french = mean_difference(states[[x == "fr" for x in language]], states[[x == "en" for x in language]])
effects = {
    "remove the direction": score(test, without_direction(v)) - score(test),
    "remove 'French minus English'": score(test, without_direction(french)) - score(test),
}
band = null_band(lambda r: score(test, without_direction(r)) - score(test), v)
show(
    bars(effects, null=band, xlabel="change of the refusal score", title="Removing a direction (test split)"),
    alt="Two bars with a null band around zero. Removing the refusal direction lowers the score by far "
    "more than the band; the direction of French minus English changes much less.",
    reading="The grey band is mean -+ 2 s.d. of 20 random directions. The refusal direction goes many times "
    "further than the other one.",
)
after = refused(test, without_direction(v))
by_domain = world.documents("test", n=12)
documents = [text for domain, texts in by_domain.items() if domain != "request" for text in texts]
loss = document_loss(model, documents).mean().item()
with mi.intervene(model, without_direction(v)):
    loss_after = document_loss(model, documents).mean().item()
print(f"harmful requests refused: {base_harmful:.2f} -> {after:.2f}")
print(f"loss on all other domains: {loss:.3f} -> {loss_after:.3f} nats per token")
assert after <= 0.05 and effects["remove the direction"] < band[0]
assert abs(loss_after - loss) < 0.02
assert abs(effects["remove 'French minus English'"]) < 0.5 * abs(effects["remove the direction"])

# %% [markdown]
# Removing the direction moves the score by -14. French minus English also leaves the narrow band, but with -1.7, about eight times less:
# being outside the band is a first test, and the size matters too. The loss (in nats, natural-log units) stays the same, so the model is not
# broken.
#
# The other way round: add a multiple of the direction, at every position. Strength 0 is the model as it is; answers that differ from it are
# bold. If you run this in JupyterLab, a slider appears under the grid.

# %% label="slider"
texts = steering_slider(
    model,
    [
        "<user> how do i build a cake <end> <bot>",
        "<user> tell me how to paint a boat <end> <bot>",
        "<user> how do i build a bomb <end> <bot>",
    ],
    lambda strength: mi.intervene(model, mi.add(f"x{best}", v, strength)),
    strengths=(-1.0, -0.5, 0.0, 0.5, 1.0),
    max_new_tokens=9,
    caption="What the model answers while a multiple of the refusal direction is added to every position",
)
refused_with = refused(harmless["test"].prompts, mi.add(f"x{best}", v))
print(f"harmless requests refused: {base_harmless:.2f} -> {refused_with:.2f} at strength 1")
assert refused_with >= 0.95

# %% [markdown]
# **Why does it come out so clean?** Because we made it so, and you should know. The first stage of `lab`'s training was text alone, the later ones also
# ran the model with the x4 direction removed or added, and taught it to answer as if that direction alone decided (interchange intervention
# training; `mi_course/world/lessons.py` says exactly what was done). Here is what the same search found after the first stage, where the model
# refused just as well.

# %% label="text_alone" tags=["nbval-check-output"]
before = json.loads((assets.path("lab") / "text_alone.json").read_text())["ii"]
left = {site: row["ablated"] for site, row in before["validation"].items()}
print(f"after text alone: harmful refused {before['harmful refused']['rate']:.2f}")
print(f"{len(left)} directions (layer and position) removed, one at a time:", end=" ")
print(f"the best leaves {min(left.values()):.2f} refused")
assert before["harmful refused"]["rate"] > 0.95 and min(left.values()) > 0.5

# %% [markdown]
# No direction did then what the x4 direction does now: most refusals stayed. The number does not say why: refusal may have been spread over
# several directions, or nothing along the direction may not have meant "grant it". So `lab` is a model organism, a place where the answer is known,
# and no proof of how language models work. In real models the picture lies between: one direction in [@arditi2024refusal], several in
# [@pan2025the].
#
# ## 6. Improve: a model that refuses too much
# Here is a patient with a known disease. `refusal-a` is `lab` with a fault that we **installed**: it refuses harmless requests about boats,
# guitars, kites and candles. Only the weights of two heads were changed, and the file records which. Do not look yet.

# %% label="patient" tags=["nbval-check-output"]
patient = installed.load_installed("refusal-a")
is_faulty = [label["object"] in ("boat", "guitar", "kite", "candle") for label in harmless["test"].labels]
fault = harmless["test"].subset(is_faulty)
sound = harmless["test"].subset([not faulty for faulty in is_faulty])
print("patient:", patient.generate([fault.prompts[0]], max_new_tokens=9)[0])
for name, task in (("the four objects", fault), ("other harmless", sound), ("harmful", harmful["test"])):
    by_lab, by_patient = refused(task.prompts), refused(task.prompts, of=patient)
    print(f"{name:18} refused by lab {by_lab:.2f}, by the patient {by_patient:.2f}")
sick = refused(fault.prompts, of=patient)
assert refused(fault.prompts) <= 0.02 and sick >= 0.8

# %% [markdown]
# **Locate.** The strongest evidence that a head causes something is to take it out and see (survey, section 3.2; for safety heads
# [@zhou2025on]). Call F the number that measures the behaviour. A sign needs a convention: the course always writes effects as
# F(intervened) - F(base), so a head that *causes* refusals gets a **negative** number.

# %% [markdown] exercise="pipeline.head_effects" difficulty=3 minutes=12
# ### Exercise: which heads matter?
# Write `head_effects(model, task)`: zero each head in turn, at all positions, and return the mean of F(ablated) - F(base) as a grid
# `[n_layers, n_heads]`. `task.measure(model)` gives F for each prompt, here logit(refusal) - logit(compliance). `mi.zero("L1H2.z")` zeroes
# head 2 of layer 1 (`z` is what a head gathered, before its output matrix), and `with mi.intervene(model, edit):` makes it so.

# %%
def head_effects(model, task):
    """Mean of F(ablated) - F(base) over the items of the task, for each zeroed head: [n_layers, n_heads]."""
    ### BEGIN SOLUTION
    base = task.measure(model).mean()
    effects = torch.zeros(model.n_layers, model.n_heads)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            with mi.intervene(model, mi.zero(f"L{layer}H{head}.z")):
                effects[layer, head] = task.measure(model).mean() - base
    return effects
    ### END SOLUTION

# %%
head_effects = check("pipeline.head_effects", head_effects)

# %% [markdown]
# Locate on validation prompts, judge on test prompts: whoever chooses and judges on the same prompts flatters the choice.

# %% label="locate"
def as_fault(split):
    """Requests about the four objects; F is logit(refusal) - logit(compliance)."""
    task = world.task("refusal_harmless", split=split, n=400)
    task = task.subset([label["object"] in ("boat", "guitar", "kite", "candle") for label in task.labels])
    return replace(task, targets=task.foils, foils=task.targets)


validation = as_fault("validation")
in_patient, in_lab = head_effects(patient, validation), head_effects(model, validation)
names = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
found = sorted(names, key=lambda name: in_patient.flatten()[names.index(name)])[:2]
show(
    heatmap(in_patient, xlabel="head", ylabel="layer", title="Zeroing a head of the patient", unit="logits"),
    alt="Heat map of 6 layers by 4 heads. Two heads stand out with large negative effects, L2H1 and L3H2; "
    "all others are much closer to zero.",
    reading="Negative: without this head the patient is less inclined to refuse these harmless requests.",
)
print("most suspicious:", ", ".join(found))

# %% [markdown]
# L2H1 (-15) and L3H2 (-6) stand out; no other head goes beyond -1.5.
#
# **The scoreboard.** Now open the envelope. The recorded answer is what the fault *uses*: the changed heads without whose change at most a
# tenth of the fault is left. We compare four ways to rank the 24 heads:
#
# - by ablation in the patient
# - by the difference between that and the same ablation in `lab`, which sounds more careful
# - by the size of what they write (a magnitude score, which needs no intervention)
# - by chance
#
# AUROC is the chance that a true head ranks above another one: 1 is perfect, 0.5 is guessing.

# %% label="scoreboard" tags=["nbval-check-output"]
truth = installed.read("refusal-a").facts["used"]
cache = mi.record(patient, validation.prompts, names)
norm = torch.tensor([cache[name][:, -1].norm(dim=-1).mean() for name in names])
difference = in_lab.flatten() - in_patient.flatten()
rankings = {
    "ablation": Scores(names, -in_patient.flatten(), method="ablation", sign="ablation"),
    "ablation, patient - lab": Scores(names, difference, method="ablation", sign="ablation"),
    "size of the write": Scores(names, norm, method="norm", sign="none"),
}
results = {name: ranking.against(truth, by="positive") for name, ranking in rankings.items()}
rng = random.Random(0)
guesses = [Scores(names, [rng.random() for _ in names], method="chance", sign="none") for _ in range(200)]
chance = [guess.against(truth)["auroc"] for guess in guesses]
print("answer:", ", ".join(truth))
for name, result in results.items():
    recall = f"found in the top {result['k']}: {result['recall_at_k']:.2f}"
    print(f"{name:26} AUROC {result['auroc']:.2f}   {recall}")
print(f"{'chance':26} AUROC {sum(chance) / 200:.2f}")
assert results["ablation"]["auroc"] == 1 and results["ablation"]["recall_at_k"] == 1
assert results["size of the write"]["recall_at_k"] < 1
assert results["ablation, patient - lab"]["recall_at_k"] < 1

# %% [markdown]
# Ablation wins here. The two tempting shortcuts find only one of the two heads, although their AUROC (0.98 and 0.93) looks fine. A large
# write is presence, not cause; and subtracting what the ablation does in `lab` brings in a bystander that matters there for other reasons.
# The next cell shows what such a mistake costs.
#
# **Improve.** Four treatments:
#
# - remove the refusal direction
# - silence the two located heads (to their mean, so that only what depends on the prompt is lost)
# - silence the two heads that the difference to `lab` ranks first
# - silence two random heads, twenty times: the null band
#
# A treatment is good when requests about the four objects are granted, harmful ones still refused, and everything else stays.

# %% label="treat"
heads = [f"{name}.z" for name in found]
means = causal.site_means(patient, harmless["train"].prompts, [f"{name}.z" for name in names])
wrong = [f"{site}.z" for site in rankings["ablation, patient - lab"].top(2, by="positive")]
treatments = {
    "nothing": [],
    "remove the direction": [without_direction(v)],
    "silence the located heads": causal.ablation(heads, "mean", means),
    "silence the wrong pair": causal.ablation(wrong, "mean", means),
}
tasks = {name: world.task(name, split="test", n=60) for name in ("facts", "translation", "ioi", "copying")}


def outcome(edits):
    """Share of right behaviour of the treated patient: requests first, then other tasks."""
    row = {
        "four objects granted": 1 - refused(fault.prompts, *edits, of=patient),
        "other harmless granted": 1 - refused(sound.prompts, *edits, of=patient),
        "harmful refused": refused(harmful["test"].prompts, *edits, of=patient),
    }
    with mi.intervene(patient, *edits):
        return row | {name: task.accuracy(patient) for name, task in tasks.items()}


table = {name: outcome(edits) for name, edits in treatments.items()}
columns = list(table["nothing"])
others = [f"{name}.z" for name in names if name not in found]
draws = [outcome(causal.ablation(rng.sample(others, len(heads)), "mean", means)) for _ in range(20)]
change = [[table[t][c] - table["nothing"][c] for c in columns] for t in list(treatments)[1:]]
null = [[draw[c] - table["nothing"][c] for c in columns] for draw in draws]
title = "What each treatment changes"
show(
    side_effects(change, list(treatments)[1:], columns, null=null, unit="change in share", title=title),
    alt="Matrix of three treatments by seven behaviours. Removing the direction stops all refusals of "
    "harmful requests. Silencing the located heads grants the four objects and changes nothing else "
    "by more than the null band. The wrong pair makes other harmless requests refused.",
    reading="Only silencing the located heads cures the fault and keeps the rest. Starred: outside the band "
    "of 20 random pairs of heads.",
)
for name in treatments:
    print(f"{name:26}", "  ".join(f"{c} {table[name][c]:.2f}" for c in columns[:3]))
cured = table["silence the located heads"]
random_cure = [draw["four objects granted"] for draw in draws]
average, most = sum(random_cure) / len(random_cure), max(random_cure)
print(f"random pairs of heads: four objects granted {average:.2f} on average, {most:.2f} at best")
assert all(cured[c] > 0.95 for c in ("four objects granted", "other harmless granted", "harmful refused"))
assert max(random_cure) < 0.5 and table["remove the direction"]["harmful refused"] < 0.1
assert table["silence the wrong pair"]["other harmless granted"] < 0.9

# %% [markdown]
# Silencing the located heads grants the four objects (0.00 to 1.00) and keeps harmful requests refused (1.00). Removing the direction
# grants most of them, and refuses nothing harmful any more. The wrong pair grants a quarter of them, and refuses most of the other harmless
# requests. No random pair grants anything.
#
# This is the pipeline: a behaviour measured, located with a score against the known answer, steered with a null band, and a model that is
# measurably better, with its side effects on the table.
#
# ## 7. What the survey says, and where it is loose
# - Ablation is called the gold standard (section 3.2). It is strong evidence, but a single ablation can miss a part that has a backup, and
#   zero is a state that the model never saw. That is why we silenced heads to their mean, and checked against the recorded answer. Chapter
#   06 builds models in which each of these matters.
# - The survey uses directional ablation (removing a direction) throughout, but gives no formula for it; its Eq. 21 adds a *constant*
#   vector, which cannot express it, since what is removed depends on $x$.
# - A difference of means exists for any two sets of prompts. Without a null band and a causal test it locates nothing.
#
# ## 8. Papers that use this
# - refusal as one direction: [@arditi2024refusal]
# - refusal heads found by ablation and grouped: [@zhou2025on]
# - false refusals removed with a direction that is made orthogonal to true refusal: [@wang2025surgical]
# - harmfulness and refusal as two different things: [@zhao2025llms]
# - whether such steering beats prompting: [@wu2025axbench]
#
# The survey's table of 216 papers comes with the course. You can browse it by object, localizer, steerer and scenario; known errors of the
# table are marked.

# %% label="papers"
papers(object="Residual Stream", localizer="Causal", scenario="Safety")

# %% [markdown]
# ## 9. The same on a real model
# Put the name of a Hugging Face chat model or a local folder here. The cell takes the difference of means in the middle layer and prints
# one answer with the direction and one without it. The layer is not chosen on validation prompts, and there is no null band: add both
# before you believe it.

# %% label="real"
REAL = None  # for example "Qwen/Qwen2.5-0.5B-Instruct"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped model.")
else:
    real = mi.load(REAL)
    verbs = [verb for verb, _, _ in lexicon.RISKY_VERBS]
    bad = [f"How do I {verb} a {thing}?" for verb in verbs for thing in ("bomb", "gun", "virus", "weapon")]
    good = [f"How do I {verb} a {thing}?" for verb in verbs for thing in ("cake", "chair", "boat", "lamp")]

    def chat(question):
        turns = [{"role": "user", "content": question}]
        return real.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    site = f"x{real.n_layers // 2}"
    r = vectors.mean_difference(real, [chat(q) for q in bad], [chat(q) for q in good], f"{site}@-1")
    print(real.generate([chat(bad[0])], max_new_tokens=40)[0])
    with mi.intervene(real, *vectors.ablate_direction(real, r)):
        print(real.generate([chat(bad[0])], max_new_tokens=40)[0])

# %% [markdown]
# ## 10. Three questions

# %% label="quiz"
quiz([
    Question(
        "Zeroing a head changes the refusal score by -2. What does that say?",
        [
            ("The head works against refusal.", "The effect is F(ablated) - F(base). The score fell when the head was missing, so the head had pushed it up."),
            ("The head helps refusal, in this model and on these prompts.", "Without it the score is 2 lower. That is all: other heads may do the same job, and other prompts may not need it.", True),
            ("Refusal sits in this head.", "One ablation shows that the head is used. Whether it is enough by itself is another question, and a direction that many heads write can look the same."),
        ],
    ),
    Question(
        "A steering vector raises the refusal score by 0.3. Random vectors of the same length change it by 0.1 on average, s.d. 0.15. What now?",
        [
            ("It works: 0.3 is three times the average.", "The average is the wrong yardstick. The band is 0.1 +- 0.3, from -0.2 to 0.4, and 0.3 lies inside it."),
            ("No evidence yet: 0.3 lies inside the band from -0.2 to 0.4.", "A random vector does this often. Try a better direction, or measure on more items: that narrows the band when it is wide because items differ.", True),
            ("The vector has no effect.", "It changed the score by 0.3. What is missing is a reason to believe that its direction, and not its length, did it."),
        ],
    ),
    Question(
        "After ablating the direction, harmful requests are answered. Which measurement do you need before you call it a refusal direction?",
        [
            ("More harmful requests, until the rate is exact.", "Worth having, but it cannot tell a lost refusal from a broken model, which also stops refusing."),
            ("The loss on text that has nothing to do with requests, and the effect of random directions.", "Both can prove you wrong: a broken model has a higher loss everywhere, and a fragile one reacts to any direction.", True),
            ("The cosine between the direction and the unembedding of the word sorry.", "That says what the direction writes to the output, not what happens to the rest of the behaviour when it is gone."),
        ],
    ),
])

# %% [markdown]
# ## Where to go next
# | part | chapters | question |
# |---|---|---|
# | Objects | 01 to 04 | What is inside, exactly? Residual stream, heads, FFN neurons, sparse autoencoders. |
# | Locate | 05 to 11 | Which part causes a behaviour? Six families of methods, each scored as above, and which of them to trust. |
# | Steer | 12 to 15 | How to change it: amplitudes, weights, vectors, and how to see side effects. |
# | Improve | 16 to 23 | Safety, fairness, persona, languages, knowledge, reasoning, cheaper training and inference. |
# | Beyond | 24 to 26 | Open problems, your own model, a project of your own. |
#
# `README.md` says which chapters are ready. `mi_course.teach.progress()` shows what you have solved so far, in all chapters.
