// Where a CUDA kernel runs, as torch says it; no CUDA header, so that every file may know the launchers.
#pragma once

namespace fk {

struct CudaStream {
  int device;
  void* stream;  // a cudaStream_t
};

}  // namespace fk
