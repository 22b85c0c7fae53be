"""What `icmbench.results` loads: drawing, statistics and checks of pictures cost seconds, and only what uses them may load them."""

import subprocess
import sys

import pytest

HEAVY = ["scipy", "scipy.stats", "scipy.optimize", "pyarrow.parquet", "matplotlib", "pydantic", "jinja2", "PIL", "yaml"]
MODULES = ["report", "bundle", "tables", "writers", "curves", "figures", "analyses", "fonts", "pictures", "published", "bootstrap"]


def loaded_after(code):
    """Which of the heavy packages some code loads, in a process of its own."""
    probe = f"import sys\n{code}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_results_loads_nothing_heavy():
    assert loaded_after("\n".join(f"import icmbench.results.{name}" for name in (*MODULES, "correlation", "compare"))) == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from icmbench.results.bd import bd_rate; bd_rate([(1, 2)], [(1, 2)])", []),
        ("from icmbench.results.correlation import _correlate; import numpy; _correlate(numpy.eye(3)[:, :2])", []),
        ("from icmbench.results.bd import rate_at; rate_at([(1, 2)], 2.0)", []),
        ("from icmbench.results.curves import figure_title, CurveKey; figure_title(CurveKey('a', 'b', 'c', 'd', ''))", []),
        ("from icmbench.results.pictures import lost_and_new_names; lost_and_new_names(['a'], ['b'])", []),
        ("from icmbench.results.pictures import check_entries; check_entries({'entries': [], 'left_out': []})", ["pydantic"]),
    ],
)
def test_what_is_used_is_loaded_and_nothing_else(code, expected):
    assert loaded_after(code) == expected


def test_what_reads_a_run_for_its_report_loads_neither_its_plug_ins_nor_what_draws():
    probe = "import sys, icmbench.harness.derive.tables\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert {"scipy", "matplotlib", "jinja2", "PIL", "icmbench.harness.work.bench"}.isdisjoint(loaded)
