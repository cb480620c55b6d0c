"""The explorer as a user sees it, and what it must show, from the hooks."""

import re
from typing import Any

import torch
from playwright.sync_api import expect

from gated_interp.analysis.ablation import ablated
from gated_interp.explorer.examples import parse_tokens
from gated_interp.models.toy import HookedTransformer

# From the click until the browser has painted the changed figure.
SWITCH_TIME = """async (selector) => {
  const figure = document.querySelector('.gi-explorer .js-plotly-plot');
  const drawn = new Promise(done => figure.once('plotly_afterplot', done));
  const start = performance.now();
  document.querySelector(selector).click();
  await drawn;
  await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
  return performance.now() - start;
}"""


class ExplorerPage:
    """What can be read off and clicked in an explorer."""

    def __init__(self, page: Any):
        self.page = page
        page.wait_for_selector(".gi-explorer .js-plotly-plot .cartesianlayer")

    def prediction(self, model: str = "gated") -> str:
        """The predicted token that is shown."""
        return str(self.page.locator(f".gi-answer-{model} b").inner_text()).split()[0]

    def switch(self, head: int, model: str = "gated") -> Any:
        """The switch of one head."""
        return self.page.locator(f".gi-{model}-{head}")

    def shown_off(self) -> int:
        """How many squares of the figure say that their head is off."""
        return sum(t == "off" for t in self.page.locator(".textpoint text").all_text_contents())

    def tokens(self) -> str:
        """The example in the box."""
        return str(self.tokens_box.input_value())

    @property
    def tokens_box(self) -> Any:
        """Where an example is typed."""
        return self.page.locator(".gi-explorer input[type=text]")

    def position(self) -> int:
        """The position that predictions are read at."""
        buttons = self.page.locator(".gi-tokens button")
        kinds = [buttons.nth(i).get_attribute("class") for i in range(buttons.count())]
        (at,) = [i for i, kind in enumerate(kinds) if "mod-active" in (kind or "")]
        return at

    def button(self, label: str) -> Any:
        """A button by its label."""
        return self.page.locator(".gi-explorer button", has_text=label)

    def type_tokens(self, words: str) -> None:
        """Type an example and press Enter."""
        self.tokens_box.fill(words)
        self.tokens_box.press("Enter")

    def expect_prediction(self, token: str, model: str = "gated") -> None:
        """Wait until a model is shown to predict ``token``."""
        shown = self.page.locator(f".gi-answer-{model} b")
        expect(shown).to_have_text(re.compile(rf"^{token}( |$)"))

    def expect_off(self, count: int) -> None:
        """Wait until so many squares of the figure say that their head is off."""
        texts = self.page.locator(".textpoint text")
        expect(texts.filter(has_text=re.compile("^off$"))).to_have_count(count)

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
        found: list[str] = self.page.locator(".barlayer .bartext").all_text_contents()
        return found


def predicted(
    model: HookedTransformer, words: str, position: int, off: list[int], method: str = "zero"
) -> str:
    """What the hooks say: the token a model predicts with some heads ablated."""
    tokens = torch.tensor([parse_tokens(words, model.task, model.cfg.n_ctx)])
    with torch.no_grad():
        if not off:
            logits = model(tokens)
        else:
            with ablated(model, [(0, h) for h in off], method):
                logits = model(tokens)
    return str(model.task.token_names[int(logits[0, position].argmax())])
