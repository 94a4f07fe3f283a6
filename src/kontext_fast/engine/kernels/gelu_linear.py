"""Products of bfloat16 that activate what they write (bias, then GELU in its tanh form), by cuBLASLt.

PyTorch calls the same library, but has it write to memory of its own only; here it writes beside what is already there,
so that nothing is copied to join the two. Nothing is tuned: the library's first choice for a shape runs. The interface
is that of cublasLt.h of CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from functools import cache, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kontext_fast.engine.kernels.registry import Call, Inputs, Kernel, Operation
from kontext_fast.engine.kernels.rows import device_of
from kontext_fast.engine.ops import Attend, Linear
from kontext_fast.errors import KontextError

if TYPE_CHECKING:
    from kontext_fast.engine.flops import Dimensions

# Of cublasLt.h, library_types.h and cublas_api.h
_FLOAT32, _BFLOAT16, _COMPUTE_FLOAT32 = 0, 14, 68
_TRANSPOSES, _EPILOGUE, _BIAS, _BIAS_TYPE = 3, 7, 8, 26
"""Attributes of a product: whether its first matrix is transposed, what follows it, and the bias."""
_TRANSPOSED, _GELU_BIAS = 1, 36
_MOST_WORKSPACE, _ALIGNMENTS = 1, (5, 6, 7, 8)
"""Attributes of a preference: bytes of workspace, and the least alignment of each of the four matrices."""
_NOT_SUPPORTED = 15

_WORKSPACE = 32 << 20
"""Bytes, as many as PyTorch gives it on Hopper."""
_ALIGNED = 256
"""Bytes; the library knows no more of an address."""

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


def gelu_linear(x: Tensor, layer: Linear, *, beside: int = 0) -> Tensor:
    """[B, rows, `beside` + out] bfloat16, contiguous: the GELU of `x` [B, rows, K], contiguous, times the weight of
    `layer` plus its bias is in the last columns, and the first ones are for the caller to write.

    Raises KontextError where the library is missing or refuses.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert bias is not None
    out = torch.empty(*x.shape[:-1], beside + len(bias), dtype=x.dtype, device=x.device)
    rows, target = x.flatten(0, -2), out.flatten(0, -2)[:, beside:]
    shape = len(rows), len(weight), rows.shape[1], rows.stride(0), weight.stride(0), target.stride(0)
    aligned = min(_ALIGNED, *(tensor.data_ptr() & -tensor.data_ptr() for tensor in (rows, weight, bias, target)))
    with device_of(x):
        _plan(x.device.index, shape, aligned).run(rows, weight, bias, target)
    return out


class _Plan:
    """The product of one shape: what is described to the library, and what it chose."""

    def __init__(self, shape: tuple[int, ...], aligned: int) -> None:
        library = _library()
        rows, columns, shared, x_row, weight_row, out_row = shape
        self._description = _Description()
        _check(
            library.cublasLtMatmulDescInit_internal(self._description, sizeof(_Description), _COMPUTE_FLOAT32, _FLOAT32)
        )
        self._set(_TRANSPOSES, c_int32(_TRANSPOSED))
        self._set(_EPILOGUE, c_uint32(_GELU_BIAS))
        self._set(_BIAS, c_void_p(_ALIGNED))  # of which the library looks at the alignment
        self._set(_BIAS_TYPE, c_int32(_BFLOAT16))
        # The library thinks in columns: the weight is [K, columns] and transposed, x [K, rows], out [columns, rows].
        self._weight = _layout(shared, columns, weight_row)
        self._x = _layout(shared, rows, x_row)
        self._out = _layout(columns, rows, out_row)
        self._lock = Lock()
        preference = _Preference()
        _check(library.cublasLtMatmulPreferenceInit_internal(preference, sizeof(preference)))
        for name, value in ((_MOST_WORKSPACE, c_uint64(_WORKSPACE)), *((a, c_uint32(aligned)) for a in _ALIGNMENTS)):
            _check(library.cublasLtMatmulPreferenceSetAttribute(preference, name, byref(value), sizeof(value)))
        self._choice, count = _Choice(), c_int()
        layouts = self._weight, self._x, self._out, self._out
        _check(
            library.cublasLtMatmulAlgoGetHeuristic(
                _handle(), self._description, *layouts, preference, 1, byref(self._choice), byref(count)
            )
        )
        if not count.value:
            _check(_NOT_SUPPORTED)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
        one, zero, size = c_float(1), c_float(0), self._choice.workspace
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        with self._lock:  # others describe their bias at the same place
            self._set(_BIAS, c_void_p(bias.data_ptr()))
            status = _library().cublasLtMatmul(
                _handle(),
                self._description,
                byref(one),
                weight.data_ptr(),
                self._weight,
                x.data_ptr(),
                self._x,
                byref(zero),
                out.data_ptr(),
                self._out,
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
def _plan(device: int, shape: tuple[int, ...], aligned: int) -> _Plan:
    """`device`: the current one, which the library looks at."""
    return _Plan(shape, aligned)


def _layout(rows: int, columns: int, leading: int) -> Any:
    layout = _Layout()
    _check(_library().cublasLtMatrixLayoutInit_internal(layout, sizeof(layout), _BFLOAT16, rows, columns, leading))
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
    width, out = inputs.dimensions.width, inputs.dimensions.mlp_width
    # As in the model, most of what is activated is a few units from zero, where the forms of GELU differ.
    weight = inputs.draw(out, width) * (width**-0.5 / 8)
    return inputs.draw(inputs.batch, inputs.rows, width), Linear(weight, inputs.draw(out))


def _attend(inputs: Inputs) -> Attend:
    attended = inputs.draw(inputs.batch, inputs.rows, inputs.dimensions.width)
    return lambda into=None: attended if into is None else into.copy_(attended)


def _example(inputs: Inputs) -> Call:
    x, layer = _layer(inputs)
    return lambda ops, quantize: [ops.linear_gelu(x, layer, quantize=quantize)]


def _example_joined(inputs: Inputs) -> Call:
    (x, layer), attend = _layer(inputs), _attend(inputs)
    return lambda ops, quantize: [ops.join_linear_gelu(attend, x, layer, quantize=quantize)]


def _of_attention(dimensions: Dimensions, read: int, written: int) -> int:
    return dimensions.width * (read + written)


KERNEL = Kernel(
    "gelu_linear",
    functions=(),
    operations=(
        Operation("linear_gelu", _example, bytes_per_row=lambda *_: 0, per_double=1, quantizes={"bf16": (False,)}),
        Operation(
            "join_linear_gelu",
            _example_joined,
            bytes_per_row=_of_attention,  # which not every kernel writes to where it is read
            per_single=1,
            for_outputs=1,
            quantizes={"bf16": (False,)},
        ),
    ),
)
