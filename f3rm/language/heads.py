"""Heads as questions see them: with their own text tower, or in a language."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from f3rm.errors import F3rmError, HeadSpec
from f3rm.language.relevancy import TEMPERATURE, Against, HiddenQuery, make_query, to_hidden
from f3rm.language.text_map import TextMap, head_of_language


class LanguageError(F3rmError):
    """A field, or the head that is asked, has no text tower."""


@runtime_checkable
class Head(Protocol):
    """A feature head, as far as a question needs it."""

    @property
    def spec(self) -> HeadSpec:
        """Name, channels and backbone."""
        ...

    @property
    def weight(self) -> Float[Tensor, "channels hidden"]:
        """The linear map from hidden vectors to features."""
        ...


@dataclass(frozen=True)
class TranslatedHead:
    """A head that is asked in a language: its map takes the features to another text tower.

    Attributes:
        head: The head.
        language: The language.
    """

    head: Head
    language: TextMap

    @property
    def spec(self) -> HeadSpec:
        """The head's, with the language's text tower as its model."""
        return replace(self.head.spec, has_text=True, backbone=self.language.text)

    @property
    def weight(self) -> Float[Tensor, "channels hidden"]:
        """The head's."""
        return self.head.weight


def translated(heads: Mapping[str, Head], language: TextMap | None) -> Mapping[str, Head]:
    """Returns heads by name, one of them asked in a language.

    Raises:
        TextMapError: If the language fits none of them.
    """
    if language is None:
        return heads
    name = head_of_language(language, {name: head.spec for name, head in heads.items()})
    others = {other: head for other, head in heads.items() if other != name}
    return {name: TranslatedHead(heads[name], language), **others}  # first: it is asked by default


def language_of(head: Head) -> TextMap | None:
    """Returns the map that a head's features take to its text tower; None where they need none."""
    return head.language if isinstance(head, TranslatedHead) else None


def scales_of(heads: Mapping[str, Head], spec: HeadSpec, wanted: str | None) -> tuple[Head, ...]:
    """Returns the heads that answer together: those that distil one model at several scales.

    Args:
        heads: The heads by name.
        spec: The head that was chosen.
        wanted: Its name, if it alone shall answer; None for all scales.
    """
    if wanted is not None:
        return (heads[spec.name],)
    language = language_of(heads[spec.name])
    return tuple(
        head
        for head in heads.values()
        if head.spec.backbone == spec.backbone and language_of(head) is language
    )


def choose_head(heads: Mapping[str, Head], wanted: str | None) -> HeadSpec | None:
    """Returns the wanted head, or the first that has a text tower, or None where none has.

    Args:
        heads: The heads by name.
        wanted: Name of a head, or None.

    Raises:
        F3rmError: If the wanted head does not exist or has no text tower.
    """
    with_text = [head.spec for head in heads.values() if head.spec.has_text]
    if wanted is None:
        return with_text[0] if with_text else None
    if wanted not in heads:
        msg = f"There is no head {wanted!r}; this field has {', '.join(heads) or 'none'}."
        raise F3rmError(msg)
    spec = heads[wanted].spec
    if not spec.has_text:
        names = ", ".join(repr(other.name) for other in with_text) or "none of this run"
        msg = f"The head {wanted!r} has no text tower. Heads that have one: {names}."
        raise LanguageError(msg)
    return spec


def query_of(
    head: Head,
    prompts: Float[Tensor, "prompts channels"],
    negatives: Float[Tensor, "negatives channels"] | None,
    *,
    temperature: float = TEMPERATURE,
    **against: Unpack[Against],
) -> HiddenQuery:
    """Makes a query to a head, in its hidden space, of embeddings by its text tower.

    Args:
        head: The head.
        prompts: The prompts.
        negatives: What they must beat; None for cosines.
        temperature: Soft-max temperature of the relevancy.
        **against: What prompts are compared with beside negatives.
    """
    weight = head.weight.detach()
    others = None if negatives is None else negatives.to(weight)
    query = make_query(
        prompts.to(weight),
        others,
        temperature=temperature,
        text_map=language_of(head),
        **against,
    )
    return to_hidden(query, weight)
