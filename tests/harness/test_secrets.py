"""Nothing that looks like a credential enters a run folder, a message or a report."""

import json
import sys

import pytest

from icmbench.harness.cli import main
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.config.secrets import BLACK, find_credential, holds_credential, redact, redact_values
from icmbench.harness.store.folder import Folder
from icmbench.harness.work.attempt import reason

SECRET = "hunter2hunter2hunter2"
KEYS = [
    "api_key",
    "apikey",
    "API-KEY",
    "apiKey",
    "hf_token",
    "token",
    "access_token",
    "password",
    "client_secret",
    "Authorization",
    "auth",
]
TEXTS = [
    f"https://me:{SECRET}@example.org/v1",
    f"https://{SECRET}@example.org/v1",
    f"s3://key:{SECRET}@bucket/run",
    f"https://example.org/v1?key={SECRET}",
    f"https://example.org/v1?page=1&access_token={SECRET}#x",
    f"https://example.org/a?X-Amz-Signature={SECRET}",
    f"--token={SECRET}",
    f"prog --api-key {SECRET} in out",
    f"Authorization: Bearer {SECRET}",
    f"X-Api-Key: {SECRET}",
    f"Bearer {SECRET}",
    f"sk-{SECRET}",
    f"hf_{SECRET}",
    f"ghp_{SECRET}",
]
HARMLESS = [
    "http://localhost:8000/v1",
    "git+ssh://git@host/path",
    "s3://bucket/token/run",
    "a photo: the secret garden, with a token of love",
    "basic training",
    "OPENAI_API_KEY",
    "weights/{point}.pth",
    "--qp={qp}",
    "sk-tiny",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_with_credentials_are_recognised_and_blacked_out(text):
    assert holds_credential(text) and SECRET not in redact(text) and BLACK in redact(text)
    assert find_credential({"codecs": [{"set": {"x": [text]}}]}) == "codecs.0.set.x.0"
    assert SECRET not in json.dumps(redact_values({"a": [text, {"b": text}]}))


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_texts_stay(text):
    assert not holds_credential(text) and redact(text) == text and find_credential({"x": text}) is None


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("section", ["models", "codecs", "datasets"])
def test_keys_for_credentials_are_refused_when_the_experiment_is_loaded(experiment, key, section):
    options = {"deep": {key: SECRET}}
    if section == "models":
        path = experiment(tasks=[{"name": "mean-colour", "dataset": "photos", "model": {"name": "averager", **options}}])
    elif section == "codecs":
        path = experiment(codecs=[{"name": "shift", "set": options}])
    else:
        path = experiment(datasets={"photos": {"kind": "images", "images": "photos", **options}})
    with pytest.raises(
        UserError, match=rf"experiment\.yaml: {section if section != 'models' else 'tasks'}\..*deep\.{key}: .*credential.*variable"
    ) as error:
        load_experiment(path)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "options", [{"max_tokens": 5}, {"api_key_variable": "OPENAI_API_KEY"}, {"key": "NAME"}, {"token": None}, {"author": "x"}]
)
def test_keys_that_hold_none_are_accepted(options):
    assert find_credential({"model": options}) is None


def test_command_lines_in_an_experiment(experiment):
    for line in (["prog", "--token", SECRET, "{input}"], ["prog", f"--password={SECRET}"]):
        with pytest.raises(UserError, match=r"codecs\.0\.set\.encode\.[12]: .*credential"):
            load_experiment(experiment(codecs=[{"name": "command", "points": [1], "set": {"encode": line, "decode": ["x"]}}]))


def test_nothing_of_a_run_holds_a_credential(experiment, tmp_path, monkeypatch):
    path = experiment(codecs=[{"name": "shift", "points": [4]}], anchor=None)
    path.write_text(f"# password: {SECRET}\n# https://me:{SECRET}@example.org\n{path.read_text()}")
    monkeypatch.setattr(sys, "argv", ["icmbench", "run", "--token", SECRET, f"https://me:{SECRET}@host/x"])
    assert not run(load_experiment(path), tmp_path / "run", RunOptions(images=1), source=path).missing
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) > 5 and not [file for file in files if SECRET.encode() in file.read_bytes()]
    load_experiment(tmp_path / "run" / "experiment.yaml")


def test_messages_hold_no_credential(capfd, experiment):
    for arguments in (
        ["run", experiment(), "--out", f"s3://key:{SECRET}@bucket/run"],
        ["report", f"https://me:{SECRET}@host/run"],
        ["list", "codecs", "--token", SECRET],
        ["encode", "--codec", "jpeg", "--set", f"api_key={SECRET}", "--set", f"url=https://me:{SECRET}@host", "absent", "x"],
    ):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        captured = capfd.readouterr()
        assert code == 2 and SECRET not in captured.err + captured.out, captured.err
    assert SECRET not in reason(OSError(f"cannot reach https://me:{SECRET}@host"))


def test_a_store_with_a_credential_names_the_variables():
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID"):
        Folder(f"s3://key:{SECRET}@bucket/run")
