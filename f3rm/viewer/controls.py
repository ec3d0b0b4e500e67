"""The controls of one model in Nerfstudio's viewer: its query, its PCA colours, saved queries.

Three threads meet here. The viewer's thread calls back at every keystroke and only leaves a job.
The worker loads, encodes and writes files, reports its status, and asks for a new frame. The render
takes a finished value from :meth:`FeatureControls.active_query` and never waits; its errors are
shown as status, because an exception in a render ends that thread for good. Without a viewer
(``ns-render``, ``ns-eval``) the configured query is encoded at its first use.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.viewer.viewer_elements import ViewerClick
from torch import Tensor, nn

from f3rm.colours.pca import PcaBasis, pca_colours_from_hidden
from f3rm.errors import HeadSpec
from f3rm.feature_field import FeatureHead
from f3rm.language.active_query import ActiveQuery
from f3rm.language.image_encoder import image_below
from f3rm.language.text_encoder import QueryText, TextEncoder
from f3rm.language.text_map import TextMap, language_files
from f3rm.viewer.elements import ViewerLink, escaped
from f3rm.viewer.panels import (
    NO_QUERY,
    DisplayPanel,
    PcaPanel,
    PointPanel,
    SavedPanel,
    WordsPanel,
)
from f3rm.viewer.pictures import Drawn, draw, legend, picture_names
from f3rm.viewer.saved_queries import NamedQuery, QueryFile
from f3rm.viewer.start import (
    Sharpness,
    add_folder,
    hide_training_controls,
    start_at_first_photograph,
)
from f3rm.viewer.state import TROUBLE, QueryState
from f3rm.viewer.worker import Worker

logger = logging.getLogger(__name__)

Triple = tuple[float, float, float]
Probe = Callable[[Triple, Triple], Mapping[str, Tensor]]
"""From a ray's origin and direction to the rendered feature of each head."""

_DEBOUNCE_SECONDS = 0.4


class FeatureControls(nn.Module):
    """Queries and colours of one model; holds no parameters.

    Attributes:
        pca_override: PCA bases refreshed from a view, by head; the saved ones stay as they are.

    Args:
        default: The query at the start.
        probe: Renders the features that a click hits; called under the train lock.
        image_folder: Folder of the example images; None for the dataset's.
    """

    def __init__(
        self, default: QueryText, probe: Probe, *, image_folder: Path | None = None
    ) -> None:
        super().__init__()
        self._image_folder = image_folder
        self.pca_override: dict[str, PcaBasis] = {}
        self._probe = probe
        self._worker = Worker()
        self._state = QueryState()
        self._wants_pca = False
        self._asked: tuple[str, ...] = ()
        self._sharpness: Sharpness | None = None
        self.link = ViewerLink(self._on_attach)
        self.ask = WordsPanel(default, self._on_change)
        self.look = DisplayPanel(default.temperature, self._on_change)
        self.pca = PcaPanel(on_refresh=self._on_refresh_pca, on_reset=self._on_reset_pca)
        self.point = PointPanel(
            on_point=self._on_point, on_image=self._on_image, on_forget=self._on_forget
        )
        self.saved = SavedPanel(
            on_save=lambda _: self._do("save", self._save),
            on_restore=lambda _: self._do("restore", self._restore),
            on_delete=lambda _: self._do("save", self._delete),
        )

    @property
    def attached(self) -> bool:
        """Whether a viewer shows this model."""
        return self.link.attached is not None

    @property
    def is_rendering(self) -> bool:
        """Whether this thread renders for a viewer that shows this model."""
        return self.link.is_rendering

    @contextlib.contextmanager
    def timed(self, bundle: RayBundle) -> Generator[None]:
        """Takes the time of a render, by which a viewer's resolution is chosen."""
        started = time.perf_counter()
        yield
        if self._sharpness is not None and self.is_rendering:
            seconds = time.perf_counter() - started
            self._sharpness.rendered(bundle.shape[0], bundle.shape[1], seconds)

    @property
    def shown(self) -> frozenset[str] | None:
        """Outputs that this thread's browser needs; None where all may be asked for.

        Those that it shows, and the PCA colours of a view whose basis is to be fitted.
        """
        shown = self.link.shown
        if shown is not None and self._wants_pca:
            return shown | {"feature_pca"}
        return shown

    def set_heads(self, specs: Sequence[HeadSpec]) -> None:
        """Offers the heads; the first with a text tower is chosen at the start."""
        self.ask.offer_heads(self._state.set_heads(specs, TextEncoder))

    def active_query(self, means: Mapping[str, Tensor]) -> ActiveQuery | None:
        """Returns the query to render; None where there is none. Never waits in a viewer.

        Args:
            means: The mean of all unit features of each head: a negative of every example where
                the canonical ones are added, and what the rule ``scene`` contrasts words with.
        """
        if not self.attached:
            self._encode_words()
        settings, is_negative = self.look.settings(coloured=self.attached), self.ask.canonical
        mean = means.get(self._state.head_of(self.ask.head))
        return self._state.active_query(self.ask.head, mean, settings, is_negative=is_negative)

    def pictures(
        self,
        hidden: Float[Tensor, "*batch hidden"],
        rgb: Float[Tensor, "*batch 3"] | None,
        query: ActiveQuery,
        weights: Mapping[str, Float[Tensor, "channels hidden"]],
    ) -> dict[str, Tensor]:
        """Draws the score maps of a query; in a viewer, an error is shown and nothing is drawn.

        Args:
            hidden: Composited hidden vectors.
            rgb: The picture under the composite; None for no composite.
            query: From :meth:`active_query`.
            weights: The weights of the heads by name.

        Raises:
            RuntimeError: Without a viewer, whatever torch raises.
        """
        with self._errors_shown():
            drawn = draw(query.scores(hidden, weights), query, rgb, self.shown)
            if rgb is not None:
                self.ask.legend.show(legend(query, drawn))
            return drawn.images
        return {}

    def pca_pictures(
        self, hidden: Float[Tensor, "*batch hidden"], heads: Mapping[str, FeatureHead]
    ) -> dict[str, Tensor]:
        """Draws the PCA colours of every head, or of those that a browser shows.

        Args:
            hidden: Composited hidden vectors.
            heads: The heads by name.
        """
        shown, images = self.shown, dict[str, Tensor]()
        for output, name in _pca_heads(list(heads)).items():
            if shown is None or output in shown:
                head = heads[name]
                basis = self.pca_override.get(name, head.pca)
                images[output] = pca_colours_from_hidden(hidden, head.weight, basis)
        return images

    def choices(
        self, rgb: Float[Tensor, "*batch 3"], heads: Sequence[str], query: ActiveQuery | None
    ) -> dict[str, Tensor]:
        """Names all outputs that a browser may choose; none where no browser is rendered for.

        What it does not show costs nothing: its place has ``rgb`` until it is chosen, which renders
        the next frame.

        Args:
            rgb: The rendered picture.
            heads: Names of the heads.
            query: From :meth:`active_query`.
        """
        shown = self.link.shown
        if shown is None or not heads:
            return {}
        scores = picture_names(query)
        if query is None:
            self.ask.legend.show("")
        elif not shown.intersection(scores):
            self.ask.legend.show(legend(query, Drawn({}, (), ())))
        return dict.fromkeys((*_pca_heads(heads), *scores), rgb)

    def fit_wanted_pca(self, fit: Callable[[], Mapping[str, PcaBasis]]) -> None:
        """Fits PCA bases to the rendered view after a click on refresh.

        Args:
            fit: Fits a basis for each head.
        """
        if self._wants_pca:
            with self._errors_shown():
                self.pca_override.update(fit())
            self._wants_pca = False  # last: a render that is interrupted is made again

    @contextlib.contextmanager
    def _errors_shown(self) -> Generator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if not self.attached:
                raise
            logger.warning("The viewer's picture cannot be made: %s", error)
            self._say(str(error))

    def _say(self, status: str) -> None:
        self.ask.status.show(escaped(status))

    def _do(self, name: str, job: Callable[[], str], *, delay: float = 0.0) -> None:
        """Queues a job for the worker; its returned status is shown and a frame rendered."""

        def work() -> None:
            try:
                status = job()
            except TROUBLE as error:
                logger.warning("%s", error)
                status = str(error)
            self._say(status)
            self._show_asked()
            self.link.rerender()

        self._worker.submit(name, work, delay=delay)

    def _show_asked(self) -> None:
        """Switches the picture to a new query, and back to colours when there is none."""
        query = self.active_query({})
        asked = () if query is None else query.labels
        if asked != self._asked:
            self._asked = asked
            self.link.choose_output("similarity" if asked else "rgb")

    def _on_attach(self) -> None:
        viewer = self.link.open_viewer
        sections = {
            "": self.ask,
            "Scores and colours": self.look,
            "Points and images": self.point,
            "Colours of features (PCA)": self.pca,
            "Saved queries": self.saved,
        }
        add_folder(viewer, {title: panel.elements for title, panel in sections.items()})
        hide_training_controls(viewer)
        start_at_first_photograph(viewer)
        self._sharpness = Sharpness(viewer)
        self._do("languages", self._offer_languages)
        self._do("restore", self._offer_saved)
        self._on_change(None)

    def _on_change(self, element: Any) -> None:
        del element
        self._do("words", self._encode_words, delay=_DEBOUNCE_SECONDS)

    def _encode_words(self) -> str:
        text = self.ask.text(self.look.temperature)
        return self._state.encode(self.ask.head, text, self._say)

    def _on_refresh_pca(self, element: Any) -> None:
        del element
        self._wants_pca = True
        self.link.rerender()

    def _on_reset_pca(self, element: Any) -> None:
        del element
        self.pca_override.clear()
        self.link.rerender()

    def _on_point(self, is_positive: bool) -> None:  # noqa: FBT001
        def clicked(click: ViewerClick) -> None:
            self.link.unregister_pointer_cb()
            self._do("point", lambda: self._add_point(click, is_positive=is_positive))

        self.link.register_pointer_cb("click", clicked)
        self._say("Click a point in the view.")

    def _add_point(self, click: ViewerClick, *, is_positive: bool) -> str:
        with self.link.train_lock:
            features = self._probe(click.origin, click.direction)
        label = self._state.add_point(features, is_positive=is_positive)
        return f"{label} is {'a positive' if is_positive else 'a negative'}."

    def _on_image(self, is_positive: bool) -> None:  # noqa: FBT001
        self._do("image", lambda: self._add_image(is_positive=is_positive))

    def _add_image(self, *, is_positive: bool) -> str:
        self._say("Encoding the image ...")
        path = image_below(self._image_folder or self.link.data_folder, self.point.image)
        head = self._state.head_of(self.ask.head)
        label = self._state.add_image(head, path, self.point.crop, is_positive=is_positive)
        return f"{label} is {'a positive' if is_positive else 'a negative'}."

    def _on_forget(self, element: Any) -> None:
        del element
        self._state.examples = ()
        self._do("words", self._encode_words)

    def _file(self) -> QueryFile:
        return QueryFile(self.link.run_folder)

    def _offer_languages(self) -> str:
        files = language_files(self.link.run_folder, self._state.specs)
        languages = [TextMap.load(file) for file in files.values()]
        self.ask.offer_heads(self._state.set_languages(languages, TextEncoder))
        return ""

    def _offer_saved(self, chosen: str | None = None) -> str:
        self.saved.offer(sorted(self._file().read()), chosen)
        return ""

    def _save(self) -> str:
        name = self.saved.name.strip()
        query = NamedQuery(
            text=self.ask.typed(self.look.temperature),
            canonical=self.ask.canonical,
            head=self.ask.head,
            settings=self.look.settings(coloured=False),
            examples=self._state.examples,
        )
        self._file().save(name, query)
        self._offer_saved(name)
        return f"Saved {name!r}."

    def _restore(self) -> str:
        name = self.saved.chosen
        query = self._file().read().get(name)
        if query is None:
            return f"There is no saved query {name!r}."
        self.ask.restore(query.text, canonical=query.canonical, head=query.head)
        self.look.show(query.settings)
        self._state.examples = query.examples
        return self._encode_words()

    def _delete(self) -> str:
        name = self.saved.chosen
        if name == NO_QUERY:
            return "There is no saved query."
        self._file().delete(name)
        self._offer_saved()
        return f"Deleted {name!r}."


def _pca_heads(heads: Sequence[str]) -> dict[str, str]:
    """Returns the head of each output of PCA colours: the first, and with several each alone."""
    each = {f"feature_pca_{name}": name for name in heads} if len(heads) > 1 else {}
    return {"feature_pca": heads[0], **each}
