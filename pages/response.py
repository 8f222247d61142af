"""Response: why a response scored as it did, and what would change it."""

from workbench import frame, response_page

response_page.draw(frame.need_model())
