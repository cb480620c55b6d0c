"""The public names and their types; ``__init__.py`` imports each from here when first used.

One name a line, as ``from its.module import name as name``.
"""

from gated_interp.analysis.ablation import ablate as ablate
from gated_interp.analysis.ablation import ablated as ablated
from gated_interp.analysis.attribution import edge_loadings as edge_loadings
from gated_interp.analysis.attribution import logit_attribution as logit_attribution
from gated_interp.analysis.attribution import source_attribution as source_attribution
from gated_interp.analysis.circuits import composition_scores as composition_scores
from gated_interp.analysis.circuits import copying_scores as copying_scores
from gated_interp.analysis.circuits import gate_circuit as gate_circuit
from gated_interp.analysis.circuits import ov_circuit as ov_circuit
from gated_interp.analysis.circuits import predict_from_circuits as predict_from_circuits
from gated_interp.analysis.circuits import qk_circuit as qk_circuit
from gated_interp.analysis.faithfulness import faithfulness as faithfulness
from gated_interp.analysis.foils import false_alarms as false_alarms
from gated_interp.analysis.head_scores import prefix_matching as prefix_matching
from gated_interp.analysis.patching import activation_patch as activation_patch
from gated_interp.analysis.patching import patch_effects as patch_effects
from gated_interp.analysis.patching import path_patch as path_patch
from gated_interp.analysis.subsets import pair_interactions as pair_interactions
from gated_interp.analysis.subsets import shapley as shapley
from gated_interp.analysis.subsets import subset_values as subset_values
from gated_interp.analysis.superposition import loading_matrix as loading_matrix
from gated_interp.analysis.superposition import superposition_report as superposition_report
from gated_interp.analysis.verdict import Verdict as Verdict
from gated_interp.analysis.verdict import verdict as verdict
from gated_interp.checkpoints.checkpoint import load as load
from gated_interp.checkpoints.checkpoint import read_info as read_info
from gated_interp.checkpoints.checkpoint import save as save
from gated_interp.checkpoints.checkpoint import save_pretrained as save_pretrained
from gated_interp.checkpoints.hub import from_hub as from_hub
from gated_interp.checkpoints.hub import push_to_hub as push_to_hub
from gated_interp.checkpoints.shipped import shipped_names as shipped_names
from gated_interp.core.errors import CheckpointError as CheckpointError
from gated_interp.core.errors import GatedInterpError as GatedInterpError
from gated_interp.experiments.language import language_measures as language_measures
from gated_interp.experiments.recipes import Recipe as Recipe
from gated_interp.experiments.recipes import recipe_named as recipe_named
from gated_interp.experiments.seeds import train_seeds as train_seeds
from gated_interp.explorer import HeadExplorer as HeadExplorer
from gated_interp.models.analytic import coherent_head as coherent_head
from gated_interp.models.analytic import conditional_pair as conditional_pair
from gated_interp.models.analytic import manual_model as manual_model
from gated_interp.models.analytic import paired_model as paired_model
from gated_interp.models.analytic import two_readers as two_readers
from gated_interp.models.language_model import LanguageModelConfig as LanguageModelConfig
from gated_interp.models.language_model import LanguageTransformer as LanguageTransformer
from gated_interp.models.language_model import build_language_model as build_language_model
from gated_interp.models.toy import KnownTransformer as KnownTransformer
from gated_interp.models.toy import ToyConfig as ToyConfig
from gated_interp.models.toy import ToyTransformer as ToyTransformer
from gated_interp.models.toy import build_toy as build_toy
from gated_interp.replacements.gated_attention import GatedAttention as GatedAttention
from gated_interp.replacements.gated_attention import GatedConfig as GatedConfig
from gated_interp.replacements.pruning import prune_dead_heads as prune_dead_heads
from gated_interp.replacements.splice import splice as splice
from gated_interp.replacements.splice import unsplice as unsplice
from gated_interp.tasks.ov_coherent import OVCoherentTask as OVCoherentTask
from gated_interp.tasks.skip_trigrams import SkipTrigramTask as SkipTrigramTask
from gated_interp.tasks.skip_trigrams import TrigramBatch as TrigramBatch
from gated_interp.tasks.text import TextTask as TextTask
from gated_interp.tasks.two_sources import TwoSourcesTask as TwoSourcesTask
from gated_interp.training.config import TrainConfig as TrainConfig
from gated_interp.training.loop import TrainResult as TrainResult
from gated_interp.training.loop import train_gated as train_gated
from gated_interp.training.loop import train_toy as train_toy
from gated_interp.training.stacked.runs import GatedRun as GatedRun
from gated_interp.training.stacked.runs import ToyRun as ToyRun
from gated_interp.training.stacked.runs import train_gated_runs as train_gated_runs
from gated_interp.training.stacked.runs import train_toys as train_toys

__version__: str
