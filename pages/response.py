"""Response: why a response scored as it did, and what would change it."""

from workbench.frame import layout
from workbench.response import view as response_page

response_page.draw(layout.need_model())
