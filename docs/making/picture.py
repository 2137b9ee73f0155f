"""Draws an anatomy as SVG: rows from top to bottom in the order of the data flow. Equal anatomies give equal texts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from docs.making.anatomy import Anatomy, Part

LINE, LETTER, SMALL_LETTER = 15, 7.0, 6.3
"""Height of a line of text, and width of a letter of a name and of an equation, in pixels."""
LONGEST = 38  # letters of a line
GAP, SPACE, MARGIN = 30, 22, 14
"""Between rows, between the boxes of a row, and around everything."""
LANE = 12  # between lines that go past boxes
NEAR = 2  # rows above, under which a part stands in the middle

STYLE = """
text { font-family: 'DejaVu Sans', Verdana, sans-serif; font-size: 12px; fill: #222 }
.name { font-weight: bold; fill: #8a3b00 }
.small { font-size: 10.5px }
.said { font-size: 11px; fill: #555 }
.model { fill: #f4f5f7; stroke: #8b939e }
.trains { fill: #ffd9b8; stroke: #d95f02; stroke-width: 1.6 }
.packed { fill: #dbe8f6; stroke: #33689e; stroke-width: 1.6 }
.rule { fill: #fff0e2; stroke: #d95f02; stroke-width: 1.6 }
.end { fill: #fff; stroke: none }
path { fill: none; stroke: #8b939e; stroke-width: 1.2 }
path.own { stroke: #d95f02; stroke-width: 1.5 }
"""


@dataclass(frozen=True)
class Box:
    """A part at its place: the middle of its top, and its size."""

    part: Part
    lines: tuple[str, ...]
    row: int
    x: float
    y: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        """Where lines leave it."""
        return self.y + self.height

    def covers(self, x: float, clearance: float = LANE / 2) -> bool:
        """Whether a vertical line would go through it or touch it."""
        return abs(x - self.x) < self.width / 2 + clearance


def picture(drawn: Anatomy) -> str:
    """The SVG."""
    boxes = placed(drawn)
    paths = list(routes(drawn, boxes))
    left = min(
        [box.x - box.width / 2 for box in boxes.values()] + [x for route in paths for x, _ in route.points]
    )
    right = max(
        [box.x + box.width / 2 for box in boxes.values()] + [x for route in paths for x, _ in route.points]
    )
    legend = tuple(captions(drawn))
    right = max(right, left + 6.2 * max(map(len, legend)))
    bottom = max(box.bottom for box in boxes.values())
    width, height = right - left + 2 * MARGIN, bottom + LINE * len(legend) + 3 * MARGIN
    body = [route.svg() for route in paths]
    body += [line for box in boxes.values() for line in shape(box)]
    for number, line in enumerate(legend):
        at = bottom + 2 * MARGIN + LINE * (number + 0.5)
        body.append(f'<text class="said" x="{left:.0f}" y="{at:.0f}">{escape(line)}</text>')
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="{left - MARGIN:.0f} {-MARGIN} {width:.0f} {height:.0f}">',
            f"<style>{STYLE}</style>",
            f"<defs>{tip('tip', '#8b939e')}{tip('own-tip', '#d95f02')}</defs>",
            f'<rect x="{left - MARGIN:.0f}" y="{-MARGIN}" width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
            *body,
            "</svg>\n",
        )
    )


def tip(name: str, colour: str) -> str:
    """The head of an arrow."""
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0,0.5 L7.5,4 L0,7.5 Z" style="fill: {colour}; stroke: none"/>'
        "</marker>"
    )


def captions(drawn: Anatomy) -> Iterator[str]:
    """What the colours mean, as far as they are there."""
    yield f"One layer of {'a decoder' if drawn.model == 'decoder' else 'an encoder'}, as peftc rewrites its graph."
    parts = drawn.parts.values()
    if any(part.kind == "rule" for part in parts):
        yield "Orange frame: what the rule puts in. Grey: the model, frozen."
    if any(part.trains for part in parts):
        yield "Orange: parameters of the model that train."
    if any(part.packed for part in parts):
        yield "Blue: weights kept in fewer bits."


def placed(drawn: Anatomy) -> dict[str, Box]:
    """Every part in its row, under what it reads."""
    rows = rows_of(drawn)
    sources: dict[str, list[str]] = {}
    for one, other in drawn.reads:
        sources.setdefault(other, []).append(one)
    boxes: dict[str, Box] = {}
    y = 0.0
    for number in range(max(rows.values()) + 1):
        keys = [key for key in drawn.parts if rows[key] == number]
        made = [sized(drawn.parts[key], number, y) for key in keys]
        wished = [wish(key, drawn, sources.get(key, ()), boxes) for key in keys]
        tall = max(box.height for box in made)
        for key, box, x in spread(keys, made, wished):
            boxes[key] = Box(
                box.part, box.lines, number, x, y + (tall - box.height) / 2, box.width, box.height
            )
        y += tall + GAP
    return boxes


def rows_of(drawn: Anatomy) -> dict[str, int]:
    """The longest way to each part; one that reads nothing stands right above the first that reads it."""
    rows = dict.fromkeys(drawn.parts, 0)
    for _ in rows:
        before = dict(rows)
        for one, other in drawn.reads:
            rows[other] = max(rows[other], rows[one] + 1)
        if rows == before:
            break
    read = {other for _, other in drawn.reads}
    for key in drawn.parts:
        users = [rows[other] for one, other in drawn.reads if one == key]
        if key not in read and users:
            rows[key] = min(users) - 1
    lowest = min(rows.values())
    return {key: row - lowest for key, row in rows.items()}


def sized(part: Part, row: int, y: float) -> Box:
    """A box as large as its text."""
    if part.kind == "sum":
        return Box(part, part.lines, row, 0.0, y, 22, 22)
    said = [part.lines[0]]
    for line in part.lines[1:]:
        said += textwrap.wrap(line, LONGEST, subsequent_indent="    ", break_long_words=False)
    widths = [LETTER * 1.15 * len(said[0]), *(SMALL_LETTER * len(line) for line in said[1:])]
    return Box(part, tuple(said), row, 0.0, y, max(54.0, max(widths) + 16), LINE * len(said) + 10)


def wish(key: str, drawn: Anatomy, sources: tuple[str, ...] | list[str], boxes: Mapping[str, Box]) -> float:
    """Where a part would like to stand: under the last part that it reads, or in the middle of those of the model."""
    above = [boxes[each] for each in sources if each in boxes]
    if not above:
        return 0.0
    if drawn.parts[key].kind == "rule":
        near = max(box.row for box in above)
        above = [box for box in above if box.row == near]
        return sum(box.x for box in above) / len(above)
    near = max(box.row for box in above) - NEAR
    above = [box for box in above if box.row >= near]  # what comes from far above only joins
    return sum(box.x for box in above) / len(above)


def spread(keys: list[str], made: list[Box], wished: list[float]) -> Iterator[tuple[str, Box, float]]:
    """A row's boxes as near to their wishes as they fit side by side, in the order of the graph."""
    order = sorted(range(len(keys)), key=lambda index: (wished[index], index))
    places: list[float] = []
    for index in order:
        least = (
            places[-1] + made[order[len(places) - 1]].width / 2 + SPACE + made[index].width / 2
            if places
            else None
        )
        places.append(wished[index] if least is None else max(wished[index], least))
    shift = sum(wished[index] - place for index, place in zip(order, places, strict=True)) / len(order)
    for index, place in zip(order, places, strict=True):
        yield keys[index], made[index], place + shift


@dataclass(frozen=True)
class Route:
    """A line from one box to another."""

    points: tuple[tuple[float, float], ...]
    own: bool

    def svg(self) -> str:
        """The path, rounded where it turns."""
        (x, y), *rest = self.points
        text, tip = f"M{x:.1f},{y:.1f}", "own-tip" if self.own else "tip"
        for to_x, to_y in rest:
            middle = (y + to_y) / 2
            text += (
                f" L{to_x:.1f},{to_y:.1f}"
                if abs(to_x - x) < 0.5
                else f" C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} {to_x:.1f},{to_y:.1f}"
            )
            x, y = to_x, to_y
        return f'<path class="{"own" if self.own else "way"}" d="{text}" marker-end="url(#{tip})"/>'


def routes(drawn: Anatomy, boxes: Mapping[str, Box]) -> Iterator[Route]:
    """All lines; one that would cross a box goes around in a lane of its own."""
    taken: list[tuple[float, int, int]] = []
    arriving: dict[str, list[tuple[float, str]]] = {}
    lanes: dict[tuple[str, str], float] = {}
    for one, other in sorted(drawn.reads, key=lambda pair: (boxes[pair[1]].row - boxes[pair[0]].row, pair)):
        source, target = boxes[one], boxes[other]
        from_x = source.x
        if target.row - source.row > 1:
            from_x = lanes[one, other] = free_lane(source, target, boxes, taken)
            taken.append((from_x, source.row, target.row))
        arriving.setdefault(other, []).append((from_x, one))
    for one, other in drawn.reads:
        source, target = boxes[one], boxes[other]
        own = "rule" in (source.part.kind, target.part.kind)
        order = [key for _, key in sorted(arriving[other])]
        step = min(16.0, target.width / (len(order) + 1))
        start = (source.x, source.bottom)
        end = (target.x + (order.index(one) - (len(order) - 1) / 2) * step, target.y)
        lane = lanes.get((one, other))
        if lane is None:
            yield Route((start, end), own)
            continue
        top = min(box.y for box in boxes.values() if box.row == source.row + 1) - GAP * 0.2
        low = max(box.bottom for box in boxes.values() if box.row == target.row - 1) + GAP * 0.2
        yield Route((start, (lane, top), (lane, low), end), own)


def free_lane(
    source: Box, target: Box, boxes: Mapping[str, Box], taken: list[tuple[float, int, int]]
) -> float:
    """The nearest vertical line between two rows that meets no box and no other line."""
    between = [box for box in boxes.values() if source.row < box.row < target.row]
    wished = sorted(
        (target.x, source.x, *(source.x + side * LANE * step for step in range(1, 90) for side in (1, -1))),
        key=lambda x: abs(x - source.x) + abs(x - target.x),
    )
    for x in wished:
        crossed = any(box.covers(x, LANE) for box in between)
        meets = any(
            abs(x - lane) < LANE and top < target.row and source.row < bottom for lane, top, bottom in taken
        )
        if not crossed and not meets:
            return x
    return wished[-1]


def shape(box: Box) -> Iterator[str]:
    """A box with its text."""
    part, left = box.part, box.x - box.width / 2
    kind = "trains" if part.trains else "packed" if part.packed else part.kind
    if part.kind == "sum":
        yield f'<circle class="model" cx="{box.x:.1f}" cy="{box.y + 11:.1f}" r="11"/>'
        yield f'<text x="{box.x:.1f}" y="{box.y + 15.5:.1f}" text-anchor="middle">{escape(part.lines[0])}</text>'
        return
    yield (
        f'<rect class="{kind}" x="{left:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        'rx="5"/>'
    )
    for number, line in enumerate(box.lines):
        at = box.y + 5 + LINE * (number + 0.75)
        if part.trains and number:
            yield f'<text class="small" x="{box.x:.1f}" y="{at:.1f}" text-anchor="middle">{escape(line)}</text>'
        elif part.kind == "rule" and number:
            indent = 12.0 if line.startswith("    ") else 0.0
            yield f'<text class="small" x="{left + 8 + indent:.1f}" y="{at:.1f}">{escape(line.strip())}</text>'
        else:
            name = ' class="name"' if part.kind == "rule" else ""
            yield f'<text{name} x="{box.x:.1f}" y="{at:.1f}" text-anchor="middle">{escape(line)}</text>'
