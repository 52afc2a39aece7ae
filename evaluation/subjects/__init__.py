"""How good are pictures of a subject? Faithful to it, to the prompt, to neither's background.

    scores = {method: {"subject": subject_fidelity(...), "prompt": prompt_fidelity(...)}, ...}
    print(compare_methods(scores, prompts).text())

Scores are numbers a picture, over any feature function. Methods are compared prompt by prompt, and
one is called better only where the paired difference is more than luck. `tune` is what
`probgen tune` calls: a folder of pictures and a base in; a subject, pictures and a page out.
"""

from probgen.evaluation.subjects.command import tune
from probgen.evaluation.subjects.compare import MethodTable, compare_methods
from probgen.evaluation.subjects.monitor import SubjectMonitor
from probgen.evaluation.subjects.scores import (
    crops,
    diversity,
    leak,
    prompt_fidelity,
    subject_fidelity,
)

__all__ = [
    "MethodTable", "SubjectMonitor", "compare_methods", "crops", "diversity", "leak",
    "prompt_fidelity", "subject_fidelity", "tune",
]  # fmt: skip
