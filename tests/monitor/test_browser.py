"""The board as a user sees it: a real run, a real TensorBoard, and a real browser that reads it and takes a picture.

The picture lies in the folder that LG_BOARD_PICTURE names, if it is set.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from PIL import Image
from small_run import data, model, trainer

import lg.monitor

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no Chromium here"),
]
# It comes with datasets, for its downloads.
aiohttp = pytest.importorskip("aiohttp")

SCALARS = (
    ["train/loss_nats", "train/bits_per_byte", "train/grad_norm", "val/loss_nats", "val/bits_per_byte"],
    ["work/visible_TFLOP_per_s", "work/executed_TFLOP_per_s", "work/dense_equivalent_TFLOP_per_s", "speed/step_s"],
    ["data/padding_percent", "data/align_percent", "data/wait_ms", "memory/resident_GiB", "grad_norm/local"],
    ["loss_by_position/00000-00127_nats", "loss_by_position/00128-00255_nats", "needle/accuracy_percent"],
)
# As many as a page has room for, in four images and eight charts.
PICTURED = [
    "train/loss_nats", "val/loss_nats", "needle/gain_nats", "needle/gain", "loss_by_position/over_training",
    "loss_by_position/difference_over_training", "model/patterns", "speed/tokens_per_s", "work/mfu_percent",
    "data/tokens", "data/wait_percent", "grad_norm/full",
]  # fmt: skip
# All that a page shows, what its components keep to themselves included.
TEXT = """
(() => {
  const texts = [];
  const walk = (node) => {
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) texts.push(child.data);
      else if (child.nodeType === Node.ELEMENT_NODE && !["SCRIPT", "STYLE"].includes(child.tagName)) {
        if (child.title) texts.push(child.title);
        walk(child);
      }
    }
  };
  walk(document.body);
  return texts.join(" ");
})()
"""
IMAGES = "[...document.querySelectorAll('img')].filter(i => i.complete && i.naturalWidth > 100).length"


class Browser:
    """A page of a headless Chromium, driven over its DevTools protocol."""

    def __init__(self, socket: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._socket, self._loop = socket, loop
        self._numbers = itertools.count()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), 60))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def value(self, script: str) -> Any:
        """What a script gives; None while the page has no body yet."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def visit(self, url: str) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=1500, height=1720, deviceScaleFactor=1, mobile=False)
        # Without the pane of settings there is room for three cards in a row.
        closed = json.dumps({"timeSeriesSettingsPaneOpened": False})
        self.call("Page.navigate", url=url)
        self.value(f"localStorage.setItem('_tb_global_settings', JSON.stringify({closed}))")
        # TensorBoard would take a new fragment for a place on the page that it shows.
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def show(self, board: str, tags: list[str]) -> None:
        """Visits the time series of some tags, up to a dozen."""
        self.visit(f"{board}?tagFilter=^({'|'.join(tags)})$#timeseries")

    def wait_for(self, *words: str, images: int = 0) -> None:
        """Goes on once the page has all these words and so many images."""
        for _ in range(60):
            text = " ".join((self.value(TEXT) or "").split())
            if all(word in text for word in words) and (self.value(IMAGES) or 0) >= images:
                return
            time.sleep(0.5)
        missing = [word for word in words if word not in text]
        pytest.fail(f"the page lacks {missing} or some of {images} images; it says {text[:3000]}")

    def picture(self) -> Image.Image:
        time.sleep(2)  # charts are drawn a little after they are there
        return Image.open(BytesIO(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])))


@contextmanager
def process(*command: str, says: str) -> Iterator[str]:
    """A process that runs meanwhile, and what it says when it is ready: the group of a pattern."""
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stderr is not None
    try:
        said = ""
        for line in running.stderr:
            said += line
            found = re.search(says, line)
            if found:
                yield found[1]
                return
        pytest.fail(f"{command[0]} ended: {said}")
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        running.stderr.close()


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    loop = asyncio.new_event_loop()
    with process(BROWSER, *options, says=r"DevTools listening on ws://([^/]+)/") as address:

        async def connect() -> tuple[Any, Any]:
            session = aiohttp.ClientSession()
            async with session.get(f"http://{address}/json/list") as answer:
                pages = json.loads(await answer.text())
            url = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            return session, await session.ws_connect(url, max_msg_size=0)

        session, socket = loop.run_until_complete(connect())
        try:
            yield Browser(socket, loop)
        finally:
            loop.run_until_complete(socket.close())
            loop.run_until_complete(session.close())
            loop.close()


def run_with_every_callback(folder: Path) -> None:
    names = [name for name in lg.monitor.__all__ if issubclass(getattr(lg.monitor, name), pl.Callback)]
    callbacks = [getattr(lg.monitor, name)() for name in names]
    trainer(folder, callbacks, max_steps=12, val_check_interval=4, enable_checkpointing=True).fit(model(), data())


def test_the_board_shows_it_all(tmp_path: Path) -> None:
    run_with_every_callback(tmp_path / "logs")
    server = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "logs"), "--port", "0"]
    with (
        process(*server, "--host", "127.0.0.1", says=r"at (http://[^ ]+)") as board,
        browser(tmp_path / "profile") as page,
    ):
        for tags in SCALARS:
            page.show(board, tags)
            page.wait_for(*tags)
        page.show(board, PICTURED)
        page.wait_for(*PICTURED, images=4)
        picture = page.picture()
        page.visit(f"{board}#text&tagFilter=^(model|run)")
        page.wait_for("model/card", "schedule local, full", "run/versions", "run/configuration")
        page.visit(f"{board}#text&tagFilter=^samples")
        page.wait_for("samples/continuation", "the model goes on", "samples/training_row", "quick brown fox")
        texts = page.picture()
    for taken in (picture, texts):
        assert taken.width == 1500
        # A page that is blank, or one that failed, has hardly any ink.
        assert (np.asarray(taken.convert("L")) < 128).mean() > 0.003
    if folder := os.environ.get("LG_BOARD_PICTURE"):
        picture.save(Path(folder, "board.png"))
        texts.save(Path(folder, "texts.png"))
