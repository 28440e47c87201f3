"""What was measured, as lines of estimates/throughputs.yaml: to be pasted, and in their places."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

from t2i_feedback.tools.estimate import figures
from t2i_feedback.tools.gpu_check.results import Correction


def as_yaml(lines: Sequence[Correction]) -> str:
    """To be pasted: each figure below the keys that it has."""
    import yaml

    tree: dict[str, Any] = {}
    for line in lines:
        _put(tree, line)
    return yaml.safe_dump(tree, sort_keys=False, width=10_000, allow_unicode=True, default_flow_style=None)


def written(lines: Sequence[Correction]) -> str:
    """The text of throughputs.yaml with these figures, its comments kept."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 10_000
    yaml.preserve_quotes = True
    content = yaml.load(figures.FIGURES)
    for line in lines:
        _put(content, line).fa.set_flow_style()
    text = StringIO()
    yaml.dump(content, text)
    figures.Throughputs.model_validate(YAML(typ="safe").load(text.getvalue()))
    return text.getvalue()


def _put(tree: Any, line: Correction) -> Any:
    """The figure in its place in the tree, of the tree's own kind of mapping."""
    kind = type(tree)
    *sections, last = line.key
    for name in sections:
        tree = tree.setdefault(name, kind())
    tree[last] = kind()
    tree[last].update(value=float(f"{line.value:.3g}"), unit=line.unit, source=line.source)
    return tree[last]
