// What there is to run CUDA kernels on.
#pragma once

#include <string>
#include <utility>

namespace fk {

// How many devices there are, and why there is none.
std::pair<int, std::string> devices();

// Why a device cannot run what this module holds, or nothing: asked before the first launch, which would raise. It also
// loads the module there, which a stream that is being captured would not allow.
std::string why_no_kernel(int device);

}  // namespace fk
