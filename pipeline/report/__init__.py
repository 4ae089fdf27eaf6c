"""Scores become one page.

In: runs, a sweep or a cache. Out: an HTML page with everything in it; the same as Markdown, PNG,
CSV and JSON.

Read `report` (the whole way), `source` (what is reported of), `sections` (what the page says, in
order) and `page`; then what sections are made of: `tables`, `plots`, `axis_plots`, `predictions`,
`frames` (what is shown of videos), `provenance`; `style` is the look.
"""
