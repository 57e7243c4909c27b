"""What settings are given as, brought to one form: a path as its text, one number as three."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def unify(settings: object, **forms: Callable[[Any], Any]) -> None:
    """Replace fields of a frozen dataclass by their one form; for its ``__post_init__``.

    Parameters
    ----------
    settings : dataclass
        Fields that are None stay so.
    forms : callables by name of a field
        From what may be given to what the field holds.
    """
    for name, form in forms.items():
        given = getattr(settings, name)
        if given is not None:
            object.__setattr__(settings, name, form(given))


def several(given: str | Iterable[str]) -> tuple[str, ...]:
    """Names; a text is one name, not its letters.

    Examples
    --------
    >>> several("2023*"), several(["a", "b"])
    (('2023*',), ('a', 'b'))
    """
    return (given,) if isinstance(given, str) else tuple(given)
