"""DVC stage distill: cache + data + backbone → students, metrics. Usage: python pipeline/distill.py TASK"""

from kdcache.project import run_stage
from kdcache.students.distill import distill

if __name__ == "__main__":
    run_stage(distill, per_task=True)
