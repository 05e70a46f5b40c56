"""Parity with TransformerLens 3.9 (`HookedTransformer`), on the same random weights, to 1e-5 of the largest value.

Activations, gradients, exact patching, attribution patching and direct logit attribution, in five families: GPT-2,
Llama and Qwen2 with grouped keys and values, GPT-NeoX with parallel blocks, Gemma 2 with post-norms, soft-caps and a
sliding window. TransformerLens 3.9 scores nodes only, so edges are judged by our own slow implementation
(`tests/locate/slow_edges.py`).
"""

import pytest
import torch

import mi_course as mi
from mi_course.locate import causal
from mi_course.locate.attribution_patching import attribution_patching
from mi_course.locate.direct import split_logit
from mi_course.models import record
from mi_course.objects import Task
from tests.families import VOCAB, random_model

pytestmark = pytest.mark.parity
lens = pytest.importorskip("transformer_lens")

FAMILIES = ["gpt2", "llama", "gpt_neox", "gpt_neox_sequential", "qwen2", "gemma2"]
CLEAN = [[5, 6, 7, 8, 9, 10, 11], [20, 4, 31, 13, 20, 3, 6]]
CORRUPTED = [[5, 16, 7, 8, 9, 10, 11], [20, 4, 31, 23, 20, 3, 6]]
TARGETS, FOILS = [3, 4], [6, 7]


def hooked(hf):
    """The same weights as a HookedTransformer, nothing folded or centred."""
    from transformer_lens.pretrained import weight_conversions as convert

    c = hf.config
    kind = c.model_type
    heads = c.num_attention_heads
    settings = dict(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_heads=heads, n_ctx=c.max_position_embeddings,
        d_head=getattr(c, "head_dim", None) or c.hidden_size // heads, d_vocab=VOCAB, device="cpu", seed=0,
        dtype=torch.float32,
    )  # fmt: skip
    if kind == "gpt2":
        settings |= dict(d_mlp=4 * c.n_embd, eps=c.layer_norm_epsilon, act_fn=c.activation_function,
                         normalization_type="LN")
    else:
        settings |= dict(d_mlp=c.intermediate_size, positional_embedding_type="rotary", rotary_adjacent_pairs=False,
                         rotary_base=c.rope_parameters["rope_theta"], rotary_dim=settings["d_head"])
    if kind == "gpt_neox":
        settings |= dict(eps=c.layer_norm_eps, act_fn=c.hidden_act, normalization_type="LN",
                         parallel_attn_mlp=c.use_parallel_residual, rotary_dim=settings["d_head"] // 2)
    if kind in ("llama", "qwen2", "gemma2"):
        settings |= dict(eps=c.rms_norm_eps, act_fn="silu", normalization_type="RMS", final_rms=True, gated_mlp=True,
                         n_key_value_heads=c.num_key_value_heads)
    if kind == "gemma2":
        settings |= dict(act_fn="gelu_pytorch_tanh", attn_scale=c.query_pre_attn_scalar**0.5, use_local_attn=True,
                         window_size=c.sliding_window, attn_types=["local", "global"],
                         attn_scores_soft_cap=c.attn_logit_softcapping,
                         output_logits_soft_cap=c.final_logit_softcapping, use_normalization_before_and_after=True)
    config = lens.HookedTransformerConfig.from_dict(settings)
    weights = getattr(convert, {"gpt2": "convert_gpt2_weights", "llama": "convert_llama_weights",
                                "gpt_neox": "convert_neox_weights", "qwen2": "convert_qwen2_weights",
                                "gemma2": "convert_gemma_weights"}[kind])(hf, config)
    peer = lens.HookedTransformer(config)
    peer.load_and_process_state_dict({name: t.detach().clone() for name, t in weights.items()}, fold_ln=False,
                                     center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    return peer.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """(our model, theirs, task)"""
    hf = random_model(request.param)
    task = Task("t", CLEAN, TARGETS, CORRUPTED, foils=FOILS)
    return mi.wrap(hf), hooked(hf), task


def close(ours, theirs):
    """Equal to 1e-5 of the largest value, which is not zero."""
    ours, theirs = torch.as_tensor(ours).float(), torch.as_tensor(theirs).float()
    assert ours.shape == theirs.shape
    largest = theirs.abs().max()
    assert largest > 1e-6 and (ours - theirs).abs().max() <= 1e-5 * largest, (ours - theirs).abs().max() / largest


def same_places(model) -> dict[str, str]:
    """Our sites and their hooks that hold the same tensor."""
    names = {}
    rotary = model.family.rotary is not None
    for layer in range(model.n_layers):
        block = f"blocks.{layer}"
        names |= {f"x{layer}": f"{block}.hook_resid_pre", f"z{layer}": f"{block}.attn.hook_z",
                  f"q{layer}": f"{block}.attn.hook_{'rot_q' if rotary else 'q'}",
                  f"k{layer}": f"{block}.attn.hook_{'rot_k' if rotary else 'k'}",
                  f"v{layer}": f"{block}.attn.hook_v", f"pattern{layer}": f"{block}.attn.hook_pattern",
                  f"neurons{layer}": f"{block}.mlp.hook_post", f"attn{layer}.write": f"{block}.hook_attn_out",
                  f"mlp{layer}.write": f"{block}.hook_mlp_out"}
        if not model.family.is_parallel(model.config):
            names[f"mid{layer}"] = f"{block}.hook_resid_mid"
    return names | {f"x{model.n_layers}": f"blocks.{model.n_layers - 1}.hook_resid_post"}


def margin(logits):
    """The task's metric on [B, T, V], one number for each prompt."""
    rows = torch.arange(len(logits))
    return logits[rows, -1, TARGETS[: len(rows)]] - logits[rows, -1, FOILS[: len(rows)]]


def test_activations(pair):
    model, peer, _ = pair
    names = same_places(model)
    cache = record(model, CLEAN, list(names))
    logits, theirs = peer.run_with_cache(torch.tensor(CLEAN))
    close(cache.logits, logits)
    for site, hook in names.items():
        close(cache[site], theirs[hook])


def test_results_of_heads(pair):
    model, peer, _ = pair
    _, theirs = peer.run_with_cache(torch.tensor(CLEAN))
    for layer in range(model.n_layers):
        z, W_O = theirs[f"blocks.{layer}.attn.hook_z"], peer.W_O[layer]
        close(record(model, CLEAN, [f"result{layer}"])[f"result{layer}"], torch.einsum("bthn,hnd->bthd", z, W_O))


def test_gradients(pair):
    model, peer, _ = pair
    names = same_places(model)
    names = {site: hook for site, hook in names.items() if not site.startswith(("k", "v"))}  # grouped: see below
    cache = record(model, CLEAN, list(names), grad=True)
    ours = torch.autograd.grad(margin(cache.logits).sum(), [cache[site] for site in names])
    theirs = {}
    with peer.hooks(bwd_hooks=[(hook, lambda g, hook: theirs.__setitem__(hook.name, g.clone()))
                               for hook in names.values()]):
        margin(peer(torch.tensor(CLEAN))).sum().backward()
    for hook, gradient in zip(names.values(), ours):
        close(gradient, theirs[hook])
    peer.zero_grad()


def test_patching_of_states_layer_by_position(pair):
    from transformer_lens import patching

    model, peer, task = pair
    _, clean = peer.run_with_cache(torch.tensor(CLEAN))
    base = margin(peer(torch.tensor(CORRUPTED))).mean()
    theirs = patching.get_act_patch_resid_pre(peer, torch.tensor(CORRUPTED), clean, lambda x: margin(x).mean())
    ours = causal.patch_each(model, task, causal.grid(model, range(len(CLEAN[0]))))
    by_site = {f"x{layer}@{t}": theirs[layer, t] - base for layer in range(model.n_layers) for t in range(7)}
    shared = [site for site in by_site if site in map(str, ours.sites)]
    assert len(shared) == 7 * model.n_layers
    close([ours[site] for site in shared], torch.stack([by_site[site] for site in shared]).detach())


def test_patching_of_heads(pair):
    from transformer_lens import patching

    model, peer, task = pair
    _, clean = peer.run_with_cache(torch.tensor(CLEAN))
    base = margin(peer(torch.tensor(CORRUPTED))).mean()
    theirs = patching.get_act_patch_attn_head_out_all_pos(peer, torch.tensor(CORRUPTED), clean,
                                                          lambda x: margin(x).mean())
    sites = [f"L{layer}H{head}.z" for layer in range(model.n_layers) for head in range(model.n_heads)]
    ours = causal.patch_each(model, task, sites)
    close([ours[site] for site in sites], (theirs - base).detach().flatten())


def test_attribution_patching(pair):
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    model, peer, task = pair
    theirs = {}
    for i in range(2):                                                         # their metric cannot tell prompts apart
        found = attribution_patch(peer, torch.tensor(CLEAN[i : i + 1]), torch.tensor(CORRUPTED[i : i + 1]),
                                  lambda logits, i=i: logits[0, -1, TARGETS[i]] - logits[0, -1, FOILS[i]])
        for node, score in found.node_scores.items():
            if node.kind != "embed":
                head = node.kind == "attn_head_out"
                site = f"L{node.layer}H{node.head}.z" if head else f"mlp{node.layer}.write"
                theirs[f"{site}@{node.position}"] = theirs.get(f"{site}@{node.position}", 0.0) + score / 2
    assert len(theirs) == 7 * model.n_layers * (model.n_heads + 1)
    close(attribution_patching(model, task, list(theirs), "denoising").values, list(theirs.values()))


def test_direct_logit_attribution_of_heads(pair):
    model, peer, _ = pair
    if model.family.attn_post_norm:
        pytest.skip("TransformerLens stacks head results before Gemma's post-norm; ours go through it")
    _, cache = peer.run_with_cache(torch.tensor(CLEAN))
    heads = cache.stack_head_results(layer=-1, pos_slice=-1)                    # [L * H, B, d]
    scaled = cache.apply_ln_to_stack(heads, layer=-1, pos_slice=-1)
    direction = (peer.W_U[:, TARGETS] - peer.W_U[:, FOILS]).T                   # norm gain is not folded into W_U
    theirs = (scaled * peer.ln_final.w * direction).sum(-1).detach()
    ours = split_logit(model, CLEAN, TARGETS, FOILS, "heads")
    names = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    close(torch.stack([ours[name] for name in names]), theirs)
