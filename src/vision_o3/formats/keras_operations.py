"""Layers of Keras that stand for something of TensorFlow: which of it only computes.

Keras 2 writes a call in a model as a layer that names what to call when it is loaded:
a function (``TFOpLambda``), a class's method, a tensor's attribute, or an operation of
the graph (``TensorFlowOpLayer``). TensorFlow has such that read and write files, load
libraries and run code. Those pass that are listed here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTIONS = _names(
    """
    abs acos acosh add add_n argmax argmin argsort as_string asin asinh atan atan2 atanh
    batch_to_space batch_to_space_nd bitcast boolean_mask broadcast_dynamic_shape
    broadcast_static_shape broadcast_to cast clip_by_global_norm clip_by_norm
    clip_by_value complex concat constant convert_to_tensor cos cosh cumsum
    depth_to_space div div_no_nan dynamic_partition dynamic_stitch edit_distance einsum
    ensure_shape equal erf exp expand_dims extract_volume_patches eye fill fingerprint
    floor floordiv floormod gather gather_nd greater greater_equal guarantee_const
    histogram_fixed_width histogram_fixed_width_bins identity identity_n
    invert_permutation is_finite is_inf is_nan less less_equal linspace log log1p
    logical_and logical_not logical_or logical_xor matmul maximum meshgrid minimum mod
    multiply negative no_op norm not_equal one_hot ones ones_like pad parallel_stack pow
    quantize random_crop random_gamma random_normal random_poisson random_shuffle
    random_uniform range rank realdiv reduce_all reduce_any reduce_logsumexp reduce_max
    reduce_mean reduce_min reduce_prod reduce_std reduce_sum reduce_variance repeat
    required_space_to_batch_paddings reshape reverse reverse_sequence reverse_v2 roll
    round rsqrt saturate_cast scalar_mul scatter_nd searchsorted sequence_mask shape
    shape_n sigmoid sign sin sinh size slice sort space_to_batch space_to_batch_nd
    space_to_depth split sqrt square squeeze stack stop_gradient strided_slice
    string_split subtract tan tanh tensor_scatter_nd_add tensor_scatter_nd_max
    tensor_scatter_nd_min tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile
    to_bfloat16 to_complex128 to_complex64 to_double to_float to_int32 to_int64
    transpose truediv truncated_normal truncatediv truncatemod unique unique_with_counts
    unravel_index unstack where where_v2 zeros zeros_like
    """
)
"""Functions of ``tf``."""
_BACKEND = _names(
    """
    abs all any arange argmax argmin batch_dot batch_flatten batch_normalization
    bias_add binary_crossentropy cast categorical_crossentropy clip concatenate constant
    conv1d conv2d conv2d_transpose conv3d cos count_params ctc_batch_cost ctc_decode
    ctc_label_dense_to_sparse cumprod cumsum depthwise_conv2d dot dropout dtype elu
    equal exp expand_dims eye flatten gather greater greater_equal hard_sigmoid identity
    image_data_format in_test_phase in_train_phase int_shape is_sparse l2_normalize less
    less_equal local_conv1d local_conv2d log max maximum mean min minimum ndim
    normalize_batch_in_training not_equal one_hot ones ones_like permute_dimensions
    pool2d pool3d pow prod random_bernoulli random_binomial random_normal random_uniform
    relu repeat repeat_elements reshape resize_images resize_volumes reverse round
    separable_conv2d shape sigmoid sign sin softmax softplus softsign
    sparse_categorical_crossentropy spatial_2d_padding spatial_3d_padding sqrt square
    squeeze stack std stop_gradient sum switch tanh temporal_padding tile to_dense
    transpose truncated_normal var zeros zeros_like
    """
)
"""Functions of ``tf.keras.backend``."""
_NAMESPACES = re.compile(
    r"(?:math|nn|image|linalg|signal|random|bitwise|strings|sets|sparse|ragged"
    r"|quantization|experimental\.numpy)(?:\.[a-z]+)?"
    r"\.(?!set_|experimental_)[a-z][a-z0-9_]*"
    r"|__operators__\.\w+|(?:debugging\.)?(?:assert|check)_[a-z_]+"
    r"|keras\.(?:activations|losses|metrics)"
    r"\.(?!(?:de)?serialize|get\b)[a-z][a-z0-9_]*"
)
"""Namespaces whose functions all compute, but for those left out. No class: these
have capitals."""
_OPERATIONS = _names(
    """
    Abs Acos Acosh Add AddN AddV2 AdjustContrastv2 AdjustHue AdjustSaturation All Angle
    Any ApproximateEqual ArgMax ArgMin AsString Asin Asinh Atan Atan2 Atanh AvgPool
    AvgPool3D BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpace BatchToSpaceND
    BiasAdd Bincount Bitcast BitwiseAnd BitwiseOr BitwiseXor BroadcastArgs BroadcastTo
    Bucketize Cast Ceil CheckNumerics Cholesky ClipByValue Complex ComplexAbs Concat
    ConcatV2 Conj Const Conv2D Conv2DBackpropInput Conv3D Cos Cosh CropAndResize Cross
    Cumprod Cumsum DecodeRaw DepthToSpace DepthwiseConv2dNative Diag DiagPart Digamma
    Dilation2D Div DivNoNan DynamicPartition DynamicStitch Einsum Elu EnsureShape Equal
    Erf Erfc Erfinv Exp ExpandDims Expm1 ExtractImagePatches FFT FFT2D
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel
    Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather
    GatherNd GatherV2 Greater GreaterEqual HSVToRGB IFFT IFFT2D IRFFT Identity IdentityN
    Imag InTopK InTopKV2 Inv InvertPermutation IsFinite IsInf IsNan L2Loss LRN LeakyRelu
    LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogSoftmax LogicalAnd LogicalNot
    LogicalOr MatMul MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagV2 MatrixDiagV3
    MatrixInverse MatrixSetDiag Max MaxPool MaxPool3D MaxPoolV2 Maximum Mean Min Minimum
    MirrorPad Mod Mul MulNoNan Multinomial Ndtri Neg NonMaxSuppression
    NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5
    NotEqual OneHot OnesLike Pack Pad PadV2 ParallelConcat PlaceholderWithDefault
    Polygamma Pow PreventGradient Prod RFFT RGBToHSV RandomShuffle RandomStandardNormal
    RandomUniform RandomUniformInt Range Rank Real RealDiv Reciprocal Relu Relu6 Reshape
    ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor Reverse
    ReverseSequence ReverseV2 RightShift Rint Roll Round Rsqrt ScatterNd SegmentMax
    SegmentMean SegmentMin SegmentSum Select SelectV2 Selu Shape ShapeN Sigmoid Sign Sin
    Sinh Size Slice Softmax Softplus Softsign SpaceToBatch SpaceToBatchND SpaceToDepth
    SparseToDense Split SplitV Sqrt Square SquaredDifference Squeeze StopGradient
    StridedSlice StringJoin StringToNumber Sub Sum Tan Tanh TensorScatterAdd
    TensorScatterSub TensorScatterUpdate Tile TopK TopKV2 Transpose TruncateDiv
    TruncateMod TruncatedNormal Unique UniqueV2 Unpack UnravelIndex UnsortedSegmentMax
    UnsortedSegmentMean UnsortedSegmentSum Where Xdivy Xlogy ZerosLike
    """
)
"""Operations, as nodes of a graph name them."""
_CLASS_METHODS = {
    "RaggedTensor": re.compile(r"from_[a-z_]+"),
    "SparseTensor": re.compile(r"from_value"),
    "sparse.SparseTensor": re.compile(r"from_value"),
}
_ATTRIBUTES = _names(
    """
    T astype bounding_shape clip dense_shape device dtype flat_values get_shape indices
    max mean merge_dims min name ndim nested_row_lengths nested_row_splits
    nested_value_rowids nrows ragged_rank rank ravel reshape row_lengths row_limits
    row_splits row_starts shape size to_sparse to_tensor transpose uniform_row_length
    value_rowids values with_flat_values with_row_splits_dtype with_shape with_values
    """
)
"""What tensors have, ragged and sparse ones too, that computes or describes."""


def stands_for(kind: str, settings: dict[str, Any]) -> str | None:
    """Return what a layer stands for, unless that is known to compute only.

    ``None`` as well for a layer that stands for nothing of TensorFlow.
    """
    look = _LAYERS.get(kind)
    return look(settings) if look else None


def _function(settings: dict[str, Any]) -> str | None:
    symbol = _named(settings, "function")
    name = symbol.removeprefix("compat.v1.")
    space, _, last = name.rpartition(".")
    known = (
        name in _FUNCTIONS
        or (space == "keras.backend" and last in _BACKEND)
        or (space == "raw_ops" and last in _OPERATIONS)
        or _NAMESPACES.fullmatch(name)
    )
    return None if known else symbol or "no function"


def _class_method(settings: dict[str, Any]) -> str | None:
    symbol, method = _named(settings, "cls_symbol"), _named(settings, "method_name")
    allowed = _CLASS_METHODS.get(symbol.removeprefix("compat.v1."))
    return None if allowed and allowed.fullmatch(method) else f"{symbol}.{method}"


def _method(settings: dict[str, Any]) -> str | None:
    name = _named(settings, "method_name")
    return None if name in _ATTRIBUTES else name or "no method"


def _property(settings: dict[str, Any]) -> str | None:
    name = _named(settings, "attr_name")
    return None if name in _ATTRIBUTES else name or "no attribute"


def _node(settings: dict[str, Any]) -> str | None:
    """A node in JSON; what TensorFlow 2.0 and 2.1 wrote instead cannot be told."""
    node = settings.get("node_def")
    operation = _named(node, "op") if isinstance(node, dict) else ""
    return None if operation in _OPERATIONS else operation or "an unknown operation"


def _named(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key)
    return value if isinstance(value, str) else ""


_LAYERS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "TFOpLambda": _function,
    "SlicingOpLambda": _function,
    "ClassMethod": _class_method,
    "InstanceMethod": _method,
    "InstanceProperty": _property,
    "TensorFlowOpLayer": _node,
}
