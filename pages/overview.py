"""Overview: how good the reward model is, and beside what."""

from workbench import frame

model = frame.need_model()
