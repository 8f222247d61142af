"""Shift: how far did the policy move from the training data, in the dense and in the sparse space, beside random
controls?
"""

from workbench.shift import view as shift_view

shift_view.draw()
