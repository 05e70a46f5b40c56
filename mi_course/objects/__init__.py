"""The objects of interpretability (survey section 2) and the nouns shared by every method: `Task` and `Scores`.

    task, scores   what a behaviour is; what a localizer returns
    weights        heads as QK and OV circuits, neurons as keys and values, the unembedding, folding of norms
    decompose      the residual stream and the logits as sums over components
    neurons        what a neuron adds to an answer, where it fires, what it promotes, which label it detects
    sae            sparse autoencoders: five kinds, training, quality, splicing
    sae_features   what turns a feature on, what it writes, what it detects
    sae_truth      recovery and absorption, where the features are known
    sae_formats    published SAEs (SAELens, Gemma Scope) from a local folder
"""

from .scores import Scores
from .task import Task

__all__ = ["Scores", "Task"]
