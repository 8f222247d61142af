"""Spaces: dense hidden states and sparse projections as pictures side by side, and how far chosen and rejected lie apart in each."""

from workbench import frame, spaces_view

model = frame.need_model()
found = spaces_view.need_pictures(model)
spaces_view.pictures(model, found)
spaces_view.held(model)
spaces_view.figures(model, found.spaces)
