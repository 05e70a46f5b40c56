"""Every localizer on a random-weight Llama of about 160 million parameters: processor seconds and memory of each.

    python -m tests.scale.methods                       a table; a little over a minute of one busy core
    python -m tests.scale.methods --json FILE           the same as a file

Grouped keys and values, gated FFNs, RMSNorm, rotary positions: 12 layers x 12 heads (4 for keys and values), width 768,
36,000 tokens. Two prompts with their twins, at most 256 sites or edges for each method. Weights are random, so numbers
mean nothing here: what is asked is whether a method runs at this size, and what it costs.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import circuits
from mi_course.locate import (
    attention_mass,
    attribution_patching,
    backward_lens,
    causal,
    contrast,
    direct,
    eap,
    edges,
    erasure,
    feature_circuits,
    feature_graph,
    gradient,
    head_report,
    integrated_gradients,
    knowledge_neurons,
    language_neurons,
    layer_distance,
    magnitude,
    mediation,
    outliers,
    parameters,
    patchscopes,
    probe_controls,
    probe_sweep,
    projection,
    search,
    spans,
    token_lists,
    tracing,
    tuned_lens,
)  # fmt: skip
from mi_course.locate.acdc import acdc
from mi_course.locate.circuit import CircuitRunner
from mi_course.objects import Task
from mi_course.objects.sae import SAE
from mi_course.objects.transcoder import Transcoder
from mi_course.world.tokenizer import build_tokenizer

MOST = 256  # sites or edges


@dataclass
class Bench:
    """The model, a task of two pairs, and what methods share."""

    model: object
    task: Task
    documents: list[str]
    sites: dict[str, list[str]] = field(default_factory=dict)


def make(seed: int = 0) -> Bench:
    """The model with the world's tokenizer, and two short prompts with their twins."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                         num_key_value_heads=4, vocab_size=36_000, max_position_embeddings=256, bos_token_id=0,
                         eos_token_id=1, tie_word_embeddings=False)  # fmt: skip
    torch.manual_seed(seed)
    model = mi.wrap(LlamaForCausalLM(config).eval(), build_tokenizer(), name="llama-160m-shape")
    found = world.task("capitals", n=40)
    same = [i for i, prompt in enumerate(found.prompts) if "capital of" in prompt]
    task = found.subset(same[:2])
    bench = Bench(model, task, task.prompts + task.corrupted)
    last = model.n_layers - 1
    bench.sites = {
        "states": [f"x{layer}" for layer in range(0, model.n_layers, 3)],
        "heads": [f"L{layer}H{head}.z" for layer in (0, last // 2, last) for head in range(0, 12, 3)],
        "blocks": [f"{kind}{layer}" for kind in ("attn", "mlp") for layer in (0, last // 2, last)],
        "neurons": [f"L{last // 2}N{j}" for j in range(0, 3072, 96)],
        "queries": [f"L{last // 2}H{head}.{part}" for head in (0, 5) for part in "qk"],
    }
    bench.sites["all"] = [site for kind in ("states", "heads", "blocks", "neurons") for site in bench.sites[kind]]
    for name, site in (("s4", "x4"), ("s8", "x8")):
        model.saes[name] = SAE(768, 120, "topk", 16, site).eval().requires_grad_(False)
    return bench


def transcoders(bench: Bench) -> list[Transcoder]:
    return [Transcoder(768, 1536, layer, k=16).eval().requires_grad_(False) for layer in range(bench.model.n_layers)]


def some_edges(bench: Bench, n: int = 24) -> list[str]:
    """Edges of every kind from all over the graph."""
    names = eap.Graph(bench.model).edges
    return names[:: len(names) // n][:n]


def probe(b: Bench, run: Callable):
    """x, y and a split for probes: the states of all tokens of the documents, and whether a token came early."""
    x = torch.cat(list(torch.unbind(mi.record(b.model, b.documents, ["x6"])["x6"])))
    y = (torch.arange(len(x)) % 2).tolist()
    return run(x, y, probe_sweep.split_rows(len(x)))


def selectivity(b: Bench):
    return probe(b, lambda x, y, split: probe_controls.selectivity(x, y, [i % 9 for i in range(len(y))], split))


def keys_before_last(b: Bench):
    batch = b.model.tokenize(b.task.prompts)
    return spans.position_mask(batch, -1), spans.position_mask(batch, -2)


def pruned_metric(b: Bench):
    with causal.pruned(b.model, ["L3H5", "mlp7", "L2N117"]):
        return b.task.measure(b.model)


def faithfulness(b: Bench):
    run = CircuitRunner(b.model, b.task)
    scores = run.graph.matrix(eap.eap(b.model, b.task))
    return circuits.faithfulness_curve(run, scores, run.graph.allowed, shares=(0.01, 0.1, 0.5))


METHODS: dict[str, Callable[[Bench], object]] = {
    # magnitude
    "norms": lambda b: magnitude.activation_norms(b.model, b.task.prompts, b.sites["all"]),
    "firing frequency": lambda b: magnitude.firing_frequency(b.model, b.task.prompts, b.sites["neurons"]),
    "contrast": lambda b: contrast.contrast(b.model, b.task.prompts, b.task.corrupted, b.sites["all"]),
    "ReasonScore": lambda b: contrast.reason_score(b.model, b.task.prompts, causal.features(b.model, "s4"),
                                                       ["capital"]),
    "LAPE": lambda b: language_neurons.lape(b.model, {"a": b.task.prompts, "b": b.task.corrupted}),
    "weight outliers": lambda b: (outliers.neuron_norms(b.model), outliers.weight_kurtosis(b.model)),
    "activation outliers": lambda b: (outliers.super_weights(b.model, b.task.prompts),
                                      outliers.massive_activations(b.model, b.task.prompts),
                                      outliers.qk_concentration(b.model, b.task.prompts)),
    "attention mass": lambda b: attention_mass.previous_token(b.model, b.task.prompts),
    "copying": lambda b: attention_mass.copying_weights(b.model),
    "layer distance": lambda b: (layer_distance.block_influence(b.model, b.task.prompts),
                                 layer_distance.twin_distance(b.model, b.task)),
    # causal
    "patching": lambda b: causal.patch_each(b.model, b.task, b.sites["all"]),
    "patching of features": lambda b: causal.patch_each(b.model, b.task, causal.features(b.model, "s8")[:32]),
    "ablation, zero": lambda b: causal.ablate_each(b.model, b.task, b.sites["all"]),
    "ablation, mean": lambda b: causal.ablate_each(b.model, b.task, b.sites["heads"], "mean"),
    "Ships": lambda b: causal.ships(b.model, b.task, b.sites["heads"]),
    "knock-out": lambda b: causal.knock_out_sweep(b.model, b.task, *keys_before_last(b)),
    "pruning": pruned_metric,
    "causal tracing": lambda b: tracing.causal_trace(b.model, b.task, [(2, 3)] * 2, {"last": [-1, -1]}),
    "mediation": lambda b: mediation.mediation(b.model, b.task, ["L0H0.z", "mlp2"]),
    "path patching": lambda b: mediation.path_patching(b.model, b.task, ["L0H0.z", "L2H3.z"]),
    "greedy group": lambda b: search.greedy_group(b.model, b.task, b.sites["heads"], 2),
    "hierarchical search": lambda b: search.hierarchical_search(b.model, b.task, 1e9, neurons=False),
    # gradient
    "gradient norm": lambda b: gradient.gradient_norm(b.model, b.task, b.sites["all"]),
    "gradient x input": lambda b: gradient.gradient_times_input(b.model, b.task, b.sites["all"]),
    "integrated gradients": lambda b: integrated_gradients.integrated_gradients(b.model, b.task, b.sites["neurons"],
                                                                                steps=4),
    "token attributions": lambda b: integrated_gradients.token_attributions(b.model, b.task, steps=4),
    "knowledge neurons": lambda b: knowledge_neurons.knowledge_neurons(b.model, b.task.subset(1), steps=2),
    "attribution patching": lambda b: attribution_patching.attribution_patching(b.model, b.task, b.sites["all"]),
    "AtP*": lambda b: attribution_patching.attribution_patching(b.model, b.task, b.sites["queries"], qk_fix=True,
                                                                grad_drop=True),
    "RelP": lambda b: attribution_patching.attribution_patching(b.model, b.task, b.sites["all"], rule="relevance"),
    "parameter saliency": lambda b: parameters.parameter_saliency(b.model, b.task, ["L3H5", "L2N117", "mlp3"]),
    # probing
    "probe sweep": lambda b: probe_sweep.sweep(b.model, b.documents, b.sites["heads"] + b.sites["states"], [0, 1, 0, 1],
                                               probe_sweep.Split([0, 1], [2, 3])),
    "k-sparse probe": lambda b: probe(b, lambda x, y, split: probe_sweep.k_sparse(x, y, 4)),
    "selectivity": selectivity,
    "MDL": lambda b: probe(b, lambda x, y, split: probe_controls.online_code(x, y, fractions=(0.5, 1.0))),
    "erasure": lambda b: probe(b, lambda x, y, split: erasure.leace(x, y)),
    # vocabulary projection
    "logit lens": lambda b: projection.logit_lens(b.model, b.task.prompts),
    "tuned lens": lambda b: tuned_lens.train_tuned_lens(b.model, b.documents, steps=2, batch=16),
    "direct logit attribution": lambda b: direct.split_logit(b.model, b.task.prompts, b.task.targets, b.task.foils),
    "direct effects of neurons": lambda b: direct.direct_effects(b.model, b.task, b.sites["neurons"]),
    "token lists": lambda b: token_lists.top_tokens(b.model, torch.eye(768)[:MOST]),
    "Patchscopes": lambda b: patchscopes.patchscope(b.model, patchscopes.source_states(b.model, b.documents, 6), 6,
                                                    "the capital of", -1),
    "backward lens": lambda b: backward_lens.backward_lens(b.model, b.task),
    "layer contrast": lambda b: projection.layer_contrast(b.model, b.task.prompts),
    "top-k overlap": lambda b: projection.top_overlap(b.model, b.task.prompts),
    # circuits
    "exact edges": lambda b: edges.ablate_edges(b.model, b.task, some_edges(b)),
    "EAP": lambda b: eap.eap(b.model, b.task),
    "EAP-IG": lambda b: eap.eap_ig(b.model, b.task, steps=2),
    "EAP-IG, activations": lambda b: eap.eap_ig(b.model, b.task.subset(1), steps=1, path="activations"),
    "clean-corrupted EAP": lambda b: eap.clean_corrupted(b.model, b.task),
    "position-aware EAP": lambda b: eap.eap_spans(b.model, b.task, {"last": [-1, -1]}),
    "ACDC": lambda b: acdc(b.model, b.task, threshold=1e9),  # tries the edges into the logits, and drops them all
    "faithfulness curve": faithfulness,
    "feature effects": lambda b: feature_circuits.feature_effects(b.model, b.task, ["s4", "s8"]),
    "feature edges": lambda b: feature_circuits.feature_edges(b.model, b.task, "s4", ["s8F1", "s8.error"]),
    "attribution graph": lambda b: feature_graph.attribution_graph(b.model, transcoders(b), b.task.prompts[0],
                                                                   b.task.targets[0], max_features=64),
    "head reports": lambda b: head_report.head_reports(b.model, b.task.prompts[0], ["L3H5", "L11H0"]),
}  # fmt: skip


def measure(bench: Bench, name: str) -> dict[str, float]:
    """Run one method: its processor seconds, and by how many megabytes the memory of this process rose at most."""
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch():
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.process_time()  # of all threads of this process: what else the machine does falls out
    try:
        METHODS[name](bench)
    finally:
        done.set()
        watcher.join()
    return {"seconds": round(time.process_time() - started, 2), "peak_mb": round((highest - before) / 2**20)}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the measurements to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    bench = make()
    found = {}
    for name in METHODS:
        found[name] = measure(bench, name)
        print(f"{name:<26} {found[name]['seconds']:7.2f} s  {found[name]['peak_mb']:6} MB", flush=True)
    total = {"parameters": sum(p.numel() for p in bench.model.hf.parameters()), "methods": found,
             "seconds": round(sum(entry["seconds"] for entry in found.values()), 1)}  # fmt: skip
    print(f"{total['parameters']:,} parameters, {len(found)} methods, {total['seconds']} s")
    if args.json:
        with open(os.path.expanduser(args.json), "w", encoding="utf-8") as file:
            file.write(json.dumps(total, indent=1) + "\n")


if __name__ == "__main__":
    main()
