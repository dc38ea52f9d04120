// What there is to run CUDA kernels on.
#pragma once

namespace fk {

int device_count();  // 0 where there is no device, or no driver

}  // namespace fk
