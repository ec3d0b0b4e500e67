"""Where no network is, the hub is asked once, whichever library would fetch the weights."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from huggingface_hub import constants

from f3rm.backbones import hub
from f3rm.backbones.hub import HubUnreachableError, require_hub

ALL_ADAPTERS = """
import json, os, socket, threading, warnings
warnings.simplefilter("ignore")
calls = []
server = socket.create_server(("127.0.0.1", 0))
def hang_up():
    while True:
        connection, _ = server.accept()
        calls.append(1)
        connection.close()
threading.Thread(target=hang_up, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.getsockname()[1]}"
from f3rm.errors import BackboneRef, BackboneUnavailableError
from f3rm.backbones import load_backbone
found = []
for ref in [
    BackboneRef("clip", "ViT-L-14-336-quickgelu", "openai"),
    BackboneRef("clip", "any", "hf-hub:f3rm/no-such-clip"),
    BackboneRef("dino", "any", "f3rm/no-such-dino"),
    BackboneRef("llava", "any", "f3rm/no-such-llava"),
    BackboneRef("vae", "vae", "f3rm/no-such-vae"),
]:
    calls.clear()
    try:
        load_backbone(ref)
    except BackboneUnavailableError as error:
        found.append((f"{ref.adapter} {ref.weights}", len(calls), str(error)))
print(json.dumps(found))
"""


@pytest.fixture
def online(monkeypatch):
    """Requests are allowed, whatever the environment says."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def address(server):
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_every_adapter_asks_once_and_says_what_to_do(tmp_path):
    pytest.importorskip("diffusers")
    allowed = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        and not name.lower().endswith("_proxy")
    }
    result = subprocess.run(
        [sys.executable, "-c", ALL_ADAPTERS],
        env={**allowed, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert len(found) == 5
    assert [(name, calls) for name, calls, _ in found if calls != 1] == []
    for name, _, message in found:
        assert "this machine seems to be offline (http://127.0.0.1:" in message, name
        assert "To use a local copy, pass --weights" in message, name


@pytest.mark.usefixtures("online")
def test_any_answer_is_an_answer(monkeypatch, server):
    monkeypatch.setattr(constants, "ENDPOINT", address(server))

    def answer():
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    require_hub()
    thread.join()


@pytest.mark.usefixtures("online")
def test_a_hub_that_never_answers_is_given_up(monkeypatch, server):
    monkeypatch.setattr(constants, "ENDPOINT", address(server))
    monkeypatch.setattr(hub, "_ask", lambda _: time.sleep(30))  # as a missing name server does
    monkeypatch.setattr(hub, "_PATIENCE_SECONDS", 0.01)
    with pytest.raises(HubUnreachableError, match=r"no answer in 0\.01 s"):
        require_hub()


def test_patience_is_less_than_three_seconds():
    assert hub._PATIENCE_SECONDS < 3


def test_the_environment_forbids_asking(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask", lambda _: pytest.fail("sent a request"))
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        require_hub()


@pytest.mark.usefixtures("online")
def test_cached_weights_of_other_libraries_are_read_without_a_request(monkeypatch):
    with hub.cache_only():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
