"""DVC stage student_backbone: a model, or some of its layers → models/backbone/. No arguments."""

from kdcache.project import run_stage

if __name__ == "__main__":
    run_stage("student_backbone", per_task=False)
