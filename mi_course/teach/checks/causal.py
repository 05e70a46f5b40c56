"""Chapter 06, causal attribution: checks of its exercises.

Noising and denoising with their signs, what an ablation puts in place, a greedy group, the effects of causal tracing,
attention knock-out, a direct effect, and Ships. The functions without an underscore are the references that the
chapter uses while an exercise is open.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise

if TYPE_CHECKING:
    from mi_course.models import Model
    from mi_course.objects import Task


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _mean(x: Tensor) -> float:
    return x.float().mean().item()


# --- 1. noising and denoising ----------------------------------------------------------------------------------------


def both_effects(model: Model, task: Task, site: str) -> tuple[Tensor, Tensor]:
    """(noising [n], denoising [n]) effect of one site: F(patched run) - F(the run that was patched) (audit A16)."""
    import mi_course as mi

    clean, corrupted = mi.record(model, task.prompts, [site]), mi.record(model, task.corrupted, [site])
    with mi.intervene(model, mi.patch(site, corrupted[site])):
        noised = task.measure(model)
    with mi.intervene(model, mi.patch(site, clean[site])):
        denoised = task.measure(model, on="corrupted")
    return noised - task.measure(model), denoised - task.measure(model, on="corrupted")


@exercise(
    "causal.both_effects",
    reference=both_effects,
    hints=(
        "Each effect has two runs of the same prompts: one with the site replaced, one without. Which prompts are "
        "run in noising, and where does the foreign value come from? And in denoising?",
        "`mi.record(model, prompts, [site])[site]` is the value; `with mi.intervene(model, mi.patch(site, value)):` "
        "puts it in; `task.measure(model, on='corrupted')` is F on the twins.",
        "Sketch: record the site on task.prompts and on task.corrupted. Noising: patch the corrupted value, measure on "
        "the clean prompts, subtract the clean F. Denoising: patch the clean value, measure on the twins, subtract "
        "the twins' F.",
    ),
    expected="Two tensors [n]. On an AND gate one of two inputs has a noising effect of -10 and a denoising effect of "
    "0; on an OR gate it is the other way round.",
)
def _check_both_effects() -> Iterator[Probe]:
    from mi_course.world import compiled

    gates = [compiled.and_gate(), compiled.or_gate()]
    wrapped = [(gate.wrap(), gate.task) for gate in gates]
    right = [
        torch.full((len(gate.task),), gate.expected[f"{kind} L0H0"])
        for gate in gates
        for kind in ("noising", "denoising")
    ]  # AND: -10, 0; OR: 0, +10
    clean = [_mean(task.measure(m)) for m, task in wrapped]
    swing = [_mean(task.measure(m, on="corrupted") - task.measure(m)) for m, task in wrapped]

    def like(*numbers: float) -> Callable:
        return lambda got: all(x.dim() == 1 and abs(_mean(x) - y) < 0.1 for x, y in zip(got, numbers))

    a, b, c, d = map(_mean, right)
    yield Probe(
        tried="site L0H0.z, the head that brings one of two inputs: first in the AND gate, then in the OR gate",
        run=lambda answer: tuple(x for model, task in wrapped for x in answer(model, task, "L0H0.z")),
        expected=tuple(right),
        means="noising -10 and denoising 0 in the AND gate; noising 0 and denoising +10 in the OR gate",
        tolerance=1e-3,
        diagnose={
            "The two are swapped, or their runs are: noising patches the corrupted value into the clean run.": (
                like(b, a, d, c)
            ),
            "The sign is turned: an effect is F(patched) minus F(the run that was patched).": like(-a, -b, -c, -d),
            "Denoising was compared with the clean run. Its base is the corrupted run, which was patched.": (
                like(a, b + swing[0], c, d + swing[1])
            ),
            "Noising was compared with the corrupted run. Its base is the clean run, which was patched.": (
                like(a - swing[0], b, c - swing[1], d)
            ),
            "These are the values of F under the patch; subtract F of the run that was patched.": like(
                a + clean[0], b + clean[0] + swing[0], c + clean[1], d + clean[1] + swing[1]
            ),
            "A run was patched with its own value: the value must come from the other prompt.": like(0, 0, 0, 0),
            "Denoising ran the clean prompts, where the clean value changes nothing: run the twins, task.corrupted.": (
                like(a, 0, c, 0)
            ),
            "The denoising run was measured on the clean prompts and compared with the twins: ask for F on the twins, "
            "on='corrupted', under the patch as well.": like(a, -swing[0], c, -swing[1]),
            "This is the mean over the prompts. Return one number per prompt.": lambda got: got[0].dim() == 0,
        },
    )
    induction = compiled.induction()
    yield Probe(
        tried="the induction model, site x0: the whole input of the first block",
        args=(induction.wrap(), induction.task, "x0"),
        expected=lambda got: (
            torch.allclose(got[0], -got[1], atol=1e-2) and got[0].shape == (len(induction.task),) and got[0].max() < -1
        ),
        means="patching everything swaps the two runs: noising = F(corrupted) - F(clean) = -denoising",
        diagnose={
            "Patching everything must swap the runs. Is a foreign value put into each run, and its own F subtracted?": (
                lambda got: True
            )
        },
    )


# --- 2. what stands in for an ablated object -------------------------------------------------------------------------


def replacement(values: Tensor, mask: Tensor, kind: str) -> Tensor:
    """What an ablation puts in the place of values [n, T, d]; mask [n, T] is True at real tokens.

    zero; mean over all real tokens; mean over the prompts at each position; the previous prompt's values (resample).
    """
    if kind == "zero":
        return torch.zeros_like(values)
    if kind == "mean":
        return values[mask].mean(0).expand_as(values)
    if kind == "position mean":
        return values.mean(0, keepdim=True).expand_as(values)
    return values.roll(1, dims=0)


@exercise(
    "causal.replacement",
    reference=replacement,
    hints=(
        "Every kind gives a tensor of the shape of `values`. What does each of them know: nothing, the data set, the "
        "position, one other prompt?",
        "values[mask] is [number of real tokens, d]. A mean over prompts runs over axis 0 and keeps the positions. "
        "`expand_as(values)` repeats without copying. `torch.roll` moves prompts round.",
        "Sketch: zeros_like; values[mask].mean over tokens; values.mean over axis 0, keepdim; values rolled by one "
        "along axis 0.",
    ),
    expected="Four tensors of the shape of `values`. For an object that always does the same, all but zero equal it.",
)
def _check_replacement() -> Iterator[Probe | Callable]:
    values = torch.tensor([[[1.0, 0], [3, 2]], [[5, 4], [7, 6]], [[9, 2], [11, 4]]])
    full, mask = torch.ones(3, 2, dtype=torch.bool), torch.tensor([[False, True], [True, True], [True, True]])
    yield Probe(
        tried="three prompts of two tokens, the first one padded on the left; kind 'zero'",
        args=(values, mask, "zero"),
        expected=torch.zeros(3, 2, 2),
    )
    yield Probe(
        tried="the same, kind 'mean'",
        args=(values, mask, "mean"),
        expected=torch.tensor([7.0, 3.6]).expand(3, 2, 2),
        means="[7, 3.6] everywhere: the mean of the five real tokens",
        diagnose={
            "Padding was averaged in. Take the mean over real tokens only: values[mask].": lambda got: torch.allclose(
                got, torch.tensor([6.0, 3.0]).expand_as(got)
            ),
            "This has one number; the mean of a vector is a vector: average over tokens, keep d.": lambda got: (
                got.numel() == 1 or torch.allclose(got, got.flatten()[0].expand_as(got))
            ),
            "The mean was taken within each prompt. Mean ablation takes it over the data set.": lambda got: (
                got.shape == values.shape and not torch.allclose(got[0], got[2])
            ),
            "This is the mean at each position; 'mean' is one vector for all positions.": lambda got: (
                got.shape == values.shape and not torch.allclose(got[:, 0], got[:, 1])
            ),
            "Return a tensor of the shape of values: the mean at every prompt and position.": lambda got: (
                got.shape != values.shape
            ),
        },
    )
    yield Probe(
        tried="three prompts of two tokens without padding, kind 'position mean'",
        args=(values, full, "position mean"),
        expected=torch.tensor([[5.0, 2], [7, 4]]).expand(3, 2, 2),
        means="[5, 2] at the first position and [7, 4] at the second, in every prompt",
        diagnose={
            "This is one vector for all positions. Average over prompts (axis 0) and keep the positions.": torch.tensor(
                [6.0, 3.0]
            ).expand(3, 2, 2),
            "The average runs over the positions of each prompt (axis 1). Average over the prompts (axis 0).": (
                values.mean(1, keepdim=True).expand(3, 2, 2)
            ),
        },
    )
    yield Probe(
        tried="the same three prompts, kind 'resample'",
        args=(values, full, "resample"),
        expected=values[[2, 0, 1]],
        means="prompt i gets the values of prompt i - 1, the first those of the last",
        diagnose={
            "The positions were moved. Resampling takes another prompt's value at the same position.": values.roll(
                1, 1
            ),
            "The prompts were moved the wrong way: prompt i gets the values of prompt i - 1.": values[[1, 2, 0]],
            "Some prompt keeps its own value: then nothing is ablated there.": lambda got: (
                got.shape == values.shape and bool((got == values).flatten(1).all(1).any())
            ),
        },
    )

    def constant_object(answer: Callable) -> None:
        """an object that writes the same everywhere: only zero ablation changes it"""
        same = torch.tensor([2.0, -1.0]).expand(4, 3, 2).clone()
        before = same.clone()
        for kind in ("mean", "position mean", "resample"):
            if not torch.allclose(answer(same, torch.ones(4, 3, dtype=torch.bool), kind), before):
                raise NotYet(
                    answer.tried, f"kind {kind!r} gives the constant itself", likely="Something else than a mean."
                )
        if not torch.equal(same, before):
            raise NotYet(answer.tried, "the recorded values stay as they are", likely="`values` was changed in place.")

    yield constant_object


# --- 3. a greedy group -----------------------------------------------------------------------------------------------


def greedy(effect: Callable[[list], float], objects: Sequence[str], size: int) -> list[str]:
    """Add, `size` times, the object that makes effect(chosen + [object]) lowest. Returns the order of choice."""
    chosen: list[str] = []
    for _ in range(size):
        left = [o for o in objects if o not in chosen]
        chosen.append(min(left, key=lambda o: effect([*chosen, o])))
    return chosen


@exercise(
    "causal.greedy",
    reference=greedy,
    hints=(
        "After the first choice the question changes: not which object matters, but which matters when the chosen ones "
        "are gone already.",
        "In every round call effect(chosen + [candidate]) for each candidate that is not chosen yet; take the lowest.",
        "Sketch: chosen = []; repeat size times: left = those not in chosen; best = min(left, key=lambda o: "
        "effect(chosen + [o])); append it.",
    ),
    expected="A list of `size` objects in the order of choice. With a backup, the second choice is the backup, which "
    "has no effect alone.",
)
def _check_greedy() -> Iterator[Probe | Callable]:
    additive = {"a": -1.0, "b": -5.0, "c": 2.0, "d": -3.0}
    yield Probe(
        tried="objects a, b, c, d with effects -1, -5, +2, -3 that add up; size 3",
        args=(lambda group: sum(additive[o] for o in group), ["a", "b", "c", "d"], 3),
        expected=lambda got: list(got) == ["b", "d", "a"],
        means="b, d, a: the strongest fall first",
        diagnose={
            "The objects with the weakest effect were taken. A helpful object has a negative effect.": lambda got: (
                list(got)[:1] == ["c"]
            ),
            "An object was chosen twice.": lambda got: len(set(got)) < len(got),
            "These are not the objects. Return their names, not their effects.": lambda got: (
                not set(got) <= set("abcd")
            ),
            "c was chosen for the size of its change. But it hurts (+2): take the lowest effect, with its sign.": (
                lambda got: list(got) == ["b", "d", "c"]
            ),
            "Right objects, wrong order: return them in the order of choice.": lambda got: (
                sorted(got) == ["a", "b", "d"]
            ),
        },
    )

    hurting = {"a": -2.0, "b": 9.0, "c": -3.0}
    yield Probe(
        tried="a (-2), b (+9) and c (-3), which add up; size 2",
        args=(lambda group: sum(hurting[o] for o in group), ["a", "b", "c"], 2),
        expected=lambda got: list(got) == ["c", "a"],
        means="c, a: without b the answer gets better, so b does not help",
        diagnose={
            "b was taken: its effect is the largest in size, but it hurts. Take the lowest effect, with its sign.": (
                lambda got: "b" in got
            )
        },
    )

    def with_backup(group):
        left = {"main", "backup"} - set(group)
        return (0.0 if left else -10.0) - 1.0 * ("small" in group) - 2.0 * ("medium" in group)

    yield Probe(
        tried="main and backup, each idle while the other works (jointly -10), small (-1) and medium (-2); size 4",
        args=(with_backup, ["main", "small", "backup", "medium"], 4),
        expected=lambda got: list(got)[:2] == ["medium", "small"] and set(got) == {"main", "small", "backup", "medium"},
        means="medium and small first, then the pair",
        diagnose={"Each round must ask all objects that are left, given the chosen ones.": lambda got: True},
    )

    def second(group):
        group = set(group)
        return -4.0 * ("main" in group) - 6.0 * ({"main", "backup"} <= group) - 2.0 * ("other" in group)

    yield Probe(
        tried="main (-4); a backup that matters only when main is gone (then -6 more); other (-2); size 2",
        args=(second, ["backup", "other", "main"], 2),
        expected=lambda got: list(got) == ["main", "backup"],
        means="main, then its backup",
        diagnose={
            "These are the two strongest single objects. Greedy asks again after each choice, with the chosen ones "
            "ablated too: the backup then counts more.": lambda got: list(got) == ["main", "other"],
            "The candidate was tried alone, or the chosen ones were left out of the group.": lambda got: "other" in got,
        },
    )

    def spends(answer: Callable) -> None:
        """five objects, two rounds: 5 + 4 groups are tried, each with one object more than the last round"""
        asked = []

        def effect(group):
            asked.append(len(set(group)))
            return -float(len(set(group)))

        answer(effect, list("abcde"), 2)
        if sorted(set(asked)) != [1, 2] or len(asked) > 20:
            raise NotYet(
                answer.tried,
                "groups of one object, then of two",
                f"{len(asked)} groups with {sorted(set(asked))} objects",
                likely="A greedy search never tries all sets: it extends the one that it has.",
            )

    yield spends


# --- 4. causal tracing -----------------------------------------------------------------------------------------------


def tracing_effects(clean: Tensor, corrupted: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
    """(average total effect, average indirect effects [L]) of clean [n], corrupted [n], restored [n, L].

    TE = P_clean - P_corrupted, IE(l) = P_restored(l) - P_corrupted; NaN in `restored` means that an item has no such
    position, and is left out of the average.
    """
    return (clean - corrupted).mean(), (restored - corrupted[:, None]).nanmean(0)


@exercise(
    "causal.tracing_effects",
    reference=tracing_effects,
    hints=(
        "Both effects have the same base. Which run do total and indirect effect start from?",
        "IE is restored minus corrupted, item by item; corrupted needs a second axis to meet restored [n, L]. Then the "
        "mean over items, without those that are NaN.",
        "Sketch: te = mean of clean - corrupted; ie = restored minus corrupted (axis added); nanmean over axis 0.",
    ),
    expected="A number and a vector [L]. Restoring everything gives IE = TE; restoring nothing gives 0.",
)
def _check_tracing_effects() -> Iterator[Probe]:
    clean, corrupted = torch.tensor([0.9, 0.8, 1.0]), torch.tensor([0.1, 0.2, 0.0])
    restored = torch.tensor([[0.1, 0.5, 0.9], [0.2, torch.nan, 0.8], [0.0, 0.3, 1.0]])
    total, indirect = torch.tensor(0.8), torch.tensor([0.0, 0.35, 0.8])
    yield Probe(
        tried="three items with P clean .9 .8 1, corrupted .1 .2 0, and three states restored; the second item does "
        "not have the second state (NaN)",
        args=(clean, corrupted, restored),
        expected=(total, indirect),
        diagnose={
            "NaN came through. Leave out the items that lack the position: nanmean.": lambda got: bool(
                got[1].isnan().any()
            ),
            "The indirect effect was taken against the clean run. It is restored minus corrupted.": lambda got: (
                torch.allclose(got[1][[0, 2]], torch.tensor([-0.8, 0.0]), atol=1e-4)
            ),
            "The sign of the indirect effect is turned: restored minus corrupted; a helpful state is positive.": (
                lambda got: torch.allclose(got[1], -indirect, atol=1e-4)
            ),
            "The sign of the total effect is turned: clean minus corrupted.": lambda got: torch.allclose(
                got[0], -total
            ),
            "The mean of `corrupted` ran over all items, also over those that lack the position. Subtract item by "
            "item, then take the mean.": lambda got: torch.allclose(got[1], torch.tensor([0.0, 0.3, 0.8]), atol=1e-4),
            "An item that lacks one position was left out at all positions. It still counts where it has a value.": (
                lambda got: torch.allclose(got[1], torch.tensor([0.0, 0.35, 0.9]), atol=1e-4)
            ),
            "The indirect effect was divided by the total effect. It is a difference of probabilities.": lambda got: (
                torch.allclose(got[1], indirect / total, atol=1e-4)
            ),
            "The total effect is one number: the mean over the items.": lambda got: got[0].dim() > 0,
            "Items without the position were counted as 0. They must be left out of the mean.": lambda got: (
                got[1].shape == (3,) and abs(got[1][1] - 0.7 / 3) < 1e-3
            ),
            "These are restored probabilities; subtract the corrupted one of each item.": lambda got: (
                got[1].shape == (3,) and abs(got[1][2] - 0.9) < 1e-3
            ),
            "Average over the items (axis 0), not over the states.": lambda got: (
                got[1].dim() != 1 or abs(got[1][0] - 0.4) < 1e-3
            ),
        },
    )
    clean, corrupted = _random(2).sigmoid(), _random(2, seed=1).sigmoid()
    yield Probe(
        tried="two items and four states, where each state restores everything",
        args=(clean, corrupted, clean[:, None].expand(2, 4)),
        expected=((clean - corrupted).mean(), (clean - corrupted).mean().expand(4)),
        means="IE = TE for every state",
        diagnose={"The average must run over the items, and leave one number per state.": lambda got: True},
    )


# --- 5. knock-out ----------------------------------------------------------------------------------------------------


def knock_out(scores: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """scores [n, H, T, T] with the pairs (query in `queries`, key in `keys`), bool [n, T] each, at minus infinity."""
    pairs = queries[:, None, :, None] & keys[:, None, None, :]
    return scores.masked_fill(pairs, -torch.inf)


@exercise(
    "causal.knock_out",
    reference=knock_out,
    hints=(
        "A pair is forbidden when its query is chosen and its key is chosen. The last two axes of scores are "
        "[query, key]. What must a score be so that the softmax gives it nothing?",
        "Bring queries to [n, 1, T, 1] and keys to [n, 1, 1, T]; `&` gives the pairs for all heads. `masked_fill` "
        "returns a new tensor.",
        "Sketch: pairs = queries with axes [n, 1, T, 1] & keys with axes [n, 1, 1, T]; return the scores with pairs "
        "filled by minus infinity.",
    ),
    expected="The scores, with minus infinity at the forbidden pairs. After the softmax these get 0, and each row "
    "still sums to 1.",
)
def _check_knock_out() -> Iterator[Probe]:
    scores, inf = torch.arange(9.0).view(1, 1, 3, 3), float("inf")
    queries, keys = torch.tensor([[False, False, True]]), torch.tensor([[True, False, False]])
    right = torch.tensor([[0.0, 1, 2], [3, 4, 5], [-inf, 7, 8]]).view(1, 1, 3, 3)
    forbidden = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    forbidden[..., 2, 0] = True

    def same(got):
        return isinstance(got, Tensor) and got.shape == right.shape and torch.equal(got < -1e3, forbidden)

    yield Probe(
        tried="one head, three tokens, scores 0 to 8; the last query must not see the first key",
        args=(scores, queries, keys),
        expected=lambda got: same(got) and torch.equal(got[~forbidden], scores[~forbidden]),
        means="minus infinity in the last row, first column; the rest as it was",
        diagnose={
            "Query and key are swapped: scores[..., q, k] has the query before the key.": lambda got: torch.equal(
                got < -1e3, forbidden.transpose(2, 3)
            ),
            "A pair was blocked where its query *or* its key is chosen; both must be: & in place of |.": lambda got: (
                bool((got[0, 0, 2] < -1e3).all() and (got[0, 0, :, 0] < -1e3).all())
            ),
            "The whole row of the query was blocked. Only its pairs with the chosen keys are.": lambda got: bool(
                (got[0, 0, 2] < -1e3).all()
            ),
            "The whole column of the key was blocked. Only the chosen queries must not see it.": lambda got: bool(
                (got[0, 0, :, 0] < -1e3).all()
            ),
            "The score was set to 0. The softmax still gives a score of 0 some attention: use minus infinity.": (
                lambda got: got[0, 0, 2, 0] == 0
            ),
            "Nothing changed: return the new scores.": lambda got: torch.equal(got, scores),
            "The chosen pairs are the ones that stay; it must be the ones that go.": lambda got: torch.equal(
                got < -1e3, ~forbidden
            ),
        },
    )
    scores = _random(2, 3, 4, 4)
    queries = torch.tensor([[False, False, True, True], [False, False, False, True]])
    keys = torch.tensor([[True, False, False, False], [False, True, True, False]])
    pairs = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    for row, q, k in itertools.product(range(2), range(4), range(4)):
        pairs[row, 0, q, k] = queries[row, q] and keys[row, k]
    yield Probe(
        tried="two prompts with their own queries and keys, three heads: after the softmax",
        run=lambda answer: answer(scores, queries, keys).softmax(-1),
        expected=scores.masked_fill(pairs, -inf).softmax(-1),
        diagnose={
            "Each prompt has its own queries and keys: keep the first axis apart.": lambda got: (
                got.shape == scores.shape
                and torch.equal(got == 0, ((pairs[:1] | pairs[1:]) | torch.zeros_like(scores, dtype=torch.bool)))
            ),
            "A row no longer sums to one, or is NaN: change scores, before the softmax.": lambda got: (
                not torch.allclose(got.sum(-1), torch.ones(2, 3, 4))
            ),
            "All heads are knocked out, not the first alone.": lambda got: (
                torch.allclose(got[:, 1:], scores[:, 1:].softmax(-1)) and not torch.allclose(got, scores.softmax(-1))
            ),
        },
    )


# --- 6. a direct effect ----------------------------------------------------------------------------------------------


def direct_effect(model: Model, x: Tensor, change: Tensor, target: Tensor, foil: Tensor) -> Tensor:
    """[n] change of logit(target) - logit(foil) when `change` [n, d] is added to the final state x [n, d] and to
    nothing else."""

    def difference(state):
        logits = model.unembed(state)
        return (logits.gather(1, target[:, None]) - logits.gather(1, foil[:, None]))[:, 0]

    return difference(x + change) - difference(x)


@exercise(
    "causal.direct_effect",
    reference=direct_effect,
    hints=(
        "When every later part is held, what an object writes reaches the answer in one way only: it is added to the "
        "final state. What stands between the final state and the logits?",
        "`model.unembed(state)` is the final norm and then the unembedding. The norm must see the changed state: run "
        "it twice, with and without the change.",
        "Sketch: logits of x + change and of x through model.unembed; in each the target's logit minus the foil's, "
        "picked with gather; the difference of the two.",
    ),
    expected="One number per prompt. It is not linear: twice the change does not have twice the effect, since the norm "
    "divides by the new length.",
)
def _check_direct_effect() -> Iterator[Probe | Callable]:
    import mi_course as mi
    from mi_course.models import weights

    model = mi.load()
    x, change = 3 * _random(4, model.d_model), 2 * _random(4, model.d_model, seed=1)
    target, foil = torch.tensor([10, 20, 30, 40]), torch.tensor([50, 60, 70, 80])
    read = weights.unembedding(model)

    def logit_difference(logits):
        rows = torch.arange(4)
        return logits[rows, target] - logits[rows, foil]

    with torch.no_grad():
        before, after = logit_difference(read(x)), logit_difference(read(x + change))
        linear = logit_difference(change @ read.W_U)
        normed_change = logit_difference(read(change))
    yield Probe(
        tried="lab, four random final states and changes",
        args=(model, x, change, target, foil),
        expected=after - before,
        diagnose={
            "This is F with the change; subtract F without it.": after,
            "The sign is turned: F(changed) - F(base).": before - after,
            "The final norm was left out: use model.unembed, on the states.": linear,
            "The change alone was unembedded. The norm is not linear: unembed x + change, and x.": normed_change,
            "The change alone was compared with the state. Unembed x + change, and x.": normed_change - before,
            "This is the mean; return one number per prompt.": lambda got: got.dim() == 0,
        },
    )

    def compiled_paths(answer: Callable) -> None:
        """the compiled mediation model, where L0H0 reaches the answer directly with -3 and through L1H0 with -2"""
        from mi_course.world import compiled

        c = compiled.mediation()
        toy = c.wrap()
        z = [mi.record(toy, prompts, ["L0H0@-1"])["L0H0@-1"] for prompts in (c.task.prompts, c.task.corrupted)]
        state = mi.record(toy, c.task.prompts, [f"x{toy.n_layers}@-1"])[f"x{toy.n_layers}@-1"]
        got = answer(toy, state, z[1] - z[0], c.task.target_ids(toy), c.task.foil_ids(toy)).mean().item()
        if abs(got + 3) > 1e-2:
            raise NotYet(answer.tried, "-3: the direct path alone", f"{got:.2f}", likely="Not the direct effect.")

    yield compiled_paths


# --- 7. Ships --------------------------------------------------------------------------------------------------------


def ships(base: Tensor, ablated: Tensor) -> Tensor:
    """[n] KL(p_base || p_ablated) in nats from logits [n, V]: Ships of Zhou et al. 2025."""
    p, q = base.log_softmax(-1), ablated.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@exercise(
    "causal.ships",
    reference=ships,
    hints=(
        "KL(p || q) = sum of p (log p - log q) over the words. Which of the two distributions weighs the sum?",
        "`log_softmax(-1)` gives log p, safely; p is its exponential. Sum over the vocabulary, one number per prompt.",
        "Sketch: log p and log q by log_softmax; the sum over the last axis of exp(log p) times (log p - log q).",
    ),
    expected="One number per prompt, never negative, 0 when nothing changed; adding a constant to all logits changes "
    "nothing.",
)
def _check_ships() -> Iterator[Probe | Callable]:
    base, ablated = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986123]])
    right, reverse = torch.tensor([0.1438410]), torch.tensor([0.1308120])
    yield Probe(
        tried="two words: probabilities 1/2, 1/2 before and 1/4, 3/4 after",
        args=(base, ablated),
        expected=right,
        means="1/2 log 2 + 1/2 log 2/3 = 0.144",
        diagnose={
            "KL is not symmetric, and this is the other one. The distribution of the unchanged model comes first.": (
                reverse
            ),
            "The sign is turned: log p - log q, with p the unchanged model.": -right,
            "These are bits. Use the natural logarithm.": right / 0.6931472,
            "The sum was divided by the number of words.": right / 2,
            "The logits were used as probabilities; take the softmax first.": lambda got: bool(
                got.isnan().any() or got.isinf().any() or (got == 0).all()
            ),
            "One number per prompt is wanted: sum over the words.": lambda got: got.shape != (1,),
        },
    )
    base, ablated = _random(3, 7), _random(3, 7, seed=1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=base), torch.distributions.Categorical(logits=ablated)
    )
    yield Probe(
        tried="three prompts, seven words, random logits",
        args=(base, ablated),
        expected=expected,
        diagnose={"The mean over prompts was taken; one number per prompt is wanted.": lambda got: got.numel() == 1},
    )
    yield Probe(
        tried="large logits: 200 for one word before, 200 for another after",
        args=(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([[0.0, 200.0, 0.0]])),
        expected=torch.tensor([200.0]),
        diagnose={
            "Rounding made a probability 0, and its logarithm infinite: use log_softmax, not the log of a softmax.": (
                lambda got: not bool(got.isfinite().all())
            )
        },
    )
