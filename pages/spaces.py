"""Spaces: dense hidden states and sparse projections as pictures side by side, and how far chosen and rejected lie
apart in each.
"""

from workbench.frame import layout
from workbench.spaces import view as spaces_view

model = layout.need_model()
points = spaces_view.need_pictures(model)
spaces_view.pictures(model, points)
spaces_view.selected_pairs(model)
spaces_view.separation(model, points.spaces)
