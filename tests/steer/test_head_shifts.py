import pytest
import torch

import mi_course as mi
from mi_course.steer import head_shifts as hs
from tests.families import FAMILIES, random_model

UP, DOWN = [[3, 4, 5, 6, 7, 8], [9, 8, 7], [4, 4, 5, 6], [7, 1, 2]], [[1, 2, 3], [5, 5, 5, 5, 6], [2, 2], [6, 3, 1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shift_of_heads_is_the_sum_of_their_results(family):
    model = mi.wrap(random_model(family))
    heads = ["L0H1", "L0H3", "L1H0"]
    shifts = hs.head_shifts(hs.head_states(model, UP, heads), hs.head_states(model, DOWN, heads))
    base = model(UP)
    with mi.intervene(model, *[mi.add(site, 3 * v) for site, v in shifts.items()]):
        by_head = model(UP)
    with mi.intervene(model, *[mi.add(site, 3 * v) for site, v in hs.as_writes(model, shifts).items()]):
        by_layer = model(UP)
    real = model.tokenize(UP).mask.bool()
    assert (by_head - base)[real].abs().max() > 1e-3
    assert torch.allclose(by_head[real], by_layer[real], atol=1e-4 * float(base[real].abs().max()))


def test_a_shift_is_one_standard_deviation_toward_the_positive_prompts():
    model = mi.wrap(random_model("llama"))
    up, down = hs.head_states(model, UP), hs.head_states(model, DOWN)
    assert len(up) == model.n_layers * model.n_heads
    z = torch.stack([mi.record(model, [p], ["L1H2.z@-1"])["L1H2.z@-1"][0] for p in UP])
    assert torch.allclose(up["L1H2.z"], z, atol=1e-5)
    shift = hs.head_shifts(up, down)["L1H2.z"]
    along = torch.cat([up["L1H2.z"], down["L1H2.z"]]) @ (shift / shift.norm())
    assert shift.norm() == pytest.approx(along.std().item(), rel=1e-4)
    assert shift @ (up["L1H2.z"].mean(0) - down["L1H2.z"].mean(0)) > 0


def test_heads_that_tell_the_kinds_apart_are_chosen_and_alpha_is_the_strength():
    g = torch.Generator().manual_seed(0)
    plain = {f"L0H{h}.z": torch.randn(200, 8, generator=g) for h in range(3)}
    moved = {site: z + (4.0 if site == "L0H1.z" else 0.0) for site, z in plain.items()}
    shuffled = {site: z[torch.randperm(200, generator=g)] for site, z in plain.items()}
    found = hs.separation(moved, shuffled)
    assert found["L0H1.z"] > 0.99 and all(abs(found[s] - 0.5) < 0.15 for s in ("L0H0.z", "L0H2.z"))
    # few prompts and many coordinates: on the prompts of the means, noise would be told apart perfectly
    few = [{f"L0H{h}.z": torch.randn(8, 64, generator=g) for h in range(40)} for _ in range(2)]
    assert abs(sum(hs.separation(*few).values()) / 40 - 0.5) < 0.1
    model = mi.wrap(random_model("gpt2"))
    steer = hs.iti(model, UP, DOWN, k=3, positions="generated")
    assert len(steer.edits) == 3
    base = model(UP)
    with steer.scaled(5.0).on(model):
        assert torch.equal(model(UP), base)  # no token is generated here
        long = model.generate_ids(UP[:1], 6)
    assert long.shape == (1, 6) and torch.equal(model(UP), base)
    before = mi.record(model, UP, [steer.edits[0].sites[0]])
    with hs.iti(model, UP, DOWN, k=1).scaled(2.0).on(model):
        after = mi.record(model, UP, [steer.edits[0].sites[0]])
    site = steer.edits[0].sites[0]
    assert torch.allclose(after[site] - before[site], 2 * steer.edits[0].arguments["vector"].expand_as(after[site]),
                          atol=1e-4)  # fmt: skip
    with pytest.raises(ValueError, match="k=0"):
        hs.iti(model, UP, DOWN, k=0)
