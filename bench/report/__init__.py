"""Reports: records in; markdown, figures, a static page, JSON and tables of a terminal out."""
