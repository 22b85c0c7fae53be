"""`icmbench guest check`, `icmbench guest new` and `icmbench doctor EXPERIMENT.yaml`."""

import sys

from .conftest import ADAPTER


def test_the_skeleton_passes_its_own_check(tmp_path, icmbench):
    assert icmbench("guest", "new", "my_codec", cwd=tmp_path).returncode == 0
    done = icmbench("guest", "check", "my_codec.py", "--environment", sys.executable, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "1x1" in done.stdout
        and "17x300" in done.stdout
        and "a table will show: my_codec, point quality=1" in done.stdout.replace("MyCodec", "my_codec")
    )
    again = icmbench("guest", "new", "my_codec", cwd=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_a_check_finds_what_is_wrong(tmp_path, icmbench, calls):
    wrong = {
        "depends on the encoder's process": ("pixels << (8 - self.bits)", "globals()['seen']"),
        "wrong size": ("pixels << (8 - self.bits)", "(pixels << (8 - self.bits))[:1]"),
        "not deterministic": (
            'struct.pack("<HH", *image.shape[:2]) + zlib',
            'struct.pack("<HH", *image.shape[:2]) + os.urandom(1) + zlib',
        ),
    }
    expected = {"depends on the encoder's process": "fresh process", "wrong size": "not uint8", "not deterministic": "two streams"}
    for name, (old, new) in wrong.items():
        (tmp_path / "adapter.py").write_text(ADAPTER.replace(old, new))
        done = icmbench("guest", "check", "adapter.py", cwd=tmp_path)
        assert done.returncode == 1 and expected[name] in done.stdout, name + done.stdout + done.stderr
    (tmp_path / "adapter.py").write_text(ADAPTER)
    done = icmbench("guest", "check", "adapter.py", "--point", "8", cwd=tmp_path)
    assert "decodes to a picture, so that damage would go unnoticed" in done.stdout  # zlib ignores what follows its stream.


def test_doctor_says_what_each_environment_has(guest_experiment, icmbench):
    path = guest_experiment()
    done = icmbench("doctor", path)
    assert done.returncode == 0 and f"ok  own: Python {sys.version.split()[0]}" in done.stdout and "numpy" in done.stdout
    path.write_text(path.read_text().replace(sys.executable, "/no/such/python"))
    done = icmbench("doctor", path)
    assert done.returncode == 1 and "--  own: environments.own.python: no such program" in done.stdout
