"""The explorer as a user sees it, and what it must show, from the hooks."""

import re
from typing import Any

import torch
from playwright.sync_api import expect

from gated_interp.analysis.ablation import without_heads
from gated_interp.explorer.vocabulary import NamedTokens
from gated_interp.models.toy import HookedTransformer

# From the click until the browser has painted all that changed.
SWITCH_TIME = """async (selector) => {
  const button = document.querySelector(selector);
  // All is drawn in one piece, and who watches is told after it.
  const drawn = new Promise((done, fail) => {
    new MutationObserver((seen, self) => {
      self.disconnect(); done();
    }).observe(button, {attributes: true, attributeFilter: ['aria-pressed']});
    setTimeout(() => fail(new Error(`${selector} never said that it was switched`)), 60000);
  });
  const start = performance.now();
  button.click();
  await drawn;
  await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
  return performance.now() - start;
}"""

# What reaches beyond the explorer or the window, or has words that its box cuts.
OVERFLOW = """() => {
  const root = document.querySelector('.gi-explorer'), edge = root.getBoundingClientRect();
  const page = document.documentElement;
  const wrong = page.scrollWidth > innerWidth ? [`the page is ${page.scrollWidth} wide`] : [];
  for (const node of root.querySelectorAll('*')) {
    if (!node.checkVisibility() || node.closest('dialog')) continue;
    const box = node.getBoundingClientRect();
    const name = `${node.tagName} ${node.className} ${node.textContent.slice(0, 20)}`;
    if (box.right > edge.right + 1 || box.left < edge.left - 1) wrong.push(`${name} leaves`);
    if (['BUTTON', 'H3', 'H4', 'LABEL'].includes(node.tagName)
        && node.scrollWidth > node.clientWidth + 1) wrong.push(`${name} is cut`);
  }
  return wrong;
}"""


class ExplorerPage:
    """What can be read off and clicked in an explorer."""

    def __init__(self, page: Any):
        self.page = page
        page.wait_for_selector(".gi-explorer .gi-card")

    def prediction(self, model: str = "gated") -> str:
        """The predicted token that is shown."""
        shown = self.page.locator(f".gi-answer-{model} b").text_content()
        return str(shown).split()[0]

    def switch(self, head: int, model: str = "gated") -> Any:
        """The switch of one head."""
        return self.page.locator(f".gi-{model}-{head}")

    def shown_off(self) -> int:
        """How many patterns say that their head is off."""
        return int(self.page.locator(".gi-off:visible").count())

    def tokens(self) -> str:
        """The example in the box."""
        return str(self.tokens_box.input_value())

    @property
    def tokens_box(self) -> Any:
        """Where an example is typed."""
        return self.page.locator(".gi-explorer .gi-box")

    def position(self) -> int:
        """The position that predictions are read at."""
        buttons = self.page.locator(".gi-tokens button")
        kinds = [buttons.nth(i).get_attribute("aria-pressed") for i in range(buttons.count())]
        (at,) = [i for i, kind in enumerate(kinds) if kind == "true"]
        return at

    def button(self, label: str) -> Any:
        """A button above the models, by its label."""
        return self.page.locator(".gi-bar button", has_text=label)

    def type_tokens(self, words: str) -> None:
        """Type an example and press Enter."""
        self.tokens_box.fill(words)
        self.tokens_box.press("Enter")

    def expect_prediction(self, token: str, model: str = "gated") -> None:
        """Wait until a model is shown to predict ``token``."""
        shown = self.page.locator(f".gi-answer-{model} b")
        expect(shown).to_have_text(re.compile(rf"^{token}( |$)"))

    def expect_off(self, count: int) -> None:
        """Wait until so many patterns say that their head is off."""
        expect(self.page.locator(".gi-off:visible")).to_have_count(count)

    def expect_pressed(self, head: int, on: bool, model: str = "gated") -> None:
        """Wait until the switch of one head says to everyone whether it is on."""
        expect(self.switch(head, model)).to_have_attribute("aria-pressed", str(on).lower())

    def expect_count(self, words: str) -> None:
        """Wait until the counter says ``words``."""
        expect(self.page.locator(".gi-count")).to_have_text(words)

    def expect_other_tokens(self, words: str) -> None:
        """Wait until the box holds another example; it may be drawn after the counter."""
        expect(self.tokens_box).not_to_have_value(words)

    def expect_message(self, words: str) -> None:
        """Wait until the message holds ``words``."""
        expect(self.page.locator(".gi-message")).to_contain_text(words)

    def expect_no_message(self) -> None:
        """Wait until nothing is said about the last input."""
        expect(self.page.locator(".gi-message")).to_have_text("")

    def bars(self) -> list[str]:
        """What stands above the accuracy bars: the original's, then the gated model's."""
        found: list[str] = self.page.locator(".gi-facts .gi-value").all_text_contents()
        return found

    def places(self, which: str = "*") -> list[list[float]]:
        """Where every box that a selector finds stands, and how large it is."""
        found: list[list[float]] = self.page.evaluate(
            """(which) => [...document.querySelectorAll(`.gi-explorer ${which}`)].map((node) => {
              const {x, y, width, height} = node.getBoundingClientRect();
              return [x, y, width, height];
            })""",
            which,
        )
        return found

    def overflow(self) -> list[str]:
        """What is wider than the window, or than the box that the explorer stands in."""
        found: list[str] = self.page.evaluate(OVERFLOW)
        return found


def predicted(
    model: HookedTransformer, words: str, position: int, off: list[int], method: str = "zero"
) -> str:
    """What the hooks say: the token a model predicts with some heads ablated."""
    parse = NamedTokens(model.task.token_names).parse
    tokens = torch.tensor([parse(words, model.cfg.n_ctx)])
    with torch.no_grad():
        if not off:
            logits = model(tokens)
        else:
            with without_heads(model, [(0, h) for h in off], method):
                logits = model(tokens)
    return str(model.task.token_names[int(logits[0, position].argmax())])
