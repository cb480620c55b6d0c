"""What an explorer is set to, and what follows from it: no widgets here."""

import dataclasses
from collections.abc import Mapping
from typing import get_args

from gated_interp.analysis.ablation import Method
from gated_interp.core.errors import GatedInterpError
from gated_interp.core.seeds import derive
from gated_interp.core.streams import Stream
from gated_interp.core.threads import one_thread
from gated_interp.explorer.bench import Bench, Reading
from gated_interp.explorer.examples import armed_positions, parse_tokens
from gated_interp.models.toy import HookedTransformer
from gated_interp.replacements.splice import gated_block, originals, unsplice
from gated_interp.tasks.skip_trigrams import SkipTrigramTask, require_trigrams

EXAMPLES = 100


@dataclasses.dataclass(frozen=True)
class ExplorerState:
    """What an explorer is set to.

    Attributes:
        tokens: the example.
        position: where predictions and writes are read.
        off: per model (``original``, ``gated``) the heads that are switched off.
        method: how they are ablated.
        example: number of the example, from 0; ``None`` for one that was typed.
    """

    tokens: tuple[int, ...]
    position: int
    off: Mapping[str, frozenset[int]]
    method: Method = "zero"
    example: int | None = 0


class Session:
    """Models on the same example, and the states an explorer of them can be in.

    Every ``with_…`` and ``at_…`` method returns a new state and changes nothing.

    Args:
        model: one layer, gated or not.
        task: what it was trained on.
        original: to stand beside it; by default what a gated block was spliced over.
        seed: of the examples and of everything else that is drawn.

    Raises:
        GatedInterpError: a task without trigrams; a model that is not one linear layer, or of
            another vocabulary.
    """

    def __init__(
        self,
        model: HookedTransformer,
        task: SkipTrigramTask,
        original: HookedTransformer | None = None,
        seed: int = 0,
    ):
        require_trigrams("the explorer", task)
        if original is None and originals(model):
            original = unsplice(model)
        name = "gated" if gated_block(model) is not None else "model"
        models = {name: model} if original is None else {"original": original, name: model}
        self.task = task
        self.benches = {n: Bench(m, task, seed) for n, m in models.items()}
        self.main = name
        self.longest = min(b.model.cfg.n_ctx for b in self.benches.values())
        self.examples = task.sample_single(EXAMPLES, derive(seed, Stream.EXPLORER_EXAMPLES))
        off: dict[str, frozenset[int]] = {n: frozenset() for n in self.benches}
        self.start = self.at_example(ExplorerState((task.bos,), 0, off), 0)

    def read(self, state: ExplorerState) -> dict[str, Reading]:
        """What every model does in ``state``."""
        with one_thread():
            return {
                name: bench.read(state.tokens, state.position, state.off[name], state.method)
                for name, bench in self.benches.items()
            }

    def expected(self, state: ExplorerState) -> int | None:
        """The token that must come next at the position; ``None`` where any may."""
        if state.position in armed_positions(self.task, state.tokens):
            return self.task.completion(state.tokens[state.position])
        return None

    def with_head(
        self, state: ExplorerState, head: int, on: bool, model: str | None = None
    ) -> ExplorerState:
        """``state`` with one head switched on or off.

        Raises:
            GatedInterpError: no such head or model.
        """
        name = self.name(model)
        n = self.benches[name].n_heads
        if type(head) is not int or not 0 <= head < n:
            raise GatedInterpError(
                f"head {head!r} is not there; the {name} model has heads 0 to {n - 1}."
            )
        off = state.off[name] - {head} if on else state.off[name] | {head}
        return dataclasses.replace(state, off={**state.off, name: off})

    def with_all_on(self, state: ExplorerState, model: str | None = None) -> ExplorerState:
        """``state`` with every head of one model on.

        Raises:
            GatedInterpError: no such model.
        """
        return dataclasses.replace(state, off={**state.off, self.name(model): frozenset()})

    def with_method(self, state: ExplorerState, method: Method) -> ExplorerState:
        """``state`` with another method of ablation.

        Raises:
            GatedInterpError: no such method.
        """
        if method not in get_args(Method):
            raise GatedInterpError(
                f"method is {method!r}; it must be one of {', '.join(get_args(Method))}."
            )
        return dataclasses.replace(state, method=method)

    def at_example(self, state: ExplorerState, example: int) -> ExplorerState:
        """``state`` at a numbered example, read at the B of its trigram; the numbers go round."""
        row = example % EXAMPLES
        return dataclasses.replace(
            state,
            tokens=tuple(self.examples.tokens[row].tolist()),
            position=int(self.examples.destination_pos[row]),
            example=row,
        )

    def at_tokens(self, state: ExplorerState, words: str) -> ExplorerState:
        """``state`` at typed tokens, read at the last B that must be answered, else at the end.

        Raises:
            GatedInterpError: see :func:`parse_tokens`.
        """
        tokens = parse_tokens(words, self.task, self.longest)
        position = (armed_positions(self.task, tokens) or [len(tokens) - 1])[-1]
        return dataclasses.replace(state, tokens=tokens, position=position, example=None)

    def at_position(self, state: ExplorerState, position: int) -> ExplorerState:
        """``state`` read at another position.

        Raises:
            GatedInterpError: no such position.
        """
        n = len(state.tokens)
        if type(position) is not int or not 0 <= position < n:
            raise GatedInterpError(
                f"position {position!r} is not there; the example has positions 0 to {n - 1}."
            )
        return dataclasses.replace(state, position=position)

    def name(self, model: str | None = None) -> str:
        """Name of a model; of the one explored where none is given.

        Raises:
            GatedInterpError: no such model.
        """
        name = self.main if model is None else model
        if name not in self.benches:
            raise GatedInterpError(
                f"model is {name!r}; it must be one of {', '.join(map(repr, self.benches))}."
            )
        return name
