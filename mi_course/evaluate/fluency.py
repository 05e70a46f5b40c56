"""Is what a steered model writes still language? Its loss under the unsteered model, beside how much it repeats.

Loss alone is fooled: text that repeats one word is likely under any model. Repetition alone is fooled, too: a random
word salad repeats nothing. And a steer that does what it should says things that the unsteered model finds unlikely,
mostly in the first word of the answer. So the loss is given twice, with and without the first new token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fluency:
    """Of generated text, means over the prompts.

    loss         nats per new token under the unsteered model, given the prompt and the tokens before
    later_loss   the same without the first new token; NaN where no answer has a second token
    repetition   share of an answer's pairs of neighbouring tokens that have occurred in it before, 0 ... 1
    """

    loss: float
    later_loss: float
    repetition: float

    def relative_to(self, plain: Fluency) -> float:
        """exp(plain.later_loss - later_loss), at most 1: how likely a token is beside one that the model itself says.

        1 when steered text is as likely as plain text, 1/e when a token costs one nat more. Where answers have one
        token only there is nothing to compare: 1.
        """
        rise = self.later_loss - plain.later_loss
        return 1.0 if math.isnan(rise) else math.exp(-max(0.0, rise))


def repetition_rate(tokens: Sequence[int], n: int = 2) -> float:
    """Share of the n-grams of a text that have occurred in it before; 0 for a text of fewer than n + 1 tokens."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def ending_ids(model) -> set[int]:
    """Ids that end a generated text, from the settings of the Hugging Face model."""
    settings = (getattr(model.hf, "generation_config", None), model.hf.config)
    found = next((e for s in settings if (e := getattr(s, "eos_token_id", None)) is not None), None)
    return set() if found is None else set(found) if isinstance(found, (list, tuple)) else {found}


def write(model, prompts: Sequence, max_new_tokens: int = 12) -> list[list[int]]:
    """New tokens of each prompt, greedy, up to and with the token that ends the text."""
    if not len(prompts):
        raise ValueError("prompts is empty: give at least one")
    ends, answers = ending_ids(model), []
    for row in model.generate_ids(prompts, max_new_tokens=max_new_tokens).tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:stop])
    return answers


@torch.no_grad()
def generation_loss(model, prompts: Sequence, answers: Sequence[Sequence[int]]) -> list[list[float]]:
    """-log p of every token of each answer after its prompt, under the model as it is now: one list for each prompt."""
    batch = model.tokenize(prompts)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch.ids, batch.mask)]
    whole = model.tokenize([row + list(answer) for row, answer in zip(rows, answers, strict=True)])
    log_p = model(whole)[:, :-1].float().log_softmax(-1).gather(-1, whole.ids[:, 1:, None])[..., 0]
    width = log_p.shape[1]  # the last token of row i is predicted in its last column (padding on the left)
    return [(-log_p[i, width - len(answer) :]).tolist() for i, answer in enumerate(answers)]


def judge(model, prompts: Sequence, answers: Sequence[Sequence[int]]) -> Fluency:
    """The fluency of answers (token ids, from `write`) to these prompts, by the model as it is now."""
    losses = generation_loss(model, prompts, answers)
    later = [sum(own[1:]) / len(own[1:]) for own in losses if len(own) > 1]
    return Fluency(
        loss=sum(sum(own) / len(own) for own in losses) / len(losses),
        later_loss=sum(later) / len(later) if later else math.nan,
        repetition=sum(repetition_rate(a) for a in answers) / len(answers),
    )


def fluency(
    model,
    prompts: Sequence,
    steer: Callable[[], AbstractContextManager] | None = None,
    max_new_tokens: int = 12,
) -> Fluency:
    """Let the steered model write greedily after each prompt, and judge it by the unsteered one.

    steer: () -> fresh context manager; None judges plain generation, the number to compare with. Call it outside of
    the steer's context: the model as it is now is the judge.
    """
    with nullcontext() if steer is None else steer():
        answers = write(model, prompts, max_new_tokens)
    return judge(model, prompts, answers)
