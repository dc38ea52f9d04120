// Copies that threads start and wait for later; see cuda_runtime.h.
#pragma once
#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) { emulator::copy_async(to, from, bytes); }
inline void __pipeline_commit() { emulator::commit_copies(); }
inline void __pipeline_wait_prior(size_t groups) { emulator::wait_for_copies(groups); }
