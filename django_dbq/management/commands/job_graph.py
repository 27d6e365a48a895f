"""``manage.py job_graph``: a pipeline as a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser

from ... import conf
from ...pipelines import Group, Map, Pipeline, Sleep, Step, UnknownJob, WaitFor
from ..printing import PrintingCommand


class Command(PrintingCommand):
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
            try:
                options["output"].write_text(text, encoding="utf-8")  # as SVG says of itself
            except OSError as error:
                raise CommandError(f"--output {options['output']}: {error.strerror}") from None
        else:
            self.stdout.write(text.rstrip("\n"))


def edges(pipeline: Pipeline) -> list[tuple[str, str, str]]:
    """The arrows as (from, to, label); nodes are ``start``, ``step0`` …, ``complete`` and ``failed``.

    The branches of a group at place 1 part at ``step1`` and meet again at ``step1_end``.
    """
    chain = list(_chain("start", pipeline.steps, "complete"))
    labels = [
        _short(pipeline.creation_hook or ""),
        *[""] * (len(chain) - 2),
        _short(pipeline.completion_hook or ""),
    ]
    arrows = [(*ends, label) for ends, label in zip(chain, labels, strict=True)]
    if pipeline.failure_hook:
        arrows += [(_end(step), "failed", _short(pipeline.failure_hook)) for step in pipeline.steps]
    return arrows


def _chain(tail: str, steps: tuple[Step, ...], head: str) -> Iterator[tuple[str, str]]:
    for step in steps:
        yield tail, f"step{step.place}"
        tail = _end(step)
        if isinstance(step, Group):
            for branch in step.branches:
                yield from _chain(f"step{step.place}", branch, tail)
    yield tail, head


def _end(step: Step) -> str:
    return f"step{step.place}_end" if isinstance(step, Group) else f"step{step.place}"


def _lines(step: Step) -> list[str]:
    """What is written on a step."""
    lines = [step.name]
    if isinstance(step, Map):
        lines.append(f"over {step.over}")
    elif isinstance(step, Sleep):
        lines = [*_given(step, "sleep"), f"sleep {step.seconds} s"]
    elif isinstance(step, WaitFor):
        lines = [*_given(step, step.event), f"wait for {step.event}"]
        if step.patience is not None:
            lines.append(f"at most {step.patience} s, then {step.on_timeout}")
    elif isinstance(step, Group):
        lines = _given(step, "group")
    if isinstance(step, Group | Map) and step.on_failure != "fail":
        lines.append(f"on failure: {step.on_failure}")
    if step.when:
        lines.append(f"if {_short(step.when)}")
    return [" ".join(line.split()) for line in lines]


def _given(step: Step, default: str) -> list[str]:
    return [step.name] if step.name != default else []


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
    _dot_nodes(graph, pipeline.steps)
    graph.node("complete", label="COMPLETE", style="rounded,filled", fillcolor="#d9f2d9")
    if pipeline.failure_hook:
        graph.node("failed", label="FAILED", style="rounded,filled", fillcolor="#f8d7d7")
    for tail, head, label in edges(pipeline):
        graph.edge(tail, head, label=label, style="dashed" if head == "failed" else "solid")
    return graph


def _dot_nodes(graph: Any, steps: tuple[Step, ...]) -> None:
    from graphviz import escape, nohtml

    for step in steps:
        name = f"step{step.place}"
        label = nohtml("\\n".join(map(escape, _lines(step))))
        if isinstance(step, Group):
            bar = {"label": "", "style": "filled", "fillcolor": "black", "width": "0.05"}
            with graph.subgraph(name=f"cluster_{name}") as frame:
                frame.attr(label=label, style="dashed" if step.when else "solid", color="#999999")
                frame.node(name, tooltip="all branches at once", **bar)
                for branch in step.branches:
                    _dot_nodes(frame, branch)
                frame.node(_end(step), tooltip="after all branches", **bar)
            continue
        more = {}
        if type(step) is not Step:
            more = {"shape": "box3d" if isinstance(step, Map) else "hexagon", "style": "solid"}
        if step.when:
            more["style"] = "dashed" if more else "rounded,dashed"
        graph.node(name, label=label, tooltip=escape(step.path), **more)


def mermaid(pipeline: Pipeline) -> str:
    lines = ["flowchart LR", "    start((start))", *_mermaid_nodes(pipeline.steps, "    ")]
    lines.append("    complete([COMPLETE])")
    if pipeline.failure_hook:
        lines.append("    failed([FAILED])")
    for tail, head, label in edges(pipeline):
        arrow = "-.->" if head == "failed" else "-->"
        lines.append(f"    {tail} {arrow}" + (f"|{label}|" if label else "") + f" {head}")
    for step in pipeline.every:
        if step.when:
            kind = "group" if isinstance(step, Group) else "step"
            lines.append(f"    style {kind}{step.place} stroke-dasharray: 5 5")
    return "\n".join(lines) + "\n"


def _mermaid_nodes(steps: tuple[Step, ...], indent: str) -> Iterator[str]:
    for step in steps:
        text = "<br/>".join(map(_mermaid_text, _lines(step))) or " "
        if isinstance(step, Group):
            yield f'{indent}subgraph group{step.place}["{text}"]'
            yield f'{indent}    step{step.place}((" "))'
            for branch in step.branches:
                yield from _mermaid_nodes(branch, indent + "    ")
            yield f'{indent}    {_end(step)}((" "))'
            yield f"{indent}end"
        else:
            left, right = ("[", "]") if type(step) is Step else ("{{", "}}")
            if isinstance(step, Map):
                left, right = "[[", "]]"
            yield f'{indent}step{step.place}{left}"{text}"{right}'


def _mermaid_text(text: str) -> str:
    """``text`` with those characters as entities that would end it or be taken for one."""
    return "".join(f"#{ord(c)};" if c in '#&"<>`' else c for c in text)
