"""Inspect a folder: which model it contains, and whether its format is supported.

Pickle is refused, because reading a pickle file runs whatever code its author put in. Safetensors,
GGUF and OpenVINO IR contain only data.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from thrifty.artifacts.artifact import Description, Parent, is_id
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.settings import read_integer
from thrifty.errors import FormatRefused, IntegrityError
from thrifty.types import Family, Format

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".joblib"})
SAFETENSORS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_NOTE = "thrifty.json"
"""Beside an adapter: its base, and the facts that `Description` needs."""
OPENVINO_MODEL = "openvino_model.xml"
OPENVINO_NOTE = "thrifty.json"
"""Beside the IR: the facts that `Description` and the engine need."""

_GGUF_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
"""The name of a part, as llama.cpp's tool gives it."""
_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_RANKS = 4
"""GGUF's number for the pooling of rerankers."""
_ENCODERS = ("BertModel", "RobertaModel", "XLMRobertaModel", "DistilBertModel", "MPNetModel")


def inspect_model(folder: Path) -> Description:
    """Describe the model in `folder`.

    Raises `FormatRefused` if it contains no supported model, `IntegrityError` if a file is damaged.
    """
    if (folder / OPENVINO_MODEL).exists():
        return _inspect_openvino(folder)
    ggufs = find_ggufs(folder)
    if ggufs:
        return inspect_gguf(*ggufs)
    safetensors = find_safetensors(folder)
    if safetensors:
        return _inspect_safetensors(folder, safetensors)
    if (folder / ADAPTER_CONFIG).exists():
        return _inspect_adapter(folder)
    pickles = sorted(p.name for p in folder.rglob("*") if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise FormatRefused(
            f"{folder} contains weights only as pickle ({', '.join(pickles[:3])}), which can run "
            "code when it is read and is refused. Save the model as safetensors "
            "(model.save_pretrained(..., safe_serialization=True)) and try again"
        )
    raise FormatRefused(
        f"{folder} contains no model: there is no .safetensors, .gguf or {OPENVINO_MODEL}"
    )


def find_ggufs(folder: Path) -> list[Path]:
    """The GGUF in `folder`: one file, or the parts that it was split into, in their order.

    Raises `FormatRefused` for several models, and `IntegrityError` where a part is missing.
    """
    found = sorted(folder.glob("*.gguf"))
    if not found:
        return []
    part = _GGUF_PART.fullmatch(found[0].name)
    if part is None:
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise FormatRefused(
                f"{folder} contains several models ({names}); name one of the files"
            )
        return found
    count = int(part["count"])
    wanted = [f"{part['stem']}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
    there = {path.name for path in found}
    if others := sorted(there - set(wanted)):
        raise FormatRefused(
            f"{folder} contains several models ({found[0].name}, {', '.join(others)}); keep the "
            "parts of one"
        )
    if missing := [name for name in wanted if name not in there]:
        raise IntegrityError(
            f"{folder} lacks parts of a model: {', '.join(missing[:5])} of {count}; fetch them into "
            "the same folder"
        )
    return [folder / name for name in wanted]


def find_safetensors(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, without adapters and optimizer states: as in
    transformers `model.safetensors`, or else those that the index names, whatever lies beside them.
    Raises `IntegrityError` where one of them is missing.
    """
    whole, index = folder / "model.safetensors", folder / SAFETENSORS_INDEX
    if whole.exists():
        return [whole]
    if index.exists():
        places = read_json(index).get("weight_map")
        found = list(places.values()) if isinstance(places, dict) else []
        named = sorted({name for name in found if isinstance(name, str)})
        if not named or any(not isinstance(n, str) or Path(n).name != n for n in found):
            raise IntegrityError(f"{index} is damaged: it does not say where tensors are")
        if missing := [name for name in named if not (folder / name).exists()]:
            raise IntegrityError(
                f"{folder} lacks parts of a model: {', '.join(missing[:5])} of {len(named)}; fetch "
                "them into the same folder"
            )
        return [folder / name for name in named]
    return sorted(
        path
        for path in folder.glob("*.safetensors")
        if not path.name.startswith(("adapter", "optimizer", "training"))
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `IntegrityError` if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} must contain a JSON object")
    return value


def read_architecture(config: dict[str, Any]) -> str:
    """The class that a `config.json` names, or else its model type."""
    named = config.get("architectures") or [config.get("model_type") or ""]
    return str(named[0]) if isinstance(named, list) else str(named)


def read_first_position(config: dict[str, Any], path: Path) -> int:
    """The position of a text's first token, by a `config.json` at `path`: RoBERTa's models leave
    those up to the padding token's id unused.
    """
    if "Roberta" not in read_architecture(config):
        return 0
    return read_integer(config, "pad_token_id", path, default=1, least=0) + 1


def _read_context(config: dict[str, Any], folder: Path) -> int:
    path = folder / "config.json"
    positions = read_integer(config, "max_position_embeddings", path, default=0, least=0)
    return max(0, positions - read_first_position(config, path))


def _count_labels(config: dict[str, Any]) -> int:
    """How many labels a classifier has; 2 where its settings do not say, as in transformers."""
    labels = config.get("id2label")
    given = len(labels) if isinstance(labels, dict) else config.get("num_labels")
    return given if isinstance(given, int) else 2


def inspect_gguf(path: Path, *others: Path) -> Description:
    """Describe the GGUF at `path`, whose further parts are `others`. Raises the errors of
    `inspect_model`.
    """
    file = GgufFile(path)
    files = [file, *map(GgufFile, others)]
    parts = file.metadata.get("split.count", 1)
    if parts not in (0, len(files)):
        raise IntegrityError(
            f"{path} is one of {parts} parts of a model, and {len(files)} are there; put all of them "
            "into one folder under their own names (...-00001-of-00002.gguf), and name the folder"
        )
    if not _ARCHITECTURE.fullmatch(file.architecture):
        raise IntegrityError(f"{path} names no architecture; it is not a language model")
    return Description(
        format=Format.GGUF,
        family=_find_gguf_family(file),
        architecture=file.architecture,
        context_length=read_integer(
            file.metadata, f"{file.architecture}.context_length", path, default=0, least=0
        ),
        parameters=sum(each.parameters() for each in files),
        weights=_name_gguf_weights(files),
    )


def _find_gguf_family(file: GgufFile) -> Family:
    """A GGUF that says how tokens are pooled embeds texts or ranks them; BERT's do in any case."""
    pooling = file.get("pooling_type", 0)
    if pooling == _RANKS:
        return Family.RERANKER
    return Family.ENCODER if pooling or "bert" in file.architecture else Family.DECODER


def _name_gguf_weights(files: list[GgufFile]) -> str:
    """The type of most weights, by size."""
    from gguf.constants import GGMLQuantizationType

    sizes: dict[int, int] = {}
    for tensor in (tensor for file in files for tensor in file.tensors.values()):
        sizes[tensor.ggml_type] = sizes.get(tensor.ggml_type, 0) + tensor.size_bytes
    if not sizes:
        return ""
    largest = max(sizes, key=lambda kind: sizes[kind])
    return str(GGMLQuantizationType(largest).name).lower()


def _inspect_safetensors(folder: Path, paths: list[Path]) -> Description:
    if not (folder / "config.json").exists():
        raise FormatRefused(
            f"{folder} contains safetensors but no config.json; it must be a complete checkpoint"
        )
    config = read_json(folder / "config.json")
    architecture = read_architecture(config)
    encoder = architecture in _ENCODERS or (folder / "modules.json").exists()
    family = Family.ENCODER if encoder else Family.DECODER
    if architecture.endswith("ForSequenceClassification") and _count_labels(config) == 1:
        family = Family.RERANKER
    return Description(
        format=Format.SAFETENSORS,
        family=family,
        architecture=architecture,
        context_length=_read_context(config, folder),
        parameters=SafetensorsFiles(paths).parameters(),
        weights=_name_weights(config),
    )


def _name_weights(config: dict[str, Any]) -> str:
    """The type of a checkpoint's weights, or how they are quantized."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return str(config.get("torch_dtype") or config.get("dtype") or "float32")
    method = str(quantization.get("quant_method") or "quantized")
    groups = quantization.get("config_groups")
    if method != "compressed-tensors" or not isinstance(groups, dict):
        return method
    names = {_name_group(group) for group in groups.values() if isinstance(group, dict)}
    return names.pop() if len(names) == 1 else method


def _name_group(group: dict[str, Any]) -> str:
    """How one group of matrices is quantized, such as `w8a8`; `fp8` for 8-bit floats."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    if weights.get("type") == "float" and weights.get("num_bits") == 8:
        return "fp8"
    return f"w{weights.get('num_bits', 16)}a{inputs.get('num_bits', 16)}"


def _inspect_openvino(folder: Path) -> Description:
    weights = folder / "openvino_model.bin"
    if not weights.exists():
        raise IntegrityError(f"{folder} contains {OPENVINO_MODEL} without openvino_model.bin")
    note = folder / OPENVINO_NOTE
    if note.exists():
        data = read_json(note)
        if data.get("family") not in list(Family):
            raise IntegrityError(f"{note} is damaged: it names no model family")
        return Description(
            format=Format.OPENVINO,
            family=Family(data["family"]),
            architecture=str(data.get("architecture", "")),
            context_length=read_integer(data, "context_length", note),
            parameters=read_integer(data, "parameters", note, default=0, least=0),
            weights=str(data.get("weights", "")),
        )
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    architecture = read_architecture(config)
    return Description(
        format=Format.OPENVINO,
        family=Family.ENCODER if architecture in _ENCODERS else Family.DECODER,
        architecture=architecture,
        context_length=_read_context(config, folder),
    )


def _inspect_adapter(folder: Path) -> Description:
    path = folder / ADAPTER_NOTE
    if not path.exists():
        raise FormatRefused(
            f"{folder} is a LoRA adapter, and nothing says which stored model it belongs to; merge it "
            "into its base (PEFT's merge_and_unload) and name the result, or serve it with the engine "
            "'vllm' (engine.lora)"
        )
    note = read_json(path)
    SafetensorsFiles([folder / ADAPTER_WEIGHTS])
    return Description(
        format=Format.ADAPTER,
        family=Family.DECODER,
        architecture=str(note.get("architecture", "")),
        context_length=read_integer(note, "context_length", path, default=0, least=0),
        parameters=read_integer(note, "parameters", path, default=0, least=0),
        weights="lora",
        base=read_base(folder),
    )


def read_base(folder: Path) -> Parent:
    """The model that the adapter in `folder` changes. Raises `IntegrityError`."""
    path = folder / ADAPTER_NOTE
    base = read_json(path).get("base")
    found = (base.get("id"), base.get("name")) if isinstance(base, dict) else (None, None)
    if not (isinstance(found[0], str) and isinstance(found[1], str) and is_id(found[0])):
        raise IntegrityError(f"{path} is damaged: it names no base model")
    return Parent(found[0], found[1])
