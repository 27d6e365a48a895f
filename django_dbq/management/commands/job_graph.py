"""``manage.py job_graph``: a pipeline as a picture."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import conf
from ...pipelines import Pipeline, UnknownJob


class Command(BaseCommand):
    help = "Write the pipeline of a job as DOT, SVG or Mermaid. SVG needs graphviz's `dot` program; the others nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="one of the names in JOBS")
        parser.add_argument("--format", choices=["dot", "svg", "mermaid"], default="dot")
        parser.add_argument(
            "--output", type=Path, metavar="FILE", help="write here instead of the standard output"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            pipeline = conf.catalogue().named(options["name"])
        except UnknownJob as error:
            raise CommandError(str(error)) from None
        text = {"dot": dot, "svg": svg, "mermaid": mermaid}[options["format"]](pipeline)
        if options["output"]:
            options["output"].write_text(text)
        else:
            self.stdout.write(text.rstrip("\n"))


def edges(pipeline: Pipeline) -> list[tuple[str, str, str]]:
    """The arrows as (from, to, label); nodes are ``start``, ``step0`` …, ``complete`` and ``failed``."""
    names = [f"step{step.place}" for step in pipeline.steps]
    stops = ["start", *names, "complete"]
    labels = [
        pipeline.creation_hook or "",
        *[""] * (len(names) - 1),
        pipeline.completion_hook or "",
    ]
    arrows = [
        (tail, head, _short(label))
        for tail, head, label in zip(stops[:-1], stops[1:], labels, strict=True)
    ]
    if pipeline.failure_hook:
        arrows += [(name, "failed", _short(pipeline.failure_hook)) for name in names]
    return arrows


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def dot(pipeline: Pipeline) -> str:
    return str(_digraph(pipeline).source)


def svg(pipeline: Pipeline) -> str:
    from graphviz import ExecutableNotFound

    try:
        return str(_digraph(pipeline).pipe(format="svg", encoding="utf-8"))
    except ExecutableNotFound:
        raise CommandError(
            "SVG needs graphviz's `dot` program (on Debian: apt install graphviz); "
            "--format dot and --format mermaid do not."
        ) from None


def _digraph(pipeline: Pipeline) -> Any:
    from graphviz import Digraph, escape

    graph = Digraph("pipeline", comment=" ".join(pipeline.description.split()) or None)
    graph.attr(rankdir="LR", fontname="Helvetica", label=escape(pipeline.name), labelloc="t")
    graph.attr("node", shape="box", style="rounded", fontname="Helvetica")
    graph.attr("edge", fontname="Helvetica", fontsize="10")
    graph.node("start", shape="circle", label="", width="0.2")
    for step in pipeline.steps:
        graph.node(f"step{step.place}", label=_short(step.path), tooltip=step.path)
    graph.node("complete", label="COMPLETE", style="rounded,filled", fillcolor="#d9f2d9")
    if pipeline.failure_hook:
        graph.node("failed", label="FAILED", style="rounded,filled", fillcolor="#f8d7d7")
    for tail, head, label in edges(pipeline):
        graph.edge(tail, head, label=label, style="dashed" if head == "failed" else "solid")
    return graph


def mermaid(pipeline: Pipeline) -> str:
    lines = ["flowchart LR", "    start((start))"]
    lines += [f'    step{step.place}["{_short(step.path)}"]' for step in pipeline.steps]
    lines.append("    complete([COMPLETE])")
    if pipeline.failure_hook:
        lines.append("    failed([FAILED])")
    for tail, head, label in edges(pipeline):
        arrow = "-.->" if head == "failed" else "-->"
        lines.append(f"    {tail} {arrow}" + (f"|{label}|" if label else "") + f" {head}")
    return "\n".join(lines) + "\n"
