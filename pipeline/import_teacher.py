"""DVC stage import_teacher: data + outputs → cache/<task>/. Usage: python pipeline/import_teacher.py TASK"""

from kdcache.project import run_stage

if __name__ == "__main__":
    run_stage("import_teacher", per_task=True)
