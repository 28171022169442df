"""Reports: one analysis artifact in, a directory of documents, figures and tables out. Nothing is computed twice here.

The one idea: a report is first a `Document` (plain data: sections of paragraphs, tables and figures), then rendered to
Markdown, HTML and LaTeX from the same blocks, so that the three can never disagree.
"""
