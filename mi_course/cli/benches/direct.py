"""What direct logit attribution costs: all heads, at the last token of 8 prompts, against one plain forward.

Plain means the bare Hugging Face call with all logits, under `torch.no_grad()`.
"""

from ..bench import TOKENS, alternate

PROMPTS = 8
LIMITS = {"direct_logit_attribution": 1.2}  # ratio to the plain forward


def measure(model, pairs: int) -> dict:
    """Medians over alternating pairs (plain, ours, plain, ours, ...), and over how many heads."""
    import torch

    from mi_course.locate import direct
    from mi_course.objects import Task

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.n_vocab, (PROMPTS, TOKENS), generator=generator)
    targets, foils = torch.randint(5, model.n_vocab, (2, PROMPTS), generator=generator).tolist()
    batch, task = model.tokenize(ids), Task("random", ids.tolist(), targets, foils=foils)

    def plain():
        with torch.no_grad():
            model.hf(batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False)

    cost = alternate(plain, lambda: direct.direct_effects(model, task), pairs)
    return {
        "heads": model.n_layers * model.n_heads,
        "direct_forward_seconds": cost["plain"],
        "direct_logit_attribution": cost["ratio"],
    }
