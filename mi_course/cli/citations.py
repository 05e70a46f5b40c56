"""Citations in chapters: `[@key]` becomes a link with author and year, and every notebook ends with the works it cites.

The works are those of `mi_course.teach.papers.library()`: Table 2 of the survey and `references.bib`.
"""

import re

CITATION = re.compile(r"\[@([^\]\s]+)\]")


def cited_keys(text: str) -> list[str]:
    """Keys in the order of their first citation."""
    return list(dict.fromkeys(CITATION.findall(text)))


def with_links(text: str, works: dict) -> str:
    def link(match: re.Match) -> str:
        work = works[match.group(1)]
        return f"[{work.authors} {work.year}]({work.url})"

    return CITATION.sub(link, text)


def works_cited(keys: list[str], works: dict) -> str:
    """Markdown for the last cell of a notebook. works: key -> object with authors, year, title, url."""
    rows = sorted(
        f"- {works[key].authors} ({works[key].year}). [{works[key].title}]({works[key].url})." for key in keys
    )
    return "\n".join(["## Works cited", "", *rows])
