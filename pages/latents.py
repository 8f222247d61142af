"""Latents: which latents tell chosen from rejected responses, and how surely."""

from workbench.frame import layout
from workbench.latents import values as latents
from workbench.latents import view as latents_view

model = layout.need_model()
selected = latents.selection(model, latents_view.chosen_k(model))
latents_view.overview(model, selected)
latents_view.table(model, selected)
latents_view.being_prepared(model)
