"""The report: what a committed evaluation shows, as pictures and words for a colleague.

``runs`` reads evaluations, ``verdicts`` puts them into words, ``ink`` and ``panels_*`` draw,
``page`` writes ``report.html``, ``side_by_side`` compares several runs; ``words.yaml`` has titles
of tables and figures, and how to read them. Needs neither Ray nor torch (import-linter holds it
so): a report is made in seconds, on any machine that can read the store.
"""
