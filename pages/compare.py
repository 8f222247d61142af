"""Compare: two reward models on the same pairs."""

from workbench import compare_page, frame

compare_page.draw(frame.need_model())
