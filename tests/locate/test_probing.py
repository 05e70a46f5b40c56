"""Probes: planted labels, what a rotation must not change, formulas by hand, extraction on all families, splits."""

import pytest
import torch

import mi_course as mi
from mi_course import world
from mi_course.locate import probe_sweep as sweeps
from mi_course.locate import probing
from mi_course.locate.probe_sweep import features, k_sparse, rank_columns, split_by, split_rows, sweep
from mi_course.locate.probing import KINDS, fit
from mi_course.models import SiteError
from mi_course.world import compiled, saes
from tests.models.common import FAMILIES, PROMPTS, hooks_left, make

LINEAR = [kind for kind in KINDS if kind != "mlp"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(n=300, d=12, classes="abc", size=2.0, seed=0):
    """Gaussian classes around planted means, with an uneven covariance: (x, y, class means)."""
    means = size * random(len(classes), d, seed=seed + 1)
    index = torch.randint(len(classes), (n,), generator=torch.Generator().manual_seed(seed))
    return random(n, d, seed=seed) * torch.linspace(0.3, 1.5, d) + means[index], [classes[i] for i in index], means


# --- the probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_planted_labels_are_found_on_new_rows(kind, classes):
    x, y, _ = planted(classes=classes)
    assert fit(x[:200], y[:200], kind).accuracy(x[200:], y[200:]) > 0.95


@pytest.mark.parametrize("kind", LINEAR)
def test_the_scores_are_x_W_plus_b_in_the_units_of_x(kind):
    x, y, _ = planted()
    probe = fit(x, y, kind)
    assert probe.W.shape == (12, 3) and probe.b.shape == (3,)
    assert torch.allclose(probe.scores(x), x @ probe.W + probe.b)
    assert probe.predict(x) == [probe.classes[i] for i in (x @ probe.W + probe.b).argmax(1)]
    moved = fit(100 * x + 7, y, kind)  # other units and another origin: the same decisions
    assert moved.predict(100 * x + 7) == probe.predict(x)


@pytest.mark.parametrize("kind", LINEAR)
def test_a_rotation_of_the_space_leaves_predictions_and_turns_the_direction(kind):
    x, y, _ = planted(classes="ab", size=0.4)
    R = torch.linalg.qr(random(12, 12, seed=5)).Q
    probe, turned = fit(x, y, kind), fit(x @ R, y, kind)
    assert turned.accuracy(x @ R, y) == pytest.approx(probe.accuracy(x, y), abs=0.005)
    assert torch.cosine_similarity(turned.direction(), probe.direction() @ R, dim=0) > 0.9999


def test_the_mean_difference_direction_is_the_difference_of_class_means():
    x, y, _ = planted(classes="ab")
    mask = torch.tensor([label == "b" for label in y])
    means = x[~mask].mean(0), x[mask].mean(0)
    probe = fit(x, y, "mean difference")
    difference = means[1] - means[0]
    assert torch.allclose(probe.direction(), difference, atol=1e-5)  # length and all
    nearest = [("a", "b")[int(torch.stack([(row - m).norm() for m in means]).argmin())] for row in x]
    assert probe.predict(x) == nearest


def test_lda_is_the_mean_difference_after_whitening():
    x, y, _ = planted(classes="ab", size=0.5)
    mask = torch.tensor([label == "b" for label in y])
    x = x.double()
    rest = torch.where(mask[:, None], x - x[mask].mean(0), x - x[~mask].mean(0))
    S = rest.T @ rest / len(x)
    S = S + 0.01 * S.trace() / 12 * torch.eye(12)
    values, vectors = torch.linalg.eigh(S)
    whiten = vectors / values.sqrt() @ vectors.T
    probe, white = fit(x, y, "lda"), fit(x @ whiten, y, "mean difference")
    assert torch.cosine_similarity(probe.direction(), (whiten.float() @ white.direction()), dim=0) > 0.9999
    assert probe.predict(x) == white.predict(x @ whiten)


@pytest.mark.parametrize("kind", ["mean difference", "lda"])
def test_the_scores_of_several_uneven_classes_compare_distances_to_their_means(kind):
    """Two classes would not do: there the covariance around the common mean gives the same direction as that within."""
    x, y, _ = planted(classes="abc", size=1.0)
    keep = [i for i, label in enumerate(y) if label != "c" or i % 4 == 0]
    x, y = x[keep].double(), [y[i] for i in keep]
    groups = [x[[i for i, label in enumerate(y) if label == c]] for c in "abc"]
    S = torch.eye(12).double()
    if kind == "lda":
        S = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups) / len(x)
        S = S + 0.01 * S.trace() / 12 * torch.eye(12)
    half = torch.stack([-((x - g.mean(0)) @ S.inverse() * (x - g.mean(0))).sum(1) / 2 for g in groups], dim=1)
    scores = fit(x.float(), y, kind).scores(x.float()).double()
    assert torch.allclose(scores - scores[:, :1], half - half[:, :1], atol=1e-3)  # the first class as the zero


def test_least_squares_agrees_with_the_normal_equations_and_ridge_is_smaller():
    x, y, _ = planted(classes="ab", size=0.3)
    target = torch.tensor([[label == "a", label == "b"] for label in y]).double()
    ones = torch.cat([x.double(), torch.ones(len(x), 1)], dim=1)
    wanted = torch.linalg.solve(ones.T @ ones, ones.T @ target)
    linear, ridge = fit(x, y, "linear"), fit(x, y, "ridge")
    assert torch.allclose(linear.W, wanted[:-1].float(), atol=1e-5)
    assert torch.allclose(linear.b, wanted[-1].float(), atol=1e-5)
    assert ridge.W.norm() < linear.W.norm()


def test_logistic_scores_are_log_odds():
    """Balanced unit-variance classes at +-1: the log-odds are 2 x, so the direction is near 2."""
    sign = torch.tensor([1.0, -1.0]).repeat(2000)
    x = (random(4000) + sign)[:, None]
    probe = fit(x, [s > 0 for s in sign.tolist()], penalty=1e-6)
    assert probe.direction().item() == pytest.approx(2, abs=0.15)
    assert probe.classes == [False, True]
    assert probe.log_probs(x).exp().sum(1).allclose(torch.ones(4000))


def test_the_direction_of_one_class_among_many():
    x, y, means = planted(size=3.0)
    probe = fit(x, y, "mean difference")
    toward_b = means[1] - (means[0] + means[2]) / 2
    assert torch.cosine_similarity(probe.direction("b"), toward_b, dim=0) > 0.98
    own = [x[[i for i, label in enumerate(y) if label == c]].mean(0) for c in "abc"]
    assert torch.allclose(probe.direction("b"), own[1] - (own[0] + own[2]) / 2, atol=1e-4)  # length and all
    assert torch.allclose(probe.direction("b", away="a"), -probe.direction("a", away="b"))


def test_an_mlp_reads_what_no_line_separates():
    x = random(500, 2)
    y = [bool(a * b > 0) for a, b in x.tolist()]
    split = split_rows(500)
    assert sweeps.evaluate(x, y, split, "mlp") > 0.9
    assert sweeps.evaluate(x, y, split, "logistic") < 0.7
    with pytest.raises(ValueError, match="not linear"):
        fit(x, y, "mlp").direction()


@pytest.mark.parametrize(
    "x, y, options, message",
    [
        (random(4, 2), ["a", "b", "a", "b"], {"kind": "svm"}, "kind='svm' is unknown"),
        (random(4, 2), ["a", "b", "a"], {}, "for 3 labels"),
        (random(4, 2), ["a"] * 4, {}, "the one class 'a'"),
        (random(4, 2) * torch.nan, ["a", "b", "a", "b"], {}, "not finite"),
        (random(4, 2), ["a", "b", "a", "b"], {"kind": "linear", "penalty": 1.0}, "has no penalty"),
    ],
)
def test_bad_input_is_named(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        fit(x, y, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_state_gives_the_majority(kind):
    """Every prompt ends in the same token, say: its embedding tells nothing."""
    x, y = torch.ones(30, 4), ["a"] * 10 + ["b"] * 20
    assert set(fit(x, y, kind).predict(x)) <= ({"b"} if kind not in ("mean difference", "lda") else {"a", "b"})


def test_directions_ask_for_a_class_that_exists():
    x, y, _ = planted()
    probe = fit(x, y)
    with pytest.raises(ValueError, match="toward is missing"):
        probe.direction()
    with pytest.raises(ValueError, match="toward='z'"):
        probe.direction("z")
    assert probe.accuracy(x[:2], ["never seen", "never seen"]) == 0


# --- extraction ------------------------------------------------------------------------------------------------------

WHERE = ["last", 1, [0, 2, -1], "mean", "tokens"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_prompt_gives_the_row_of_the_padded_batch(family):
    model = make(family)
    sites = ["x1", "mlp0", "L1H2", "L1H2.z", "L1H2.k", "z0", "L0N5", "neurons1", "embed"]
    for where in WHERE:
        together = features(model, PROMPTS, sites, where, batch_size=2)
        alone = [features(model, [p], sites, [where[i]] if isinstance(where, list) else where)
                 for i, p in enumerate(PROMPTS)]  # fmt: skip
        for site in sites:
            assert torch.allclose(torch.cat([rows[site] for rows in alone]), together[site], atol=1e-4), (site, where)
            assert len(together[site]) == (sum(map(len, PROMPTS)) if where == "tokens" else len(PROMPTS))
    assert hooks_left(model) == []


def test_rows_hold_what_record_holds():
    model = make("gpt2")
    cache = mi.record(model, PROMPTS, ["x2", "z1", "neurons0", "L1H2"])
    got = features(model, PROMPTS, ["x2", "L1H2.z", "L0N5", "L1H2", "x2@0", "z1"])
    assert torch.equal(got["x2"], cache["x2"][:, -1])  # padding is on the left
    assert torch.equal(got["L1H2.z"], cache["z1"][:, -1, 2])
    assert torch.equal(got["L0N5"], cache["neurons0"][:, -1, 5:6])
    assert torch.allclose(got["L1H2"], cache["L1H2"][:, -1], atol=1e-5)
    assert torch.equal(got["z1"], cache["z1"][:, -1].flatten(1))
    start = [7 - len(p) for p in PROMPTS]
    assert torch.equal(got["x2@0"], torch.stack([cache["x2"][i, start[i]] for i in range(3)]))
    mean = features(model, PROMPTS, ["x2"], "mean")["x2"]
    assert torch.allclose(mean[1], cache["x2"][1, -3:].mean(0), atol=1e-5)
    rows = features(model, PROMPTS, ["x0"], "tokens")["x0"]
    types = sweeps.token_types(model, PROMPTS)
    assert types == [t for p in PROMPTS for t in p] and len(rows) == len(types)


def test_sae_features_are_rows_too():
    model = mi.load()
    model.saes["x3-topk"] = saes.sae("x3-topk", model)
    task = world.task("refusal_harmful", n=4)
    got = features(model, task.prompts, ["x3-topkF*", "x3-topkF17"])
    assert got["x3-topkF*"].shape == (4, 512)
    assert torch.equal(got["x3-topkF17"][:, 0], got["x3-topkF*"][:, 17])


def test_extraction_refuses_what_it_cannot_do():
    model = make("gpt2")
    with pytest.raises(SiteError, match="as long as its prompt"):
        features(model, PROMPTS, ["L0H1.pattern"])
    with pytest.raises(ValueError, match="positions='middle' is unknown"):
        features(model, PROMPTS, ["x1"], "middle")
    with pytest.raises(ValueError, match="for 3 prompts"):
        features(model, PROMPTS, ["x1"], [0, 1])


# --- splits ----------------------------------------------------------------------------------------------------------

LABELS = [{"who": who, "frame": frame} for who in "abcdefgh" for frame in range(4)]


def test_no_entity_and_no_template_is_on_both_sides():
    for keys in (("who",), ("frame",), ("who", "frame")):
        split = split_by(LABELS, *keys, test=0.25)
        assert split.train and split.test and not set(split.train) & set(split.test)
        for key in keys:
            assert not {LABELS[i][key] for i in split.train} & {LABELS[i][key] for i in split.test}
    assert len(split_by(LABELS, "who", "frame", test=0.25).test) == 2  # 2 entities x 1 template
    assert split_by(LABELS, "who", seed=1) != split_by(LABELS, "who", seed=2)


def test_an_entity_on_both_sides_is_an_error():
    split = split_rows(len(LABELS))
    with pytest.raises(ValueError, match="who '.' is in train and in test.*split_by"):
        split.check(LABELS, "who")
    with pytest.raises(ValueError, match="'town' is missing"):
        split_by(LABELS, "town")
    with pytest.raises(ValueError, match="nothing to hold out"):
        split_by([{"who": "a"}] * 3, "who")
    with pytest.raises(ValueError, match="keys is missing"):
        split_by(LABELS)


def test_a_row_split_rewards_knowing_entities_by_heart():
    """Labels are dealt to entities at random, and the state only says which entity it is: nothing to generalise."""
    who = [i for i in range(40) for _ in range(6)]
    x = random(40, 30)[who] + 0.1 * random(240, 30, seed=1)
    dealt = torch.randint(2, (40,), generator=torch.Generator().manual_seed(3)).bool().tolist()
    y = [dealt[i] for i in who]
    labels = [{"who": i} for i in who]
    by_row = sweeps.evaluate(x, y, split_rows(240))
    by_entity = [sweeps.evaluate(x, y, split_by(labels, "who", seed=s)) for s in range(5)]
    assert by_row > 0.95
    assert sum(by_entity) / 5 < 0.7


# --- sweeps ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def circuit():
    c = compiled.decodable()
    return c, c.wrap()


def test_a_sweep_finds_where_a_variable_arrives(circuit):
    """volume is a word's property until L0H0 brings it to the last token; L0H1 brings the mood."""
    c, model = circuit
    split = split_by([{"filler": p.split()[2]} for p in c.task.prompts], "filler")
    for label, brought_by in (("volume", "L0H0"), ("mood", "L0H1")):
        found = sweep(model, c.task, ["x0", "x1", "x2", "L0H0", "L0H1", "L0H2"], label, split)
        assert found["x1"] == found["x2"] == found[brought_by] == 1
        assert found["x0"] == 0.5 and found["L0H2"] == 0.5
        assert found["L0H0" if brought_by == "L0H1" else "L0H1"] == 0.5
    assert (found.sign, found.forwards, found.backwards) == ("magnitude", 16, 0)
    assert found.token_layers == 16 * 5 * 2
    area = sweep(model, c.task, ["x0", "x1"], "mood", split, metric="auroc")
    assert area["x1"] == 1 and area["x0"] == 0.5


def test_the_position_decides_what_can_be_read(circuit):
    c, model = circuit
    split = split_rows(16)
    at = {p: sweep(model, c.task, ["x1"], "volume", split, positions=p)["x1"] for p in (1, 2, 3, -1)}
    assert (at[2], at[-1]) == (1, 1)  # the word itself, and the token that fetches it
    assert at[1] <= 0.5  # the word before it cannot know
    assert at[3] == 1  # idle heads attend evenly, so that a trace of the word reaches even the filler
    assert sweep(model, c.task, ["x0"], "volume", split, positions=3)["x0"] <= 0.5


def test_sweeps_refuse_what_does_not_fit(circuit):
    c, model = circuit
    split = split_rows(16)
    with pytest.raises(ValueError, match="for 16 prompts"):
        sweep(model, c.task, ["x1"], ["a", "b"], split)
    with pytest.raises(ValueError, match="'tone' is missing"):
        sweep(model, c.task, ["x1"], "tone", split)
    with pytest.raises(ValueError, match="metric='f1' is unknown"):
        sweep(model, c.task, ["x1"], "mood", split, metric="f1")
    with pytest.raises(ValueError, match="needs two classes"):
        sweep(model, c.task, ["x1"], list("abcd") * 4, split, metric="auroc")


def test_contrast_ranks_the_heads_that_carry_the_answer():
    """Which head brings the answer to the last token is known in each of these models."""
    for name in ("lookup", "cancelling", "decodable"):
        c = compiled.ALL[name]()
        model = c.wrap()
        heads = [f"L{layer}H{head}.z" for layer in range(2) for head in range(3)]
        found = sweeps.contrast(model, c.task, heads)
        truth = [f"{site}.z" for site in c.answer if "H" in site]
        assert found.top(1, by="positive") == truth, name
        assert found.against(truth, by="positive")["auroc"] == 1
    # twins go both ways in "decodable": the question "prompt or twin" has no answer there
    assert max(sweeps.contrast(model, c.task, heads, label="twin").values) <= 0.5


def test_contrast_keeps_twins_together_and_says_what_is_missing(circuit):
    c, model = circuit
    found = sweeps.contrast(model, c.task, ["x1"], by="mood")
    assert found["x1"] == 1 and found.forwards == 32
    with pytest.raises(ValueError, match="no corrupted prompts"):
        sweeps.contrast(model, mi.Task("plain", ["it says"], ["shout"], metric="logprob"), ["x1"])
    with pytest.raises(ValueError, match="label='mood' is unknown"):
        sweeps.contrast(model, c.task, ["x1"], label="mood")


# --- sparse probes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", sweeps.RANKINGS)
def test_the_planted_columns_are_chosen(by):
    features, codes = compiled.planted_features(seed=0).sample(600)  # codes are sparse, as SAE features are
    y = [bool(row[3] > 0 or row[7] > 0) for row in codes]
    assert set(rank_columns(codes, y, by)[:2]) == {3, 7}
    probe = k_sparse(codes, y, 2, by)
    assert probe.W.abs().sum(1).nonzero().flatten().tolist() == [3, 7]
    assert probe.accuracy(codes, y) == 1
    one = k_sparse(codes, y, 1, by).accuracy(codes, y)
    assert max(1 - sum(y) / len(y), sum(y) / len(y)) < one < 1


def test_a_noisy_column_wins_by_mean_difference_only():
    y = [True, False] * 200
    sign = torch.tensor([1.0, -1.0] * 200)
    x = torch.stack([sign + 0.1 * random(400), 3 * sign + 30 * random(400, seed=1)], dim=1)
    assert rank_columns(x, y, "mean difference") == [1, 0]
    assert rank_columns(x, y, "standardised difference") == [0, 1]
    assert rank_columns(x, y, "l1") == [0, 1]


def test_k_must_fit():
    with pytest.raises(ValueError, match="k=9 is outside 1 ... 5"):
        k_sparse(random(10, 5), [True, False] * 5, 9)
    with pytest.raises(ValueError, match="by='magic'"):
        rank_columns(random(10, 5), [True, False] * 5, by="magic")


def test_the_module_says_what_it_has():
    assert all(kind in probing.__doc__ for kind in KINDS)
