"""Train a lab model from a seed: `python -m mi_course.world.train lab --out FOLDER`. Resumes after an interruption.

Four stages, each with its own warm-up and decay: text alone; then, with lessons (`world.lessons`), a short one that
begins the judging of claims, a long one with everything, and one at a low rate with more of what has to be exact.
Muon for the hidden matrices and AdamW for the rest learn several times more per token here than AdamW alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from . import corpus, generate
from .lessons import Lessons
from .tokenizer import build_tokenizer, vocabulary

MUON_LR, ADAM_LR, WEIGHT_DECAY = 1e-2, 3e-3, 0.01
PROMPT_WEIGHT = 0.2
LESSON_EVERY, LESSON_WEIGHT = 4, 1.0
WARMUP = 100
TEXT_ALONE = "text_alone"  # folder of the model as it was after the first stage


@dataclass(frozen=True)
class Stage:
    """A part of training with its own warm-up and decay. rows: rows in a step; lr: relative to the rates above."""

    tokens: float
    rows: int
    lr: float
    shares: dict
    lessons: bool

    @property
    def steps(self) -> int:
        return int(self.tokens) // (self.rows * corpus.ROW)


STAGES = (
    Stage(7e6, rows=42, lr=1.0, shares=generate.SHARES, lessons=False),
    Stage(2e6, rows=21, lr=0.7, shares=generate.CLAIM_SHARES, lessons=True),
    Stage(5e6, rows=21, lr=0.7, shares=generate.SECOND_SHARES, lessons=True),
    Stage(4e6, rows=21, lr=0.3, shares=generate.THIRD_SHARES, lessons=True),
)


def new_model(name: str, seed: int):
    """An untrained lab model: `lab` has GPT-2's architecture, `lab-llama` Llama's with grouped KV heads."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    v = vocabulary()
    common = dict(
        vocab_size=len(v),
        bos_token_id=v.index("<bos>"),
        eos_token_id=v.index("<eos>"),
        pad_token_id=v.index("<pad>"),
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    if name == "lab":
        # gelu_pytorch_tanh is GPT-2's gelu_new, computed in one kernel
        return GPT2LMHeadModel(
            GPT2Config(
                n_positions=corpus.ROW,
                n_embd=128,
                n_layer=6,
                n_head=4,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                activation_function="gelu_pytorch_tanh",
                **common,
            )
        )
    if name == "lab-llama":
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=128,
                intermediate_size=344,
                num_hidden_layers=6,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                max_position_embeddings=corpus.ROW,
                **common,
            )
        )
    raise ValueError(f"model {name!r} is unknown: use 'lab' or 'lab-llama'")


def optimizers(model, muon_lr=MUON_LR, adam_lr=ADAM_LR):
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and ("h." in n or "layers." in n)]
    ids = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(hidden, lr=muon_lr, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ]


def batch_loss(model, ids, document, position, answer):
    """Mean cross-entropy of the next token; documents packed into one row do not see each other.

    Words of a prompt are mostly random, and count `PROMPT_WEIGHT` of a word of an answer: otherwise a family whose
    documents end in a single word of answer (sentiment, verdicts) gets next to no gradient.
    """
    seen = (document[:, :, None] == document[:, None, :]) & (document[:, :, None] > 0)
    lowest = torch.finfo(torch.bfloat16).min
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen.tril(), lowest)[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits
    same = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] > 0)
    weight = torch.where(answer[:, 1:] > 0, 1.0, PROMPT_WEIGHT) * same
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (loss * weight.flatten()).sum() / weight.sum()


def train(name: str, out: Path, seed: int = 0, state: Path | None = None, stages: Sequence[Stage] = STAGES) -> dict:
    """Train `name` through the stages and save it to `out`. `state` keeps what a resumed run needs."""
    state = state or out.with_suffix(".state.pt")
    world = generate.World(0)
    model = new_model(name, seed)
    opts = optimizers(model)
    base = [g["lr"] for o in opts for g in o.param_groups]
    begins = [sum(s.steps for s in stages[:i]) for i in range(len(stages))]
    weights = [generate.domain_weights(world, s.shares) for s in stages]
    total = sum(s.steps for s in stages)
    lessons = None
    step = chunk = 0
    seen, dealt, seconds, log = Counter(), Counter(), 0.0, []
    if state.exists():
        saved = torch.load(state, weights_only=False)
        model.load_state_dict(saved["model"])
        for o, s in zip(opts, saved["optimizers"], strict=True):
            o.load_state_dict(s)
        step, chunk, seen, dealt, seconds, log = (
            saved[k] for k in ("step", "chunk", "seen", "dealt", "seconds", "log")
        )
        if saved["lessons"]:
            lessons = Lessons(model, build_tokenizer(), seed)
            lessons.load_state(saved["lessons"])
        torch.set_rng_state(saved["random"])
    bar = tqdm(total=total, initial=step, desc=name, mininterval=10)
    while step < total:
        started = time.time()
        number = max(i for i, begin in enumerate(begins) if begin <= step)
        stage = stages[number]
        data = corpus.make_chunk(world, chunk + 1000 * seed, weights[number])
        seen, dealt, chunk = seen + data.tokens, dealt + data.dealt, chunk + 1
        rows = [torch.from_numpy(a) for a in (data.ids, data.document, data.position, data.answer)]
        for i in range(0, len(data.ids) - stage.rows + 1, stage.rows):
            at = step - begins[number]
            if at >= stage.steps:
                break  # the next stage starts with a chunk of its own
            # in each stage: warm up, hold, decay linearly over the second half
            factor = min(1.0, (at + 1) / WARMUP, 2 * (stage.steps - at) / stage.steps) * stage.lr
            for g, lr in zip((g for o in opts for g in o.param_groups), base, strict=True):
                g["lr"] = lr * max(factor, 0.02)
            loss = batch_loss(model, *(a[i : i + stage.rows] for a in rows))
            loss.backward()
            if stage.lessons and step % LESSON_EVERY == 0:
                lessons = lessons or Lessons(model, build_tokenizer(), seed)
                with torch.autocast("cpu", torch.bfloat16):
                    lesson = LESSON_WEIGHT * lessons.loss()
                lesson.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for o in opts:
                o.step()
                o.zero_grad(set_to_none=True)
            step += 1
            bar.update()
            if step % 100 == 0:
                log.append((step, loss.item()))
                bar.set_postfix(loss=f"{loss.item():.3f}")
        seconds += time.time() - started
        partial = state.with_suffix(".tmp")
        record = {"step": step, "chunk": chunk, "seen": seen, "dealt": dealt, "seconds": seconds, "log": log}
        record |= {"lessons": lessons and lessons.state(), "random": torch.get_rng_state()}
        torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in opts], **record}, partial)
        partial.replace(state)  # an interruption never leaves half a file
        if step == stages[0].steps:
            save(model, out / TEXT_ALONE)  # what text alone gives, to compare with
    bar.close()
    save(model, out)
    record = {
        "seed": seed,
        "steps": step,
        "tokens_seen": int(sum(seen.values())),
        "seconds": round(seconds),
        "tokens_by_domain": dict(seen),
        "dials": {"|".join(map(str, k)): n for k, n in sorted(dealt.items(), key=str)},
        "loss": log,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1))
    return record


def save(model, out: Path) -> None:
    """A plain Hugging Face folder: config, safetensors, tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    build_tokenizer().save_pretrained(out)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["lab", "lab-llama"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    record = train(args.name, args.out, args.seed)
    print(f"{args.name}: {record['tokens_seen']:,} tokens in {record['seconds']} s -> {args.out}")


if __name__ == "__main__":
    main()
