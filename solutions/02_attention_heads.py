# %% [markdown]
# # 02 Attention heads: QK and OV
# Attention is the only place where a language model moves information from one token to another. It is done by heads, and a head answers
# two questions that can be looked at apart: *where* do I look, and *what* do I take from there? This chapter takes heads apart into these
# two halves, gives heads names by what they do, and tests each name by an intervention. Survey
# ([arXiv 2601.14004](https://arxiv.org/abs/2601.14004)), section 2.3, Eq. 4 and 5; the scores of section 4 below belong to its section 3.1.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - compute what a head does from its weights, and get the numbers that the model computes
# - tell scores, pattern, z and result apart, and say what changing each of them does
# - write "where it looks" and "what it takes" as one matrix each, QK and OV, with norm, scale, biases and position in their places
# - find previous-token, duplicate-token and induction heads, test whether they copy, and confirm it by ablation beside a null band
# - measure which earlier head a later head works with (K-composition)
# - say what changes with rotary positions and grouped heads, as in Llama
#
# **The claim.** A head is two matrices. In `lab`, repeating a sequence rests on a few heads that look at the token after an earlier copy
# of the current one (QK) and write that token (OV), and they find it by reading what earlier heads wrote about the token before (survey,
# section 2.3).

# %% label="setup"
import random
import re

import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import null_band, wilson
from mi_course.locate import attention_mass as am
from mi_course.locate import causal
from mi_course.models import weights as parts
from mi_course.objects import Scores, weights
from mi_course.objects.decompose import decompose_residual
from mi_course.teach import Question, bars, check, circuitsvis, curves, heatmap, quiz, show
from mi_course.world import compiled
from mi_course.world.generate import COPY_WORDS

torch.manual_seed(0)
torch.set_grad_enabled(False)
model = mi.load()
names = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
print(f"{model.n_layers} layers x {model.n_heads} heads; d = {model.d_model}, d_head = {model.d_head}")

# %% [markdown]
# Throughout this chapter one small task is in view: **copying**. A row of random words is read twice, and the second reading stops halfway.
# Nothing but the first reading tells what comes next, so somebody must look back. Here is the task, and how often the model's most likely
# word is right. (The longer sequences are left out, to keep this notebook quick.)


# %% label="task" tags=["nbval-check-output"]
def short(task, longest=12):
    """The items whose sequence has at most `longest` words."""
    return task.subset([label["length"] <= longest for label in task.labels])


validation = short(world.task("copying", split="validation", n=100))
test = short(world.task("copying", split="test", n=220))
print(test.prompts[0], "->", test.targets[0])
right = round(test.accuracy(model) * len(test))
low, high = wilson(right, len(test))
print(f"right {right / len(test):.2f}, 95 % interval [{low:.2f}, {high:.2f}]")
assert right / len(test) > 0.9

# %% [markdown]
# ## 1. Where a head looks
# A head never reads the residual stream $x$ itself, but its normed version $\hat x = \mathrm{LN}(x)$. From it each token makes a **query**
# ("what am I looking for?") and a **key** ("what do I offer?"), two short vectors of size $d_{head}$. Their dot product is the **score** of
# a pair of tokens, and a softmax turns each row of scores into the **pattern** $A$, the shares of attention:
#
# $$q_i = \hat x_i W_Q + b_Q, \qquad k_j = \hat x_j W_K + b_K, \qquad S_{ij} = \frac{q_i \cdot k_j}{\sqrt{d_{head}}}, \qquad
# A_{ij} = \frac{e^{S_{ij}}}{\sum_{j' \le i} e^{S_{ij'}}}$$
#
# States are rows here, so $\hat x W$ and not $W \hat x$. The sum runs over $j' \le i$, since a token cannot look ahead. `record` reads all
# of these: `L3H0.q`, `L3H0.k`, `L3H0.scores`, `L3H0.pattern`. `weights.head` gives the matrices of one head, cut from what the model stores.
# $T$ counts the tokens: those of the prompt and `<bos>`, with which every sequence starts.

# %% label="by-hand" tags=["nbval-check-output"]
prompt = test.prompts[0]
cache = mi.record(model, [prompt], ["x3", "L3H0.q", "L3H0.k"])
h = weights.head(model, layer=3, head=0)
x = parts.attn_norm(model, 3)(cache["x3"][0])  # the normed states [T, d]
q = x @ h.W_Q + h.b_Q
k = x @ h.W_K + h.b_K
print("x", tuple(x.shape), " W_Q", tuple(h.W_Q.shape), " q", tuple(q.shape))
print(
    "largest error of q and k below 1e-4:",
    (q - cache["L3H0.q"][0]).abs().max().item() < 1e-4,
    (k - cache["L3H0.k"][0]).abs().max().item() < 1e-4,
)
assert torch.allclose(q, cache["L3H0.q"][0], atol=1e-4) and torch.allclose(
    k, cache["L3H0.k"][0], atol=1e-4
)

# %% [markdown] exercise="heads.pattern" difficulty=2 minutes=10
# ### Exercise: from queries and keys to the pattern
# Write `attention_pattern(q, k)`: `[T, d_head]` twice in, the causal pattern `[T, T]` out. Row $i$ belongs to query $i$.


# %%
def attention_pattern(q, k):
    """Pattern [T, T] of one head from its queries and keys [T, d_head]; rows are queries and sum to 1."""
    ### BEGIN SOLUTION
    scores = q @ k.T / q.shape[-1] ** 0.5
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)
    ### END SOLUTION


# %%
attention_pattern = check("heads.pattern", attention_pattern)

# %% [markdown]
# Does it reproduce what the model computes, for all 24 heads? Two patterns are compared by the **misplaced attention**: half the sum of
# the differences in a row, which is the share of attention that lies on other tokens. 0 is equal, 1 is nothing in common.


# %% label="patterns" tags=["nbval-check-output"]
def misplaced(pattern, recorded):
    """Mean over queries of the share of attention that lies elsewhere, 0 ... 1: [T, T] twice -> number."""
    return (0.5 * (pattern - recorded).abs().sum(-1)).mean().item()


sites = [f"{name}.{part}" for name in names for part in ("q", "k", "pattern", "scores")]
cache = mi.record(model, [prompt], sites + [f"x{layer}" for layer in range(model.n_layers)])
worst = max(
    misplaced(
        attention_pattern(cache[f"{name}.q"][0], cache[f"{name}.k"][0]), cache[f"{name}.pattern"][0]
    )
    for name in names
)
row_sums = torch.stack([cache[f"{name}.pattern"][0].sum(-1) for name in names])
print(f"misplaced attention, worst of {len(names)} heads: {worst:.4f}")
print(f"row sums of all patterns: {row_sums.min():.3f} to {row_sums.max():.3f}")
assert worst < 1e-4 and (row_sums - 1).abs().max() < 1e-4

# %% [markdown]
# ### One matrix for the question "where"
# $W_Q$ and $W_K$ only ever meet in a product: $S_{ij}$ is, up to scale and biases, $\hat x_i W_Q W_K^\top \hat x_j^\top$. So the object is
# $W_{QK} = W_Q W_K^\top$, a $d \times d$ matrix of rank at most $d_{head}$ that scores *pairs of states*. The survey writes it without
# norm, scale and biases. All three matter, so build the full one: a bias is a weight on an input that is always 1.

# %% [markdown] exercise="heads.qk_matrix" difficulty=3 minutes=12
# ### Exercise: the QK matrix, with everything
# Write `qk_matrix(W_Q, b_Q, W_K, b_K)`: a matrix $M$ of shape `[d + 1, d + 1]` such that $[\hat x_i, 1]\, M\, [\hat x_j, 1]^\top = S_{ij}$,
# the score with scale and biases.


# %%
def qk_matrix(W_Q, b_Q, W_K, b_K):
    """W_Q, W_K [d, d_head], b_Q, b_K [d_head] -> M [d + 1, d + 1] with [x_i, 1] M [x_j, 1]^T = score."""
    ### BEGIN SOLUTION
    queries = torch.cat([W_Q, b_Q[None]])
    keys = torch.cat([W_K, b_K[None]])
    return queries @ keys.T / W_Q.shape[1] ** 0.5
    ### END SOLUTION


# %%
qk_matrix = check("heads.qk_matrix", qk_matrix)

# %% [markdown]
# Now compute all scores from the residual states and this matrix alone, with and without each ingredient, and compare the patterns with the
# recorded ones (mean over the 24 heads).


# %% label="ingredients"
def pattern_of(scores):
    """Causal softmax of scores [T, T]."""
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def with_one(x):
    """A 1 appended to every state: [T, d] -> [T, d + 1]."""
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


errors = {
    "all in place": [],
    "without biases": [],
    "without the norm": [],
    "without the scale": [],
    "transposed": [],
}
largest = 0.0
for name in names:
    site = mi.Site.parse(name)
    h, norm = weights.head(model, site.layer, site.index), parts.attn_norm(model, site.layer)
    raw = cache[f"x{site.layer}"][0]
    x, M = with_one(norm(raw)), qk_matrix(h.W_Q, h.b_Q, h.W_K, h.b_K)
    plain = norm(raw) @ (h.W_Q @ h.W_K.T) @ norm(raw).T / model.d_head**0.5
    largest = max(largest, (x @ M @ x.T - cache[f"{name}.scores"][0]).abs().max().item())
    attempts = [
        x @ M @ x.T,
        plain,
        with_one(raw) @ M @ with_one(raw).T,
        x @ M @ x.T * model.d_head**0.5,
        x @ M.T @ x.T,
    ]
    for errors_of_kind, scores in zip(errors.values(), attempts):
        errors_of_kind.append(misplaced(pattern_of(scores), cache[f"{name}.pattern"][0]))
mean_errors = {kind: sum(values) / len(values) for kind, values in errors.items()}
show(
    bars(
        mean_errors,
        xlabel="misplaced attention (share)",
        title="Patterns from the QK matrix, all heads of lab",
    ),
    alt="Bar chart of misplaced attention for five versions of the QK form. With everything in place it "
    "is zero; without biases, norm, scale, or transposed it is far from zero.",
    reading="Only the form with norm, scale and biases gives the model's own patterns.",
)
print(f"largest error of a score, everything in place: {largest:.1e}")
assert largest < 1e-3 and mean_errors["all in place"] < 1e-4
assert min(list(mean_errors.values())[1:]) > 0.01

# %% [markdown]
# ## 2. Scores are not the pattern
# The survey calls $A$ the attention *score* matrix (Eq. 4, Table 1). But $A$ comes after the softmax, and the two behave differently.
# Scores have no zero of their own: adding the same number to a whole row changes nothing. Shares are bound to each other: a row sums to 1.
# So it makes a difference where you intervene. The next cell takes **one entry** of one head, query = last token, and puts in its place the
# value that it has on another prompt of the same length, once in the scores and once in the pattern. It is the entry that differs most
# between the two prompts.

# %% label="scores-vs-pattern" tags=["nbval-check-output"]
one, two = [t for t in test.prompts if len(t.split()) == len(prompt.split())][:2]
both = mi.record(
    model, [one, two], [f"{name}.pattern" for name in names] + [f"{name}.scores" for name in names]
)
# [24, T]: how much the last query's attention differs between the prompts, by head and key
gap = torch.stack([both[f"{n}.pattern"][1, -1] - both[f"{n}.pattern"][0, -1] for n in names])
chosen, key = divmod(gap.abs().argmax().item(), gap.shape[1])
name = names[chosen]


def put(value):
    """An edit function that replaces the entry (last query, key) of a [B, T, T] tensor."""

    def change(now):
        new = now.clone()
        new[:, -1, key] = value
        return new

    return change


def last_row(*edits):
    """The last query's row of this head's pattern on the first prompt, and the logits, under the edits."""
    with mi.intervene(model, *edits):
        run = mi.record(model, [one], f"{name}.pattern")
    return run[f"{name}.pattern"][0, -1], run.logits[0, -1]


runs = {
    "as it is": last_row(),
    "all scores of the row + 5": last_row(mi.edit(f"{name}.scores", lambda s: s + 5, positions="last")),
    "score from the other prompt": last_row(
        mi.edit(f"{name}.scores", put(both[f"{name}.scores"][1, -1, key]))
    ),
    "pattern from the other prompt": last_row(
        mi.edit(f"{name}.pattern", put(both[f"{name}.pattern"][1, -1, key]))
    ),
}
there = both[f"{name}.pattern"][1, -1, key].item()
print(f"{name}, from the last token to token {key}; on the other prompt: {there:.2f} of the attention")
for label, (row, _) in runs.items():
    print(f"{label:30} entry {row[key]:.2f}   row sum {row.sum():.2f}")
base = runs["as it is"]
assert torch.allclose(runs["all scores of the row + 5"][1], base[1], atol=1e-3)
assert abs(runs["score from the other prompt"][0].sum() - 1) < 1e-4
assert (
    abs(runs["pattern from the other prompt"][0].sum() - 1 - gap[chosen, key]) < 1e-4
    and gap.abs().max() > 0.3
)

# %% [markdown]
# A patched score is weighed against the other scores of its *new* row, so the share that arrives need not be the share that was there. A
# patched pattern entry arrives exactly, but then the row no longer sums to 1: the head gathers more, or less, than it ever could. Neither
# is wrong. Say which one you did. To cut one connection, published work usually sets its score to $-\infty$ ("attention knock-out"), and
# the other tokens take over the share.
#
# ## 3. What a head takes along
# Each token also makes a **value** $v_j = \hat x_j W_V + b_V$. Query $i$ gathers values, weighted by its row of the pattern, into
# **z** (size $d_{head}$), and $W_O$ writes this to the stream as the head's **result** (size $d$). The block adds one bias $b_O$ for all
# heads:
#
# $$z = A\,(\hat x W_V + b_V), \qquad \mathrm{result} = z\,W_O, \qquad \mathrm{Attn}^l(\hat x) = \sum_h \mathrm{result}^{l,h} + b_O$$

# %% [markdown] exercise="heads.result" difficulty=2 minutes=8
# ### Exercise: z and result
# Write `head_result(pattern, x, W_V, b_V, W_O)`, which returns the pair `(z, result)` with shapes `[T, d_head]` and `[T, d]`. `x` is already
# normed.


# %%
def head_result(pattern, x, W_V, b_V, W_O):
    """pattern [T, T], normed x [T, d], W_V [d, d_head], b_V [d_head], W_O [d_head, d] -> (z, result)."""
    ### BEGIN SOLUTION
    z = pattern @ (x @ W_V + b_V)
    return z, z @ W_O
    ### END SOLUTION


# %%
head_result = check("heads.result", head_result)

# %% [markdown]
# Table 1 of the survey prints a head's output with $d_{head}$ columns, its Eq. 5 gives $d$ columns. Both exist: the first is z (site
# `L3H0.z`), the second the result (site `L3H0`). Hooks on the output projection see z; whoever reads words off a head, or adds heads up,
# needs the result. The next cell checks six statements about the two, on all heads.

# %% label="identities" tags=["nbval-check-output"]
sites = [
    f"{kind}{layer}"
    for layer in range(model.n_layers)
    for kind in ("x", "pattern", "z", "result", "attn")
]
run = mi.record(model, [prompt], sites)
checks = {}
for layer in range(model.n_layers):
    x = parts.attn_norm(model, layer)(run[f"x{layer}"][0])
    b_O = parts.attention(model, layer).b_O
    for head in range(model.n_heads):
        h = weights.head(model, layer, head)
        z, result = head_result(run[f"pattern{layer}"][0, head], x, h.W_V, h.b_V, h.W_O)
        through_ov = run[f"pattern{layer}"][0, head] @ (x @ h.W_OV + h.b_V @ h.W_O)
        errors = {
            "z is the recorded z": z - run[f"z{layer}"][0, :, head],
            "z W_O is the recorded result": result - run[f"result{layer}"][0, :, head],
            "A (x W_OV + b_V W_O) is the result too": through_ov - run[f"result{layer}"][0, :, head],
            "mean over tokens of z, times W_O, is the mean result": z.mean(0) @ h.W_O - result.mean(0),
        }
        for label, error in errors.items():
            checks[label] = max(checks.get(label, 0), error.abs().max().item())
    error = run[f"result{layer}"][0].sum(1) + b_O - run[f"attn{layer}"][0]
    checks["all results + b_O are the block's output"] = max(
        checks.get("all results + b_O are the block's output", 0), error.abs().max().item()
    )
for label, error in checks.items():
    print(f"{label:54} {error < 1e-4}")
    assert error < 1e-4
with mi.intervene(model, mi.zero("L3H0.z")):
    no_z = model.last_logits([prompt])
with mi.intervene(model, mi.zero("L3H0")):
    no_result = model.last_logits([prompt])
print(
    f"{'zeroing z and zeroing the result are the same':54} {torch.allclose(no_z, no_result, atol=1e-4)}"
)
assert torch.allclose(no_z, no_result, atol=1e-4)

# %% [markdown]
# Again only a product counts: $W_{OV} = W_V W_O$, $d \times d$, rank at most $d_{head}$, says what a head makes of a state that it looks
# at. The factors by themselves mean little. Mix the $d_{head}$ coordinates of z by any invertible matrix $R$ and undo it in $W_O$: z is
# another, the head is the same. The same holds for $W_Q$ and $W_K$. So "coordinate 7 of z" is not an object to interpret, QK and OV are.

# %% label="gauge" tags=["nbval-check-output"]
h = weights.head(model, 3, 0)
R = torch.randn(model.d_head, model.d_head, generator=torch.Generator().manual_seed(0))
x, A = parts.attn_norm(model, 3)(run["x3"][0]), run["pattern3"][0, 0]
z, result = head_result(A, x, h.W_V, h.b_V, h.W_O)
z_mixed, result_mixed = head_result(A, x, h.W_V @ R, h.b_V @ R, torch.linalg.solve(R, h.W_O))
print("rank of W_OV:", torch.linalg.matrix_rank(h.W_OV, rtol=1e-5).item(), "of", model.d_model)
print("z after mixing is the same:", torch.allclose(z, z_mixed, atol=1e-3))
print("result after mixing is the same:", torch.allclose(result, result_mixed, atol=1e-3))
theirs = h.W_O.T @ h.W_V.T  # with column vectors, as in Elhage et al.
print("W_OV of column-vector papers is our transpose:", torch.allclose(theirs, h.W_OV.T))
assert torch.allclose(result, result_mixed, atol=1e-3) and not torch.allclose(z, z_mixed, atol=1e-1)
assert torch.allclose(theirs, h.W_OV.T)

# %% [markdown]
# ## 4. Naming a head by where it looks
# A pattern is a picture; a score makes it a number. The magnitude scores of this section need no intervention, only a run (survey,
# section 3.1). Each asks which share of a head's attention falls on one kind of token, on the mean over the queries that have such a token:
#
# | kind of head | looks at | in `<bos> a b c a`, from the last `a` |
# |---|---|---|
# | previous token | the token before | `c` |
# | duplicate token | earlier copies of the current token | the first `a` |
# | induction | the token *right after* an earlier copy | `b` |
# | first token (a sink) | the first token, `<bos>` | `<bos>` |
#
# The survey says that induction heads copy previous tokens; this mixes the first and the third row. An induction head needs *two* scores:
# **prefix matching** for where it looks, and **copying** for what it writes there (section 5). The test bed is random words read twice: no
# grammar, no facts, so that whoever predicts the second half must have looked back ([@olsson2022incontextlearninginductionheads]).

# %% [markdown] exercise="heads.prefix_matching" difficulty=3 minutes=12
# ### Exercise: prefix matching
# Write `prefix_matching(pattern, tokens)` for one head and one sequence: `pattern` is `[T, T]`, `tokens` are `[T]` ids, a number comes out.
# For every query whose token occurred before, sum its attention to the tokens right after those earlier copies; then take the mean over
# these queries.


# %%
def prefix_matching(pattern, tokens):
    """Mean attention to what came right after earlier copies of a token: [T, T], [T] -> float."""
    ### BEGIN SOLUTION
    masses = []
    for i in range(len(tokens)):
        keys = [j + 1 for j in range(i) if tokens[j] == tokens[i]]
        if keys:
            masses.append(pattern[i, keys].sum().item())
    return sum(masses) / len(masses)
    ### END SOLUTION


# %%
prefix_matching = check("heads.prefix_matching", prefix_matching)

# %% [markdown]
# `mi_course.locate.attention_mass` has such scores for whole batches. It agrees with yours; the control is the score of a head that looks
# at all tokens alike.

# %% label="kinds" tags=["nbval-check-output"]
rows = am.repeated_sequences(model, COPY_WORDS, length=12, n=32)
one_row = mi.record(model, rows[:1], [f"{name}.pattern" for name in names])
yours = [prefix_matching(one_row[f"{name}.pattern"][0], torch.tensor(rows[0])) for name in names]
package = am.prefix_matching(model, rows[:1]).values
assert max(abs(a - b) for a, b in zip(yours, package)) < 1e-4

kinds = {
    "previous token": (am.previous_token(model, rows), am.previous_keys),
    "duplicate token": (am.duplicate_token(model, rows), am.duplicate_keys),
    "induction": (am.prefix_matching(model, rows), am.induction_keys),
    "first token": (am.first_token(model, rows), am.first_keys),
}
for kind, (scores, keys) in kinds.items():
    best = ", ".join(f"{site} {scores[site]:.2f}" for site in scores.top(3))
    print(f"{kind:16} {best}   (even attention: {am.uniform_mass(model, rows, keys):.2f})")
previous, duplicate, induction_score, first = (scores for scores, _ in kinds.values())
induction = [site for site in induction_score.top(len(names)) if induction_score[site] > 0.5]
before = previous.top(1)[0]
print("induction heads, prefix matching above 0.5:", ", ".join(induction))
assert induction and induction_score[induction[0]] > 10 * am.uniform_mass(
    model, rows, am.induction_keys
)

# %% [markdown]
# The grid shows prefix matching of all heads. Below it are two patterns on six words read twice: that of the best previous-token head, and
# that of the best induction head. Look for stripes. One step below the diagonal is the token before. A stripe in the lower half, one step to
# the *right* of the earlier copies, is induction. Where an induction head has nothing to match, in the first half, it often rests on `<bos>`.

# %% label="induction-pattern"
show(
    heatmap(
        torch.tensor(induction_score.values).view(model.n_layers, model.n_heads),
        xlabel="head",
        ylabel="layer",
        title="Prefix matching",
        unit="share of attention",
    ),
    alt="Heat map of prefix matching for 6 layers by 4 heads. A few heads of the middle layers are high, "
    "the others near zero.",
    reading="A few heads look at the token after an earlier copy; most hardly ever do.",
)
six_words = am.repeated_sequences(model, COPY_WORDS, length=6, n=1, seed=3)
LIVE = False  # True: an interactive view, if the package circuitsvis is installed
pair = [before, induction[0]]
shown = mi.record(model, six_words, [f"{name}.pattern" for name in pair])
circuitsvis(
    model.tokens(six_words[0]),
    torch.stack([shown[f"{name}.pattern"][0] for name in pair]),
    alt="Rows are queries, columns the tokens that they look at.",
    heads=pair,
    live=LIVE,
)

# %% [markdown]
# ## 5. Does it copy?
# Where a head looks is half of it. The other half: does it raise the logit of the word it looks at? What a head writes from token $j$
# alone is $v_j W_O$. The unembedding turns that into one number for each word of the vocabulary, and we ask how far the number of word $j$
# itself stands above the rest.

# %% [markdown] exercise="heads.copying" difficulty=3 minutes=12
# ### Exercise: a copying score
# Write `copying_score(writes, W_U, tokens)`: `writes` is `[n, d]` (what a head writes from each of n tokens), `W_U` is `[d, V]`, `tokens` are
# `[n]` ids. For each write take (logit of its own token - mean logit) / standard deviation, both over the vocabulary. Return the mean.


# %%
def copying_score(writes, W_U, tokens):
    """Mean over tokens of the own logit's distance from the mean, in standard deviations of its row."""
    ### BEGIN SOLUTION
    logits = writes @ W_U
    own = logits[torch.arange(len(tokens)), tokens]
    return ((own - logits.mean(-1)) / logits.std(-1)).mean().item()
    ### END SOLUTION


# %%
copying_score = check("heads.copying", copying_score)

# %% [markdown]
# There is a famous way to ask this without any data: put the raw embeddings $W_E$ through the head, $W_E W_{OV} W_U$, a map from words to
# words, and divide the sum of its eigenvalues by the sum of their sizes. 1 means that the map keeps all its directions (words raise
# themselves), -1 that it turns all of them round ([@elhage2021mathematical]). The figure compares it with the measured score, for all heads.

# %% label="copying"
W_U = weights.folded_unembedding(model)[0]  # final norm's gain and centring included
tokens = torch.tensor(rows)[:, 1:].flatten()
values = mi.record(model, rows, [f"v{layer}" for layer in range(model.n_layers)])
measured, shuffled = [], []
other = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
for name in names:
    site = mi.Site.parse(name)
    h = weights.head(model, site.layer, site.index)
    writes = values[f"v{site.layer}"][:, 1:, h.kv_head].flatten(0, 1) @ h.W_O
    measured.append(copying_score(writes, W_U, tokens))
    shuffled.append(copying_score(writes, W_U, other))
copies = Scores(names, measured, "copying", "magnitude")
eigen = am.copying_weights(model)
show(
    heatmap(
        torch.stack([torch.tensor(eigen.values), torch.tensor(measured)], 1),
        names,
        ["weights", "measured"],
        title="Does it copy?",
        unit="score",
    ),
    alt="Two columns of numbers for 24 heads. The score from weights is near -1 for nearly all heads "
    "after layer 0; the measured score is clearly positive for the induction heads.",
    reading="Left: eigenvalue score, -1 to 1. Right: measured on what the head really reads, in standard "
    "deviations.",
)
for site in induction:
    print(f"{site}: eigenvalue score {eigen[site]:+.2f}, measured {copies[site]:+.2f} s.d.")
print(f"control, the tokens shuffled: {min(shuffled):+.2f} to {max(shuffled):+.2f} s.d.")
assert max(abs(a - b) for a, b in zip(measured, am.copying(model, rows).values)) < 1e-2
assert copies[induction[0]] > max(shuffled) and copies[induction[0]] > 2

# %% [markdown]
# The two disagree about the very heads that matter. Which one is right? The eigenvalues assume that a head reads raw word embeddings. That
# holds in layer 0. Later, earlier layers have rewritten the state. The next cell gives the best induction head three inputs: raw embeddings
# of the words, their recorded states, and the recorded states without what the FFN of layer 0 wrote.

# %% label="what-it-reads" tags=["nbval-check-output"]
site = mi.Site.parse(induction[0])
h, norm = weights.head(model, site.layer, site.index), parts.attn_norm(model, site.layer)
run = mi.record(model, rows, [f"x{site.layer}", "mlp0", "embed"])


def copying_from(states):
    """Copying score of this head when it reads these states [B, T, d]."""
    writes = (norm(states[:, 1:]).flatten(0, 1) @ h.W_V + h.b_V) @ h.W_O
    return copying_score(writes, W_U, tokens)


inputs = {
    "raw embeddings": run["embed"],
    "the states that it reads": run[f"x{site.layer}"],
    "the same without mlp0's write": run[f"x{site.layer}"] - run["mlp0"],
}
from_input = {label: copying_from(states) for label, states in inputs.items()}
for label, value in from_input.items():
    print(f"{label:32} {value:+.2f} s.d.")
assert from_input["the states that it reads"] > 2 > from_input["raw embeddings"]
assert from_input["the same without mlp0's write"] < 0.5 * from_input["the states that it reads"]

# %% [markdown]
# So the head does copy: it reads the word from what earlier layers, above all the FFN of layer 0, wrote about it, and not from the embedding.
# A score from weights tests a head *and* an assumption about what it reads. (In small models without FFNs, for which it was made, the
# assumption comes closer to the truth.)
#
# ## 6. Confirm by ablation
# So far we have correlations with a story. Now take heads out and see. As in chapter 00 an effect is F(ablated) - F(base), with F the logit
# of the right word minus that of a wrong one, and a head is silenced to its **mean**, so that only what depends on the prompt is lost. First
# each head alone, on validation prompts.

# %% label="ablate-each"
z_sites = [f"{name}.z" for name in names]
means = causal.site_means(model, validation.prompts, z_sites)
effects = causal.ablate_each(model, validation, z_sites, "mean", means).values
effects = Scores(names, effects, "mean ablation", "ablation")
show(
    heatmap(
        torch.tensor(effects.values).view(model.n_layers, model.n_heads),
        xlabel="head",
        ylabel="layer",
        title="Copying task: effect of silencing one head",
        unit="logits",
    ),
    alt="Heat map of ablation effects on the copying task, 6 layers by 4 heads. The induction heads are "
    "among the most negative.",
    reading="Negative: without this head the right word loses ground.",
)
print(
    "largest effects:",
    ", ".join(f"{site} {effects[site]:+.1f}" for site in effects.top(5, by="negative")),
)
print("induction heads:", ", ".join(f"{site} {effects[site]:+.1f}" for site in induction))
assert set(induction) & set(effects.top(3, by="negative"))

# %% [markdown]
# Now all induction heads together, on the **test** split, beside the null band: as many random heads, drawn twenty times from all others.
# For comparison, as many heads of two other kinds: those that look most at the previous token, and those that look most at `<bos>`. Printed
# below the figure is also how many words are right without just one of the induction heads.


# %% label="ablate-together"
def without(heads):
    """Mean logit difference and accuracy on the test split, with these heads silenced to their means."""
    with mi.intervene(model, *causal.ablation([f"{site}.z" for site in heads], "mean", means)):
        logits = model.last_logits(test.prompts)
    correct = (logits.argmax(-1) == test.target_ids(model)).float().mean().item()
    return test.metric_of(logits, model).mean().item(), correct


rng = random.Random(0)
n = len(induction)
others = [name for name in names if name not in induction]
whole = without([])
sets = {
    "induction heads": induction,
    "previous-token heads": [name for name in previous.top(24) if name in others][:n],
    "heads that rest on <bos>": [name for name in first.top(24) if name in others][:n],
}
silenced = {label: without(heads) for label, heads in sets.items()}
draws = [without(rng.sample(others, n)) for _ in range(20)]
band = null_band(draw[0] - whole[0] for draw in draws)
show(
    bars(
        {label: value - whole[0] for label, (value, _) in silenced.items()},
        null=band,
        xlabel="change of the logit difference",
        title=f"Silencing {n} heads together",
    ),
    alt="Three bars beside the null band of random heads. The bar of the induction heads is far outside "
    "the band.",
    reading="Starred: outside the band of twenty random sets of as many heads (drawn from all but the "
    "induction heads).",
)
print(
    f"right words: {whole[1]:.2f} with all heads;",
    ", ".join(f"{correct:.2f} without {label}" for label, (_, correct) in silenced.items()),
)
print(
    f"without random heads: {sum(d[1] for d in draws) / 20:.2f} on average,"
    f" {min(d[1] for d in draws):.2f} at worst"
)
alone = {site: without([site])[1] for site in induction}
print("silencing just one of them:", ", ".join(f"{v:.2f} without {site}" for site, v in alone.items()))
found = silenced["induction heads"]
assert found[1] < 0.5 * min(alone.values()) and silenced["previous-token heads"][1] > 0.8
assert not band.contains(found[0] - whole[0]) and found[1] < min(d[1] for d in draws)
assert band.contains(silenced["heads that rest on <bos>"][0] - whole[0])
assert not band.contains(silenced["previous-token heads"][0] - whole[0])

# %% [markdown]
# Without the induction heads hardly a word is right, and no random set comes near. Silencing just one of them leaves many more words right:
# the other makes up for part of it. The names hold: they were given by where the heads look, and the ablation confirms what they are for.
# Heads that rest on `<bos>` can go. Silencing the previous-token heads leaves most words right, but with a smaller lead than random heads
# leave them, although these heads do not look at the word that has to be copied. The next section says why.
#
# ## 7. Two heads, one circuit
# How can a head find "the token after an earlier copy"? Its key at that token must say *what came before it*. The embedding of a token
# does not say that; another head has to write it there first: a previous-token head in an earlier layer. When the keys of a later head
# read what an earlier head wrote, this is **K-composition** (likewise Q- and V-composition through queries and values).
#
# The weights alone can hint at it. The earlier head writes $y_j = (\dots)\,W_{OV}$; the later head scores $x_i W_{QK} y_j^\top$. If the
# writes are aligned with what the keys read, the product $W_{OV} W_{QK}^\top$ is large for matrices of their size.

# %% [markdown] exercise="heads.k_composition" difficulty=3 minutes=10
# ### Exercise: K-composition
# Write `k_composition(W_OV, W_QK)`, both `[d, d]` with row vectors, $W_{OV}$ of the earlier and $W_{QK}$ of the later head:
# $\lVert W_{OV} W_{QK}^\top \rVert \,/\, (\lVert W_{OV} \rVert\, \lVert W_{QK} \rVert)$ with Frobenius norms.


# %%
def k_composition(W_OV, W_QK):
    """Alignment of a head's writes with what later keys read: [d, d] twice -> 0 ... 1."""
    ### BEGIN SOLUTION
    return ((W_OV @ W_QK.T).norm() / (W_OV.norm() * W_QK.norm())).item()
    ### END SOLUTION


# %%
k_composition = check("heads.k_composition", k_composition)

# %% [markdown]
# For the best induction head, against every head of the layers before it. The null band comes from random matrices in place of $W_{OV}$, of
# the same rank. A second control: does the previous-token head fit the keys of the other heads in the induction head's layer as well?

# %% label="composition"
late = mi.Site.parse(induction[0])
h, norm = weights.head(model, late.layer, late.index), parts.attn_norm(model, late.layer)
# the norm's gain stands between the stream and QK
W_QK = norm.gain[:, None] * h.qk_matrix() * norm.gain
earlier = [name for name in names if mi.Site.parse(name).layer < late.layer]


def W_OV_of(name):
    """OV matrix of a head, centred as the later LayerNorm does it."""
    site = mi.Site.parse(name)
    return norm.centre(weights.head(model, site.layer, site.index).W_OV)


composition = {name: k_composition(W_OV_of(name), W_QK) for name in earlier}
g = torch.Generator().manual_seed(0)
d, d_head = model.d_model, model.d_head
random_OV = [torch.randn(d, d_head, generator=g) @ torch.randn(d_head, d, generator=g) for _ in range(50)]
null = null_band(k_composition(W, W_QK) for W in random_OV)
ranked = sorted(composition, key=composition.get, reverse=True)
show(
    bars(
        {name: composition[name] for name in ranked[:8]},
        null=null,
        xlabel="K-composition",
        title=f"Whose writes do the keys of {induction[0]} read?",
    ),
    alt="Bars of K-composition of the eight highest earlier heads with the induction head, beside the "
    "narrow null band.",
    reading="Starred: above what random matrices of the same rank give.",
)
print(f"random matrices: {null.mean:.3f} +- {null.sd:.3f}")
print(
    f"previous-token head {before}: {composition[before]:.3f},"
    f" place {ranked.index(before) + 1} of {len(ranked)}"
)
controls = []
for head in range(model.n_heads):
    if head != late.index:
        gain, QK = norm.gain, weights.head(model, late.layer, head).qk_matrix()
        controls.append(k_composition(W_OV_of(before), gain[:, None] * QK * gain))
        print(f"control, {before} with the keys of L{late.layer}H{head}: {controls[-1]:.3f}")
assert composition[before] > null.high > max(controls)

# %% [markdown]
# Many heads lie above the band: trained matrices share directions that random ones do not, so the order says more than the star. The second
# control is clean: to the keys of its neighbours the previous-token head means no more than a random matrix.
#
# Weights say what *could* be read. What is read on these sequences can be said exactly. The key at $j$ is a sum over everything written to
# the stream before, once the scale of the norm is held at its actual value (chapter 01). So the **margin** (the score of the right key minus
# the mean score of all other keys) splits into one share for each writer, and the shares add up. (Biases of the keys
# give all keys of a query the same, so they fall out of the margin.)

# %% label="key-shares"
run = mi.record(model, rows, [f"x{late.layer}", f"{induction[0]}.q", f"{induction[0]}.scores"])
stream = decompose_residual(model, rows)
scale = norm.scale(run[f"x{late.layer}"])
q = run[f"{induction[0]}.q"]
T, half = q.shape[1], (q.shape[1] - 1) // 2
queries = torch.arange(half + 1, T)  # the second half
allowed = torch.ones(T, T).tril()[queries]
allowed[torch.arange(half), queries - half + 1] = 0  # all keys up to the query but the right one


def margin(scores):
    """Score of the right key minus the mean of the others, mean over queries: [B, T, T] -> number."""
    rest = (scores[:, queries] * allowed).sum(-1) / allowed.sum(-1)
    return (scores[:, queries, queries - half + 1] - rest).mean().item()


shares = {}
for name, write in zip(stream.names, stream.writes):
    if name in ("embed", "pos") or int(re.search(r"\d+", name)[0]) < late.layer:
        key_part = (norm.centre(write) * scale * norm.gain) @ h.W_K
        shares[name] = margin(h.scale * q @ key_part.mT)
total = margin(run[f"{induction[0]}.scores"])
largest = sorted(shares, key=lambda name: abs(shares[name]), reverse=True)[:8]
show(
    bars(
        {name: shares[name] for name in largest},
        xlabel="share of the score margin",
        title=f"Who tells the keys of {induction[0]} where to look?",
    ),
    alt="Bars of the eight largest shares of the score margin of the induction head, by writer.",
    reading=f"All shares add up to the margin, {total:.1f}.",
)
by_head = sorted(earlier, key=shares.get, reverse=True)
print(f"sum of all shares {sum(shares.values()):.2f}, recorded margin {total:.2f}")
print("heads:", ", ".join(f"{name} {shares[name]:+.1f}" for name in by_head[:4]))
assert abs(sum(shares.values()) - total) < 0.01

# %% [markdown]
# A head leads, as expected. But the FFN of layer 0 has a large share too, and an FFN cannot look at other tokens. It can only pass on what
# the heads of layer 0 brought to its token. Did they bring the token before, although none of them got the name? Forbid all heads of layer
# 0 to look one token back (score minus infinity) and see what is left of mlp0's share. The control forbids two tokens back.


# %% label="mlp0" tags=["nbval-check-output"]
def share_of(write):
    """Share of the margin that comes from one write [B, T, d]."""
    return margin(h.scale * q @ ((norm.centre(write) * scale * norm.gain) @ h.W_K).mT)


def not_back(steps):
    """An edit: the heads of layer 0 cannot look `steps` tokens back."""

    def cut(scores):
        scores, i = scores.clone(), torch.arange(steps, scores.shape[-1])
        scores[:, :, i, i - steps] = -torch.inf
        return scores

    return mi.edit("scores0", cut)


assert max(shares, key=shares.get) == before and max(previous[f"L0H{i}"] for i in range(4)) < 0.5
left = {"untouched": share_of(mi.record(model, rows, "mlp0")["mlp0"])}
for steps in (1, 2):
    with mi.intervene(model, not_back(steps)):
        left[f"layer 0 cannot look {steps} back"] = share_of(mi.record(model, rows, "mlp0")["mlp0"])
for label, value in left.items():
    print(f"mlp0's share, {label:26} {value:.1f}")
assert left["layer 0 cannot look 1 back"] < 0.5 * left["untouched"] < left["layer 0 cannot look 2 back"]

# %% [markdown]
# So the word "previous-token head" covers only part of how the previous token reaches the key: it is also gathered by heads that spread
# their attention, and passed on by an FFN. A grid of attention scores does not show this path; the exact split did.
#
# Last, the intervention: silence each earlier head and measure the prefix matching of the induction head. What falls, depended on it. The
# three answers, from weights, from the exact shares and from ablation, need not agree. Here they point at the same head. Then cut the path
# through layer 0 as well, again with two tokens back as control.


# %% label="cut" tags=["nbval-check-output"]
def matching_without(heads, *edits):
    """Prefix matching of the induction head when these heads are silenced, under further edits."""
    silent = causal.ablation([f"{name}.z" for name in heads], "mean", means)
    with mi.intervene(model, *silent, *edits):
        return am.prefix_matching(model, rows)[induction[0]]


drop = {name: matching_without([name]) - induction_score[induction[0]] for name in earlier}
hit = min(drop, key=drop.get)
rest = null_band(value for name, value in drop.items() if name != hit)
print(f"prefix matching of {induction[0]} falls most without {hit}: {drop[hit]:+.2f}")
print(f"other earlier heads: {rest.mean:+.2f} +- {rest.sd:.2f}")
print(f"previous-token head: {before}, most aligned: {ranked[0]}, largest share among heads: {by_head[0]}")
assert drop[hit] < rest.low and before == hit == ranked[0] == by_head[0]
matching = {
    "untouched": matching_without([]),
    f"without {before}": matching_without([before]),
    "layer 0 cannot look 1 back": matching_without([], not_back(1)),
    "layer 0 cannot look 2 back": matching_without([], not_back(2)),
    "both, 1 back": matching_without([before], not_back(1)),
    "both, 2 back": matching_without([before], not_back(2)),
}
for label, value in matching.items():
    print(f"prefix matching, {label:27} {value:.2f}")
assert matching["both, 1 back"] < 0.5 * min(matching[f"without {before}"], matching["both, 2 back"])
assert matching["layer 0 cannot look 1 back"] < matching["layer 0 cannot look 2 back"]
assert matching["layer 0 cannot look 1 back"] < matching[f"without {before}"]

# %% [markdown]
# The best previous-token head is not the only route. Without it the induction head still finds most of its keys. Forbidding layer 0 one token
# back costs much more, since everything built on layer 0 loses that token, and with both cuts almost nothing is left. The control is not free
# either (the model needs layer 0 for other things), but it costs clearly less. A head found by three methods is still not the whole mechanism.
#
# The same shows word by word. Look again at the two patterns of section 4. Where the stripe of the induction head is weakest, did the
# previous-token head look elsewhere when it stood at the right key? First that word, then all words of the second halves.

# %% label="word-by-word" tags=["nbval-check-output"]
words = model.tokens(six_words[0])
early, late_one = (shown[f"{name}.pattern"][0] for name in (before, induction[0]))
# queries of the second half are 7 ... 12, and the right key is 5 back
weakest = min(range(7, 13), key=lambda i: late_one[i, i - 5])
print(
    f"weakest: {induction[0]} at '{words[weakest]}' looks at '{words[weakest - 5]}' with "
    f"{late_one[weakest, weakest - 5]:.2f}; there {before} looked one back with "
    f"{early[weakest - 5, weakest - 6]:.2f}"
)
pair = mi.record(model, rows, [f"{before}.pattern", f"{induction[0]}.pattern"])
right_key = queries - half + 1
# did the key learn what came before it?
told = pair[f"{before}.pattern"][:, right_key, right_key - 1].flatten()
match = pair[f"{induction[0]}.pattern"][:, queries, right_key].flatten()
link = torch.corrcoef(torch.stack([told, match]))[0, 1].item()
shuffled = [
    torch.corrcoef(torch.stack([told, match[torch.randperm(len(match), generator=g)]]))[0, 1].item()
    for _ in range(50)
]
print(
    f"prefix matching where {before} looked one back with more than 0.7: {match[told > 0.7].mean():.2f}"
)
print(f"prefix matching where it did so with less than 0.3:           {match[told < 0.3].mean():.2f}")
print(f"correlation over {len(match)} words {link:.2f}; shuffled, at most {max(shuffled):.2f}")
assert link > max(shuffled) and match[told > 0.7].mean() > match[told < 0.3].mean()

# %% [markdown]
# ## 8. The scoreboard
# In `lab` we found heads with methods that we wanted to test. For a fair test the truth must come from elsewhere. `compiled.induction` is a
# GPT-2 of two layers whose weights were set by hand: L0H0 writes the previous token into each token, L1H0 matches and copies. Two more heads
# are decoys: they look at `<bos>` all the time and write loudly into a coordinate that nobody reads. Two are empty. Each method ranks the
# six heads. AUROC is the chance that a true head ranks above another: 1 is perfect, 0.5 is guessing.

# %% label="scoreboard" tags=["nbval-check-output"]
truth = compiled.induction()
circuit = truth.wrap()
circuit_names = [f"L{layer}H{head}" for layer in range(2) for head in range(circuit.n_heads)]
circuit_rows = am.repeated_sequences(circuit, list("abcdefghijkl"), length=8, n=16)
run = mi.record(circuit, circuit_rows, circuit_names)
scores = {
    "previous token": am.previous_token(circuit, circuit_rows).values,
    "prefix matching": am.prefix_matching(circuit, circuit_rows).values,
    "the larger of the two": None,
    "first token": am.first_token(circuit, circuit_rows).values,
    "copying, measured": am.copying(circuit, circuit_rows).values,
    "copying, from weights": am.copying_weights(circuit).values,
    "size of the write": [run[name].norm(dim=-1).mean().item() for name in circuit_names],
    "zero ablation (- effect)": -causal.ablate_each(
        circuit, truth.task, [f"{n}.z" for n in circuit_names]
    ).values,
}
scores["the larger of the two"] = [
    max(pair) for pair in zip(scores["previous token"], scores["prefix matching"])
]
board = {
    m: Scores(circuit_names, v, m, "magnitude").against(truth.answer, by="positive")
    for m, v in scores.items()
}
print("truth:", ", ".join(truth.answer), "  decoys:", ", ".join(truth.decoys))
for method, result in board.items():
    print(f"{method:26} AUROC {result['auroc']:.2f}   found in the top 2: {result['recall_at_k']:.2f}")
print(f"{'chance':26} AUROC 0.50   found in the top 2: {board['first token']['chance_recall']:.2f}")
assert board["the larger of the two"]["auroc"] == 1 and board["zero ablation (- effect)"]["auroc"] == 1
assert board["first token"]["auroc"] < 0.5 and board["size of the write"]["recall_at_k"] < 1
assert board["prefix matching"]["recall_at_k"] < 1
effect_of = dict(zip(circuit_names, scores["zero ablation (- effect)"]))
print("effect of zeroing a decoy:", ", ".join(f"{abs(effect_of[name]):.2f}" for name in truth.decoys))
assert all(abs(effect_of[name]) < 1e-3 for name in truth.decoys)

# %% [markdown]
# Each attention score finds the head of its own kind and no other; a circuit of two kinds takes two scores. The decoys win "first token" and
# "size of the write". Their attention is as sharp as can be, and switching them off changes nothing. So a sharp pattern proves no use. (Heads
# that tie share a place: copying puts L1H0 first and cannot tell the other five apart, which makes 1 + 1/5 of 2, or 0.60.)
#
# **Where all of this fails.** In `compiled.backup` a name has to be repeated. L0H0 does it; L1H0 does the same, but only if L0H0 did not.

# %% label="failure" tags=["nbval-check-output"]
spare = compiled.backup()
double = spare.wrap()
spans = [(2, 3)] * len(spare.task)  # prompts are "<bos> then NAME says": the name is token 2
gone = [causal.ablation([f"{site}.z" for site in sites]) for sites in ([], ["L0H0"])]
looks = []
for edits in gone:
    with mi.intervene(double, *edits):
        looks.append(am.span_mass(double, spare.task.prompts, spans))
for sites in (["L0H0"], ["L1H0"], ["L0H0", "L1H0"]):
    effect = causal.ablate_together(double, spare.task, [f"{site}.z" for site in sites]).mean().item()
    print(f"without {' and '.join(sites):14} effect {effect:+.1f}")
print(f"attention to the name: L0H0 {looks[0]['L0H0']:.2f}, L1H0 {looks[0]['L1H0']:.2f}")
print(f"the same for L1H0 when L0H0 is gone: {looks[1]['L1H0']:.2f}")
assert looks[0]["L0H0"] > 0.99 > 0.01 > looks[0]["L1H0"] and looks[1]["L1H0"] > 0.99

# %% [markdown]
# L0H0 looks at the name with all its attention, yet silencing it does nothing; L1H0 never looks at the name, yet it is half of the
# mechanism. Attention scores miss the second, single ablations miss both, and only the joint ablation shows the pair.
#
# **And in `lab`?** Here every head can be ablated, so the effects are the reference. Call a head *needed* when silencing it costs at least a
# tenth of what the most important head costs. How well does each score find the needed heads? The null band comes from shuffled ranks.

# %% label="lab-board"
use = torch.tensor([-effects[name] for name in names])
needed = [name for name, value in zip(names, use) if value > 0.1 * use.max()]
scored = {kind: list(scores.values) for kind, (scores, _) in kinds.items()}
scored["larger of previous, induction"] = [max(previous[n], induction_score[n]) for n in names]
scored["copying, measured"] = measured
scored["copying, from weights"] = list(eigen.values)
auroc = {
    kind: Scores(names, values, kind, "magnitude").against(needed, by="positive")["auroc"]
    for kind, values in scored.items()
}
shuffles = [
    Scores(names, rng.sample(range(24), 24), "", "magnitude").against(needed)["auroc"]
    for _ in range(200)
]
show(
    bars(
        auroc,
        null=shuffles,
        xlabel="AUROC",
        title=f"Finding the {len(needed)} heads that copying needs",
    ),
    alt="Bars of the AUROC of seven scores for finding the needed heads, beside the wide null band around"
    " 0.5.",
    reading="Inside the band: not to be told from chance. 1 would be perfect.",
)
named = [n for n in names if max(previous[n], duplicate[n], induction_score[n]) > 0.5]
for name in sorted(needed, key=lambda n: effects[n]):
    print(f"needed: {name} {effects[name]:+.1f}" + "   no attention score above 0.5" * (name not in named))
sharp = {
    name: max(scores[name] for scores, _ in kinds.values())
    for name in names
    if name not in [*induction, before]
}
idle = max(sharp, key=lambda name: sharp[name] - abs(effects[name]) / use.max().item())
kind = max(kinds, key=lambda k: kinds[k][0][idle])
print(
    f"{idle} gives {sharp[idle]:.2f} of its attention to one kind of key ({kind});"
    f" silencing it: {effects[idle]:+.2f}"
)
print(
    f"{induction[0]} for comparison: {induction_score[induction[0]]:.2f} (induction); silencing it: "
    f"{effects[induction[0]]:+.2f}"
)
assert (
    abs(effects[idle]) < 0.2 * abs(effects[induction[0]])
    and induction[0] in needed
    and before in needed
)
assert max(auroc.values()) < null_band(shuffles).high and not set(needed) <= set(named)

# %% [markdown]
# The attention scores found the most important heads, and the ablations bore their names out. But as a ranking of *all* 24 heads by need, no
# score leaves the band (a wide one, since few heads are needed): some needed heads do work that has no name here, and a head may give much
# of its attention to one kind of key and be idle. Use the scores to form a hypothesis, and an ablation to test it.
#
# ## 9. Rotary positions and grouped heads
# `lab-llama` read the same world with the architecture of Llama. Two things change. First, **RoPE** ([@su2021roformer]): positions are not
# added to the stream; instead queries and keys are *rotated* by an angle that grows with the position. The score of a pair then depends on
# the offset $i - j$ through a rotation $R$ in the middle:
#
# $$S_{ij} = \hat x_i\, W_Q\, R_{i-j}\, W_K^\top\, \hat x_j^\top \,/\, \sqrt{d_{head}}$$
#
# So there is one QK matrix *per offset*; "a single low-rank matrix" (survey, section 2.3) does not exist. `qk_matrix(offset)` gives each of
# them. We find heads by the same lines as before, and ask how much the matrix changes with the offset.

# %% label="rope"
llama = mi.load("lab-llama")
llama_rows = am.repeated_sequences(llama, COPY_WORDS, length=12, n=16)
llama_names = [f"L{layer}H{head}" for layer in range(llama.n_layers) for head in range(llama.n_heads)]
picks = {
    "previous token": am.previous_token(llama, llama_rows).top(1)[0],
    "induction": am.prefix_matching(llama, llama_rows).top(1)[0],
}
offsets = list(range(13))
lines = {}
for kind, name in picks.items():
    site = mi.Site.parse(name)
    h = weights.head(llama, site.layer, site.index)
    M = [h.qk_matrix(offset) for offset in offsets]
    lines[f"{kind} head {name}"] = [((m - M[0]).norm() / M[0].norm()).item() for m in M]
site = mi.Site.parse(before)
fixed = weights.head(model, site.layer, site.index)
lines[f"lab, {before}"] = [
    ((fixed.qk_matrix(o) - fixed.qk_matrix(0)).norm() / fixed.qk_matrix(0).norm()).item()
    for o in offsets
]
show(
    curves(
        offsets,
        lines,
        xlabel="offset i - j",
        ylabel="distance from that of offset 0",
        title="The QK matrix by offset",
    ),
    alt="Three lines over offsets 0 to 12. For both heads of lab-llama the QK matrix moves away from that"
    " of offset 0; for the head of lab it stays exactly the same.",
    reading="1 means that the change is as large as the matrix itself. Without RoPE there is no change at "
    "all.",
)
assert max(lines[f"lab, {before}"]) == 0 and min(max(line) for line in list(lines.values())[:2]) > 0.3

# %% [markdown]
# Does it matter for the pattern? Three attempts to compute the patterns of these two heads from states and weights: with the right matrix
# for each offset, with that of offset 0 for all pairs, and with a compromise, the mean matrix over the offsets that occur.

# %% label="one-matrix" tags=["nbval-check-output"]
for kind, name in picks.items():
    site = mi.Site.parse(name)
    h, norm = weights.head(llama, site.layer, site.index), parts.attn_norm(llama, site.layer)
    run = mi.record(llama, llama_rows[:1], [f"x{site.layer}", f"{name}.pattern"])
    x, recorded = norm(run[f"x{site.layer}"][0]), run[f"{name}.pattern"][0]
    mean_matrix = sum(h.qk_matrix(offset) for offset in range(len(x))) / len(x)
    attempts = {
        "one per offset": h.scores(x),
        "offset 0 for all": h.scale * x @ h.qk_matrix(0) @ x.T,
        "the mean matrix": h.scale * x @ mean_matrix @ x.T,
    }
    wrong = {label: misplaced(pattern_of(scores), recorded) for label, scores in attempts.items()}
    print(
        f"{kind:15} {name}  misplaced attention:", ", ".join(f"{k} {v:.2f}" for k, v in wrong.items())
    )
    assert wrong["one per offset"] < 1e-3
    assert kind == "induction" or min(wrong["offset 0 for all"], wrong["the mean matrix"]) > 0.2

# %% [markdown]
# The previous-token head lives by the offset: with any single matrix nearly all its attention lands elsewhere. The induction head matches
# words and not distances. Its matrix changes with the offset too, yet one matrix describes its pattern almost, but not quite. How much the
# offset matters has to be measured for each head.
#
# Second, **grouped heads** ([@ainslie2023gqa]): here four query heads share two heads of keys and values. $W_Q$ and $W_O$ belong to one query
# head, $W_K$ and $W_V$ to a group. So the survey's statement that every head has its own $W_K$ and $W_V$ does not hold. ($d_{head} = d / H$, which
# holds here, is not general either: some models choose $d_{head}$ freely.) For interventions it means: whoever edits the keys of one head edits the group. The next cell zeroes, one at
# a time, four parts of head 0 in one layer, and shows how much the results of *all* heads of the layer change.

# %% label="groups"
layer = mi.Site.parse(picks["induction"]).layer
untouched = mi.record(llama, llama_rows, f"result{layer}")[f"result{layer}"]
change = []
for part in ("q", "k", "v", "z"):
    with mi.intervene(llama, mi.zero(f"L{layer}H0.{part}")):
        result = mi.record(llama, llama_rows, f"result{layer}")[f"result{layer}"]
    change.append((result - untouched).norm(dim=-1).mean((0, 1)) / untouched.norm(dim=-1).mean((0, 1)))
change = torch.stack(change)
show(
    heatmap(
        change,
        ["q", "k", "v", "z"],
        [f"L{layer}H{head}" for head in range(llama.n_heads)],
        xlabel="whose result changes",
        ylabel="zeroed part of head 0",
        title="lab-llama: edits of one head",
        unit="relative change",
    ),
    alt="Grid of four edits by four heads. Zeroing q or z of head 0 changes head 0 only; zeroing k or v "
    "changes heads 0 and 1.",
    reading="q and z belong to one head; k and v belong to the group of two.",
)
assert change[[0, 3], 1:].max() < 1e-6 and change[1:3, 2:].max() < 1e-6 and change[1:3, :2].min() > 0.05
print(
    "key-value head of each query head:",
    [weights.head(llama, layer, i).kv_head for i in range(llama.n_heads)],
)

# %% [markdown]
# The unit of ablation is therefore the *query* head, at its z. Edits of keys and values have to be reported as edits of a group.
#
# ## 10. What the survey says, and where it is loose
# - **Eq. 4 calls the pattern "scores".** Two objects: section 2 showed that patching one is not patching the other.
# - **The QK unit is given as $x_i^\top W_{QK} x_j$.** It needs the norm, $1/\sqrt{d_{head}}$ and the biases (section 1 measured what each omission
#   costs), and with RoPE one matrix per offset (section 9). The column form also does not fit the row form of Eq. 4.
# - **Table 1 gives a head's output $d_{head}$ columns, Eq. 5 gives it $d$.** These are z and result (section 3). $b_O$ is missing from the sum
#   over heads.
# - **Each head with its own $W_K$, $W_V$ and $d_{head} = d/H$.** The first fails with grouped heads, the second in models that set $d_{head}$ apart
#   (section 9).
# - **"Induction heads copy previous tokens."** They look at the token after an earlier copy; a previous-token head is another head, on whose write the
#   first relies in part (sections 4 and 7).
# - **Attention magnitude as importance.** The survey itself warns that magnitude is presence, not necessity. Section 8 shows a decoy, a
#   backup head, and a head of `lab` for which that is so.
#
# ## 11. Papers that use this
# - the two circuits of a head, composition, eigenvalues: [@elhage2021mathematical]
# - induction heads, prefix matching and copying: [@olsson2022incontextlearninginductionheads]; what has to be learned first for one to form:
#   [@singh2024needs]
# - duplicate-token heads, induction heads and backups in one circuit: [@wang2022interpretability]
# - heads that do the opposite of copying: [@mcdougall2023copy]
# - attention sinks: [@xiao2023streamingllm]; that token importance needs the value and not only the attention: [@guo-etal-2024-attention]
# - heads chosen by where they look, to save memory: [@xiao2024duoattention], [@tang2024razorattention]
# - the debate whether attention explains: [@jain2019attention]
#
# ## 12. The same on a real model
# Put the name of a Hugging Face model or a local folder here. The cell reads random tokens twice, names the heads with the highest prefix
# matching and their copying score, and compares the loss on the second half without them and without random heads.

# %% label="real"
REAL = None  # for example "gpt2"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    real = mi.load(REAL)
    ids = rng.sample(range(real.n_vocab // 50, real.n_vocab // 2), 400)  # neither special nor very rare
    real_rows = am.repeated_sequences(real, ids, length=30, n=16)
    matching, real_copies = am.prefix_matching(real, real_rows), am.copying(real, real_rows)
    top = matching.top(8)
    for name in top:
        print(f"{name:8} prefix matching {matching[name]:.2f}   copying {real_copies[name]:+.1f} s.d.")

    def second_half_loss(heads):
        with mi.intervene(real, *[mi.zero(f"{name}.z") for name in heads]):
            log_p = real(real_rows)[:, -31:-1].log_softmax(-1)
        return -log_p.gather(-1, torch.tensor(real_rows)[:, -30:, None]).mean().item()

    rest = [name for name in matching.sites if name not in top]
    draws = [second_half_loss(rng.sample(rest, len(top))) for _ in range(5)]
    print(
        f"loss on the second half: {second_half_loss([]):.2f}; "
        f"without these heads {second_half_loss(top):.2f}; "
        f"without random ones {min(draws):.2f} to {max(draws):.2f}"
    )

# %% [markdown]
# ## 13. Four questions

# %% label="quiz"
quiz(
    [
        Question(
            "You set one entry of a pattern from 0.8 to 0 and leave the rest. What have you done to that query?",
            [
                (
                    "Its other keys now share the 0.8.",
                    "That happens when the *score* is set to minus infinity, since the softmax comes after it. Nothing comes after the pattern.",
                ),
                (
                    "It gathers only 0.2 of the values it used to gather in all.",
                    "The row now sums to 0.2. z is shorter than any real pattern could make it, which is a state that the model never saw.",
                    True,
                ),
                (
                    "Nothing, since softmax ignores constants.",
                    "Adding a constant to a whole row of scores changes nothing. This is one entry, and it lies behind the softmax.",
                ),
            ],
        ),
        Question(
            "A head has prefix matching 0.95, and silencing it does not change the copying task. What is the most careful reading?",
            [
                (
                    "It is no induction head.",
                    "It looks where an induction head looks; that is what the score says. Whether its write is used is another question.",
                ),
                (
                    "It looks at the right place; on these prompts its write is not needed, or another head makes up for it.",
                    "Attention says where, ablation says whether it is needed, and a backup can hide a need. A joint ablation would tell.",
                    True,
                ),
                (
                    "The ablation must be wrong.",
                    "A pattern is no proof of use. In section 8 heads look with all their attention and change nothing.",
                ),
            ],
        ),
        Question(
            "The eigenvalue copying score of a head in layer 3 is -0.9. Does the head suppress what it looks at?",
            [
                (
                    "Yes: nearly all eigenvalues are negative.",
                    "They belong to W_E W_OV W_U, that is, to a head that reads raw embeddings. In layer 3 it reads something else.",
                ),
                (
                    "Not known: the score assumes that the head reads raw embeddings. Measure it on the states that it really reads.",
                    "In this chapter the sign of copying changed when the states were put in. The weights alone cannot know what earlier layers write.",
                    True,
                ),
                (
                    "No: eigenvalues say nothing about heads.",
                    "They say what the head would make of raw embeddings, which is right in layer 0.",
                ),
            ],
        ),
        Question(
            "In a model with RoPE and groups of 4 query heads, you zero the key of one query head. What did you change?",
            [
                (
                    "The pattern of this head.",
                    "Its key is shared: all query heads of the group read it.",
                ),
                (
                    "The patterns of all four heads of its group.",
                    "Keys and values belong to the group. To change one head alone, edit its query, its pattern or its z.",
                    True,
                ),
                ("The patterns of all heads of the layer.", "Other groups have keys of their own."),
            ],
        ),
    ]
)

# %% [markdown]
# **Next.** Chapter 03 opens the other half of a block, the FFN, whose neurons are memories. The scores of section 4 come back in chapter 05
# among other magnitude scores, ablation in chapter 06, and whole circuits such as that of section 7 in chapter 10.
