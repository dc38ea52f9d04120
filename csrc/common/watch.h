// Whether what a reader of modules looked at is as it was: flowkernels.nets.reading.Walk, asked without Python. A walk
// over a flow's sixty modules takes Python as long as a small flow takes the kernels. Included by the bindings alone.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "view_caster.h"
#include "view_like.h"

namespace fk {

// What a module's own dict is asked for; made once, and never freed.
struct ModuleNames {
  PyObject *hooks[4], *forward, *parameters, *buffers, *modules, *version, *data_ptr, *dtype, *is_cpu, *is_neg;
  PyObject* requires_grad;

  static const ModuleNames& get() {
    static const ModuleNames* const names = new ModuleNames();
    return *names;
  }

 private:
  ModuleNames() {
    const auto name = [](const char* text) { return PyUnicode_InternFromString(text); };
    hooks[0] = name("_forward_hooks"), hooks[1] = name("_forward_pre_hooks");
    hooks[2] = name("_backward_hooks"), hooks[3] = name("_backward_pre_hooks");
    forward = name("forward"), parameters = name("_parameters"), buffers = name("_buffers"), modules = name("_modules");
    version = name("_version"), data_ptr = name("data_ptr");
    dtype = name("dtype"), is_cpu = name("is_cpu"), is_neg = name("is_neg");
    requires_grad = name("requires_grad");
  }
};

namespace watch {

// d[key], borrowed; null where there is none.
inline PyObject* get(PyObject* d, PyObject* key) {
  PyObject* const found = d && PyDict_Check(d) ? PyDict_GetItemWithError(d, key) : nullptr;
  if (!found && PyErr_Occurred()) throw pybind11::error_already_set();
  return found;
}

// Whether a dict has these values under these names: [(name, value), ...]; None stands for nothing too, as in d.get.
inline bool has(PyObject* d, PyObject* pairs) {
  for (Py_ssize_t i = 0, n = PySequence_Fast_GET_SIZE(pairs); i < n; ++i) {
    PyObject *const pair = PySequence_Fast_GET_ITEM(pairs, i), *const value = PyTuple_GET_ITEM(pair, 1);
    PyObject* const found = get(d, PyTuple_GET_ITEM(pair, 0));
    if (found != value && !(value == Py_None && !found)) return false;
  }
  return true;
}

// What a weak reference leads to, borrowed from the caller's point of view: others hold it as long as nothing runs.
inline PyObject* target(PyObject* reference) {
  if (!PyWeakref_Check(reference)) return Py_None;
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* found = nullptr;
  if (PyWeakref_GetRef(reference, &found) < 0) throw pybind11::error_already_set();
  if (!found) return Py_None;
  Py_DECREF(found);
  return found;
#else
  return PyWeakref_GetObject(reference);
#endif
}

// One entry of Walk._modules.
inline bool holds(PyObject* entry) {
  const auto& names = ModuleNames::get();
  const auto item = [&](int i) { return PyTuple_GET_ITEM(entry, i); };
  PyObject* const module = target(item(0));
  if (reinterpret_cast<PyObject*>(Py_TYPE(module)) != item(1)) return false;
  const auto dict = asked(PyObject_GenericGetDict(module, nullptr));
  PyObject* const d = dict.ptr();
  if (item(6) != Py_True) {
    for (PyObject* name : names.hooks) {
      PyObject* const hooks = get(d, name);
      const int any = hooks ? PyObject_IsTrue(hooks) : 1;
      if (any < 0) throw pybind11::error_already_set();
      if (any) return false;
    }
    if (get(d, names.forward)) return false;
  }
  if (PySequence_Fast_GET_SIZE(item(2)) && !has(get(d, names.parameters), item(2))) return false;
  PyObject *const inner = get(d, names.modules), *const children = item(3);
  if (!inner || PyDict_Size(inner) != PySequence_Fast_GET_SIZE(children)) return false;
  for (Py_ssize_t i = 0, n = PySequence_Fast_GET_SIZE(children); i < n; ++i) {
    PyObject* const pair = PySequence_Fast_GET_ITEM(children, i);
    PyObject *const found = get(inner, PyTuple_GET_ITEM(pair, 0)), *const child = target(PyTuple_GET_ITEM(pair, 1));
    if (found != child && !(child == Py_None && !found)) return false;
  }
  if (!has(d, item(4))) return false;
  PyObject* const values = item(5);
  for (Py_ssize_t i = 0, n = PySequence_Fast_GET_SIZE(values); i < n; ++i) {
    PyObject *const known = PySequence_Fast_GET_ITEM(values, i), *const t = PyTuple_GET_ITEM(known, 1);
    PyObject* const name = PyTuple_GET_ITEM(known, 0);
    if (get(get(d, names.buffers), name) != t) {  // it is a frozen parameter, or was one
      if (get(get(d, names.parameters), name) != t) return false;
      if (asked(PyObject_GetAttr(t, names.requires_grad)).ptr() != Py_False) return false;
    }
    const auto version = asked(PyObject_GetAttr(t, names.version));
    const auto address = asked(PyObject_CallMethodNoArgs(t, names.data_ptr));
    const int same = PyObject_RichCompareBool(version.ptr(), PyTuple_GET_ITEM(known, 2), Py_EQ),
              in_place = PyObject_RichCompareBool(address.ptr(), PyTuple_GET_ITEM(known, 3), Py_EQ);
    if (same < 0 || in_place < 0) throw pybind11::error_already_set();
    if (!same || !in_place) return false;
  }
  return true;
}

}  // namespace watch

// Of the list of tuples that a Walk has made.
inline bool walk_holds(const pybind11::list& modules) {
  for (Py_ssize_t i = 0, n = PyList_GET_SIZE(modules.ptr()); i < n; ++i) {
    PyObject* const entry = PyList_GET_ITEM(modules.ptr(), i);
    bool fits = PyTuple_Check(entry) && PyTuple_GET_SIZE(entry) == 7;
    for (int j = 2; fits && j < 6; ++j) {
      PyObject* const rows = PyTuple_GET_ITEM(entry, j);
      fits = PyList_Check(rows);
      for (Py_ssize_t k = 0, size = fits ? PyList_GET_SIZE(rows) : 0; fits && k < size; ++k) {
        PyObject* const row = PyList_GET_ITEM(rows, k);
        fits = PyTuple_Check(row) && PyTuple_GET_SIZE(row) == (j == 5 ? 4 : 2);
      }
    }
    if (!fits) throw pybind11::type_error("walk_holds: modules must be those of a Walk, got others");
    if (!watch::holds(entry)) return false;
  }
  return true;
}

// Whether all tensors are of this dtype, and in a CPU's memory.
inline bool are_like(const pybind11::tuple& tensors, pybind11::handle dtype) {
  constexpr int32_t cpu = 1;  // of DLPack
  const auto& names = ModuleNames::get();
  const auto& exchanged = exchange::Exchange::get();
  const DType type = TorchNames::get().type_of(dtype.ptr());
  for (Py_ssize_t i = 0, n = PyTuple_GET_SIZE(tensors.ptr()); i < n; ++i) {
    PyObject* const t = PyTuple_GET_ITEM(tensors.ptr(), i);
    exchange::Tensor seen;
    if (type != DType::other && type != DType::bytes && exchanged(t, &seen)) {
      if (seen.device.type != cpu || exchange::type_of(seen.dtype.code, seen.dtype.bits, seen.dtype.lanes) != type)
        return false;
      continue;
    }
    if (asked(PyObject_GetAttr(t, names.dtype)).ptr() != dtype.ptr()) return false;
    if (asked(PyObject_GetAttr(t, names.is_cpu)).ptr() != Py_True) return false;
  }
  return true;
}

// Whether memory has the values of every tensor, one after another: no gaps, and no sign that is a flag.
inline bool are_dense(const pybind11::tuple& tensors) {
  const auto& names = ModuleNames::get();
  View v;
  for (Py_ssize_t i = 0, n = PyTuple_GET_SIZE(tensors.ptr()); i < n; ++i) {
    PyObject* const t = PyTuple_GET_ITEM(tensors.ptr(), i);
    if (asked(PyObject_CallMethodNoArgs(t, names.is_neg)).ptr() != Py_False) return false;
    read(t, v);
    if (!is_contiguous(v)) return false;
  }
  return true;
}

// Whether every tensor lies in `flat`, from its place on, without gaps; -1: it may lie anywhere.
inline bool are_at(const pybind11::tuple& tensors, const View& flat, const std::vector<int64_t>& places) {
  View v;
  const size_t n = size_t(PyTuple_GET_SIZE(tensors.ptr()));
  if (n != places.size()) return false;
  for (size_t i = 0; i < n; ++i) {
    if (places[i] == -1) continue;
    read(PyTuple_GET_ITEM(tensors.ptr(), Py_ssize_t(i)), v);
    const char* const at = static_cast<char*>(flat.data) + places[i] * bytes_of_type(flat.type);
    if (v.data != at || v.type != flat.type || !is_contiguous(v)) return false;
  }
  return true;
}

}  // namespace fk
