"""The synthetic world that the lab models live in: documents with exact labels, tasks, and the models' training.

world.task("refusal_harmful", split="test", n=200)   a Task with prompts, targets, foils, twins and labels
world.tasks()                                        the names of all tasks
world.documents("test", n=50)                        texts per domain, for side effects and preservation
world.sae("x3-topk")                                 a sparse autoencoder that ships with the lab model
"""

from .saes import sae
from .tasks import documents, task, tasks

__all__ = ["documents", "sae", "task", "tasks"]
