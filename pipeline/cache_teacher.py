"""DVC stage cache_teacher: teacher + data → cache/<task>/. Usage: python pipeline/cache_teacher.py TASK"""

from kdcache.project import run_stage
from kdcache.teacher.cache_teacher import cache_teacher

if __name__ == "__main__":
    run_stage(cache_teacher, per_task=True)
