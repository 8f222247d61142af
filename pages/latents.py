"""Latents: which latents tell chosen from rejected responses, and how surely."""

from workbench import frame, latents, latents_view

model = frame.need_model()
found = latents.selection(model, latents_view.chosen_k(model))
latents_view.overview(model, found)
latents_view.table(model, found)
