// The kernels of an op, one set per instruction set: <op>_cpu.cpp defines a set as FK_ISA::<op>_kernels, dispatch.cpp
// calls the set that runs.
#pragma once

namespace fk {

template <class... Args>
struct Kernels {
  void (*fwd)(const Args&..., int threads);
  void (*bwd)(const Args&..., int threads);
};

}  // namespace fk
