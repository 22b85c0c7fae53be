"""The whole way: a run, its export, predictions made on the pictures elsewhere, and a run that reads them; scores are equal."""

import base64
import io
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.export import export
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.tasks.models.coco_names import COCO

TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]
JPEG = {"name": "jpeg", "points": [5, 30]}


def export_of(folder, target):
    """Export a run and return the folders of pictures."""
    assert [*export(str(folder), [], [], target)]
    return [path.parent for path in sorted(target.rglob("manifest.json"))]


def predict_elsewhere(pictures, target, write):
    """Let `write` make predictions of every folder of pictures, below another folder, with a copy of its manifest."""
    for folder in pictures:
        output = target / folder.parent.name / folder.name
        output.mkdir(parents=True, exist_ok=True)
        entries = json.loads((folder / "manifest.json").read_text())["images"]
        images = {entry["id"]: np.array(Image.open(folder / entry["file"])) for entry in entries}
        write(images, output)
        shutil.copy(folder / "manifest.json", output)


def scores_of(folder):
    return pd.read_csv(folder / "scores.csv").drop(columns=[*TIMES, "model"])


def same_scores_elsewhere(tmp_path, experiment, sections, model, options, write):
    """Run a task with a model in process and by predictions made elsewhere, and compare every score.

    Args:
        tmp_path: where everything lies.
        experiment: writes experiment files.
        sections: datasets and the task, without its model.
        model: the model in process.
        options: options of the model `predictions`.
        write: writes predictions of pictures by id into a folder.
    """
    dataset, task = sections
    common = {"datasets": {"set": dataset}, "codecs": [JPEG], "anchor": "jpeg", "bootstrap": 0}
    path = experiment(**common, tasks=[task | {"dataset": "set", "model": model}])
    assert not run(load_experiment(path), tmp_path / "here").missing
    predict_elsewhere(export_of(tmp_path / "here", tmp_path / "pictures"), tmp_path / "predictions", write)
    there = {"name": "predictions", "path": str(tmp_path / "predictions")} | options
    path = experiment(**common, tasks=[task | {"dataset": "set", "model": there}])
    result = run(load_experiment(path), tmp_path / "there")
    assert not result.missing and not result.outcome.failures
    here, there = scores_of(tmp_path / "here"), scores_of(tmp_path / "there")
    pd.testing.assert_frame_equal(here, there, check_exact=True)
    assert here["value"].nunique() > 1
    assert not run(load_experiment(path), tmp_path / "there").outcome.model_images


def test_detection(tmp_path, experiment, shared):
    pytest.importorskip("onnxruntime")
    from icmbench.tasks.models.yolox_onnx import YoloxOnnx

    weights, ids = shared / "models" / "yolox_nano.onnx", list(COCO)
    detector = YoloxOnnx(weights)

    def write(images, output):
        results = []
        for image_id, image in images.items():
            found = detector([image])[0]
            columns = (found[key].astype(float).tolist() for key in ("boxes", "scores", "classes"))
            for (x1, y1, x2, y2), score, index in zip(*columns, strict=True):
                entry = {"image_id": int(image_id.partition(".")[0]), "category_id": ids[int(index)], "score": score}
                results.append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
        (output / "boxes.json").write_text(json.dumps(results))

    coco = shared / "data" / "coco"
    annotations = coco / "annotations" / "instances_val2017.json"
    dataset = {"kind": "coco", "images": str(coco / "val2017"), "instances": str(annotations), "limit": 4}
    model = {"name": "yolox-onnx", "path": str(weights)}
    same_scores_elsewhere(tmp_path, experiment, (dataset, {"name": "detection"}), model, {"format": "boxes"}, write)


def test_classification(tmp_path, experiment, shared):
    pytest.importorskip("efficientnet_lite_pytorch")
    from icmbench.tasks.models.efficientnet_lite import EfficientNetLite0

    classifier = EfficientNetLite0()

    def write(images, output):
        best = np.argsort(-classifier(list(images.values())), axis=1, kind="stable")[:, :5]
        rows = [",".join([image_id, *map(str, row)]) for image_id, row in zip(images, best.tolist(), strict=True)]
        (output / "classes.csv").write_text("\n".join(["image,class_1,class_2,class_3,class_4,class_5", *rows]) + "\n")

    imagenet = shared / "data" / "imagenet"
    dataset = {"kind": "imagenet", "images": str(imagenet / "val"), "labels": str(imagenet / "labels.csv"), "limit": 8}
    sections = dataset, {"name": "classification"}
    same_scores_elsewhere(tmp_path, experiment, sections, {"name": "efficientnet-lite0"}, {"format": "classes"}, write)


@pytest.fixture
def chat():
    """The address of a server in OpenAI's chat protocol, which answers with a box that depends on the picture and the prompt."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            picture, text = body["messages"][-1]["content"]
            data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
            pixels = np.array(Image.open(io.BytesIO(data))).astype(int)
            left, top = int(pixels.sum() % 300), len(text["text"]) % 100
            answer = {"choices": [{"message": {"content": f"[{left}, {top}, {left + 500}, {top + 700}]"}}]}
            reply = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_answers_about_phrases(tmp_path, experiment, shared, chat):
    pytest.importorskip("urllib3")
    from icmbench.tasks.models.openai_endpoint import OpenAIEndpoint

    model = {"name": "openai-endpoint", "url": chat, "model_id": "m", "box_convention": "norm1000"}
    endpoint = OpenAIEndpoint(url=chat, model_id="m", box_convention="norm1000")
    coco = shared / "data" / "coco"
    refs = coco / "annotations" / "referring_val2017.json"
    phrases = json.loads(refs.read_text())

    def write(images, output):
        asked = [(entry["file_name"], entry["sentence"]) for entry in phrases if entry["file_name"] in images]
        answers = endpoint.answer([images[name] for name, _ in asked], [sentence for _, sentence in asked])
        lines = [{"image": name, "prompt": text, "answer": a} for (name, text), a in zip(asked, answers, strict=True)]
        (output / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    dataset = {"kind": "refcoco", "images": str(coco / "val2017"), "refs": str(refs), "limit": 4}
    options = {"format": "answers", "box_convention": "norm1000"}
    task = {"name": "referring", "set": {"prompt": "{sentence}"}}
    same_scores_elsewhere(tmp_path, experiment, (dataset, task), model, options, write)


# What is computed again, and what is missing.


BRIGHT = {0: "dark", 1: "bright"}


def write_brightness(images, output):
    """Label maps: whether each pixel is bright."""
    (output / "labels").mkdir(exist_ok=True)
    for image_id, image in images.items():
        Image.fromarray((image.mean(axis=2) > 120).astype(np.uint8)).save(output / "labels" / f"{image_id.rpartition('.')[0]}.png")


@pytest.fixture
def brightness(tmp_path, experiment, photos):
    """A function that writes an experiment with predictions of brightness, for some points of jpeg."""
    (tmp_path / "names.txt").write_text("\n".join(BRIGHT.values()))
    (tmp_path / "predictions").mkdir()

    def make(points, **changes):
        model = {"name": "predictions", "path": "predictions", "format": "labels", "names": "names.txt"}
        tasks = [{"name": "semantic_segmentation", "dataset": "photos", "model": model, "reference": "original"}]
        codecs = [{"name": "jpeg", "points": points}]
        return load_experiment(experiment(**{"codecs": codecs, "tasks": tasks, "anchor": "jpeg", "bootstrap": 0} | changes))

    return make


def export_points(tmp_path, experiment, points):
    """Pictures of some points of jpeg, from a run with a task that needs no model."""
    distance = [{"name": "distance", "dataset": "photos"}]
    path = experiment(codecs=[{"name": "jpeg", "points": points}], tasks=distance, anchor="jpeg", bootstrap=0)
    assert not run(load_experiment(path), tmp_path / "run").missing
    return export_of(tmp_path / "run", tmp_path / "pictures")


def test_another_points_predictions_compute_nothing_else_again(tmp_path, experiment, brightness):
    pictures = export_points(tmp_path, experiment, [10, 50])
    predict_elsewhere(pictures, tmp_path / "predictions", write_brightness)
    first = run(brightness([10, 50]), tmp_path / "there")
    assert first.outcome.model_images == 30 and not first.missing
    predict_elsewhere(export_points(tmp_path, experiment, [10, 50, 90]), tmp_path / "predictions", write_brightness)
    grown = run(brightness([10, 50, 90]), tmp_path / "there")
    assert grown.outcome.model_images == grown.outcome.codec_images == 10 and not grown.missing
    before = scores_of(tmp_path / "there")
    path = tmp_path / "predictions" / "jpeg" / "quality=50" / "labels" / "3.png"
    labels = np.array(Image.open(path))
    Image.fromarray(1 - labels).save(path)
    changed = run(brightness([10, 50, 90]), tmp_path / "there")
    assert changed.outcome.model_images == 1, "one prediction is another one"
    assert not scores_of(tmp_path / "there").equals(before)
    Image.fromarray(labels).save(path)
    assert run(brightness([10, 50, 90]), tmp_path / "there").outcome.model_images == 0, "the one before is still stored"


def test_points_without_predictions_are_missing_and_the_others_are_not(tmp_path, experiment, brightness):
    pictures = export_points(tmp_path, experiment, [10, 50])
    predict_elsewhere(pictures, tmp_path / "predictions", write_brightness)
    (tmp_path / "predictions" / "jpeg" / "quality=50" / "labels" / "3.png").unlink()
    result = run(brightness([10, 50, 90]), tmp_path / "there")
    reasons = {failure.cell.split(" / ")[1]: failure.reason for failure in result.outcome.failures}
    assert reasons.keys() == {"jpeg quality=50", "jpeg quality=90"}
    assert "3.png: no such label map, so that '3.png' has no prediction" in reasons["jpeg quality=50"]
    assert "none of its 3 manifests lists the pixels" in reasons["jpeg quality=90"]
    assert set(result.scores["point"]) == {"-", "quality=10"}


@pytest.mark.parametrize("options", [RunOptions(workers=2), RunOptions(coders=2, models=1)])
def test_predictions_are_read_in_every_mode(tmp_path, experiment, brightness, options):
    predict_elsewhere(export_points(tmp_path, experiment, [10, 50]), tmp_path / "predictions", write_brightness)
    run(brightness([10, 50]), tmp_path / "alone")
    result = run(brightness([10, 50], shard_size=2), tmp_path / "there", options)
    assert not result.missing and not result.outcome.failures
    pd.testing.assert_frame_equal(scores_of(tmp_path / "alone"), scores_of(tmp_path / "there"))


def test_the_same_program_serves_as_the_model_command(tmp_path, experiment, brightness):
    script = tmp_path / "brightness.py"
    script.write_text(
        "import json, pathlib, sys\nimport numpy as np\nfrom PIL import Image\n"
        "images, output = map(pathlib.Path, sys.argv[1:])\n(output / 'labels').mkdir()\n"
        "for entry in json.loads((images / 'manifest.json').read_text())['images']:\n"
        "    labels = np.array(Image.open(images / entry['file'])).mean(axis=2) > 120\n"
        "    Image.fromarray(labels.astype(np.uint8)).save(output / 'labels' / entry['file'])\n"
    )
    predict_elsewhere(export_points(tmp_path, experiment, [10]), tmp_path / "predictions", write_brightness)
    run(brightness([10]), tmp_path / "read")
    model = {"name": "command", "format": "labels", "names": "names.txt", "folder": "."}
    model["command"] = [sys.executable, "brightness.py", "{images}", "{output}"]
    tasks = [{"name": "semantic_segmentation", "dataset": "photos", "model": model, "reference": "original"}]
    result = run(brightness([10], tasks=tasks), tmp_path / "run-here")
    assert not result.missing and not result.outcome.failures
    pd.testing.assert_frame_equal(scores_of(tmp_path / "read"), scores_of(tmp_path / "run-here"), check_exact=True)
