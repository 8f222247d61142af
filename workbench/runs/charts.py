"""The chart of the Runs page: a figure of one run, or of two, over time. No Streamlit here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.frame.chart_base import FURTHER, Chart, new_figure, plain


def run_curves(runs: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> Chart:
    """A figure over time or steps for one run, or two overlaid: (x, y) points by the run's name."""
    figure = new_figure(x=x, y=y, height=300, legend=len(runs) > 1)
    for (name, points), colour, dash in zip(runs.items(), (FURTHER[0], FURTHER[3], *FURTHER[1:3]), ("solid", "dash", "dot", "dashdot"), strict=False):
        figure.add_scatter(
            x=[point[0] for point in points],
            y=[point[1] for point in points],
            mode="lines" if len(points) > 40 else "lines+markers",
            name=plain(name),
            line={"color": colour, "width": 2, "dash": dash},
            hovertext=[f"{plain(name)}: {point[0]:.4g}, {point[1]:.4g}" for point in points],
            hoverinfo="text",
        )
    rows = [{"run": name, x: point[0], y: point[1]} for name, points in runs.items() for point in points]
    return Chart(name="runs", figure=figure, alt=f"{y} against {x} of {len(runs)} runs.", rows=rows)
