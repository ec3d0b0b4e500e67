"""Phrases and the words of a text tower that knows few: what it does not know, what contradicts.

A tower that never saw a word embeds it all the same, and the score says nothing. A tower that knows
few words can also be asked what else a thing may be: a *rival* of a phrase has one of its words
replaced by another of the same kind, as "shiny ring" for "striped ring".
"""

import re
from collections.abc import Iterable

from f3rm.backbones.known_words import KnownWords

_WORD = re.compile(r"[^\W_]+")


def unknown_words(phrases: Iterable[str], known: KnownWords | None) -> tuple[str, ...]:
    """Returns the words of phrases that a tower does not know, each once; none if it knows any."""
    if known is None:
        return ()
    everything = known.all
    words = [word for phrase in phrases for word in _WORD.findall(phrase.lower())]
    return tuple(dict.fromkeys(word for word in words if word not in everything))


def unknown_reason(tower: str, phrases: Iterable[str], known: KnownWords | None) -> str:
    """Returns what to say about unknown words in phrases; nothing where there are none.

    Args:
        tower: The feature type whose text tower is asked, e.g. ``"TINYCLIP"``.
        phrases: The phrases.
        known: The words that it knows; None for any.
    """
    unknown = unknown_words(phrases, known)
    if known is None or not unknown:
        return ""
    kinds = [
        f"the {kind}s {', '.join(group[0] for group in groups)}"
        for kind, groups in known.kinds.items()
    ]
    named = " and ".join(map(repr, unknown))
    return f"{tower} does not know {named}. It knows {'; '.join(kinds)}; use CLIP for photographs"


def rivals_of(phrase: str, known: KnownWords | None) -> tuple[str, ...]:
    """Returns the phrases that contradict a phrase in one word; none if any word may be asked."""
    if known is None:
        return ()
    words = phrase.lower().split()
    return tuple(
        " ".join((*words[:place], other[0], *words[place + 1 :]))
        for place, word in enumerate(words)
        for groups in known.kinds.values()
        if any(word in group for group in groups)
        for other in groups
        if word not in other
    )
