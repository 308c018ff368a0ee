"""``bend serve`` as its users meet it: curl, an unmodified OIP client, a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from serving import Load, Serving

from bend_ray.serve.bag import Bag
from bend_ray.serve.settings import Stop

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def serving(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    running = Serving(tmp_path_factory.mktemp("serving"), folder)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_it_prints_works(serving: Serving, bag: Bag) -> None:
    command = serving.said().splitlines()[-1]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["predictions"][0]["model_version"] == bag.card.model_version


def test_the_replica_computes_without_torch(serving: Serving) -> None:
    replicas = [
        child
        for child in psutil.Process(serving.process.pid).children(recursive=True)
        if "ServeReplica" in " ".join(child.cmdline())
    ]
    assert len(replicas) == 1
    mapped = [entry.path for entry in replicas[0].memory_maps()]
    assert any("onnxruntime" in path for path in mapped)
    assert not [path for path in mapped if "torch" in path]


# Its geventhttpclient reads a deprecated attribute of its own dependency.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("binary", [True, False])
def test_tritons_own_client(serving: Serving, bag: Bag, images: np.ndarray, binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(serving.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bag", bag.card.model_version)
    assert client.get_model_metadata("bag")["versions"] == [bag.card.model_version]
    asked = triton.InferInput("images", list(images.shape), "UINT8")
    asked.set_data_from_numpy(images, binary_data=binary)
    names = ("probabilities", "label", "member_probabilities")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    said = client.infer("bag", [asked], outputs=outputs)
    expected = bag.answer({"images": images}, [Stop()] * len(images))
    np.testing.assert_array_equal(said.as_numpy("label"), expected["label"])
    np.testing.assert_allclose(said.as_numpy("probabilities"), expected["probabilities"], atol=1e-6)
    members = said.as_numpy("member_probabilities")
    np.testing.assert_allclose(members, expected["member_probabilities"], atol=1e-6)
    wrong = triton.InferInput("images", [1, 1, 8, 9], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 1, 8, 9), np.uint8), binary_data=binary)
    with pytest.raises(triton.InferenceServerException, match=r"shape \[n, 1, 8, 8\]"):
        client.infer("bag", [wrong])
    client.close()


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window, which may ask nobody but this machine."""
    from selenium import webdriver
    from selenium.common.exceptions import SessionNotCreatedException

    # Selenium would download whichever of the two it does not find.
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    # What the page asks of other machines would fail, and be in the log.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        started = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    except SessionNotCreatedException as error:
        pytest.skip(f"{DRIVER} does not drive {CHROMIUM}: {error.msg}")
    yield started
    started.quit()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_drawing_is_answered_in_a_browser(serving: Serving, browser: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(serving.url)
    canvas = browser.find_element(By.ID, "canvas")
    stroke = ActionChains(browser).move_to_element_with_offset(canvas, 0, -90)
    stroke.click_and_hold().move_by_offset(0, 90).move_by_offset(0, 90).release().perform()
    label = browser.find_element(By.ID, "label")
    WebDriverWait(browser, 30).until(lambda _: label.text.isdigit())
    assert "of 9 members agree" in browser.find_element(By.ID, "sure").text
    # In one go: a stroke is answered more than once, and each answer replaces the members.
    label_text, votes = browser.execute_script(
        "return [document.querySelector('#label').textContent, [...document.querySelectorAll("
        "'#members li')].map(li => [li.textContent, li.className])]"
    )
    assert len(votes) == 9
    agree = [text for text, _ in votes if text == label_text]
    others = [kind for _, kind in votes if kind == "other"]
    assert len(agree) + len(others) == 9
    browser.get(f"{serving.url}/docs")
    found = (By.CSS_SELECTOR, "#operations section")
    WebDriverWait(browser, 30).until(lambda _: len(browser.find_elements(*found)) >= 8)
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in severe if "favicon" not in entry["message"]] == []


def test_asked_to_end_it_answers_what_has_come(serving: Serving) -> None:
    # The last test of the module: what it does cannot be undone.
    with Load(serving.url, clients=2) as load:
        while sum(load.answers.values()) < 20:
            time.sleep(0.05)
        assert not load.failures()
    assert serving.stop() == 0
    assert "Traceback" not in serving.said()
