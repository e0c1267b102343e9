"""Versions of pipeline stages, read without importing their heavy modules."""

import ast
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def stage_version(module: str) -> int:
    """Return the constant `VERSION` of a module of this package, given as a path such as "dataset/ingest.py".

    Raises:
        LookupError: the module does not assign an integer to VERSION.
    """
    for node in ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and [getattr(target, "id", None) for target in node.targets] == ["VERSION"]
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, int)
        ):
            return node.value.value
    raise LookupError(f"{module} has no integer constant VERSION")


def code_digest(module: str) -> str:
    """Return a digest of a module's code in which comments, docstrings, layout and VERSION itself do not count."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A string that stands alone is a docstring of what is above it, wherever it stands.
            node.body = [child for child in body if not _is_text(child) and not _is_version(child)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_version(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == ["VERSION"]
