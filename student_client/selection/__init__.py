"""Knowledge selection by actor-critic (arXiv 2302.00444): the selector, and how it is learned.

Training one over whole episodes is in `student_client.selection.episodes`, which stands storeys above.
"""

from __future__ import annotations

from student_client.selection.learning import Learner, Phase
from student_client.selection.selector import Selector, SelectorCard

__all__ = ["Learner", "Phase", "Selector", "SelectorCard"]
