"""What `thrifty deploy render ray` writes for clouds, by Ray's own reader of cluster files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.golden import render_case

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="NO RAY HERE: run make test-ray, which installs it in an environment of its own",
    ),
]


def read(case: str, folder: Path) -> dict[str, Any]:
    """The cluster file of a golden case, with Ray's defaults, beside the files that it names."""
    files = render_case(case)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "keys.env").write_text("THRIFTY_REPLICA_KEY=...\n")
    return dict(yaml.safe_load(files["cluster.yaml"]))


@pytest.mark.parametrize("case", ["ray-aws", "ray-azure", "ray-gcp"])
def test_ray_takes_the_cluster_file(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    monkeypatch.chdir(tmp_path)
    config = read(case, tmp_path)
    whole = fillout_defaults(config)
    validate_config(whole)
    assert set(whole["available_node_types"]) == {"head", "replicas"}
    for path in config["file_mounts"].values():
        assert (tmp_path / path).exists()


def test_ray_refuses_a_wrong_one(tmp_path: Path) -> None:
    import jsonschema
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = read("ray-aws", tmp_path)
    config["available_node_types"]["replicas"]["max_workers"] = "many"
    with pytest.raises(jsonschema.ValidationError, match="many"):
        validate_config(fillout_defaults(config))
