# %% [markdown]
# # 01 Tokens and the residual stream
# A language model turns each word into a vector, adds to it layer by layer, and reads the next word off the sum. This chapter takes that
# sum apart: what goes in, who writes, what the last step does to it, and what a write does and does not tell you. Survey, sections 2.1
# and 2.2, Eq. 1 to 3.

# %% [markdown] label="objectives"
# ## What you will be able to do
# - turn token ids into the first state, and measure what an embedding knows about a word
# - write down a transformer block with its norms in the right places
# - split the last state into the writes of all components, without any error
# - split a logit in the same way, with the scale of the final norm frozen
# - say why a large write may not matter, and read the message of one component out of the sum
#
# **The claim.** The state of a token is the exact sum of what every component wrote to it (survey, section 2.2). A logit is such a sum
# only when the scale of the final norm is frozen, and what a write adds *directly* is not all that it causes.

# %% label="setup"
import copy
import random

import torch
import transformers

import mi_course as mi
from mi_course import evaluate, world
from mi_course.locate import causal
from mi_course.models import weights
from mi_course.objects import Scores
from mi_course.objects.decompose import decompose_residual, direct_logit_attribution
from mi_course.objects.weights import fold_norms, head, neuron_values
from mi_course.teach import Question, bars, check, curves, heatmap, quiz, show
from mi_course.world import compiled, lexicon

torch.set_grad_enabled(False)  # this chapter reads, it trains nothing
model = mi.load()
L, H, d = model.n_layers, model.n_heads, model.d_model
model

# %% [markdown]
# ## 1. Tokens become vectors
# The **tokenizer** cuts a text into **tokens** and gives each its number, the **id**. In `lab` a token is a word; in GPT-2 or Llama it is a
# word or a piece of one, often with the space before it. Every prompt starts with the token `<bos>` (beginning of sequence).
#
# Our running example is `retrieval`: a list of names, each with a word, then a question about one name.

# %% label="tokens" tags=["nbval-check-output"]
tasks = {split: world.task("retrieval", split=split, n=n) for split, n in (("train", 800), ("test", 200))}
test = tasks["test"]
prompt = test.prompts[0]
batch = model.tokenize([prompt])
print(" ".join(f"{token}:{i}" for token, i in zip(model.tokens(prompt), batch.ids[0].tolist())))
print("the model continues:", model.generate([prompt], max_new_tokens=2)[0], "   right:", test.targets[0])
E = weights.embedding(model)
print("W_E", tuple(E.W_E.shape), "  W_pos", tuple(E.W_pos.shape))
assert test.accuracy(model) > 0.9

# %% [markdown]
# The **embedding matrix** $W_E$ has one row of $d = 128$ numbers for each of the $V$ tokens of the vocabulary, and $W_{pos}$ one for each
# position in the prompt. The first state of token $i$ is the sum of two rows (survey, Eq. 1):
#
# $$x_i^0 = W_E[t_i] + p_i$$

# %% [markdown] exercise="residual.embed" difficulty=1 minutes=5
# ### Exercise: the first state
# Write `embed(W_E, W_pos, ids)`: `W_E` is `[V, d]`, `W_pos` is `[n_ctx, d]` and `ids` is `[B, T]` (B prompts of T tokens). Return $x^0$,
# `[B, T, d]`.

# %%
def embed(W_E, W_pos, ids):
    """x^0 = W_E[token] + W_pos[position]: [V, d], [n_ctx, d] and ids [B, T] -> [B, T, d]."""
    ### BEGIN SOLUTION
    return W_E[ids] + W_pos[: ids.shape[1]]
    ### END SOLUTION

# %%
embed = check("residual.embed", embed)

# %% [markdown]
# `mi.record` runs the model and keeps the **sites** that you name: `x0` is what block 0 reads, `x1` what block 1 reads, and so on. Other
# sites of this chapter: `L2H1` is what head 1 of layer 2 writes, `mlp2` what the FFN of layer 2 writes, and `@-1` behind a name takes the
# last token only.

# %% label="first-state" tags=["nbval-check-output"]
recorded = mi.record(model, [prompt], ["x0"])["x0"]
gap = (embed(E.W_E, E.W_pos, batch.ids) - recorded).abs().max().item()
missing = (E.W_E[batch.ids] - recorded).abs().max().item()
print(f"largest difference to the recorded x0: {gap:.6f}; without positions: {missing:.2f}")
assert gap < 1e-6

# %% [markdown]
# **What does an embedding know?** Which words have the most similar vectors? Similarity here is the **cosine**: the dot product of two
# vectors scaled to length 1, 1 for the same direction and 0 for a right angle.

# %% label="neighbours"
def nearest(word, k=4):
    """The k tokens whose embedding has the largest cosine with that of the word."""
    cosine = torch.cosine_similarity(E.W_E, E.W_E[model.token_id(word)][None])
    return [f"{model.tokenizer.decode([i])} {cosine[i]:.2f}" for i in cosine.topk(k + 1).indices[1:].tolist()]


for word in ("paris", "nurse", "tennis", "granite", "hot", "7"):
    print(f"{word:8}", "  ".join(nearest(word)))

# %% [markdown]
# Cities stand beside cities, jobs beside jobs: the model has learned it from how the words are used. (`heiss` and `chaud` are German and
# French for hot: the world has a translation task.) But a handful of neighbours proves
# little, since one can always tell a story about four words. The next exercise makes a number of it, and the cell after that gives the
# number a **null**: what it would be if there were nothing to find.

# %% [markdown] exercise="residual.category_margin" difficulty=2 minutes=8
# ### Exercise: do categories hang together?
# Write `category_margin(W, labels)`: `W` is `[n, d]`, one row per word, and `labels` is `[n]`, the category of each word as an integer.
# Return the mean cosine over pairs of *different* words of one category, minus the mean cosine over pairs from two categories.

# %%
def category_margin(W, labels):
    """Mean cosine of pairs within a category minus that of pairs across: [n, d], [n] -> one number."""
    ### BEGIN SOLUTION
    unit = W / W.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    same = labels[:, None] == labels
    off_diagonal = ~torch.eye(len(W), dtype=torch.bool)
    return cosine[same & off_diagonal].mean() - cosine[~same].mean()
    ### END SOLUTION

# %%
category_margin = check("residual.category_margin", category_margin)

# %% [markdown]
# The null here: shuffle the categories over the words. The words and the sizes of the categories stay as they are; only the meaning goes.
# The second half of the cell asks whether "near" means "same meaning": how near are *opposites*, such as hot and cold?

# %% label="category-null" tags=["nbval-check-output"]
categories = [lexicon.CITIES, lexicon.COUNTRIES, lexicon.PROFESSIONS, lexicon.SPORTS, lexicon.DRINKS]
categories += [lexicon.PETS, lexicon.MATERIALS, lexicon.FIRST[:20], lexicon.LAST[:20]]
words = [word for category in categories for word in category]
labels = torch.tensor([k for k, category in enumerate(categories) for _ in category])
W = E.W_E[[model.token_id(word) for word in words]]
margin = float(category_margin(W, labels))
generator = torch.Generator().manual_seed(0)
orders = [torch.randperm(len(W), generator=generator) for _ in range(100)]
shuffles = [float(category_margin(W, labels[order])) for order in orders]
band = evaluate.null_band(shuffles)
print(f"{len(words)} words, {len(categories)} categories: margin {margin:.2f}")
print(f"labels shuffled 100 times: {band.mean:.2f} with s.d. {band.sd:.3f}, largest {max(shuffles):.2f}")


def cosines(pairs):
    """Mean cosine of the embeddings of pairs of words."""
    ids = torch.tensor([[model.token_id(a), model.token_id(b)] for a, b in pairs])
    return torch.cosine_similarity(E.W_E[ids[:, 0]], E.W_E[ids[:, 1]]).mean().item()


opposites = [(a[0], b[0]) for a, b in lexicon.ANTONYMS]
adjectives = [word for pair in opposites for word in pair]
others = [(a, b) for a in adjectives for b in adjectives if a < b and not {(a, b), (b, a)} & set(opposites)]
print(f"opposites {cosines(opposites):.2f}, other pairs of adjectives {cosines(others):.2f}")
assert margin > max(shuffles) + 0.1 and cosines(opposites) > cosines(others)

# %% [markdown]
# Categories are real, many standard deviations outside the null. And opposites are *nearer* to each other than to other adjectives: an
# embedding puts together words that are **used alike**, which is not the same as meaning the same.
#
# **What do positions do?** Give every position the mean position vector, so that the embedding no longer tells the order of words. Which of
# the tasks of chapter 00 need it? (`copying` continues a sequence shown once; `ioi` asks which of two people gets something.) The bars show
# the change in accuracy.

# %% label="no-positions"
def change_without_positions(name):
    """Change of a task's accuracy when all positions get the same vector."""
    task = world.task(name, split="test", n=100)
    before = task.accuracy(model)
    with mi.intervene(model, mi.mean("pos", E.W_pos.mean(0))):
        return task.accuracy(model) - before


names = ("copying", "ioi", "translation", "retrieval", "facts")
change = {name: change_without_positions(name) for name in names}
show(
    bars(change, xlabel="change in accuracy", title="All positions get the same vector"),
    alt="Bars of the change in accuracy for five tasks. Copying loses most, then ioi and translation; "
    "retrieval and facts lose little.",
    reading="Tasks in which the order of words decides lose most.",
)
assert change["copying"] < change["facts"] - 0.2

# %% [markdown]
# Copying a sequence needs the order of its words; a fact can be recalled from a bag of words.
#
# **Models without position vectors.** `lab-llama` knows the same world, but has the architecture of Llama, where $p_i = 0$
# ([@touvron2023llama]). That does not mean that it ignores order: rotary embeddings (RoPE, [@su2021roformer]) turn queries and keys inside
# attention, so that a head sees the *distance* of two tokens (chapter 02). This makes a prediction. Count all positions from 20 instead of
# from 0: distances stay, so a model with RoPE should not notice.

# %% label="shift" tags=["nbval-check-output"]
llama = mi.load("lab-llama")
try:
    mi.record(llama, [prompt], ["pos"])
except ValueError as error:
    print(str(error).split(";")[0])


def same_after_shift(model, by=20):
    """Share of equal predictions with positions counted from `by`, and the largest change of a logit."""
    batch = model.tokenize(world.task("copying", split="test", n=40).prompts)
    inputs = dict(input_ids=batch.ids, attention_mask=batch.mask)
    here, there = (
        model.hf(**inputs, position_ids=batch.position_ids + shift).logits[:, -1] for shift in (0, by)
    )  # fmt: skip
    return (here.argmax(-1) == there.argmax(-1)).float().mean().item(), (here - there).abs().max().item()


for each in (model, llama):
    same, moved = same_after_shift(each)
    print(f"{each.name:10} same prediction after the shift: {same:.2f}; logits within 0.001: {moved < 1e-3}")
assert same == 1 and moved < 1e-3 and same_after_shift(model)[0] < 0.9

# %% [markdown]
# `lab-llama` does not notice. `lab` does. The test is harsh on it: `<bos>` moves as well, which `lab` has never seen
# anywhere but at position 0.
#
# ## 2. Reads and writes
# From $x^0$ on, nothing is ever replaced. Each layer **reads** the state, computes something, and **writes** it by adding. This running sum
# is the **residual stream**. A layer has two branches: attention, which brings information from earlier tokens, and a feed-forward network
# (FFN), which works on each token alone. This is the block of GPT-2, Llama and most others ("pre-norm", [@xiong2020layer]):
#
# ```
# x^l ───┬──────────────────────────(+)─── x^mid ───┬───────────────────(+)─── x^{l+1}
#        └── norm 1 ── attention ────┘              └── norm 2 ── FFN ───┘
# ```
#
# $$x^{l,mid} = x^l + \mathrm{Attn}^l(\mathrm{norm}_1\,x^l), \qquad x^{l+1} = x^{l,mid} + \mathrm{FFN}^l(\mathrm{norm}_2\,x^{l,mid})$$
#
# The norms bring what a branch reads to a standard size. They stand *before* the branches; the stream itself is never normed. The survey's
# Eq. 2 and 3 have no norms. We measure below what that would mean.

# %% [markdown] exercise="residual.block" difficulty=2 minutes=10
# ### Exercise: a block
# Write `block(x, norm1, attention, norm2, ffn)`. The last four are functions that take a tensor and return one of the same shape. Return the
# pair (state between the branches, state after the block).

# %%
def block(x, norm1, attention, norm2, ffn):
    """(x^mid, x^{l+1}) of a pre-norm block, both shaped like x."""
    ### BEGIN SOLUTION
    mid = x + attention(norm1(x))
    return mid, mid + ffn(norm2(mid))
    ### END SOLUTION

# %%
block = check("residual.block", block)

# %% [markdown]
# Now with the real parts of `lab`. Five ways to compute $x^{l+1}$ from the recorded $x^l$, and how far each is off, as a share of what the
# block really wrote (1 = as wrong as writing nothing):
#
# - *with norms*: your block
# - *as printed*: Eq. 2 and 3, no norms
# - *gains folded*: the same, but with the norms' gains and biases multiplied into the weights first. This is the kindest reading of the
#   equations, since any constant factor may hide in a weight matrix.
# - *FFN reads x*: the variant in the survey's text below Eq. 3, where both branches read $x^l$
# - *one scale*: the norms divide all tokens of a layer by one constant instead of by each token's own size

# %% label="norms-matter"
prompts = [text for text in test.prompts if len(text.split()) == len(prompt.split())]  # no padding
stream = mi.record(model, prompts, [f"x{l}" for l in range(L + 1)] + [f"mid{l}" for l in range(L)])
T = stream["x0"].shape[1]
mask = torch.full((T, T), -torch.inf).triu(1)[None, None]  # no token sees the ones after it
folded, no_norm = fold_norms(model), torch.nn.Identity()


def parts_of(model, l):
    """(norm 1, attention, norm 2, FFN) of layer l, as functions [B, T, d] -> [B, T, d]."""
    module = model.block(l)
    return module.ln_1, lambda read: module.attn(read, attention_mask=mask)[0], module.ln_2, module.mlp


def one_scale(norm, seen):
    """The norm, with the mean scale over all tokens `seen` in place of each token's own."""
    scale = norm.scale(seen).mean()
    return lambda x: norm.centre(x) * scale * norm.gain + norm.bias


errors = {name: [] for name in ("with norms", "as printed", "gains folded", "FFN reads x", "one scale")}
for l in range(L):
    x, mid, right = stream[f"x{l}"], stream[f"mid{l}"], stream[f"x{l + 1}"]
    norm1, attention, norm2, ffn = parts_of(model, l)
    _, attention_folded, _, ffn_folded = parts_of(folded, l)
    constant1 = one_scale(weights.attn_norm(model, l), x)
    constant2 = one_scale(weights.mlp_norm(model, l), mid)
    computed = {
        "with norms": block(x, norm1, attention, norm2, ffn)[1],
        "as printed": block(x, no_norm, attention, no_norm, ffn)[1],
        "gains folded": block(x, no_norm, attention_folded, no_norm, ffn_folded)[1],
        "FFN reads x": x + attention(norm1(x)) + ffn(norm2(x)),
        "one scale": block(x, constant1, attention, constant2, ffn)[1],
    }
    for name, state in computed.items():
        errors[name].append(((state - right).norm(dim=-1) / (right - x).norm(dim=-1)).mean().item())
show(
    heatmap(
        torch.tensor(list(errors.values())).T, columns=list(errors), ylabel="layer",
        unit="error / size of the write", title="How far is the next state off?",
    ),
    alt="Heat map of 6 layers by 5 ways to compute a block. With norms the error is 0 in all layers; as "
    "printed and with gains folded it is far above 1 in all layers but the first; with the FFN reading x it "
    "is largest in layer 0; one scale is the smallest of the wrong ones.",
    reading="Only the first column is right. One constant scale per layer is much less wrong than no norm.",
)
assert max(errors["with norms"]) < 1e-4
assert min(errors["as printed"]) > 0.3 and min(errors["gains folded"]) > 0.3
assert max(errors["one scale"]) < min(max(errors["as printed"]), max(errors["gains folded"]))

# %% [markdown]
# The last column is worth a second look: one constant in place of each token's own scale is far less wrong than no norm, but not right.
# Section 4 holds the scale fixed, too, but for each token at the value that it really had; that is exact.
#
# And the whole model without norms (gains folded, final norm kept)? The cell counts how often it predicts the same next word as `lab`. The
# control says how often two predictions agree that have nothing to do with each other: those at randomly paired tokens.

# %% label="bare-model" tags=["nbval-check-output"]
bare = copy.deepcopy(folded.hf)
for module in bare.transformer.h:
    module.ln_1 = module.ln_2 = no_norm
documents = [text for texts in world.documents("test", n=2).values() for text in texts]
batch = model.tokenize(documents)
real = batch.mask.bool() & (batch.ids != model.tokenizer.bos_token_id)
predicted = model(batch)[real].argmax(-1)
inputs = dict(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids)
without = bare(**inputs).logits[real].argmax(-1)
shuffled = predicted[torch.randperm(len(predicted), generator=torch.Generator().manual_seed(0))]
agree, control = ((other == predicted).float().mean().item() for other in (without, shuffled))
print(f"same next word without norms: {agree:.2f}; at randomly paired tokens: {control:.2f}")
assert agree < control + 0.05

# %% [markdown]
# Without norms nothing is left of the model. The sentence below Eq. 3, in which both branches read $x^l$, is not wrong for every model: it
# describes **parallel blocks**, as in GPT-J and Pythia ([@black2022gptneox]). Here is a tiny Pythia with random weights, and `lab` beside
# it. Which state does the FFN read?

# %% label="parallel" tags=["nbval-check-output"]
torch.manual_seed(0)
config = transformers.GPTNeoXConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=64, initializer_range=0.3,
)  # fmt: skip
pythia = mi.wrap(transformers.GPTNeoXForCausalLM(config), name="tiny Pythia")
for each, text in ((model, prompts), (pythia, torch.randint(0, 50, (4, 10)))):
    cache = mi.record(each, text, ["x1", "attn1", "mlp1"])
    ffn, norm = weights.ffn(each, 1), weights.mlp_norm(each, 1)
    for name, state in (("x^l", cache["x1"]), ("x^l + attention", cache["x1"] + cache["attn1"])):
        out = ffn.act(norm(state) @ ffn.W_in + ffn.b_in) @ ffn.W_out + ffn.b_out
        fits = ((out - cache["mlp1"]).norm() / cache["mlp1"].norm()).item() < 1e-4
        print(f"{each.name:12} FFN reads {name:16} {'yes' if fits else 'no'}")
        assert fits == ((each is pythia) == (name == "x^l"))

# %% [markdown]
# ## 3. The last state is a sum of writes
# Unroll the additions, and $x^L$ is the embedding plus everything that was written. Attention itself is a sum over its heads (chapter 02
# shows why), plus a bias $b_O$ that belongs to no head. So the **writes** are: token embedding, position embedding, $L \times H$ heads, $L$
# biases and $L$ FFNs.
#
# $$x^L = W_E[t] + p + \sum_{l} \Big( \sum_h \mathrm{head}^{l,h} + b_O^l + \mathrm{FFN}^l \Big)$$
#
# Indices are a steady source of bugs: in this course $x^l$ is the **input** of block $l$, so it holds the writes of the blocks *before* $l$.

# %% [markdown] exercise="residual.states" difficulty=2 minutes=12
# ### Exercise: from writes to states
# Write `states(embedding, heads, b_O, ffn)` for one prompt: `embedding` `[T, d]` is $x^0$, `heads` `[L, H, T, d]`, `b_O` `[L, d]`, `ffn`
# `[L, T, d]`. Return all states $x^0 \dots x^L$ as one tensor `[L+1, T, d]`.

# %%
def states(embedding, heads, b_O, ffn):
    """x^0 ... x^L from the writes: [T, d], [L, H, T, d], [L, d] and [L, T, d] -> [L+1, T, d]."""
    ### BEGIN SOLUTION
    x = [embedding]
    for layer in range(len(ffn)):
        x.append(x[-1] + heads[layer].sum(0) + b_O[layer] + ffn[layer])
    return torch.stack(x)
    ### END SOLUTION

# %%
states = check("residual.states", states)

# %% [markdown]
# `decompose_residual` gives all writes of a run. Put together by your function they must give the states that the model really had. Two
# controls show that the test can fail: leave out the biases, or be off by one layer.

# %% label="sum" tags=["nbval-check-output"]
parts = decompose_residual(model, [prompt])
heads = torch.stack([torch.stack([parts[f"L{l}H{h}"][0] for h in range(H)]) for l in range(L)])
ffns = torch.stack([parts[f"mlp{l}"][0] for l in range(L)])
b_O = torch.stack([weights.attention(model, l).b_O for l in range(L)])
start = parts["embed"][0] + parts["pos"][0]
cache = mi.record(model, [prompt], [f"x{l}" for l in range(L + 1)])
recorded = torch.stack([cache[f"x{l}"][0] for l in range(L + 1)])
right = states(start, heads, b_O, ffns)
gaps = {
    "all writes": (right - recorded).abs().max().item(),
    "without b_O": (states(start, heads, 0 * b_O, ffns) - recorded).abs().max().item(),
    "off by one layer": (right[1:] - recorded[:-1]).abs().max().item(),
}
print(len(parts.names), "writes, such as", ", ".join(parts.names[:7]), "...")
for name, gap in gaps.items():
    print(f"{name:18} largest error {gap:.2f}")
assert gaps["all writes"] < 1e-4 < 0.01 < min(gaps["without b_O"], gaps["off by one layer"])

# %% [markdown]
# **How large is the stream?** The next plot shows the length of the state, layer by layer, averaged over all words of some documents, and for
# `<bos>` alone. The third line is what the length would be if all writes stood at right angles to each other (the root of the summed
# squares): above it, writes reinforce each other; below it, they cancel.

# %% label="growth"
def running_lengths(model):
    """Mean length of x^0 ... x^L: at words, at <bos>, and at words if all writes were at right angles."""
    parts = decompose_residual(model, documents)
    batch = model.tokenize(documents)
    bos = batch.ids == model.tokenizer.bos_token_id
    words = batch.mask.bool() & ~bos
    first, per_layer = len(parts.names) - L * (H + 2), H + 2
    rows = []
    for l in range(L + 1):
        writes = parts.writes[: first + l * per_layer]
        x, squares = writes.sum(0).norm(dim=-1), writes.pow(2).sum(-1).sum(0)
        rows.append([x[words].mean(), x[bos].mean(), squares[words].sqrt().mean()])
    share = (parts["embed"].norm(dim=-1) / parts.total.norm(dim=-1))[words].mean().item()
    return torch.tensor(rows).T.tolist(), share


(of_words, of_bos, at_right_angles), share = running_lengths(model)
show(
    curves(
        list(range(L + 1)),
        {"words": of_words, "<bos>": of_bos, "words, if writes were orthogonal": at_right_angles},
        xlabel="layer l", ylabel="length of x^l", title="The stream grows",
    ),
    alt="Three lines over the layers 0 to 6. The length of the state starts near 2, jumps at layer 1 and "
    "grows to the end; <bos> grows most in the last layers; the orthogonal line runs close to the words.",
    reading="Layer 0 writes something many times longer than the embedding; later layers keep adding.",
)
print(f"length of x0 {of_words[0]:.1f}, of x1 {of_words[1]:.1f}, of x{L} {of_words[-1]:.1f}")
print(f"the embedding is {100 * share:.0f} % as long as the last state")
assert of_words == sorted(of_words) and of_words[-1] > 5 * of_words[0]

# %% [markdown]
# The third line runs close to the first: together the writes are about as long as if they were at right angles. Lengths grow with depth,
# as they do in real models, there about exponentially ([@heimersheim2023residual]). Since every reader divides by
# the size of the state, a write of fixed length counts for less and less as others are added. Two lessons: comparing the size of writes
# *across* layers says little, and `<bos>`, which is the same in every prompt and behaves like no other token, should be kept out of averages.
#
# ## 4. What the final norm does
# The prediction is read from $x^L$ in two steps: the **final norm**, and the **unembedding** $W_U$, `[d, V]`, which gives one **logit** per
# word (survey, section 3.5). `lab` and `lab-llama` are **tied**: $W_U$ is $W_E$ transposed, the same numbers ([@press2017using]). GPT-2's
# norm is a LayerNorm:
#
# $$\mathrm{norm}(x) = \frac{x - \bar x}{\sqrt{\mathrm{var}(x) + \epsilon}} \odot \gamma + \beta, \qquad \mathrm{logits} = \mathrm{norm}(x^L)\,W_U$$
#
# Mean and variance are taken over the $d$ numbers of one token; the gain $\gamma$ and the bias $\beta$ are weights, and $\epsilon$ avoids a
# division by 0. Llama's RMSNorm has neither $\bar x$ nor $\beta$.

# %% [markdown] exercise="residual.layer_norm" difficulty=2 minutes=8
# ### Exercise: LayerNorm
# Write `layer_norm(x, gain, bias, eps)` without torch's own: `x` is `[..., d]`, `gain` and `bias` are `[d]`. The variance divides by $d$.

# %%
def layer_norm(x, gain, bias, eps=1e-5):
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis: [..., d] -> [..., d]."""
    ### BEGIN SOLUTION
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * gain + bias
    ### END SOLUTION

# %%
layer_norm = check("residual.layer_norm", layer_norm)

# %% [markdown]
# The logit lens (survey, Eq. 16; chapter 09) reads a state of *any* layer as if it were the last. The survey prints it without the final
# norm. How often does leaving it out change the winner? For each layer, the cell reads the most likely next word after no norm, after
# centring, after dividing as well, after the gain as well, and counts how often it differs from that of the full norm. The last column
# counts how often the winner is the very word that the state belongs to.

# %% label="ranking" tags=["nbval-check-output"]
final = weights.unembedding(model)
norm, W_U = final.norm, final.W_U
batch = model.tokenize(documents)
cache = mi.record(model, batch, [f"x{l}" for l in range(L + 1)])
logits = cache.logits[real]
full = layer_norm(cache[f"x{L}"][real], norm.gain, norm.bias, norm.eps) @ W_U
print(f"norm and unembedding give the model's logits: {(full - logits).abs().max() < 1e-3}; tied: {E.tied}")


def top_words(x):
    """The most likely word of states [n, d], after more and more of the final norm: list of five [n]."""
    centred = norm.centre(x)
    scaled = centred * norm.scale(x)
    gained = scaled * norm.gain
    return [(y @ W_U).argmax(-1) for y in (x, centred, scaled, gained, gained + norm.bias)]


print("share of tokens with another winner than with the full norm")
print("      no norm   centred   + scale   + gain   own word wins")
changed = []
for l in range(L + 1):
    *versions, whole = top_words(cache[f"x{l}"][real])
    changed.append([(version != whole).float().mean().item() for version in versions])
    itself = (whole == batch.ids[real]).float().mean().item()
    print(f"x{l}   " + "".join(f"{share:10.2f}" for share in changed[-1]) + f"{itself:12.2f}")
assert E.tied and (full - logits).abs().max() < 1e-3
assert all(row[1] == row[2] for row in changed), "dividing a state by one number cannot change its ranking"
assert changed[-1][3] > 0.01 and abs(changed[-1][0] - changed[-1][1]) < 0.01

# %% [markdown]
# Read the last row: without the norm, Eq. 16 disagrees with the model at the model's *own last layer*. The columns say which part is to
# blame. Dividing by the scale changes no ranking, as it must; centring hardly matters here; what is left
# after the gain is due to the bias, which the usual account ("centring and gain change the ranking") forgets. Which part matters
# differs from model to model, so keep all of them.
#
# The last column is a trace of tied embeddings: at $x^0$ the lens reads the word that is already there. The layers have to overwrite it.
#
# **Splitting a logit.** Which write made the model say this word? Centring, gain and unembedding are linear, so they can be done to each
# write by itself. The division is not: its divisor depends on the whole state. So take the divisor $s$ of the actual run and hold it fixed,
# **frozen**, for all writes:
#
# $$\mathrm{logit}(t) = \sum_{w \in \mathrm{writes}} \frac{(w - \bar w) \odot \gamma}{s} \cdot W_U[:, t] \; + \; \beta \cdot W_U[:, t]$$
#
# Each term is the **direct logit attribution** of a write. For the difference of two logits, put the difference of two columns of $W_U$ in
# the place of $W_U[:, t]$.

# %% [markdown] exercise="residual.attribution" difficulty=4 minutes=15
# ### Exercise: who made this logit?
# Write `attribution(writes, gain, bias, direction, eps)`. `writes` is `[n, B, d]`: n writes at one position of B prompts, whose sum over n is
# the state x. `gain` and `bias` are `[d]`, `direction` is `[B, d]`, one for each prompt. Return `[n + 1, B]`: what each write adds to
# layer_norm(x) · direction, and in the last row what the norm's bias adds. The sum over the first axis must be exact.

# %%
def attribution(writes, gain, bias, direction, eps=1e-5):
    """What each write, and last the norm's bias, adds to layer_norm(their sum) . direction: [n + 1, B]."""
    ### BEGIN SOLUTION
    x = writes.sum(0)
    scale = (x.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()  # of the whole state, one for all writes
    centred = writes - writes.mean(-1, keepdim=True)
    values = (centred * scale * gain * direction).sum(-1)
    return torch.cat([values, (bias * direction).sum(-1)[None]])
    ### END SOLUTION

# %%
attribution = check("residual.attribution", attribution)

# %% [markdown]
# Applied to the difference between the logit of the right word (**target**) and that of another word of the list (**foil**), for 200
# prompts. Beside the exact sum, three ways to get it wrong.

# %% label="logit-sum" tags=["nbval-check-output"]
def last_writes(model, prompts):
    """(names, writes [n, B, d]) at the last token of each prompt."""
    parts = decompose_residual(model, prompts)
    return parts.names, parts.writes[:, torch.arange(len(prompts)), model.tokenize(prompts).last]


names, writes = last_writes(model, test.prompts)
names = [*names, "norm bias"]
direction = W_U.T[test.target_ids(model)] - W_U.T[test.foil_ids(model)]
values = attribution(writes, norm.gain, norm.bias, direction, norm.eps)
truth = test.measure(model)  # the logit difference, from the model's own logits
bias_row = values[-1:]
own_scale = (layer_norm(writes, norm.gain, 0 * norm.bias, norm.eps) * direction).sum(-1)
scale = norm.scale(writes.sum(0))[:, 0]
sums = {
    "frozen scale": values.sum(0),
    "every write its own scale": torch.cat([own_scale, bias_row]).sum(0),
    "the scale of another prompt": (values[:-1] / scale * scale.roll(1)).sum(0) + bias_row[0],
    "norm bias left out": values[:-1].sum(0),
}
print(f"mean logit difference of the model: {truth.mean():.2f}")
for name, total in sums.items():
    print(f"{name:28} mean of the sums {total.mean():6.2f}, largest error {(total - truth).abs().max():.2f}")
library = direct_logit_attribution(model, test.prompts, test.targets, test.foils)
assert (sums["frozen scale"] - truth).abs().max() < 1e-3 and torch.allclose(library.values, values, atol=1e-4)
assert all((total - truth).abs().max() > 0.05 for name, total in sums.items() if name != "frozen scale")

# %% [markdown]
# "Frozen" is a choice, not a law. A write that is really removed also changes the scale, and so the share of all others.
#
# ## 5. Which writes matter?
# The ten largest direct contributions, averaged over the prompts. The null asks what such a number is worth: for the same writes, replace
# target and foil by two *random* answer words, 20 times. Its band is the mean ± 2 standard deviations (s.d.) of the draws.

# %% label="which-writes"
mean = values.mean(1)
top = mean.abs().topk(10).indices.tolist()
generator, pool = torch.Generator().manual_seed(0), test.target_ids(model).unique()
null = []
for _ in range(20):
    a, b = (pool[torch.randint(len(pool), (len(test),), generator=generator)] for _ in range(2))
    null.append(attribution(writes, norm.gain, norm.bias, W_U.T[a] - W_U.T[b], norm.eps).mean(1)[top])
show(
    bars(
        mean[top], [names[i] for i in top], null=torch.stack(null).flatten(), xlabel="logits",
        title="Direct contribution to logit(target) - logit(foil)",
    ),
    alt="Ten bars of direct logit attribution. FFNs of the later layers and one or two attention heads stand "
    "out, far outside the null band around zero.",
    reading="Grey: the same writes, random pairs of words. Starred bars lie outside the band.",
)
best = next(i for i in top if names[i].startswith("L"))
print(f"largest head: {names[best]} with {mean[best]:+.2f} of {truth.mean():.2f} logits in all")
assert mean[top[0]] > 10 * torch.stack(null).std()

# %% [markdown]
# Tempting to stop here. But a contribution is what a write adds *along the straight path to the output*. Two questions remain. Does what is
# written survive? And who else reads it?
#
# **A large write that does not matter.** For once we know the mechanism: in the compiled model `cancelling` all weights are set by hand.
# `L0H1` names the name. `L0H0` writes a large vector u that means nothing, and `L1H0` reads u and takes it out again. The table compares
# the length of a write, its direct attribution, and what really happens when the head is switched off (F is the logit difference).

# %% label="cancelling" tags=["nbval-check-output"]
toy = compiled.cancelling()
small = toy.wrap()
sites = ["L0H0", "L0H1", "L1H0"]
cache = mi.record(small, toy.task.prompts, [f"{site}@-1" for site in sites])
direct = direct_logit_attribution(small, toy.task.prompts, toy.task.targets, toy.task.foils)
total = causal.ablate_each(small, toy.task, [f"{site}.z" for site in sites])
print("head   length of write   direct   F(without) - F")
for site in sites:
    size = cache[f"{site}@-1"].norm(dim=-1).mean()
    print(f"{site} {size:15.1f} {direct[site].mean():10.1f} {total[f'{site}.z']:12.1f}")
known = {name.removeprefix("zero "): effect for name, effect in toy.expected.items()}  # the answer key
assert all(abs(total[f"{site}.z"] - known[site]) < 1e-3 for site in sites)

u = cache["L0H0@-1"]
xs = [f"x{l}@-1" for l in range(3)]
with mi.intervene(small, mi.zero("L0H0.z")):
    absent = mi.record(small, toy.task.prompts, xs)
present = mi.record(small, toy.task.prompts, xs)
kept = [(((present[x] - absent[x]) * u).sum(-1) / (u * u).sum(-1)).mean().item() for x in xs]
print("how much of L0H0's write is in x0, x1, x2:", ", ".join(f"{abs(share):.1f}" for share in kept))
assert all(abs(share - true) < 1e-4 for share, true in zip(kept, (0, 1, 0)))

# %% [markdown]
# `L0H0` writes eight times as much as the head that does the work, its direct attribution is +2, and switching it off changes *nothing*: its
# eraser then has nothing to erase. The eraser `L1H0` looks harmful in both columns, and yet it only undoes what `L0H0` did. Length shows
# presence; direct attribution shows one path; only switching off shows the effect.
#
# **In `lab`.** The same comparison for all heads and FFNs on 60 of the `retrieval` prompts, sorted by how much of the logit difference is
# lost when the component is set to zero.

# %% label="direct-total" tags=["nbval-check-output"]
some = test.subset(60)
sites = [*causal.heads(model), *causal.ffns(model)]
lost = -torch.tensor(causal.ablate_each(model, some, sites).values, dtype=torch.float32)
index = [names.index(site.removesuffix(".z")) for site in sites]
direct, size = values[index, : len(some)].mean(1), writes[index, : len(some)].norm(dim=-1).mean(1)
correlation = torch.corrcoef(torch.stack([direct, lost]))[0, 1].item()
print("component   lost when zero   direct   length")
for i in lost.abs().argsort(descending=True)[:7].tolist():
    print(f"{sites[i].removesuffix('.z'):9} {lost[i]:14.1f} {direct[i]:10.2f} {size[i]:8.1f}")
print(f"correlation of direct and lost over {len(sites)} components: {correlation:.2f}")
hidden, next_hidden = (lost - 10 * direct.abs()).topk(2).indices.tolist()
indirect = [sites[i].removesuffix(".z") for i in (hidden, next_hidden)]
print("needed, with hardly anything direct:", ", ".join(indirect))
last = sites.index(f"mlp{L - 1}")
print(f"{sites[last]}, which only the final norm reads: direct {direct[last]:.2f}, lost {lost[last]:.2f}")
assert lost[hidden] > 1 and direct[hidden].abs() < 0.1 * lost[hidden] and correlation < 0.9
assert abs(direct[last] - lost[last]) > 0.1

# %% [markdown]
# Components with a small direct share and a large effect work through others: their message is read by a later layer, not by the
# unembedding. Chapters 06 and 10 measure such paths. The last line is another lesson. Nothing but the final norm reads the last FFN, so
# direct and lost differ for one reason only: without its long write the whole state is shorter, and the norm blows up all the others.
#
# ## 6. A shared memory
# So the stream is a **memory** that all components share: 128 numbers, into which dozens of writers add (survey, section 2.2;
# [@elhage2021mathematical]). Can one still tell what a *particular* component wrote, after all the others have added theirs?
#
# Take the head with the largest direct attribution. On training prompts, average what it writes for each answer word: its **codes**. Then
# look only at the *sum*, the state of a test prompt, and ask which code is nearest.

# %% [markdown] exercise="residual.read_message" difficulty=2 minutes=8
# ### Exercise: read one component's message
# Write `read_message(states, mean_state, codes)`: `states` `[B, d]`, `mean_state` `[d]`, `codes` `[K, d]`. Take `mean_state` away from each
# state, and the mean code from each code. Return the index of the nearest code for each state, `[B]` integers.

# %%
def read_message(states, mean_state, codes):
    """Index of the nearest code after centring: [B, d], [d] and [K, d] -> integers [B]."""
    ### BEGIN SOLUTION
    return torch.cdist(states - mean_state, codes - codes.mean(0)).argmin(-1)
    ### END SOLUTION

# %%
read_message = check("residual.read_message", read_message)

# %% [markdown]
# The plot shows how often the message is read correctly, by layer, on test prompts. Controls: the codes of another head of the same layer;
# and, as null band, random codes of the same length. Chance is one in the number of words. The last line takes the head's own write out of
# the sum again: what can be read then has been written by *others*.

# %% label="mailbox"
train = tasks["train"]
answers = sorted(set(train.targets))
told = {split: torch.tensor([answers.index(word) for word in tasks[split].targets]) for split in tasks}
names_train, writes_train = last_writes(model, train.prompts[:200])
direction = W_U.T[train.target_ids(model)[:200]] - W_U.T[train.foil_ids(model)[:200]]
by_head = attribution(writes_train, norm.gain, norm.bias, direction, norm.eps).mean(1)
writer = max((i for i, name in enumerate(names_train) if name[0] == "L"), key=lambda i: by_head[i])
writer = names_train[writer]
layer, number = int(writer[1]), int(writer[3])
other = f"L{layer}H{(number + 1) % H}"
xs = [f"x{l}@-1" for l in range(L + 1)]
seen = mi.record(model, train.prompts, [*xs, f"{writer}@-1", f"{other}@-1"])
new = mi.record(model, test.prompts, [*xs, f"{writer}@-1"])


def readable(codes, without=None):
    """Share of test prompts whose answer is read correctly from x^0 ... x^L with these codes [K, d].

    `without` names a head whose own write is taken out of the states that hold it.
    """
    shares = []
    for l, x in enumerate(xs):
        old, state = seen[x], new[x]
        if without and l > layer:
            old, state = old - seen[f"{without}@-1"], state - new[f"{without}@-1"]
        shares.append((read_message(state, old.mean(0), codes) == told["test"]).float().mean().item())
    return shares


def codes_of(site):
    return torch.stack([seen[f"{site}@-1"][told["train"] == k].mean(0) for k in range(len(answers))])


own, control = readable(codes_of(writer)), readable(codes_of(other))
echo = readable(codes_of(writer), without=writer)
length = (codes_of(writer) - codes_of(writer).mean(0)).norm(dim=1, keepdim=True)
generator = torch.Generator().manual_seed(0)
unit = torch.nn.functional.normalize(torch.randn(20, len(answers), d, generator=generator), dim=-1)
null = [readable(draw) for draw in unit * length]
show(
    curves(
        list(range(L + 1)),
        {f"codes of {writer}": own, f"codes of {other}": control, f"{writer} taken out": echo}, null=null,
        xlabel="read from x^l", ylabel="share read correctly", title=f"Reading the message of {writer}",
    ),
    alt="Share of messages read correctly from each layer. With the codes of the chosen head it is at chance "
    "up to the layer of the head, then jumps to nearly 1 and stays there; with another head's codes and with "
    "random codes it stays at chance. With the head's own write taken out it is low right after the head and "
    "rises in later layers.",
    reading="Nothing can be read before the head has written, nearly everything after it. "
    "Later layers repeat the message.",
)
print(f"{writer}: {own[layer]:.2f} before it writes, {own[layer + 1]:.2f} after, {own[L]:.2f} at the end")
print(f"its own write taken out: {echo[layer + 1]:.2f} right after it, at most {max(echo):.2f} later")
print(f"chance {1 / len(answers):.2f}; at most {max(max(draw) for draw in null):.2f} with random codes")
assert echo[layer + 1] < 0.5 < max(echo)
assert own[layer] < 0.3 and min(own[layer + 1 :]) > 0.8 and max(max(draw) for draw in null) < 0.2

# %% [markdown]
# The message appears in the layer where the head writes, and can be read until the end, although every later layer adds to the same 128
# numbers. Right after the head this is mostly the head's own write. Further up it is not only that: take the write out, and much of the
# message is still there, so later components have written something like it. A code tells *what* has been written, and only
# with such a control *who* wrote it.
#
# That one *can* read a message does not mean that the model does. What later parts read of it can be computed, too.
#
# **Virtual weights.** A neuron of an FFN reads the stream with its **key**, a vector (chapter 03): its input is key · norm(x). Since x is a
# sum, this input splits over the writers exactly like a logit: same formula, another norm, the key in place of the unembedding. So what a
# reader takes from a writer is a product of matrices that are nowhere stored as one, a *virtual weight* ([@elhage2021mathematical]).
#
# First on known ground: in the compiled model `lookup` six neurons of layer 0 write one fact each, two decoys write noise, and head `L1H0`
# carries facts, not noise, to the output. The cell multiplies three matrices, without running a prompt: neuron values, the head's
# $W_{OV} = W_V W_O$ and the unembedding. (Both norms have a fixed scale in this model; `gain * scale` is 1.)

# %% label="virtual" tags=["nbval-check-output"]
toy = compiled.lookup()
small = toy.wrap()
read, out = weights.attn_norm(small, 1), weights.unembedding(small)
x = torch.randn(1, small.d_model)  # any state gives the same scale here
table = neuron_values(small, 0) * read.gain * read.scale(x) @ head(small, 1, 0).W_OV
table = table * out.norm.gain * out.norm.scale(x) @ out.W_U
subjects = [label["subject"] for label in toy.task.labels]
facts = dict(zip(subjects, toy.task.targets))  # in the order of the neurons
for j, row in enumerate(table):
    found = small.tokenizer.decode([row.argmax().item()]) if row.max() > 1e-3 else "nothing"
    planted = list(facts.values())[j] if j < len(facts) else "nothing"
    print(f"L0N{j} -> L1H0 -> {found:8} weight {row.max():4.1f}   planted: {planted}")
    assert found == planted

# %% [markdown]
# Every fact is read off the weights. In `lab`: which neuron listens most to the head whose message we read? For all neurons at or after its
# layer, the cell takes the part of the neuron's input that comes from the head, and its spread over prompts (a message must differ between
# prompts). The null: random keys. All keys are scaled to length 1 here, so that none wins by being long. Then the cell splits the real
# input of the keenest listener over all writers.

# %% label="listener" tags=["nbval-check-output"]
first = len(names) - 1 - L * (H + 2)
spread = {}
for l in range(layer, L):
    read, keys = weights.mlp_norm(model, l), weights.ffn(model, l).W_in
    before = writes[: first + l * (H + 2) + H + 1]  # what x^mid of layer l is made of
    message = writes[names.index(writer)]
    seen_by_ffn = (message - message.mean(-1, keepdim=True)) * read.scale(before.sum(0)) * read.gain
    unit, random_unit = (k / k.norm(dim=0) for k in (keys, torch.randn(d, 2000, generator=generator)))
    spread[l] = (seen_by_ffn @ unit).std(0), (seen_by_ffn @ random_unit).std(0)
l = max(spread, key=lambda l: spread[l][0].max())
j = spread[l][0].argmax().item()
listeners = sum((own > null.max()).sum().item() for own, null in spread.values())
count = len(spread) * model.d_ffn
print(f"{listeners} of {count} neurons listen more than the keenest of 2000 random keys in their layer")
own, null = spread[l]
print(f"keenest: L{l}N{j}, spread {own[j]:.2f}; random keys {null.mean():.2f}, at most {null.max():.2f}")
read, ffn = weights.mlp_norm(model, l), weights.ffn(model, l)
before = writes[: first + l * (H + 2) + H + 1]
heard = attribution(before, read.gain, read.bias, ffn.W_in[:, j].expand(len(test), d), read.eps)
activation = mi.record(model, test.prompts, [f"L{l}N{j}@-1"])[f"L{l}N{j}@-1"]
gap = (ffn.act(heard.sum(0) + ffn.b_in[j]) - activation).abs().max().item()
loudest = heard[:-1].std(1).topk(4).indices.tolist()
print("its input splits over the writers, error below 0.001:", gap < 1e-3)
print("whose part varies most:", ", ".join(f"{names[i]} {heard[i].std():.2f}" for i in loudest))
assert gap < 1e-3 and listeners > 0 and own[j] > null.max() and names[loudest[0]] == writer

# %% [markdown]
# A few neurons listen to the head more than any of the random keys; most do not. And what varies in the input of the keenest is mostly
# what this one head says.
#
# ## 7. Scoreboard
# Three ways to rank heads, scored on compiled models, where the heads that carry the behaviour are known: the length of the write, the size
# of the direct attribution, and zero ablation (chapter 06). AUROC is the chance that a true head ranks above one that is not: 1 is perfect, 0.5
# is guessing. We take every compiled model in which some head *outside* the answer writes something; in the others a method need only notice
# who writes at all.

# %% label="scoreboard" tags=["nbval-check-output"]
def rankings(toy):
    """Scores of the three methods over all heads of a compiled model."""
    small, task = toy.wrap(), toy.task
    sites = [f"L{l}H{h}" for l in range(small.n_layers) for h in range(small.n_heads)]
    parts, writes = last_writes(small, task.prompts)
    direct = direct_logit_attribution(small, task.prompts, task.targets, task.foils)
    ablated = causal.ablate_each(small, task, [f"{site}.z" for site in sites]).values
    columns = {
        "length": [writes[parts.index(site)].norm(dim=-1).mean() for site in sites],
        "direct": [direct[site].abs().mean() for site in sites],
        "ablation": abs(ablated),
    }
    return [Scores(sites, torch.tensor(x), method=name, sign="magnitude") for name, x in columns.items()]


def auroc_of_chance(sites, answer):
    ranking = Scores(sites, [rng.random() for _ in sites], method="chance", sign="magnitude")
    return ranking.against(answer)["auroc"]


board, chance, rng = {}, [], random.Random(0)
for name, make in compiled.ALL.items():
    toy = make()
    answer = [site for site in toy.answer if "H" in site]
    if not answer:
        continue
    ranked = rankings(toy)
    sites = ranked[0].sites
    if any(ranked[0][site] > 0.01 for site in sites if site not in answer):
        board[name] = [scores.against(answer)["auroc"] for scores in ranked]
        chance.append([auroc_of_chance(sites, answer) for _ in range(200)])
print("model             length   direct   ablation")
for name, row in board.items():
    print(f"{name:15}" + "".join(f"{value:9.2f}" for value in row))
average = torch.tensor(list(board.values())).mean(0)
band = evaluate.null_band(torch.tensor(chance).mean(0))
print(f"{'average':15}" + "".join(f"{value:9.2f}" for value in average))
print(f"average of random rankings: {band.low:.2f} to {band.high:.2f}")
assert average[0] < average[1] < average[2] and board["cancelling"][1] == 1 and board["induction"][1] < 1
assert board["constant_bias"][1] == 0.5 and average[2] > band.high > average[0]

# %% [markdown]
# With four small models the null band is wide, and only ablation lies clearly outside. Look at the rows instead, where the reasons are
# exact. Length fails where others write as much as those who matter, or more. Direct attribution fails on `induction` and `constant_bias`,
# where a needed head is read by another component and adds nothing to a logit itself. Ablation sees that, but on `constant_bias` it also
# blames the head that writes the same on every prompt. Chapter 11 returns to the comparison.
#
# ## 8. What the survey says, and where it is loose
# - **Eq. 2 and 3 have no norms**. Section 2 above: off by more than the write itself in most layers, and the whole model without
#   norms agrees with `lab` no more than chance.
# - **Below Eq. 3** both branches are fed with $x^l$. That contradicts Eq. 3 and describes parallel blocks: the cell `parallel` shows which
#   model does what. Gemma 2 puts further norms *after* the branches; there a write is what comes out of that norm.
# - **The prediction as a sum of component outputs** (section 2.2): exact for $x^L$. For a logit it is exact only with the frozen
#   scale, and says what is added directly, not what is caused (sections 4 and 5).
# - **Eq. 1**: with RoPE $p_i = 0$, but position is still known. Some models multiply $W_E$ by $\sqrt d$; tied models use $W_E$ twice.
#   The biases $b_O$ appear nowhere, and the sum is wrong without them.
# - **Eq. 16 has no final norm**. It disagrees with the model at the last layer; in `lab` through gain and bias, not centring.
#
# ## 9. Papers that use this
# - the stream as memory, virtual weights: [@elhage2021mathematical]
# - reading any layer with the unembedding: [@nostalgebraist2020logit]; following a translation through the layers: [@wendler2024llamas]
# - direct logit attribution of heads, the first step to a circuit: [@wang2022interpretability]
# - the difference of two layers' logits as a signal of factuality: [@chuang2024dola]
# - writes that hardly turn the stream, so that whole layers can go: [@men-etal-2025-shortgpt]
# - removing a direction from everything that writes: [@arditi2024refusal]
#
# ## 10. The same on a real model
# The accounts of this chapter, on `lab`, on `lab-llama` (RMSNorm, no position vectors, no biases) and on a model of your choice: do the
# writes sum to the state, do the contributions sum to the logit, and does the norm change the winner? Errors are relative to the largest
# value. The last share is over all tokens, `<bos>` among them, so it differs a little from the table of section 4.

# %% label="real" tags=["nbval-check-output"]
def accounts(m, prompts):
    """Print whether the sums hold for the model `m` on these prompts."""
    parts = decompose_residual(m, prompts)
    state = ((parts.writes.sum(0) - parts.total).abs().max() / parts.total.abs().max()).item()
    direct = direct_logit_attribution(m, prompts, m.last_logits(prompts).argmax(-1).tolist())
    logit = ((direct.values.sum(0) - direct.logits).abs().max() / direct.logits.abs().max()).item()
    batch = m.tokenize(prompts)
    read, winner = parts.total @ weights.unembedding(m).W_U, m(batch).argmax(-1)
    other = (read.argmax(-1) != winner)[batch.mask.bool()].float().mean().item()
    print(f"{m.name}: {len(parts.names)} writes; sum is the state {state < 1e-4}, the logit {logit < 1e-4}")
    print(f"    other winner without the final norm: {other:.2f}")
    return state < 1e-4 and logit < 1e-4


assert accounts(model, documents) and accounts(llama, documents)
REAL = None  # for example "gpt2" or "EleutherAI/pythia-160m"; needs the network once
if REAL is None:
    print("skipped: REAL is not set. Everything above ran on the shipped models.")
else:
    accounts(mi.load(REAL), ["The capital of France is", "The opposite of hot is", "One, two, three,"])

# %% [markdown]
# ## 11. Questions

# %% label="quiz"
quiz([
    Question(
        "A head in layer 3 writes. In which state is its write for the first time?",
        [
            ("x3", "x3 is what block 3 reads, before the head has written."),
            ("x4", "x^{l+1} = x^l + what block l wrote. (Before the FFN of the same layer it is in mid3.)", True),
            ("Only in x6, the last state", "The stream is a running sum: from x4 on, every state holds it, unless something takes it out again."),
        ],
    ),
    Question(
        "You split a logit over the writes, but normalise each write with its own standard deviation. What happens?",
        [
            ("Nothing: the norm is linear.", "Centring and gain are linear. The division is not, since its divisor depends on the whole state."),
            ("The parts no longer add up to the logit, and small writes look large.", "Every write is blown up to the same size. Freeze the divisor of the actual state and use it for all.", True),
            ("The ranking of words changes, but the sum is right.", "The sum is wrong: see the row 'every write its own scale' in section 4."),
        ],
    ),
    Question(
        "A head's write is ten times as long as all others on your prompts. What follows?",
        [
            ("It is the most important head for the prediction.", "In the model cancelling the longest write can be removed without any effect."),
            ("It is present. Whether it matters needs a direct attribution, and an ablation for what others make of it.", "Length says that something is written, not who reads it or whether it is taken out again.", True),
            ("It is noise, since a norm follows.", "The norm rescales the whole state; a long write then has a large share in it, for better or worse."),
        ],
    ),
    Question(
        "A head has direct logit attribution 0, and zeroing it loses the behaviour. How can both be true?",
        [
            ("Its message is read by a later component, which writes the answer.", "Direct attribution follows only the path from the write to the unembedding; the first head of an induction circuit is such a case.", True),
            ("One of the two numbers must be wrong.", "They answer different questions: what the write adds to the logit, and what the model does without the head."),
            ("The scale was frozen, which hides the head.", "Freezing only fixes the divisor. A write at a right angle to the direction gets 0 with any divisor."),
        ],
    ),
])

# %% [markdown]
# Next: chapter 02 opens the attention heads, whose writes you have just added up; chapter 03 does the same for the FFNs.
