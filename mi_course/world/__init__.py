"""The synthetic world that the lab models live in: documents with exact labels, tasks, and the models' training.

world.task("refusal_harmful", split="test", n=200)   a Task with prompts, targets, foils, twins and labels
world.tasks()                                        the names of all tasks
world.documents("test", n=50)                        texts per domain, for side effects and preservation
world.sae("x3-topk")                                 a sparse autoencoder that ships with the lab model
world.transcoder("mlp3")                             a transcoder that ships with the lab model, one for each layer
"""

from .saes import sae
from .tasks import documents, task, tasks
from .transcoders import transcoder

__all__ = ["documents", "sae", "task", "tasks", "transcoder"]
