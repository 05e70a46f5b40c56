"""Controls: what they must say where the answer is known."""

import math

import pytest
import torch

import mi_course as mi
from mi_course import world
from mi_course.locate import probe_controls as controls
from mi_course.locate.probe_sweep import Split, evaluate, features, split_by, split_rows, token_types
from mi_course.locate.probing import fit
from tests.models.common import make


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(n_types=60, n=600, seed=0):
    """Rows that say which word it is (a random vector per word) and, in one more direction, a label of the context."""
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(n_types, (n,), generator=generator)
    y = torch.randint(2, (n,), generator=generator).bool()
    x = random(n_types, 20, seed=seed + 1)[types] + 0.1 * random(n, 20, seed=seed + 2)
    return torch.cat([x, 2 * y[:, None].float() + 0.1 * random(n, 1, seed=seed + 3)], dim=1), y.tolist(), types.tolist()


# --- baselines -------------------------------------------------------------------------------------------------------


def test_majority_is_that_of_the_training_part():
    y = ["a", "a", "b", "b", "b", "a"]
    assert controls.majority(y, Split([0, 1, 2], [3, 4, 5])) == pytest.approx(1 / 3)


def test_a_random_model_keeps_the_architecture_and_nothing_learned():
    model = mi.load()
    state = torch.random.get_rng_state()
    fresh, again, other = (controls.random_model(model, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert fresh.fingerprint() == again.fingerprint() != other.fingerprint()
    assert fresh.config.to_dict() == model.config.to_dict()
    assert fresh.hf.get_input_embeddings().weight.data_ptr() != model.hf.get_input_embeddings().weight.data_ptr()
    task = world.task("facts", n=20)
    assert task.accuracy(model) > 0.9 and task.accuracy(fresh) < 0.2


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
def test_random_models_of_other_families(family):
    model = make(family)
    fresh = controls.random_model(model)
    prompts = [[3, 4, 5]]
    assert fresh(prompts).shape == model(prompts).shape
    assert not torch.allclose(fresh(prompts), model(prompts))


def test_the_permutation_null_of_an_informative_state_is_chance():
    x, y, _ = words()
    split = split_rows(600)
    null = controls.permutation_null(x, y, split, draws=5)
    assert evaluate(x, y, split) == 1
    assert len(null) == 5 and max(null) < 0.6


def test_entities_swap_their_labels_as_a_whole():
    """By row, shuffled labels cannot be learned. By entity they can, where entities are on both sides."""
    who = [i for i in range(30) for _ in range(8)]
    x = random(30, 40)[who] + 0.05 * random(240, 40, seed=1)
    y = [i % 2 == 0 for i in who]
    split = split_rows(240)
    rows = controls.permutation_null(x, y, split, draws=4)
    entities = controls.permutation_null(x, y, split, draws=4, groups=who)
    assert max(rows) < 0.65 and min(entities) > 0.95
    honest = split_by([{"who": i} for i in who], "who")
    assert sum(controls.permutation_null(x, y, honest, draws=8, groups=who)) / 8 < 0.65
    with pytest.raises(ValueError, match="has two labels"):
        controls.permutation_null(x, [i % 3 == 0 for i in range(240)], split, groups=who)


# --- selectivity -----------------------------------------------------------------------------------------------------


def test_control_labels_belong_to_the_type_and_keep_the_shares():
    types = [i % 500 for i in range(2000)]
    y = [i % 4 == 0 for i in range(2000)]
    drawn = controls.control_labels(types, y)
    assert all(drawn[i] == drawn[i + 500] for i in range(1500))
    assert sum(drawn) / 2000 == pytest.approx(0.25, abs=0.06)
    assert drawn == controls.control_labels(types, y) != controls.control_labels(types, y, seed=1)


def test_a_large_probe_loses_selectivity():
    """60 words in 20 dimensions: a line cannot give each its random label, an MLP can. The real label is linear."""
    x, y, types = words()
    split = split_rows(600)
    found = {kind: controls.selectivity(x, y, types, split, kind) for kind in ("logistic", "mlp")}
    assert found["logistic"].accuracy > 0.98 and found["mlp"].accuracy > 0.98
    assert found["logistic"].selectivity > found["mlp"].selectivity + 0.1
    assert found["mlp"].control > 0.95
    assert found["mlp"].selectivity == found["mlp"].accuracy - found["mlp"].control


def test_the_control_accuracy_is_the_mean_over_draws():
    x, y, types = words()
    split = split_rows(600)
    one = [controls.selectivity(x, y, types, split, "ridge", draws=1, seed=seed).control for seed in range(5, 9)]
    four = controls.selectivity(x, y, types, split, "ridge", draws=4, seed=5)
    assert four.control == pytest.approx(sum(one) / 4) and max(one) > min(one) + 0.01


def test_selectivity_needs_known_words():
    x, y, types = words()
    by_word = split_by([{"word": t} for t in types], "word")
    with pytest.raises(ValueError, match="split by sentence"):
        controls.selectivity(x, y, types, by_word)


def test_control_tasks_on_real_tokens():
    model = mi.load()
    prompts = world.task("language", n=40).prompts
    x, types = features(model, prompts, ["embed"], "tokens")["embed"], token_types(model, prompts)
    drawn = controls.control_labels(types, [True, False] * (len(types) // 2) + [True] * (len(types) % 2))
    assert evaluate(x, drawn, split_rows(len(types))) > 0.9  # embeddings tell words apart, and nothing else is asked


# --- information -----------------------------------------------------------------------------------------------------


def test_random_labels_cost_at_least_the_uniform_code_and_separable_ones_little():
    x, y, _ = words()
    noise = torch.randint(2, (600,), generator=torch.Generator().manual_seed(9)).bool().tolist()
    separable, random_labels = controls.online_code(x, y), controls.online_code(x, noise)
    assert separable.uniform == random_labels.uniform == 600
    assert random_labels.bits >= 600 and random_labels.compression <= 1
    assert separable.bits < 100 and separable.compression > 6
    four = controls.online_code(x, [f"{a}{b}" for a, b in zip(y, noise)])
    assert four.uniform == 1200


def test_the_code_length_by_hand():
    x, y, _ = words(n=40)
    order = __import__("random").Random(0).sample(range(40), 40)
    x2, y2 = x[order], [y[i] for i in order]
    p = fit(x2[:10], y2[:10]).scores(x2[10:]).double().softmax(1)
    own = 0.999 * torch.stack([p[i, int(label)] for i, label in enumerate(y2[10:])]) + 0.0005
    got = controls.online_code(x, y, fractions=(0.25, 1.0))
    assert got.bits == pytest.approx(10 - own.log2().sum().item(), rel=1e-6)


def test_a_slow_label_has_a_longer_code_at_the_same_accuracy():
    """Hidden among many dimensions a label takes more rows to find: MDL sees it, the final accuracy does not."""
    x, y, _ = words()
    weak = torch.cat([0.25 * x[:, -1:], 0.7 * random(600, 30, seed=4)], dim=1)
    split = split_rows(600)
    assert evaluate(x, y, split) == 1 and evaluate(weak, y, split) > 0.55
    assert controls.online_code(weak, y).bits > controls.online_code(x, y).bits + 50


def test_v_information_is_the_entropy_for_a_clear_label_and_none_for_noise():
    x, y, _ = words()
    split = split_rows(600)
    assert controls.v_information(x, y, split) == pytest.approx(1, abs=0.1)
    assert controls.v_information(random(600, 5, seed=6), y, split) < 0.05
    rare = [i % 8 == 0 for i in range(600)]
    told = torch.tensor(rare)[:, None].float()
    entropy = -(math.log2(1 / 8) / 8 + 7 * math.log2(7 / 8) / 8)
    assert controls.v_information(told, rare, split) == pytest.approx(entropy, abs=0.1)


def test_bad_input_is_named():
    x, y, types = words(n=40)
    with pytest.raises(ValueError, match="kind='lda' gives no probabilities"):
        controls.online_code(x, y, kind="lda")
    with pytest.raises(ValueError, match="must rise to 1"):
        controls.online_code(x, y, fractions=(0.5, 0.2, 1))
    with pytest.raises(ValueError, match="types has 39 entries"):
        controls.control_labels(types[:-1], y)
