"""What the students did → statements, tables, figures, one page; pure functions, no files.

``findings`` computes every number, by ``kdcache.stats``; ``answer`` says them in sentences, ``tables`` and
``charts`` show them, ``page`` puts them together as HTML, Markdown and JSON. ``roles`` decides which arm is
compared with which, ``matrices`` takes the relations between instances apart.
"""
