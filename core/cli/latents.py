"""`sparserm latents`: what each latent is active on and what it promotes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli.options import add_command, add_options, override, print_json
from core.cli.runs import DETACH_HELP, detach
from core.config import LatentsConfig, LatentsRunConfig
from core.runs.progress import Display

if TYPE_CHECKING:
    from typing import Any

    from core.latents.pages import LatentPages
    from core.reward.folder import ModelFolder

EXAMPLES = {
    "latents": "examples:\n  sparserm latents my_reward_model\n  sparserm latents my_reward_model --latent 1234 --corpus pairs,more_texts.jsonl\n"
    "  sparserm latents my_reward_model --all",
}


def add_latents(commands: Any) -> None:
    """Adds `latents`."""
    help_ = "show what latents are active on: texts, figures and promoted tokens, in Neuronpedia's fields"
    parser = add_command(commands, "latents", latents_command, help_, EXAMPLES)
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a reward model")
    parser.add_argument("--latent", metavar="N", type=int, action="append", default=[], help="show this latent's page; repeat it for more")
    parser.add_argument("--all", action="store_true", help="make the pages of all live latents, not only of those the model selects")
    parser.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add_options(parser, LatentsConfig(), "texts and pages")
    parser.add_argument("--detach", action="store_true", help=DETACH_HELP)


def latents_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.cli import explanation_view, latent_view
    from core.latents.find_pages import selected_latents
    from core.latents.label_book import labels_of
    from core.reward.folder import ModelFolder

    if arguments.detach:
        detach("latents", _as_run(arguments), arguments, display)
        return
    folder = ModelFolder(arguments.model)
    pages = _pages(folder, arguments, display)
    found = [pages.page(latent) for latent in arguments.latent]  # an unknown one is said before anything is printed
    display.close()
    if arguments.json:
        print_json({"artefact": str(pages.folder), **pages.corpus})
        return
    labels = labels_of(folder)
    if found:
        explanation_view.show([part for page in found for part in latent_view.page_parts(page, labels)] + [latent_view.read_on(pages)])
    else:
        explanation_view.show(list(latent_view.overview(pages, selected_latents(folder), labels)))
    print(f"pages of {len(pages):,} latents: {pages.folder}")


def _as_run(arguments: argparse.Namespace) -> LatentsRunConfig:
    named = {"model": str(arguments.model), "device": arguments.device, "latent": tuple(arguments.latent)}
    return LatentsRunConfig(**named, which="all" if arguments.all else "selected", pages=override(LatentsConfig(), vars(arguments)))


def _pages(folder: ModelFolder, arguments: argparse.Namespace, display: Display) -> LatentPages:
    """Found, or made when the device is free."""
    from core.jobs.job import foreground_turn
    from core.latents.find_pages import find_pages
    from core.latents.make_pages import make_pages

    config: LatentsConfig = override(LatentsConfig(), vars(arguments))
    pages = find_pages(folder, config, arguments.latent, every=arguments.all)
    if pages is not None:
        return pages
    with foreground_turn(folder.parts.backbone_config, folder.store, display.say):
        return make_pages(folder, config, arguments.latent, every=arguments.all, device=arguments.device, progress=display)
