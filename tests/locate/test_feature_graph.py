"""Attribution graphs: contributions add up in every family, the frozen model is linear, pruning, planted features."""

import pytest
import torch

import mi_course as mi
from mi_course.locate.feature_graph import FeatureGraph, FrozenRun, attribution_graph
from mi_course.models import record
from mi_course.models import weights as parts
from mi_course.objects.transcoder import Transcoder, read_site
from mi_course.world import compiled
from tests.families import FAMILIES, random_model

PROMPT = [5, 6, 7, 8, 9, 6]
CASES = ("gpt2", "gpt_neox", "gemma2", "llama")


def random_transcoders(model, m=12, k=3):
    made = []
    for layer in range(model.n_layers):
        t = Transcoder(model.d_model, m, layer, k=k, seed=layer).eval().requires_grad_(False)
        t.b_enc.normal_(std=0.3, generator=torch.Generator().manual_seed(layer))
        t.b_dec.normal_(std=0.3, generator=torch.Generator().manual_seed(layer))
        made.append(t)
    return made


@pytest.fixture(scope="module")
def graphs():
    """family -> (model, transcoders, graph)"""
    made = {}
    for family in FAMILIES:
        model = mi.wrap(random_model(family))
        transcoders = random_transcoders(model)
        made[family] = model, transcoders, attribution_graph(model, transcoders, PROMPT, 11, 12, chunk=7)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_sum_to_what_the_model_really_computed(family, graphs):
    model, transcoders, graph = graphs[family]
    for node, value, row in zip(graph.nodes, graph.values, graph.edges):
        name, _, t = node.partition("@")
        if graph.of("feature")[graph.nodes.index(node)]:
            layer, j = map(int, name.removeprefix("mlp").split("F"))
            real = transcoders[layer].features(model, [PROMPT])[0, int(t), j]
            assert value == pytest.approx(real.item(), abs=1e-5)
            assert row.sum().item() == pytest.approx(real.item(), abs=2e-4 * row.abs().sum().item())
    x = record(model, [PROMPT], [f"x{model.n_layers}"])[f"x{model.n_layers}"][0, -1]
    u = parts.unembedding(model)
    logits = u.norm(x) @ u.W_U + u.b_U                                         # before any soft-cap
    assert graph.edges[-1].sum().item() == pytest.approx((logits[11] - logits[12]).item(), abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_count_and_senders_stand_before_receivers(family, graphs):
    model, transcoders, graph = graphs[family]
    active = sum(int((t.features(model, [PROMPT]) > 0).sum()) for t in transcoders)
    assert len(graph.nodes) == len(set(graph.nodes)) == 2 + 6 + 6 * model.n_layers + active
    assert not graph.edges.triu().any() and not graph.edges[graph.of("error") | graph.of("embed")].any()


def frozen_forward(model, transcoders, cache, inputs):
    """The frozen model, forwards: an implementation of its own. inputs: x0 and every layer's features and errors.

    Returns the pre-activations of all features [L, T, m] and x^L.
    """
    x, z = inputs["embed"], []

    def attention(x, layer):
        w, norm = parts.attention(model, layer), parts.attn_norm(model, layer)
        read = norm.centre(x) * norm.scale(cache[f"x{layer}"][0]) * norm.gain + norm.bias
        out = w.b_O.clone().expand(x.shape)
        for head in range(model.n_heads):
            kv = w.kv_head(head)
            v = read @ w.W_V[:, kv] + w.b_V[kv]
            out = out + cache[f"pattern{layer}"][0, head] @ v @ w.W_O[head]
        post = parts.post_norm(model, layer, "attn")
        return out if post is None else post.centre(out) * post.scale(cache[f"attn{layer}"][0]) * post.gain + post.bias

    for layer, t in enumerate(transcoders):
        written = attention(x, layer)
        read = x if model.family.is_parallel(model.config) else x + written
        norm = parts.mlp_norm(model, layer)
        normed = norm.centre(read) * norm.scale(cache[read_site(model, layer)][0]) * norm.gain + norm.bias
        z.append(t.pre(normed))
        x = x + written + t.decode(inputs["features"][layer]) + inputs["errors"][layer]
    return torch.stack(z), x


@pytest.mark.parametrize("family", CASES)
def test_an_edge_is_what_moving_its_sender_does_in_a_frozen_forward_pass(family, graphs):
    model, transcoders, graph = graphs[family]
    run = FrozenRun(model, transcoders, PROMPT)
    inputs = {"embed": run.cache["x0"][0], "features": run.activations, "errors": run.errors(run.features)}
    base, x = frozen_forward(model, transcoders, run.cache, inputs)
    assert torch.allclose(x, run.cache[f"x{model.n_layers}"][0], atol=1e-3)    # unchanged, it is the real run
    t, j = (int(i[1]) for i in run.features[0])
    features = [a.clone() for a in run.activations]
    features[0][t, j] *= 3                                                     # moved by twice its value
    moved, _ = frozen_forward(model, transcoders, run.cache, inputs | {"features": features})
    t2, j2 = run.features[1]
    by_edge = torch.tensor([2 * graph[f"mlp0F{j}@{t}->mlp1F{b}@{a}"] for a, b in zip(t2.tolist(), j2.tolist())])
    assert by_edge.abs().max() > 1e-2                                          # something does move
    assert torch.allclose((moved - base)[1, t2, j2], by_edge, atol=1e-3)


@pytest.mark.parametrize("family", CASES)
def test_few_features_leave_the_rest_to_the_errors(family, graphs):
    model, transcoders, graph = graphs[family]
    small = attribution_graph(model, transcoders, PROMPT, 11, 12, max_features=5)
    assert small.of("feature").sum() == 5
    for node, row in zip(small.nodes, small.edges):
        if small.of("feature")[small.nodes.index(node)] or node == "logits":
            assert row.sum().item() == pytest.approx(graph.edges[graph.nodes.index(node)].sum().item(), abs=1e-3)
    effects = graph.total_effects()
    features = [node for i, node in enumerate(graph.nodes) if graph.of("feature")[i]]
    largest = sorted(features, key=lambda node: -abs(effects[node]))[:5]       # found without the matrix
    assert set(largest) == {node for i, node in enumerate(small.nodes) if small.of("feature")[i]}
    assert small.replacement() < graph.replacement() and small.completeness() < graph.completeness()


def by_hand():
    """embed -> a -> b -> logits, beside an error and a bias."""
    nodes = ["bias", "embed@0", "mlp0F1@0", "mlp0.error@0", "mlp1F2@0", "mlp1.error@0", "logits"]
    edges = torch.zeros(7, 7)
    edges[2, :2] = torch.tensor([9.0, 2.0])
    edges[4, :4] = torch.tensor([0.0, 1.0, 3.0, -4.0])
    edges[6, :6] = torch.tensor([0.0, 0.0, 0.5, 0.0, -1.5, 2.0])
    return FeatureGraph(nodes, edges, torch.tensor([1.0, 1, 11.0, 1, 2.0, 1, 1.0]), ["a"])


def test_numbers_of_a_graph_made_by_hand():
    graph = by_hand()
    # shares: b reads embed 1/8, a 3/8, error 1/2; logits read a 1/8, b 3/8, error 1/2
    b = 3 / 8
    a = 1 / 8 + b * 3 / 8
    embed, error = b / 8 + a, b / 2 + 1 / 2
    assert graph.influence().tolist() == pytest.approx([0, embed, a, b / 2, b, 1 / 2, 0])
    assert graph.replacement() == pytest.approx(embed / (embed + error))
    assert graph.completeness() == pytest.approx((a * 1 + b / 2 + 1 / 2) / (a + b + 1))
    effects = graph.total_effects()
    assert effects["mlp1F2@0"] == pytest.approx(1.5)                           # removing it raises the output
    assert effects["mlp0F1@0"] == pytest.approx(-(0.5 - 3 / 2 * 1.5))          # directly, and through b
    assert effects["embed@0"] == pytest.approx(1.5 / 2 - 2 / 11 * (0.5 - 3 / 2 * 1.5))
    assert effects.sign == "ablation"
    assert graph.top_edges(1) == [("mlp0.error@0->mlp1F2@0", -4.0)]
    assert graph["mlp0F1@0->logits"] == 0.5


def test_pruning_keeps_the_most_influential_and_drops_what_dangles():
    graph = by_hand()
    small = graph.prune(nodes=0.8, edges=1.0)
    assert "mlp0.error@0" not in small.nodes and {"bias", "embed@0", "logits", "mlp1.error@0"} <= set(small.nodes)
    whole = graph.prune(1.0, 1.0)
    assert whole.nodes == graph.nodes and torch.equal(whole.edges, graph.edges)
    tight = graph.prune(nodes=0.3, edges=0.9)
    assert [node for node in tight.nodes if "mlp" in node] == ["mlp1.error@0"]
    with pytest.raises(ValueError, match="must lie in"):
        graph.prune(nodes=0)


def test_bad_input_is_named(graphs):
    model, transcoders, _ = graphs["gpt2"]
    with pytest.raises(ValueError, match="one for each of the 3 layers"):
        attribution_graph(model, transcoders[:2], PROMPT, 11)
    with pytest.raises(TypeError, match="neither a text nor a list of token ids"):
        attribution_graph(model, transcoders, [PROMPT, PROMPT], 11)


def test_without_a_foil_the_output_is_the_logit_above_the_mean(graphs):
    model, transcoders, _ = graphs["gpt2"]
    graph = attribution_graph(model, transcoders, PROMPT, 11)
    logits = model([PROMPT])[0, -1]
    assert graph.edges[-1].sum().item() == pytest.approx((logits[11] - logits.mean()).item(), abs=1e-3)


def test_error_nodes_carry_everything_when_transcoders_write_nothing(graphs):
    model, transcoders, _ = graphs["llama"]
    silent = random_transcoders(model)
    for t in silent:
        t.W_dec.zero_(), t.b_dec.zero_()
    graph = attribution_graph(model, silent, PROMPT, 11, 12)
    features = graph.of("feature")
    assert not graph.edges[:, features].any() and graph.edges[-1, graph.of("error")].abs().max() > 0


def exact_transcoders(model):
    """The FFN itself as a transcoder: a ReLU network with its neurons as features."""
    made = []
    for layer in range(model.n_layers):
        w = parts.ffn(model, layer)
        t = Transcoder(model.d_model, w.W_in.shape[1], layer, "relu").eval().requires_grad_(False)
        t.load_state_dict({"W_enc": w.W_in, "b_enc": w.b_in, "W_dec": w.W_out, "b_dec": w.b_out})
        made.append(t)
    return made


def test_planted_fact_neuron_is_the_feature_that_the_graph_finds():
    made = compiled.lookup()
    model = made.wrap()
    transcoders = exact_transcoders(model)
    prompt, target = made.task.prompts[1], made.task.targets[1]                # italy, rome: neuron 1 of layer 0
    graph = attribution_graph(model, transcoders, prompt, target, made.task.foils[1])
    assert graph.replacement() == pytest.approx(1, abs=1e-3)                   # exact transcoders leave no error
    effects = graph.total_effects()
    features = [node for node in effects.sites if "F" in node]
    best = max(features, key=lambda node: abs(effects[node]))
    assert best == f"mlp0F1@{graph.tokens.index('italy')}"
    with transcoders[0].ablate(model, [1]).on(model):
        after = made.task.subset([1]).measure(model).item()
    before = made.task.subset([1]).measure(model).item()
    assert effects[best] == pytest.approx(after - before, rel=0.05) and after - before < -1
    decoys = [node for node in features if node.startswith(("mlp0F6", "mlp0F7"))]
    assert decoys and all(abs(effects[node]) < 1e-3 for node in decoys)        # active, and nobody reads them
    small = graph.prune(0.8, 0.98)
    assert best in small.nodes and not set(decoys) & set(small.nodes)
    assert max(graph.top_edges(3), key=lambda edge: edge[1])[0] == f"{best}->logits"
