"""What a reader of caches must have installed: neither torch nor the pipeline's packages."""

import subprocess
import sys
from pathlib import Path

from builders import write

HEAVY = ("torch", "transformers", "sklearn", "dvc", "matplotlib", "jinja2")


def test_reading_a_cache_needs_none_of_the_heavy_packages(tmp_path: Path):
    write(tmp_path / "wic", tmp_path)
    code = (
        "import sys, kdcache\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        f"        assert name not in {HEAVY}, name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "split = kdcache.load_cache('wic', 'train')\n"
        "assert len(split.rows) == len(split.to_pandas()) == sum(map(len, split.stream())) == 10\n"
        "assert not [check.problem for check in kdcache.verify_cache('wic') if check.problem]\n"
        "assert not kdcache.diff_caches('wic', 'wic').fields\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
