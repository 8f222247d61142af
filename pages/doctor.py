"""Doctor: can this reward model be trusted? Pass, warn or fail, with the figure, the bound and the remedy."""

from workbench.doctor import view as doctor_view
from workbench.frame import layout

model = layout.need_model()
report = doctor_view.need_report(model)
doctor_view.verdict(model, report)
doctor_view.checks(model, report)
