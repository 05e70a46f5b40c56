"""Each compiled model must really be the counter-example that it claims to be.

Interventions here are plain hooks on the GPT-2 modules, independent of mi_course.models; one test compares the two.
"""

import re
from contextlib import ExitStack, contextmanager

import pytest
import torch

import mi_course as mi
from mi_course.objects.task import Task
from mi_course.world import compiled


class Plain:
    """Just enough of a model wrapper for `Task`: right-aligned prompts of equal length."""

    def __init__(self, c):
        self.hf, self.tokenizer = c.model, c.tokenizer

    def ids(self, prompts):
        return torch.tensor(self.tokenizer(prompts).input_ids)

    def tokenize(self, prompts):
        class Batch:
            mask = torch.ones_like(self.ids(prompts))

        return Batch

    def token_id(self, word):
        (token,) = self.tokenizer(word, add_special_tokens=False).input_ids
        return token

    def last_logits(self, prompts, grad=False):
        with torch.set_grad_enabled(grad):
            return self.hf(self.ids(prompts)).logits[:, -1]


def _point(hf, site):
    """Module whose input holds the site, and the slice of the last axis: heads at c_proj, neurons at mlp.c_proj."""
    kind, layer, index = re.fullmatch(r"L(\d+)([HN])(\d+)|(?:mlp)(\d+)", site).group(2, 1, 3)
    if kind is None:
        return hf.transformer.h[int(site[3:])].mlp.c_proj, slice(None)
    block, i = hf.transformer.h[int(layer)], int(index)
    if kind == "N":
        return block.mlp.c_proj, slice(i, i + 1)
    d_head = hf.config.n_embd // hf.config.n_head
    return block.attn.c_proj, slice(i * d_head, (i + 1) * d_head)


def read(c, prompts, site):
    module, part = _point(c.model, site)
    seen = []
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0][..., part].detach().clone()))
    Plain(c).last_logits(prompts)
    handle.remove()
    return seen[0]


@contextmanager
def write(c, values):
    """values: site -> tensor that replaces the head's z or the neuron's activation."""

    def hook(part, value):
        def replace_part(module, args):
            x = args[0].clone()
            x[..., part] = value
            return (x,)

        return replace_part

    with ExitStack() as stack:
        for site, value in values.items():
            module, part = _point(c.model, site)
            stack.callback(module.register_forward_pre_hook(hook(part, value)).remove)
        yield


@torch.no_grad()
def effect(c, kind, sites, task=None):
    """Change of the mean metric: "zero", "mean", "noising" on the clean run, "denoising" on the corrupted run."""
    task, plain = task or c.task, Plain(c)
    on = "corrupted" if kind == "denoising" else "clean"
    source = task.corrupted if kind == "noising" else task.prompts
    values = {s: read(c, source, s) for s in sites}
    if kind == "zero":
        values = {s: torch.zeros_like(v) for s, v in values.items()}
    if kind == "mean":
        values = {s: v.mean(0, keepdim=True) for s, v in values.items()}
    base = task.measure(plain, on=on)
    with write(c, values):
        return (task.measure(plain, on=on) - base).mean().item()


@pytest.fixture(scope="module", params=compiled.ALL)
def c(request):
    return compiled.ALL[request.param]()


def test_it_does_the_task_and_the_twin_asks_for_the_foil(c):
    plain = Plain(c)
    for task in [c.task, *c.others.values()]:
        assert task.accuracy(plain) == 1.0
        twin = Task("twin", task.corrupted, targets=task.foils, foils=task.targets)
        assert twin.accuracy(plain) == 1.0
        task.validate(plain)


def test_expected_effects_are_exact(c):
    assert c.expected
    for entry, value in c.expected.items():
        kind, *sites = entry.split()
        assert effect(c, kind, sites) == pytest.approx(value, abs=2e-4), entry


def test_layer_norm_is_the_identity(c):
    states = {}
    handles = []
    for name, module in c.model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            handles.append(
                module.register_forward_hook(lambda m, args, out, name=name: states.update({name: (args[0], out)}))
            )
    Plain(c).last_logits(c.task.prompts)
    for handle in handles:
        handle.remove()
    assert len(states) == 2 * c.model.config.n_layer + 1
    for x, normed in states.values():
        assert torch.allclose(x, normed, rtol=0, atol=1e-6)


def test_building_is_deterministic_and_leaves_the_random_state_alone(c):
    state = torch.get_rng_state()
    again = compiled.ALL[c.name]()
    assert torch.equal(torch.get_rng_state(), state)
    assert again.task == c.task
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), c.model.parameters()))


def test_it_is_a_real_checkpoint(c, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    c.model.save_pretrained(tmp_path)
    c.tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor(tokenizer(c.task.prompts).input_ids)
    assert torch.equal(ids, Plain(c).ids(c.task.prompts))
    assert torch.equal(model(ids).logits, c.model(ids).logits)


def test_the_course_wrapper_agrees(c):
    model, plain = c.wrap(), Plain(c)
    assert torch.equal(c.task.measure(model), c.task.measure(plain))
    for entry, value in c.expected.items():
        kind, *sites = entry.split()
        if kind == "zero":
            with mi.intervene(model, mi.zero(sites)):
                change = c.task.measure(model).mean()
            assert (change - c.task.measure(model).mean()).item() == pytest.approx(value, abs=2e-4)


# ------------------------------------------------------------------------------------ what each one is there to show


def attention(c, layer, head, prompts):
    return c.model(Plain(c).ids(prompts), output_attentions=True).attentions[layer][:, head]


def test_induction_heads_have_the_two_patterns():
    c = compiled.induction()
    ids = Plain(c).ids(c.task.prompts)
    previous = attention(c, 0, 0, c.task.prompts)
    assert previous.diagonal(-1, 1, 2).min() > 0.999
    looked_at = ids.gather(1, attention(c, 1, 0, c.task.prompts)[:, -1].argmax(-1, keepdim=True)).squeeze(1)
    assert torch.equal(looked_at, c.task.target_ids(Plain(c)))  # the token after the earlier copy, not the copy
    norm = {s: read(c, c.task.prompts, s).norm(dim=-1).mean() for s in c.answer}
    assert all(read(c, c.task.prompts, s).norm(dim=-1).mean() >= 0.9 * max(norm.values()) for s in c.decoys)


def test_lookup_neurons_are_silent_on_other_subjects():
    c = compiled.lookup()
    for j, subject in enumerate(c.others):
        activity = {s: read(c, task.prompts, f"L0N{j}").sum().item() for s, task in c.others.items()}
        assert activity[subject] > 0 and sum(activity.values()) == activity[subject]
    assert effect(c, "zero", ["L0N0"], c.others["peru"]) == 0.0  # dormant: not "not involved", only not asked


def result_norm(c, site):
    """Mean over positions of the norm of what a head writes."""
    module, part = _point(c.model, site)
    return (read(c, c.task.prompts, site) @ module.weight[part]).norm(dim=-1).mean().item()


def test_cancelling_heads_lead_by_norm_and_trail_by_effect():
    c = compiled.cancelling()
    norms = {f"L{la}H{h}": result_norm(c, f"L{la}H{h}") for la in range(2) for h in range(3)}
    assert set(sorted(norms, key=norms.get)[-2:]) == set(c.decoys)
    assert min(norms[s] for s in c.decoys) > 5 * norms["L0H1"]


def test_saturated_softmax_hides_from_the_gradient_and_not_from_the_path():
    c = compiled.saturated()
    plain, task = Plain(c), c.task
    clean, corrupted = read(c, task.prompts, "L0H0"), read(c, task.corrupted, "L0H0")
    delta = clean - corrupted

    def gradient(z):
        z = z.clone().requires_grad_()
        with write(c, {"L0H0": z}):
            task.measure(plain, grad=True).sum().backward()
        return z.grad

    assert (gradient(clean) * clean).sum((1, 2)).abs().max() < 1e-5
    m = 200
    path = sum(gradient(corrupted + (k + 0.5) / m * delta) for k in range(m)) / m
    completeness = (path * delta).sum((1, 2))
    assert torch.allclose(completeness, torch.full_like(completeness, 20.0), atol=0.05)


@torch.no_grad()
def test_rotated_basis_fools_the_lens_and_not_a_learned_map():
    c = compiled.rotated_basis()
    out = c.model(Plain(c).ids(c.task.prompts), output_hidden_states=True)
    W_U, target = c.model.lm_head.weight.T, c.task.target_ids(Plain(c))
    decoy = torch.tensor([Plain(c).token_id(label["lens_reads"]) for label in c.task.labels])
    final = out.hidden_states[-1]
    for layer in (1, 2, 3):
        x = out.hidden_states[layer]
        lens = x[:, -1] @ W_U
        assert torch.equal(lens.argmax(-1), decoy) and not (lens.argmax(-1) == target).any()
        # tuned lens: least squares from x^l to x^L on half of the prompts, read on the other half
        learned = torch.linalg.pinv(x[:32, 1:].flatten(0, 1), rtol=1e-4) @ final[:32, 1:].flatten(0, 1)
        assert ((x[32:, -1] @ learned @ W_U).argmax(-1) == target[32:]).all()
    assert torch.equal((final[:, -1] @ W_U).argmax(-1), target)


@torch.no_grad()
def test_a_variable_is_decodable_and_unused():
    c = compiled.decodable()
    model = c.wrap()
    cache = mi.record(model, c.task.prompts, ["x1@-1"])
    for variable, (plus, minus) in {"mood": ("happy", "sad"), "volume": ("loud", "quiet")}.items():
        truth = torch.tensor([1.0 if label[variable] == plus else -1.0 for label in c.task.labels])
        probe = torch.linalg.pinv(cache["x1@-1"][::2], rtol=1e-4) @ truth[::2]
        assert ((cache["x1@-1"][1::2] @ probe).sign() == truth[1::2]).all()          # held-out items, no error
        assert minus in {label[variable] for label in c.task.labels}
    with mi.intervene(model, mi.project("x1", c.directions["mood"])):
        assert torch.allclose(model(c.task.prompts), cache.logits, atol=1e-5)
    with mi.intervene(model, mi.project("x1", c.directions["volume"])):
        assert c.task.measure(model).abs().max() < 1e-5


def test_polysemantic_neuron_spills_into_the_other_task():
    c = compiled.polysemantic()
    numbers = c.others["numbers"]
    assert effect(c, "zero", ["L0N0"], numbers) == pytest.approx(-10 / 3, abs=1e-4)
    assert effect(c, "zero", ["L0N1"], numbers) == 0.0


@torch.no_grad()
def test_total_effect_is_direct_plus_indirect():
    c = compiled.mediation()
    task, plain = c.task, Plain(c)
    total = effect(c, "noising", ["L0H0"])
    base = task.measure(plain).mean()
    with write(c, {"L0H0": read(c, task.corrupted, "L0H0"), "L1H0": read(c, task.prompts, "L1H0")}):
        direct = (task.measure(plain).mean() - base).item()
    with write(c, {"L0H0": read(c, task.corrupted, "L0H0")}):
        mediator = read(c, task.prompts, "L1H0")
    with write(c, {"L1H0": mediator}):
        indirect = (task.measure(plain).mean() - base).item()
    assert direct == pytest.approx(-3, abs=1e-4) and indirect == pytest.approx(-2, abs=1e-4)
    assert total == pytest.approx(direct + indirect, abs=1e-4)


def test_planted_features_are_what_they_say():
    planted = compiled.planted_features()
    x, codes = planted.sample(20000)
    f = planted.directions
    assert f.shape[0] > f.shape[1]
    assert torch.allclose(f.norm(dim=1), torch.ones(len(f)), atol=1e-5)
    assert torch.allclose(x, codes @ f, atol=1e-5)
    on = codes > 0
    assert not (on[:, planted.child] & ~on[:, planted.parent]).any()
    assert on[:, planted.parent].float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert on[:, planted.child].float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert on[:, 2:].float().mean().item() == pytest.approx(0.05, abs=0.003)
    overlap = (f @ f.T - torch.eye(len(f))).abs().max()
    assert overlap < 0.6  # superposed, yet told apart
    assert torch.equal(planted.sample(50, seed=3)[0], planted.sample(50, seed=3)[0])


def test_planted_features_refuse_impossible_settings():
    with pytest.raises(ValueError, match="n_features=2"):
        compiled.planted_features(n_features=2)
