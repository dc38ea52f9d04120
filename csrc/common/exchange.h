// A tensor read in one call of C: DLPack's exchange table, which torch has from 2.10 or so on. Asking four attributes
// through Python takes 0.7 µs a tensor, this takes 0.03. No torch header: the layout below is DLPack 1's, which does
// not change before a major version 2. Included by view_caster.h alone.
#pragma once
#include <pybind11/pybind11.h>

#include "view.h"

namespace fk::exchange {

struct Tensor {  // DLTensor
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  const int64_t *shape, *strides;
  uint64_t byte_offset;
};
static_assert(sizeof(Tensor) == 48 && sizeof(void*) == 8, "DLPack's layout is given for 64 bits");

using Read = int (*)(void* tensor, Tensor* out);

struct Table {  // DLPackExchangeAPI
  struct {
    uint32_t major, minor;
  } version;
  void* older;
  void *allocate, *from_tensor, *to_tensor;
  Read read;
};

inline DType type_of(uint8_t code, uint8_t bits, uint16_t lanes) {
  enum : uint8_t { integer = 0, natural = 1, real = 2, bfloat = 4, boolean = 6 };
  if (lanes != 1) return DType::other;
  if (code == real) return bits == 32 ? DType::f32 : bits == 64 ? DType::f64 : bits == 16 ? DType::f16 : DType::other;
  if (code == bfloat) return bits == 16 ? DType::bf16 : DType::other;
  if (code == integer) return bits == 32 ? DType::i32 : bits == 64 ? DType::i64 : DType::other;
  return (code == natural || code == boolean) && bits == 8 ? DType::bytes : DType::other;
}

// What can be read so: tensors and parameters themselves. Whatever derives from them is asked in Python.
struct Exchange {
  Read read = nullptr;
  PyTypeObject *tensor = nullptr, *parameter = nullptr;

  static const Exchange& get() {
    static const Exchange* const found = new Exchange();  // never freed: Python may be gone before
    return *found;
  }

  // Fills `out` with what lives as long as the tensor does; false: ask in Python.
  bool operator()(PyObject* object, Tensor* out) const {
    if (!read || (Py_TYPE(object) != tensor && Py_TYPE(object) != parameter)) return false;
    if (read(object, out) == 0 && (out->ndim == 0 || (out->shape && out->strides))) return true;
    PyErr_Clear();  // of a sparse tensor, for instance: Python says it better
    return false;
  }

 private:
  Exchange() {
    namespace py = pybind11;
    const py::module_ torch = py::module_::import("torch");
    const py::object of_tensors = torch.attr("Tensor");
    const py::object capsule = py::getattr(of_tensors, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_CheckExact(capsule.ptr())) return;
    const auto table = static_cast<const Table*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) {
      PyErr_Clear();
      return;
    }
    if (table->version.major != 1) return;
    read = table->read;  // null, where there is none
    tensor = reinterpret_cast<PyTypeObject*>(py::object(of_tensors).release().ptr());
    parameter = reinterpret_cast<PyTypeObject*>(py::object(torch.attr("nn").attr("Parameter")).release().ptr());
  }
};

}  // namespace fk::exchange
