"""What is read out of a file itself, by kind.

Bounded: long lists are cut, and the counts beside them tell how many there are.
The inspection's process is not trusted: what it answers must be of these shapes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter

LISTED = 200
LISTED_CLASSES = 1500
"""ImageNet has 1,000, LVIS 1,203."""
Text = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Counts = Annotated[dict[Text, Count], Field(max_length=LISTED)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Tensor(_Shape):
    """A tensor: an input, an output, or weights."""

    name: Text
    dtype: Text = Field(description="As NumPy names it where it can: `float32`.")
    shape: Annotated[list[int | Text | None], Field(max_length=64)] | None = Field(
        description="A number, the name of a free dimension, or null for an unknown "
        "one; null instead of the list if not even their number is known."
    )


class Quantization(_Shape):
    """real = scale × (stored − zero point)."""

    scale: float = Field(description="The first, if each channel has its own.")
    zero_point: int
    channels: Count = Field(description="How many have their own; 1: none.")


class QuantizedTensor(Tensor):
    """A tensor of a TFLite model."""

    quantization: Quantization | None = None


class Safety(_Shape):
    """Whether loading the file could run code of its author."""

    verdict: Literal["safe", "unsafe"]
    findings: Annotated[list[Text], Field(max_length=50)] = Field(
        description="What is not on the list of what is allowed."
    )


class PtFacts(_Shape):
    """A PyTorch file, read without unpickling."""

    kind: Literal["pt"]
    container: Literal["zip", "legacy"]
    torchscript: bool
    format_version: int | None = Field(description="Of the container.")
    producer: Text | None = None
    byteorder: Literal["little", "big"] | None = None
    tensors: Annotated[list[Tensor], Field(max_length=LISTED)]
    tensor_count: Count
    parameters: Count = Field(description="Elements of all tensors.")
    dtypes: Counts = Field(description="Tensors by type.")
    imports: Annotated[list[Text], Field(max_length=LISTED)] = Field(
        description="What unpickling would import."
    )
    safety: Safety


class OnnxFacts(_Shape):
    """An ONNX model."""

    kind: Literal["onnx"]
    ir_version: int
    opset_import: Annotated[dict[Text, int], Field(max_length=100)] = Field(
        description="By domain; the standard one is `ai.onnx`."
    )
    producer_name: Text = ""
    producer_version: Text = ""
    domain: Text = ""
    model_version: int = 0
    graph_name: Text = ""
    inputs: Annotated[list[Tensor], Field(max_length=LISTED)]
    outputs: Annotated[list[Tensor], Field(max_length=LISTED)]
    operators: Counts = Field(description="Nodes by type, `domain:Type` for custom.")
    node_count: Count
    custom_domains: Annotated[list[Text], Field(max_length=LISTED)]
    parameters: Count = Field(description="Elements of all initializers and constants.")
    initializer_count: Count
    quantized: bool
    metadata: Annotated[dict[Text, Text], Field(max_length=50)] = Field(
        default_factory=dict, description="The model's own key–value pairs, cut."
    )


class TfliteFacts(_Shape):
    """A TFLite model."""

    kind: Literal["tflite"]
    schema_version: int
    description: Text = ""
    inputs: Annotated[list[QuantizedTensor], Field(max_length=LISTED)]
    outputs: Annotated[list[QuantizedTensor], Field(max_length=LISTED)]
    operators: Counts = Field(description="By name, in all subgraphs.")
    operator_count: Count
    custom_operators: Annotated[list[Text], Field(max_length=LISTED)]
    flex_operators: Annotated[list[Text], Field(max_length=LISTED)] = Field(
        description="Those of TensorFlow itself, which need its Flex delegate."
    )
    subgraphs: Count
    tensor_count: Count
    parameters: Count = Field(description="Elements of all constant tensors.")
    quantized: bool
    metadata: Annotated[dict[Text, Text], Field(max_length=50)] = Field(
        default_factory=dict, description="Name, version, author … where packed."
    )
    labels: Annotated[list[Text], Field(max_length=LISTED)] = Field(
        default_factory=list
    )
    label_count: Count = 0


class H5Facts(_Shape):
    """An HDF5 file, of Keras or not."""

    kind: Literal["h5"]
    superblock_version: int
    keras_version: Text | None = None
    backend: Text | None = None
    model_class: Text | None = Field(
        default=None, description="Such as `Sequential` or `Functional`."
    )
    model_name: Text | None = None
    layers: Counts = Field(default_factory=dict, description="By class.")
    layer_count: Count = 0
    inputs: Annotated[list[Tensor], Field(max_length=LISTED)] = Field(
        default_factory=list
    )
    weights: Annotated[list[Tensor], Field(max_length=LISTED)]
    weight_count: Count
    parameters: Count = Field(description="Elements of all weights.")
    safety: Safety


class Annotations(_Shape):
    """Labels of images, summed up."""

    format: Literal["coco", "voc", "yolo", "imagefolder"]
    images: Count = Field(description="Images that the annotations speak of.")
    annotations: Count
    boxes: Count
    classes: Annotated[dict[Text, Count], Field(max_length=LISTED_CLASSES)] = Field(
        description="Boxes by class; images by class for `imagefolder`."
    )
    class_count: Count


class JsonFacts(_Shape):
    """A JSON document."""

    kind: Literal["json"]
    root: Literal["object", "array"]
    items: Count = Field(description="Members of the outermost object or array.")
    annotations: Annotations | None = None


class XmlFacts(_Shape):
    """An XML document."""

    kind: Literal["xml"]
    root: Text
    elements: Count
    annotations: Annotations | None = None


class MediaTypeTotal(_Shape):
    """Files of one media type."""

    files: Count
    bytes: Count


class SplitTotal(_Shape):
    """Files of one split."""

    files: Count
    images: Count


class ImageSizes(_Shape):
    """Sizes of images, from their headers, in pixels."""

    count: Count = Field(description="Images whose header was understood.")
    unreadable: Count
    min_width: Count
    max_width: Count
    min_height: Count
    max_height: Count
    sizes: Annotated[dict[Text, Count], Field(max_length=20)] = Field(
        description="The most frequent, as `640x480`."
    )


class ArchiveFacts(_Shape):
    """An archive of files, listed in its manifest."""

    kind: Literal["archive"]
    container: Literal["zip", "tar.gz"]
    files: Count
    unpacked_bytes: Count
    media_types: Annotated[dict[Text, MediaTypeTotal], Field(max_length=LISTED)]
    splits: Annotated[dict[Text, SplitTotal], Field(max_length=20)] = Field(
        default_factory=dict, description="`train`, `val`, `test`, by folder."
    )
    images: ImageSizes | None = None
    annotations: Annotations | None = None


_KINDS = ("pt", "onnx", "tflite", "h5", "json", "xml", "archive")


class HeaderFacts(BaseModel):
    """Facts of a version published before files were read in depth."""

    model_config = ConfigDict(
        extra="allow",
        # So that no other facts are these, too.
        json_schema_extra={
            "not": {"required": ["kind"], "properties": {"kind": {"enum": [*_KINDS]}}}
        },
    )


def _kind(value: Any) -> str:  # noqa: ANN401 - what validation is given
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", "")
    return kind if kind in _KINDS else "header"


ModelFacts = Annotated[
    Annotated[PtFacts, Tag("pt")]
    | Annotated[OnnxFacts, Tag("onnx")]
    | Annotated[TfliteFacts, Tag("tflite")]
    | Annotated[H5Facts, Tag("h5")]
    | Annotated[HeaderFacts, Tag("header")],
    Discriminator(_kind),
]
DatasetFacts = Annotated[
    Annotated[ArchiveFacts, Tag("archive")]
    | Annotated[JsonFacts, Tag("json")]
    | Annotated[XmlFacts, Tag("xml")]
    | Annotated[HeaderFacts, Tag("header")],
    Discriminator(_kind),
]
NEW_FACTS: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        PtFacts
        | OnnxFacts
        | TfliteFacts
        | H5Facts
        | ArchiveFacts
        | JsonFacts
        | XmlFacts,
        Field(discriminator="kind"),
    ]
)
"""What an inspection may answer."""
