"""Which views there are: every file of this folder that has a ``VIEW``."""

import importlib
import pkgutil
from collections.abc import Iterator

from gated_interp import views
from gated_interp.subject import Subject
from gated_interp.views.shown import TOPICS, Shown, View


def all_views() -> list[View]:
    """Every view, topic by topic, each in its order."""
    names = sorted(module.name for module in pkgutil.iter_modules(views.__path__))
    modules = [importlib.import_module(f"{views.__name__}.{name}") for name in names]
    found = [module.VIEW for module in modules if hasattr(module, "VIEW")]
    return sorted(found, key=lambda view: ([*TOPICS].index(view.topic), view.order))


def shown_of(
    subject: Subject, topic: str | None = None, gallery: tuple[str, ...] = ("each", "one", "no")
) -> Iterator[Shown]:
    """What the views show of a subject.

    Args:
        topic: only the views about it.
        gallery: only the views whose ``gallery`` is one of these.
    """
    for view in views_of(subject, topic, gallery):
        yield from view.show(subject)


def views_of(
    subject: Subject, topic: str | None = None, gallery: tuple[str, ...] = ("each", "one", "no")
) -> list[View]:
    """The views that have something to say of a subject; see :func:`shown_of`."""
    return [
        view
        for view in all_views()
        if topic in (None, view.topic) and view.gallery in gallery and view.applies(subject)
    ]
