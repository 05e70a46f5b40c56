"""Steer: change the objects, and with them the behaviour (survey section 4).

What all of them give    steer     Steer: edits under one dial, a schedule, a detector; together(model, ...)
                         weights   WeightEdit: a reversible change of weights, under the same dial
                         saving    save and load them, and DoLa; refused by another model
Amplitude (4.1)          amplitude    off, to a value, up and down, clamp, cut edges, remove layers
                         detectors    how well objects detect: AurA, fitted detectors
Targeted optimization    editing      ROME and MEMIT: facts, in closed form
(4.2)                    training     masked and low-rank fine-tuning; masks       fit    the one training loop
                         interventions    ReFT, trained vectors, biases            gates  L0 gates, learned masks, JoLA
                         peft_lora    LoRA by the library peft (optional)
Vector arithmetic (4.3)  vectors      add, remove, orthogonalise, project out      vector_sources  where they come from
                         head_shifts  ITI                                          decoding        DoLa
                         merging, merging_weighted    task vectors: add, negate, TIES, DARE, weighted
Choosing                 registry     all under g(model, task, strength)           prediction   side effects foretold
"""

from . import amplitude, detectors, editing, gates, interventions, merging, saving, training, vector_sources, vectors
from .amplitude import clamp, remove_layers, scale, set_to, switch_off
from .decoding import DoLa
from .editing import memit, rank_one_edit, rome
from .head_shifts import iti
from .interventions import reft, trained_vector
from .merging import dare, task_vector, ties
from .steer import Detector, Steer, together
from .training import low_rank_finetune, masked_finetune
from .vector_sources import act_add
from .vectors import ablate_direction, add_vector, mean_difference, orthogonalise
from .weights import WeightEdit

__all__ = [
    "Detector",
    "DoLa",
    "Steer",
    "WeightEdit",
    "ablate_direction",
    "act_add",
    "add_vector",
    "amplitude",
    "clamp",
    "dare",
    "detectors",
    "editing",
    "gates",
    "interventions",
    "iti",
    "low_rank_finetune",
    "masked_finetune",
    "mean_difference",
    "memit",
    "merging",
    "orthogonalise",
    "rank_one_edit",
    "reft",
    "remove_layers",
    "rome",
    "saving",
    "scale",
    "set_to",
    "switch_off",
    "task_vector",
    "ties",
    "together",
    "trained_vector",
    "training",
    "vector_sources",
    "vectors",
]
