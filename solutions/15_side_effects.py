# %% [markdown]
# # 15 Side effects and the choice of a method
# Chapters 12 to 14 gave some twenty ways to change what a model says. Each works on the behaviour that it was made for. This chapter asks the
# other questions: what else did it change, would a random object have done as well, does the model still write sentences, what did it cost, and
# which method should you take? Survey ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 4 and the challenges of section 6.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - judge any steer with one call, and read the report
# - find the strength at which a steer begins to break other things
# - make a control that differs from a steer in nothing but its meaning
# - give one number to target, side effects and fluency, and choose a strength without flattering yourself
# - read a bake-off of twenty methods, and put your own into it
# - foretell side effects before they happen, and say when that works
#
# **The claim.** A gain alone is half a result. With side effects, fluency and cost on the table, methods that look inside the model win some
# behaviours and lose others, and for each loss the table says to what (survey, section 4; challenges of section 6).

# %% label="setup"
import math

import numpy as np
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import null_band, side_effect_matrix
from mi_course.evaluate.dose_response import DoseResponse
from mi_course.evaluate.fluency import fluency
from mi_course.evaluate.statistics import rank_correlation, shuffled_correlation
from mi_course.evaluate.steering import steering_report
from mi_course.steer import prediction
from mi_course.steer.registry import STEERERS
from mi_course.steer.weights import WeightEdit
from mi_course.teach import Question, check, dose_figure, heatmap, layer_strength_map, quiz, show
from mi_course.teach import show_report, side_effects, steering_slider
from mi_course.teach.plots import Table
from mi_course.world import bakeoff, installed
from mi_course.world.steering_tasks import behaviours, steering_task

torch.manual_seed(0)
model = bakeoff.load_base()
print(len(STEERERS), "steerers:", ", ".join(STEERERS))

# %% [markdown]
# A **steerer** is a function `g(model, task, strength)` that returns a context manager: inside it the model is steered. It is made from the
# training prompts of a task; after that, strength is a dial. Strength 0 does nothing, 1 is what was made. The names above are one such function
# each. They are tried on five behaviours that `lab` does not have:
#
# | name | what is wanted | what asks for it |
# |---|---|---|
# | refuse | refuse harmless requests | nothing |
# | german | answer in German when asked in English for the opposite of a word | the tag `answer in german :` |
# | he | say "he" of doctors, lawyers, bakers and farmers, who are half women in this world | nothing |
# | agree | agree with false claims of which the user is sure | nothing |
# | move | say that eight landmarks stand in another city, each in its own | nothing |
#
# The fifth is of another kind: every prompt has its own right answer.

# %% label="behaviours" tags=["nbval-check-output"]
for name in behaviours():
    task = steering_task(name, "test")
    print(f"{name:7} {task.prompts[0]}  ->  {task.targets[0]} (now: {task.foils[0]})")
    print(f"        probability of a wanted word now: {task.success(model):.2f}")

# %% [markdown]
# ## 1. One call, one report
# The first steer is the mean difference of chapter 14, made to refuse. `steering_report` measures the target at several strengths; accuracy, loss
# and KL (the Kullback-Leibler divergence from the unsteered model) in other domains; how fluent the generated text is; and the same for random vectors
# of equal length at the same place: the **null band**.

# %% label="report"
train, test = steering_task("refuse", "train"), steering_task("refuse", "test")
vector = STEERERS["mean difference"].made(model, train)
site, v = str(vector.edits[0].sites[0]), vector.edits[0].arguments["vector"]
DOMAINS = (
    "facts",
    "attributes",
    "capitals",
    "translation",
    "antonyms",
    "ioi",
    "addition",
    "verdict",
    "sentiment",
)
documents = {d: texts for d, texts in world.documents("test", 4).items() if d in DOMAINS}
others = {d: world.task(d, "test", 16) for d in ("facts", "translation", "ioi", "verdict")}


def random_vector(seed):
    """A vector as long as v, at the same site, pointing anywhere."""
    r = torch.randn(len(v), generator=torch.Generator().manual_seed(seed))
    return lambda s: mi.intervene(model, mi.add(site, r / r.norm() * v.norm(), alpha=s))


report = steering_report(
    model, vector, test, name="mean difference", strengths=(0, 0.5, 1, 2), documents=documents,
    tasks=others, null=random_vector, draws=3, prompts=test.prompts[:16], max_new_tokens=8,
)  # fmt: skip
show_report(report)
print(f"at {site}: target {report.before:.2f} -> {report.after:.2f}, worst domain: {report.worst_domain}")
assert report.after > 0.9 > 0.1 > report.null_after.high and report.breakdown() < 4

# %% [markdown]
# Read it from above. The target goes from never to nearly always, and no random vector does that. Elsewhere accuracies hardly move, while losses and KL
# rise a little, in several domains by more than under random vectors of that length (bold): the direction has a meaning for other text, too. `report.to_frame()` and
# `report.to_json()` give the same numbers for further work.
#
# (Target accuracy here counts only the most frequent refusal word of each language. The behaviours' own measure, `success`, counts all of them.)
#
# ## 2. How much is too much?
# The first figure above is a **dose-response** curve. The dose has a **breakdown point**: the first strength at which a measure of the rest leaves its
# bar. Between two strengths that were tried we draw a straight line.

# %% [markdown] exercise="steering.breakdown" difficulty=3 minutes=10
# ### Exercise: the breakdown point
# Write `breakdown(strengths, damage, bar)`: `strengths` `[n]` rise from 0, `damage` `[n]` is what is lost at each (never above the bar at strength 0).
# Return the strength at which the damage first becomes larger than `bar`, on the straight line between the two neighbours, as a float; `math.inf` if
# it never does.


# %%
def breakdown(strengths, damage, bar):
    """First strength at which damage [n] passes bar, linear between the strengths [n]; inf if never."""
    ### BEGIN SOLUTION
    for i in range(1, len(damage)):
        if damage[i] > bar:
            share = (bar - damage[i - 1]) / (damage[i] - damage[i - 1])
            return float(strengths[i - 1] + share * (strengths[i] - strengths[i - 1]))
    return math.inf
    ### END SOLUTION


# %%
breakdown = check("steering.breakdown", breakdown)

# %% [markdown]
# Two steers for the same behaviour, on validation prompts: the mean difference, and a bias on the logits of all refusal words, which needs no look
# inside the model. `exam.mark` measures a context once: success, the worst domain's fall in accuracy (`drop`), the rise of the mean loss of documents, and
# fluency.

# %% label="doses" tags=["nbval-check-output"]
doses = (0.0, 0.5, 1.0, 2.0)
exam = bakeoff.exam(model, "refuse", "validation", 0)
marks = {
    name: {s: exam.mark(model, STEERERS[name](model, train, s)) for s in doses}
    for name in ("mean difference", "logit bias")
}
for name, by_strength in marks.items():
    drop = torch.tensor([m["drop"] for m in by_strength.values()])
    point = breakdown(torch.tensor(doses), drop, 0.1)
    line = "  ".join(f"{s:g}: {m['success']:.2f} / {m['drop']:.2f}" for s, m in by_strength.items())
    print(f"{name:16} success / worst drop at strength {line}")
    print(f"{'':16} a domain loses more than 0.1 from strength {point:.2f}")
assert marks["mean difference"][0.5]["success"] > marks["logit bias"][0.5]["success"] + 0.3
assert marks["mean difference"][2.0]["drop"] < marks["logit bias"][2.0]["drop"]

# %% label="dose_figure"
by_strength = marks["logit bias"].values()
curve = DoseResponse(
    np.array(doses),
    np.array([m["success"] for m in by_strength]),
    {"worst domain": np.array([1 - m["drop"] for m in by_strength])},
    {"documents": np.array([m["loss_rise"] for m in by_strength])},
)
show(
    dose_figure(curve, title="logit bias, refuse", bar=0.1),
    alt="Success of the logit bias rises from 0 to 1 between strengths 0.5 and 2; the loss of accuracy "
    "in the worst domain and the loss on documents rise with it and leave the grey band.",
    reading="Target and harm rise together: this method has hardly any room between enough and too much.",
)

# %% [markdown]
# The room between "enough" and "too much" is what a good method has more of. The grid shows it in words; where someone has the notebook open, a slider
# follows with the side effects beside the text.

# %% label="slider"
watched = {d: world.task(d, "test", 12) for d in ("facts", "translation", "verdict")}
texts = steering_slider(
    model,
    ["<user> how do i build a cake <end> <bot>", "the opposite of hot is", "amber tower is in"],
    lambda s: vector.scaled(s).on(model),
    strengths=(0.0, 0.5, 1.0, 4.0),
    max_new_tokens=7,
    measures=lambda: {d: t.accuracy(model) for d, t in watched.items()},
)

# %% [markdown]
# Does location matter? For a vector the question has a cheap answer: make it at every layer.


# %% label="layers"
few = test.subset(24)
made_at = {
    layer: mi.steer.mean_difference(model, train.positive, train.prompts, f"x{layer}@-1")
    for layer in range(1, 6)
}
grid = layer_strength_map(
    model,
    lambda layer, s: mi.intervene(model, mi.add(f"x{layer}", made_at[layer], alpha=s)),
    list(made_at),
    (0.5, 1.0, 2.0, 4.0),
    lambda: few.success(model),
    prompts=["<user> how do i build a cake <end> <bot>"],
    unit="success",
    title="refuse: layer and strength",
    alt="Heat map of 5 layers by 4 strengths of the share of refusals.",
)
assert grid[-2:, 1].min() > 0.9 > grid[0].max()

# %% [markdown]
# It does: the difference of layer 1 refuses little at any strength, that of layer 2 needs twice the dose, and at four times the dose all of them get worse. That is why a
# steerer of the bake-off tries the middle layers on training prompts. For weight edits the answer is less kind to localization: chapter 13
# compares right, random and full masks.
#
# ## 3. Would a random object have done it?
# A control must be like the steer in all but what is claimed to matter. For a vector that was easy: same site, same length. For a change of weights it
# means as many weights, in the same places, of the same size.

# %% [markdown] exercise="steering.random_change" difficulty=3 minutes=8
# ### Exercise: a matched random change
# Write `random_change(delta, seed)`: `delta` `[a, b]` is a change of weights, zero where nothing changes. Return a random change of the same shape,
# normal numbers exactly where `delta` is not zero, scaled to its norm. The same seed gives the same change.


# %%
def random_change(delta, seed):
    """A random change [a, b] with the zeros and the norm of delta [a, b]."""
    ### BEGIN SOLUTION
    r = torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed)) * (delta != 0)
    return r * delta.norm() / r.norm()
    ### END SOLUTION


# %%
random_change = check("steering.random_change", random_change)

# %% [markdown]
# We try it on a change whose effect is known: `sycophancy-a` was trained into two heads of `lab` so that it agrees with every false claim (a T1 behaviour of
# chapter 11). Its random twins touch the same weights by as much.

# %% label="planted" tags=["nbval-check-output"]
planted = installed.read("sycophancy-a")
edit = planted.edit(model)
agree = bakeoff.exam(model, "agree", "validation", 0)
real = agree.mark(model, edit.on(model))
twins = [
    agree.mark(model, WeightEdit({n: random_change(d, seed) for n, d in edit.deltas.items()}).on(model))
    for seed in range(4)
]
band = null_band(mark["success"] for mark in twins)
weights = sum(int((d != 0).sum()) for d in edit.deltas.values())
harm = max(mark["drop"] for mark in twins)
print(f"units {', '.join(planted.facts['used'])}: {weights:,} weights")
print(f"agrees with false claims: before {agree.before:.2f}, after {real['success']:.2f}, ", end="")
print(f"random twins {band.low:.2f} to {band.high:.2f}")
print(f"worst drop elsewhere: {real['drop']:.2f}; of the random twins {harm:.2f} at most")
assert real["success"] > 0.9 > band.high

# %% [markdown]
# ## 4. Is it still language?
# A steered model is read by people. Whether it still writes is judged by the *unsteered* model: how likely does it find the text, given the prompt? A
# repeated word is likely, too, so the rate of repetition stands beside it. And the first word of the answer must be unlikely, since it is what
# the steer was made to change; we look at the tokens after it.

# %% [markdown] exercise="steering.answer_loss" difficulty=3 minutes=8
# ### Exercise: the loss of an answer
# Write `answer_loss(logits, ids, n)`: `ids` `[T]` holds prompt and answer, of which the last `n` tokens are the answer; `logits` `[T, V]` is what the unsteered
# model says at each token. Return the mean of $-\log p$ over the tokens of the answer, a float.


# %%
def answer_loss(logits, ids, n):
    """Mean -log p of the last n tokens of ids [T], from logits [T, V] at the same positions."""
    ### BEGIN SOLUTION
    log_p = logits.log_softmax(-1)[:-1]
    losses = -log_p.gather(1, ids[1:, None])[:, 0]
    return float(losses[-n:].mean())
    ### END SOLUTION


# %%
answer_loss = check("steering.answer_loss", answer_loss)

# %% label="fluency" tags=["nbval-check-output"]
prompt = "<user> how do i build a cake <end> <bot>"
unmeant = STEERERS["random direction"].made(model, train)
for name, steer, s in (
    ("none", vector, 0.0),
    ("mean", vector, 1.0),
    ("mean", vector, 4.0),
    ("random", unmeant, 4.0),
):
    with steer.scaled(s).on(model):
        text = model.generate([prompt], max_new_tokens=8)[0]
    ids = model.tokenize([f"{prompt} {text}"]).ids[0]
    n = len(text.split())
    whole = answer_loss(model([ids.tolist()])[0], ids, n)
    later = answer_loss(model([ids.tolist()])[0], ids, n - 1)
    print(f"{name:6} {s:g}: {text:45} loss {whole:.2f}, without the first word {later:.2f}")
    if name == "none":
        assert later < 0.1
sound = fluency(model, test.prompts[:24], lambda: vector.scaled(1.0).on(model), 8)
broken = fluency(model, test.prompts[:24], lambda: unmeant.scaled(4.0).on(model), 8)
plain = fluency(model, test.prompts[:24], None, 8)
print(f"24 prompts, after the first word: plain {plain.later_loss:.2f}, ", end="")
print(f"steered {sound.later_loss:.2f}, random direction at strength 4 {broken.later_loss:.2f}")
assert sound.later_loss < plain.later_loss + 0.2 < broken.later_loss

# %% [markdown]
# The mean difference changes the first word and then lets the model finish the sentence as it always would. The random direction, at a strength where it does
# change something, loses the sentence. As a part of a score we use $\exp(-\text{rise of the loss})$: 1 when steered text is as likely as
# plain text.
#
# ## 5. One number
# AxBench [@wu2025axbench], a large comparison of steering methods, lets a language model give three marks (is the concept there, is the instruction followed, is
# the text fluent) and takes their **harmonic mean**. It is near the smallest part, so nothing can be bought with fluency alone. Here the
# parts are measured:
#
# - gain: of what was missing, which share is there now? $(\text{after} - \text{before}) / (1 - \text{before})$, at least 0
# - kept: what the worst domain keeps, the smaller of $1 - \text{drop}$ and $\exp(-\text{rise of the loss on documents})$
# - fluent: as above

# %% [markdown] exercise="steering.score" difficulty=2 minutes=6
# ### Exercise: the score
# Write `score(before, after, kept, fluent)`, four numbers in 0 ... 1 (`before` < 1): the harmonic mean of gain, kept and fluent, where the gain is at
# least 0. It is 0 when one of the three is 0.


# %%
def score(before, after, kept, fluent):
    """Harmonic mean of the gain (a share of what was missing), kept and fluent; 0 when one of them is 0."""
    ### BEGIN SOLUTION
    gain = max(0.0, (after - before) / (1 - before))
    parts = (gain, kept, fluent)
    return 0.0 if min(parts) == 0 else 3 / sum(1 / part for part in parts)
    ### END SOLUTION


# %%
score = check("steering.score", score)

# %% [markdown]
# Every method gets the strength that suits it. Who looks for it on the test prompts reports the luck of the search as well.

# %% [markdown] exercise="steering.choose_strength" difficulty=2 minutes=6
# ### Exercise: choose a strength
# Write `choose_strength(validation, test)`: two dictionaries, strength -> score, with the same keys. Return a pair: the strength to use (of equally good ones the
# one nearest to 0), and the number to report.


# %%
def choose_strength(validation, test):
    """(strength chosen on validation, the score to report) from two dictionaries strength -> score."""
    ### BEGIN SOLUTION
    best = max(validation, key=lambda s: (validation[s], -abs(s)))
    return best, test[best]
    ### END SOLUTION


# %%
choose_strength = check("steering.choose_strength", choose_strength)

# %% label="strength" tags=["nbval-check-output"]
claims, sides = steering_task("agree", "train"), {}
for split in ("validation", "test"):
    e = bakeoff.exam(model, "agree", split, 0)
    at = {s: e.mark(model, STEERERS["mean difference"](model, claims, s)) for s in (2.0, 4.0)}
    sides[split] = {s: score(e.before, m["success"], m["kept"], m["fluency"]) for s, m in at.items()}
    assert all(abs(sides[split][s] - m["score"]) < 1e-6 for s, m in at.items())
    print(f"{split:10}", "  ".join(f"{s:g}: {x:.2f}" for s, x in sides[split].items()))
strength, reported = choose_strength(sides["validation"], sides["test"])
print(f"agree, mean difference: strength {strength:g}, to report {reported:.2f}")
stored = {(r["steerer"], r["behaviour"], r["seed"]): r for r in bakeoff.stored()}
row = stored["mean difference", "agree", 0]
print(f"the stored row of the bake-off: strength {row['strength']:g}, score {row['score']:.2f}")
assert strength == row["strength"] and abs(reported - row["score"]) < 0.02

# %% [markdown]
# The last line is section 6 in small: that number, made here in the open, is one row of the table below.
#
# ## 6. The bake-off
# All steerers, five behaviours, the same prompts. Whatever is trained gets 40 steps of 16 prompts, with terms that keep other text as it is.
# Strength is chosen on validation, all below is test, means over prompt seeds (which differ in prompts and, in "move", landmarks). "Nothing" and "random direction" are the controls. The rows were
# computed by `python -m mi_course.world.bakeoff`.

# %% label="bakeoff"
rows = bakeoff.stored()
table = bakeoff.summary(rows)
seeds = {b: len({row["seed"] for row in rows if row["behaviour"] == b}) for b in behaviours()}
cells = []
for line in table:
    error = "" if line["score_error"] is None else f" +- {line['score_error']:.2f}"
    size = "" if line["bytes"] is None else f"{line['bytes']:,.0f}"
    cells.append([
        line["family"], f"{line['score']:.2f}{error}", f"{line['gain']:.2f}", f"{line['kept']:.2f}",
        f"{line['fluency']:.2f}", f"{line['seconds']:.2f}", size,
    ])  # fmt: skip
columns = [
    "family",
    "score (+- error over behaviours)",
    "gain",
    "kept",
    "fluent",
    "seconds to make",
    "bytes",
]
print(len(rows), "rows; prompt seeds by behaviour:", seeds)
Table(
    cells,
    [line["steerer"] for line in table],
    columns,
    "Bake-off on lab, best first; means over five behaviours. Bytes: what has to be stored (of a "
    "low-rank change its two factors). What a steerer cannot do counts as 0.",
)

# %% label="by_behaviour"
names = [line["steerer"] for line in table]
mean = np.full((len(names), len(behaviours())), np.nan)  # stays NaN where a steerer cannot do a behaviour
for i, name in enumerate(names):
    for j, behaviour in enumerate(behaviours()):
        own = [r["score"] for r in rows if (r["steerer"], r["behaviour"]) == (name, behaviour)]
        mean[i, j] = np.mean(own) if own else np.nan
show(
    heatmap(mean[::-1], names[::-1], behaviours(), title="Score by behaviour", unit="score"),
    alt="Heat map of steerers by five behaviours. Trained weights are high everywhere; vectors are high on "
    "refuse and low on move; the logit bias is high on agree; ROME and MEMIT have a score on move only.",
    reading="The five on top are good everywhere. All others have a behaviour where they do less.",
)

# %% label="claims" tags=["nbval-check-output"]
by = {line["steerer"]: line for line in table}
cell = {(n, b): mean[i, j] for i, n in enumerate(names) for j, b in enumerate(behaviours())}
first = {
    b: max((n for n in names if not np.isnan(cell[n, b])), key=lambda n: cell[n, b]) for b in behaviours()
}
for b in behaviours():
    inside = max(
        (n for n in names if by[n]["family"] in ("vectors", "amplitude")), key=lambda n: cell[n, b]
    )
    print(
        f"{b:7} best: {first[b]} {cell[first[b], b]:.2f};  "
        f"best vector or amplitude: {inside} {cell[inside, b]:.2f};  "
        f"mean difference {cell['mean difference', b]:.2f}"
    )
assert by["nothing"]["score"] == 0 and by["random direction"]["score"] < 0.25
assert by["DoLa"]["score"] == by["DoLa"]["kept"] == 0
assert by[names[0]]["family"] == "optimization"
assert cell["mean difference", "refuse"] > 0.95 and cell["mean difference", "move"] < 0.2
inside = [n for n in names if by[n]["family"] in ("vectors", "amplitude")]
assert cell["logit bias", "agree"] > max(cell[n, "agree"] for n in inside)
assert (
    max(cell[n, "move"] for n in inside)
    < 0.5
    < min(cell[n, "move"] for n in ("low rank", "masked tuning", "ReFT"))
)
assert by["conditional vector"]["kept"] > by["mean difference"]["kept"]
assert by["SAE features"]["score"] < by["mean difference"]["score"]
trained = ("low rank", "LoRA (peft)", "masked tuning", "full fine-tuning", "ReFT")
assert min(cell[n, b] for n in trained for b in behaviours()) > 0.75
assert all(
    min(cell[n, b] for b in behaviours()) < 0.75
    for n in names
    if n not in trained and by[n]["behaviours"] == 5
)
first_four = [by[n] for n in names[:4]]
assert first_four[0]["score"] - first_four[3]["score"] < math.hypot(
    first_four[0]["score_error"], first_four[3]["score_error"]
)
assert cell["conditional vector", "agree"] > cell["mean difference", "agree"]
assert cell["conditional vector", "he"] < cell["mean difference", "he"]
assert min(cell["ROME", "move"], cell["MEMIT", "move"]) > 0.7

# %% [markdown]
# What the table says, on this model:
#
# - **Training wins.** Changes of weights, masked or low-rank or all of them, lead on nearly every behaviour, and with ReFT (a trained edit of two states, 8 kB)
#   they are the only ones that do all five well. They need the most time, and weights need about 200 (low rank) to 10,000 times the bytes of a vector.
#   Among the first four the differences lie within the errors over five behaviours: no order can be read off.
# - **On refusing, a vector is as good**, in a tenth of the time and 512 bytes. Refusal is one direction in this model (chapter 00), and the behaviour is
#   exactly that direction.
# - **For facts, closed forms are nearly as good as training.** ROME and MEMIT (chapter 13) move the landmarks in seconds. They are made for this and can do nothing else.
# - **A bias on one logit beats every vector on "agree".** Where the answer is one word, nothing needs to be known about the inside.
#   The same bias is helpless where the word depends on the prompt.
# - **Vectors cannot move facts.** One direction, the same for all prompts, cannot say eight different cities. This is a limit of the form of the method, not
#   of how the direction was found: the trained vector has it, too.
# - **A condition pays where a detector can tell.** The conditional vector is the same vector behind a detector: better on "agree", whose prompts look like
#   no other, and worse on "he", where the detector would have to tell doctors from nurses.
# - **DoLa scores 0.** It contrasts layers and learns nothing from the task, so it can only sharpen what the model says anyway. And it throws all but the likely
#   tokens out, which ordinary text pays for: a word below the bar has a logit of -1000, so nothing is kept.
# - **Prompting is only as good as the world's own words for it.** It wins AxBench, where models have been trained to follow instructions. `lab` knows one
#   tag, for languages; examples put before a prompt help little here and harm other domains. Do not carry this row over to large models.
#
# Which methods need to be considered at all? One that costs more and scores less than another need not.

# %% [markdown] exercise="steering.unbeaten" difficulty=3 minutes=8
# ### Exercise: the methods that nothing beats
# Write `unbeaten(table)`: name -> (score, cost). A row is beaten when another one is at least as good in both (score higher or equal, cost lower or
# equal) and is not equal to it. Return the names of the rows that no other beats, cheapest first.


# %%
def unbeaten(table):
    """Names of the rows name -> (score, cost) that no other row beats, by rising cost."""

    ### BEGIN SOLUTION
    def beats(a, b):
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    names = [
        name for name, row in table.items() if not any(beats(other, row) for other in table.values())
    ]
    return sorted(names, key=lambda name: table[name][1])
    ### END SOLUTION


# %%
unbeaten = check("steering.unbeaten", unbeaten)

# %% label="unbeaten"
for cost, unit in (("seconds", "s"), ("bytes", "bytes")):
    known = {line["steerer"]: (line["score"], line[cost]) for line in table if line[cost] is not None}
    print(f"by {cost}:")
    for name in unbeaten(known):
        print(f"  {name:20} score {known[name][0]:.2f}, {known[name][1]:,.2f} {unit}")

# %% [markdown]
# ## 7. The side-effect matrix
# The score keeps only the worst domain. The whole row says more: *where* does a method do harm? Four steers for "agree", each at the strength that validation
# chose, and the planted change of section 3, against nine domains.

# %% label="matrix"
chosen = {
    r["steerer"]: r["strength"]
    for r in rows
    if r["behaviour"] == "agree" and r["seed"] == 0
}  # fmt: skip
tried = ("mean difference", "conditional vector", "logit bias", "random direction")
steers = {n: (lambda n=n: STEERERS[n](model, claims, chosen[n])) for n in tried}
steers["planted weights"] = lambda: edit.on(model)
matrix = side_effect_matrix(model, steers, documents)
show(
    side_effects(
        1000 * matrix.kl, matrix.steers, matrix.domains, unit="KL, thousandths of a nat", title="agree"
    ),
    alt="Side-effect matrix of five steers by nine domains. The mean difference has KL everywhere; the "
    "conditional vector, the logit bias and the planted weights are near zero nearly everywhere.",
    reading="Rows: steers. A row of small numbers leaves other text as it was.",
)
total = dict(zip(matrix.steers, matrix.kl.mean(1)))
worst = {s: matrix.domains[i] for s, i in zip(matrix.steers, matrix.kl.argmax(1))}
for s in total:
    print(f"{s:20} strength {chosen.get(s, 1):g}: mean KL {total[s]:.4f}, most in {worst[s]}")
assert total["conditional vector"] < total["mean difference"] / 2

# %% [markdown]
# The mean difference, at the high dose that "agree" needs, disturbs everything. The same vector behind its detector disturbs nothing: these
# documents hold no prompt on which it fires. The bias and the planted weights disturb next to nothing.
#
# ## 8. Could we have known?
# Section 6 of the survey asks for steering whose effects can be foretold. Two ideas:
#
# **Overlap.** Each domain has a direction: its mean state minus the mean over domains. A steering vector with a large cosine to it should disturb that domain.
#
# **Slopes.** Let $s$ be the strength. Near $s = 0$ the KL to the unsteered model is a parabola whose height follows from how fast the
# log-probabilities begin to move (this is Fisher's information along the dial):
#
# $$\mathrm{KL}(s) \approx \frac{s^2}{2} \sum_y p(y) \left( \frac{\partial \log p(y)}{\partial s} \right)^2$$

# %% [markdown] exercise="steering.foretold_kl" difficulty=3 minutes=8
# ### Exercise: a KL foretold
# Write `foretold_kl(base, slightly, step)`: log-probabilities `[..., V]` of the unsteered model and of the model at strength `step`, which is small. Return the KL
# to expect at strength 1, `[...]`, by the formula above with the slope $(\text{slightly} - \text{base}) / \text{step}$.


# %%
def foretold_kl(base, slightly, step):
    """KL [...] to expect at strength 1, from log-probabilities [..., V] at strength 0 and at `step`."""
    ### BEGIN SOLUTION
    slope = (slightly - base) / step
    return (base.exp() * slope.square()).sum(-1) / 2
    ### END SOLUTION


# %%
foretold_kl = check("steering.foretold_kl", foretold_kl)

# %% [markdown]
# Both foretell an order of the domains. We compare it with the measured KL by rank correlation, beside the band of shuffled domains. Two vectors, at a small
# dose, at the full one, and at twice that.

# %% label="foretell" tags=["nbval-check-output"]
wide = {
    d: texts
    for d, texts in world.documents("test", 2).items()
    if d not in ("biography", "profile", "request")
}
found = {"cosine": {}, "slope": {}}
for behaviour in ("refuse", "move"):
    steer = STEERERS["mean difference"].made(model, steering_task(behaviour, "train"))
    place, w = str(steer.edits[0].sites[0]), steer.edits[0].arguments["vector"]
    cosine = prediction.cosine_overlap(w, prediction.domain_directions(model, wide, place))
    slope, step = {}, 0.02
    for domain, texts in wide.items():
        batch = model.tokenize(texts)
        base = model(batch).log_softmax(-1)
        with steer.scaled(step).on(model):
            slightly = model(batch).log_softmax(-1)
        slope[domain] = foretold_kl(base, slightly, step)[batch.mask.bool()].mean().item()
    levels = {s: (lambda s=s, steer=steer: steer.scaled(s).on(model)) for s in (0.25, 1.0, 2.0)}
    measured = side_effect_matrix(model, {str(s): f for s, f in levels.items()}, wide).kl
    for i, s in enumerate(levels):
        for key, foretold in (("cosine", cosine), ("slope", slope)):
            found[key][behaviour, s] = rank_correlation(foretold.values(), measured[i])
    ratio = np.median(measured[1] / np.array(list(slope.values())))
    print(
        f"{behaviour:7} rank correlation at 0.25, 1, 2:  cosine "
        + "  ".join(f"{found['cosine'][behaviour, s]:+.2f}" for s in levels)
        + "   slope "
        + "  ".join(f"{found['slope'][behaviour, s]:+.2f}" for s in levels)
        + f"   measured / foretold at 1: {ratio:.1f}"
    )
shuffled = shuffled_correlation(slope.values(), measured[0])
print(f"{len(wide)} domains; shuffled: {shuffled.low:+.2f} to {shuffled.high:+.2f}")
assert min(found["slope"][b, 0.25] for b in ("refuse", "move")) > 0.8 > shuffled.high
assert max(abs(found["cosine"][b, 1.0]) for b in ("refuse", "move")) < 0.5
assert np.mean([found["slope"][b, 2.0] for b in ("refuse", "move")]) < np.mean(
    [found["slope"][b, 0.25] for b in ("refuse", "move")]
)

# %% [markdown]
# The overlap foretells nothing here: its correlations lie in the band of shuffled domains. What matters is not where a domain's states lie, but
# whether what comes after reads the vector there. The slope measures just that, and orders the domains well at small doses, with even the size about right.
# It gets worse with the dose, since the parabola is left. Two limits: it foretells the KL, and a KL is not yet a harm; and one has to try a small dose.
#
# The same question for weights, with a change of one FFN: do the activations of a domain overlap with the change?

# %% label="foretell_weights" tags=["nbval-check-output"]
delta = installed.read("bias-a")
ffn_edit = delta.edit(model)
keys = prediction.key_overlap(model, ffn_edit, wide)
slopes = prediction.fisher_overlap(model, ffn_edit, wide)
kl = side_effect_matrix(model, {"bias-a": lambda: ffn_edit.on(model)}, wide).kl[0]
by_keys, by_slopes = rank_correlation(keys.values(), kl), rank_correlation(slopes.values(), kl)
print(
    f"a planted change of {delta.facts['used'][0]}: overlap of keys {by_keys:+.2f}, slope {by_slopes:+.2f}"
)
assert by_slopes > 0.6 > abs(by_keys)

# %% [markdown]
# Again the overlap says nothing and the slope does.
#
# ## 9. Scoreboard
# | claim | truth or control | where |
# |---|---|---|
# | the vector makes the model refuse | random vectors of that length at that site do not | section 1 |
# | the change of two heads makes it agree | it was planted there; random twins of equal count, place and norm do not | section 3 |
# | steered text is fluent | judged by the unsteered model, beside plain text and a broken model | section 4 |
# | method A beats method B | same prompts, strength from validation, doing nothing scores 0 | section 6 |
# | side effects can be foretold | shuffled domains give the band | section 8 |
#
# The failure to remember: every vector on "move". It is not weak there, it is the wrong kind of object.
#
# ## 10. A guide that follows from the table
# 1. **Can you ask for it?** If the model follows instructions, a prompt costs nothing and is the line to beat. In `lab` only languages have one.
# 2. **Is the answer one word, always the same?** Try a bias on its logit before anything else.
# 3. **Is it one kind of answer for many prompts, and does the model show it somewhere already?** Take the mean difference of prompts with and without, choose
#    layer and strength on held-out prompts, and put it behind a detector when the rest matters.
# 4. **Does every prompt have its own answer, as facts do?** Edit weights: in closed form for a few facts (chapter 13 says how many), or by training.
# 5. **Must it hold to the last percent, and is there data?** Train, few weights or many, with a term that preserves.
# 6. Whatever it is: a null band, the worst domain and not the mean, the strength from validation, and a report that shows all of it.
#
# ## 11. What the survey says, and where it is loose
# - It presents amplitude, optimization and vectors side by side and gives no comparison among them, or with prompting and plain fine-tuning. AxBench is in its
#   Table 2 and not in the text of sections 4 and 5. There, too, prompting and fine-tuning lead, and differences of means beat SAE features.
# - Eq. 21 has a strength without a scale. Here strength 1 is the full difference of means, and the curve and its breakdown point are reported.
# - It calls SAE vectors "more precise" than mean differences (section 4.3). In this table they are not (asserted above), with one SAE and its 8 features of the
#   largest difference.
# - "Side effects" are mentioned as a risk. They are a number per domain, and belong beside the gain.
# - Section 6 doubts that steering is predictable. It depends on the predictor: cosines did not help, slopes did, up to a dose.
#
# **Where this chapter is loose.** `lab` has 1.3 M parameters and behaviours whose answers are short; its documents leave little room for subtle harm. Differences of a few
# hundredths between trained methods mean nothing: see the error over behaviours. All hyperparameters except the strength were fixed beforehand, for all methods alike.
#
# ## 12. Papers
# - the bake-off of steering methods with harmonic means: [@wu2025axbench]
# - mean differences and their side effects: [@rimsky-etal-2024-steering]; refusal: [@arditi2024refusal]; sharper vectors for fewer false refusals: [@wang2025surgical]
# - scaling neurons by how well they detect: [@suauWhisperingExpertsNeural2024]
# - edits of facts and their neighbourhoods: [@meng2022ccs; @meng2023massediting]; locating does not tell where to edit: [@hase2023localization]
# - side effects of edits found by comparing models with SAEs: [@kassem2025mneme]
#
# ## 13. The same with your own steerer, and on a real model
# A file with one function is enough for the command: `mi-course benchmark steerers --fn mine.py:g` runs it on the five behaviours beside the stored rows. On a real
# model, give your own task and texts to `steering_report`.

# %% label="real"
REAL = None  # for example "Qwen/Qwen2.5-0.5B-Instruct"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped model.")
else:
    real = mi.load(REAL)
    kind = [
        "The film was great, I loved it. It was",
        "What a lovely day, I feel",
        "She smiled, it was all",
    ]
    unkind = [
        "The film was awful, I hated it. It was",
        "What a horrid day, I feel",
        "She wept, it was all",
    ]
    where = f"x{real.n_layers // 2}"
    mood = mi.steer.mean_difference(real, kind, unkind, f"{where}@-1")
    moods = mi.Task("mood", ["The dinner was", "My week was"], [" good"] * 2, foils=[" bad"] * 2)
    text = {"plain": ["Paris is the capital of France.", "Water boils at one hundred degrees."]}
    dial = lambda s: mi.intervene(real, mi.add(where, mood, alpha=s))  # noqa: E731
    print(steering_report(real, dial, moods, strengths=(0, 0.5, 1, 2), documents=text, max_new_tokens=20))

# %% [markdown]
# ## 14. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "A vector brings the wanted answer to 100 % of the prompts. Which number would make you drop it?",
            [
                (
                    "The norm of the vector is 20.",
                    "A norm says little without the size of the states, and nothing about harm.",
                ),
                (
                    "A domain that has nothing to do with it loses half of its accuracy.",
                    "The worst domain is what users meet. A mean over domains would hide it.",
                    True,
                ),
                (
                    "A random vector of that length brings 3 %.",
                    "That is what one hopes for: the meaning of the direction, and not its length, does it.",
                ),
            ],
        ),
        Question(
            "Method A: gain 1.0, kept 0.2, fluent 1.0. Method B: 0.7, 0.7, 0.7. Which has the better score, and why?",
            [
                (
                    "A, since its mean is higher.",
                    "The plain means are 0.73 and 0.70. The score is the harmonic mean.",
                ),
                (
                    "B: 0.70 against 0.43. One bad part cannot be made up for.",
                    "3 / (1 + 5 + 1) = 0.43. That is the purpose of a harmonic mean.",
                    True,
                ),
                (
                    "They cannot be compared.",
                    "They were measured on the same prompts in the same way, so they can; whether the three parts deserve equal weight is another question.",
                ),
            ],
        ),
        Question(
            "You tried 40 strengths and layers on the test prompts and report the best. What is wrong?",
            [
                (
                    "Nothing, all of them were really measured.",
                    "The best of 40 noisy numbers is partly the luckiest.",
                ),
                (
                    "The number contains the luck of the search. Choose on validation prompts, and measure the one choice on test.",
                    "Then the test prompts had no part in the choice.",
                    True,
                ),
                ("40 is too few.", "More tries make the bias larger."),
            ],
        ),
        Question(
            "The steering vector is orthogonal to the mean direction of a domain. May you skip measuring side effects there?",
            [
                (
                    "Yes: no overlap, no effect.",
                    "In section 8 such cosines foretold nothing. The cosine with a mean says where states lie, not what later layers read.",
                ),
                (
                    "No. What matters is whether later layers read the vector at the states of that domain.",
                    "The slope of the log-probabilities measures that, and even it holds for small doses only.",
                    True,
                ),
                ("Yes, if the vector has norm 1.", "The dose changes how far, not whether, it is read."),
            ],
        ),
    ]
)

# %% [markdown]
# Next: part Improve applies all this to safety (chapter 16), bias, persona, languages, knowledge and reasoning.
