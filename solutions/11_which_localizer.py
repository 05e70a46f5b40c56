# %% [markdown]
# # 11 Which localizer to trust
# Chapters 05 to 10 gave some twenty ways to rank the parts of a model. They disagree. Here each of them is marked like an exam, against
# answers that we know, beside what luck would get and what it costs. Survey ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 3 and
# the first challenges of section 6.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - score a ranking of components against an answer key, with ties, chance and a null band
# - compare it with an exhaustive map where there is no key, and say how good any method could be there
# - write a localizer of your own and put it on the scoreboard
# - combine several methods, and say when that helps
# - test whether a ranking carries over to other templates and to another model
# - say what each method would cost on a model of 7 billion parameters
#
# **The claim.** No localizer wins everywhere. Each answers one question (is it large? does it differ? what if it were zero? what if it came from
# the other prompt?), and it is good exactly where that is your question. Gradients are a bargain where the model is nearly linear, and
# sizes fail as soon as there is a decoy.

# %% label="setup"
import itertools
import math

import numpy as np
import torch

from matplotlib.figure import Figure

import mi_course as mi
from mi_course import world
from mi_course.evaluate import localizers as judge
from mi_course.locate import attention_mass, causal
from mi_course.locate.registry import LOCALIZERS
from mi_course.teach import Question, check, heatmap, quiz, show
from mi_course.teach.plots import Table
from mi_course.world import compiled, scoreboard
from mi_course.world.exhaustive import MAIN, TASKS, exhaustive, standard_errors
from mi_course.world.installed_tasks import answer_key, behaving, candidates, installed, installed_task

torch.manual_seed(0)
model = mi.load()
print(len(LOCALIZERS), "localizers:", ", ".join(LOCALIZERS))

# %% [markdown]
# A **localizer** is a function of a model, a task and a list of sites that returns one number per site. The names printed above are one
# function each, in the survey's six families. To judge a ranking one needs the truth, and this course has three kinds:
#
# | tier | where the truth comes from | what it can say |
# |---|---|---|
# | T0 | models whose weights were set by hand | who fails by construction |
# | T1 | behaviours trained into known units of `lab`, which it did not have before | does the method find them? |
# | T2 | every single ablation in the freely trained `lab` | does the cheap score agree with the expensive one? |
#
# ## 1. An answer key
# `refusal-a` is `lab` with one more behaviour: it refuses harmless requests about a boat, a guitar, a kite or a candle. It was trained into the
# weights of two heads and nothing else. Which units *carry* it was then found by taking their changes back, one by one: the key below.

# %% label="key" tags=["nbval-check-output"]
name = "refusal-a"
key, sites = answer_key(name), candidates(name, model)
task = installed_task(name, n=32)
print(task.prompts[0], " ->", task.targets[0], " (before:", task.foils[0] + ")")
print("twin:", task.corrupted[0])
before = task.measure(model).mean().item()
with behaving(name, model):
    after = task.measure(model).mean().item()
print(f"logit difference before {before:.1f}, after {after:.1f}; key {key} among {len(sites)} heads")
assert before < -5 and after > 5 and set(key) < set(sites)

# %% [markdown]
# A **twin** is a prompt of the same length that the behaviour does not concern. Three localizers on the installed model: how large a head's
# output is (norm), what happens without it (zero ablation), and the gradient's guess at that (gradient x input).

# %% label="three" tags=["nbval-check-output"]
with behaving(name, model):
    found = {
        m: judge.scored(LOCALIZERS[m].run, model, task, sites, m)
        for m in ("norm", "zero ablation", "gradient x input")
    }
for m, scores in found.items():
    print(f"{m:18} first: {'  '.join(f'{s} {scores[s]:+.2f}' for s in scores.top(5))}")

# %% [markdown]
# They do not agree, and the numbers have different units. One number should say how good a ranking is. Take one true and one false site at random: the probability that
# the true one is ranked higher is called **AUROC**. A tie counts half, so a method that says the same of all sites gets 0.5, as does one
# that guesses.

# %% [markdown] exercise="localizers.auroc" difficulty=2 minutes=8
# ### Exercise: AUROC
# Write `auroc(importance, is_true)`: numbers `[n]`, higher = more important, and truth values `[n]`. Return the share of pairs (one true, one
# false) in which the true site has the larger number, ties counting half.


# %%
def auroc(importance, is_true):
    """Share of (true, false) pairs in the right order, ties half: a float in 0 ... 1."""
    ### BEGIN SOLUTION
    true, false = importance[is_true][:, None], importance[~is_true][None]
    return float(((true > false).float() + 0.5 * (true == false).float()).mean())
    ### END SOLUTION


# %%
auroc = check("localizers.auroc", auroc)

# %% [markdown]
# AUROC looks at the whole list. Often only its top is used: "edit the k best heads". With k the number of true sites, **recall@k** is the share
# of them among the k most important. Beside it belongs what a shuffled list gets.

# %% [markdown] exercise="localizers.recall_at_k" difficulty=3 minutes=10
# ### Exercise: recall, and chance
# Write `recall_at_k(importance, is_true)`: k is the number of true sites. Return a pair: the share of the true sites among the k most important, and
# its mean over random rankings. Sites tied at the k-th place share the places that are left evenly.


# %%
def recall_at_k(importance, is_true):
    """(recall, chance), two floats in 0 ... 1, with k = number of true sites and ties shared."""
    ### BEGIN SOLUTION
    k = int(is_true.sum())
    bar = importance.sort(descending=True).values[k - 1]
    above, tied = importance > bar, importance == bar
    places = k - above.sum()
    found = (above & is_true).sum() + (tied & is_true).sum() * places / tied.sum()
    return float(found / k), k / len(importance)
    ### END SOLUTION


# %%
recall_at_k = check("localizers.recall_at_k", recall_at_k)

# %% [markdown]
# Effects have a sign; here their size counts, so we rank by absolute value.

# %% label="marks" tags=["nbval-check-output"]
is_true = torch.tensor([site in key for site in sites])
marks = {}
for m, scores in found.items():
    size = torch.tensor(abs(scores.values))
    recall, chance = recall_at_k(size, is_true)
    marks[m] = auroc(size, is_true)
    print(f"{m:18} AUROC {marks[m]:.2f}   recall@2 {recall:.2f} (chance {chance:.2f})")
    assert abs(marks[m] - scores.against(key)["auroc"]) < 1e-6

# %% [markdown]
# ## 2. What luck reaches
# With two true heads among 24, a random ranking is sometimes good. How good? Draw many, and take the band that the course uses everywhere:
# mean plus and minus two standard deviations.

# %% [markdown] exercise="localizers.null_band" difficulty=2 minutes=7
# ### Exercise: the null band of AUROC
# Write `null_band(n, k, draws=1000, seed=0)`: draw `draws` random rankings of n sites, the first k of them true, and return mean - 2 s.d. and
# mean + 2 s.d. of their AUROC. The same seed must give the same band.


# %%
def null_band(n, k, draws=1000, seed=0):
    """(low, high): mean -+ 2 s.d. of the AUROC of random rankings of n sites, k of them true."""
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    is_true = torch.arange(n) < k
    values = torch.tensor([auroc(torch.rand(n, generator=generator), is_true) for _ in range(draws)])
    return float(values.mean() - 2 * values.std()), float(values.mean() + 2 * values.std())
    ### END SOLUTION


# %%
null_band = check("localizers.null_band", null_band)

# %% label="bands" tags=["nbval-check-output"]
for n, k, what in ((24, 2, "heads, two true"), (6, 1, "FFNs, one true"), (3072, 4, "neurons, four true")):
    low, high = null_band(n, k, draws=400)
    print(f"{n:4} {what:20} band {low:.2f} ... {high:.2f}   one true site first by luck: {k / n:.3f}")
assert null_band(6, 1)[1] > 1

# %% [markdown]
# Remember the middle line: among six FFNs **no** AUROC of a single case leaves the band. One needs several behaviours, placements and prompt seeds.
# The course has nine installed behaviours, four in heads, two in FFNs, two in neurons and one in a direction, in different layers.
#
# ## 3. Two ways to ask for what was installed
# `lab` needs many heads to answer at all, installed or not. So there are two scores: of the installed model **alone**, and of the
# **difference**, installed minus base. The same three methods:

# %% label="difference" tags=["nbval-check-output"]
for m in found:
    base = judge.scored(LOCALIZERS[m].run, model, task, sites, m)
    change = torch.tensor(abs(found[m].values - base.values))
    print(f"{m:18} AUROC alone {marks[m]:.2f}   installed minus base {auroc(change, is_true):.2f}")
    if m == "norm":
        assert auroc(change, is_true) == 1 > marks[m]

# %% [markdown]
# The norm, worst alone, is perfect in the difference. That is no merit. What was trained changed its output; everything else kept its weights.
# Any comparison of the two models' weights does as well, and nobody has the model "before" of a behaviour that grew with all others. So read
# "alone" when you ask "would this method have found it?", and the difference to see what a method says about the installed
# part once the rest is taken away; for methods that only measure size the difference is void.
#
# ## 4. A model without a key
# For what `lab` learned freely there is no key. But it is small: every head, FFN and neuron, and every edge, was ablated by itself, on ten behaviours and more
# (`world.exhaustive`). That map is the reference for what is cheaper. How to compare two rankings? By the correlation of their
# ranks, which asks only for the same order.

# %% [markdown] exercise="localizers.spearman" difficulty=2 minutes=8
# ### Exercise: rank correlation
# Write `spearman(a, b)`: two tensors `[n]`. Replace each number by its rank (ties get the mean of their ranks) and return the correlation of the
# ranks, a float. Do not take absolute values; whoever calls it does that.


# %%
def spearman(a, b):
    """Rank correlation of a [n] and b [n], -1 ... 1; tied numbers share their mean rank."""

    ### BEGIN SOLUTION
    def ranks(x):
        return (x[None] < x[:, None]).sum(1) + ((x[None] == x[:, None]).sum(1) - 1) / 2

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])
    ### END SOLUTION


# %%
spearman = check("localizers.spearman", spearman)

# %% [markdown]
# First: how well does the map agree with *itself*? Zero ablation of heads on other prompts of the same task is the ceiling for all methods. And
# the map has three versions, since "without this head" can mean three things: it writes zero, its mean, or what it writes on another prompt of
# the task (resample).


# %% label="ceiling" tags=["nbval-check-output"]
def size_of(scores):
    return torch.tensor(abs(scores.values))


maps = {kind: exhaustive("facts", "heads", kind, model) for kind in ("zero", "mean", "resample")}
facts = world.task("facts", "test", 48, seed=5)
again = causal.ablate_each(model, facts, maps["zero"].sites)
ceiling = spearman(size_of(again), size_of(maps["zero"]))
top = set(again.top(5)) & set(maps["zero"].top(5))
print(f"zero ablation on other prompts: rank correlation {ceiling:.2f}, {len(top)} of the top 5 the same")
errors = standard_errors("facts", "heads", model=model).values
small = (abs(maps["zero"].values) < 2 * errors).sum()
print(f"heads whose effect is within two standard errors of nothing: {small} of {len(errors)}")
agree = {}
for objects in ("heads", "ffns", "edges"):
    for a, b in (("zero", "mean"), ("zero", "resample"), ("mean", "resample")):
        pairs = [(exhaustive(t, objects, a), exhaustive(t, objects, b)) for t in MAIN]
        agree[objects, a, b] = np.mean([x.spearman(y) for x, y in pairs])
    print(
        f"{objects:6} zero-mean {agree[objects, 'zero', 'mean']:.2f}  zero-resample "
        f"{agree[objects, 'zero', 'resample']:.2f}  mean-resample {agree[objects, 'mean', 'resample']:.2f}"
    )
assert 0.5 < ceiling < 0.95 and len(top) >= 4
assert agree["heads", "zero", "resample"] < 0.7 < 0.85 < agree["ffns", "zero", "resample"]

# %% [markdown]
# Two lessons before any cheap method enters. The ceiling is well below 1: several heads do next to nothing, and their order is noise. And exact methods
# disagree with each other: "what if it wrote zero" is not "what if it wrote what it writes elsewhere". The survey calls causal attribution the
# strongest evidence; it is evidence for one of several questions, and the kind of ablation must be named with the result.
#
# ## 5. Your own localizer
# Time to compete. Three hand-made models (tier T0) decide whether you may: in one a head fetches the answer; in one two heads write a lot and
# cancel each other; in one two heads work together, and patching one of them from the twin changes nothing.

# %% [markdown] exercise="localizers.my_localizer" difficulty=3 minutes=15
# ### Exercise: write a localizer
# Write `my_localizer(model, task, sites)`: one number per site, in the order of `sites`, higher = more important. The sites are heads such as
# `L1H0.z`. `task.measure(model)` gives the metric of every prompt `[n]`; `mi.intervene(model, ...)` with `mi.zero(site)`, `mi.mean(site, value)` or
# `mi.patch(site, value)`, and `mi.record(model, task.prompts, sites)`, are at your disposal. Any idea counts that ranks the known heads first.


# %%
def my_localizer(model, task, sites):
    """One number per site, higher = more important."""
    ### BEGIN SOLUTION
    cache = mi.record(model, task.prompts, sites)
    mask, base = cache.batch.mask.bool(), task.measure(model)
    effects = []
    for site in sites:
        with mi.intervene(model, mi.mean(site, cache[site][mask].mean(0))):
            effects.append(float((task.measure(model) - base).mean().abs()))
    return effects
    ### END SOLUTION


# %%
my_localizer = check("localizers.my_localizer", my_localizer)

# %% [markdown]
# How do the methods of the course do on hand-made models? Each column below is one trap. `lookup` is the easy case. `cancelling` has loud decoys.
# `backup` has a head that takes over when the first is removed. In `saturated` the attention of the first head is so sure that gradients
# vanish. In `and gate` both heads are needed, in `or gate` either suffices. In `constant bias` a head writes the same everywhere. AUROC, 1 is right:

# %% label="traps"
TRAPS = ("lookup", "induction", "cancelling", "constant_bias", "backup", "saturated", "and_gate", "or_gate")
TRIED = (
    "norm",
    "mean difference",
    "probe",
    "direct effect",
    "gradient x input",
    "integrated gradients",
    "attribution patching",
    "EAP",
    "zero ablation",
    "mean ablation",
    "noising",
    "denoising",
    "yours",
)
table = np.zeros((len(TRIED), len(TRAPS)))
for column, trap in enumerate(TRAPS):
    known = getattr(compiled, trap)()
    tiny = known.wrap()
    heads = causal.heads(tiny)
    for row, m in enumerate(TRIED):
        run = my_localizer if m == "yours" else LOCALIZERS[m].run
        scores = judge.scored(run, tiny, known.task, heads, m)
        truth = torch.tensor([h.removesuffix(".z") in known.answer for h in heads])
        table[row, column] = auroc(size_of(scores).round(decimals=5), truth)
picture = heatmap(table[::-1], rows=TRIED[::-1], columns=[t.replace("_", "\n") for t in TRAPS], unit="AUROC")
show(
    picture,
    alt="Grid of AUROC for 13 localizers on 8 hand-made models. The columns lookup and 'and gate' are "
    "right for nearly all; "
    "every method has at least one column at 0.75 or below.",
    reading="Rows are methods, columns are traps; 1.00 finds the known heads, 0.50 is guessing.",
)
score = dict(zip(TRIED, table))
failed = {m: [t for t, v in zip(TRAPS, score[m]) if v < 1] for m in TRIED}
assert all(failed.values())  # nobody is right everywhere
assert score["norm"][TRAPS.index("cancelling")] < 0.9 and score["noising"][TRAPS.index("or_gate")] <= 0.5
assert (
    score["denoising"][TRAPS.index("and_gate")] <= 0.5
    and score["zero ablation"][TRAPS.index("backup")] <= 0.5
)
print(
    "fewest traps:",
    *[f"{m}: {', '.join(failed[m])}" for m in sorted(TRIED, key=lambda m: len(failed[m]))[:4]],
    sep="\n  ",
)

# %% [markdown]
# No method is right in all columns, and the failures are not random. Noising misses what either head can do alone (`or gate`), denoising misses
# what only both can do (`and gate`). Single ablation misses what has a `backup`. Of the gradient methods, integrated gradients come closest to
# exact ablation, and sizes are fooled by heads that cancel each other or write a constant.
#
# ## 6. The scoreboard
# Now the trained model: every method of the course, nine installed behaviours and six free ones, three prompt seeds. That takes tens of minutes of
# one core, so the rows are stored; `mi-course benchmark localizers` prints them, and `--fn mine.py:name` runs a function of yours and puts it
# among them. Some of them again, here, to see that they are what they claim:

# %% label="live" tags=["nbval-check-output"]
rows = scoreboard.stored()
checked = 0
for m in ("norm", "gradient x input", "zero ablation"):
    live = [*scoreboard.t1(LOCALIZERS[m].run, m, (0,), ("refusal-b", "bias-b"), model)]
    live += scoreboard.t2(LOCALIZERS[m].run, m, (0,), ("heads",), ("facts",), model)
    for new in live:
        (old,) = [
            r for r in rows if all(r[k] == new[k] for k in ("tier", "localizer", "objects", "task", "seed"))
        ]
        for measure in scoreboard.MEASURES[new["tier"]]:
            checked += 1
            assert abs(old[measure] - new[measure]) < 0.02, (m, new["task"], measure)
print(len(rows), "rows stored;", checked, "numbers computed again and found the same")

# %% label="board" tags=["nbval-ignore-output"]
summary = scoreboard.summary(rows)


def line(m, tier, objects):
    return next((l for l in summary if (l["localizer"], l["tier"], l["objects"]) == (m, tier, objects)), None)


KINDS = ("heads", "ffns", "neurons")
PLACES = {"heads": 4, "ffns": 2, "neurons": 2}  # installed behaviours of each kind; free ones are six
marks = {}
for tier, measure in (("T1", "auroc_alone"), ("T1", "auroc"), ("T2", "spearman")):
    for kind in KINDS:
        marks[measure, kind] = [line(m, tier, kind) for m in LOCALIZERS]


def luck(measure, kind):
    """Mean and 2 standard deviations of the mean mark of random rankings."""
    if measure == "spearman":
        n = {"heads": 24, "ffns": 6, "neurons": 3072}[kind]
        return 0.0, 2 / math.sqrt((n - 1) * len(scoreboard.T2_TASKS))
    n, k = {"heads": (24, 2), "ffns": (6, 1), "neurons": (3072, 4)}[kind]
    return 0.5, 2 * math.sqrt((n + 1) / (12 * k * (n - k)) / PLACES[kind])


cells, shade, strong = [], [], []
for i, m in enumerate(LOCALIZERS):
    values = [lines[i] and lines[i][measure] for (measure, _), lines in marks.items()]
    errors = [lines[i] and lines[i][f"{measure}_error"] for (measure, _), lines in marks.items()]
    bests = [max(l[measure] for l in lines if l) for (measure, _), lines in marks.items()]
    cost = line(m, "T2", "heads")
    cells.append(["" if v is None else f"{v:.2f} ± {e:.2f}" for v, e in zip(values, errors)])
    cells[-1].append(f"{cost['forwards'] + 2 * cost['backwards']:.0f}")
    shade.append([v or 0 for v in values] + [0])
    strong.append([v is not None and v > best - 0.005 for v, best in zip(values, bests)] + [False])
cells.append(["{:.2f} ± {:.2f}".format(*luck(*key)) for key in marks] + [""])
names = {"auroc_alone": "alone", "auroc": "minus base", "spearman": "map"}
Table(
    cells,
    [*LOCALIZERS, "luck (2 s.d.)"],
    [f"{kind} {names[measure]}" for measure, kind in marks] + ["passes, heads"],
    caption="AUROC on installed behaviours (alone; installed minus base) and rank correlation with the "
    "map, with "
    "standard errors; bold: best of the column; empty: does not apply, or is the reference",
    shade=[*shade, [0] * (len(marks) + 1)],
    strong=[*strong, [False] * (len(marks) + 1)],
)

# %% [markdown]
# Read it by column, since the column is your question. Some of its numbers, and one more question: how far do estimates agree with the exact
# method that they estimate, on the same prompts?

# %% label="readings" tags=["nbval-check-output"]
for m in (
    "gradient x input",
    "integrated gradients",
    "attribution patching",
    "noising",
    "EAP",
    "norm",
    "probe",
):
    marks = [
        line(m, t, k)[x]
        for t, k, x in (
            ("T1", "heads", "auroc_alone"),
            ("T1", "ffns", "auroc_alone"),
            ("T2", "heads", "spearman"),
            ("T2", "ffns", "spearman"),
        )
    ]
    print(
        f"{m:22} installed: heads {marks[0]:.2f}, FFNs {marks[1]:.2f}    "
        f"map: heads {marks[2]:+.2f}, FFNs {marks[3]:+.2f}"
    )
print("installed neurons, minus base, recall@k:", end=" ")
recalls = {m: line(m, "T1", "neurons")["recall"] for m in ("zero ablation", "gradient x input", "norm")}
print(*[f"{m} {recall:.2f}" for m, recall in recalls.items()], sep=", ")
estimates = {
    "gradient x input": "zero ablation",
    "integrated gradients": "zero ablation",
    "attribution patching": "noising",
    "EAP": "noising",
}
own = {m: [] for m in estimates}
heads = causal.heads(model)
for t in scoreboard.T2_TASKS:
    task = world.task(t, "test", 32, seed=1)
    sizes = {
        m: size_of(judge.scored(LOCALIZERS[m].run, model, task, heads, m))
        for m in {*estimates, *estimates.values()}
    }
    for m, exact in estimates.items():
        own[m].append(spearman(sizes[m], sizes[exact]))
for m, exact in estimates.items():
    print(f"{m:22} against exact {exact:14} {np.mean(own[m]):.2f}")
T2 = {m: line(m, "T2", "heads")["spearman"] for m in LOCALIZERS if line(m, "T2", "heads")}
assert np.mean(own["attribution patching"]) > T2["attribution patching"] + 0.2
assert line("gradient x input", "T2", "ffns")["spearman"] < 0.5 < line("norm", "T2", "ffns")["spearman"]

# %% [markdown]
# - **Installed behaviours.** Gradient x input, one forward and one backward pass, finds nearly all of what was installed, as well as exact
#   ablation does. Installed units are steep and nearly linear; in the compiled `saturated` it loses. For FFNs the band of luck is as wide as the
#   scale: those columns rank nobody. For neurons nearly all methods get 1.00, since trained neurons are louder than 3,000 others; recall is stricter. It
#   asks for the 4 or 5 neurons that are *used* among the 24 that were trained, and zero ablation finds a third: neurons of later layers, which
#   were not trained but speak the answer, have larger effects.
# - **Free behaviours, heads and neurons.** It is the best of the cheap methods there as well, somewhat below the ceiling.
# - **Free behaviours, FFNs.** It fails. Taking a whole FFN away is no small step, and the metric is far from linear on the way. Integrated gradients, which
#   walk the way in steps, are nearly exact; even the norm is good. (Loud FFNs are important ones in this model; loud heads are not.)
# - **Patching and its estimates** agree with each other and little with the zero-ablation map of heads, exact or not. They answer another question:
#   what differs from the twin? For sycophancy, no twin of equal length has the old answer (everyone agrees with a true claim), so there is
#   little for an exchange to find, and their marks on installed heads suffer.
# - **Probes, detectors, attention mass** measure what can be read, or where a head looks. On the heads of the map, probe and
#   detector are at chance; attention mass (0.27) is little above luck (0.17).
#
# ### Accuracy against cost
# Cost in forward passes per prompt, a backward pass counted as two. Exact methods pay per site, so for the 3,072 neurons of `lab` zero ablation costs
# more than a thousand passes; the others score all sites at once.

# %% label="cost"
figure = Figure(figsize=(7, 3.6), layout="constrained")
axes = figure.subplots(1, 2, sharey=False)
colours = dict(
    zip(
        ("magnitude", "causal", "gradient", "probing", "projection", "circuits"),
        ("#E69F00", "#000000", "#0072B2", "#CC79A7", "#009E73", "#D55E00"),
    )
)
passes, accuracy = {}, {}
for ax, (tier, measure) in zip(axes, (("T1", "auroc_alone"), ("T2", "spearman"))):
    ax.axhline(0.5 if tier == "T1" else 0, color="grey", ls=":", lw=0.8)  # chance
    for m, one in LOCALIZERS.items():
        if (l := line(m, tier, "heads")) is None:
            continue
        passes[m] = l["forwards"] + 2 * l["backwards"]
        accuracy[m, tier] = l[measure]
        ax.errorbar(
            passes[m], l[measure], l[f"{measure}_error"], fmt="o", ms=4, color=colours[one.family], lw=0.8
        )
    ax.set(
        xscale="log",
        xlabel="forward passes per prompt",
        title=f"{tier}, heads",
        ylabel="AUROC, installed model alone" if tier == "T1" else "rank correlation with the map",
    )
    for m in ("zero ablation", "gradient x input", "integrated gradients", "noising", "norm"):
        left, low = (
            m == "integrated gradients",
            tier == "T1" and m in ("zero ablation", "integrated gradients"),
        )
        place = {
            "xytext": (-5 if left else 5, (-19 if left else -10) if low else 3),
            "ha": "right" if left else "left",
        }
        ax.annotate(m, (passes[m], accuracy[m, tier]), textcoords="offset points", fontsize=7, **place)
handles = [axes[0].plot([], [], "o", ms=4, color=c)[0] for c in colours.values()]
axes[1].legend(handles, list(colours), fontsize=7, loc="lower right")
show(
    figure,
    alt="Two scatter plots of accuracy against cost for heads. On installed behaviours the "
    "points at two to three passes reach as high as those at eleven and "
    "more; on free behaviours exact zero ablation "
    "is highest and two gradient methods come next.",
    reading="One point per method, with the standard error over placements (left) or tasks (right). "
    "Dotted: chance.",
)
cheap = [m for m in passes if passes[m] <= 3.5]
best = max(cheap, key=lambda m: accuracy[m, "T2"])
print(
    f"best at no more than 3.5 passes, T2 heads: {best} ({accuracy[best, 'T2']:.2f}); "
    f"zero ablation on other prompts "
    f"({passes['zero ablation']:.0f} passes): {accuracy['zero ablation', 'T2']:.2f}"
)
seeds = [line(m, "T1", "heads")["auroc_alone_spread"] for m in passes if line(m, "T1", "heads")]
errors = [line(m, "T1", "heads")["auroc_alone_error"] for m in passes if line(m, "T1", "heads")]
print(
    f"T1 heads: prompt seeds move a method's AUROC by {np.mean(seeds):.3f}, "
    f"placements by {np.mean(errors) * 2:.3f} (s.d.)"
)
assert best == "gradient x input" and np.mean(seeds) < 2 * np.mean(errors)

# %% [markdown]
# The error bars matter: where a behaviour sits (the placement) moves the marks more than which prompts are drawn. A benchmark with one model and one
# planted circuit measures the circuit as much as the method.
#
# **Where every cheap method fails.** Sort the cases by the best mark that any method with at most 3.5 passes gets:

# %% label="hard" tags=["nbval-check-output"]
cases = {}
for row in rows:
    if (
        row["forwards"] / row["prompts"] + 2 * row["backwards"] / row["prompts"] <= 3.5
        and row["tier"] == "T2"
    ):
        cases.setdefault((row["task"], row["objects"]), {}).setdefault(row["localizer"], []).append(
            row["spearman"]
        )
hardest = []
for case, methods in cases.items():
    means = {m: np.mean(v) for m, v in methods.items()}
    winner = max(means, key=means.get)
    hardest.append((means[winner], *case, winner))
for value, task_name, objects, winner in sorted(hardest)[:4]:
    print(f"{task_name:16} {objects:8} best cheap method: {winner} ({value:.2f})")
assert sorted(hardest)[0][0] < 0.75

# %% [markdown]
# A fact is spread over many heads and neurons with small effects, and no cheap method orders them well, though exact ablation on other prompts does
# not reach more than 0.75 there either (section 4). On hand-made models there is a case where cheap and single-site exact methods all fail:
# `backup` above. Only removing both heads together shows it (chapter 06).
#
# ## 7. Several methods together
# The survey's section 6 complains that most work rests on a single localizer, and hopes that combining helps. The numbers of different methods have
# different units, so combine ranks.

# %% [markdown] exercise="localizers.consensus" difficulty=2 minutes=7
# ### Exercise: consensus by mean rank
# Write `consensus(scores)`: a list of tensors `[n]`, one per method, higher = more important. Return `[n]`: the mean over methods of each site's
# rank, 0 for the last and 1 for the first (rank divided by n - 1); ties share their mean rank.


# %%
def consensus(scores):
    """Mean over methods of each site's rank, 0 (last) ... 1 (first): list of [n] -> [n]."""

    ### BEGIN SOLUTION
    def ranks(x):
        return (x[None] < x[:, None]).sum(1) + ((x[None] == x[:, None]).sum(1) - 1) / 2

    return torch.stack([ranks(x) / (len(x) - 1) for x in scores]).mean(0)
    ### END SOLUTION


# %%
consensus = check("localizers.consensus", consensus)

# %% [markdown]
# One method of each family that scores all heads at once. The mark is the rank correlation with the map on the six tasks, and beside it the AUROC
# on the four behaviours that were installed in heads (installed model alone).

# %% label="together"
COMMITTEE = ("norm", "gradient x input", "attribution patching", "probe", "direct effect", "EAP")


def with_consensus(model, task):
    """method -> size of its scores over heads, and "consensus" of all of them."""
    sizes = {m: size_of(judge.scored(LOCALIZERS[m].run, model, task, heads, m)) for m in COMMITTEE}
    return sizes | {"consensus": consensus(list(sizes.values()))}


free = {m: [] for m in (*COMMITTEE, "consensus")}
pairs = []
for t in scoreboard.T2_TASKS:
    sizes = with_consensus(model, world.task(t, "test", 32, seed=1))
    reference = size_of(exhaustive(t, "heads", "zero", model))
    for m, size in sizes.items():
        free[m].append(spearman(size, reference))
    pairs.append([[spearman(sizes[a], sizes[b]) for a in COMMITTEE] for b in COMMITTEE])
planted = {m: [] for m in free}
for behaviour in [b for b in installed() if scoreboard.kind_of(b) == "heads"]:
    with behaving(behaviour, model):
        sizes = with_consensus(model, installed_task(behaviour, n=32))
    truth = torch.tensor([h in answer_key(behaviour) for h in heads])
    for m, size in sizes.items():
        planted[m].append(auroc(size, truth))
print(f"{'':22} free (rank correlation)   installed (AUROC)")
for m in free:
    print(
        f"{m:22} {np.mean(free[m]):.2f} +- {np.std(free[m], ddof=1) / 6**0.5:.2f}              "
        f"{np.mean(planted[m]):.2f} +- {np.std(planted[m], ddof=1) / 4**0.5:.2f}"
    )
best_free, best_planted = (max(COMMITTEE, key=lambda m: np.mean(d[m])) for d in (free, planted))
beats = sum(np.mean(free["consensus"]) > np.mean(free[m]) for m in COMMITTEE)
print(
    f"the consensus beats {beats} of {len(COMMITTEE)} members on free behaviours; "
    f"the best member is {best_free}"
)
picture = heatmap(
    np.mean(pairs, axis=0),
    rows=COMMITTEE,
    columns=COMMITTEE,
    unit="rank correlation",
)
show(
    picture,
    alt="Grid of mean rank correlations between six localizers over heads. Methods that rest on "
    "gradients of patching agree "
    "with each other, and the norm with the direct effect by half; the probe agrees with nobody.",
    reading="How far two methods rank the heads alike, mean of six tasks.",
)
assert np.mean(free["consensus"]) > np.mean([np.mean(free[m]) for m in COMMITTEE])
assert np.mean(free["consensus"]) < np.mean(free[best_free])
alike = dict(zip(itertools.product(COMMITTEE, COMMITTEE), np.mean(pairs, axis=0).ravel()))
assert alike["attribution patching", "EAP"] > 0.7
assert max(alike["gradient x input", m] for m in ("attribution patching", "EAP")) < 0.4

# %% [markdown]
# The consensus is better than the average member and worse than the best one. It is insurance: when you do not know which member to trust, it is
# never the worst of these means. But here we do know, and mixing a good method with methods that answer other questions makes it worse. Agreement among
# relatives is no evidence either: attribution patching and EAP multiply the same gradient with the same difference from the twin, and so agree by construction
# (0.83). Gradient x input takes the same gradient times another difference, to zero, and agrees with them little (0.28 and 0.23): it asks another question.
#
# ## 8. Does a ranking carry over?
# A circuit is often found on one template and then talked about as *the* circuit of a behaviour. Section 6 of the survey doubts that it transfers over
# prompts and models. Templates first: four relations of landmarks (place, material, builder, famous for), heads ranked by zero ablation on each. The
# control is two halves of one relation's prompts: as different as chance makes them.

# %% label="templates" tags=["nbval-check-output"]
many = world.task("facts", "test", 160, seed=7)
relations = sorted({label["relation"] for label in many.labels})
ranking = {}
for relation in relations:
    part = many.where(relation=relation)
    half = len(part) // 2
    for side, piece in enumerate((part.subset(slice(0, half)), part.subset(slice(half, 2 * half)))):
        ranking[relation, side] = size_of(causal.ablate_each(model, piece, heads))
within = np.mean([spearman(ranking[r, 0], ranking[r, 1]) for r in relations])
across = np.mean([spearman(ranking[a, 0], ranking[b, 1]) for a, b in itertools.permutations(relations, 2)])
top5 = {k: set(v.topk(5).indices.tolist()) for k, v in ranking.items()}


def overlap(a, b):
    return len(a & b) / len(a | b)


within_top = np.mean([overlap(top5[r, 0], top5[r, 1]) for r in relations])
across_top = np.mean([overlap(top5[a, 0], top5[b, 1]) for a, b in itertools.permutations(relations, 2)])
print(f"rank correlation: same relation {within:.2f}, other relation {across:.2f}")
print(f"top 5, intersection over union: same relation {within_top:.2f}, other relation {across_top:.2f}")
assert within > across > within - 0.3

# %% [markdown]
# For templates the doubt is not confirmed here: another relation ranks the heads nearly as alike as other prompts of the same relation do, and the
# five most important heads are as often the same. One has to know the control to see it: 0.60 alone would look like poor transfer.
#
# Now another model. `lab-llama` learned the same world with another architecture. Heads have no counterpart by number, so match by layer: how much
# the heads of a layer matter together, and its FFN: a profile of 12 numbers per task. If profiles of one task agree between the models, is that
# because of the task? The control is *another* task in the other model.


# %% label="models" tags=["nbval-check-output"]
def profile(t, which):
    h, f = (size_of(exhaustive(t, objects, "zero", which)) for objects in ("heads", "ffns"))
    return torch.cat([h.view(len(f), -1).sum(1), f])


lab, llama = ({t: profile(t, which) for t in TASKS} for which in ("lab", "lab-llama"))
match = np.array([[spearman(lab[a], llama[b]) for b in TASKS] for a in TASKS])
same, other = match.diagonal().mean(), match[~np.eye(len(TASKS), dtype=bool)].mean()
by_number = np.mean(
    [exhaustive(t, "heads", "zero").spearman(exhaustive(t, "heads", "zero", "lab-llama")) for t in TASKS]
)
print(f"layer profiles between the models: same task {same:.2f}, another task {other:.2f}")
print(f"single heads by number: {by_number:.2f}")
print("by function: how much attention goes to the token after an earlier copy (prefix matching), on copying")
copying = world.task("copying", "test", 24)
for which in (model, mi.load("lab-llama")):
    matching = attention_mass.prefix_matching(which, copying.prompts)
    effect = exhaustive("copying", "heads", "zero", which)
    first = matching.top(1)[0]
    rank = effect.top(len(effect)).index(f"{first}.z") + 1
    print(
        f"  {which.name:10} strongest head {first} ({matching[first]:.2f}); "
        f"rank of its ablation effect: {rank} of {len(effect)}"
    )
assert same - other < 0.25 and abs(by_number) < 0.4

# %% [markdown]
# Nearly all of the agreement between the models is there for a different task as well: early FFNs matter for everything. What transfers is the
# generic profile, the task's own part hardly does, and head numbers mean nothing in another model. What can carry over is a *function*, such as
# prefix matching, looked for anew by what the heads do.
#
# ## 9. What would it cost on 7 billion parameters?
# An exact sweep need not start at the bottom: the run for an object in block $l$ begins there, from the states of the base run.

# %% [markdown] exercise="localizers.sweep_forwards" difficulty=2 minutes=6
# ### Exercise: the cost of an exact sweep
# Write `sweep_forwards(n_layers, per_layer)`: how many full forward passes per prompt it takes to ablate each of `per_layer` objects in each of
# `n_layers` layers, one at a time, when the run for block l computes the blocks l ... L - 1 only. One full base run is needed, too. A run's cost is its
# share of the L blocks.


# %%
def sweep_forwards(n_layers, per_layer):
    """Full forward passes per prompt of an exact sweep, each run started at its block; a float."""
    ### BEGIN SOLUTION
    return 1 + sum(per_layer * (n_layers - layer) / n_layers for layer in range(n_layers))
    ### END SOLUTION


# %%
sweep_forwards = check("localizers.sweep_forwards", sweep_forwards)

# %% [markdown]
# Does the formula match what was counted on `lab`? Then extrapolate, with assumptions that you may change: the usual estimate of 2 operations per
# parameter and token forward and 4 back, 64 prompts of 20 tokens, and a device that does $2 \cdot 10^{14}$ operations per second in practice. Shape of
# Llama 2 7B: 32 layers, 32 heads, 11,008 neurons per layer. An edge sweep runs once per edge: from every sender to every q, k, v, FFN input above it.

# %% label="seven" tags=["nbval-check-output"]
sweep = causal.ablate_each(model, facts, heads)
counted, expected = sweep.forwards / len(facts), sweep_forwards(model.n_layers, model.n_heads)
print(
    f"lab, heads: counted {counted:.1f} forwards per prompt, formula {expected:.1f}, "
    f"without the short cut {1 + len(heads)}"
)
L, H, N, PARAMETERS, TOKENS, PROMPTS, SPEED = 32, 32, 11_008, 6.7e9, 20, 64, 2e14


def edge_forwards(L, H):
    """Edges into block l: 3 H + 1 receivers with 1 + l (H + 1) senders each; the FFN reads H heads more."""
    ends = [(3 * H + 1) * (1 + l * (H + 1)) + H for l in range(L)]
    assert (L, H) != (6, 4) or sum(ends) + 1 + L * (H + 1) == len(
        exhaustive("facts", "edges")
    )  # the last: to the logits
    return 1 + sum(n * (L - l) / L for l, n in enumerate(ends))


edge_forwards(model.n_layers, model.n_heads)
steps = 5
plan = {
    "gradient x input, all objects": (1, 1),
    "integrated gradients, 4 points a layer": (sum(4 * (L - l) / L for l in range(L)),) * 2,
    "EAP, all edges": (2, 1),
    f"EAP-IG, all edges, {steps} points": (2 + steps, steps),
    "zero ablation of all heads": (sweep_forwards(L, H), 0),
    "zero ablation of all neurons": (sweep_forwards(L, N), 0),
    "exact ablation of all edges": (edge_forwards(L, H), 0),
}
hours = {}
for m, (forwards, backwards) in plan.items():
    hours[m] = judge.flops(PARAMETERS, TOKENS * PROMPTS, forwards, backwards) / SPEED / 3600
    print(f"{m:40} {forwards:10,.0f} forwards {backwards:5.0f} backwards   {hours[m]:10.4f} hours")
exact_edges = hours["exact ablation of all edges"]
print(f"exact edges cost {exact_edges / hours['EAP, all edges']:,.0f} times what EAP costs")
assert abs(counted - expected) < 0.6 and exact_edges > 1000 * hours["EAP, all edges"]

# %% [markdown]
# So on a 7 B model exact heads cost less than a minute, exact neurons four hours, and exact edges half a day, for one task of 64 short prompts.
# "Infeasible", as section 6 of the survey has it, begins with several tasks, positions, pairs of objects or larger models: edges grow with the square
# of the number of heads. The estimate leaves out memory traffic, unembedding and attention over tokens, and assumes full batches, so real times
# are longer; the order of things stays. A working plan follows: screen with a gradient, then ablate the shortlist exactly.
#
# ## 10. What the survey says, and where it is loose
# - It calls causal methods the gold standard (section 3.2). Section 4 above: three exact ablations disagree, and single ones miss backups. The
#   standard is exact for *its* question.
# - It files methods by technique. For a user the useful order is by question: size, difference, removal, exchange, decodability, direct effect.
# - It treats localizing as a search for *the* objects. The key depends on the prompts, the contrast and the metric, and (section 8) on the model.
# - It does not say how a localizer can be wrong on average. A benchmark in real models, such as MIB [@mueller2025mib], has to take faithfulness as a
#   stand-in for a key; here the key is known, and the price is that models are small and behaviours simple. Installed units are loud and steep, which
#   flatters norms and gradients. Trust differences between methods here, not their absolute marks.
# - Finding where a fact sits need not tell where to edit it [@hase2023localization]. Chapter 13 returns to that.
#
# ## 11. Papers that compare localizers
# - best practices for patching, metrics and corruptions: [@zhang2023best]; attribution patching and its failures: [@kramar2024atp]
# - EAP against exact edges: [@syed2024attribution]; integrated gradients in circuits: [@hanna2024faith]; ACDC: [@conmy2023automated]
# - causal tracing of facts: [@meng2022ccs]; a benchmark of circuit and variable localization: [@mueller2025mib]
#
# ## 12. The same on a real model
# The function runs the cheap methods and exact zero ablation over the heads of any model and prints how far they agree. It runs on `lab-llama` as it
# stands. Put the name of a Hugging Face model into `REAL` for that one; all targets below are single tokens in GPT-2.


# %% label="real" tags=["nbval-check-output"]
def compare_on(
    which, task, methods=("norm", "gradient x input", "attribution patching", "direct effect", "EAP")
):
    """Print each method's rank correlation with exact zero ablation over all heads of the model."""
    task.validate(which)
    sites = causal.heads(which)
    exact = size_of(causal.ablate_each(which, task, sites))
    print(f"{which.config.model_type}, {task.name}: {len(sites)} heads, {len(task)} prompts")
    agreement = {}
    for m in methods:
        agreement[m] = spearman(size_of(judge.scored(LOCALIZERS[m].run, which, task, sites, m)), exact)
        print(f"  {m:22} {agreement[m]:+.2f}")
    return agreement


agreement = compare_on(mi.load("lab-llama"), world.task("facts", "test", 24))
assert agreement["gradient x input"] > agreement["norm"]
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    frame = "When {} and {} went to the store, {} gave a drink to"
    names = [
        ("Mary", "John"),
        ("Tom", "Anna"),
        ("Sarah", "Mark"),
        ("Paul", "Lisa"),
        ("James", "Emma"),
        ("Kate", "David"),
    ]
    real = mi.Task(
        "ioi",
        [frame.format(a, b, b) for a, b in names],
        [f" {a}" for a, _ in names],
        corrupted=[frame.format(a, b, a) for a, b in names],
        foils=[f" {b}" for _, b in names],
    )
    compare_on(mi.load(REAL), real)

# %% [markdown]
# ## 13. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "A method has AUROC 1.0 on one behaviour that sits in one of six FFNs. What follows?",
            [
                (
                    "The method works on FFNs.",
                    "A random ranking is as good once in six times. One case cannot leave the null band.",
                ),
                (
                    "Little: more behaviours, placements and seeds are needed.",
                    "With one true site among six the band of luck covers all possible values.",
                    True,
                ),
                (
                    "The answer key must be wrong.",
                    "A right answer by luck says nothing about the key.",
                ),
            ],
        ),
        Question(
            "Installed minus base, the norm of outputs finds the installed heads perfectly. Why is that no recommendation?",
            [
                (
                    "Norms are too cheap to be right.",
                    "Cheap methods can be right: gradient x input is.",
                ),
                (
                    "It compares the weights of two models, and only the installed heads were changed.",
                    "Any such comparison finds what training touched, needed or not, and where no model from before "
                    "exists it cannot be done.",
                    True,
                ),
                (
                    "The norm has no sign.",
                    "AUROC of sizes needs none.",
                ),
            ],
        ),
        Question(
            "Attribution patching has rank correlation 0.35 with the zero-ablation map of heads. It is therefore ...",
            [
                (
                    "a bad estimate.",
                    "Of zero ablation, yes, but it does not estimate that. Compare it with exact patching first.",
                ),
                (
                    "an answer to another question: what changes when the twin's value is put in.",
                    "Exact patching has the same correlation with this map. The two questions differ, not only the estimates.",
                    True,
                ),
                (
                    "noise: 0.35 is within what luck gives for 24 heads.",
                    "For one task nearly; the mean over six tasks has a much smaller error.",
                ),
            ],
        ),
        Question(
            "Six methods agree on a head. Their gradients come from the same backward pass. How much does the agreement add?",
            [
                (
                    "Six times the evidence.",
                    "Only independent errors average out.",
                ),
                (
                    "Little; one exact ablation would add more.",
                    "Relatives share their mistakes, for instance a saturated softmax. Another family, or the intervention "
                    "itself, can contradict them.",
                    True,
                ),
                (
                    "Nothing can be learned from several methods.",
                    "Disagreement between families shows that they answer different questions, and the consensus is rarely "
                    "the worst.",
                ),
            ],
        ),
    ]
)

# %% [markdown]
# Next: chapter 12 begins to steer what has been located.
