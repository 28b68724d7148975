"""DVC stage train_teacher: data → models/teacher/<task>/. Usage: python pipeline/train_teacher.py TASK"""

from kdcache.project import run_stage

if __name__ == "__main__":
    run_stage("train_teacher", per_task=True)
