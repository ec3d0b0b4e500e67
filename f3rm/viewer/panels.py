"""The viewer elements of f3rm, in groups; each group is a part of f3rm's folder in the viewer.

A panel shows and reads settings and does nothing else; :mod:`f3rm.viewer.controls` acts on them.
Elements are shown in the order of their letters; other modules use the properties without them.
"""

from collections.abc import Callable, Sequence
from typing import Any, get_args

from nerfstudio.viewer.viewer_elements import ViewerElement

from f3rm.language.active_query import DisplaySettings, ScoreKind, Several
from f3rm.language.relevancy import CANONICAL_NEGATIVES, Rule
from f3rm.language.text_encoder import QueryText, split_phrases
from f3rm.viewer.elements import (
    LiveButton,
    LiveCheckbox,
    LiveDropdown,
    LiveNumber,
    LiveSlider,
    LiveText,
    Markdown,
)

Hook = Callable[[Any], None]

NO_HEAD = "(none)"
NO_QUERY = "(none)"

_LOWEST_TEMPERATURE = 1e-3


class Panel:
    """A group of elements."""

    @property
    def elements(self) -> list[ViewerElement[Any]]:
        """Its elements, in the order in which they are shown."""
        return [each for _, each in sorted(vars(self).items()) if isinstance(each, ViewerElement)]


class WordsPanel(Panel):
    """The query in words.

    Args:
        default: The query at the start.
        on_change: Called at every change.
    """

    def __init__(self, default: QueryText, on_change: Hook) -> None:
        negatives = split_phrases(default.negatives)
        canonical = set(CANONICAL_NEGATIVES) <= set(negatives)
        others = [word for word in negatives if not (canonical and word in CANONICAL_NEGATIVES)]
        self.a_positives = LiveText(
            "Positives", default.positives, cb_hook=on_change, hint="e.g. red mug, cup"
        )
        self.b_negatives = LiveText(
            "Negatives", ", ".join(others), cb_hook=on_change, hint="prompts must beat these"
        )
        self.c_canonical = LiveCheckbox(
            "Canonical negatives",
            canonical,
            cb_hook=on_change,
            hint="words: object, things, stuff, texture; examples: the mean of all features",
        )
        self.d_head = LiveDropdown("Features", NO_HEAD, [NO_HEAD], cb_hook=on_change)
        self.e_status, self.f_legend = Markdown("Status"), Markdown("Legend")

    @property
    def status(self) -> Markdown:
        """Says what is asked, or why nothing is."""
        return self.e_status

    @property
    def legend(self) -> Markdown:
        """Says what each colour means."""
        return self.f_legend

    @property
    def head(self) -> str:
        """Name of the chosen head."""
        return self.d_head.value

    @property
    def canonical(self) -> bool:
        """Whether the canonical negatives are added."""
        return self.c_canonical.value

    def offer_heads(self, names: Sequence[str]) -> None:
        """Lists the heads."""
        self.d_head.offer(list(names) or [NO_HEAD])

    def typed(self, temperature: float) -> QueryText:
        """Returns the words as typed."""
        return QueryText(self.a_positives.value, self.b_negatives.value, temperature)

    def text(self, temperature: float) -> QueryText:
        """Returns the words, with the canonical negatives where they are switched on."""
        typed = split_phrases(self.b_negatives.value)
        added = [word for word in CANONICAL_NEGATIVES if self.canonical and word not in typed]
        return QueryText(self.a_positives.value, ", ".join([*typed, *added]), temperature)

    def restore(self, text: QueryText, *, canonical: bool, head: str) -> None:
        """Shows other words; keeps the head where the model lacks the saved one."""
        self.a_positives.value = text.positives
        self.b_negatives.value = text.negatives
        self.c_canonical.value = canonical
        if head in self.d_head.options:
            self.d_head.value = head


class DisplayPanel(Panel):
    """How scores are computed and shown.

    Args:
        temperature: The soft-max temperature at the start.
        on_change: Called at every change.
    """

    def __init__(self, temperature: float, on_change: Hook) -> None:
        self.a_several: LiveDropdown = LiveDropdown(
            "Several positives", "averaged", list(get_args(Several)), cb_hook=on_change
        )
        self.b_score = LiveDropdown(
            "Score", "relevancy", list(get_args(ScoreKind)), cb_hook=on_change
        )
        self.c_rule = LiveDropdown("Rule of words", "lerf", list(get_args(Rule)), cb_hook=on_change)
        self.d_temperature = LiveNumber("Temperature", float(temperature), cb_hook=on_change)
        self.e_automatic = LiveCheckbox(
            "Automatic threshold", default_value=True, cb_hook=on_change
        )
        self.f_threshold = LiveSlider("Threshold", 0.5, 0.0, 1.0, 0.01, cb_hook=on_change)
        self.g_low = LiveNumber("Scale from", 0.0, cb_hook=on_change)
        self.h_high = LiveNumber("Scale to", 1.0, cb_hook=on_change)

    @property
    def temperature(self) -> float:
        """The soft-max temperature, kept positive."""
        return max(float(self.d_temperature.value), _LOWEST_TEMPERATURE)

    def settings(self, *, coloured: bool) -> DisplaySettings:
        """Returns the settings.

        Args:
            coloured: Whether ``similarity`` is a coloured picture.
        """
        automatic = self.e_automatic.value
        return DisplaySettings(
            several=_chosen(self.a_several, Several),
            score=_chosen(self.b_score, ScoreKind),
            rule=_chosen(self.c_rule, Rule),
            temperature=self.temperature,
            threshold=None if automatic else float(self.f_threshold.value),
            low=float(self.g_low.value),
            high=float(self.h_high.value),
            coloured=coloured,
        )

    def show(self, settings: DisplaySettings) -> None:
        """Shows other settings."""
        self.a_several.value = settings.several
        self.b_score.value = settings.score
        self.c_rule.value = settings.rule
        self.d_temperature.value = settings.temperature
        self.e_automatic.value = settings.threshold is None
        if settings.threshold is not None:
            self.f_threshold.value = settings.threshold
        self.g_low.value = settings.low
        self.h_high.value = settings.high


def _chosen(element: LiveDropdown, choices: Any) -> Any:
    return element.value if element.value in get_args(choices) else get_args(choices)[0]


class PcaPanel(Panel):
    """The colours of ``feature_pca``."""

    def __init__(self, *, on_refresh: Hook, on_reset: Hook) -> None:
        self.a_refresh = LiveButton("Refresh PCA from this view", cb_hook=on_refresh)
        self.b_reset = LiveButton("Saved PCA", cb_hook=on_reset)


class PointPanel(Panel):
    """Queries without words: points of the scene, and images."""

    def __init__(
        self,
        *,
        on_point: Callable[[bool], None],
        on_image: Callable[[bool], None],
        on_forget: Hook,
    ) -> None:
        self.a_positive = LiveButton("Click a positive", cb_hook=lambda _: on_point(True))
        self.b_negative = LiveButton("Click a negative", cb_hook=lambda _: on_point(False))
        self.c_image = LiveText("Image file", "", hint="a path below the dataset's folder")
        self.d_crop = LiveText("Crop", "", hint="left, top, right, bottom in pixels; or nothing")
        self.e_positive = LiveButton("Image as positive", cb_hook=lambda _: on_image(True))
        self.f_negative = LiveButton("Image as negative", cb_hook=lambda _: on_image(False))
        self.g_forget = LiveButton("Forget points and images", cb_hook=on_forget)

    @property
    def image(self) -> str:
        """The typed image path."""
        return self.c_image.value

    @property
    def crop(self) -> str:
        """The typed crop."""
        return self.d_crop.value


class SavedPanel(Panel):
    """Named queries of the run."""

    def __init__(self, *, on_save: Hook, on_restore: Hook, on_delete: Hook) -> None:
        self.a_name = LiveText("Name", "", hint="name of this query")
        self.b_save = LiveButton("Save query", cb_hook=on_save)
        self.c_choice = LiveDropdown("Saved queries", NO_QUERY, [NO_QUERY])
        self.d_restore = LiveButton("Restore query", cb_hook=on_restore)
        self.e_delete = LiveButton("Delete query", cb_hook=on_delete)

    @property
    def name(self) -> str:
        """The typed name."""
        return self.a_name.value

    @property
    def chosen(self) -> str:
        """Name of the chosen saved query."""
        return self.c_choice.value

    def offer(self, names: Sequence[str], chosen: str | None = None) -> None:
        """Lists the saved queries."""
        self.c_choice.offer(list(names) or [NO_QUERY])
        if chosen in names:
            self.c_choice.value = chosen
