"""Align: what does a policy learn from this reward? Launch it, watch its rounds, read why each pair was dropped, judge
that, compare arms.
"""

from workbench.align import view as align_page

align_page.draw()
