"""TFLite's FlatBuffers schema, as far as qmath reads or writes it: one table for both.

Every table is given in the words of ``schema.fbs``, with its fields in the order of their slots,
which FlatBuffers never changes: a field's place in the text is its slot. A field that qmath has
no use for is ``_`` and holds its slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "ACTIVATIONS",
    "IDENTIFIER",
    "OPERATORS",
    "OPERATOR_NAMES",
    "OPTIONS",
    "OPTION_NUMBERS",
    "PADDINGS",
    "SCALARS",
    "TABLES",
    "TENSOR_TYPES",
    "VERSION",
    "WEIGHTS_FORMATS",
    "Field",
]

IDENTIFIER = b"TFL3"
"""The file identifier, the four bytes after the root's offset."""
VERSION = 3
"""The schema version that every TFLite file states."""

SCALARS: Mapping[str, str] = {
    "bool": "<u1",
    "byte": "<i1",
    "ubyte": "<u1",
    "int": "<i4",
    "uint": "<u4",
    "long": "<i8",
    "ulong": "<u8",
    "float": "<f4",
}
"""The schema's word for a scalar and its NumPy type in a file."""


@dataclass(frozen=True)
class Field:
    """A field of a table.

    Attributes
    ----------
    name : str
        Its name in the schema.
    slot : int
        Its place in the vtable, from 0.
    kind : str
        A key of `SCALARS`, ``string``, a key of `TABLES`, one of these in brackets (a vector), or
        ``union``: a table whose kind the field before it tells.
    default : int or float
        What a scalar is where the file leaves it out.
    """

    name: str
    slot: int
    kind: str
    default: int | float = 0

    @property
    def is_vector(self) -> bool:
        """Whether the field holds a vector."""
        return self.kind.startswith("[")

    @property
    def element(self) -> str:
        """The kind, or that of a vector's elements."""
        return self.kind.strip("[]")


def _fields(text: str) -> tuple[Field, ...]:
    fields = []
    for slot, word in enumerate(text.split()):
        if word == "_":
            continue
        name, kind = word.split(":")
        kind, _, default = kind.partition("=")
        number = float(default or 0) if kind == "float" else int(default or 0)
        fields.append(Field(name, slot, kind, number))
    return tuple(fields)


_WINDOW = "padding:byte stride_w:int stride_h:int"
_DILATION = "dilation_w_factor:int=1 dilation_h_factor:int=1"
_FUSED = "fused_activation_function:byte"

TABLES: Mapping[str, tuple[Field, ...]] = {
    name: _fields(text)
    for name, text in {
        "Model": "version:uint operator_codes:[OperatorCode] subgraphs:[SubGraph]"
        " description:string buffers:[Buffer] metadata_buffer:[int] metadata:[Metadata]"
        " signature_defs:[SignatureDef]",
        "OperatorCode": "deprecated_builtin_code:byte custom_code:string version:int=1"
        " builtin_code:int",
        "SubGraph": "tensors:[Tensor] inputs:[int] outputs:[int] operators:[Operator] name:string",
        "Tensor": "shape:[int] type:byte buffer:uint name:string"
        " quantization:QuantizationParameters is_variable:bool sparsity:SparsityParameters"
        " shape_signature:[int] has_rank:bool _ external_buffer:uint",
        "QuantizationParameters": "min:[float] max:[float] scale:[float] zero_point:[long]"
        " details_type:ubyte _ quantized_dimension:int",
        "SparsityParameters": "",
        "Buffer": "data:[ubyte] offset:ulong size:ulong",
        "Metadata": "name:string buffer:uint",
        "SignatureDef": "inputs:[TensorMap] outputs:[TensorMap] signature_key:string _"
        " subgraph_index:uint",
        "TensorMap": "name:string tensor_index:uint",
        "Operator": "opcode_index:uint inputs:[int] outputs:[int] builtin_options_type:ubyte"
        " builtin_options:union custom_options:[ubyte] _ _ intermediates:[int]",
        "Conv2DOptions": f"{_WINDOW} {_FUSED} {_DILATION} quantized_bias_type:byte",
        "DepthwiseConv2DOptions": f"{_WINDOW} depth_multiplier:int {_FUSED} {_DILATION}",
        "Conv3DOptions": "padding:byte stride_d:int stride_w:int stride_h:int"
        f" {_FUSED} dilation_d_factor:int=1 {_DILATION}",
        "TransposeConvOptions": f"{_WINDOW} {_FUSED} quantized_bias_type:byte",
        "FullyConnectedOptions": f"{_FUSED} weights_format:byte keep_num_dims:bool"
        " asymmetric_quantize_inputs:bool quantized_bias_type:byte",
        "BatchMatMulOptions": "adj_x:bool adj_y:bool asymmetric_quantize_inputs:bool",
        "Pool2DOptions": f"{_WINDOW} filter_width:int filter_height:int {_FUSED}",
        "ReducerOptions": "keep_dims:bool",
        "AddOptions": f"{_FUSED} pot_scale_int16:bool=1",
        "SubOptions": f"{_FUSED} pot_scale_int16:bool=1",
        "MulOptions": _FUSED,
        "MaximumMinimumOptions": "",
        "ConcatenationOptions": f"axis:int {_FUSED}",
        "SplitOptions": "num_splits:int",
        "SplitVOptions": "num_splits:int",
        "SliceOptions": "",
        "PackOptions": "values_count:int axis:int",
        "UnpackOptions": "num:int axis:int",
        "ReshapeOptions": "new_shape:[int]",
        "SqueezeOptions": "squeeze_dims:[int]",
        "SpaceToDepthOptions": "block_size:int",
        "DepthToSpaceOptions": "block_size:int",
        "TileOptions": "",
        "BroadcastToOptions": "",
        "GatherOptions": "axis:int batch_dims:int",
        "ExpandDimsOptions": "",
        "TransposeOptions": "",
        "PadOptions": "",
        "PadV2Options": "",
        "StridedSliceOptions": "begin_mask:int end_mask:int ellipsis_mask:int new_axis_mask:int"
        " shrink_axis_mask:int offset:bool",
        "ShapeOptions": "out_type:byte",
        "ArgMaxOptions": "output_type:byte",
        "ResizeBilinearOptions": "_ _ align_corners:bool half_pixel_centers:bool",
        "ResizeNearestNeighborOptions": "align_corners:bool half_pixel_centers:bool",
        "SoftmaxOptions": "beta:float",
        "LeakyReluOptions": "alpha:float",
        "GeluOptions": "approximate:bool",
        "HardSwishOptions": "",
        "AbsOptions": "",
        "ExpOptions": "",
        "NegOptions": "",
        "SquareOptions": "",
        "QuantizeOptions": "",
        "DequantizeOptions": "",
    }.items()
}
"""The schema's tables, each with its fields in the order of their slots."""

OPTION_NUMBERS: Mapping[str, int] = {
    "Conv2DOptions": 1,
    "DepthwiseConv2DOptions": 2,
    "Pool2DOptions": 5,
    "FullyConnectedOptions": 8,
    "SoftmaxOptions": 9,
    "ConcatenationOptions": 10,
    "AddOptions": 11,
    "ResizeBilinearOptions": 15,
    "SpaceToDepthOptions": 19,
    "ReshapeOptions": 17,
    "MulOptions": 21,
    "PadOptions": 22,
    "GatherOptions": 23,
    "TransposeOptions": 26,
    "ReducerOptions": 27,
    "SubOptions": 28,
    "SqueezeOptions": 30,
    "StridedSliceOptions": 32,
    "ExpOptions": 33,
    "SplitOptions": 35,
    "DequantizeOptions": 38,
    "MaximumMinimumOptions": 39,
    "ArgMaxOptions": 40,
    "NegOptions": 42,
    "PadV2Options": 43,
    "SliceOptions": 48,
    "TransposeConvOptions": 49,
    "TileOptions": 51,
    "ExpandDimsOptions": 52,
    "ShapeOptions": 55,
    "PackOptions": 59,
    "UnpackOptions": 64,
    "SquareOptions": 66,
    "ResizeNearestNeighborOptions": 74,
    "LeakyReluOptions": 75,
    "AbsOptions": 78,
    "SplitVOptions": 79,
    "QuantizeOptions": 89,
    "HardSwishOptions": 91,
    "DepthToSpaceOptions": 94,
    "BatchMatMulOptions": 101,
    "BroadcastToOptions": 104,
    "Conv3DOptions": 106,
    "GeluOptions": 116,
}
"""The members of the union ``BuiltinOptions`` that qmath reads or writes, by number."""

OPTIONS: Mapping[str, str] = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "CONV_3D": "Conv3DOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "CONCATENATION": "ConcatenationOptions",
    "SPLIT": "SplitOptions",
    "SPLIT_V": "SplitVOptions",
    "SLICE": "SliceOptions",
    "PACK": "PackOptions",
    "UNPACK": "UnpackOptions",
    "RESHAPE": "ReshapeOptions",
    "SQUEEZE": "SqueezeOptions",
    "EXPAND_DIMS": "ExpandDimsOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "TILE": "TileOptions",
    "BROADCAST_TO": "BroadcastToOptions",
    "GATHER": "GatherOptions",
    "TRANSPOSE": "TransposeOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SHAPE": "ShapeOptions",
    "ARG_MAX": "ArgMaxOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SOFTMAX": "SoftmaxOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "GELU": "GeluOptions",
    "HARD_SWISH": "HardSwishOptions",
    "ABS": "AbsOptions",
    "EXP": "ExpOptions",
    "NEG": "NegOptions",
    "SQUARE": "SquareOptions",
    "QUANTIZE": "QuantizeOptions",
    "DEQUANTIZE": "DequantizeOptions",
}
"""The options table of an operator; those not here (RELU, LOGISTIC, PRELU …) have none."""

_OPERATORS = """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE
    EMBEDDING_LOOKUP FLOOR FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D
    LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1
    RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS
    SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
    BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE
    UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT
    LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS
    NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE
    TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT
    REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN
    FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR
    LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND
    COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH
    IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY
    SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO
    RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT
    HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE
    BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU
    DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX
    UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT
    STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM
    STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE STABLEHLO_BROADCAST_IN_DIM
    STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE STABLEHLO_ABS
    STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG
    STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER
    STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER
    STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE
    STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT
    STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR
    REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
"""
OPERATOR_NAMES: tuple[str, ...] = tuple(_OPERATORS.split())
"""The names of ``BuiltinOperator``, each at its number."""

OPERATORS: Mapping[str, int] = {name: number for number, name in enumerate(OPERATOR_NAMES)}
"""The number of each builtin operator: ``builtin_code``."""

TENSOR_TYPES: Mapping[str, int] = {
    "FLOAT32": 0,
    "FLOAT16": 1,
    "INT32": 2,
    "UINT8": 3,
    "INT64": 4,
    "STRING": 5,
    "BOOL": 6,
    "INT16": 7,
    "COMPLEX64": 8,
    "INT8": 9,
    "FLOAT64": 10,
    "COMPLEX128": 11,
    "UINT64": 12,
    "RESOURCE": 13,
    "VARIANT": 14,
    "UINT32": 15,
    "UINT16": 16,
    "INT4": 17,
    "BFLOAT16": 18,
    "INT2": 19,
    "UINT4": 20,
}
"""The numbers of ``TensorType``."""

PADDINGS: Mapping[str, int] = {"SAME": 0, "VALID": 1}
"""The numbers of ``Padding``."""

ACTIVATIONS: Mapping[str, int] = {
    "NONE": 0,
    "RELU": 1,
    "RELU_N1_TO_1": 2,
    "RELU6": 3,
    "TANH": 4,
    "SIGN_BIT": 5,
}
"""The numbers of ``ActivationFunctionType``."""

WEIGHTS_FORMATS: Mapping[str, int] = {"DEFAULT": 0, "SHUFFLED4x16INT8": 1}
"""The numbers of ``FullyConnectedOptionsWeightsFormat``."""
