"""``python -m kdcache``: the command line."""

from kdcache.cli import app

if __name__ == "__main__":
    app(prog_name="kdcache")
