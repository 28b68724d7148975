"""DVC stage distill: cache + data + backbone → students, metrics. Usage: python pipeline/distill.py TASK"""

from kdcache.project import run_stage

if __name__ == "__main__":
    run_stage("distill", per_task=True)
