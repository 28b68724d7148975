"""DVC stage report: metrics of all tasks → reports/. No arguments."""

from kdcache.project import run_stage

if __name__ == "__main__":
    run_stage("report", per_task=False)
