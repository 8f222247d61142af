"""Latent: one latent's page, as on Neuronpedia, with what it does to the reward."""

from workbench.frame import layout
from workbench.latents import latent_view
from workbench.latents import values as latents

model = layout.need_model()
latent = latent_view.need_latent(model)
pages = latents.find_pages(model, [latent]) or latents.find_pages(model)
page = pages[latent] if pages is not None and latent in pages else None
row = latents.figures_of(model, latent)

latent_view.choose(model, latent, page)
latent_view.naming(model, latent)
latent_view.figures(model, row, page, pages)
if page is not None and pages is not None:
    latent_view.evidence(model, page, pages)
else:
    latent_view.missing(model, latent, pages)
latent_view.effect(model, latent, row)
latent_view.own_text(model, latent)
