"""What the students did → statements, tables, figures, one page; pure functions, no files.

``roles`` decides which arm is compared with which, ``findings`` computes every number by ``kdcache.stats``.
``answer`` says them in sentences, ``tables`` and ``charts`` show them, ``sections`` puts both in order;
``page`` writes HTML and Markdown, ``numbers`` JSON. ``summary`` needs a task's metrics alone.
"""
