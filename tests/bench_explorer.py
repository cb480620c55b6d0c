"""How long the explorer takes to answer a switch, measured in a browser, from click to paint."""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.models.language_model import (
    LanguageModelConfig,
    build_language_model,
    give_text,
)

SWITCHES = 40


def bench_switches() -> list[dict[str, Any]]:
    """8 heads beside a toy's 2, and 32 heads on 64 tokens; the goals are 100 and 200 ms."""
    sys.path.append(str(Path(__file__).with_name("browser")))
    from explorer_page import SWITCH_TIME
    from servers import CHROMIUM, FLAGS, explored

    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        return [{"what": "no Chromium is installed"}]
    from playwright.sync_api import sync_playwright

    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for what, model, name, heads, goal in (
            ("2H3ST, 2 and 8 heads, 11 tokens", "2H3ST-gated", "gated", 8, 100),
            ("a language model, 32 heads, 64 tokens", _wide(Path(folder)), "model", 32, 200),
        ):
            with explored(model, Path(folder)) as address:
                page = browser.new_page(viewport={"width": 1400, "height": 1000})
                page.goto(address)
                page.wait_for_selector(".gi-card", timeout=180_000)
                times = [
                    page.evaluate(SWITCH_TIME, f".gi-{name}-{i % heads}") for i in range(SWITCHES)
                ]
                page.close()
            rows.append(
                {"what": what, "best (ms)": min(times), "median (ms)": statistics.median(times),
                 "slowest (ms)": max(times), "goal (ms)": goal}
            )  # fmt: skip
        browser.close()
    return rows


def _wide(folder: Path) -> Path:
    """A file with an untrained layer of 32 heads of 16 dimensions."""
    task = load("austen-1l").task
    shape = LanguageModelConfig(d_vocab=task.d_vocab, n_ctx=64, n_layers=1, d_model=512, n_heads=32)
    model = build_language_model(shape)
    give_text(model, task)
    return save(model, folder / "wide.safetensors")
