"""Chat templates that never end, take all memory, or reach for what is not theirs."""

from __future__ import annotations

from hostile import Corpus

TEMPLATES = Corpus("chat templates")


def template(name: str, text: str, says: str = "seconds|broke down|memory|refuses") -> None:
    """Add a case that writes it as ``chat_template.jinja``, the newest of the places it may stand in."""
    TEMPLATES.add(name, says)(lambda folder: (folder / "chat_template.jinja").write_text(text) and None)


_SLOW, _LARGE = "did not end within", "memory|letters|did not end|broke down|too large|too long"
template(
    "loops inside loops",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    _SLOW,
)
template("a range of 10**9", "{% for a in range(10**9) %}{% endfor %}", "[Rr]ange")
template(
    "loops that write",
    "{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaa{% endfor %}{% endfor %}",
    _LARGE,
)
template(
    "a macro that calls itself twice",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    _SLOW,
)
template("a macro that never ends", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion|broke down")
template("a letter times 10**11", "{{ 'a' * 10**11 }}", _LARGE)
template("a letter times 10**8", "{{ 'a' * 10**8 }}", "100,000,000 letters")
template("a list times 10**10", "{{ ([0] * 10**10)|length }}", _LARGE)
template("a number of 10**10 digits", "{{ (10 ** (10**10)) % 7 }}", _SLOW + "|memory")
template("a number formatted to 10**11 places", "{{ '%100000000000d' % 1 }}", _LARGE)
template("a text in the middle of 10**11 blanks", "{{ 'a'|center(10**11) }}", _LARGE)
template("a billion words of no meaning", "{{ lipsum(n=10**9) }}", _SLOW)
template(
    "a text that doubles sixty times",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    _LARGE,
)
template("an expression a hundred thousand deep", "{{ " + "(" * 10**5 + ")" * 10**5 + " }}")
template("the classes of Python", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|access")
template("the globals of a function", "{{ lipsum.__globals__['os'].mkdir('code-was-run') }}", "unsafe|access")
template("a file that is included", "{% include '/etc/passwd' %}", "loader")
template("a module that is imported", "{% import 'os' as os %}", "loader")
template("a template that is none", "{% for %}", "[Ee]xpected|syntax")
template("a template that changes the conversation", "{{ messages.clear() }}", "unsafe|access|safely")
template("a template that raises", "{{ raise_exception('no') }}", "refuses this conversation: no")
