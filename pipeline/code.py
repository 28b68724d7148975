"""DVC stage code: the digest of each stage's code → code.json. No arguments."""

from kdcache.code import code
from kdcache.project import errors_in_one_line

if __name__ == "__main__":
    with errors_in_one_line():
        code()
