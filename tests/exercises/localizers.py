"""Answers to the exercises of chapter 11: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch

import mi_course as mi
from mi_course.locate import causal

# --- localizers.auroc ------------------------------------------------------------------------------------------------


def auroc_pairs(importance, is_true):
    true, false = importance[is_true], importance[~is_true]
    table = true[:, None] - false[None]
    return (torch.sign(table).mean() / 2 + 0.5).item()


def auroc_loops(importance, is_true):
    won, pairs = 0.0, 0
    for i in range(len(importance)):
        for j in range(len(importance)):
            if is_true[i] and not is_true[j]:
                pairs += 1
                won += 1.0 if importance[i] > importance[j] else 0.5 if importance[i] == importance[j] else 0.0
    return won / pairs


def auroc_ranks(importance, is_true):
    """Mann-Whitney: the sum of the true sites' ranks."""
    below = (importance[None] < importance[:, None]).sum(1)
    ties = (importance[None] == importance[:, None]).sum(1)
    ranks = below + (ties + 1) / 2
    k = int(is_true.sum())
    return float((ranks[is_true].sum() - k * (k + 1) / 2) / (k * (len(ranks) - k)))


def auroc_strict(importance, is_true):
    return float((importance[is_true][:, None] > importance[~is_true][None]).float().mean())


def auroc_generous(importance, is_true):
    return float((importance[is_true][:, None] >= importance[~is_true][None]).float().mean())


def auroc_turned(importance, is_true):
    return 1 - auroc_pairs(importance, is_true)


def auroc_count(importance, is_true):
    true, false = importance[is_true], importance[~is_true]
    return float((torch.sign(true[:, None] - false[None]) / 2 + 0.5).sum())


def auroc_of_sizes(importance, is_true):
    return auroc_pairs(importance.abs(), is_true)


def auroc_all_pairs(importance, is_true):
    n = len(importance)
    return auroc_count(importance, is_true) / (n * (n - 1) / 2)


# --- localizers.recall_at_k ------------------------------------------------------------------------------------------


def recall_shared(importance, is_true):
    k = int(is_true.sum())
    bar = torch.topk(importance, k).values[-1]
    share = torch.where(importance > bar, 1.0, 0.0)
    tied = importance == bar
    share = share + tied * (k - (importance > bar).sum()) / tied.sum()
    return float(share[is_true].sum()) / k, k / len(importance)


def recall_in_blocks(importance, is_true):
    """Go down the distinct numbers and fill k places."""
    k = left = int(is_true.sum())
    found = 0.0
    for value in importance.unique().flip(0).tolist():
        block = is_true[importance == value]
        taken = min(left, len(block))
        found += float(block.sum()) * taken / len(block)
        left -= taken
    return found / k, k / len(importance)


def recall_by_sort(importance, is_true):
    k = int(is_true.sum())
    return float(is_true[importance.argsort(descending=True, stable=True)[:k]].sum()) / k, k / len(importance)


def recall_least(importance, is_true):
    return recall_shared(-importance, is_true)


def recall_without_ties(importance, is_true):
    k = int(is_true.sum())
    bar = torch.topk(importance, k).values[-1]
    sure = importance > bar if (importance == bar).sum() > 1 else importance >= bar
    return float((sure & is_true).sum()) / k, k / len(importance)


def recall_wrong_chance(importance, is_true):
    return recall_shared(importance, is_true)[0], 1 / len(importance)


def recall_as_count(importance, is_true):
    recall, chance = recall_shared(importance, is_true)
    return recall * int(is_true.sum()), chance


# --- localizers.null_band --------------------------------------------------------------------------------------------


def null_of_permutations(n, k, draws=1000, seed=0):
    generator, values = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        ranks = torch.randperm(n, generator=generator)
        values.append(auroc_pairs(ranks.float(), torch.arange(n) < k))
    values = torch.tensor(values)
    return (values.mean() - 2 * values.std()).item(), (values.mean() + 2 * values.std()).item()


def null_at_once(n, k, draws=1000, seed=0):
    x = torch.rand(draws, n, generator=torch.Generator().manual_seed(seed))
    values = (x[:, :k, None] > x[:, None, k:]).float().mean((1, 2))
    mean, sd = values.mean(), values.std()
    return float(mean - 2 * sd), float(mean + 2 * sd)


def _draws(n, k, draws, seed):
    x = torch.rand(draws, n, generator=torch.Generator().manual_seed(seed))
    return (x[:, :k, None] > x[:, None, k:]).float().mean((1, 2))


def null_error_of_the_mean(n, k, draws=1000, seed=0):
    values = _draws(n, k, draws, seed)
    sd = values.std() / draws**0.5
    return float(values.mean() - 2 * sd), float(values.mean() + 2 * sd)


def null_one_sd(n, k, draws=1000, seed=0):
    values = _draws(n, k, draws, seed)
    return float(values.mean() - values.std()), float(values.mean() + values.std())


def null_percentiles(n, k, draws=1000, seed=0):
    values = _draws(n, k, draws, seed)
    return float(values.quantile(0.025)), float(values.quantile(0.975))


def null_swapped(n, k, draws=1000, seed=0):
    return null_at_once(n, k, draws, seed)[::-1]


def null_unseeded(n, k, draws=1000, seed=0):
    return null_at_once(n, k, draws, int(torch.randint(10**6, ())))


def null_one_seed(n, k, draws=1000, seed=0):
    return null_at_once(n, k, draws, 0)


def null_few_draws(n, k, draws=1000, seed=0):
    return null_at_once(n, k, 2000, seed)


# --- localizers.spearman ---------------------------------------------------------------------------------------------


def spearman_by_hand(a, b):
    def ranks(x):
        return (x[:, None] > x[None]).sum(1) + ((x[:, None] == x[None]).sum(1) + 1) / 2

    ra, rb = ranks(a), ranks(b)
    ra, rb = ra - ra.mean(), rb - rb.mean()
    return float((ra * rb).sum() / (ra.norm() * rb.norm()))


def spearman_with_scipy(a, b):
    from scipy.stats import rankdata

    ranks = torch.stack([torch.tensor(rankdata(x.numpy()), dtype=torch.float32) for x in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def pearson(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def spearman_argsort(a, b):
    return pearson(a.argsort().float(), b.argsort().float())


def spearman_no_ties(a, b):
    return pearson(a.argsort(stable=True).argsort().float(), b.argsort(stable=True).argsort().float())


def spearman_low_ties(a, b):
    low = [(x[:, None] > x[None]).sum(1).float() for x in (a, b)]
    return pearson(*low)


def spearman_shortcut(a, b):
    def ranks(x):
        return (x[:, None] > x[None]).sum(1) + (x[:, None] == x[None]).sum(1) / 2

    n = len(a)
    return float(1 - 6 * (ranks(a) - ranks(b)).square().sum() / (n * (n**2 - 1)))


def kendall(a, b):
    agree = torch.sign(a[:, None] - a[None]) * torch.sign(b[:, None] - b[None])
    return float(agree.sum() / (len(a) * (len(a) - 1)))


def spearman_size(a, b):
    return abs(spearman_by_hand(a, b))


# --- localizers.my_localizer -----------------------------------------------------------------------------------------


def mine_zero(model, task, sites):
    base = task.measure(model).mean()
    effects = []
    for site in sites:
        with mi.intervene(model, mi.zero(site)):
            effects.append(abs(float(task.measure(model).mean() - base)))
    return effects


def mine_fall(model, task, sites):
    return -torch.as_tensor(causal.ablate_each(model, task, sites, "mean").values).float()


def mine_squared(model, task, sites):
    """Mean square of the effects on single prompts: no cancelling between prompts."""
    base, effects = task.measure(model), torch.zeros(len(sites))
    for i, site in enumerate(sites):
        with mi.intervene(model, mi.scale(site, 0.0)):
            effects[i] = ((task.measure(model) - base) ** 2).mean()
    return effects


def mine_turned(model, task, sites):
    return torch.as_tensor(causal.ablate_each(model, task, sites, "mean").values).float()


def mine_norm(model, task, sites):
    cache = mi.record(model, task.prompts, sites)
    return [float(cache[site].norm(dim=-1).mean()) for site in sites]


def mine_patching(model, task, sites):
    return abs(torch.as_tensor(causal.patch_each(model, task, sites, "noising").values))


def mine_sorted(model, task, sites):
    return sorted(mine_zero(model, task, sites))


def mine_per_prompt(model, task, sites):
    base = task.measure(model)
    effects = []
    for site in sites:
        with mi.intervene(model, mi.zero(site)):
            effects.append((task.measure(model) - base).abs())
    return torch.stack(effects)


# --- localizers.consensus --------------------------------------------------------------------------------------------


def consensus_loop(scores):
    total = torch.zeros(len(scores[0]))
    for one in scores:
        ranks = (one[:, None] > one[None]).sum(1) + ((one[:, None] == one[None]).sum(1) - 1) / 2
        total += ranks / (len(one) - 1)
    return total / len(scores)


def consensus_of_pairs(scores):
    """A site's relative rank is the share of the others that it beats, ties half."""
    table = torch.stack(list(scores))
    wins = torch.sign(table[:, :, None] - table[:, None]) / 2 + 0.5
    n = table.shape[1]
    return (wins.sum(-1) - 0.5).mean(0) / (n - 1)


def consensus_of_numbers(scores):
    return torch.stack(list(scores)).mean(0)


def consensus_unscaled(scores):
    return consensus_loop(scores) * (len(scores[0]) - 1)


def consensus_turned(scores):
    return 1 - consensus_loop(scores)


def consensus_no_ties(scores):
    return torch.stack([one.argsort(stable=True).argsort().float() / (len(one) - 1) for one in scores]).mean(0)


def consensus_low_ties(scores):
    return torch.stack([(one[:, None] > one[None]).sum(1).float() / (len(one) - 1) for one in scores]).mean(0)


def consensus_of_sizes(scores):
    return consensus_loop([one.abs() for one in scores])


# --- localizers.sweep_forwards ---------------------------------------------------------------------------------------


def sweep_closed(n_layers, per_layer):
    return 1 + per_layer * (n_layers + 1) / 2


def sweep_summed(n_layers, per_layer):
    blocks = n_layers
    for layer in range(n_layers):
        blocks += per_layer * len(range(layer, n_layers))
    return blocks / n_layers


def sweep_plain(n_layers, per_layer):
    return 1 + n_layers * per_layer


def sweep_without_base(n_layers, per_layer):
    return per_layer * (n_layers + 1) / 2


def sweep_above(n_layers, per_layer):
    return 1 + per_layer * (n_layers - 1) / 2


def sweep_in_blocks(n_layers, per_layer):
    return 1 + per_layer * n_layers * (n_layers + 1) / 2


def sweep_one_object(n_layers, per_layer):
    return 1 + (n_layers + 1) / 2


RIGHT = {
    "localizers.auroc": [auroc_pairs, auroc_loops, auroc_ranks],
    "localizers.recall_at_k": [recall_shared, recall_in_blocks],
    "localizers.null_band": [null_of_permutations, null_at_once],
    "localizers.spearman": [spearman_by_hand, spearman_with_scipy],
    "localizers.my_localizer": [mine_zero, mine_fall, mine_squared],
    "localizers.consensus": [consensus_loop, consensus_of_pairs],
    "localizers.sweep_forwards": [sweep_closed, sweep_summed],
}
WRONG = {
    "localizers.auroc": {
        "ties count nothing": (auroc_strict, "Here it counted nothing"),
        "ties count whole": (auroc_generous, "Here it counted whole"),
        "turned round": (auroc_turned, "Turned round"),
        "number of pairs": (auroc_count, "This is a number of pairs"),
        "all pairs": (auroc_all_pairs, "The value is 0.6667"),
        "sizes": (auroc_of_sizes, "no absolute value"),
    },
    "localizers.recall_at_k": {
        "ties by the list": (recall_by_sort, "for the true site. It has one chance in three"),
        "ties left out": (recall_without_ties, "The tied sites were all left out"),
        "least important": (recall_least, "These are the least important sites"),
        "chance 1/n": (recall_wrong_chance, "Chance is k / n"),
        "by n": (
            lambda x, t: (recall_shared(x, t)[0] * float(t.float().mean()), float(t.float().mean())),
            "divided by n",
        ),
        "a count": (recall_as_count, "This is a number of sites"),
    },
    "localizers.null_band": {
        "error of the mean": (null_error_of_the_mean, "This is the error of the mean"),
        "one sd": (null_one_sd, "Only one standard deviation"),
        "percentiles": (null_percentiles, "or percentiles"),
        "swapped": (null_swapped, "The lower end comes first"),
        "no seed": (null_unseeded, "Draw from a generator with the seed"),
        "one seed": (null_one_seed, "The seed is not used"),
        "draws ignored": (null_few_draws, "`draws` is not used"),
    },
    "localizers.spearman": {
        "pearson": (pearson, "This is the correlation of the numbers"),
        "argsort once": (spearman_argsort, "Apply it twice"),
        "ties in a row": (spearman_no_ties, "Tied numbers got different ranks"),
        "lowest rank": (spearman_low_ties, "all with their lowest rank"),
        "shortcut": (spearman_shortcut, "right without ties only"),
        "kendall": (kendall, "This is Kendall's tau"),
        "size": (spearman_size, "hides that the orders are opposed"),
    },
    "localizers.my_localizer": {
        "turned": (mine_turned, "Turned round"),
        "norm": (mine_norm, "Sizes find decoys"),
        "patching": (mine_patching, "L0H0 matters although patching"),
        "sorted": (mine_sorted, "must come first"),
        "per prompt": (mine_per_prompt, "Average over the prompts"),
    },
    "localizers.consensus": {
        "0 to 1": (
            lambda scores: consensus_of_numbers([(x - x.min()) / (x.max() - x.min()) for x in scores]),
            "their gaps still count",
        ),
        "median": (
            lambda scores: torch.stack([consensus_loop([x]) for x in scores]).median(0).values,
            "The median of the ranks",
        ),
        "by n": (lambda scores: consensus_loop(scores) * (1 - 1 / len(scores[0])), "Right up to the scale"),
        "numbers": (consensus_of_numbers, "The numbers themselves were averaged"),
        "unscaled": (consensus_unscaled, "Right up to the scale"),
        "turned": (consensus_turned, "Turned round"),
        "ties in a row": (consensus_no_ties, "ties were ranked by the order of the list"),
        "lowest rank": (consensus_low_ties, "Give them the mean"),
        "sizes": (consensus_of_sizes, "not by size"),
    },
    "localizers.sweep_forwards": {
        "plain": (sweep_plain, "counted as full passes"),
        "no base": (sweep_without_base, "The base run is missing"),
        "above only": (sweep_above, "computes block l itself"),
        "blocks": (sweep_in_blocks, "These are blocks"),
        "one object": (sweep_one_object, "cost of one object per layer"),
    },
}
SAME = {  # changes that leave the answer right: ranks may start anywhere, and all methods score equally many sites
    "localizers.spearman": [
        "spearman_by_hand, line 3: 1 -> 2",
        "spearman_by_hand, line 3: (x[:, None] == x[None]).sum(1) + 1 -> (x[:, None] == x[None]).sum(1) - 1",
    ],
    "localizers.consensus": ["consensus_loop, line 2: 0 -> 1"],
}
