#include "workspace.h"

#include <stdlib.h>
#include <sys/mman.h>

#include <new>

namespace fk {
namespace {

struct Buffer {
  void* data = nullptr;
  size_t size = 0;
  ~Buffer() { free(data); }
};

}  // namespace

void* workspace(Scratch purpose, size_t bytes) {
  thread_local Buffer buffers[2];
  Buffer& b = buffers[int(purpose)];
  if (bytes > size_t(1) << 62) throw std::bad_alloc();  // what follows rounds up
  if (b.size < bytes) {
    constexpr size_t kPage = size_t(2) << 20;
    const bool large = bytes >= kPage / 2;
    const size_t size = large ? (bytes + kPage - 1) / kPage * kPage : (bytes + 63) / 64 * 64;
    free(b.data);
    b.data = aligned_alloc(large ? kPage : 64, size);
    b.size = b.data ? size : 0;  // without memory the buffer is empty, and the next call tries again
    if (!b.data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (large) madvise(b.data, size, MADV_HUGEPAGE);
#endif
  }
  return b.data;
}

}  // namespace fk
