"""Products that activate what they write (bias, then GELU in its tanh form) and may round it to e4m3, by cuBLASLt.

PyTorch calls the same library, but has it write to memory of its own only, and no GELU in float8; here it writes beside
what is already there, so that nothing is copied to join the two. Nothing is tuned: the library's first choice for a
shape runs. The interface is that of cublasLt.h of CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_int, c_int8, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from functools import cache, lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kontext_fast.engine.kernels.registry import Call, Inputs, Kernel, Operation
from kontext_fast.engine.kernels.rows import device_of
from kontext_fast.engine.ops import Activations, Linear, Ops, Quantized, quantize_by, quantize_whole
from kontext_fast.errors import KontextError

if TYPE_CHECKING:
    from kontext_fast.engine.flops import Dimensions

# Of cublasLt.h, library_types.h and cublas_api.h
_TYPES = {torch.float32: 0, torch.bfloat16: 14, torch.float8_e4m3fn: 28}
_COMPUTE_FLOAT32 = 68
_TRANSPOSES, _EPILOGUE, _BIAS, _FAST_SUMS, _BIAS_TYPE = 3, 7, 8, 25, 26
"""Attributes of a product: whether its first matrix is transposed, what follows, the bias, and how float8 is summed."""
_SCALES = 17, 18, 20
"""Attributes of a product: the scales of the weight, of x and of the result."""
_TRANSPOSED, _GELU_BIAS = 1, 36
_MOST_WORKSPACE, _ALIGNMENTS = 1, (5, 6, 7, 8)
"""Attributes of a preference: bytes of workspace, and the least alignment of each of the four matrices."""
_NOT_SUPPORTED = 15

_WORKSPACE = 32 << 20
"""Bytes, as many as PyTorch gives it on Hopper."""
_ALIGNED = 256
"""Bytes; the library knows no more of an address."""

_FEW = 16
"""Rows, for which a small layer will do as an example."""

_Layout = c_uint64 * 8
_Description = c_uint64 * 32
_Preference = c_uint64 * 8
_Algorithm = c_uint64 * 8


class _Choice(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


def gelu_linear(x: Activations, layer: Linear, *, static: Tensor | None = None, beside: int = 0) -> Tensor:
    """[B, rows, `beside` + out], contiguous; the GELU of `x` [B, rows, K] times the weight of `layer` plus its bias is
    in the last columns, and the first ones are for the caller to write.

    In bfloat16; or in e4m3, of a weight with one scale and an `x` whose rows have the scale `static[0]` of their
    sample, with the scales `static` [3, B] of `kontext_fast.engine.ops.Ops`. Then each sample is a product of its own.
    Raises KontextError where the library is missing or has no such product.
    """
    operand = x.values if isinstance(x, Quantized) else x
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    out = torch.empty(*operand.shape[:-1], beside + len(bias), dtype=operand.dtype, device=operand.device)
    if static is None:
        assert isinstance(weight, Tensor)
        _multiply(operand.flatten(0, -2), weight, bias, out.flatten(0, -2)[:, beside:], ())
    else:
        assert isinstance(weight, Quantized)
        for sample, (rows, target) in enumerate(zip(operand, out, strict=True)):
            scales = [_aligned(scale) for scale in (weight.scale, static[0, sample], static[2, sample])]
            _multiply(rows, weight.values, bias, target[:, beside:], scales)
    return out


def rounds_to_e4m3(device: torch.device) -> bool:
    """Whether the library has such a product in e4m3 for a GPU."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    with torch.cuda.device(device):
        try:
            _Plan(torch.float8_e4m3fn, (256, 256, 256, 256, 256, 256), _ALIGNED)
        except KontextError:
            return False
    return True


def _multiply(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, scales: Sequence[Tensor]) -> None:
    """`scales`: none, or what the weight, `x` and the result are multiplied by, one number on the device each."""
    shape = len(x), len(weight), x.shape[1], x.stride(0), weight.stride(0), out.stride(0)
    aligned = min(_ALIGNED, *(tensor.data_ptr() & -tensor.data_ptr() for tensor in (x, weight, bias, out)))
    with device_of(x):
        _plan(x.device.index, x.dtype, shape, aligned).run(x, weight, bias, out, scales)


def _aligned(scale: Tensor) -> Tensor:
    # The library takes no scale that begins elsewhere than at 16 bytes.
    return scale.clone() if scale.data_ptr() % 16 else scale


class _Plan:
    """One product of one shape: what is described to the library, and what it chose."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], aligned: int) -> None:
        library = _library()
        rows, columns, shared, x_row, weight_row, out_row = shape
        self._description = _Description()
        _check(library.cublasLtMatmulDescInit_internal(self._description, sizeof(_Description), _COMPUTE_FLOAT32, 0))
        self._set(_TRANSPOSES, c_int32(_TRANSPOSED))
        self._set(_EPILOGUE, c_uint32(_GELU_BIAS))
        self._set(_BIAS, c_void_p(_ALIGNED))  # of which the library looks at the alignment
        self._set(_BIAS_TYPE, c_int32(_TYPES[torch.bfloat16]))
        if dtype == torch.float8_e4m3fn:
            self._set(_FAST_SUMS, c_int8(1))
            for scale in _SCALES:
                self._set(scale, c_void_p(_ALIGNED))
        # The library thinks in columns: weight is [K, columns] and transposed, x [K, rows], the result [columns, rows].
        self._weight = _layout(dtype, shared, columns, weight_row)
        self._x = _layout(dtype, shared, rows, x_row)
        self._added = _layout(torch.bfloat16, columns, rows, out_row)  # times zero, and of a type that float8 takes
        self._out = _layout(dtype, columns, rows, out_row)
        self._lock = Lock()
        preference = _Preference()
        _check(library.cublasLtMatmulPreferenceInit_internal(preference, sizeof(preference)))
        for name, value in ((_MOST_WORKSPACE, c_uint64(_WORKSPACE)), *((a, c_uint32(aligned)) for a in _ALIGNMENTS)):
            _check(library.cublasLtMatmulPreferenceSetAttribute(preference, name, byref(value), sizeof(value)))
        self._choice, count = _Choice(), c_int()
        layouts = self._weight, self._x, self._added, self._out
        _check(
            library.cublasLtMatmulAlgoGetHeuristic(
                _handle(), self._description, *layouts, preference, 1, byref(self._choice), byref(count)
            )
        )
        if not count.value:
            _check(_NOT_SUPPORTED)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, scales: Sequence[Tensor]) -> None:
        one, zero, size = c_float(1), c_float(0), self._choice.workspace
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        pointers = (_BIAS, bias), *zip(_SCALES, scales, strict=False)
        with self._lock:  # others describe their pointers at the same place
            for name, tensor in pointers:
                self._set(name, c_void_p(tensor.data_ptr()))
            status = _library().cublasLtMatmul(
                _handle(),
                self._description,
                byref(one),
                weight.data_ptr(),
                self._weight,
                x.data_ptr(),
                self._x,
                byref(zero),
                None if scales else out.data_ptr(),
                self._added,
                out.data_ptr(),
                self._out,
                byref(self._choice.algorithm),
                workspace.data_ptr() if size else None,
                size,
                torch.cuda.current_stream().cuda_stream,
            )
        _check(status)

    def _set(self, name: int, value: Any) -> None:
        _check(_library().cublasLtMatmulDescSetAttribute(self._description, name, byref(value), sizeof(value)))


@lru_cache(maxsize=512)
def _plan(device: int, dtype: torch.dtype, shape: tuple[int, ...], aligned: int) -> _Plan:
    """`device`: the current one, which the library looks at."""
    return _Plan(dtype, shape, aligned)


def _layout(dtype: torch.dtype, rows: int, columns: int, leading: int) -> Any:
    layout = _Layout()
    _check(_library().cublasLtMatrixLayoutInit_internal(layout, sizeof(layout), _TYPES[dtype], rows, columns, leading))
    return layout


def _handle() -> c_void_p:
    # Of cuBLAS, which is one of cuBLASLt, too.
    return c_void_p(torch.cuda.current_blas_handle())  # type: ignore[no-untyped-call]


def _check(status: int) -> None:
    if status:
        raise KontextError(f"cuBLASLt refused a product with a GELU (status {status}); use another preset.")


@cache
def _library() -> Any:
    major = (torch.version.cuda or "13").split(".")[0]
    name = f"cublasLt64_{major}.dll" if sys.platform == "win32" else f"libcublasLt.so.{major}"
    try:
        library: Any = ctypes.CDLL(name)
    except OSError as error:
        raise KontextError(f"{name}, which PyTorch brings, cannot be loaded: {error}.") from error
    pointer, number = c_void_p, c_int
    signatures = {
        "cublasLtMatmulDescInit_internal": (pointer, c_size_t, number, number),
        "cublasLtMatmulDescSetAttribute": (pointer, number, pointer, c_size_t),
        "cublasLtMatrixLayoutInit_internal": (pointer, c_size_t, number, c_uint64, c_uint64, c_int64),
        "cublasLtMatmulPreferenceInit_internal": (pointer, c_size_t),
        "cublasLtMatmulPreferenceSetAttribute": (pointer, number, pointer, c_size_t),
        "cublasLtMatmulAlgoGetHeuristic": (*(pointer,) * 7, number, pointer, pointer),
        "cublasLtMatmul": (*(pointer,) * 14, c_size_t, pointer),
    }
    for function, arguments in signatures.items():
        getattr(library, function).argtypes = arguments
        getattr(library, function).restype = number
    return library


def _layer(inputs: Inputs) -> tuple[Tensor, Linear]:
    width, rows = inputs.dimensions.width, inputs.rows
    out = inputs.dimensions.mlp_width if rows > _FEW else width
    # As in the model, most of what is activated is a few units from zero, where the forms of GELU differ.
    weight = inputs.draw(out, width) * (width**-0.5 / 8)
    return inputs.draw(inputs.batch, rows, width), Linear(weight, inputs.draw(out))


def _operands(inputs: Inputs, *, static: bool) -> Callable[[bool], tuple[Activations, Linear, Tensor | None]]:
    """What is multiplied, given whether it is quantized, and the scales then; `static`: whether it ever is."""
    x, layer = _layer(inputs)
    if not static:
        return lambda quantize: (x, layer, None)
    assert isinstance(layer.weight, Tensor)
    scales, weight = inputs.static(), quantize_whole(layer.weight)
    rounded = quantize_by(x, scales[0], x.dtype)

    def operands(quantize: bool) -> tuple[Activations, Linear, Tensor | None]:
        if quantize:
            return rounded, Linear(weight, layer.bias), scales
        return rounded.dequantized().to(x.dtype), Linear(weight.dequantized().to(x.dtype), layer.bias), None

    return operands


def _example(inputs: Inputs, *, static: bool) -> Call:
    operands = _operands(inputs, static=static)

    def call(ops: Ops, quantize: bool) -> list[Activations]:
        x, layer, scales = operands(quantize)
        return [ops.linear_gelu(x, layer, quantize=quantize, static=scales)]

    return call


def _example_joined(inputs: Inputs, *, static: bool) -> Call:
    operands = _operands(inputs, static=static)
    attended = inputs.draw(inputs.batch, inputs.rows, inputs.dimensions.width)

    def attend(into: Tensor | None = None) -> Tensor:
        return attended if into is None else into.copy_(attended)

    def call(ops: Ops, quantize: bool) -> list[Activations]:
        x, layer, scales = operands(quantize)
        return [ops.join_linear_gelu(attend, x, layer, quantize=quantize, static=scales)]

    return call


def _of_attention(dimensions: Dimensions, read: int, written: int) -> int:
    return dimensions.width * (read + written)


KERNEL = Kernel(
    "gelu_linear",
    functions=(),
    operations=(
        Operation("linear_gelu", partial(_example, static=False), per_double=1, quantizes={"bf16": (False,)}),
        Operation(
            "join_linear_gelu",
            partial(_example_joined, static=False),
            bytes_per_row=_of_attention,
            per_single=1,
            for_outputs=1,
            quantizes={"bf16": (False,)},
        ),
        Operation("linear_gelu", partial(_example, static=True), per_double=1, quantizes={"fp8": (True,)}, static=True),
        Operation(
            "join_linear_gelu",
            partial(_example_joined, static=True),
            bytes_per_row=_of_attention,
            per_single=1,
            for_outputs=1,
            quantizes={"fp8": (True,)},
            static=True,
        ),
    ),
)
