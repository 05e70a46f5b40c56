"""Head reports (survey section 3.6, L6g): for a head that a circuit retained, where it looks and what it writes.

As in Fig. 9 of Yao et al. 2024: the attention pattern on a prompt, the tokens it attends to most, and the tokens whose
logits its write raises, beside the scores that name a head (previous token, induction, duplicate, copying) with what a
head without preference would get. A report describes; whether the model needs the head, an ablation has to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mi_course.models import Site, SiteError, record
from mi_course.models import weights as parts
from mi_course.objects.weights import folded_unembedding

from . import attention_mass

NAMED = {
    "previous token": attention_mass.previous_keys,
    "induction": attention_mass.induction_keys,
    "duplicate token": attention_mass.duplicate_keys,
    "first token": attention_mass.first_keys,
}


@dataclass(frozen=True)
class HeadReport:
    """One head on one prompt, seen from one query position.

    head      "L3H5"
    tokens    the prompt's tokens; pattern [T, T], row = query; query: the position that is reported, from 0
    attended  (position, token, weight), largest weight first
    raises    (token, logit) that the head's write at the query raises most, directly; lowers: the lowest
    carries   (token, logit) that the value of the most attended token raises, whatever its weight: its OV readout
    scores    name -> (score, what a head without preference gets); empty without prompts to take them on
    Logits are direct (final norm's scale frozen at this run), each above the mean over the vocabulary.
    """

    head: str
    tokens: list[str]
    pattern: Tensor
    query: int
    attended: list[tuple[int, str, float]]
    raises: list[tuple[str, float]]
    lowers: list[tuple[str, float]]
    carries: list[tuple[str, float]]
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        def words(pairs):
            return ", ".join(f"{token.strip()} {value:+.2f}" for token, value in pairs)

        looks = ", ".join(f"{token.strip()}@{position} {weight:.2f}" for position, token, weight in self.attended)
        lines = [f"{self.head} at {self.tokens[self.query].strip()}@{self.query}", f"  looks at  {looks}",
                 f"  raises    {words(self.raises)}", f"  lowers    {words(self.lowers)}",
                 f"  from {self.attended[0][1].strip()}: {words(self.carries)}"]
        lines += [f"  {name:<16}{score:+.2f}  (no preference {chance:+.2f})"
                  for name, (score, chance) in self.scores.items()]
        return "\n".join(lines)


@torch.no_grad()
def head_reports(model, prompt, heads: Sequence[str], query: int = -1, k: int = 5, naming_prompts=None
                 ) -> list[HeadReport]:
    """A `HeadReport` for each of `heads` ("L3H5" ...) on one prompt, seen from the position `query`.

    k: how many tokens each list names.  naming_prompts: prompts in which tokens repeat at random, such as
    `attention_mass.repeated_sequences(...)`, on which the named scores are taken; None leaves them out.
    Raises SiteError for anything that is not a head of this model.
    """
    sites = [Site.parse(head) for head in heads]
    wrong = [str(site) for site in sites if site.kind != "head" or site.index is None or site.part != "result"]
    if wrong or not sites:
        raise SiteError(f"heads: {wrong[0] if wrong else 'nothing'} is not a head; name heads such as 'L3H5'")
    batch = model.tokenize(prompt if isinstance(prompt, str) else [prompt])
    at, tokens = int(batch.columns(query)[0]), model.tokens(prompt)
    layers = sorted({site.layer for site in sites})
    final = f"x{model.n_layers}"
    kinds = ("pattern{}", "z{}", "v{}", "attn{}")
    names = [final, *map(str, sites), *(kind.format(i) for i in layers for kind in kinds)]
    cache = record(model, batch, names, logits=False)
    W_U, scale = folded_unembedding(model)[0], parts.unembedding(model).norm.scale(cache[final])[0, at]
    named = _named_scores(model, naming_prompts)

    def logits(site: Site, result: Tensor) -> Tensor:
        post = parts.post_norm(model, site.layer, "attn")
        write = result if post is None else result * post.scale(cache[f"attn{site.layer}"])[0, at] * post.gain
        values = write @ W_U * scale
        return values - values.mean()

    def best(values: Tensor, sign: int = 1) -> list[tuple[str, float]]:
        chosen = (sign * values).topk(k).indices.tolist()
        return [(_word(model, i), values[i].item()) for i in chosen]

    reports = []
    for site in sites:
        pattern = cache[f"pattern{site.layer}"][0, site.index]
        attended = pattern[at, : at + 1].topk(min(k, at + 1))
        w = parts.attention(model, site.layer)
        value = cache[f"v{site.layer}"][0, int(attended.indices[0]), w.kv_head(site.index)]
        written, carried = logits(site, cache[site][0, at]), logits(site, value @ w.W_O[site.index])
        reports.append(HeadReport(
            str(site), tokens, pattern, at,
            [(i, tokens[i], weight) for i, weight in zip(attended.indices.tolist(), attended.values.tolist())],
            best(written), best(written, -1), best(carried),
            {name: (scores[site], chance) for name, (scores, chance) in named.items()},
        ))  # fmt: skip
    return reports


def _named_scores(model, prompts) -> dict:
    """Name -> (Scores over heads, what a head without preference gets)."""
    if prompts is None:
        return {}
    named = {name: (attention_mass.attention_mass(model, prompts, keys, name),
                    attention_mass.uniform_mass(model, prompts, keys)) for name, keys in NAMED.items()}
    return named | {"copying": (attention_mass.copying(model, prompts), 0.0)}


def _word(model, i: int) -> str:
    return model.tokenizer.decode([i]) if model.tokenizer else str(i)
