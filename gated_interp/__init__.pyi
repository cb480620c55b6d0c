"""The public names and their types; ``__init__.py`` imports each from here when first used.

One name a line, as ``from its.module import name as name``.
"""

from gated_interp import analytic as analytic
from gated_interp import anatomy as anatomy
from gated_interp import plots as plots
from gated_interp import studies as studies
from gated_interp import tasks as tasks
from gated_interp import text as text
from gated_interp import types as types
from gated_interp.analysis.ablation import ablate as ablate
from gated_interp.analysis.ablation import without_heads as without_heads
from gated_interp.analysis.attribution import edge_loadings as edge_loadings
from gated_interp.analysis.attribution import logit_attribution as logit_attribution
from gated_interp.analysis.attribution import source_attribution as source_attribution
from gated_interp.analysis.block_measures import block_measures as block_measures
from gated_interp.analysis.circuits import composition_scores as composition_scores
from gated_interp.analysis.circuits import copying_scores as copying_scores
from gated_interp.analysis.circuits import gate_circuit as gate_circuit
from gated_interp.analysis.circuits import ov_circuit as ov_circuit
from gated_interp.analysis.circuits import predict_from_circuits as predict_from_circuits
from gated_interp.analysis.circuits import qk_circuit as qk_circuit
from gated_interp.analysis.faithfulness import faithfulness as faithfulness
from gated_interp.analysis.faithfulness import loss_recovered as loss_recovered
from gated_interp.analysis.foils import false_alarms as false_alarms
from gated_interp.analysis.head_scores import head_scores as head_scores
from gated_interp.analysis.head_scores import induction_paths as induction_paths
from gated_interp.analysis.holders import holders as holders
from gated_interp.analysis.induction import induction_scores as induction_scores
from gated_interp.analysis.patching import activation_patch as activation_patch
from gated_interp.analysis.patching import patch_effects as patch_effects
from gated_interp.analysis.patching import path_patch as path_patch
from gated_interp.analysis.read_heads import read_heads as read_heads
from gated_interp.analysis.sharing import head_sharing as head_sharing
from gated_interp.analysis.spare_heads import prune_spare_heads as prune_spare_heads
from gated_interp.analysis.subsets import pair_interactions as pair_interactions
from gated_interp.analysis.subsets import shapley as shapley
from gated_interp.analysis.subsets import subset_values as subset_values
from gated_interp.analysis.superposition import loading_matrix as loading_matrix
from gated_interp.analysis.superposition import superposition_report as superposition_report
from gated_interp.analysis.text_holders import text_holders as text_holders
from gated_interp.analysis.verdict import verdict as verdict
from gated_interp.anatomy.batch import attention_mask as attention_mask
from gated_interp.checkpoints.checkpoint import load as load
from gated_interp.checkpoints.checkpoint import read_info as read_info
from gated_interp.checkpoints.checkpoint import save as save
from gated_interp.checkpoints.checkpoint import save_pretrained as save_pretrained
from gated_interp.checkpoints.hub import from_hub as from_hub
from gated_interp.checkpoints.hub import push_to_hub as push_to_hub
from gated_interp.checkpoints.opened import open_model as open_model
from gated_interp.core.errors import CheckpointError as CheckpointError
from gated_interp.core.errors import GatedInterpError as GatedInterpError
from gated_interp.core.errors import GatedInterpWarning as GatedInterpWarning
from gated_interp.core.renamed import GatedInterpDeprecationWarning as GatedInterpDeprecationWarning
from gated_interp.core.shipped import shipped_names as shipped_names
from gated_interp.experiments.report import report as report
from gated_interp.explorer import HeadExplorer as HeadExplorer
from gated_interp.models.toy import AttentionConfig as AttentionConfig
from gated_interp.models.toy import ToyConfig as ToyConfig
from gated_interp.models.toy import build_attention as build_attention
from gated_interp.models.toy import build_toy as build_toy
from gated_interp.replacements.gated_attention import GatedAttention as GatedAttention
from gated_interp.replacements.gated_attention import GatedConfig as GatedConfig
from gated_interp.replacements.pruning import prune_dead_heads as prune_dead_heads
from gated_interp.replacements.replacement import Replacement as Replacement
from gated_interp.replacements.replacement import register as register
from gated_interp.replacements.splice import splice as splice
from gated_interp.replacements.splice import unsplice as unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask as SkipTrigramTask
from gated_interp.training.config import TrainConfig as TrainConfig
from gated_interp.training.fit import fit_gated as fit_gated
from gated_interp.training.fit import fit_replacement as fit_replacement
from gated_interp.training.loop import train_gated as train_gated
from gated_interp.training.loop import train_model as train_model

__version__: str
