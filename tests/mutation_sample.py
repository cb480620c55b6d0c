"""Mutants of a room's code, sampled: places in an order that does not change, one change at each.

cosmic-ray makes the changes. Annotations, messages, ``__repr__`` and ``strict=`` are left out: no
test should pin them.
"""

import ast
import difflib
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
# Changes that can be a slip of the hand; most others (``+`` to ``>>``) fail at once, in any test.
CHANGES = re.compile(
    r"core/(Add|Number|Zero|Exception|ReplaceTrue|ReplaceFalse|ReplaceAnd|ReplaceOr|ReplaceBreak|"
    r"ReplaceContinue|ReplaceUnaryOperator_Delete|ReplaceComparisonOperator_\w+_(Eq|NotEq|[LG]tE?)$|"
    r"ReplaceComparisonOperator_Is|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|"
    r"FloorDiv_Mul|Mod_FloorDiv|Pow_Mul|BitAnd_BitOr|BitOr_BitAnd)$)"
)


@dataclass
class Mutant:
    """One change: ``code`` is the whole file with it."""

    path: str
    line: int
    before: str
    after: str
    code: str

    @property
    def key(self) -> str:
        return f"{self.path}: {self.before} -> {self.after}"


class Essence(ast.NodeTransformer):
    """What is left of a file without what no test should pin."""

    def visit_arguments(self, node: ast.arguments) -> Any:
        everything = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        names = [ast.arg(a.arg) for a in everything]
        defaults = [self.visit(d) for d in (*node.defaults, *node.kw_defaults) if d]
        return ast.arguments([], names, None, [], [], None, defaults)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return None if node.name == "__repr__" else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> Any:
        return None if node.arg in ("repr", "strict") else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> Any:
        return ast.Raise()

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        return ast.Constant("")


def essence(code: str) -> str:
    return ast.dump(Essence().visit(ast.parse(code)))


def mutants(room: str) -> Iterator[Mutant]:
    """The mutants of a room in an order that the seed fixes, one at each place.

    A place is ranked by a hash of its text, so a change elsewhere does not change the sample.
    """
    places: dict[tuple[str, Path, tuple[int, int]], list[tuple[str, int]]] = defaultdict(list)
    operators = {n: get_operator(n)() for n in operator_names() if CHANGES.match(n)}
    for file in sorted((ROOT / "gated_interp" / room).rglob("*.py")):
        code = file.read_text()
        lines, nodes, seen = code.splitlines(), list(ast_nodes(get_ast(code))), Counter[str]()
        ranks: dict[tuple[int, int], str] = {}
        for name, operator in operators.items():
            at = (start for node in nodes for start, _ in operator.mutation_positions(node))
            for occurrence, (line, column) in enumerate(at):
                if (line, column) not in ranks:
                    text = f"{file.relative_to(ROOT)} {lines[line - 1].strip()} {column}"
                    seen[text] += 1
                    ranks[line, column] = _hash(f"{text} {seen[text]}")
                places[ranks[line, column], file, (line, column)].append((name, occurrence))
    for (rank, file, (line, _)), changes in sorted(places.items()):
        name, occurrence = min(changes, key=lambda change: _hash(f"{rank} {change}"))
        code = file.read_text()
        changed = mutate_code(code, operators[name], occurrence)
        try:
            if essence(changed) == essence(code):
                continue
        except SyntaxError:
            continue
        diff = list(difflib.ndiff(code.splitlines(), changed.splitlines()))
        before, after = (" ".join(d[2:].strip() for d in diff if d[0] == sign) for sign in "-+")
        yield Mutant(str(file.relative_to(ROOT)), line, before, after, changed)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
