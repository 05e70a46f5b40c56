"""Answers to the exercises of chapter 15: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import math

import torch

# --- steering.breakdown -----------------------------------------------------------------------------------------------


def breakdown_loop(strengths, damage, bar):
    pairs = list(zip(strengths.tolist(), damage.tolist()))
    for (x0, y0), (x1, y1) in zip(pairs, pairs[1:]):
        if y1 > bar:
            return x0 + (x1 - x0) * (bar - y0) / (y1 - y0)
    return float("inf")


def breakdown_first(strengths, damage, bar):
    over = (damage > bar).nonzero()[:, 0]
    if not len(over):
        return math.inf
    j = over[0]
    slope = (damage[j] - damage[j - 1]) / (strengths[j] - strengths[j - 1])
    return float(strengths[j - 1] + (bar - damage[j - 1]) / slope)


def breakdown_step(strengths, damage, bar):
    over = (damage > bar).nonzero()[:, 0]
    return float(strengths[over[0]]) if len(over) else math.inf


def breakdown_last_good(strengths, damage, bar):
    over = (damage > bar).nonzero()[:, 0]
    return float(strengths[over[0] - 1]) if len(over) else math.inf


def breakdown_share(strengths, damage, bar):
    for i in range(1, len(damage)):
        if damage[i] > bar:
            return float((bar - damage[i - 1]) / (damage[i] - damage[i - 1]))
    return math.inf


def breakdown_unit_steps(strengths, damage, bar):
    for i in range(1, len(damage)):
        if damage[i] > bar:
            return float(strengths[i - 1] + (bar - damage[i - 1]) / (damage[i] - damage[i - 1]))
    return math.inf


def breakdown_last(strengths, damage, bar):
    found = math.inf
    for i in range(1, len(damage)):
        if damage[i] > bar >= damage[i - 1]:
            share = (bar - damage[i - 1]) / (damage[i] - damage[i - 1])
            found = float(strengths[i - 1] + share * (strengths[i] - strengths[i - 1]))
    return found


def breakdown_never(strengths, damage, bar):
    found = breakdown_loop(strengths, damage, bar)
    return float(strengths[-1]) if found == math.inf else found


def breakdown_at_bar(strengths, damage, bar):
    return (
        breakdown_loop(strengths, damage, bar - 1e-6)
        if (damage == bar).any()
        else breakdown_loop(strengths, damage, bar)
    )


# --- steering.random_change -------------------------------------------------------------------------------------------


def random_masked(delta, seed):
    torch.manual_seed(seed)
    r = torch.where(delta == 0, torch.zeros(()), torch.randn(delta.shape))
    return r / r.norm() * delta.norm()


def random_entries(delta, seed):
    places = delta.nonzero(as_tuple=True)
    values = torch.randn(len(places[0]), generator=torch.Generator().manual_seed(seed))
    r = torch.zeros_like(delta)
    r[places] = values * (delta.norm() / values.norm())
    return r


def random_everywhere(delta, seed):
    r = torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed))
    return r * delta.norm() / r.norm()


def random_scaled_first(delta, seed):
    return random_everywhere(delta, seed) * (delta != 0)


def random_unit(delta, seed):
    return random_masked(delta, seed) / delta.norm()


def random_positive(delta, seed):
    r = torch.rand(delta.shape, generator=torch.Generator().manual_seed(seed)) * (delta != 0)
    return r * delta.norm() / r.norm()


def random_signs(delta, seed):
    r = torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed)).sign() * (delta != 0)
    return r * delta.norm() / r.norm()


def random_unseeded(delta, seed):
    r = torch.randn(delta.shape, generator=torch.Generator().manual_seed(torch.seed() % 2**31)) * (delta != 0)
    return r * delta.norm() / r.norm()


def random_one_seed(delta, seed):
    return random_masked(delta, 0)


# --- steering.answer_loss ---------------------------------------------------------------------------------------------


def loss_cross_entropy(logits, ids, n):
    return torch.nn.functional.cross_entropy(logits[-n - 1 : -1], ids[-n:]).item()


def loss_by_hand(logits, ids, n):
    p, total = logits.softmax(-1), 0.0
    for t in range(len(ids) - n, len(ids)):
        total -= math.log(p[t - 1, ids[t]])
    return total / n


def loss_own_row(logits, ids, n):
    return torch.nn.functional.cross_entropy(logits[-n:], ids[-n:]).item()


def loss_of_all(logits, ids, n):
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item()


def loss_sum(logits, ids, n):
    return loss_by_hand(logits, ids, n) * n


def loss_positive(logits, ids, n):
    return -loss_by_hand(logits, ids, n)


def loss_of_logits(logits, ids, n):
    return float(-logits[:-1].gather(1, ids[1:, None])[-n:].mean())


def loss_probability(logits, ids, n):
    return float(logits.softmax(-1)[:-1].gather(1, ids[1:, None])[-n:].mean())


# --- steering.score ---------------------------------------------------------------------------------------------------


def score_statistics(before, after, kept, fluent):
    import statistics

    gain = (after - before) / (1 - before)
    return statistics.harmonic_mean([max(gain, 0), kept, fluent])


def score_product(before, after, kept, fluent):
    gain = max(0.0, after - before) / (1 - before)
    a, b, c = gain, kept, fluent
    return 0.0 if a * b * c == 0 else 3 * a * b * c / (a * b + b * c + a * c)


def score_mean(before, after, kept, fluent):
    return (max(0.0, (after - before) / (1 - before)) + kept + fluent) / 3


def score_of_after(before, after, kept, fluent):
    return score_statistics(0.0, after, kept, fluent)


def score_difference(before, after, kept, fluent):
    return score_statistics(0.0, max(0.0, after - before), kept, fluent)


def score_third(before, after, kept, fluent):
    return score_statistics(before, after, kept, fluent) / 3


def score_multiplied(before, after, kept, fluent):
    return max(0.0, (after - before) / (1 - before)) * kept * fluent


def score_size(before, after, kept, fluent):
    return score_statistics(0.0, abs(after - before) / (1 - before), kept, fluent)


# --- steering.choose_strength -----------------------------------------------------------------------------------------


def choose_sorted(validation, test):
    s = sorted(validation, key=lambda s: (-validation[s], abs(s)))[0]
    return s, test[s]


def choose_nearest(validation, test):
    top = max(validation.values())
    s = min((s for s in validation if validation[s] == top), key=lambda s: s * s)
    return s, test[s]


def choose_on_test(validation, test):
    return choose_sorted(test, test)


def choose_best_report(validation, test):
    return choose_sorted(validation, test)[0], max(test.values())


def choose_validation_report(validation, test):
    s, _ = choose_sorted(validation, test)
    return s, validation[s]


def choose_first(validation, test):
    s = max(validation, key=validation.get)
    return s, test[s]


def choose_turned(validation, test):
    return choose_sorted(validation, test)[::-1]


def choose_smallest(validation, test):
    s = sorted(validation, key=lambda s: (-validation[s], s))[0]
    return s, test[s]


# --- steering.foretold_kl ---------------------------------------------------------------------------------------------


def foretold_einsum(base, slightly, step):
    change = slightly - base
    return torch.einsum("...v,...v->...", base.exp(), change * change) / (2 * step * step)


def foretold_softmax(base, slightly, step):
    slope = (slightly - base).div(step)
    return 0.5 * (torch.softmax(base, -1) * slope**2).sum(dim=-1)


def foretold_twice(base, slightly, step):
    return 2 * foretold_einsum(base, slightly, step)


def foretold_unweighted(base, slightly, step):
    return ((slightly - base) / step).square().mean(-1) / 2 * 1.0


def foretold_summed(base, slightly, step):
    return ((slightly - base) / step).square().sum(-1) / 2


def foretold_no_step(base, slightly, step):
    return foretold_einsum(base, slightly, 1.0)


def foretold_linear(base, slightly, step):
    return (base.exp() * (slightly - base) / step).sum(-1) / 2


def foretold_one_number(base, slightly, step):
    return foretold_einsum(base, slightly, step).sum()


def foretold_logs(base, slightly, step):
    return (base * ((slightly - base) / step).square()).sum(-1) / 2


# --- steering.unbeaten ------------------------------------------------------------------------------------------------


def unbeaten_sweep(table):
    """By rising cost, then falling score: keep what scores more than all before it."""
    kept, best, cost = [], -math.inf, None
    for name, (score, price) in sorted(table.items(), key=lambda row: (row[1][1], -row[1][0])):
        if score > best or (score == best and price == cost):
            kept.append(name)
            best, cost = score, price
    return kept


def unbeaten_pairs(table):
    kept = []
    for name, (score, cost) in table.items():
        rivals = [(s, c) for s, c in table.values() if (s > score and c <= cost) or (s >= score and c < cost)]
        if not rivals:
            kept.append(name)
    return sorted(kept, key=lambda name: table[name][1])


def unbeaten_best(table):
    top = max(score for score, _ in table.values())
    return [name for name, (score, _) in table.items() if score == top]


def unbeaten_unsorted(table):
    return sorted(unbeaten_pairs(table))[::-1]


def unbeaten_strict(table):
    return sorted(
        (n for n, (s, c) in table.items() if not any(s2 > s and c2 < c for s2, c2 in table.values())),
        key=lambda n: table[n][1],
    )


def unbeaten_everything(table):
    return sorted(table, key=lambda name: table[name][1])


def unbeaten_one_of_equals(table):
    kept = []
    for name in unbeaten_pairs(table):
        if all(table[name] != table[other] for other in kept):
            kept.append(name)
    return kept


def unbeaten_no_free(table):
    return [name for name in unbeaten_pairs(table) if table[name][0] > 0]


RIGHT = {
    "steering.breakdown": [breakdown_loop, breakdown_first],
    "steering.random_change": [random_masked, random_entries],
    "steering.answer_loss": [loss_cross_entropy, loss_by_hand],
    "steering.score": [score_statistics, score_product],
    "steering.choose_strength": [choose_sorted, choose_nearest],
    "steering.foretold_kl": [foretold_einsum, foretold_softmax],
    "steering.unbeaten": [unbeaten_sweep, unbeaten_pairs],
}
WRONG = {
    "steering.breakdown": {
        "first bad": (breakdown_step, "This is the first strength that is too much"),
        "last good": (breakdown_last_good, "This is the last strength that was good"),
        "share": (breakdown_share, "This is the share of the way"),
        "unit steps": (breakdown_unit_steps, "length of the step, which is not always 1"),
        "last crossing": (breakdown_last, "This is the last time that the bar is passed"),
        "no infinity": (breakdown_never, "Return math.inf where no strength"),
        "bar itself": (breakdown_at_bar, "On the bar is still good"),
    },
    "steering.random_change": {
        "everywhere": (random_everywhere, "Weights outside the change moved"),
        "scaled first": (random_scaled_first, "Mask first, then scale"),
        "unit": (random_unit, "This has length 1"),
        "positive": (random_positive, "Numbers of one sign point along delta"),
        "signs": (random_signs, "Random signs on equal sizes"),
        "no seed": (random_unseeded, "Draw from a generator with the seed"),
        "one seed": (random_one_seed, "The seed is not used"),
    },
    "steering.answer_loss": {
        "own row": (loss_own_row, "Row t of the logits predicts token t + 1"),
        "prompt too": (loss_of_all, "The tokens of the prompt were counted"),
        "sum": (loss_sum, "This is a sum"),
        "sign": (loss_positive, "The loss is minus the log-probability"),
        "logits": (loss_of_logits, "Take the log-softmax first"),
        "probability": (loss_probability, "This is the mean probability"),
    },
    "steering.score": {
        "plain mean": (score_mean, "This is the plain mean"),
        "after": (score_of_after, "This uses `after` itself"),
        "difference": (score_difference, "This uses after - before"),
        "no three": (score_third, "There are three parts"),
        "product": (score_multiplied, "This is the product"),
        "size of the change": (score_size, "A loss is no negative gain"),
    },
    "steering.choose_strength": {
        "on test": (choose_on_test, "chosen on the test data"),
        "best on test reported": (choose_best_report, "the best score on test belongs to another one"),
        "validation reported": (choose_validation_report, "this is its validation score"),
        "first of equals": (choose_first, "Of equal strengths take the weakest"),
        "turned": (choose_turned, "The order is (strength, score on test)"),
        "most negative": (choose_smallest, "Weak means near 0"),
    },
    "steering.foretold_kl": {
        "no half": (foretold_twice, "Half of it"),
        "equal weights": (foretold_unweighted, "with equal weights"),
        "sum of squares": (foretold_summed, "This is the sum over words without weights"),
        "no step": (foretold_no_step, "The change was not divided by the step"),
        "no square": (foretold_linear, "The square is missing"),
        "one number": (foretold_one_number, "One number per position"),
        "logs": (foretold_logs, "not by their logs"),
    },
    "steering.unbeaten": {
        "best only": (unbeaten_best, "Only the best score was kept"),
        "unsorted": (unbeaten_unsorted, "Sort by cost"),
        "strict": (unbeaten_strict, "equal scores do not protect it"),
        "everything": (unbeaten_everything, "costs three times as much"),
        "one of equals": (unbeaten_one_of_equals, "Two equal rows do not beat each other"),
        "no free": (unbeaten_no_free, "nobody beats it on cost"),
    },
}
SAME = {  # changes that leave the answer right: both axes have as many places, and of two axes the last is 1
    "steering.random_change": ["random_entries, line 3: 0 -> 1"],
    "steering.answer_loss": ["loss_by_hand, line 2: -1 -> +1"],
}
