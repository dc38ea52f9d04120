// How a tensor of Python becomes a View: by asking it, so that no number in between can be another's. No torch header;
// included by the bindings alone.
#pragma once
#include <pybind11/pybind11.h>

#include "exchange.h"
#include "view.h"

namespace fk {

// The dtypes that kernels know, and attributes by name; made once, and never freed: Python may be gone before.
struct TorchNames {
  PyObject *data_ptr, *shape, *stride, *dtype;
  struct {
    PyObject* dtype;
    DType type;
  } types[8];

  static const TorchNames& get() {
    static const TorchNames* const names = new TorchNames();
    return *names;
  }
  DType type_of(PyObject* dtype) const {
    for (const auto& known : types)
      if (known.dtype == dtype) return known.type;
    return DType::other;
  }

 private:
  TorchNames() {
    data_ptr = PyUnicode_InternFromString("data_ptr");
    shape = PyUnicode_InternFromString("shape");
    stride = PyUnicode_InternFromString("stride");
    dtype = PyUnicode_InternFromString("dtype");
    const pybind11::module_ torch = pybind11::module_::import("torch");
    int i = 0;
    for (auto [name, type] : {std::pair("float32", DType::f32),
                              {"float64", DType::f64},
                              {"bfloat16", DType::bf16},
                              {"float16", DType::f16},
                              {"int32", DType::i32},
                              {"int64", DType::i64},
                              {"bool", DType::bytes},
                              {"uint8", DType::bytes}})
      types[i++] = {pybind11::object(torch.attr(name)).release().ptr(), type};
  }
};

inline pybind11::object asked(PyObject* answer) {
  if (!answer) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(answer);
}
template <class N>
N number(N n) {
  if (n == N(-1) && PyErr_Occurred()) throw pybind11::error_already_set();
  return n;
}

// Reads a tensor by DLPack's table; false where that cannot be.
inline bool read_exchanged(PyObject* tensor, View& v) {
  exchange::Tensor t;
  if (!exchange::Exchange::get()(tensor, &t) || t.ndim < 0 || t.ndim > View::kMaxDims) return false;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] < 0) return false;
    v.size[i] = t.shape[i], v.stride[i] = t.strides[i];
  }
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.type = exchange::type_of(t.dtype.code, t.dtype.bits, t.dtype.lanes);
  v.ndim = t.ndim;
  return true;
}

// Asks a tensor, or None; attribute by attribute, if it is not to be `exchanged`.
inline void read(pybind11::handle tensor, View& v, bool exchanged = true) {
  v.data = nullptr, v.type = DType::other, v.ndim = -1;
  if (tensor.is_none() || (exchanged && read_exchanged(tensor.ptr(), v))) return;
  const auto& names = TorchNames::get();
  const auto address = asked(PyObject_CallMethodNoArgs(tensor.ptr(), names.data_ptr));
  const auto shape = asked(PyObject_GetAttr(tensor.ptr(), names.shape));
  const auto stride = asked(PyObject_CallMethodNoArgs(tensor.ptr(), names.stride));
  const auto dtype = asked(PyObject_GetAttr(tensor.ptr(), names.dtype));
  const bool tuples = PyTuple_Check(shape.ptr()) && PyTuple_Check(stride.ptr());
  const Py_ssize_t ndim = tuples ? PyTuple_GET_SIZE(shape.ptr()) : -1;
  if (ndim < 0 || ndim > View::kMaxDims || PyTuple_GET_SIZE(stride.ptr()) != ndim)
    throw pybind11::type_error("a tensor must have tuples of sizes and of strides, at most 64, got others");
  for (Py_ssize_t i = 0; i < ndim; ++i) {
    v.size[i] = number(PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i)));
    v.stride[i] = number(PyLong_AsLongLong(PyTuple_GET_ITEM(stride.ptr(), i)));
    if (v.size[i] < 0) refuse("a tensor's size", "from 0 on", std::to_string(v.size[i]));
  }
  v.data = reinterpret_cast<void*>(uintptr_t(number(PyLong_AsUnsignedLongLong(address.ptr()))));
  v.type = names.type_of(dtype.ptr());
  v.ndim = int(ndim);
}

}  // namespace fk

namespace pybind11::detail {

template <>
struct type_caster<fk::View> {
  PYBIND11_TYPE_CASTER(fk::View, const_name("Optional[Tensor]"));

  bool load(handle tensor, bool) {
    fk::read(tensor, value);
    return true;
  }
};

}  // namespace pybind11::detail
