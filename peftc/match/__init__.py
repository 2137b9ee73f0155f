"""Rules × sites → plan: which rule goes where with which parameters, what is left out and why. Makes nothing."""

from peftc.match.matching import make_plan
from peftc.match.plan import Application, NewParameter, Plan, Skip

__all__ = ["Application", "NewParameter", "Plan", "Skip", "make_plan"]
