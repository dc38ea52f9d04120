// Scratch memory that outlives a call: fresh pages cost more than the arithmetic done in them.
#pragma once
#include <stddef.h>

namespace fk {

// What a buffer is for; each thread has one buffer per purpose.
enum class Scratch : int { tile = 0, shared = 1 };

// This thread's buffer of at least `bytes`, aligned to a cache line, with whatever it last held.
// The next call for the same purpose on the same thread may move it.
void* workspace(Scratch purpose, size_t bytes);

}  // namespace fk
