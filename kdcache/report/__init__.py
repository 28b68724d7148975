"""The report: what the students of all tasks did, as one page, tables, numbers and a picture.

``comparisons`` and ``findings`` compute every number with ``kdcache.stats``. ``answer`` puts them into
sentences, ``tables`` and ``cost`` into tables, ``figures`` into pictures. ``page`` writes HTML, Markdown and
JSON, and ``report`` is the stage.
"""
