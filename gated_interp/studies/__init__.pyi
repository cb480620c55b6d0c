"""The names of ``gi.studies``, one a line; ``__init__.py`` imports each from here."""

from gated_interp.experiments.benchmarks import run_benchmarks as run_benchmarks
from gated_interp.experiments.decompose import DecomposeResult as DecomposeResult
from gated_interp.experiments.decompose import decompose as decompose
from gated_interp.experiments.frontier import run_frontier as run_frontier
from gated_interp.experiments.paper import PaperConfig as PaperConfig
from gated_interp.experiments.paper import run_paper as run_paper
from gated_interp.experiments.phase import run_phase as run_phase
from gated_interp.experiments.recipes import Recipe as Recipe
from gated_interp.experiments.recipes import recipe_named as recipe_named
from gated_interp.experiments.reliability import run_reliability as run_reliability
from gated_interp.experiments.repeats import run_repeats as run_repeats
from gated_interp.experiments.seeds import GatedOutcome as GatedOutcome
from gated_interp.experiments.seeds import SeedsOutcome as SeedsOutcome
from gated_interp.experiments.seeds import ToyOutcome as ToyOutcome
from gated_interp.experiments.seeds import train_seeds as train_seeds
from gated_interp.experiments.sweep import SweepConfig as SweepConfig
from gated_interp.experiments.sweep import run_sweep as run_sweep
from gated_interp.experiments.text_methods import compare_methods as compare_methods
from gated_interp.training.stacked.runs import GatedRun as GatedRun
from gated_interp.training.stacked.runs import ToyRun as ToyRun
from gated_interp.training.stacked.runs import train_gated_runs as train_gated_runs
from gated_interp.training.stacked.runs import train_toys as train_toys
