"""The page as a person sees it: a browser types and clicks, and its pixels are looked at."""

import socket
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from f3rm.errors import F3rmError
from f3rm.scripts.cli import main
from f3rm.view.answers import Asking
from f3rm.view.page import Page, check_port
from f3rm.view.shown import PAGE
from tests.view.test_answers import looks_like, on_page
from tests.viewer.shown import Opened, free_port
from tests.viewer.viewer_fixtures import wait

PATIENCE = 240.0
"""Seconds that a change may take: Chromium draws on processors that other tests use too."""


@pytest.fixture
def page(asking):
    with closing(Page(asking, host="127.0.0.1", port=free_port())) as opened:
        yield opened


def sent(page, kind) -> Any:
    """The last message of a kind that a new browser would get; None for none."""
    messages = page.server._websock_server._broadcast_buffer.message_from_id.values()
    return next((each for each in reversed(messages) if type(each).__name__ == kind), None)


def sent_colours(page):
    return sent(page, "GaussianSplatsMessage").buffer[:, 7:].copy().view(np.uint8)[:, :3] / 255


def test_a_prompt_recolours_and_an_empty_one_undoes_it(page):
    plain = sent_colours(page)
    page._prompt.value = "pink"
    wait(lambda: "1. pink: from" in page._legend.content)
    assert page._colouring.value == "answer"
    lit = looks_like(sent_colours(page), 0, 1)
    assert 0 < lit.mean() < 0.1
    wait(lambda: sent(page, "LabelMessage"))
    assert sent(page, "LabelMessage").text.startswith("pink 1: ")
    page._prompt.value = " "
    wait(lambda: page._legend.content == "" and page._colouring.value == "photographs")
    wait(lambda: np.array_equal(sent_colours(page), plain))


@pytest.mark.parametrize("text", ["pink >", ", ,", "🦊 {alert(1)} <b>", "pink" * 500, "; ;"])
def test_a_prompt_that_cannot_be_asked_is_answered_in_words(page, text):
    page._prompt.value = text
    wait(lambda: page._status.content not in ("", "Asking ...") or page._legend.content)
    page._prompt.value = "pink"
    wait(lambda: "1. pink: from" in page._legend.content)


def test_a_later_viser_is_called_by_its_public_name(page, monkeypatch):
    called = []
    kind = type(page.server.scene)

    def later(scene, *arguments):
        called.append(arguments)
        return scene._add_gaussian_splats(*arguments)

    monkeypatch.setattr(kind, "add_gaussian_splats", later, raising=False)
    page._colouring.value = "PCA"
    wait(lambda: sent(page, "RemoveSceneNodeMessage"))  # of the old one, or both are drawn
    ((name, centres, covariances, colours, opacities),) = called
    assert name == "/splat0"
    assert sent(page, "RemoveSceneNodeMessage").name == "/splat1"
    assert centres.shape == colours.shape == (len(covariances), 3)
    assert opacities.shape == (len(centres), 1)


def test_a_port_in_use_is_an_error_that_says_so(truth, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(F3rmError, match=rf"--port {port} cannot be used: .* another --port"):
            check_port("127.0.0.1", port)
        assert main(["view", str(truth.folder / "splat.ply"), "--port", str(port)]) == 1
    assert "Give another --port" in capsys.readouterr().err
    with pytest.raises(F3rmError, match=r"--host no\.such\.host"):
        check_port("no.such.host", port)
    assert main(["view", str(truth.folder / "splat.ply"), "--port", str(free_port())]) == 1
    assert "--data" in capsys.readouterr().err


def tinted(opened):
    """The share of the canvas's middle that has the tint of the first question."""
    picture = np.asarray(opened.shot()) / 255
    y, x = picture.shape[0] // 2, picture.shape[1] // 2
    return looks_like(picture[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3), 0, 1).mean()


@pytest.mark.slow
def test_a_browser_draws_the_splat_and_its_answers(browser, asking, scene, cone):
    # Of the table and what is on it only: a browser without a GPU draws few a second.
    table = np.linalg.norm(asking.splat.centres() - on_page(scene, (0, 0, 0.1)), axis=1)
    per_metre = scene.frames.get("metres").scene_per_unit / PAGE.scene_per_unit
    part = asking.splat.subset(torch.from_numpy(table < per_metre))
    with closing(Page(Asking(scene, part), host="127.0.0.1", port=free_port())) as page:
        opened = Opened(
            browser, page.server.get_port(), "Prompt", patience=PATIENCE, size=(960, 400)
        )
        opened.wait(page.server.get_clients)
        (client,) = page.server.get_clients().values()
        there = on_page(scene, cone.centre)
        with client.atomic():  # from above, where nothing hides it
            client.camera.position = there + per_metre * np.array([0.0, -0.3, 0.9])
            client.camera.look_at = there
        opened.wait(lambda: np.asarray(opened.shot())[190:210, 470:490].std() > 2)
        assert tinted(opened) == 0
        opened.type("Prompt", "pink")
        opened.wait(opened.page.get_by_text("1. pink: from").is_visible)
        opened.wait(opened.page.get_by_text("pink 1: ").is_visible)  # the label of the box
        opened.wait(lambda: tinted(opened) > 0.5)
        opened.press("Click to ask")
        opened.wait(opened.page.get_by_text("Click on the splat.").is_visible)
        opened.page.wait_for_timeout(500)
        box = opened.canvas.bounding_box()
        opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        opened.wait(opened.page.get_by_text("1. point 1: from").is_visible)
        opened.wait(opened.page.get_by_text("point 1 1: ").first.is_visible)
        opened.page.close()
