"""The list of pages: the file of each, its section in the sidebar, and the question it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class PageSpec:
    """One page. `name` is its URL and the stem of its file under pages/."""

    name: str
    title: str
    section: str
    icon: str
    question: str

    @property
    def file(self) -> Path:
        return ROOT / "pages" / f"{self.name}.py"

    @property
    def script(self) -> str:
        """The path that Streamlit takes: relative to workbench/app.py."""
        return f"../pages/{self.name}.py"


_ALL = (
    ("overview", "Overview", "Start", "home", "How good is the reward model, and beside what?"),
    ("preferences", "Preferences", "Data", "table_rows", "What are the pairs, and what could be learnt from them by accident?"),
    ("latents", "Latents", "Model", "scatter_plot", "Which latents tell chosen from rejected?"),
    ("latent", "Latent", "Model", "adjust", "What is this latent active on, and what does it do to the reward?"),
    ("spaces", "Spaces", "Model", "bubble_chart", "How do dense states and sparse projections lie to one another?"),
    ("doctor", "Doctor", "Model", "stethoscope", "Can this reward model be trusted?"),
    ("response", "Response", "Inspect", "troubleshoot", "Why did this response score as it did?"),
    ("compare", "Compare", "Inspect", "compare_arrows", "Where do two reward models disagree?"),
    ("align", "Align", "Policy", "model_training", "What does a policy learn from this reward?"),
    ("shift", "Shift", "Policy", "moving", "How far did the policy move from the training data?"),
    ("runs", "Runs", "Runs", "rocket_launch", "What is computed, and how does it go?"),
)
PAGES = tuple(
    PageSpec(name=name, title=title, section=section, icon=f":material/{icon}:", question=asks) for name, title, section, icon, asks in _ALL
)


def pages() -> tuple[PageSpec, ...]:
    """The pages whose files exist."""
    return tuple(spec for spec in PAGES if spec.file.is_file())


def find_page(name: str) -> PageSpec | None:
    """The page of this name; None where there is no such page."""
    return next((spec for spec in pages() if spec.name == name), None)
