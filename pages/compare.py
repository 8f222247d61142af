"""Compare: two reward models on the same pairs."""

from workbench.compare import view as compare_page
from workbench.frame import layout

compare_page.draw(layout.need_model())
