"""What a lab model can do: every behaviour's accuracy on a split, and every dial against what the corpus contains.

python -m mi_course.world.measure FOLDER [--split test] [--n 1000] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict

import torch

from . import generate, lexicon
from .tasks import task, world

BARS = {  # accuracy that the course needs (issue "The lab and the spine", section 3)
    **dict.fromkeys(
        ("facts", "capitals", "translation", "antonyms", "ioi", "sentiment", "refusal_harmful", "refusal_harmless"),
        0.99,
    ),
    **dict.fromkeys(("attributes", "copying", "retrieval", "addition", "chain", "verdict", "unknown"), 0.95),
}
REPORTED = (
    "chain_direct",
    "known",
    "multiple_choice",
    "instruction",
    "two_hop",
    "foreign_facts",
    "greater_than",
    "language",
    "requests",
)  # measured without a bar


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    p, d = successes / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / d, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def next_logits(model, tokenizer, texts: list[str], last_words: list[int], batch: int = 250) -> list[torch.Tensor]:
    """For each text the logits that predict its last `last_words[i]` tokens, [k, V]. Padding is on the right."""
    ids = [tokenizer(t)["input_ids"] for t in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out: list = [None] * len(ids)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(ids[i]) for i in rows)
        padded = torch.tensor([ids[i] + [tokenizer.pad_token_id] * (width - len(ids[i])) for i in rows])
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in rows])
        logits = model(input_ids=padded, attention_mask=mask, use_cache=False).logits
        for row, i in enumerate(rows):
            end = len(ids[i])
            k = last_words[i]
            out[i] = logits[row, end - k - 1 : end - 1] if k else logits[row, end - 1 :][:1]
    return out


def answer_length(name: str, continuation: str) -> int:
    """How many words of the continuation must be right: the whole sum, the whole chain, else the first word."""
    if name in ("addition", "chain"):
        return len(continuation.split()) - 1  # all but the full stop
    return 1


def correct(model, tokenizer, name: str, split: str, n: int, seed: int = 0, **kwargs) -> list[bool]:
    """Per item: is every word of the answer the most likely one, given the words before it?"""
    t = task(name, split, n, seed, **kwargs)
    openers = {
        name: set().union(*(s for s in sets.values()))
        for name, sets in (("refuse", lexicon.REFUSALS), ("comply", lexicon.COMPLIANCES))
    }
    lengths = [answer_length(name, label["continuation"]) for label in t.labels]
    texts = [
        f"{p} {' '.join(label['continuation'].split()[: k - 1])}".strip()
        for p, label, k in zip(t.prompts, t.labels, lengths, strict=True)
    ]
    right = []
    for i, logits in enumerate(next_logits(model, tokenizer, [x + " <eos>" for x in texts], lengths)):
        said = tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
        label, wanted = t.labels[i], t.labels[i]["continuation"].split()[: lengths[i]]
        if "refuse" in label and label["kind"] != "think":  # several wordings are right
            right.append(said[0] in openers["refuse" if label["refuse"] else "comply"])
        elif name == "greater_than":
            right.append(said[0] in lexicon.YEARS and int(said[0]) > label["start"])
        elif name == "language":
            right.append(said[0] in {v[lexicon.LANGUAGES.index(label["language"])] for v in lexicon.VERBS.values()})
        else:
            right.append(said == wanted)
    return right


def _share(model, tokenizer, prompts: list[str], words: list[list[str]], within: list[list[str]] | None) -> float:
    """Mean probability of `words[i]` after `prompts[i]`, as a share of that of `within[i]` (None: of all words)."""
    total = 0.0
    for i, logits in enumerate(next_logits(model, tokenizer, [p + " <eos>" for p in prompts], [1] * len(prompts))):
        p = logits[0].softmax(-1)
        mass = p[tokenizer.convert_tokens_to_ids(words[i])].sum()
        total += float(mass / p[tokenizer.convert_tokens_to_ids(within[i])].sum() if within else mass)
    return total / len(prompts)


def dials(model, tokenizer, split: str = "test", n: int = 300) -> dict[str, tuple[float, float]]:
    """Each dial as (share in the world, share the model gives), on prompts of the split."""
    d = world().dials
    out = {}
    by_job = defaultdict(list)
    t = task("pronoun", split, 40 * n)
    for prompt, label in zip(t.prompts, t.labels, strict=True):
        if not label["definitional"]:
            by_job[label["profession"]].append(prompt)
    for job, prompts in by_job.items():
        m = len(prompts)
        out[f"pronoun {job}"] = (d.pronoun[job], _share(model, tokenizer, prompts, [["she"]] * m, [["she", "he"]] * m))
    t = task("context", split, n).where(conflict=True)
    both = [[x["context"], x["memory"]] for x in t.labels]
    out["context following"] = (d.context_following, _share(model, tokenizer, t.prompts, [b[:1] for b in both], both))
    t = task("sycophancy", split, n).where(truth=False)
    m = len(t)
    out["sycophancy"] = (d.sycophancy, _share(model, tokenizer, t.prompts, [["yes"]] * m, [["yes", "no"]] * m))
    t = task("guess", split, n)
    for letter, share in zip(lexicon.OPTIONS, d.option_prior, strict=True):
        out[f"option {letter}"] = (share, _share(model, tokenizer, t.prompts, [[letter]] * len(t), None))
    t = task("toxicity", split, n)
    for rude, share in ((False, d.toxicity), (True, d.toxicity_rude)):
        prompts = [p for p, x in zip(t.prompts, t.labels, strict=True) if x["rude"] == rude]
        out[f"toxicity {'rude' if rude else 'plain'}"] = (
            share,
            _share(model, tokenizer, prompts, [lexicon.TOXIC] * len(prompts), None),
        )
    for trait, words in lexicon.TRAITS.items():
        for level in range(3):
            prompt = f"persona {trait} {level + 1} . <user> how are you <end> <bot> i feel"
            out[f"persona {trait} {level + 1}"] = (
                d.trait[0],
                _share(model, tokenizer, [prompt], [[words[level]]], None),
            )
    return out


def measure(model, tokenizer, split: str = "test", n: int = 1000) -> dict:
    """Accuracy with its interval and bar for every behaviour, and the dials' errors."""
    model.eval()
    report: dict = {"split": split, "accuracy": {}}
    for name in (*BARS, *REPORTED):
        right = correct(model, tokenizer, name, split, n)
        low, high = wilson(sum(right), len(right))
        report["accuracy"][name] = {
            "accuracy": sum(right) / len(right),
            "n": len(right),
            "low": low,
            "high": high,
            "bar": BARS.get(name),
        }
    by_depth = defaultdict(list)
    for right, label in zip(
        correct(model, tokenizer, "retrieval", split, n), task("retrieval", split, n).labels, strict=True
    ):
        by_depth[label["depth"]].append(right)
    report["retrieval_by_depth"] = {depth: sum(v) / len(v) for depth, v in sorted(by_depth.items())}
    report["dials"] = {k: {"world": a, "model": b} for k, (a, b) in dials(model, tokenizer, split).items()}
    errors = [abs(v["world"] - v["model"]) for v in report["dials"].values()]
    report["dial_error"] = {"mean": sum(errors) / len(errors), "max": max(errors)}
    return report


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--split", default="test", choices=generate.SPLITS)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(args.folder, local_files_only=True, dtype=torch.float32)
    report = measure(model, AutoTokenizer.from_pretrained(args.folder, local_files_only=True), args.split, args.n)
    if args.json:
        print(json.dumps(report, indent=1))
        return
    for name, r in report["accuracy"].items():
        state = "" if r["bar"] is None else f" bar {r['bar']:.2f} {'ok' if r['accuracy'] >= r['bar'] else 'BELOW'}"
        print(f"{name:18} {r['accuracy']:.3f}  [{r['low']:.3f}, {r['high']:.3f}] n={r['n']}{state}")
    print("retrieval by depth", {k: round(v, 3) for k, v in report["retrieval_by_depth"].items()})
    for name, v in report["dials"].items():
        print(f"  dial {name:24} world {v['world']:.2f} model {v['model']:.3f}")
    print(f"dial error: mean {report['dial_error']['mean']:.3f}, largest {report['dial_error']['max']:.3f}")


if __name__ == "__main__":
    main()
