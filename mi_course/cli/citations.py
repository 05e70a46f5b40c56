"""Citations in chapters: `[@key]` or `[@key; @key]` becomes links with author and year, and works cited end a notebook.

The works are those of `mi_course.teach.library.library()`: Table 2 of the survey and `references.bib`.
"""

import difflib
import re
from urllib.parse import urlsplit

KEY = r"@[^\s\[\];,@]+"
CITATION = re.compile(rf"\[({KEY}(?:\s*;\s*{KEY})*)\]")
BRACKET = re.compile(r"\[[^\[\]]*(?<![\w.])@[^\[\]]*\](?!\()")  # a bracket with an @: a citation, well formed or not
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def keys_of(citation: re.Match) -> list[str]:
    return [key.strip().removeprefix("@") for key in citation.group(1).split(";")]


def cited_keys(text: str) -> list[str]:
    """Keys in the order of their first citation. What stands in backticks is code, no citation."""
    found = [key for citation in CITATION.finditer(CODE.sub("", text)) for key in keys_of(citation)]
    return list(dict.fromkeys(found))


def cited_by_section(cells: list) -> dict[str, list[str]]:
    """Key -> headings (of the first two levels) that it is cited under, in their order. cells: those of a master."""
    found: dict[str, list[str]] = {}
    heading = ""
    for cell in cells:
        if cell.cell_type != "markdown":
            continue
        for line in CODE.sub("", cell.source).splitlines():
            if title := re.match(r"#{1,2} (.*)", line):
                heading = title.group(1).strip()
            for key in cited_keys(line):
                headings = found.setdefault(key, [])
                if heading not in headings:
                    headings.append(heading)
    return found


def citation_problems(text: str, works: dict) -> list[str]:
    """Malformed citations, unknown keys, and works without the year or the address that their link needs."""
    prose = CODE.sub("", text)
    problems = [
        f"{bracket!r} is no citation; write [@key], or [@key; @key] for several"
        for bracket in BRACKET.findall(prose)
        if not CITATION.fullmatch(bracket)
    ]
    for key in cited_keys(text):
        if key not in works:
            near = ", ".join(difflib.get_close_matches(key, works, n=2))
            advice = f"did you mean {near}?" if near else "use one of papers.json or add it to references.bib"
            problems.append(f"unknown paper key {key!r}; {advice}")
            continue
        lacks = [what for what, fine in well_formed(works[key]).items() if not fine]
        if lacks:
            advice = "its link would be broken; mend papers.json, corrections.json or references.bib"
            problems.append(f"the paper {key!r} has no valid {' and no valid '.join(lacks)}; {advice}")
    return problems


def well_formed(work) -> dict[str, bool]:
    """Does the work have what its link shows and leads to?"""
    address = urlsplit(str(work.url or ""))
    return {
        "author": bool(work.authors),
        "year": isinstance(work.year, int) and 1800 < work.year < 2100,
        "address": address.scheme in ("http", "https") and bool(address.netloc) and not re.search(r"[\s()]", work.url),
    }


def with_links(text: str, works: dict) -> str:
    """The text with every citation outside of code replaced by its links."""

    def links(citation: re.Match) -> str:
        cited = [works[key] for key in keys_of(citation)]
        return "; ".join(f"[{work.authors} {work.year}]({work.url})" for work in cited)

    parts, at = [], 0
    for code in CODE.finditer(text):
        parts += [CITATION.sub(links, text[at : code.start()]), code.group()]
        at = code.end()
    return "".join([*parts, CITATION.sub(links, text[at:])])


def works_cited(keys: list[str], works: dict) -> str:
    """Markdown for the last cell of a notebook. works: key -> object with authors, year, title, url."""
    rows = sorted(
        {f"- {works[key].authors} ({works[key].year}). [{works[key].title}]({works[key].url})." for key in keys}
    )
    return "\n".join(["## Works cited", "", *rows])
