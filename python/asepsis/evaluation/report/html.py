"""A report as one HTML page: nothing is loaded, nothing runs, and all of it is read without a script."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from asepsis.errors import AsepsisError
from asepsis.evaluation.report.content import Figure, Report, Rows, Table
from asepsis.evaluation.report.style import STYLE
from asepsis.evaluation.report.svg import require_matplotlib

LARGEST = 2_000_000  # bytes
_COLUMNS_OF_A_PHONE = 3
_OPEN_ROWS = 25  # of those listed; the others unfold

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>{{ r.title }} · asepsis</title>
<style>{{ style }}</style></head><body><main>
<header><p class="over">asepsis report · {{ r.subtitle }}</p><h1>{{ r.title }}</h1>
<div class="verdict {{ r.tone }}"><p>{{ r.verdict }}</p>{% if r.caveat %}<p>{{ r.caveat }}</p>{% endif %}</div></header>
{% macro table(t) %}<section><h2>{{ t.title }}</h2>{% if t.note %}<p class="note">{{ t.note }}</p>{% endif %}
<div class="scroll"><table class="{{ 'wide' if t.head|length > phone else 'pairs' if t.head|length == 2 }}"><thead><tr>
{%- for h in t.head %}<th scope="col"{% if loop.index0 >= t.words %} class="n"{% endif %}>{{ h }}</th>{% endfor -%}
</tr></thead><tbody>
{% for row in t.rows %}<tr>{% for cell in row %}<td data-head="{{ t.head[loop.index0] }}"
{%- if loop.index0 >= t.words %} class="n"{% endif %}>{{ cell|cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></section>
{% endmacro %}
{% macro rows(listed) %}<ol class="rows">{% for row in listed %}<li><p class="meta"><span>row {{ row.row }}</span>
<span>suspicion {{ row.suspicion }}</span>{% if row.answer %}<span>{{ row.answer }}</span>{% endif %}</p>
<p class="text">{{ row.text }}</p></li>
{% endfor %}</ol>{% endmacro %}
{% for kind, section in blocks %}
{% if kind == "grid" %}<div class="figures">{% for part in section %}{% if part.svg is defined %}<section><h2>{{ part.title }}</h2>
<figure>{{ part.svg }}<figcaption><strong>{{ part.alt }}</strong> {{ part.note }}</figcaption></figure></section>
{% else %}{{ table(part) }}{% endif %}{% endfor %}</div>
{% elif kind == "table" %}{{ table(section) }}
{% else %}<section><h2>{{ section.title }}</h2><p class="note">{{ section.note }}</p>
{{ rows(section.rows[:open]) }}
{% if section.rows|length > open %}<details><summary>{{ section.rows|length - open }} more of them</summary>
{{ rows(section.rows[open:]) }}</details>{% endif %}
{% if section.more %}<p class="note after">{{ "{:,}".format(section.more) }} more in {{ section.where }}.</p>{% endif %}</section>
{% endif %}{% endfor %}
{% if r.missing %}<section><h2>Not recorded here</h2><p class="note">What would be shown, and the command that records it.</p>
<dl>{% for m in r.missing %}<dt>{{ m.title }}</dt><dd><code>{{ m.command }}</code></dd>{% endfor %}</dl></section>{% endif %}
<section><h2>Settings and versions</h2><dl>{% for name, value in r.settings %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<details><summary>Everything the run recorded</summary><pre>{{ r.record }}</pre></details></section>
</main></body></html>
"""


def to_html(report: Report) -> str:
    """Return the page.

    Raises
    ------
    MissingDependency
        matplotlib, which draws its plots, is not installed.
    """
    require_matplotlib()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["cell"] = _cell
    page = environment.from_string(_PAGE).render(
        r=report, style=Markup(STYLE), blocks=_blocks(report), phone=_COLUMNS_OF_A_PHONE, open=_OPEN_ROWS
    )
    # half a surrogate pair cannot be written; whatever comes out of a folder was made visible before
    if len(page.encode("utf-8", "replace")) > LARGEST:
        raise AsepsisError("the report would pass 2 MB; this is a fault of asepsis")
    return page


def _blocks(report: Report) -> list[tuple[str, Any]]:
    """Return sections in order, figures that follow each other in one grid."""
    blocks: list[tuple[str, Any]] = []
    for number, section in enumerate(report.sections):
        if isinstance(section, Figure):
            # our own drawing: matplotlib escaped the text in it
            entry = {
                "title": section.title,
                "alt": section.alt,
                "note": section.note,
                "svg": Markup(section.draw(f"f{number}")),
            }
            if not blocks or blocks[-1][0] != "grid":
                blocks.append(("grid", []))
            blocks[-1][1].append(entry)
        elif isinstance(section, Table) and section.rows:
            # a small table takes the place beside an odd figure
            if len(section.head) == 2 and blocks and blocks[-1][0] == "grid" and len(blocks[-1][1]) % 2:
                blocks[-1][1].append(section)
            else:
                blocks.append(("table", section))
        elif isinstance(section, Rows):
            blocks.append(("rows", section))
    return blocks


def _cell(text: str) -> Markup:
    """Set the interval behind a number apart, so that it can stand below it on a phone."""
    value, sign, interval = text.partition(" [")
    if not sign or not interval.endswith("]") or not value.replace(".", "").isdigit():
        return Markup("{}").format(text)
    return Markup('{} <span class="i">[{}</span>').format(value, interval)
