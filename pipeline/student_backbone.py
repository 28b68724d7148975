"""DVC stage student_backbone: some of a model's layers, healed → models/backbone/. No arguments."""

from kdcache.project import run_stage

if __name__ == "__main__":
    run_stage("student_backbone", per_task=False)
