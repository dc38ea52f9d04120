// How a tensor of Python becomes a View: by asking it, so that no number in between can be another's. No torch header;
// included by the bindings alone.
#pragma once
#include <pybind11/pybind11.h>

#include "view.h"

namespace fk {

// The dtypes that kernels know, and attributes by name; made once, and never freed: Python may be gone before.
struct TorchNames {
  PyObject *data_ptr, *shape, *stride, *dtype;
  struct {
    PyObject* dtype;
    DType type;
  } types[7];

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
                              {"bool", DType::bytes},
                              {"uint8", DType::bytes}})
      types[i++] = {pybind11::object(torch.attr(name)).release().ptr(), type};
  }
};

}  // namespace fk

namespace pybind11::detail {

template <>
struct type_caster<fk::View> {
  PYBIND11_TYPE_CASTER(fk::View, const_name("Optional[Tensor]"));

  bool load(handle tensor, bool) {
    if (tensor.is_none()) return true;
    const auto& names = fk::TorchNames::get();
    const object address = asked(PyObject_CallMethodNoArgs(tensor.ptr(), names.data_ptr));
    const object shape = asked(PyObject_GetAttr(tensor.ptr(), names.shape));
    const object stride = asked(PyObject_CallMethodNoArgs(tensor.ptr(), names.stride));
    const object dtype = asked(PyObject_GetAttr(tensor.ptr(), names.dtype));
    value.data = reinterpret_cast<void*>(uintptr_t(number(PyLong_AsUnsignedLongLong(address.ptr()))));
    value.type = names.type_of(dtype.ptr());
    const Py_ssize_t ndim = PyTuple_Check(shape.ptr()) ? PyTuple_GET_SIZE(shape.ptr()) : -1;
    if (ndim < 0 || ndim > fk::View::kMaxDims) return false;
    if (!PyTuple_Check(stride.ptr()) || PyTuple_GET_SIZE(stride.ptr()) != ndim) return false;
    value.ndim = int(ndim);
    for (Py_ssize_t i = 0; i < ndim; ++i) {
      value.size[i] = number(PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i)));
      value.stride[i] = number(PyLong_AsLongLong(PyTuple_GET_ITEM(stride.ptr(), i)));
    }
    return true;
  }

 private:
  static object asked(PyObject* answer) {
    if (!answer) throw error_already_set();
    return reinterpret_steal<object>(answer);
  }
  template <class N>
  static N number(N n) {
    if (n == N(-1) && PyErr_Occurred()) throw error_already_set();
    return n;
  }
};

}  // namespace pybind11::detail
