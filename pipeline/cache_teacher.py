"""DVC stage cache_teacher: teacher + data → cache/<task>/. Usage: python pipeline/cache_teacher.py TASK"""

from kdcache.project import run_stage

if __name__ == "__main__":
    run_stage("cache_teacher", per_task=True)
