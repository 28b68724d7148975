"""DVC stage code: the digest of each stage's code → code.json; each task must have one teacher."""

from kdcache.code import code
from kdcache.project import Project, errors_in_one_line
from kdcache.teacher.import_teacher import check_teachers

if __name__ == "__main__":
    with errors_in_one_line():
        check_teachers(Project.load())
        code()
