"""What public functions return, for annotations and ``isinstance``.

Examples:
    >>> import gated_interp as gi
    >>> truth = gi.analytic.manual_model(2, 3)
    >>> isinstance(gi.verdict(truth.model, truth.task), gi.types.Verdict)
    True
"""

from gated_interp.analysis.adversary import AdversaryLadder
from gated_interp.analysis.attribute.ranking import RankingScore
from gated_interp.analysis.attribute.result import EdgeAttribution, HeadAttribution
from gated_interp.analysis.attribution import Attribution, EdgeLoadings
from gated_interp.analysis.circuits import Circuit
from gated_interp.analysis.faithfulness import Faithfulness
from gated_interp.analysis.head_effects import HeadEffects
from gated_interp.analysis.holders import Holders
from gated_interp.analysis.overview import HeadOverview
from gated_interp.analysis.qk_attribution import QKAttribution, ScoreParts
from gated_interp.analysis.read_heads import Readings
from gated_interp.analysis.sharing import HeadSharing
from gated_interp.analysis.subsets import SubsetValues
from gated_interp.analysis.text_holders import TextHolders
from gated_interp.analysis.verdict import Verdict
from gated_interp.checkpoints.checkpoint_format import CheckpointInfo
from gated_interp.checkpoints.known import CircuitRecord, KnownCircuit
from gated_interp.models.pretrained import PretrainedTransformer
from gated_interp.models.program_model import ProgramTransformer
from gated_interp.models.toy import AttentionTransformer, TaskTransformer, ToyTransformer
from gated_interp.replacements.pruning import Pruned
from gated_interp.tasks.program import PromptPairs
from gated_interp.training.activations import ActivationStore
from gated_interp.training.loop import TrainResult

__all__ = [
    "ActivationStore",
    "AdversaryLadder",
    "AttentionTransformer",
    "Attribution",
    "CheckpointInfo",
    "Circuit",
    "CircuitRecord",
    "EdgeAttribution",
    "EdgeLoadings",
    "Faithfulness",
    "HeadAttribution",
    "HeadEffects",
    "HeadOverview",
    "HeadSharing",
    "Holders",
    "KnownCircuit",
    "PretrainedTransformer",
    "ProgramTransformer",
    "PromptPairs",
    "Pruned",
    "QKAttribution",
    "RankingScore",
    "Readings",
    "ScoreParts",
    "SubsetValues",
    "TaskTransformer",
    "TextHolders",
    "ToyTransformer",
    "TrainResult",
    "Verdict",
]
