"""Edge scores: time as a ratio to the passes that they cannot do without, and peak memory.

EAP is compared with two forwards and one backward, EAP-IG with two forwards and a forward and backward for each step:
Hugging Face alone, frozen weights, logits at all positions, eager attention. All edges of the model are scored.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psutil

PAIRS_OF_PROMPTS, TOKENS, STEPS = 8, 16, 5
# Ratios to the plain passes; megabytes above the loaded model.
LIMITS = {"eap": 1.5, "eap_ig": 1.4, "eap_memory_mb": 500}


def task_for(model):
    """Eight random pairs of prompts that differ in two tokens."""
    import torch

    from mi_course.objects import Task

    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(5, model.n_vocab, (PAIRS_OF_PROMPTS, TOKENS), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 4:6] = torch.randint(5, model.n_vocab, (PAIRS_OF_PROMPTS, 2), generator=generator)
    answers = [[1] * PAIRS_OF_PROMPTS, [2] * PAIRS_OF_PROMPTS]
    return Task("bench", clean.tolist(), answers[0], corrupted.tolist(), foils=answers[1])


def plain_passes(model, task, steps: int):
    """A function that runs two forwards, and `steps` times a forward and a backward to the input of block 0.

    steps = 0: two forwards and one backward, the first forward being the one that goes back.
    """
    import torch

    batches = [model.tokenize(prompts) for prompts in (task.prompts, task.corrupted)]
    embed = model.hf.get_input_embeddings()

    def forward(batch, grad: bool):
        with torch.set_grad_enabled(grad):
            x = embed(batch.ids).detach().requires_grad_(grad)
            options = dict(attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False)
            return x, model.hf(inputs_embeds=x, **options).logits[:, -1]

    def run():
        frozen = [p for p in model.hf.parameters() if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        forward(batches[1], False)
        if steps:
            forward(batches[0], False)
        for _ in range(max(steps, 1)):
            x, logits = forward(batches[0], True)
            torch.autograd.grad(task.metric_of(logits, model).sum(), x)
        for p in frozen:
            p.requires_grad_(True)

    return run


def measure(model, pairs: int) -> dict:
    """Medians over `pairs` alternating runs: ratio to the plain passes, seconds; peak memory in a fresh process."""
    from mi_course.locate import eap

    task = task_for(model)
    found = {}
    for name, steps, ours in [
        ("eap", 0, lambda: eap.eap(model, task)),
        ("eap_ig", STEPS, lambda: eap.eap_ig(model, task, steps=STEPS)),
    ]:
        plain = plain_passes(model, task, steps)
        plain(), ours()
        times = [(_timed(plain), _timed(ours)) for _ in range(pairs)]
        found[name] = round(statistics.median(ours / plain for plain, ours in times), 3)
        found[f"{name}_seconds"] = round(statistics.median(ours for _, ours in times), 3)
    return found | {"edges": len(eap.Graph(model)), "eap_memory_mb": peak_memory_mb(model.name)}


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


FRESH = """
import json, sys
import torch
torch.set_num_threads(1)
from mi_course.cli.bench import make_model
from mi_course.cli.benches.edges import peak_mb, task_for
from mi_course.locate import eap
model = make_model(sys.argv[1])
task = task_for(model)
task.measure(model)
with peak_mb() as peak:
    eap.eap(model, task)
    eap.eap_ig(model, task, steps=2)
print(json.dumps(peak))
"""


def peak_memory_mb(name: str) -> float:
    """Megabytes that EAP and EAP-IG of all edges need at most, above the loaded model, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", FRESH, name], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"measuring the memory of EAP failed: {done.stderr.strip().splitlines()[-1]}")
    return round(json.loads(done.stdout.splitlines()[-1])[0])


@contextmanager
def peak_mb():
    """Yields a list that holds, after the block, by how many megabytes this process's memory rose at most in it.

    Looked at every few milliseconds, since the highest value that the system keeps was reached while loading.
    """
    process, result, done = psutil.Process(), [], threading.Event()
    before = highest = process.memory_info().rss

    def watch():
        nonlocal highest
        while not done.wait(0.003):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield result
    finally:
        done.set()
        watcher.join()
        highest = max(highest, process.memory_info().rss)  # the watcher may not have had its turn on a busy machine
        result.append((highest - before) / 2**20)
