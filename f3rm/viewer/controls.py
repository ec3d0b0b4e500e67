"""The controls that f3rm adds to Nerfstudio's viewer, and the state behind them.

Nerfstudio calls a text's callback at every keystroke, under the train lock, and an exception in a
render kills that browser's thread. So a callback only arms a timer; the text is encoded in the
timer's thread, and what goes wrong is shown in the status line. Without a viewer (``ns-render``,
``ns-eval``) the configured query is encoded when it is first asked for.
"""

import logging
import threading
from typing import Any

from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerElement,
    ViewerNumber,
    ViewerText,
)
from torch import nn

from f3rm._types import F3rmError, HeadSpec
from f3rm.semantics.pca import PcaBasis
from f3rm.semantics.similarity import Query
from f3rm.viewer.text_query import QueryText, TextEncoder

logger = logging.getLogger(__name__)

_DEBOUNCE_SECONDS = 0.4


class FeatureControls(nn.Module):
    """Query text, temperature and PCA refresh of one model; holds no parameters.

    Attributes:
        head: The head that text queries ask, or None where no head has language.
        pca_override: PCA bases refreshed from a view, by head; the saved ones stay as they are.

    Args:
        default: The query that stands at the start.
    """

    def __init__(self, default: QueryText) -> None:
        super().__init__()
        self.head: HeadSpec | None = None
        self.pca_override: dict[str, PcaBasis] = {}
        self._encoder: TextEncoder | None = None
        self._default = default
        self._encoded_text: QueryText | None = None
        self._query: Query | None = None
        self._refresh_requested = False
        self._timer: threading.Timer | None = None
        # Nerfstudio sorts elements by attribute name.
        self.a_positives = ViewerText(
            "Positives", default.positives, cb_hook=self._on_change, hint="e.g. red mug, cup"
        )
        self.b_negatives = ViewerText(
            "Negatives", default.negatives, cb_hook=self._on_change, hint="told from these"
        )
        self.c_temperature = ViewerNumber(
            "Temperature", default.temperature, cb_hook=self._on_change
        )
        self.d_refresh_pca = ViewerButton("Refresh PCA from this view", cb_hook=self._on_refresh)
        self.e_status = ViewerText("Status", "", disabled=True)

    def set_heads(self, specs: tuple[HeadSpec, ...]) -> None:
        """Directs text queries at the first head that has language."""
        speaking = [spec for spec in specs if spec.has_text]
        head = speaking[0] if speaking else None
        if head != self.head:
            self.head = head
            self._encoder = TextEncoder(head.backbone) if head else None
            self._encoded_text = None
            self._query = None

    def query(self) -> Query | None:
        """Returns the query to render, or None; never raises.

        With a viewer attached it never waits: the text is encoded in the background.
        """
        text = self._text()
        if text == self._encoded_text:
            return self._query
        if self.a_positives.gui_handle is None:
            self._encode(text)
        elif self._timer is None:
            self._arm()
        return self._query

    def take_pca_refresh(self) -> bool:
        """Whether a refresh was asked for since the last call."""
        requested, self._refresh_requested = self._refresh_requested, False
        return requested

    def _text(self) -> QueryText:
        if self.a_positives.gui_handle is None:
            return self._default
        return QueryText(
            positives=self.a_positives.value,
            negatives=self.b_negatives.value,
            temperature=max(float(self.c_temperature.value), 1e-3),
        )

    def _on_change(self, element: ViewerElement[Any]) -> None:
        del element
        self._arm()

    def _on_refresh(self, element: ViewerElement[Any]) -> None:
        del element
        self._refresh_requested = True

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(_DEBOUNCE_SECONDS, self._encode_typed)
        self._timer.daemon = True
        self._timer.start()

    def _encode_typed(self) -> None:
        text = self._text()
        self._say("Encoding ...")
        self._encode(text)
        self._timer = None

    def _encode(self, text: QueryText) -> None:
        query, status = self._try_encode(text)
        self._query = query
        self._encoded_text = text
        self._say(status)

    def _try_encode(self, text: QueryText) -> tuple[Query | None, str]:
        positives, _ = text.phrases
        if not positives:
            return None, ""
        if self._encoder is None:
            return None, "These features have no language; train with CLIP to ask in words."
        try:
            return self._encoder.query(text), f"Showing: {', '.join(positives)}"
        except F3rmError as error:
            logger.warning("The query %r cannot be answered: %s", text.positives, error)
            return None, str(error)

    def _say(self, status: str) -> None:
        if self.e_status.gui_handle is not None and self.e_status.value != status:
            self.e_status.value = status  # its update makes the viewer render again
