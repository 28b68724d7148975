"""DVC stage prepare: source → data/<task>/. Usage: python pipeline/prepare.py TASK"""

from kdcache.project import run_stage

if __name__ == "__main__":
    run_stage("prepare", per_task=True)
